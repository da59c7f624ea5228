//! Calls that weren't let through, counted by kind until they are published.
//! The first of a kind is logged at once; the rest shows in the counts, so that
//! a flood of denials is neither a flood of lines nor of memory.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use opentelemetry::metrics::Counter;
use tokio::sync::Notify;

use crate::{identity::SpiffeId, telemetry::label};

/// How many kinds are told apart until they are taken; what is more is counted
/// by its reason alone.
const KINDS: usize = 64;

/// A call that wasn't let through; equal ones are of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Denial {
    /// Who called; `None` where too many kinds are counted as one.
    pub peer: Option<SpiffeId>,
    /// Whom it forwarded.
    pub caller: Option<SpiffeId>,
    /// The gRPC method path; `other` for one without a descriptor.
    pub path: &'static str,
    /// Why.
    pub reason: &'static str,
}

/// How many calls of each kind weren't let through, since this was last taken.
/// Clones share the counts.
#[derive(Clone)]
pub struct Denials {
    shared: Arc<Shared>,
}

struct Shared {
    counts: Mutex<HashMap<Denial, u64>>,
    arrived: Notify,
    total: Counter<u64>,
}

impl Denials {
    /// Without any.
    pub fn new() -> Self {
        let total = opentelemetry::global::meter("omnibridge")
            .u64_counter("omni.calls.denied")
            .with_description("Calls that an intention, or the lack of one, denied")
            .build();
        let (counts, arrived) = (Mutex::default(), Notify::new());
        Self { shared: Arc::new(Shared { counts, arrived, total }) }
    }

    /// Counts a denial by the service `me`. Answers whether it is the first of
    /// its kind: then it is to be logged.
    pub(crate) fn count(&self, me: &Arc<str>, denial: Denial) -> bool {
        self.shared.total.add(
            1,
            &[
                label("service", me.clone()),
                label("method", denial.path),
                label("reason", denial.reason),
            ],
        );
        let first = add(&mut self.counts(), denial, 1);
        self.shared.arrived.notify_one();
        first
    }

    /// Waits until there are some.
    pub async fn arrived(&self) {
        while self.is_empty() {
            self.shared.arrived.notified().await;
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.counts().is_empty()
    }

    /// The kinds and how many calls each had, which aren't counted here any
    /// more.
    pub fn take(&self) -> HashMap<Denial, u64> {
        std::mem::take(&mut self.counts())
    }

    /// Counts again what was taken and couldn't be published.
    pub fn put_back(&self, taken: HashMap<Denial, u64>) {
        let mut counts = self.counts();
        for (denial, count) in taken {
            add(&mut counts, denial, count);
        }
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Denial, u64>> {
        // What panicked had added or not: both are a state to go on from.
        self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Denials {
    fn default() -> Self {
        Self::new()
    }
}

/// Adds `count` to those of `denial`; whether it is the first of its kind.
fn add(counts: &mut HashMap<Denial, u64>, denial: Denial, count: u64) -> bool {
    let known = counts.len() < KINDS || counts.contains_key(&denial);
    let kind = match known {
        true => denial,
        false => Denial { peer: None, caller: None, path: "other", reason: denial.reason },
    };
    match counts.entry(kind) {
        Entry::Vacant(new) => {
            new.insert(count);
            true
        }
        Entry::Occupied(mut so_far) => {
            *so_far.get_mut() += count;
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(peer: &str) -> Denial {
        let peer = Some(SpiffeId::of_service("d", peer).unwrap());
        Denial { peer, caller: None, path: "other", reason: "denied" }
    }

    #[tokio::test]
    async fn a_flood_is_counted_to_the_last_call_and_logged_once_a_kind() {
        let (denials, me) = (Denials::new(), Arc::from("b"));
        let logged = (0..10_000).filter(|_| denials.count(&me, denial("a"))).count();
        assert_eq!(logged, 1);
        denials.arrived().await;
        assert_eq!(denials.take(), HashMap::from([(denial("a"), 10_000)]));
        assert!(denials.take().is_empty());
    }

    #[test]
    fn too_many_kinds_are_counted_as_one_and_none_is_lost() {
        let (denials, me) = (Denials::new(), Arc::from("b"));
        let logged = (0..10_000).filter(|n| denials.count(&me, denial(&format!("a{n}")))).count();
        assert_eq!(logged, KINDS + 1);
        let taken = denials.take();
        assert_eq!((taken.len(), taken.values().sum()), (KINDS + 1, 10_000_u64));
        let several = Denial { peer: None, ..denial("a") };
        assert_eq!(taken[&several], 10_000 - KINDS as u64);
    }

    #[test]
    fn what_could_not_be_published_is_counted_again() {
        let (denials, me) = (Denials::new(), Arc::from("b"));
        denials.count(&me, denial("a"));
        let taken = denials.take();
        denials.count(&me, denial("a"));
        denials.put_back(taken);
        assert_eq!(denials.take(), HashMap::from([(denial("a"), 2)]));
    }
}
