//! On librdkafka's mock cluster, a server of the real protocol in this process;
//! with `OMNI_TEST_KAFKA=host:port`, on the Kafka there. What needs a broker
//! that fails on command always uses the mock.

mod contract;
mod faults;

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
