//! Reads off a request what its handler and the calls it makes have to know:
//! the caller, the deadline, the trace. Enforces the deadline.

use std::{
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{Request, Response};
use tokio::time::Instant;
use tonic::{Status, body::Body};
use tower::Service;
use tracing::Instrument as _;

use super::Remote;
use crate::{
    call::{CALLER_HEADER, Call},
    client::{VERSION_BRIDGE, deadline, trace::TRACEPARENT},
    descriptors,
    identity::SpiffeId,
    telemetry::trace::{self, Kind},
};

/// The services that may forward somebody else's identity; see decision 3 of
/// the design: each of them is a proxy by purpose.
const PROXIES: [&str; 3] = ["gateway", VERSION_BRIDGE, "tool-capture"];

/// The service of the layer.
#[derive(Clone)]
pub(super) struct Context<S> {
    inner: S,
    me: Arc<str>,
    unary_timeout: Duration,
}

impl<S> Context<S> {
    pub(super) fn new(inner: S, me: Arc<str>, unary_timeout: Duration) -> Self {
        Self { inner, me, unary_timeout }
    }

    /// Until when the call may take: as its caller says, and where it is unary
    /// no longer than this server has time.
    fn deadline(&self, request: &Request<Body>) -> Option<Instant> {
        let left = deadline::parse(request.headers());
        let unary = descriptors::is_unary(request.uri().path());
        let left = match unary {
            true => Some(left.map_or(self.unary_timeout, |left| left.min(self.unary_timeout))),
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
        let caller = match caller(&request) {
            Ok(caller) => caller,
            // Not answered here: the refusal is traced, counted and audited as
            // any other.
            Err(refused) => {
                request.extensions_mut().insert(refused);
                None
            }
        };
        let parent =
            request.headers().get(TRACEPARENT).and_then(|value| trace::parse(value.to_str().ok()?));
        let name = request.uri().path().trim_start_matches('/');
        let span = trace::child(&self.me, Kind::Server, name, parent.as_ref());
        let deadline = self.deadline(&request);
        let call = Call { caller, deadline, trace: trace::context(&span).or(parent) };

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
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused(pub(super) &'static str);

/// The peer, or the one it forwards, if it may.
fn caller(request: &Request<Body>) -> Result<Option<SpiffeId>, Refused> {
    let peer = request.extensions().get::<Remote>().and_then(|remote| remote.peer.as_ref());
    let peer = peer.map(|peer| peer.id.clone());
    let mut forwarded = request.headers().get_all(CALLER_HEADER).iter();
    let Some(named) = forwarded.next() else { return Ok(peer) };
    let proxy = peer.as_ref().filter(|peer| PROXIES.contains(&peer.name()));
    let proxy = proxy.ok_or(Refused("it is no proxy and forwards a caller in `omni-caller`"))?;
    let named = named.to_str().ok().and_then(|named| named.parse::<SpiffeId>().ok());
    match named {
        Some(named)
            if forwarded.next().is_none() && named.trust_domain() == proxy.trust_domain() =>
        {
            Ok(Some(named))
        }
        _ => Err(Refused("`omni-caller` is not one SPIFFE id of this mesh")),
    }
}
