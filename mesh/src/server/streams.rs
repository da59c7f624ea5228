//! The requests of one connection: how many there are, since when there is
//! none, which of them were cancelled, and how long each may last.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::body::Body;

use super::{Remote, ledger::Ledger, quota::Room};
use crate::descriptors;

/// A request that is cancelled sooner than this was hardly meant to be answered.
///
/// Source: Envoy's `overload.premature_reset_min_stream_lifetime_seconds`.
const PREMATURE: Duration = Duration::from_secs(1);
/// What a unary call has beyond its deadline to be answered that it is over.
const MARGIN: Duration = Duration::from_secs(1);

/// The requests of one connection.
pub(super) struct Streams {
    made: Instant,
    ledger: Arc<Ledger>,
    /// What the peer may take of the service's room; on a mesh port only.
    pub(super) room: Option<Arc<Room>>,
    unary_timeout: Duration,
    /// How many may be cancelled early; `None` where nobody counts.
    resets: Option<u32>,
    open: AtomicUsize,
    begun: AtomicU64,
    /// Milliseconds after `made`.
    last_end: AtomicU64,
    early_resets: AtomicU32,
    next_is_unary: AtomicBool,
    draining: AtomicBool,
    first: CancellationToken,
    abused: CancellationToken,
}

impl Streams {
    pub(super) fn new(
        ledger: Arc<Ledger>,
        room: Option<Arc<Room>>,
        unary_timeout: Duration,
        resets: Option<u32>,
    ) -> Arc<Self> {
        Arc::new(Self {
            made: Instant::now(),
            ledger,
            room,
            unary_timeout,
            resets,
            open: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            last_end: AtomicU64::new(0),
            early_resets: AtomicU32::new(0),
            next_is_unary: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            first: CancellationToken::new(),
            abused: CancellationToken::new(),
        })
    }

    /// Waits until there was no request for as long as `timeout`.
    pub(super) async fn idle(&self, timeout: Duration) {
        loop {
            let since = self.made + Duration::from_millis(self.last_end.load(Ordering::Relaxed));
            let left = match self.open.load(Ordering::Relaxed) {
                0 => timeout.saturating_sub(since.elapsed()),
                _ => timeout,
            };
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }

    /// Waits for the first request.
    pub(super) async fn first(&self) {
        self.first.cancelled().await;
    }

    /// Waits until the peer cancelled more requests than it may.
    pub(super) async fn abused(&self) {
        self.abused.cancelled().await;
    }

    /// The peer was told to go: what still comes was under way.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    fn begin(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::Relaxed);
        if self.begun.fetch_add(1, Ordering::Relaxed) == 0 {
            self.first.cancel();
        }
        let cancelled = AtomicBool::new(false);
        let stream = Stream { of: self.clone(), began: Instant::now(), cancelled };
        Open { stream: Arc::new(stream), answered: false }
    }

    fn end(&self, began: Instant, answered: bool) {
        let now = Instant::now();
        let millis = now.duration_since(self.made).as_millis();
        self.last_end.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.open.fetch_sub(1, Ordering::Relaxed);
        if answered {
            return;
        }
        self.ledger.cancelled();
        if now.duration_since(began) >= PREMATURE {
            return;
        }
        let early = self.early_resets.fetch_add(1, Ordering::Relaxed) + 1;
        let begun = self.begun.load(Ordering::Relaxed);
        if self.resets.is_some_and(|most| early > most) && 2 * u64::from(early) > begun {
            self.abused.cancel();
        }
    }
}

/// One request.
pub(super) struct Stream {
    /// Those of its connection.
    pub(super) of: Arc<Streams>,
    began: Instant,
    /// Its body ended before it was whole.
    cancelled: AtomicBool,
}

/// A request from its headers to the end of its answer.
struct Open {
    stream: Arc<Stream>,
    answered: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        let Stream { of, began, cancelled } = &*self.stream;
        of.end(*began, self.answered && !cancelled.load(Ordering::Relaxed));
    }
}

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
        // this is the request that `Tracked` saw last. A caller that doesn't
        // read its answer would hold it for ever: only the task can be ended,
        // for a body that waits for the caller's window isn't asked any more.
        if self.streams.next_is_unary.swap(false, Ordering::Relaxed) {
            let timeout = self.streams.unary_timeout + MARGIN;
            self.tasks.spawn(async move {
                // Late is reset: its deadline was answered, but nobody read.
                let _ = tokio::time::timeout(timeout, task).await;
            });
        } else {
            self.tasks.spawn(task);
        }
    }
}

/// Says of each request where it came from, and follows it to its end.
pub(super) struct Tracked<S> {
    pub(super) inner: S,
    pub(super) remote: Remote,
    pub(super) streams: Arc<Streams>,
}

impl<S> hyper::service::Service<Request<Incoming>> for Tracked<S>
where
    S: hyper::service::Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<TrackedBody>;
    type Error = S::Error;
    type Future = TrackedFuture<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let unary = descriptors::method(request.uri().path()).is_some_and(|m| !m.streaming);
        self.streams.next_is_unary.store(unary, Ordering::Relaxed);
        let open = self.streams.begin();
        let stream = &open.stream;
        let mut request = request.map(|body| match http_body::Body::is_end_stream(&body) {
            true => Body::empty(),
            false => Body::new(Asked { body, stream: stream.clone() }),
        });
        request.extensions_mut().insert(self.remote.clone());
        request.extensions_mut().insert(stream.clone());
        TrackedFuture { open: Some(open), response: self.inner.call(request) }
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
            self.stream.cancelled.store(true, Ordering::Relaxed);
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
    }
}

impl<F, E> Future for TrackedFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<TrackedBody>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.response.poll(cx))?;
        let mut open = this.open.take();
        Poll::Ready(Ok(response.map(|body| {
            if let Some(open) = &mut open {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn streams(resets: u32) -> Arc<Streams> {
        let ledger = Arc::new(Ledger::new("test".into(), "test".into()));
        Streams::new(ledger, None, Duration::from_secs(60), Some(resets))
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_from_the_end_of_its_last_request() {
        let streams = streams(10);
        let begun = Instant::now();
        let open = streams.begin();
        let end = async {
            tokio::time::sleep(Duration::from_secs(25)).await;
            drop(open);
        };
        tokio::join!(streams.idle(Duration::from_secs(10)), end);
        assert_eq!(begun.elapsed().as_secs(), 35);
    }

    #[tokio::test(start_paused = true)]
    async fn early_resets_are_abuse_when_many_and_more_than_half() {
        let streams = streams(10);
        let answer = || streams.begin().answered = true;
        let cancel = || drop(streams.begin());
        (0..11).for_each(|_| answer());
        (0..11).for_each(|_| cancel());
        assert!(!streams.abused.is_cancelled(), "half of them were answered");
        cancel();
        assert!(streams.abused.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_given_up_after_a_while_is_no_abuse() {
        let streams = streams(0);
        let open = streams.begin();
        tokio::time::advance(PREMATURE).await;
        drop(open);
        assert!(!streams.abused.is_cancelled());
    }
}
