//! How much waits in an outbox, as of the last count and what was added and sent
//! since.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
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
    events: AtomicU64,
    bytes: AtomicU64,
    /// Of them, how many the broker will never take as they are.
    set_aside: AtomicU64,
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
            |waiting, _| waiting.set_aside.load(Ordering::Relaxed) as f64,
        );
        waiting
    }

    pub(super) fn now(&self) -> Load {
        Load {
            events: self.events.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    /// So much is there, and so many of it are set aside.
    pub(super) fn counted(&self, now: Load, set_aside: u64) {
        self.events.store(now.events, Ordering::Relaxed);
        self.bytes.store(now.bytes, Ordering::Relaxed);
        self.set_aside.store(set_aside, Ordering::Relaxed);
    }

    /// Some were added.
    pub(super) fn more(&self, load: Load) {
        self.events.fetch_add(load.events, Ordering::Relaxed);
        self.bytes.fetch_add(load.bytes, Ordering::Relaxed);
    }

    /// Some were sent, or dropped.
    pub(super) fn less(&self, load: Load) {
        for (now, gone) in [(&self.events, load.events), (&self.bytes, load.bytes)] {
            let left = |now: u64| Some(now.saturating_sub(gone));
            // The closure always answers `Some`.
            let _ = now.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
        }
    }
}

impl Load {
    /// How much of the limits it is: of the one that is nearer.
    fn share(self, limits: &OutboxConfig) -> f64 {
        let share = |now: u64, limit: u64| now as f64 / limit.max(1) as f64;
        share(self.events, limits.limit).max(share(self.bytes, limits.bytes))
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
}
