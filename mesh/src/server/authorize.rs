//! Decides each request by the intentions, for the peer and, where a proxy
//! forwards somebody, for that caller too.

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::Either;
use http::{Request, Response};
use tokio::sync::watch;
use tonic::{Status, body::Body};
use tower::Service;

use super::{
    Remote,
    context::Refused,
    denials::{Denial, Denials},
};
use crate::{
    call::Call,
    descriptors,
    identity::SpiffeId,
    policy::Policy,
    status::{Reason, status},
};

/// How much of a path is logged: it is the caller's own word.
const LOGGED_PATH: usize = 256;

/// The service of the layer.
#[derive(Clone)]
pub(super) struct Authorize<S> {
    inner: S,
    me: Arc<str>,
    policy: watch::Receiver<Arc<Policy>>,
    denials: Denials,
}

impl<S> Authorize<S> {
    pub(super) fn new(
        inner: S,
        me: Arc<str>,
        policy: watch::Receiver<Arc<Policy>>,
        denials: Denials,
    ) -> Self {
        Self { inner, me, policy, denials }
    }

    fn check(&self, request: &Request<Body>) -> Result<(), Status> {
        let peer = request.extensions().get::<Remote>().and_then(|remote| remote.peer.as_ref());
        let Some(peer) = peer.map(|peer| &peer.id) else {
            return Err(status(Reason::Denied, "the connection has no identity"));
        };
        if let Some(Refused(reason)) = request.extensions().get() {
            return Err(self.deny(peer, None, peer, request.uri().path(), reason));
        }
        let caller = Call::current().caller.clone();
        let forwarded = caller.as_ref().filter(|caller| *caller != peer);
        let policy = self.policy.borrow().clone();
        for party in [Some(peer), forwarded].into_iter().flatten() {
            let decision = policy.intentions.decide(party, &self.me, request);
            if !decision.is_allowed() {
                let (path, reason) = (request.uri().path(), decision.reason());
                return Err(self.deny(peer, forwarded, party, path, reason));
            }
        }
        Ok(())
    }

    fn deny(
        &self,
        peer: &SpiffeId,
        caller: Option<&SpiffeId>,
        party: &SpiffeId,
        path: &str,
        reason: &'static str,
    ) -> Status {
        let denial = Denial {
            peer: Some(peer.clone()),
            caller: caller.cloned(),
            // Not the caller's own words: equal denials must be counted as such.
            path: descriptors::label(path),
            reason,
        };
        if self.denials.count(&self.me, denial) {
            let caller = caller.map_or("", SpiffeId::as_str);
            let path: String = path.chars().take(LOGGED_PATH).collect();
            tracing::warn!(me = %self.me, %peer, caller, path, reason, "call denied");
        }
        status(Reason::Denied, format!("{party} may not call {path} of {}: {reason}", self.me))
    }
}

impl<S> Service<Request<Body>> for Authorize<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Status>,
{
    type Response = Response<Body>;
    type Error = Status;
    type Future = Either<S::Future, Ready<Result<Response<Body>, Status>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.check(&request) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(status) => Either::Right(ready(Err(status))),
        }
    }
}
