//! Keeps one kind of log line from becoming a flood: what strangers can cause
//! must not fill a disk.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// How many lines a second there may be.
const LINES: u64 = 10;

/// The limit on one kind of line, of ten a second. No lock: what comes at the
/// turn of a second may be a line more or less.
pub(crate) struct Throttle {
    second: AtomicU64,
    lines: AtomicU64,
    left_out: AtomicU64,
}

impl Throttle {
    pub(crate) const fn new() -> Self {
        Self { second: AtomicU64::new(0), lines: AtomicU64::new(0), left_out: AtomicU64::new(0) }
    }

    /// Whether the line may be written, and then how many were left out since
    /// the last one.
    pub(crate) fn admit(&self) -> Option<u64> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.admit_at(now)
    }

    fn admit_at(&self, now: u64) -> Option<u64> {
        if self.second.swap(now, Ordering::Relaxed) != now {
            self.lines.store(0, Ordering::Relaxed);
        }
        if self.lines.fetch_add(1, Ordering::Relaxed) < LINES {
            return Some(self.left_out.swap(0, Ordering::Relaxed));
        }
        self.left_out.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_a_second_are_written_and_the_rest_is_counted() {
        let throttle = Throttle::new();
        let written = (0..1000).filter(|_| throttle.admit_at(1) == Some(0)).count();
        assert_eq!(written, 10);
        assert_eq!(throttle.admit_at(2), Some(990));
        assert_eq!(throttle.admit_at(2), Some(0));
    }
}
