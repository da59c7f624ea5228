//! A gate that shuts for a while and then lets one call through to see whether
//! it may open again. The breaker and the ejection of instances stand on it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// How long the one call that tries a shut gate keeps others from it.
const PROBE: Duration = Duration::from_secs(5);

/// Whether a call may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It may.
    Yes,
    /// It is to show whether all is well again.
    Probe,
    /// It may not.
    No,
}

/// No locks: it is asked for each call.
///
/// ```text
///           shut                time is over
///   open ──────────▶ shut ──────────────────────▶ probed
///    ▲                ▲                            │  │
///    │                └────── the probe fails ─────┘  │
///    └─────────────────────── it is answered ─────────┘
/// ```
///
/// A probe that never tells how it ended is followed by another.
pub(super) struct Gate {
    origin: Instant,
    /// [`OPEN`]; else twice the milliseconds after `origin` until which it is
    /// shut, or being probed, which adds 1.
    state: AtomicU64,
}

const OPEN: u64 = 0;

impl Gate {
    pub(super) fn new(now: Instant) -> Self {
        Self { origin: now, state: AtomicU64::new(OPEN) }
    }

    /// Whether a call may pass now. Who is told [`Admission::Probe`] is the only
    /// one for a while, and must call.
    pub(super) fn admits(&self, now: Instant) -> Admission {
        let state = self.state.load(Ordering::Relaxed);
        if state == OPEN {
            return Admission::Yes;
        }
        if self.millis(now) < state / 2 {
            return Admission::No;
        }
        let probed = self.until(now + PROBE) | 1;
        if self.change(state, probed) { Admission::Probe } else { Admission::No }
    }

    /// Whether every call may pass.
    pub(super) fn is_open(&self) -> bool {
        self.state.load(Ordering::Relaxed) == OPEN
    }

    /// Whether the next call to ask would be told to pass.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.millis(now) >= self.state.load(Ordering::Relaxed) / 2
    }

    /// How long it is shut yet; `None` where it is open.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        let state = self.state.load(Ordering::Relaxed);
        (state != OPEN).then(|| Duration::from_millis((state / 2).saturating_sub(self.millis(now))))
    }

    /// Shuts it for `time`; whether it was open.
    pub(super) fn shut(&self, now: Instant, time: Duration) -> bool {
        self.change(OPEN, self.until(now + time))
    }

    /// Opens it if it was being probed; whether it was. An answer to what was
    /// sent before it shut proves nothing.
    pub(super) fn answered(&self) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        is_probed(state) && self.change(state, OPEN)
    }

    /// Whether it is being probed.
    pub(super) fn is_probed(&self) -> bool {
        is_probed(self.state.load(Ordering::Relaxed))
    }

    /// Shuts it for `time` if it was being probed; whether it was.
    pub(super) fn failed(&self, now: Instant, time: Duration) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        is_probed(state) && self.change(state, self.until(now + time))
    }

    fn change(&self, from: u64, to: u64) -> bool {
        self.state.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn until(&self, end: Instant) -> u64 {
        2 * self.millis(end).max(1)
    }

    fn millis(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.origin).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX).min(u64::MAX / 4)
    }
}

fn is_probed(state: u64) -> bool {
    state & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_secs(30);

    #[test]
    fn it_shuts_lets_one_probe_through_and_opens_by_its_answer() {
        let now = Instant::now();
        let gate = Gate::new(now);
        assert_eq!(gate.admits(now), Admission::Yes);
        assert!(gate.shut(now, TIME) && !gate.shut(now, TIME));
        assert_eq!(gate.admits(now), Admission::No);
        assert!(!gate.answered(), "that was sent before it shut");
        let then = now + TIME;
        assert_eq!([gate.admits(then), gate.admits(then)], [Admission::Probe, Admission::No]);
        assert!(gate.answered());
        assert_eq!(gate.admits(then), Admission::Yes);
    }

    #[test]
    fn a_failed_probe_shuts_it_again_and_a_lost_one_is_repeated() {
        let now = Instant::now();
        let gate = Gate::new(now);
        gate.shut(now, TIME);
        let then = now + TIME;
        assert_eq!(gate.admits(then), Admission::Probe);
        assert!(gate.failed(then, TIME));
        assert_eq!(gate.left(then), Some(TIME));
        let then = then + TIME;
        assert_eq!(gate.admits(then), Admission::Probe);
        assert_eq!(gate.admits(then + PROBE), Admission::Probe);
    }
}
