//! The connections of a listener that have said nothing yet. Pools of clients open
//! some ahead of need, so they may stay for a while; each address has room for so
//! many, and the oldest one makes room for the next.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

use super::ledger::Ledger;

/// Connections that have said nothing yet, by their address.
pub(super) struct Silent {
    /// How many of them one address has.
    limit: usize,
    ledger: Arc<Ledger>,
    present: Mutex<Present>,
}

#[derive(Default)]
struct Present {
    /// How many there ever were.
    seats: u64,
    /// In the order in which they came.
    by_address: HashMap<IpAddr, BTreeMap<u64, CancellationToken>>,
}

impl Silent {
    pub(super) fn new(limit: usize, ledger: Arc<Ledger>) -> Arc<Self> {
        Arc::new(Self { limit, ledger, present: Mutex::default() })
    }

    /// Takes in one more connection from `address`.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Seat {
        let mut present = self.present();
        let (number, gone) = (present.seats, CancellationToken::new());
        present.seats += 1;
        let seats = present.by_address.entry(address).or_default();
        seats.insert(number, gone.clone());
        if seats.len() > self.limit
            && let Some((_, oldest)) = seats.pop_first()
        {
            oldest.cancel();
        }
        drop(present);
        self.ledger.silent(1);
        Seat { of: self.clone(), address, number, gone }
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that has said nothing yet; dropped when it does.
pub(super) struct Seat {
    of: Arc<Silent>,
    address: IpAddr,
    number: u64,
    /// Cancelled when it has to make room.
    pub(super) gone: CancellationToken,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut present = self.of.present();
        if let Some(seats) = present.by_address.get_mut(&self.address) {
            seats.remove(&self.number);
            if seats.is_empty() {
                present.by_address.remove(&self.address);
            }
        }
        drop(present);
        self.of.ledger.silent(-1);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_oldest_of_an_address_makes_room_and_others_are_left_alone() {
        let ledger = Arc::new(Ledger::new("test".into(), "test".into()));
        let silent = Silent::new(2, ledger);
        let (here, there) = (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::UNSPECIFIED.into());
        let other = silent.enter(there);
        let seats: Vec<_> = (0..4).map(|_| silent.enter(here)).collect();
        let gone: Vec<_> = seats.iter().map(|seat| seat.gone.is_cancelled()).collect();
        assert_eq!(gone, [true, true, false, false]);
        assert!(!other.gone.is_cancelled());
        // Who has spoken takes no room.
        drop(seats);
        let again: Vec<_> = (0..2).map(|_| silent.enter(here)).collect();
        assert!(again.iter().all(|seat| !seat.gone.is_cancelled()));
        drop((again, other));
        assert!(silent.present().by_address.is_empty());
    }
}
