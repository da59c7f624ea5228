//! Decides each request by the intentions, for the peer and, where it forwards somebody,
//! for all who have a part in the call.

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
        if let Some(Refused { party, why }) = request.extensions().get() {
            let party = party.as_ref().unwrap_or(peer);
            return Err(self.deny(peer, None, party, request.uri().path(), why));
        }
        let call = Call::current();
        let policy = self.policy.borrow();
        for party in [peer].into_iter().chain(call.parties().filter(|party| *party != peer)) {
            let decision = policy.decide(party, &self.me, request);
            if !decision.is_allowed() {
                let (path, reason) = (request.uri().path(), decision.reason());
                let forwarded = call.caller.as_ref().filter(|caller| *caller != peer);
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
            tracing::warn!(me = %self.me, %peer, caller, denied = %party, path, reason, "call denied");
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

#[cfg(test)]
mod tests {
    use tower::ServiceExt as _;

    use super::*;
    use crate::{client::Peer, policy::Intentions};

    fn id(name: &str) -> SpiffeId {
        SpiffeId::of_service("d", name).unwrap()
    }

    /// What `b` answers to a request from `peer` on behalf of the first of `before`, which
    /// the others forwarded, where `a` and `proxy` may call it, and how the denial is
    /// counted.
    async fn ask(peer: &str, before: &[&str]) -> (Result<(), Status>, Vec<Denial>) {
        let declared = ["a", "proxy"].map(|name| (name.to_owned(), "b".to_owned()));
        let intentions = Intentions::compile([], &declared);
        let policy = watch::channel(Arc::new(Policy { intentions, ..Policy::default() })).1;
        let inner = tower::service_fn(|_: Request<Body>| async {
            Ok::<_, Status>(Response::new(Body::empty()))
        });
        let denials = Denials::new();
        let stack = Authorize::new(inner, "b".into(), policy, denials.clone());
        let mut request = Request::post("/p.S/M").body(Body::empty()).unwrap();
        let peer = Peer { id: id(peer), serial: String::new() };
        let address = ([127, 0, 0, 1], 1).into();
        request.extensions_mut().insert(Remote { address, peer: Some(Arc::new(peer.clone())) });
        let mut parties = before.iter().map(|party| id(party)).chain([peer.id]);
        let (caller, proxies) = (parties.next(), parties.collect());
        let call = Call { caller, proxies, ..Call::default() };
        let answer = call.scope(async { stack.oneshot(request).await.map(drop) }).await;
        let taken = denials.take();
        assert!(taken.values().all(|count| *count == 1));
        (answer, taken.into_keys().collect())
    }

    #[tokio::test]
    async fn all_who_have_a_part_in_a_call_must_be_allowed() {
        assert!(ask("a", &[]).await.0.is_ok());
        assert!(ask("proxy", &["a"]).await.0.is_ok());
        assert!(ask("proxy", &["a", "proxy"]).await.0.is_ok());
        for (peer, before, denied) in [
            ("c", &[][..], "c"),
            ("proxy", &["c"], "c"),
            ("c", &["a"], "c"),
            ("proxy", &["a", "c"], "c"),
            ("proxy", &["a", "proxy", "c", "a"], "c"),
        ] {
            let (answer, counted) = ask(peer, before).await;
            let status = answer.unwrap_err();
            assert_eq!(status.code(), tonic::Code::PermissionDenied);
            assert!(status.message().contains(&format!("/svc/{denied} may not call /p.S/M of b")));
            let expected = Denial {
                peer: Some(id(peer)),
                caller: before.first().map(|caller| id(caller)),
                path: "other",
                reason: crate::policy::Decision::DeniedByDefault.reason(),
            };
            assert_eq!(counted, [expected]);
        }
    }
}
