use std::{collections::HashMap, path::Path};

use super::*;
use crate::events::{
    Attributes, Event,
    broker::{Delivery, Scan},
};

async fn open(data: &Path) -> EmbeddedBroker {
    let flags = [("data", data.display().to_string())];
    let config = Config::from_sources(None, HashMap::new(), &flags).unwrap();
    EmbeddedBroker::open(&config).await.unwrap()
}

fn record(topic: &str, id: &str) -> Record {
    let attributes = Attributes {
        id: id.into(),
        source: "/s".into(),
        kind: "t".into(),
        subject: String::new(),
        time: Utc::now(),
        datacontenttype: "text/plain".into(),
        dataschema: String::new(),
        correlationid: "c".into(),
        causationid: String::new(),
        traceparent: String::new(),
        extensions: Default::default(),
    };
    Record { topic: topic.into(), event: Event { attributes, data: id.as_bytes().to_vec().into() } }
}

async fn publish(broker: &EmbeddedBroker, topic: &str, ids: &[&str]) {
    broker.ensure(&[topic.to_owned()]).await.unwrap();
    let records = ids.iter().map(|id| record(topic, id)).collect();
    let results = broker.publish(records, Duration::from_secs(5)).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

async fn next(consumer: &mut dyn Consumer) -> (Vec<String>, Vec<Delivery>) {
    let deliveries = tokio::time::timeout(Duration::from_secs(5), consumer.next(100));
    let deliveries = deliveries.await.expect("something comes").unwrap();
    let id = |d: &Delivery| d.event.as_ref().unwrap().attributes.id.clone();
    (deliveries.iter().map(id).collect(), deliveries)
}

#[tokio::test]
async fn a_group_reads_in_order_across_processes_and_goes_on_where_it_was() {
    let data = tempfile::tempdir().unwrap();
    let (one, other) = (open(data.path()).await, open(data.path()).await);
    let mut first = other.subscribe("g", "hooks.*").await.unwrap();
    publish(&one, "hooks.a", &["1", "2"]).await;
    publish(&one, "other", &["x"]).await;
    publish(&one, "hooks.b", &["3"]).await;
    let mut seen = vec![];
    while seen.len() < 3 {
        let (ids, deliveries) = next(first.as_mut()).await;
        seen.extend(ids);
        if seen.len() < 3 {
            first.commit(&deliveries.iter().collect::<Vec<_>>()).await.unwrap();
        } else {
            first
                .commit(&deliveries[..deliveries.len() - 1].iter().collect::<Vec<_>>())
                .await
                .unwrap();
        }
    }
    assert_eq!(seen, ["1", "2", "3"]);

    let mut second = one.subscribe("g", "hooks.*").await.unwrap();
    let both = async { tokio::join!(first.next(1), second.next(1)) };
    let waits = tokio::time::timeout(Duration::from_millis(300), both).await;
    assert!(waits.is_err(), "one member reads at a time, and records how far it got");
    drop(first);
    assert_eq!(next(second.as_mut()).await.0, ["3"], "what wasn't committed comes again");
}

#[tokio::test]
async fn readers_of_other_processes_hear_of_what_is_published() {
    let data = tempfile::tempdir().unwrap();
    let (one, other) = (open(data.path()).await, open(data.path()).await);
    publish(&one, "a", &["0"]).await;
    let mut reader = other.tail("a", From::Now).await.unwrap();
    for id in ["1", "2", "3"] {
        let published = async {
            // By now it waits.
            tokio::time::sleep(Duration::from_millis(50)).await;
            publish(&one, "a", &[id]).await;
            std::time::Instant::now()
        };
        let ((ids, _), published) = tokio::join!(next(reader.as_mut()), published);
        assert_eq!(ids, [id]);
        let took = published.elapsed();
        assert!(took < files::RESCAN / 2, "it was found by looking, not heard of: {took:?}");
    }
}

#[tokio::test]
async fn a_scan_ends_and_a_groups_lag_is_told() {
    let data = tempfile::tempdir().unwrap();
    let broker = open(data.path()).await;
    broker.ensure(&["empty".to_owned()]).await.unwrap();
    assert!(Scan::of(&broker, "empty").await.unwrap().next().await.unwrap().is_none());
    assert!(Scan::of(&broker, "nowhere").await.is_err());
    publish(&broker, "hooks.a", &["1", "2"]).await;
    publish(&broker, "hooks.b", &["3"]).await;
    let mut scan = Scan::of(&broker, "hooks.a").await.unwrap();
    publish(&broker, "hooks.a", &["4"]).await;
    let mut seen = 0;
    while let Some(deliveries) = scan.next().await.unwrap() {
        seen += deliveries.len();
    }
    assert_eq!(seen, 2, "what came later isn't read");

    let mut member = broker.subscribe("g", "hooks.*").await.unwrap();
    let (_, deliveries) = next(member.as_mut()).await;
    assert_eq!(broker.groups().await.unwrap(), [], "it hasn't begun");
    member.commit(&deliveries[..2].iter().collect::<Vec<_>>()).await.unwrap();
    let status = |group: &str, topic: &str, position, lag| GroupStatus {
        group: group.into(),
        topic: topic.into(),
        partition: 0,
        position,
        lag,
    };
    let both = [status("g", "hooks.a", 3, 1), status("g", "hooks.b", 3, 1)];
    assert_eq!(broker.groups().await.unwrap(), both);
    assert_eq!(broker.group("g", "hooks.*").await.unwrap(), both);
    let unbegun = [status("h", "hooks.a", 1, 3)];
    assert_eq!(broker.group("h", "hooks.a").await.unwrap(), unbegun);
}

#[tokio::test]
async fn what_is_older_than_the_retention_goes_as_others_come() {
    let data = tempfile::tempdir().unwrap();
    let mut broker = open(data.path()).await;
    publish(&broker, "hooks.a", &["1", "2", "3", "4", "5", "6"]).await;
    publish(&broker, "hooks.a", &["7"]).await;
    let mut all = broker.subscribe("all", "*").await.unwrap();
    assert_eq!(next(all.as_mut()).await.1.len(), 7, "none is too old");
    broker.retention = Duration::ZERO;
    publish(&broker, "hooks.a", &["8"]).await;
    assert_eq!(broker.bounds("hooks.a").await.unwrap(), [(0, (5, 9))].into());
    publish(&broker, "hooks.a", &["9"]).await;
    assert_eq!(broker.bounds("hooks.a").await.unwrap(), [(0, (9, 10))].into());
    assert_eq!(next(all.as_mut()).await.0, ["9"], "a reader goes on with what is left");
}

#[tokio::test]
async fn a_prefix_never_matches_dead_letters() {
    let data = tempfile::tempdir().unwrap();
    let broker = open(data.path()).await;
    publish(&broker, "dlq.hooks.a", &["dead"]).await;
    publish(&broker, "hooks.a", &["1"]).await;
    let mut all = broker.subscribe("all", "*").await.unwrap();
    assert_eq!(next(all.as_mut()).await.0, ["1"]);
    let mut dead = broker.subscribe("dead", "dlq.*").await.unwrap();
    assert_eq!(next(dead.as_mut()).await.0, ["dead"]);
}

#[tokio::test]
async fn a_tail_begins_where_it_is_told_and_topics_are_counted() {
    let data = tempfile::tempdir().unwrap();
    let broker = open(data.path()).await;
    assert!(broker.tail("hooks.a", From::Now).await.is_err());
    publish(&broker, "hooks.a", &["1"]).await;
    let mut now = broker.tail("hooks.a", From::Now).await.unwrap();
    let mut all = broker.tail("hooks.a", From::Beginning).await.unwrap();
    publish(&broker, "hooks.a", &["2"]).await;
    assert_eq!(next(now.as_mut()).await.0, ["2"]);
    assert_eq!(next(all.as_mut()).await.0, ["1", "2"]);
    let at = |partition, offset| broker.tail("hooks.a", From::At { partition, offset });
    assert_eq!(next(at(0, 2).await.unwrap().as_mut()).await.0, ["2"]);
    let wrong = [at(0, 4).await, at(0, 0).await].map(|tail| tail.err().unwrap().to_string());
    assert!(wrong.iter().all(|why| why.contains("from 1 to before 3")), "{wrong:?}");
    assert!(at(1, 1).await.err().unwrap().to_string().contains("no partition 1"));
    assert_eq!(broker.bounds("hooks.a").await.unwrap(), [(0, (1, 3))].into());
    let topics = broker.topics().await.unwrap();
    assert_eq!(topics, [TopicStatus { name: "hooks.a".into(), partitions: 1, events: 2 }]);
}

#[tokio::test]
async fn large_events_come_in_smaller_batches() {
    let data = tempfile::tempdir().unwrap();
    let broker = open(data.path()).await;
    broker.ensure(&["t".to_owned()]).await.unwrap();
    let large = |id| {
        let mut record = record("t", id);
        record.event.data = vec![b'x'; 3 << 20].into();
        record
    };
    let records = ["1", "2", "3"].map(large).into();
    for published in broker.publish(records, Duration::from_secs(5)).await {
        published.unwrap();
    }
    let mut tail = broker.tail("t", From::Beginning).await.unwrap();
    assert_eq!(next(tail.as_mut()).await.0, ["1", "2"]);
    assert_eq!(next(tail.as_mut()).await.0, ["3"]);
}
