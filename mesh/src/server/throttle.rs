//! Keeps a flood of equal events from being a flood of log lines.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// How often one kind of line is written at most.
const PERIOD: Duration = Duration::from_secs(1);

/// Lets one line a second pass, and counts those it holds back.
#[derive(Debug)]
pub(super) struct Throttle {
    made: Instant,
    /// Milliseconds after `made` from which the next line may pass.
    next: AtomicU64,
    held_back: AtomicU64,
}

impl Throttle {
    pub(super) fn new() -> Self {
        Self { made: Instant::now(), next: AtomicU64::new(0), held_back: AtomicU64::new(0) }
    }

    /// How many lines were held back since the last one, if this one may pass.
    pub(super) fn pass(&self) -> Option<u64> {
        let now = millis(self.made.elapsed());
        let next = self.next.load(Ordering::Relaxed);
        let passes = now >= next
            && self
                .next
                .compare_exchange(next, now + millis(PERIOD), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if passes {
            return Some(self.held_back.swap(0, Ordering::Relaxed));
        }
        self.held_back.fetch_add(1, Ordering::Relaxed);
        None
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_of_a_second_passes_and_tells_of_those_before() {
        let throttle = Throttle::new();
        assert_eq!(throttle.pass(), Some(0));
        for _ in 0..5 {
            assert_eq!(throttle.pass(), None);
        }
        tokio::time::advance(PERIOD).await;
        assert_eq!(throttle.pass(), Some(5));
        assert_eq!(throttle.pass(), None);
    }
}
