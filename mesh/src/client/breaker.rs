//! Keeps calls away from an instance that fails.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// How many failures in a row open it.
const FAILURES: u32 = 5;
/// How long it stays open before one call may try.
const OPEN: Duration = Duration::from_secs(30);
/// How long an instance that can't be connected to is left alone: short, for a
/// restarted one comes back at the same address.
const UNREACHABLE: Duration = Duration::from_secs(1);

/// One instance's breaker. No locks: it is asked for each call.
///
/// ```text
///          5 failures in a row,
///          or unreachable               30 s (1 s if unreachable)
///  closed ────────────────────▶ open ──────────────────────────▶ half-open
///    ▲                           ▲                                  │  │
///    │                           └───────── the one call fails ─────┘  │
///    └───────────────────────────────────── the one call succeeds ─────┘
/// ```
pub(super) struct Breaker {
    origin: Instant,
    failures: AtomicU32,
    /// Milliseconds after `origin` until which it is open; 0 is closed.
    open_until: AtomicU64,
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), failures: AtomicU32::new(0), open_until: AtomicU64::new(0) }
    }

    /// Whether a call may go now. In half-open, the one that is told so must
    /// go: the others wait for how it ends.
    pub(super) fn admits(&self) -> bool {
        let until = self.open_until.load(Ordering::Relaxed);
        if until == 0 {
            return true;
        }
        let now = self.now();
        now >= until
            && self
                .open_until
                .compare_exchange(until, now + millis(OPEN), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Whether it is closed.
    pub(super) fn is_closed(&self) -> bool {
        self.open_until.load(Ordering::Relaxed) == 0
    }

    pub(super) fn succeeded(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.open_until.store(0, Ordering::Relaxed);
    }

    pub(super) fn failed(&self) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES || !self.is_closed() {
            self.open_until.store(self.now() + millis(OPEN), Ordering::Relaxed);
        }
    }

    pub(super) fn unreachable(&self) {
        self.open_until.store(self.now() + millis(UNREACHABLE), Ordering::Relaxed);
    }

    /// Milliseconds since `origin`, and one more, for 0 means closed.
    fn now(&self) -> u64 {
        millis(self.origin.elapsed()) + 1
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn five_failures_in_a_row_open_it_and_one_probe_closes_it() {
        let breaker = Breaker::new();
        for _ in 0..4 {
            breaker.failed();
        }
        breaker.succeeded();
        for _ in 0..4 {
            breaker.failed();
        }
        assert!(breaker.admits());
        breaker.failed();
        assert!(!breaker.admits());
        tokio::time::advance(OPEN).await;
        assert!(breaker.admits(), "one may try");
        assert!(!breaker.admits(), "only one");
        breaker.succeeded();
        assert!(breaker.admits() && breaker.admits());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_probe_opens_it_again() {
        let breaker = Breaker::new();
        for _ in 0..5 {
            breaker.failed();
        }
        tokio::time::advance(OPEN).await;
        assert!(breaker.admits());
        breaker.failed();
        tokio::time::advance(OPEN / 2).await;
        assert!(!breaker.admits());
    }

    #[tokio::test(start_paused = true)]
    async fn an_unreachable_instance_is_tried_again_after_a_second() {
        let breaker = Breaker::new();
        breaker.unreachable();
        assert!(!breaker.admits());
        tokio::time::advance(UNREACHABLE).await;
        assert!(breaker.admits());
    }
}
