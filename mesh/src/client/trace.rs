//! One client span for a call with all its tries, and the trace context sent
//! along.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response};
use tonic::{Status, body::Body};
use tower::Service;
use tracing::Instrument as _;

use crate::{
    call::Call,
    telemetry::trace::{self, Kind},
};

/// The W3C header.
pub(crate) const TRACEPARENT: &str = "traceparent";

/// The service of the layer.
#[derive(Clone)]
pub(super) struct Trace<S> {
    inner: S,
    me: Arc<str>,
}

impl<S> Trace<S> {
    /// `me` is the service that calls: its spans carry its name.
    pub(super) fn new(inner: S, me: Arc<str>) -> Self {
        Self { inner, me }
    }
}

impl<S> Service<Request<Body>> for Trace<S>
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // The handler's span, or the trace it got even if that isn't sampled.
        let parent = trace::current().or_else(|| Call::current().trace.clone());
        let name = request.uri().path().trim_start_matches('/');
        let span = trace::child(&self.me, Kind::Client, name, parent.as_ref());
        if let Some(context) = trace::context(&span).or(parent)
            && let Ok(value) = HeaderValue::try_from(trace::format(&context))
        {
            request.headers_mut().insert(TRACEPARENT, value);
        }
        if span.is_none() {
            return Box::pin(self.inner.call(request));
        }
        let response = self.inner.call(request);
        let record = span.clone();
        let traced = async move {
            let response = response.await;
            let failed = match &response {
                Ok(response) => Status::from_header_map(response.headers()),
                Err(status) => Some(status.clone()),
            };
            if let Some(status) = failed.filter(|status| status.code() != tonic::Code::Ok) {
                record.record("rpc.grpc.status_code", status.code() as i32);
                record.record("otel.status_code", "ERROR");
            }
            response
        };
        Box::pin(traced.instrument(span))
    }
}
