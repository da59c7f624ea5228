//! The requests of one connection: how many there are, since when there is
//! none, and which of them were cancelled.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    task::Context,
    time::Duration,
};

use futures::task::AtomicWaker;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{ledger::Ledger, quota::Room};

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
    /// The unary request that hyper is about to have executed. HTTP/1.1 has nothing
    /// executed, and leaves it; it belongs to itself.
    handed: Mutex<Weak<Stream>>,
    draining: AtomicBool,
    gave_up: AtomicBool,
    /// Who awaits the peer's next request.
    awaiting: AtomicWaker,
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
            handed: Mutex::default(),
            draining: AtomicBool::new(false),
            gave_up: AtomicBool::new(false),
            awaiting: AtomicWaker::new(),
            first: CancellationToken::new(),
            abused: CancellationToken::new(),
        })
    }

    /// Waits until there was no request for as long as `timeout`.
    pub(super) async fn idle(&self, timeout: Duration) {
        loop {
            let left = match self.is_busy() {
                true => timeout,
                false => timeout.saturating_sub(self.idle_since().elapsed()),
            };
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }

    /// Whether there is a request.
    pub(super) fn is_busy(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    /// How many requests there ever were.
    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// When the last request ended; where there was none, when the connection began.
    pub(super) fn idle_since(&self) -> Instant {
        self.made + Duration::from_millis(self.last_end.load(Ordering::Relaxed))
    }

    /// Wakes the task of `cx` when a request ends.
    pub(super) fn await_next(&self, cx: &Context<'_>) {
        self.awaiting.register(cx.waker());
    }

    /// The peer was awaited for too long.
    pub(super) fn give_up(&self) {
        self.gave_up.store(true, Ordering::Relaxed);
    }

    pub(super) fn gave_up(&self) -> bool {
        self.gave_up.load(Ordering::Relaxed)
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

    /// A request begins.
    pub(super) fn begin(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::Relaxed);
        if self.begun.fetch_add(1, Ordering::Relaxed) == 0 {
            self.first.cancel();
        }
        let stream = Stream {
            of: self.clone(),
            began: Instant::now(),
            cancelled: AtomicBool::new(false),
            arrived: AtomicBool::new(false),
            answering: AtomicBool::new(false),
        };
        Open { stream: Arc::new(stream), answered: false }
    }

    /// Hands `stream` over to who executes it next.
    pub(super) fn hand(&self, stream: &Arc<Stream>) {
        *self.handed() = Arc::downgrade(stream);
    }

    /// Takes the request that was handed over.
    pub(super) fn take_handed(&self) -> Option<Arc<Stream>> {
        std::mem::take(&mut *self.handed()).upgrade()
    }

    fn handed(&self) -> MutexGuard<'_, Weak<Stream>> {
        self.handed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, began: Instant, answered: bool) {
        let now = Instant::now();
        let millis = now.duration_since(self.made).as_millis();
        self.last_end.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.awaiting.wake();
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
    /// It is there as a whole, or too large to be waited for.
    arrived: AtomicBool,
    /// Its handler is done, and its answer on its way.
    answering: AtomicBool,
}

impl Stream {
    pub(super) fn cancelled(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(super) fn arrived(&self) {
        self.arrived.store(true, Ordering::Relaxed);
    }

    /// Whether what it waits for comes by its connection.
    pub(super) fn waits_for_connection(&self) -> bool {
        !self.arrived.load(Ordering::Relaxed) || self.answering.load(Ordering::Relaxed)
    }

    pub(super) fn answering(&self) {
        self.answering.store(true, Ordering::Relaxed);
    }

    /// Until when its answer must be read, once there is one.
    pub(super) fn answer_deadline(&self) -> Option<Instant> {
        let answering = self.answering.load(Ordering::Relaxed);
        answering.then(|| self.began + self.of.unary_timeout + MARGIN)
    }
}

/// A request from its headers to the end of its answer.
pub(super) struct Open {
    pub(super) stream: Arc<Stream>,
    /// Its answer was sent to the end.
    pub(super) answered: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        let Stream { of, began, cancelled, .. } = &*self.stream;
        of.end(*began, self.answered && !cancelled.load(Ordering::Relaxed));
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
