//! Between hyper and the stack: each request is told where it came from, and
//! followed from its headers to the end of its answer.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::future::Either;
use http::{HeaderValue, Request, Response, header::CONNECTION};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tokio_util::task::TaskTracker;
use tonic::body::Body;

use super::{
    Remote,
    streams::{Open, Stream, Streams},
};
use crate::{bundle::Adder, descriptors};

/// Up to how many bytes a request is awaited in the task of its connection: what is
/// larger takes long to be decoded.
const SMALL: usize = 64 * 1024;

/// Takes what hyper makes of each request. It begins in the task of its connection,
/// where what needn't wait is answered with others in one write. A unary one stays
/// there until it is there as a whole, and while it is answered; what else has to wait
/// goes on in a task of its own, on any core, which the listener awaits.
#[derive(Clone)]
pub(super) struct Tasks {
    pub(super) streams: Arc<Streams>,
    pub(super) tasks: TaskTracker,
    /// Adds to the connection's task.
    pub(super) connection: Adder,
    /// Whether all stays there.
    pub(super) in_place: bool,
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, request: F) {
        // hyper calls the service and hands over what comes of it in one go, so
        // this is the request that `Tracked` saw last.
        let stream = self.streams.take_handed();
        let request = match stream.clone() {
            Some(stream) => Either::Left(Bounded { request, stream, late: None }),
            None => Either::Right(request),
        };
        if self.in_place {
            return self.connection.add(request);
        }
        let (mut request, tasks) = (Some(Box::pin(request)), self.tasks.clone());
        let stays = move || stream.as_ref().is_some_and(|stream| stream.waits_for_connection());
        self.connection.add(poll_fn(move |cx| {
            let waits = request.as_mut().is_some_and(|one| one.as_mut().poll(cx).is_pending());
            if waits && stays() {
                return Poll::Pending;
            }
            if let Some(request) = request.take().filter(|_| waits) {
                tasks.spawn(request);
            }
            Poll::Ready(())
        }));
    }
}

pin_project! {
    /// A unary request, given up when its answer isn't read in time. Nothing further
    /// in can do that: a body whose caller has closed its window isn't asked for
    /// anything.
    struct Bounded<F> {
        #[pin]
        request: F,
        stream: Arc<Stream>,
        // Made when an answer has to wait: most don't.
        late: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future<Output = ()>> Future for Bounded<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.request.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        // Until it has an answer its deadline is the stack's.
        let Some(deadline) = this.stream.answer_deadline() else { return Poll::Pending };
        let late = this.late.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        late.as_mut().poll(cx)
    }
}

/// Says of each request where it came from, and follows it to its end.
pub(super) struct Tracked<S> {
    pub(super) inner: S,
    pub(super) remote: Remote,
    pub(super) streams: Arc<Streams>,
    /// Whether only HTTP/1.1 is spoken, where an answer tells the peer to go.
    pub(super) is_edge: bool,
}

impl<S> hyper::service::Service<Request<Incoming>> for Tracked<S>
where
    S: hyper::service::Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<TrackedBody>;
    type Error = S::Error;
    type Future = TrackedFuture<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let unary = descriptors::is_unary(request.uri().path());
        let open = self.streams.begin();
        let stream = &open.stream;
        if unary {
            self.streams.hand(stream);
        }
        let mut request = request.map(|body| match http_body::Body::is_end_stream(&body) {
            true => {
                stream.arrived();
                Body::empty()
            }
            false => Body::new(Asked { body, stream: stream.clone(), bytes: 0 }),
        });
        request.extensions_mut().insert(self.remote.clone());
        request.extensions_mut().insert(stream.clone());
        let response = self.inner.call(request);
        TrackedFuture { open: Some(open), response, is_edge: self.is_edge }
    }
}

/// A request's body on its way.
struct Asked {
    body: Incoming,
    stream: Arc<Stream>,
    bytes: usize,
}

impl http_body::Body for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            // A handler answers that as well, to nobody.
            Some(Err(_)) => self.stream.cancelled(),
            Some(Ok(frame)) => self.bytes += frame.data_ref().map_or(0, Bytes::len),
            None => {}
        }
        if frame.is_none() || self.bytes > SMALL || self.body.is_end_stream() {
            self.stream.arrived();
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

pin_project! {
    /// A request that waits for its answer.
    pub(super) struct TrackedFuture<F> {
        #[pin]
                response: F,
        open: Option<Open>,
        is_edge: bool,
    }
}

impl<F, E> Future for TrackedFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<TrackedBody>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.response.poll(cx))?;
        let mut open = this.open.take();
        if *this.is_edge && open.as_ref().is_some_and(|open| open.stream.of.is_draining()) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(Ok(response.map(|body| {
            if let Some(open) = &mut open {
                open.stream.answering();
                open.answered = http_body::Body::is_end_stream(&body);
            }
            TrackedBody { body, open }
        })))
    }
}

/// An answer on its way.
pub(super) struct TrackedBody {
    body: Body,
    open: Option<Open>,
}

impl http_body::Body for TrackedBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let last = match &frame {
            Some(Ok(frame)) => frame.is_trailers() || self.body.is_end_stream(),
            Some(Err(_)) | None => true,
        };
        if let Some(open) = &mut self.open {
            open.answered |= last;
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
