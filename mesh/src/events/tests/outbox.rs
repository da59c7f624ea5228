//! What waits for the broker, and what can't go there.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use sea_orm::{ConnectionTrait as _, DbBackend, Statement};

use super::*;
use crate::{
    Error,
    events::{
        Outgoing,
        broker::{Consumer, GroupStatus, TopicStatus},
    },
};

/// A broker that takes nothing for the topic `closed` until it is opened.
struct Picky {
    broker: Arc<dyn Broker>,
    open: AtomicBool,
}

#[async_trait]
impl Broker for Picky {
    async fn publish(&self, records: Vec<Record>, deadline: Duration) -> Vec<Result<(), Error>> {
        let refused = |record: &Record| record.topic == "closed";
        let Some(first) = records.iter().position(refused) else {
            return self.broker.publish(records, deadline).await;
        };
        if self.open.load(Ordering::Relaxed) {
            return self.broker.publish(records, deadline).await;
        }
        // As Kafka's does: behind a failure nothing is sent.
        let (sent, unsent) = records.split_at(first);
        let mut answers = self.broker.publish(sent.to_vec(), deadline).await;
        let cause = "no right to write to it".to_owned();
        answers.push(Err(Error::Topic { topic: "closed".into(), cause }));
        answers.extend(unsent[1..].iter().map(|_| Err(Error::Broker("not sent".into()))));
        answers
    }

    async fn ensure(&self, topics: &[String]) -> Result<(), Error> {
        self.broker.ensure(topics).await
    }

    async fn subscribe(&self, group: &str, pattern: &str) -> Result<Box<dyn Consumer>, Error> {
        self.broker.subscribe(group, pattern).await
    }

    async fn tail(&self, topic: &str, from: Begin) -> Result<Box<dyn Consumer>, Error> {
        self.broker.tail(topic, from).await
    }

    async fn bounds(&self, topic: &str) -> Result<BTreeMap<i32, (i64, i64)>, Error> {
        self.broker.bounds(topic).await
    }

    async fn topics(&self) -> Result<Vec<TopicStatus>, Error> {
        self.broker.topics().await
    }

    async fn groups(&self) -> Result<Vec<GroupStatus>, Error> {
        self.broker.groups().await
    }

    async fn group(&self, group: &str, pattern: &str) -> Result<Vec<GroupStatus>, Error> {
        self.broker.group(group, pattern).await
    }
}

fn limits(limit: u64, bytes: u64, drop_oldest: &[&str]) -> OutboxConfig {
    let drop_oldest = drop_oldest.iter().map(|topic| (*topic).to_owned()).collect();
    OutboxConfig { limit, bytes, drop_oldest }
}

/// Adds one event with a body of `bytes` bytes.
async fn add(outbox: &Outbox, topic: &'static str, id: &str, bytes: usize) -> Result<(), Error> {
    let event = Event { data: vec![b'x'; bytes].into(), ..event("k", id, "") };
    let inside = outbox.clone();
    let work = outbox.store().transaction(move |tx| {
        Box::pin(async move { inside.add(tx, vec![Outgoing::new(topic, event)]).await })
    });
    work.await
}

fn ids(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.attributes.id.as_str()).collect()
}

async fn sql(outbox: &Outbox, statement: &'static str) {
    let statement = Statement::from_string(DbBackend::Sqlite, statement);
    let work = outbox.store().transaction(move |tx| {
        Box::pin(async move {
            tx.execute_raw(statement).await?;
            Ok::<_, Error>(())
        })
    });
    work.await.unwrap();
}

#[tokio::test]
async fn a_full_outbox_refuses_what_is_too_many_or_too_large() {
    let bench = Bench::quiet(limits(2, 100, &[])).await;
    add(&bench.outbox, TOPIC, "1", 60).await.unwrap();
    let too_large = add(&bench.outbox, TOPIC, "2", 41).await;
    let bytes = |why: &Error| matches!(why, Error::OutboxFull { limit: "outbox.bytes", .. });
    assert!(too_large.as_ref().is_err_and(bytes), "{too_large:?}");
    add(&bench.outbox, TOPIC, "3", 40).await.unwrap();
    let too_many = add(&bench.outbox, TOPIC, "4", 0).await;
    let events = |why: &Error| matches!(why, Error::OutboxFull { limit: "outbox.limit", .. });
    assert!(too_many.as_ref().is_err_and(events), "{too_many:?}");
    bench.relay();
    assert_eq!(ids(&bench.events(TOPIC, 2).await), ["1", "3"]);
    until("there is room again", || bench.outbox.pending() == 0).await;
    add(&bench.outbox, TOPIC, "5", 100).await.unwrap();
    bench.end().await;
}

#[tokio::test]
async fn the_oldest_of_a_topic_make_room_where_it_is_set_so() {
    let bench = Bench::quiet(limits(3, 100, &[TOPIC])).await;
    add(&bench.outbox, "audit.events", "a", 10).await.unwrap();
    add(&bench.outbox, TOPIC, "1", 10).await.unwrap();
    add(&bench.outbox, TOPIC, "2", 10).await.unwrap();
    add(&bench.outbox, TOPIC, "3", 10).await.unwrap();
    let other = add(&bench.outbox, "audit.events", "b", 10).await;
    assert!(matches!(other, Err(Error::OutboxFull { .. })), "it isn't of such a topic");
    add(&bench.outbox, TOPIC, "4", 75).await.unwrap();
    let never = add(&bench.outbox, TOPIC, "5", 95).await;
    assert!(matches!(never, Err(Error::OutboxFull { .. })), "others' bytes are in the way");
    bench.relay();
    assert_eq!(ids(&bench.events(TOPIC, 2).await), ["3", "4"]);
    assert_eq!(ids(&bench.events("audit.events", 1).await), ["a"]);
    bench.end().await;
}

#[tokio::test]
async fn many_small_ones_make_room_for_a_large_one() {
    let bench = Bench::quiet(limits(10_000, 30_000, &[TOPIC])).await;
    let small = |nth| {
        let event = Event { data: vec![b'x'; 10].into(), ..event("k", &format!("{nth}"), "") };
        Outgoing::new(TOPIC, event)
    };
    let (inside, many) = (bench.outbox.clone(), (0..1500).map(small).collect());
    let work = bench
        .outbox
        .store()
        .transaction(move |tx| Box::pin(async move { inside.add(tx, many).await }));
    work.await.unwrap();
    add(&bench.outbox, TOPIC, "large", 29_000).await.unwrap();
    assert_eq!(bench.outbox.pending(), 101, "the large one, and what still fits beside it");
    bench.end().await;
}

#[tokio::test]
async fn an_event_that_no_consumer_would_take_is_refused() {
    let bench = Bench::quiet(limits(10, 100, &[])).await;
    let mut long = event("k", "1", "");
    long.attributes.subject = "x".repeat(16 * 1024);
    let inside = bench.outbox.clone();
    let work = bench.outbox.store().transaction(move |tx| {
        Box::pin(async move { inside.add(tx, vec![Outgoing::new(TOPIC, long)]).await })
    });
    assert!(matches!(work.await, Err(Error::Event(_))));
    assert_eq!(bench.outbox.pending(), 0);
    bench.end().await;
}

#[tokio::test]
async fn an_event_that_can_not_go_out_is_set_aside_and_tried_again_by_the_next_relay() {
    let bench = Bench::quiet(limits(100, 100, &[])).await;
    for id in ["1", "2", "3"] {
        add(&bench.outbox, TOPIC, id, 0).await.unwrap();
    }
    let broken = "UPDATE outbox SET attributes = replace(attributes, '{', '[') WHERE seq = 2";
    sql(&bench.outbox, broken).await;
    let first = bench.relay();
    assert_eq!(ids(&bench.events(TOPIC, 2).await), ["1", "3"]);
    until("only what was set aside is left", || bench.outbox.pending() == 1).await;

    let mended = "UPDATE outbox SET attributes = replace(attributes, '[', '{')";
    sql(&bench.outbox, mended).await;
    add(&bench.outbox, TOPIC, "4", 0).await.unwrap();
    assert_eq!(ids(&bench.events(TOPIC, 3).await), ["1", "3", "4"], "it isn't tried in between");
    first.cancel();
    bench.relay();
    assert_eq!(ids(&bench.events(TOPIC, 4).await), ["1", "3", "4", "2"]);
    bench.end().await;
}

#[tokio::test]
async fn a_topic_that_takes_nothing_holds_up_its_own_events_only_and_keeps_their_order() {
    let mut bench = Bench::quiet(limits(2000, 1 << 20, &[])).await;
    let picky = Arc::new(Picky { broker: bench.broker.clone(), open: AtomicBool::new(false) });
    bench.broker = picky.clone();
    add(&bench.outbox, TOPIC, "1", 1).await.unwrap();
    for id in ["c1", "c2", "c3"] {
        add(&bench.outbox, "closed", id, 1).await.unwrap();
    }
    add(&bench.outbox, TOPIC, "2", 1).await.unwrap();
    bench.relay();
    assert_eq!(ids(&bench.events(TOPIC, 2).await), ["1", "2"]);
    add(&bench.outbox, "closed", "c4", 1).await.unwrap();
    add(&bench.outbox, TOPIC, "3", 1).await.unwrap();
    assert_eq!(ids(&bench.events(TOPIC, 3).await), ["1", "2", "3"]);
    until("what went out is forgotten", || bench.outbox.pending() == 4).await;
    picky.open.store(true, Ordering::Relaxed);
    until("the topic is tried again", || bench.outbox.pending() == 0).await;
    assert_eq!(ids(&bench.events("closed", 4).await), ["c1", "c2", "c3", "c4"]);
    bench.end().await;
}

#[tokio::test]
async fn what_was_rolled_back_does_not_fill_the_outbox_for_good() {
    let bench = Bench::quiet(limits(2, 100, &[])).await;
    let inside = bench.outbox.clone();
    let work = bench.outbox.store().transaction(move |tx| {
        Box::pin(async move {
            inside.add(tx, vec![Outgoing::new(TOPIC, event("k", "1", ""))]).await?;
            Err::<(), _>(Error::Event("changed my mind".into()))
        })
    });
    work.await.unwrap_err();
    assert_eq!(bench.outbox.pending(), 1);
    bench.relay();
    until("it is counted anew", || bench.outbox.pending() == 0).await;
    bench.end().await;
}

#[tokio::test]
async fn a_count_misses_nothing_that_is_on_its_way() {
    let bench = Bench::quiet(limits(2, 100, &[])).await;
    let inside = bench.outbox.clone();
    let (added, adds) = tokio::sync::oneshot::channel();
    let slow = bench.outbox.store().transaction(move |tx| {
        Box::pin(async move {
            inside.add(tx, vec![Outgoing::new(TOPIC, event("k", "1", ""))]).await?;
            added.send(()).expect("the test waits for it");
            tokio::time::sleep(Duration::from_millis(200)).await;
            Ok::<_, Error>(())
        })
    });
    let count = async {
        adds.await.unwrap();
        bench.outbox.count().await.unwrap();
        assert_eq!(bench.outbox.pending(), 1);
    };
    let (written, ()) = tokio::join!(slow, count);
    written.unwrap();
    bench.end().await;
}

#[tokio::test]
async fn another_relay_goes_on_where_one_ended() {
    let bench = Bench::quiet(limits(1000, 1 << 20, &[])).await;
    let first = bench.relay();
    let mut sent = Vec::new();
    for number in 0..30 {
        match number {
            10 => drop(bench.relay()),
            20 => first.cancel(),
            _ => {}
        }
        let id = number.to_string();
        add(&bench.outbox, TOPIC, &id, 10).await.unwrap();
        sent.push(id);
    }
    until("all went out", || bench.outbox.pending() == 0).await;
    assert_eq!(ids(&bench.events(TOPIC, 30).await), sent);
    bench.end().await;
}
