//! Keeps calls away from an instance that fails, as long as enough others are
//! left.
//!
//! Source of the form and of the numbers: Envoy, "Outlier detection". Success
//! rates are compared otherwise: with those of the *other* instances, for in a
//! small group no single one can be 1.9 deviations off a mean it is part of.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::gate::{Admission, Gate};

/// How many failures in a row eject an instance.
const FAILURES: u32 = 5;
/// How long it stays out, for each time it was ejected of late, and at most.
const TIME: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(300);
/// How often success rates are compared.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);
/// How many calls an instance must have answered in that time to be compared.
const VOLUME: u32 = 20;
/// How far below the others a success rate must be: so many of their standard
/// deviations, and so much at least.
const DEVIATIONS: f64 = 1.9;
const MARGIN: f64 = 0.2;

/// The instances of one service together: how many there are, and how many are
/// ejected. At most half may be, but of two or three one.
#[derive(Default)]
pub(super) struct Crowd {
    instances: AtomicUsize,
    ejected: AtomicUsize,
}

impl Crowd {
    /// Says how many instances there are now.
    pub(super) fn resize(&self, instances: usize) {
        self.instances.store(instances, Ordering::Relaxed);
    }

    /// How many are ejected.
    pub(super) fn ejected(&self) -> usize {
        self.ejected.load(Ordering::Relaxed)
    }

    /// Takes one of the places for ejected instances, if one is free.
    fn take(&self) -> bool {
        let limit = self.instances.load(Ordering::Relaxed) / 2;
        let more = |ejected: usize| (ejected < limit).then_some(ejected + 1);
        self.ejected.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give_back(&self) {
        self.ejected.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What happened to one instance in an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) answered: u32,
    pub(super) failed: u32,
}

impl Window {
    /// The share that was answered; `None` of too few to tell.
    fn success(self) -> Option<f64> {
        let calls = self.answered.saturating_add(self.failed);
        (calls >= VOLUME).then(|| f64::from(self.answered) / f64::from(calls))
    }
}

/// Which of `windows` lie far below the others.
pub(super) fn outliers(windows: &[Window]) -> Vec<bool> {
    let rates: Vec<Option<f64>> = windows.iter().map(|window| window.success()).collect();
    let is_outlier = |(nth, rate): (usize, &Option<f64>)| {
        let Some(rate) = rate else { return false };
        let others = rates.iter().enumerate().filter(|(n, _)| *n != nth);
        let others: Vec<f64> = others.filter_map(|(_, rate)| *rate).collect();
        if others.is_empty() {
            return false;
        }
        #[expect(clippy::cast_precision_loss, reason = "there are fewer than 2^52 instances")]
        let n = others.len() as f64;
        let mean = others.iter().sum::<f64>() / n;
        let deviation = (others.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / n).sqrt();
        *rate < mean - (DEVIATIONS * deviation).max(MARGIN)
    };
    rates.iter().enumerate().map(is_outlier).collect()
}

/// One instance's place in or out. No locks: it is asked for each call.
///
/// ```text
///         5 failures in a row, or a success rate
///         far below the others', and a place free     30 s × times
///   in ──────────────────────────────────────▶ out ────────────────▶ probed
///   ▲                                           ▲                     │  │
///   │                                           └── the probe fails ──┘  │
///   └────────────────────────────────────────────── it is answered ──────┘
/// ```
pub(super) struct Ejection {
    crowd: Arc<Crowd>,
    gate: Gate,
    /// How many failures there were in a row.
    failures: AtomicU32,
    /// How often it was ejected of late.
    times: AtomicU32,
    answered: AtomicU32,
    failed: AtomicU32,
}

impl Ejection {
    pub(super) fn new(crowd: Arc<Crowd>, now: Instant) -> Self {
        Self {
            crowd,
            gate: Gate::new(now),
            failures: AtomicU32::new(0),
            times: AtomicU32::new(0),
            answered: AtomicU32::new(0),
            failed: AtomicU32::new(0),
        }
    }

    /// Whether it may have a call now; see [`Gate::admits`].
    pub(super) fn admits(&self, now: Instant) -> Admission {
        self.gate.admits(now)
    }

    /// For how long it is out yet; `None` where it is in.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        self.gate.left(now)
    }

    /// A call was answered.
    pub(super) fn answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        // Read before it is written: the usual case leaves it shared.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        if self.gate.answered() {
            self.crowd.give_back();
        }
    }

    /// A call failed. Whether that ejected it.
    pub(super) fn failed(&self, now: Instant) -> bool {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if self.gate.is_probed() {
            return self.gate.failed(now, self.time());
        }
        failures >= FAILURES && self.eject(now)
    }

    /// Ejects it where a place is free; whether it did.
    pub(super) fn eject(&self, now: Instant) -> bool {
        if !self.gate.is_open() || !self.crowd.take() {
            return false;
        }
        let ejected = self.gate.shut(now, self.time());
        if !ejected {
            self.crowd.give_back();
        }
        ejected
    }

    /// What happened since it was last asked. An interval without an ejection
    /// makes up for one.
    pub(super) fn window(&self) -> Window {
        if self.gate.is_open() {
            let less = |times: u32| times.checked_sub(1);
            let _ = self.times.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
        Window {
            answered: self.answered.swap(0, Ordering::Relaxed),
            failed: self.failed.swap(0, Ordering::Relaxed),
        }
    }

    /// How long this ejection lasts.
    fn time(&self) -> Duration {
        let times = self.times.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        TIME.saturating_mul(times).min(LONGEST)
    }
}

impl Drop for Ejection {
    fn drop(&mut self) {
        if !self.gate.is_open() {
            self.crowd.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crowd(instances: usize) -> (Arc<Crowd>, Vec<Ejection>, Instant) {
        let (crowd, now) = (Arc::new(Crowd::default()), Instant::now());
        crowd.resize(instances);
        let all = (0..instances).map(|_| Ejection::new(crowd.clone(), now)).collect();
        (crowd, all, now)
    }

    fn fail(ejection: &Ejection, now: Instant) {
        for _ in 0..FAILURES {
            ejection.failed(now);
        }
    }

    #[test]
    fn five_failures_in_a_row_eject_and_one_answered_probe_brings_back() {
        let (crowd, all, now) = crowd(2);
        let one = &all[0];
        for _ in 1..FAILURES {
            one.failed(now);
        }
        one.answered();
        fail(one, now);
        assert_eq!(one.admits(now), Admission::No);
        one.answered();
        assert_eq!(one.admits(now), Admission::No, "that was sent before it was ejected");
        assert_eq!(one.admits(now + TIME), Admission::Probe);
        assert_eq!(one.admits(now + TIME), Admission::No, "one probe only");
        one.answered();
        assert_eq!(one.admits(now + TIME), Admission::Yes);
        assert_eq!(crowd.ejected(), 0);
    }

    #[test]
    fn a_failed_probe_ejects_for_longer() {
        let (_, all, now) = crowd(2);
        fail(&all[0], now);
        let then = now + TIME;
        assert_eq!(all[0].admits(then), Admission::Probe);
        all[0].failed(then);
        assert_eq!(all[0].admits(then + TIME), Admission::No);
        assert_eq!(all[0].admits(then + 2 * TIME), Admission::Probe);
    }

    #[test]
    fn at_most_half_are_ejected_and_never_the_last() {
        for (instances, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (9, 4)] {
            let (crowd, all, now) = crowd(instances);
            all.iter().for_each(|one| fail(one, now));
            assert_eq!(crowd.ejected(), most, "of {instances}");
            drop(all);
            assert_eq!(crowd.ejected(), 0, "who is gone is not ejected");
        }
    }

    #[test]
    fn who_answers_far_less_often_than_the_others_is_an_outlier() {
        let window = |answered, failed| Window { answered, failed };
        let well = window(100, 0);
        assert_eq!(outliers(&[well, window(70, 30)]), [false, true]);
        assert_eq!(outliers(&[well, well, window(85, 15)]), [false, false, false]);
        assert_eq!(outliers(&[well, window(5, 5)]), [false, false], "too few calls to tell");
        assert_eq!(outliers(&[window(0, 100)]), [false], "no others to compare with");
        assert_eq!(outliers(&[window(10, 90), window(12, 88)]), [false, false], "all are bad");
    }

    #[test]
    fn whatever_happens_the_places_are_counted_right() {
        bolero::check!().with_type::<(u8, Vec<(u8, u8, u16)>)>().for_each(|(instances, steps)| {
            let instances = usize::from(instances % 12) + 1;
            let (crowd, all, mut now) = crowd(instances);
            for (which, what, pause) in steps {
                let one = &all[usize::from(*which) % instances];
                match what % 4 {
                    0 => one.answered(),
                    1 => fail(one, now),
                    2 => {
                        one.eject(now);
                    }
                    _ => {
                        one.admits(now);
                    }
                }
                now += Duration::from_millis(u64::from(*pause));
                let out = all.iter().filter(|one| one.left(now).is_some()).count();
                assert_eq!(crowd.ejected(), out);
                assert!(out <= instances / 2);
            }
        });
    }
}
