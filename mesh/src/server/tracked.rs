//! Between hyper and the stack: each request is told where it came from, and
//! followed from its headers to the end of its answer.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
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
use crate::descriptors;

/// Spawns what hyper makes of each request, as tasks that the listener awaits.
#[derive(Clone)]
pub(super) struct Tasks {
    pub(super) streams: Arc<Streams>,
    pub(super) tasks: TaskTracker,
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        // hyper calls the service and hands over what comes of it in one go, so
        // this is the request that `Tracked` saw last.
        match self.streams.hand(None) {
            Some(stream) => self.tasks.spawn(Bounded { task, stream, late: None }),
            None => self.tasks.spawn(task),
        };
    }
}

pin_project! {
    /// The task of a unary request, given up when its answer isn't read in
    /// time. Nothing further in can do that: a body whose caller has closed its
    /// window isn't asked for anything.
    struct Bounded<F> {
        #[pin]
        task: F,
        stream: Arc<Stream>,
        // Made when an answer has to wait: most don't.
        late: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future<Output = ()>> Future for Bounded<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.task.poll(cx).is_ready() {
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
        self.streams.hand(unary.then(|| stream.clone()));
        let mut request = request.map(|body| match http_body::Body::is_end_stream(&body) {
            true => Body::empty(),
            false => Body::new(Asked { body, stream: stream.clone() }),
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
}

impl http_body::Body for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if matches!(frame, Some(Err(_))) {
            // A handler answers that as well, to nobody.
            self.stream.cancelled();
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
