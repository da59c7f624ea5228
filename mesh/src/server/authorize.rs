//! Decides each request by the intentions, for the peer and, where a proxy
//! forwards somebody, for that caller too.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::{BoxFuture, ready};
use http::{Request, Response};
use tokio::sync::{mpsc, watch};
use tonic::{Status, body::Body};
use tower::Service;

use super::{Remote, context::Refused};
use crate::{
    call::Call,
    descriptors,
    identity::SpiffeId,
    policy::Policy,
    status::{Reason, status},
};

/// A call that wasn't let through.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Denial {
    /// Who called.
    pub peer: String,
    /// Whom it forwarded; empty where nobody.
    pub caller: String,
    /// The gRPC method path; `other` for one that the API hasn't.
    pub path: &'static str,
    /// Why.
    pub reason: &'static str,
}

/// The service of the layer.
#[derive(Clone)]
pub(super) struct Authorize<S> {
    inner: S,
    me: Arc<str>,
    policy: watch::Receiver<Arc<Policy>>,
    denials: mpsc::Sender<Denial>,
}

impl<S> Authorize<S> {
    pub(super) fn new(
        inner: S,
        me: Arc<str>,
        policy: watch::Receiver<Arc<Policy>>,
        denials: mpsc::Sender<Denial>,
    ) -> Self {
        Self { inner, me, policy, denials }
    }

    fn check(&self, request: &Request<Body>) -> Result<(), Status> {
        let peer = request.extensions().get::<Remote>().and_then(|remote| remote.peer.as_ref());
        let Some(peer) = peer else {
            return Err(status(Reason::Denied, "the connection has no identity"));
        };
        let path = request.uri().path();
        if let Some(Refused(reason)) = request.extensions().get() {
            return Err(self.deny(&peer.id, None, &peer.id, path, reason));
        }
        let caller = Call::current().caller.clone();
        let forwarded = caller.filter(|caller| *caller != peer.id);
        let policy = self.policy.borrow().clone();
        for party in [Some(&peer.id), forwarded.as_ref()].into_iter().flatten() {
            let decision = policy.intentions.decide(party, &self.me, path);
            if !decision.is_allowed() {
                return Err(self.deny(
                    &peer.id,
                    forwarded.as_ref(),
                    party,
                    path,
                    decision.reason(),
                ));
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
        let caller = caller.map(ToString::to_string).unwrap_or_default();
        tracing::warn!(me = %self.me, %peer, caller, path, reason, "call denied");
        let denial = Denial {
            peer: peer.to_string(),
            caller,
            // Not the caller's own words: equal denials must be counted as such.
            path: descriptors::label(path),
            reason,
        };
        // Full means a flood of denials; it is logged and counted all the same.
        let _ = self.denials.try_send(denial);
        status(Reason::Denied, format!("{party} may not call {path} of {}: {reason}", self.me))
    }
}

impl<S> Service<Request<Body>> for Authorize<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Status>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.check(&request) {
            Ok(()) => Box::pin(self.inner.call(request)),
            Err(status) => Box::pin(ready(Err(status))),
        }
    }
}
