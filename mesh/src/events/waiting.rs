//! How much waits in an outbox, as of the last count and what was added and sent
//! since.

use std::{
    ops::{Add, Sub},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{config::OutboxConfig, telemetry::label};

/// Some events, and how many bytes their bodies have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) events: u64,
    pub(super) bytes: u64,
}

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    now: Load,
    /// Of them, how many the broker will never take as they are.
    set_aside: u64,
    /// All that was ever added: tells what a count can't have seen.
    added: Load,
}

impl Waiting {
    /// Nothing yet, of the outbox of `service`. It is reported for as long as it
    /// is there.
    pub(super) fn new(service: &'static str, limits: &OutboxConfig) -> Arc<Self> {
        let waiting = Arc::new(Self::default());
        let meter = opentelemetry::global::meter("omnibridge");
        let gauge = |name, about, of: fn(&Self, &OutboxConfig) -> f64| {
            let (waiting, limits) = (Arc::downgrade(&waiting), limits.clone());
            meter
                .f64_observable_gauge(name)
                .with_description(about)
                .with_callback(move |observer| {
                    if let Some(waiting) = waiting.upgrade() {
                        observer.observe(of(&waiting, &limits), &[label("service", service)]);
                    }
                })
                .build();
        };
        gauge("omni.outbox.events", "Events that wait for the broker", |waiting, _| {
            waiting.now().events as f64
        });
        gauge(
            "omni.outbox.fill",
            "How much of the outbox's limits is used, from 0 to 1",
            |waiting, limits| waiting.now().share(limits),
        );
        gauge(
            "omni.outbox.set_aside",
            "Events that the broker will never take as they are",
            |waiting, _| waiting.counts().set_aside as f64,
        );
        waiting
    }

    pub(super) fn now(&self) -> Load {
        self.counts().now
    }

    /// All that was added up to now, for [`counted`](Self::counted).
    pub(super) fn added(&self) -> Load {
        self.counts().added
    }

    /// So much was found, and so many of it are set aside. What was added after
    /// `seen` may not be among them: it is counted as well, because too little
    /// would let more in than fits.
    pub(super) fn counted(&self, found: Load, set_aside: u64, seen: Load) {
        let mut counts = self.counts();
        counts.now = found + (counts.added - seen);
        counts.set_aside = set_aside;
    }

    /// Some were added.
    pub(super) fn more(&self, load: Load) {
        let mut counts = self.counts();
        counts.now = counts.now + load;
        counts.added = counts.added + load;
    }

    /// Some were sent, or dropped.
    pub(super) fn less(&self, load: Load) {
        let mut counts = self.counts();
        counts.now = counts.now - load;
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Load {
    /// How much of the limits it is: of the one that is nearer.
    fn share(self, limits: &OutboxConfig) -> f64 {
        let share = |now: u64, limit: u64| now as f64 / limit.max(1) as f64;
        share(self.events, limits.limit).max(share(self.bytes, limits.bytes))
    }
}

impl Add for Load {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self { events: self.events + more.events, bytes: self.bytes + more.bytes }
    }
}

impl Sub for Load {
    type Output = Self;

    /// Nothing is less than none.
    fn sub(self, less: Self) -> Self {
        Self {
            events: self.events.saturating_sub(less.events),
            bytes: self.bytes.saturating_sub(less.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearer_limit_counts_and_nothing_is_less_than_none() {
        let limits = OutboxConfig { limit: 10, bytes: 1000, drop_oldest: vec![] };
        let waiting = Waiting::new("test", &limits);
        waiting.more(Load { events: 2, bytes: 900 });
        assert!((waiting.now().share(&limits) - 0.9).abs() < 1e-9);
        waiting.less(Load { events: 3, bytes: 800 });
        assert_eq!(waiting.now(), Load { events: 0, bytes: 100 });
    }

    #[test]
    fn a_count_adds_what_it_may_not_have_seen() {
        let limits = OutboxConfig { limit: 10, bytes: 1000, drop_oldest: vec![] };
        let waiting = Waiting::new("test", &limits);
        waiting.more(Load { events: 2, bytes: 20 });
        let seen = waiting.added();
        waiting.more(Load { events: 3, bytes: 30 });
        waiting.counted(Load { events: 1, bytes: 10 }, 0, seen);
        assert_eq!(waiting.now(), Load { events: 4, bytes: 40 });
    }
}
