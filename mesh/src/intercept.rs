//! The one place where calls are watched, in both stacks: interceptors attach
//! and detach while calls run, and see each call before and after.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use opentelemetry::metrics::Histogram;
use tonic::{Code, Status, body::Body};
use tower::Service;

use crate::{call::Call, descriptors, identity::SpiffeId, telemetry::label};

/// Which stack a call is seen in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// A call being answered.
    Inbound,
    /// A call being made.
    Outbound,
}

/// A call, as far as it is known when it begins.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// In which stack it is seen.
    pub direction: Direction,
    /// The service that is called.
    pub service: Arc<str>,
    /// The gRPC method path.
    pub path: String,
    /// Who calls: the peer or the one it forwards; this party where it calls.
    pub caller: Option<SpiffeId>,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The gRPC code; `Cancelled` where the caller went away.
    pub code: Code,
    /// From the request's beginning to the end of the answer's stream.
    pub elapsed: Duration,
}

/// Sees calls. It runs on their path: it must not wait.
pub trait Interceptor: Send + Sync + 'static {
    /// A call begins.
    fn before(&self, _exchange: &Exchange) {}
    /// A call ended.
    fn after(&self, _exchange: &Exchange, _outcome: Outcome) {}
}

/// The interceptors of one stack.
#[derive(Clone, Default)]
pub struct Interceptors {
    attached: Arc<ArcSwap<Vec<Arc<dyn Interceptor>>>>,
}

impl Interceptors {
    /// Attaches `interceptor` until the answer is dropped. Calls under way go
    /// on with those they began with.
    #[must_use = "dropping it detaches the interceptor"]
    pub fn attach(&self, interceptor: Arc<dyn Interceptor>) -> Attached {
        self.attached.rcu(|all| {
            let mut all = Vec::clone(all);
            all.push(interceptor.clone());
            all
        });
        Attached { interceptors: self.clone(), interceptor }
    }
}

/// Detaches its interceptor when dropped.
pub struct Attached {
    interceptors: Interceptors,
    interceptor: Arc<dyn Interceptor>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.interceptors.attached.rcu(|all| {
            let mut all = Vec::clone(all);
            all.retain(|one| !Arc::ptr_eq(one, &self.interceptor));
            all
        });
    }
}

/// The service of the layer: shows calls to the interceptors.
#[derive(Clone)]
pub(crate) struct Intercept<S> {
    inner: S,
    direction: Direction,
    service: Arc<str>,
    me: Option<SpiffeId>,
    interceptors: Interceptors,
}

impl<S> Intercept<S> {
    pub(crate) fn inbound(inner: S, service: Arc<str>, interceptors: Interceptors) -> Self {
        Self { inner, direction: Direction::Inbound, service, me: None, interceptors }
    }

    pub(crate) fn outbound(
        inner: S,
        service: Arc<str>,
        me: SpiffeId,
        interceptors: Interceptors,
    ) -> Self {
        Self { inner, direction: Direction::Outbound, service, me: Some(me), interceptors }
    }
}

impl<S> Service<Request<Body>> for Intercept<S>
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
        let attached = self.interceptors.attached.load_full();
        if attached.is_empty() {
            return Box::pin(self.inner.call(request));
        }
        let started = Instant::now();
        let exchange = Exchange {
            direction: self.direction,
            service: self.service.clone(),
            path: request.uri().path().to_owned(),
            caller: self.me.clone().or_else(|| Call::current().caller.clone()),
        };
        for interceptor in attached.iter() {
            interceptor.before(&exchange);
        }
        let mut ended = Ended::new(move |code| {
            let outcome = Outcome { code, elapsed: started.elapsed() };
            for interceptor in attached.iter() {
                interceptor.after(&exchange, outcome);
            }
        });
        let response = self.inner.call(request);
        Box::pin(async move {
            match response.await {
                Ok(response) => Ok(ended.watch(response)),
                Err(status) => {
                    ended.tell(status.code());
                    Err(status)
                }
            }
        })
    }
}

/// The code of an answer that is whole already, beside the answer: nobody has to
/// watch it to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished(pub(crate) Code);

/// How a call ended, as far as its answer tells before its body is read.
pub(crate) fn code_so_far<B>(response: &Response<B>) -> Option<Code> {
    match response.extensions().get() {
        Some(Finished(code)) => Some(*code),
        None => response
            .headers()
            .contains_key(Status::GRPC_STATUS)
            .then(|| code_of(response.headers())),
    }
}

/// Tells once how a call ended: by the status in the answer's headers or
/// trailers, or as `Cancelled` when nobody waits for it any more.
pub(crate) struct Ended<F: FnOnce(Code)> {
    tell: Option<F>,
}

impl<F: FnOnce(Code) + Send + Unpin + 'static> Ended<F> {
    pub(crate) fn new(tell: F) -> Self {
        Self { tell: Some(tell) }
    }

    pub(crate) fn tell(&mut self, code: Code) {
        if let Some(tell) = self.tell.take() {
            tell(code);
        }
    }

    /// Watches the answer to its end.
    pub(crate) fn watch<B>(mut self, response: Response<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<tonic::codegen::StdError>,
    {
        if let Some(code) = code_so_far(&response) {
            self.tell(code);
            return response.map(Body::new);
        }
        response.map(|body| Body::new(Watched { body, ended: self }))
    }
}

impl<F: FnOnce(Code)> Drop for Ended<F> {
    fn drop(&mut self) {
        if let Some(tell) = self.tell.take() {
            tell(Code::Cancelled);
        }
    }
}

/// A body whose trailers tell how the call ended.
struct Watched<B, F: FnOnce(Code)> {
    body: B,
    ended: Ended<F>,
}

impl<B, F> http_body::Body for Watched<B, F>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    F: FnOnce(Code) + Send + Unpin + 'static,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.ended.tell(code_of(trailers));
                }
            }
            Some(Err(_)) => self.ended.tell(Code::Unavailable),
            None => self.ended.tell(Code::Unknown),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The code in an answer's headers or trailers.
pub(crate) fn code_of(trailers: &HeaderMap) -> Code {
    trailers
        .get(Status::GRPC_STATUS)
        .map_or(Code::Unknown, |code| Code::from_bytes(code.as_bytes()))
}

/// Counts and times calls, by service, method, code and direction. Methods
/// without a descriptor are counted as `other`, so that callers can't grow the labels.
pub struct Metrics {
    durations: Histogram<f64>,
}

impl Metrics {
    /// Records by the meter provider of this moment: start telemetry first.
    pub fn new() -> Self {
        let durations = opentelemetry::global::meter("omnibridge")
            .f64_histogram("omni.call.duration")
            .with_unit("s")
            .with_description("How long calls took, to the end of the answer")
            .with_boundaries(vec![
                0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0,
            ])
            .build();
        Self { durations }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Interceptor for Metrics {
    fn after(&self, exchange: &Exchange, outcome: Outcome) {
        let direction = match exchange.direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        };
        self.durations.record(
            outcome.elapsed.as_secs_f64(),
            &[
                label("direction", direction),
                label("service", exchange.service.clone()),
                label("method", descriptors::label(&exchange.path)),
                label("code", code_name(outcome.code)),
            ],
        );
    }
}

/// The name of a code as gRPC writes it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
