//! Room for so many of something at once, in all and for each party.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::config::LimitsConfig;

/// So much room, of which parts are taken.
#[derive(Debug)]
pub(super) struct Quota {
    limit: usize,
    taken: AtomicUsize,
}

impl Quota {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: AtomicUsize::new(0) })
    }

    /// How much is taken at the moment.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Whether more than half is taken.
    pub(super) fn is_crowded(&self) -> bool {
        self.taken() > share(self.limit)
    }

    /// A part that nothing is taken by yet.
    pub(super) fn part(self: &Arc<Self>) -> Taken {
        Taken { quota: self.clone(), amount: AtomicUsize::new(0) }
    }

    /// One place, if there is one.
    pub(super) fn take(self: &Arc<Self>) -> Option<Taken> {
        let part = self.part();
        part.grow(1).then_some(part)
    }
}

/// A part of a quota; given back when dropped.
#[derive(Debug)]
pub(super) struct Taken {
    quota: Arc<Quota>,
    amount: AtomicUsize,
}

impl Taken {
    /// Takes `more`, or nothing where there isn't as much.
    pub(super) fn grow(&self, more: usize) -> bool {
        // Two at the brink may both be refused where one had fitted: a limit
        // that errs on its safe side, and never waits.
        let before = self.quota.taken.fetch_add(more, Ordering::Relaxed);
        let fits = before.checked_add(more).is_some_and(|after| after <= self.quota.limit);
        if fits {
            self.amount.fetch_add(more, Ordering::Relaxed);
        } else {
            self.quota.taken.fetch_sub(more, Ordering::Relaxed);
        }
        fits
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.quota.taken.fetch_sub(*self.amount.get_mut(), Ordering::Relaxed);
    }
}

/// The room for requests: of a service, or of one party there.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) in_flight: Arc<Quota>,
    pub(super) watches: Arc<Quota>,
    pub(super) request_bytes: Arc<Quota>,
}

impl Room {
    /// The room of all parties together.
    pub(super) fn of_all(limits: &LimitsConfig) -> Self {
        Self::new(limits, |limit| limit)
    }

    /// The most that one party takes of it.
    pub(super) fn of_one(limits: &LimitsConfig) -> Self {
        Self::new(limits, share)
    }

    fn new(limits: &LimitsConfig, part: impl Fn(usize) -> usize) -> Self {
        Self {
            in_flight: Quota::new(part(limits.in_flight)),
            watches: Quota::new(part(limits.watches)),
            request_bytes: Quota::new(part(limits.request_bytes)),
        }
    }

    /// A request's place; `Err` names the limit that is reached.
    pub(super) fn place(&self, unary: bool) -> Result<Place, &'static str> {
        let (quota, limit) = match unary {
            true => (&self.in_flight, "in_flight"),
            false => (&self.watches, "watches"),
        };
        let _request = quota.take().ok_or(limit)?;
        Ok(Place { _request, bytes: self.request_bytes.part() })
    }
}

/// A request's place among those being handled, and what it holds there.
#[derive(Debug)]
pub(super) struct Place {
    _request: Taken,
    pub(super) bytes: Taken,
}

/// The most that one party takes of `limit`.
pub(super) fn share(limit: usize) -> usize {
    limit.div_ceil(2)
}

/// Who is present how often, by key, with what belongs to each.
pub(super) struct Crowd<K, V> {
    limit: usize,
    present: Mutex<HashMap<K, (usize, V)>>,
}

impl<K: Eq + Hash + Clone, V: Clone> Crowd<K, V> {
    /// A crowd in which no key is present more than `limit` times.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, present: Mutex::default() })
    }

    /// Lets `key` in once more, if it may. What belongs to it is made with its
    /// first presence and goes with its last.
    pub(super) fn enter(
        self: &Arc<Self>,
        key: K,
        make: impl FnOnce() -> V,
    ) -> Option<Present<K, V>> {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, own) = present.entry(key.clone()).or_insert_with(|| (0, make()));
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        let own = own.clone();
        Some(Present { crowd: self.clone(), key, own })
    }
}

/// One presence in a crowd; it ends when dropped.
pub(super) struct Present<K: Eq + Hash, V> {
    crowd: Arc<Crowd<K, V>>,
    key: K,
    pub(super) own: V,
}

impl<K: Eq + Hash, V> Drop for Present<K, V> {
    fn drop(&mut self) {
        let mut present = self.crowd.present.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((count, _)) = present.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                present.remove(&self.key);
            }
        }
    }
}

/// What counts as one address: of IPv6 a /64, for every host there has as many
/// addresses as it likes.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_gives_what_it_has_and_takes_it_back() {
        let quota = Quota::new(3);
        let first = quota.take().unwrap();
        assert!(first.grow(1));
        let second = quota.take().unwrap();
        assert!(quota.take().is_none() && !first.grow(1));
        assert_eq!(quota.taken(), 3);
        drop(second);
        assert!(first.grow(1) && !first.grow(usize::MAX));
        drop(first);
        assert_eq!(quota.taken(), 0);
    }

    #[test]
    fn a_crowd_counts_each_key_for_itself_and_forgets_who_left() {
        let crowd = Crowd::new(2);
        let first = crowd.enter("a", || 1).unwrap();
        let second = crowd.enter("a", || 2).unwrap();
        assert_eq!(second.own, 1, "what belongs to a key is made once");
        assert!(crowd.enter("a", || 3).is_none());
        assert!(crowd.enter("b", || 4).is_some());
        drop((first, second));
        assert!(crowd.present.lock().unwrap().is_empty());
        assert_eq!(crowd.enter("a", || 5).unwrap().own, 5);
    }

    #[test]
    fn one_network_is_one_party() {
        let same = |a: &str, b: &str| network(a.parse().unwrap()) == network(b.parse().unwrap());
        assert!(same("2001:db8::1", "2001:db8::ffff:2"));
        assert!(!same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:10.0.0.1", "10.0.0.1"));
        assert!(!same("10.0.0.1", "10.0.0.2"));
    }
}
