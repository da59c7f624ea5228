//! On librdkafka's mock cluster, a server of the real protocol in this process;
//! with `OMNI_TEST_KAFKA=host:port`, on the Kafka there. What needs a broker
//! that fails on command always uses the mock.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    consumer::Consumer as _,
    message::{Header, OwnedHeaders},
    mocking::MockCluster,
    producer::{DefaultProducerContext, FutureProducer, FutureRecord},
    types::{RDKafkaApiKey, RDKafkaRespErr},
};

use super::*;
use crate::events::{Event, broker::Delivery, event::Attributes};

/// The mock holds a group's every rebalance for 9 s.
const SOON: Duration = Duration::from_secs(60);

/// The Kafka that a test runs on.
enum Cluster {
    Mock(MockCluster<'static, DefaultProducerContext>),
    Real(String),
}

impl Cluster {
    fn start() -> Self {
        match std::env::var("OMNI_TEST_KAFKA") {
            Ok(servers) => Self::Real(servers),
            Err(_) => Self::mock(),
        }
    }

    fn mock() -> Self {
        Self::Mock(MockCluster::new(1).unwrap())
    }

    fn servers(&self) -> String {
        match self {
            Self::Mock(mock) => mock.bootstrap_servers(),
            Self::Real(servers) => servers.clone(),
        }
    }

    fn broker(&self) -> KafkaBroker {
        let events = format!("kafka://{}", self.servers());
        let config = Config::from_sources(None, HashMap::new(), &[("events", events)]).unwrap();
        KafkaBroker::connect(&config).unwrap()
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.servers());
        config.create().unwrap()
    }

    async fn create(&self, topic: &str, partitions: i32) {
        match self {
            Self::Mock(mock) => mock.create_topic(topic, partitions, 1).unwrap(),
            Self::Real(_) => {
                let topic = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
                // Without its client the answer never comes.
                let admin = self.admin();
                let made = admin.create_topics([&topic], &AdminOptions::new());
                made.await.unwrap().pop().unwrap().unwrap();
            }
        }
    }

    /// Waits until `group` has committed `offsets`, by partition of `topic`.
    async fn committed(&self, group: &str, topic: &str, offsets: &[i64]) {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.servers()).set("group.id", group);
        let client: BaseConsumer = config.create().unwrap();
        let mut asked = TopicPartitionList::new();
        asked.add_partition_range(topic, 0, offsets.len() as i32 - 1);
        let deadline = Instant::now() + SOON;
        loop {
            let told = client.committed_offsets(asked.clone(), Duration::from_secs(5)).unwrap();
            let told: Vec<_> = told.elements().iter().map(|p| p.offset().to_raw()).collect();
            if told.iter().zip(offsets).all(|(told, wanted)| *told == Some(*wanted)) {
                return;
            }
            assert!(Instant::now() < deadline, "{told:?}, not {offsets:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What only the mock can do.
    fn as_mock(&self) -> &MockCluster<'static, DefaultProducerContext> {
        match self {
            Self::Mock(mock) => mock,
            Self::Real(_) => panic!("this test is for the mock"),
        }
    }
}

/// A name that no other test has.
fn unique(name: &str) -> String {
    format!("{name}{}", uuid::Uuid::now_v7().simple())
}

fn event(key: &str, number: usize) -> Event {
    let attributes = Attributes {
        id: format!("{key}-{number}"),
        source: "/tests".into(),
        kind: "omnibridge.test".into(),
        subject: String::new(),
        time: chrono::DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap(),
        datacontenttype: "application/json".into(),
        dataschema: String::new(),
        correlationid: key.into(),
        causationid: String::new(),
        traceparent: String::new(),
        extensions: BTreeMap::new(),
    };
    Event { attributes, data: Bytes::from(number.to_string()) }
}

/// `count` events of each of `keys`, in turn, from `first` on.
fn records(topic: &str, keys: &[&str], first: usize, count: usize) -> Vec<Record> {
    let numbers = first..first + count;
    let of = |(number, key): (usize, &&str)| Record {
        topic: topic.to_owned(),
        event: event(key, number),
    };
    let pairs = numbers.flat_map(|number| keys.iter().map(move |key| (number, key)));
    pairs.map(of).collect()
}

async fn publish(broker: &KafkaBroker, records: Vec<Record>) {
    for answer in broker.publish(records, SOON).await {
        answer.unwrap();
    }
}

/// At least `count` deliveries.
async fn read(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    let reading = async {
        while all.len() < count {
            all.extend(consumer.next(1000).await.unwrap());
        }
    };
    let read = tokio::time::timeout(SOON, reading).await;
    assert!(read.is_ok(), "{} of {count} deliveries", all.len());
    all
}

/// Deliveries until none comes for a while.
async fn read_all(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let mut all = read(consumer, count).await;
    while let Ok(more) = tokio::time::timeout(Duration::from_secs(2), consumer.next(1000)).await {
        all.extend(more.unwrap());
    }
    all
}

fn ids(deliveries: &[Delivery]) -> Vec<String> {
    let id = |d: &Delivery| d.event.clone().unwrap().attributes.id;
    deliveries.iter().map(id).collect()
}

/// Each key's first occurrences must be 0, 1, 2 … `count` - 1.
fn assert_ordered(deliveries: &[Delivery], keys: &[&str], count: usize) {
    for key in keys {
        let mut next = 0;
        for delivery in deliveries {
            let event = delivery.event.as_ref().unwrap();
            if event.attributes.correlationid != *key {
                continue;
            }
            let number: usize = std::str::from_utf8(&event.data).unwrap().parse().unwrap();
            assert!(number <= next, "{key}: {number} came before {next}");
            next = next.max(number + 1);
        }
        assert_eq!(next, count, "{key}");
    }
}

#[tokio::test]
async fn an_event_arrives_as_it_was_published() {
    let cluster = Cluster::start();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    cluster.create(&topic, 1).await;
    let mut full = event("c1", 1);
    full.attributes.subject = "a subject, with ümlauts".into();
    full.attributes.dataschema = "omnibridge.hooks.v1.Hook".into();
    full.attributes.causationid = "cause".into();
    full.attributes.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into();
    full.attributes.extensions.insert("sessionid".into(), "s1".into());
    full.data = Bytes::from_static(b"\0\xff bytes");
    let mut bare = event("", 2);
    bare.attributes.datacontenttype = String::new();
    bare.data = Bytes::new();
    let sent = [full, bare];
    let records = sent.iter().map(|event| Record { topic: topic.clone(), event: event.clone() });
    publish(&broker, records.collect()).await;

    let mut consumer = broker.subscribe(&unique("g"), &topic).await.unwrap();
    let deliveries = read(consumer.as_mut(), 2).await;
    for (offset, (delivery, event)) in (0..).zip(deliveries.iter().zip(&sent)) {
        assert_eq!(delivery.event.as_ref(), Ok(event));
        assert_eq!((delivery.partition, delivery.offset), (0, offset));
        assert_eq!(delivery.topic, topic);
    }
}

#[tokio::test]
async fn headers_are_those_of_the_kafka_binding() {
    use rdkafka::{
        Message,
        consumer::{Consumer, StreamConsumer},
        message::Headers,
    };
    let cluster = Cluster::start();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    cluster.create(&topic, 1).await;
    let mut records = records(&topic, &["the key"], 7, 1);
    records[0].event.attributes.traceparent = "00-0-0-01".into();
    publish(&broker, records).await;
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.servers());
    config.set("group.id", unique("g"));
    config.set("auto.offset.reset", "earliest");
    let consumer: StreamConsumer = config.create().unwrap();
    consumer.subscribe(&[&topic]).unwrap();
    let message = tokio::time::timeout(SOON, consumer.recv()).await.unwrap();
    let message = message.unwrap();
    let headers: BTreeMap<_, _> = message
        .headers()
        .unwrap()
        .iter()
        .map(|h| (h.key, std::str::from_utf8(h.value.unwrap()).unwrap()))
        .collect();
    let expected = [
        ("ce_correlationid", "the key"),
        ("ce_id", "the key-7"),
        ("ce_source", "/tests"),
        ("ce_specversion", "1.0"),
        ("ce_time", "2023-11-14T22:13:20.123456Z"),
        ("ce_traceparent", "00-0-0-01"),
        ("ce_type", "omnibridge.test"),
        ("content-type", "application/json"),
        ("traceparent", "00-0-0-01"),
    ];
    assert_eq!(headers, BTreeMap::from(expected));
    assert_eq!(message.key(), Some(&b"the key"[..]));
    assert_eq!(message.payload(), Some(&b"7"[..]));
}

#[tokio::test]
async fn what_is_no_cloud_event_is_delivered_with_its_bytes_and_stops_nothing() {
    let cluster = Cluster::start();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    cluster.create(&topic, 1).await;
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.servers());
    let foreign: FutureProducer = config.create().unwrap();
    let headers = |pairs: &[(&str, &[u8])]| {
        let add = |all: OwnedHeaders, (key, value): &(&str, &[u8])| {
            all.insert(Header { key, value: Some(*value) })
        };
        pairs.iter().fold(OwnedHeaders::new(), add)
    };
    let id_only: [(&str, &[u8]); 2] = [("ce_specversion", b"1.0"), ("ce_id", b"1")];
    let no_utf8: [(&str, &[u8]); 2] = [("ce_specversion", b"1.0"), ("ce_id", b"\xff")];
    for (body, headers) in [
        (Some("no headers"), None),
        (Some("no type"), Some(headers(&id_only))),
        (Some("no UTF-8"), Some(headers(&no_utf8))),
        (None, None),
    ] {
        let record = FutureRecord::<str, str> {
            topic: &topic,
            partition: None,
            payload: body,
            key: Some("k"),
            timestamp: None,
            headers,
        };
        foreign.send(record, SOON).await.unwrap();
    }
    publish(&broker, records(&topic, &["k"], 0, 1)).await;

    let mut consumer = broker.subscribe(&unique("g"), &topic).await.unwrap();
    let deliveries = read(consumer.as_mut(), 5).await;
    let broken = |n: usize| deliveries[n].event.clone().unwrap_err();
    assert_eq!(&broken(0).data[..], b"no headers");
    assert!(broken(0).why.contains("ce_specversion"), "{:?}", broken(0));
    assert_eq!(&broken(1).data[..], b"no type");
    assert!(broken(1).why.contains("`source`"), "{:?}", broken(1));
    assert!(broken(2).why.contains("`ce_id`"), "{:?}", broken(2));
    assert!(broken(3).data.is_empty());
    assert_eq!(ids(&deliveries[4..]), ["k-0"]);
    consumer.commit(&deliveries).await.unwrap();
}

#[tokio::test]
async fn what_was_committed_is_not_delivered_again_and_what_was_not_is() {
    let cluster = Cluster::start();
    let (broker, topic, group) = (cluster.broker(), unique("hooks."), unique("g"));
    cluster.create(&topic, 2).await;
    let keys = ["a", "b", "c", "d", "e", "f"];
    publish(&broker, records(&topic, &keys, 0, 10)).await;
    let mut first = broker.subscribe(&group, &topic).await.unwrap();
    let deliveries = read(first.as_mut(), 60).await;
    // Of each partition, the first five.
    let done: Vec<_> = deliveries.into_iter().filter(|d| d.offset < 5).collect();
    assert_eq!(done.len(), 10, "both partitions have keys");
    first.commit(&done).await.unwrap();
    cluster.committed(&group, &topic, &[5, 5]).await;
    drop(first);

    let begun = Instant::now();
    let mut second = broker.subscribe(&group, &topic).await.unwrap();
    let again = read_all(second.as_mut(), 50).await;
    println!("the second member had its first events after {:?}", begun.elapsed());
    assert_eq!(again.len(), 50);
    assert!(again.iter().all(|d| d.offset >= 5));
    assert_eq!(again.iter().filter(|d| d.offset == 5).count(), 2);
}

#[tokio::test]
async fn next_answers_what_is_there_up_to_the_limit_in_order() {
    let cluster = Cluster::start();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    cluster.create(&topic, 1).await;
    publish(&broker, records(&topic, &["a"], 0, 100)).await;
    let mut consumer = broker.tail(&topic, From::Beginning).await.unwrap();
    let mut all = Vec::new();
    while all.len() < 100 {
        let some = tokio::time::timeout(SOON, consumer.next(7)).await;
        let some = some.unwrap().unwrap();
        assert!((1..=7).contains(&some.len()));
        all.extend(some);
    }
    assert_ordered(&all, &["a"], 100);
    assert!(all.is_sorted_by_key(|d| d.offset));
}

#[tokio::test]
async fn a_prefix_sees_a_topic_made_later_from_its_first_event_and_never_dead_letters() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let prefix = unique("t");
    let (old, new) = (format!("{prefix}.old"), format!("{prefix}.new"));
    let dead = format!("dlq.{old}");
    cluster.create(&old, 1).await;
    cluster.create(&dead, 1).await;
    publish(&broker, records(&old, &["old"], 0, 1)).await;
    publish(&broker, records(&dead, &["dead"], 0, 1)).await;
    let mut consumer = broker.subscribe(&unique("g"), &format!("{prefix}.*")).await.unwrap();
    assert_eq!(ids(&read(consumer.as_mut(), 1).await), ["old-0"]);

    // The consumer waits while the topic is made, as a subscriber does.
    let reading = tokio::spawn(async move {
        let deliveries = read(consumer.as_mut(), 1).await;
        (deliveries, Instant::now(), consumer)
    });
    cluster.create(&new, 1).await;
    let made = Instant::now();
    publish(&broker, records(&new, &["new"], 0, 1)).await;
    let (deliveries, seen, mut consumer) = reading.await.unwrap();
    let after = seen.duration_since(made);
    println!("a new topic's first event was read {after:?} after the topic was made");
    assert_eq!(ids(&deliveries), ["new-0"]);
    if matches!(cluster, Cluster::Real(_)) {
        assert!(after < Duration::from_secs(2), "{after:?}");
    }
    publish(&broker, records(&dead, &["dead"], 1, 1)).await;
    publish(&broker, records(&old, &["old"], 1, 1)).await;
    let rest = read_all(consumer.as_mut(), 1).await;
    assert_eq!(ids(&rest), ["old-1"]);
}

#[tokio::test]
async fn a_consumer_waits_for_its_first_topic() {
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let prefix = unique("t");
    for (pattern, topic) in [
        (format!("{prefix}.*"), format!("{prefix}.x")),
        (format!("{prefix}-y"), format!("{prefix}-y")),
    ] {
        let mut consumer = broker.subscribe(&unique("g"), &pattern).await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_secs(1), consumer.next(1)).await;
        assert!(waiting.is_err(), "{waiting:?}");
        cluster.create(&topic, 1).await;
        let made = Instant::now();
        publish(&broker, records(&topic, &["k"], 0, 1)).await;
        assert_eq!(ids(&read(consumer.as_mut(), 1).await), ["k-0"]);
        println!("`{pattern}` had its first topic's first event after {:?}", made.elapsed());
    }
}

#[tokio::test]
async fn a_second_member_shares_the_work_and_nothing_is_lost() {
    let cluster = Cluster::start();
    let (broker, topic, group) = (cluster.broker(), unique("hooks."), unique("g"));
    cluster.create(&topic, 4).await;
    let keys: Vec<String> = (0..20).map(|n| format!("k{n}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let (found, mut all) = tokio::sync::mpsc::channel(10_000);
    let mut members = Vec::new();
    for member in 0..2 {
        let mut consumer = broker.subscribe(&group, &topic).await.unwrap();
        let found = found.clone();
        members.push(tokio::spawn(async move {
            loop {
                let deliveries = consumer.next(50).await.unwrap();
                consumer.commit(&deliveries).await.unwrap();
                for delivery in deliveries {
                    found.send((member, delivery)).await.unwrap();
                }
            }
        }));
        publish(&broker, records(&topic, &keys, member * 10, 10)).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let mut by_member = [0, 0];
    let mut deliveries = Vec::new();
    let mut first = 20;
    let deadline = Instant::now() + SOON;
    // Go on publishing until both have had a share.
    while by_member.contains(&0) {
        assert!(Instant::now() < deadline, "{by_member:?}");
        publish(&broker, records(&topic, &keys, first, 5)).await;
        first += 5;
        while let Ok(Some((member, delivery))) =
            tokio::time::timeout(Duration::from_millis(300), all.recv()).await
        {
            by_member[member] += 1;
            deliveries.push(delivery);
        }
    }
    println!("the members had {by_member:?}");
    assert_ordered(&deliveries, &keys, first);
    members.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_tail_begins_where_it_was_told_and_says_when_there_is_no_topic() {
    let cluster = Cluster::start();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    let Err(error) = broker.tail(&topic, From::Now).await else {
        panic!("there is no such topic");
    };
    assert!(error.to_string().contains("omni events topics"), "{error}");
    cluster.create(&topic, 3).await;
    publish(&broker, records(&topic, &["a", "b", "c", "d"], 0, 1)).await;
    let mut now = broker.tail(&topic, From::Now).await.unwrap();
    let mut beginning = broker.tail(&topic, From::Beginning).await.unwrap();
    publish(&broker, records(&topic, &["a"], 1, 1)).await;
    let now = read_all(now.as_mut(), 1).await;
    assert_eq!(ids(&now), ["a-1"]);
    assert_eq!(read_all(beginning.as_mut(), 5).await.len(), 5);
}

#[tokio::test]
async fn topics_are_listed_with_their_partitions_and_events() {
    let cluster = Cluster::start();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    cluster.create(&topic, 3).await;
    publish(&broker, records(&topic, &["a", "b", "c"], 0, 4)).await;
    let topics = broker.topics().await.unwrap();
    let found: Vec<_> = topics.iter().filter(|t| t.name == topic).collect();
    let expected = TopicStatus { name: topic, partitions: 3, events: 12 };
    assert_eq!(found, [&expected]);
    assert!(topics.iter().all(|t| !t.name.starts_with("__")));
}

#[tokio::test]
async fn ensure_makes_what_is_missing_or_warns_of_a_broker_that_cannot() {
    let cluster = Cluster::start();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    let other = unique("hooks.");
    cluster.create(&other, 3).await;
    let both = [topic.clone(), other.clone()];
    broker.ensure(&both).await.unwrap();
    let topics = broker.topics().await.unwrap();
    let partitions = |name: &str| topics.iter().find(|t| t.name == name).map(|t| t.partitions);
    assert_eq!(partitions(&other), Some(3), "what is there stays as it is");
    if let Cluster::Mock(_) = cluster {
        // The mock has no call to make topics.
        assert_eq!(partitions(&topic), None);
        return;
    }
    assert_eq!(partitions(&topic), Some(8));
    broker.ensure(&both).await.unwrap();
    let resource = ResourceSpecifier::Topic(&topic);
    let configs = cluster
        .admin()
        .describe_configs([&resource], &AdminOptions::new())
        .await
        .unwrap()
        .pop()
        .unwrap()
        .unwrap();
    let config = |name: &str| configs.get(name).unwrap().value.clone().unwrap();
    assert_eq!(config("retention.ms"), "2592000000");
    assert_eq!(config("cleanup.policy"), "delete");
    // What the gateway takes, a topic takes.
    let mut large = records(&topic, &["large"], 0, 1);
    large[0].event.data = Bytes::from(vec![b'x'; 6 << 20]);
    publish(&broker, large).await;
    let mut consumer = broker.subscribe(&unique("g"), &topic).await.unwrap();
    let large = read(consumer.as_mut(), 1).await;
    assert_eq!(large[0].event.as_ref().unwrap().data.len(), 6 << 20);
}

#[tokio::test]
async fn a_record_that_is_too_large_is_named_and_holds_up_its_key_only_until_it_is_dealt_with() {
    let cluster = Cluster::start();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    cluster.create(&topic, 1).await;
    let mut batch = records(&topic, &["a"], 0, 4);
    batch[2].event.data = Bytes::from(vec![b'x'; 9 << 20]);
    let answers = broker.publish(batch.clone(), SOON).await;
    assert!(answers[0].is_ok() && answers[1].is_ok(), "{answers:?}");
    assert!(matches!(&answers[2], Err(Error::Event(why)) if why.contains("a-2")), "{answers:?}");
    assert!(matches!(&answers[3], Err(Error::Broker(_))), "{answers:?}");
    publish(&broker, batch.split_off(3)).await;
    let mut consumer = broker.tail(&topic, From::Beginning).await.unwrap();
    assert_eq!(ids(&read_all(consumer.as_mut(), 3).await), ["a-0", "a-1", "a-3"]);
}

#[tokio::test]
async fn nothing_overtakes_a_record_that_the_broker_refuses() {
    let cluster = Cluster::start();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    // Two of these don't fit into one request.
    let mut batch = records(&topic, &["a"], 0, 8);
    for (number, record) in batch.iter_mut().enumerate() {
        record.event.data = Bytes::from("0".repeat(600_000) + &number.to_string());
    }
    match &cluster {
        // It checks no sequence numbers, so it is the first round's test.
        Cluster::Mock(mock) => {
            cluster.create(&topic, 1).await;
            let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
            mock.request_errors(RDKafkaApiKey::Produce, &[refusal]);
            let answers = broker.publish(batch.clone(), SOON).await;
            assert!(matches!(answers[0], Err(Error::Event(_))), "{answers:?}");
            assert!(answers.iter().all(Result::is_err), "{answers:?}");
        }
        Cluster::Real(_) => {
            let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1));
            let new = new.set("max.message.bytes", "700000");
            let admin = cluster.admin();
            let made = admin.create_topics([&new], &AdminOptions::new());
            made.await.unwrap().pop().unwrap().unwrap();
            let good = batch[2].event.data.clone();
            // Its size counts compressed, and noise can't be.
            batch[2].event.data = (0..800_000).map(|_| rand::random::<u8>()).collect();
            let answers = broker.publish(batch.clone(), SOON).await;
            assert!(answers[0].is_ok() && answers[1].is_ok(), "{answers:?}");
            assert!(matches!(answers[2], Err(Error::Event(_))), "{answers:?}");
            assert!(answers[3..].iter().all(Result::is_err), "{answers:?}");
            batch[2].event.data = good;
        }
    }
    publish(&broker, batch).await;
    let mut consumer = broker.tail(&topic, From::Beginning).await.unwrap();
    assert_ordered(&read_all(consumer.as_mut(), 8).await, &["a"], 8);
}

#[tokio::test]
async fn a_broker_that_is_down_costs_an_error_by_the_deadline_and_no_order() {
    let cluster = Cluster::mock();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    let keys = ["a", "b", "c"];
    cluster.create(&topic, 4).await;
    publish(&broker, records(&topic, &keys, 0, 5)).await;
    cluster.as_mock().broker_down(-1).unwrap();
    let batch = records(&topic, &keys, 5, 20);
    for _ in 0..3 {
        let begun = Instant::now();
        let answers = broker.publish(batch.clone(), Duration::from_secs(1)).await;
        println!("the broker is down: answered after {:?}", begun.elapsed());
        assert!(answers.iter().all(Result::is_err));
        assert!(begun.elapsed() < Duration::from_secs(3));
    }
    cluster.as_mock().broker_up(-1).unwrap();
    let begun = Instant::now();
    publish(&broker, batch).await;
    println!("the broker is up: delivered after {:?}", begun.elapsed());
    let mut consumer = broker.tail(&topic, From::Beginning).await.unwrap();
    assert_ordered(&read_all(consumer.as_mut(), 75).await, &keys, 25);
}

#[tokio::test]
async fn records_on_their_way_at_the_deadline_come_twice_but_not_out_of_order() {
    let cluster = Cluster::mock();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    let keys = ["a", "b", "c"];
    cluster.create(&topic, 2).await;
    publish(&broker, records(&topic, &keys, 0, 1)).await;
    cluster.as_mock().broker_round_trip_time(-1, Duration::from_secs(2)).unwrap();
    let batch = records(&topic, &keys, 1, 50);
    let answers = broker.publish(batch.clone(), Duration::from_millis(500)).await;
    assert!(answers.iter().all(Result::is_err));
    cluster.as_mock().broker_round_trip_time(-1, Duration::ZERO).unwrap();
    publish(&broker, batch).await;
    let mut consumer = broker.tail(&topic, From::Beginning).await.unwrap();
    let all = read_all(consumer.as_mut(), 153).await;
    println!("{} records for 153 events", all.len());
    assert_ordered(&all, &keys, 51);
}

/// What the relay does: publishes from the first event without an answer.
#[tokio::test]
async fn order_and_every_event_survive_a_broker_that_comes_and_goes() {
    let cluster = Cluster::mock();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    let keys = ["a", "b", "c", "d", "e"];
    cluster.create(&topic, 3).await;
    let all = records(&topic, &keys, 0, 400);
    let (mut cursor, mut failed, mut turn) = (0, 0, 0_u64);
    let deadline = Instant::now() + Duration::from_secs(120);
    while cursor < all.len() {
        assert!(Instant::now() < deadline, "{cursor} of {}", all.len());
        let batch = all[cursor..all.len().min(cursor + 100)].to_vec();
        let publishing = broker.publish(batch, Duration::from_millis(700));
        let meddling = async {
            turn += 1;
            tokio::time::sleep(Duration::from_millis(turn * 7 % 40)).await;
            let mock = cluster.as_mock();
            match turn % 6 {
                1 => mock.broker_down(-1),
                2 => mock.broker_up(-1),
                3 => mock.broker_round_trip_time(-1, Duration::from_millis(300)),
                4 => mock.broker_round_trip_time(-1, Duration::ZERO),
                _ => Ok(()),
            }
        };
        let (answers, meddled) = tokio::join!(publishing, meddling);
        meddled.unwrap();
        let delivered = answers.iter().take_while(|a| a.is_ok()).count();
        failed += answers.len() - delivered;
        cursor += delivered;
    }
    cluster.as_mock().broker_up(-1).unwrap();
    let mut consumer = broker.tail(&topic, From::Beginning).await.unwrap();
    let read = read_all(consumer.as_mut(), all.len()).await;
    println!("{turn} publishes, {failed} errors, {} records for {} events", read.len(), all.len());
    assert_ordered(&read, &keys, 400);
}

#[tokio::test]
async fn a_cancelled_publish_leaves_nothing_behind_that_comes_later() {
    let cluster = Cluster::mock();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    cluster.create(&topic, 1).await;
    cluster.as_mock().broker_down(-1).unwrap();
    let publishing = broker.publish(records(&topic, &["a"], 0, 5), SOON);
    let cancelled = tokio::time::timeout(Duration::from_millis(300), publishing).await;
    assert!(cancelled.is_err());
    cluster.as_mock().broker_up(-1).unwrap();
    publish(&broker, records(&topic, &["b"], 0, 1)).await;
    let mut consumer = broker.tail(&topic, From::Beginning).await.unwrap();
    assert_eq!(ids(&read_all(consumer.as_mut(), 1).await), ["b-0"]);
}

#[tokio::test]
async fn a_topic_that_is_not_there_is_named_before_the_deadline() {
    let cluster = Cluster::mock();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
    cluster.create(&topic, 1).await;
    cluster.as_mock().topic_error(&topic, unknown).unwrap();
    let answers = broker.publish(records(&topic, &["a"], 0, 2), SOON).await;
    let error = answers[0].as_ref().unwrap_err().to_string();
    assert!(error.contains(&topic) && error.contains("create"), "{error}");
}

#[tokio::test]
async fn a_broker_that_cannot_be_reached_is_an_error_that_says_where() {
    let events = "kafka://127.0.0.1:1".to_owned();
    let config = Config::from_sources(None, HashMap::new(), &[("events", events)]).unwrap();
    let broker = KafkaBroker::connect(&config).unwrap();
    for error in
        [broker.ensure(&["t".to_owned()]).await.unwrap_err(), broker.topics().await.unwrap_err()]
    {
        assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    }
    let mut consumer = broker.subscribe("g", "t").await.unwrap();
    let next = tokio::time::timeout(SOON, consumer.next(1)).await.unwrap();
    assert!(next.unwrap_err().to_string().contains("`events`"));
}

#[tokio::test]
async fn a_reader_whose_broker_does_not_answer_begins_again_where_it_was() {
    let cluster = Cluster::mock();
    let (broker, topic) = (cluster.broker(), unique("hooks."));
    cluster.create(&topic, 1).await;
    publish(&broker, records(&topic, &["a"], 0, 3)).await;
    let group = unique("g");
    let mut member = broker.subscribe(&group, &topic).await.unwrap();
    let mut tail = broker.tail(&topic, From::Beginning).await.unwrap();
    let deliveries = read(member.as_mut(), 3).await;
    member.commit(&deliveries).await.unwrap();
    read(tail.as_mut(), 3).await;
    cluster.committed(&group, &topic, &[3]).await;
    cluster.as_mock().broker_down(-1).unwrap();
    for reader in [&mut member, &mut tail] {
        let error = async {
            loop {
                let why = reader.next(1).await.unwrap_err().to_string();
                if why.contains("no broker answers") {
                    break;
                }
            }
        };
        tokio::time::timeout(SOON, error).await.unwrap();
    }
    cluster.as_mock().broker_up(-1).unwrap();
    publish(&broker, records(&topic, &["a"], 3, 1)).await;
    for reader in [&mut member, &mut tail] {
        let read = async {
            loop {
                match reader.next(10).await {
                    Ok(deliveries) => break deliveries,
                    Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            }
        };
        let deliveries = tokio::time::timeout(SOON, read).await.unwrap();
        assert_eq!(ids(&deliveries), ["a-3"]);
    }
}

#[test]
fn a_runtime_that_ends_while_the_broker_is_down_waits_only_so_long() {
    let cluster = Cluster::mock();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (broker, topic) = (cluster.broker(), unique("hooks."));
        cluster.create(&topic, 1).await;
        publish(&broker, records(&topic, &["a"], 0, 10)).await;
        let mut consumer = broker.subscribe(&unique("g"), &topic).await.unwrap();
        let deliveries = read(consumer.as_mut(), 10).await;
        cluster.as_mock().broker_down(-1).unwrap();
        consumer.commit(&deliveries).await.unwrap();
    });
    let begun = Instant::now();
    drop(runtime);
    println!("the runtime ended after {:?}", begun.elapsed());
    assert!(begun.elapsed() < CLOSE_LIMIT + Duration::from_secs(1));
}
