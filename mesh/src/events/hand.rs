//! What a subscriber has in hand: deliveries that wait, in order by key.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::broker::Delivery;
use crate::backoff;

/// How many deliveries, and how many bytes of theirs, are in hand at most before
/// no more are asked for.
const MAX_DELIVERIES: usize = 4096;
const MAX_BYTES: usize = 16 << 20;
/// How long a key waits after the first failure of its event, and after many.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Deliveries by key. The first of each key is handled before the next, and one
/// that fails holds back those of its own key only.
#[derive(Default)]
pub(super) struct Hand {
    keys: HashMap<(String, String), Waiting>,
    taken: u64,
    deliveries: usize,
    bytes: usize,
}

/// The deliveries of one key.
#[derive(Default)]
struct Waiting {
    /// With the number by which each came.
    deliveries: VecDeque<(u64, Arc<Delivery>)>,
    /// How often the first one has failed.
    failures: u32,
    /// Until when the first one waits.
    until: Option<Instant>,
}

impl Hand {
    /// Whether more may be taken.
    pub(super) fn has_room(&self) -> bool {
        self.deliveries < MAX_DELIVERIES && self.bytes < MAX_BYTES
    }

    /// Takes `deliveries`, which stand behind those of their keys.
    pub(super) fn take(&mut self, deliveries: Vec<Delivery>) {
        for delivery in deliveries {
            self.deliveries += 1;
            self.bytes += size(&delivery);
            self.taken += 1;
            let waiting = self.keys.entry(delivery.key()).or_default();
            waiting.deliveries.push_back((self.taken, Arc::new(delivery)));
        }
    }

    /// Up to `limit` of those that may be handled now, in the order in which they
    /// came, which is that of each key. They stay in hand.
    pub(super) fn ready(&self, now: Instant, limit: usize) -> Vec<Arc<Delivery>> {
        let due = self.keys.values().filter(|waiting| waiting.until.is_none_or(|at| at <= now));
        let mut ready: Vec<_> = due.flat_map(|waiting| &waiting.deliveries).collect();
        ready.sort_unstable_by_key(|(number, _)| *number);
        ready.into_iter().take(limit).map(|(_, delivery)| delivery.clone()).collect()
    }

    /// Whether `delivery`, or one that it stands behind, has failed.
    pub(super) fn has_failed(&self, delivery: &Delivery) -> bool {
        self.keys.get(&delivery.key()).is_some_and(|waiting| waiting.failures > 0)
    }

    /// When the next one may be handled of those that wait after a failure.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.keys.values().filter_map(|waiting| waiting.until).min()
    }

    /// `delivery`, the first of its key, is dealt with.
    pub(super) fn settled(&mut self, delivery: &Delivery) {
        let key = delivery.key();
        let Some(waiting) = self.keys.get_mut(&key) else { return };
        let place = |of: &Delivery| (of.partition, of.offset);
        let first = waiting.deliveries.front();
        if first.is_none_or(|(_, first)| place(first) != place(delivery)) {
            return;
        }
        waiting.deliveries.pop_front();
        self.deliveries -= 1;
        self.bytes -= size(delivery);
        (waiting.failures, waiting.until) = (0, None);
        if waiting.deliveries.is_empty() {
            self.keys.remove(&key);
        }
    }

    /// `delivery`, the first of its key, failed: its key waits, longer each time.
    /// Answers how often it has failed.
    pub(super) fn failed(&mut self, delivery: &Delivery, now: Instant) -> u32 {
        let waiting = self.keys.entry(delivery.key()).or_default();
        waiting.until = Some(now + backoff::pause(waiting.failures, FIRST_PAUSE, LONGEST_PAUSE));
        waiting.failures += 1;
        waiting.failures
    }
}

fn size(delivery: &Delivery) -> usize {
    /// What else there is of one, about.
    const ATTRIBUTES: usize = 512;
    let data = delivery.event.as_ref().map_or_else(|why| &why.data, |event| &event.data);
    ATTRIBUTES + data.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Attributes, Event, broker::Undecodable};

    fn delivery(key: &str, offset: i64) -> Delivery {
        let attributes = Attributes {
            id: offset.to_string(),
            source: "/tests".into(),
            kind: "t".into(),
            subject: String::new(),
            time: chrono::Utc::now(),
            datacontenttype: String::new(),
            dataschema: String::new(),
            correlationid: key.into(),
            causationid: String::new(),
            traceparent: String::new(),
            extensions: Default::default(),
        };
        let event = Event { attributes, data: bytes::Bytes::from_static(b"1234") };
        Delivery { topic: "t".into(), partition: 0, offset, event: Ok(event) }
    }

    fn offsets(ready: &[Arc<Delivery>]) -> Vec<i64> {
        ready.iter().map(|delivery| delivery.offset).collect()
    }

    #[test]
    fn a_failure_holds_back_its_own_key_only() {
        let (mut hand, now) = (Hand::default(), Instant::now());
        hand.take(vec![delivery("a", 1), delivery("b", 2), delivery("a", 3), delivery("c", 4)]);
        let ready = hand.ready(now, 100);
        assert_eq!(offsets(&ready), [1, 2, 3, 4], "in the order in which they came");
        assert_eq!(offsets(&hand.ready(now, 2)), [1, 2]);
        assert_eq!(hand.failed(&ready[0], now), 1);
        assert_eq!(offsets(&hand.ready(now, 100)), [2, 4]);
        hand.settled(&ready[1]);
        hand.settled(&ready[3]);
        assert_eq!(offsets(&hand.ready(now, 100)), [0; 0]);
        let due = hand.next_due().unwrap();
        assert!(due > now && due <= now + FIRST_PAUSE);
        assert_eq!(offsets(&hand.ready(due, 100)), [1, 3]);
        assert_eq!(hand.failed(&ready[0], due), 2);
        assert!(hand.next_due().unwrap() > due + FIRST_PAUSE / 2, "longer each time");
        hand.settled(&ready[0]);
        assert_eq!(offsets(&hand.ready(due, 100)), [3], "the next one doesn't wait for the last");
        assert_eq!(hand.failed(&ready[2], due), 1, "and hasn't failed yet");
        hand.settled(&ready[2]);
        assert!(hand.keys.is_empty() && hand.deliveries == 0 && hand.bytes == 0);
    }

    #[test]
    fn pauses_have_an_end_and_a_record_without_a_key_holds_back_none() {
        let (mut hand, now) = (Hand::default(), Instant::now());
        let undecodable = |offset| {
            let event = Err(Undecodable { why: "?".into(), data: bytes::Bytes::new() });
            Delivery { event, ..delivery("", offset) }
        };
        hand.take(vec![undecodable(1), undecodable(2)]);
        let first = hand.ready(now, 100)[0].clone();
        for _ in 0..100 {
            hand.failed(&first, now);
        }
        assert!(hand.next_due().unwrap() <= now + LONGEST_PAUSE);
        assert_eq!(offsets(&hand.ready(now, 100)), [2]);
        hand.take(vec![delivery("", 3), delivery("", 4)]);
        hand.failed(&hand.ready(now, 100)[1].clone(), now);
        assert_eq!(offsets(&hand.ready(now, 100)), [2, 4], "nor does an event without one");
    }

    #[test]
    fn a_full_hand_takes_no_more() {
        let mut hand = Hand::default();
        hand.take((0..4095).map(|offset| delivery("a", offset)).collect());
        assert!(hand.has_room());
        hand.take(vec![delivery("a", 4095)]);
        assert!(!hand.has_room());
        hand.settled(&delivery("a", 0));
        assert!(hand.has_room());
        let mut large = delivery("b", 4096);
        large.event.as_mut().unwrap().data = vec![0; MAX_BYTES].into();
        hand.take(vec![large]);
        assert!(!hand.has_room());
    }
}
