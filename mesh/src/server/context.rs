//! Reads off a request what its handler and the calls it makes have to know:
//! the caller, the deadline, the trace. Enforces the deadline.

use std::{
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{Request, Response};
use tokio::{sync::watch, time::Instant};
use tonic::{Status, body::Body};
use tower::Service;
use tracing::Instrument as _;

use super::Remote;
use crate::{
    call::{CALLER_HEADER, Call},
    client::{deadline, trace::TRACEPARENT},
    descriptors,
    identity::SpiffeId,
    policy::Policy,
    telemetry::trace::{self, Kind},
};

/// The service of the layer.
#[derive(Clone)]
pub(super) struct Context<S> {
    inner: S,
    server: Arc<Server>,
}

/// The server that the layer is of.
pub(super) struct Server {
    pub(super) me: Arc<str>,
    /// How long a unary call may take.
    pub(super) unary_timeout: Duration,
    pub(super) policy: watch::Receiver<Arc<Policy>>,
}

impl<S> Context<S> {
    pub(super) fn new(inner: S, server: Arc<Server>) -> Self {
        Self { inner, server }
    }

    /// Until when the call may take: as its caller says, and where it is unary
    /// no longer than this server has time.
    fn deadline(&self, request: &Request<Body>) -> Option<Instant> {
        let left = deadline::parse(request.headers());
        let unary = descriptors::is_unary(request.uri().path());
        let left = match unary {
            true => {
                let most = self.server.unary_timeout;
                Some(left.map_or(most, |left| left.min(most)))
            }
            false => left,
        };
        left.map(|left| Instant::now() + left)
    }
}

impl<S> Service<Request<Body>> for Context<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Status> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Status>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let (caller, proxies) = match parties(&request, &self.server.policy) {
            Ok(parties) => parties,
            // Not answered here: the refusal is traced, counted and audited as
            // any other.
            Err(refused) => {
                request.extensions_mut().insert(refused);
                (None, vec![])
            }
        };
        let parent =
            request.headers().get(TRACEPARENT).and_then(|value| trace::parse(value.to_str().ok()?));
        let name = request.uri().path().trim_start_matches('/');
        let span = trace::child(&self.server.me, Kind::Server, name, parent.as_ref());
        let deadline = self.deadline(&request);
        let call = Call { caller, proxies, deadline, trace: trace::context(&span).or(parent) };

        // The clone that was made ready goes; the other one is for the next.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let answer = call.scope(async move { inner.call(request).await });
        let answer = async move {
            match deadline {
                None => answer.await,
                Some(deadline) => match tokio::time::timeout_at(deadline, answer).await {
                    Ok(answer) => Ok(answer?.map(|body| deadline::until(body, deadline))),
                    Err(_) => Err(deadline::over()),
                },
            }
        };
        if span.is_none() {
            return Box::pin(answer);
        }
        let record = span.clone();
        let traced = async move {
            let answer = answer.await;
            let code = match &answer {
                Ok(answer) => Status::from_header_map(answer.headers()).map(|s| s.code()),
                Err(status) => Some(status.code()),
            };
            if let Some(code) = code.filter(|code| *code != tonic::Code::Ok) {
                record.record("rpc.grpc.status_code", code as i32);
                record.record("otel.status_code", "ERROR");
            }
            answer
        };
        Box::pin(traced.instrument(span))
    }
}

/// Why a forwarded caller isn't accepted.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    /// Whose fault it is; the peer's, where that is nobody else's.
    pub(super) party: Option<SpiffeId>,
    pub(super) why: &'static str,
}

/// The caller, and the proxies that forwarded its call, of which the peer is the last.
fn parties(
    request: &Request<Body>,
    policy: &watch::Receiver<Arc<Policy>>,
) -> Result<(Option<SpiffeId>, Vec<SpiffeId>), Refused> {
    let peer = request.extensions().get::<Remote>().and_then(|remote| remote.peer.as_ref());
    let peer = peer.map(|peer| peer.id.clone());
    let mut headers = request.headers().get_all(CALLER_HEADER).iter();
    let (Some(header), Some(peer)) = (headers.next(), &peer) else { return Ok((peer, vec![])) };
    if headers.next().is_some() {
        return Err(Refused { party: None, why: "`omni-caller` is there more than once" });
    }
    let mut proxies = Call::named(header).map_err(|why| Refused { party: None, why })?;
    let caller = proxies.remove(0);
    proxies.push(peer.clone());
    let policy = policy.borrow();
    let refused = |party: &SpiffeId, why| Refused { party: Some(party.clone()), why };
    if let Some(proxy) = proxies.iter().find(|proxy| !policy.trust.forwards(proxy.name())) {
        let why = "it is no trusted proxy and forwards a caller in `omni-caller`";
        return Err(refused(proxy, why));
    }
    let stranger = |party: &&SpiffeId| party.trust_domain() != peer.trust_domain();
    if let Some(party) = proxies.iter().chain([&caller]).find(stranger) {
        return Err(refused(party, "it is a party of another mesh"));
    }
    Ok((Some(caller), proxies))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{call::MAX_FORWARDED, client::Peer, policy::Trust};

    /// Who has a part in a call of `peer` that says `header`, by name; those whose names
    /// begin with `proxy` are trusted.
    fn read(peer: &str, header: &[&str]) -> Result<Vec<String>, &'static str> {
        let proxies = (1..6).map(|n| format!("proxy-{n}"));
        let trust = Trust { proxies: proxies.collect(), converters: ["bridge".into()].into() };
        let policy = watch::channel(Arc::new(Policy { trust, ..Policy::default() })).1;
        let id = SpiffeId::of_service("d", peer).unwrap();
        let peer = Some(Arc::new(Peer { id, serial: String::new() }));
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(Remote { address: ([127, 0, 0, 1], 1).into(), peer });
        for value in header {
            let ids = value.split(' ').map(|party| match party.split_once('@') {
                Some((name, domain)) => format!("spiffe://{domain}/ns/default/dc/dc1/svc/{name}"),
                None => party.to_owned(),
            });
            let value = ids.collect::<Vec<_>>().join(", ");
            request.headers_mut().append(CALLER_HEADER, value.parse().unwrap());
        }
        let (caller, proxies) = parties(&request, &policy).map_err(|refused| refused.why)?;
        let call = Call { caller, proxies, ..Call::default() };
        match call.forwarded() {
            Ok(header) => assert!(Call::named(&header).unwrap().iter().eq(call.parties())),
            Err(_) => assert_eq!(call.parties().count(), MAX_FORWARDED + 1),
        }
        Ok(call.parties().map(|party| party.name().to_owned()).collect())
    }

    #[test]
    fn a_chain_is_read_if_all_who_forwarded_are_trusted() {
        assert_eq!(read("a", &[]).unwrap(), ["a"]);
        assert_eq!(read("proxy-1", &["a@d"]).unwrap(), ["a", "proxy-1"]);
        assert_eq!(read("bridge", &["a@d proxy-1@d"]).unwrap(), ["a", "proxy-1", "bridge"]);
        let chain = "a@d proxy-1@d proxy-2@d proxy-3@d";
        let parties = ["a", "proxy-1", "proxy-2", "proxy-3", "bridge"];
        assert_eq!(read("bridge", &[chain]).unwrap(), parties);
    }

    #[test]
    fn any_other_chain_is_refused() {
        for (peer, header, why) in [
            ("a", &["b@d"][..], "no trusted proxy"),
            ("bridge", &["a@d b@d"], "no trusted proxy"),
            ("bridge", &["a@d b@d proxy-1@d"], "no trusted proxy"),
            ("proxy-1", &["a@elsewhere"], "another mesh"),
            ("bridge", &["a@d proxy-1@elsewhere"], "another mesh"),
            ("bridge", &["a@d proxy-1@d proxy-2@d proxy-3@d proxy-4@d"], "too many"),
            ("proxy-1", &["a@d", "b@d"], "more than once"),
            ("proxy-1", &[""], "SPIFFE"),
            ("proxy-1", &["a@d nonsense"], "SPIFFE"),
        ] {
            let refused = read(peer, header).unwrap_err();
            assert!(refused.contains(why), "{peer} {header:?}: {refused}");
        }
    }
}
