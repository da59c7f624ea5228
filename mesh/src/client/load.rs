//! What the next call to an instance is likely to cost: how long its calls take
//! of late, times how many it has in flight.
//!
//! Source: Finagle's `PeakEwma`. The average rises at once to a slower answer
//! and falls slowly to faster ones, so that trouble is believed sooner than its
//! end. Silence counts too: while calls wait, the next one takes at least as
//! long as it is since the last answer, so that an instance that hangs is known
//! before a deadline tells.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// How long it takes until an old latency weighs a third of what it did.
const DECAY: Duration = Duration::from_secs(5);
/// What a failure counts as, where it came faster: a fast failure must not look
/// attractive.
pub(super) const PENALTY: Duration = Duration::from_millis(250);
/// Below this, latencies are held for equal, so that what is in flight counts.
const FLOOR: f64 = 1e-6;

/// One instance's load. Read and written by every call, without a lock: of two
/// answers at the same moment one may go uncounted.
pub(super) struct Load {
    origin: Instant,
    /// The average in seconds, as an `f64`'s bits; its order is that of the bits.
    latency: AtomicU64,
    /// When it was measured, in nanoseconds after `origin`.
    measured: AtomicU64,
    in_flight: AtomicU32,
    /// How many of these wait for their answer to begin: of streams it has.
    waiting: AtomicU32,
    /// When an answer last began, or the first of those that wait did, in
    /// nanoseconds after `origin`.
    heard: AtomicU64,
}

impl Load {
    /// With `latency` assumed until there is a measured one.
    pub(super) fn new(now: Instant, latency: Duration) -> Self {
        Self {
            origin: now,
            latency: AtomicU64::new(latency.as_secs_f64().to_bits()),
            measured: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            heard: AtomicU64::new(0),
        }
    }

    /// How many calls are in flight.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// One call more is in flight, and waits.
    pub(super) fn begin(&self, now: Instant) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        // Before it waits, for the time before it is no silence.
        if self.waiting.load(Ordering::Relaxed) == 0 {
            self.heard.fetch_max(self.since_origin(now), Ordering::Relaxed);
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// One call less waits, because its answer began.
    pub(super) fn heard(&self, now: Instant) {
        self.heard.fetch_max(self.since_origin(now), Ordering::Relaxed);
        self.given_up();
    }

    /// One call less waits, without an answer.
    pub(super) fn given_up(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// One call less is in flight.
    pub(super) fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Takes in how long an answer took.
    pub(super) fn observe(&self, now: Instant, took: Duration) {
        let took = took.as_secs_f64();
        let old = f64::from_bits(self.latency.load(Ordering::Relaxed));
        let kept = self.kept(now);
        let stamp = self.since_origin(now);
        self.measured.fetch_max(stamp, Ordering::Relaxed);
        if took >= old * kept {
            self.latency.store(took.to_bits(), Ordering::Relaxed);
        } else {
            let average = old * kept + took * (1.0 - kept);
            self.latency.store(average.to_bits(), Ordering::Relaxed);
        }
    }

    /// The average at `now`; it falls while nothing is measured, so that an
    /// instance that was slow is tried again.
    pub(super) fn latency(&self, now: Instant) -> Duration {
        Duration::from_secs_f64(self.decayed(now))
    }

    /// What one call more would cost, in seconds for each unit of `weight`.
    pub(super) fn cost(&self, now: Instant, weight: f64) -> f64 {
        let expected = self.decayed(now).max(self.silence(now)).max(FLOOR);
        expected * (f64::from(self.in_flight()) + 1.0) / weight
    }

    /// How long calls have waited without hearing anything, in seconds.
    fn silence(&self, now: Instant) -> f64 {
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return 0.0;
        }
        let heard = self.heard.load(Ordering::Relaxed);
        Duration::from_nanos(self.since_origin(now).saturating_sub(heard)).as_secs_f64()
    }

    fn decayed(&self, now: Instant) -> f64 {
        f64::from_bits(self.latency.load(Ordering::Relaxed)) * self.kept(now)
    }

    /// How much of the average is left at `now`, 0 to 1.
    fn kept(&self, now: Instant) -> f64 {
        let measured = self.measured.load(Ordering::Relaxed);
        let age = Duration::from_nanos(self.since_origin(now).saturating_sub(measured));
        (-age.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }

    fn since_origin(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn load(now: Instant) -> Load {
        Load::new(now, MS)
    }

    #[test]
    fn a_slower_answer_counts_at_once_and_a_faster_one_bit_by_bit() {
        let start = Instant::now();
        let load = load(start);
        load.observe(start, 100 * MS);
        assert_eq!(load.latency(start), 100 * MS);
        load.observe(start + 10 * MS, MS);
        let after = load.latency(start + 10 * MS);
        assert!(after > 99 * MS && after < 100 * MS, "{after:?}");
        for n in 1..=3000 {
            load.observe(start + 10 * MS * n, MS);
        }
        assert!(load.latency(start + 30_000 * MS) < 2 * MS);
    }

    #[test]
    fn what_is_not_measured_is_forgotten() {
        let start = Instant::now();
        let load = load(start);
        load.observe(start, PENALTY);
        assert!(load.latency(start + 6 * DECAY) < MS);
    }

    #[test]
    fn what_is_in_flight_multiplies_and_weight_divides() {
        let start = Instant::now();
        let load = load(start);
        let alone = load.cost(start, 1.0);
        load.begin(start);
        load.begin(start);
        assert!((load.cost(start, 1.0) / alone - 3.0).abs() < 1e-9);
        assert!((load.cost(start, 3.0) / alone - 1.0).abs() < 1e-9);
        load.end();
        load.end();
        assert_eq!(load.in_flight(), 0);
    }

    #[test]
    fn silence_counts_while_calls_wait_and_only_answers_end_it() {
        let start = Instant::now();
        let load = load(start);
        let long = start + 1000 * MS;
        let alone = load.cost(long, 1.0);
        load.begin(long);
        load.begin(long);
        assert!(load.cost(long, 1.0) <= 3.0 * alone, "the time before it is no silence");
        let later = long + 500 * MS;
        assert!(load.cost(later, 1.0) >= 3.0 * 0.5);
        load.given_up();
        load.end();
        assert!(load.cost(later, 1.0) >= 2.0 * 0.5, "the other still waits");
        load.heard(later);
        assert!(load.cost(later, 1.0) < 2.0 * 0.5, "a stream that has begun may be silent");
    }

    #[test]
    fn no_order_of_answers_makes_it_less_than_nothing_or_more_than_the_slowest() {
        bolero::check!().with_type::<Vec<(u16, u16)>>().for_each(|answers| {
            let start = Instant::now();
            let load = load(start);
            let (mut now, mut slowest) = (start, MS);
            for (pause, took) in answers {
                now += MS * u32::from(*pause);
                let took = MS * u32::from(*took);
                slowest = slowest.max(took);
                load.observe(now, took);
                assert!(load.latency(now) <= slowest && load.latency(now) >= Duration::ZERO);
                assert!(load.cost(now, 1.0).is_finite());
            }
        });
    }
}
