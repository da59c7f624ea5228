//! Keeps a flood of equal events from being a flood of log lines.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How many lines of one kind are written in each period at most.
const LINES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(1);

/// Lets ten lines a second pass, and counts those it holds back.
#[derive(Debug)]
pub(super) struct Throttle {
    period: Mutex<Period>,
}

#[derive(Debug)]
struct Period {
    begun: Instant,
    passed: u32,
    held_back: u64,
}

impl Throttle {
    pub(super) fn new() -> Self {
        Self { period: Mutex::new(Period { begun: Instant::now(), passed: 0, held_back: 0 }) }
    }

    /// How many lines were held back since the last one, if this one may pass.
    pub(super) fn pass(&self) -> Option<u64> {
        let mut period = self.period.lock().unwrap_or_else(PoisonError::into_inner);
        if period.begun.elapsed() >= PERIOD {
            (period.begun, period.passed) = (Instant::now(), 0);
        }
        if period.passed == LINES {
            period.held_back += 1;
            return None;
        }
        period.passed += 1;
        Some(std::mem::take(&mut period.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_lines_a_second_pass_and_the_next_one_tells_of_the_others() {
        let throttle = Throttle::new();
        for _ in 0..LINES {
            assert_eq!(throttle.pass(), Some(0));
        }
        for _ in 0..5 {
            assert_eq!(throttle.pass(), None);
        }
        tokio::time::advance(PERIOD).await;
        assert_eq!(throttle.pass(), Some(5));
        assert_eq!(throttle.pass(), Some(0));
    }
}
