//! Where events go: topics, written in order and read by groups.

mod embedded;
pub mod kafka;
mod progress;
mod scan;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::future::BoxFuture;

pub use self::scan::Scan;
use super::Event;
use crate::{Error, config::Config};

/// Keeps topics and hands their events to groups of consumers.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Creates the topics that are missing, and warns of those that differ.
    ///
    /// # Errors
    /// When the broker can't be reached.
    async fn ensure(&self, topics: &[String]) -> Result<(), Error>;

    /// Publishes `records` in order, and answers for each whether the broker
    /// has it durably. Those of one key keep their order. Returns within the
    /// deadline, or later only by what a cancelled publish needs to be sure.
    async fn publish(&self, records: Vec<Record>, deadline: Duration) -> Vec<Result<(), Error>>;

    /// Joins `group` as a consumer of the topics that match `pattern`: a name,
    /// or a prefix and `*`. Topics that are made later are read too, from their
    /// first event.
    ///
    /// # Errors
    /// When the broker can't be reached.
    async fn subscribe(&self, group: &str, pattern: &str) -> Result<Box<dyn Consumer>, Error>;

    /// Reads `topic` without a group, for people.
    ///
    /// # Errors
    /// When the topic or the place isn't there, or the broker can't be reached.
    async fn tail(&self, topic: &str, from: From) -> Result<Box<dyn Consumer>, Error>;

    /// The first offset of each partition of `topic`, and the one that its next
    /// event gets; they are equal where it keeps none.
    ///
    /// # Errors
    /// When the topic isn't there or the broker can't be reached.
    async fn bounds(&self, topic: &str) -> Result<BTreeMap<i32, (i64, i64)>, Error>;

    /// All topics.
    ///
    /// # Errors
    /// When the broker can't be reached.
    async fn topics(&self) -> Result<Vec<TopicStatus>, Error>;

    /// How far all groups have got in the topics that they have begun, by name,
    /// topic and partition.
    ///
    /// # Errors
    /// When the broker can't be reached.
    async fn groups(&self) -> Result<Vec<GroupStatus>, Error>;

    /// How far `group` has got in all topics that match `pattern`, by topic and
    /// partition.
    ///
    /// # Errors
    /// When the broker can't be reached.
    async fn group(&self, group: &str, pattern: &str) -> Result<Vec<GroupStatus>, Error>;
}

/// An event and the topic it goes to.
#[derive(Clone, Debug)]
pub struct Record {
    /// The topic.
    pub topic: String,
    /// The event; its correlation id is the key.
    pub event: Event,
}

/// An event as a consumer gets it.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The topic it came on.
    pub topic: String,
    /// The partition of the topic.
    pub partition: i32,
    /// The place in the partition.
    pub offset: i64,
    /// The event; an error where the record is no CloudEvent.
    pub event: Result<Event, Undecodable>,
}

impl Delivery {
    /// What keeps its order: a topic's events of one correlation. One of none, or
    /// a record that is no event, stands alone.
    pub(crate) fn key(&self) -> (String, String) {
        let of_event = self.event.as_ref().map(|event| &event.attributes.correlationid);
        let key = match of_event {
            Ok(correlation) if !correlation.is_empty() => correlation.clone(),
            _ => format!("{}/{}", self.partition, self.offset),
        };
        (self.topic.clone(), key)
    }
}

/// A record that is no CloudEvent, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecodable {
    /// What is wrong with it.
    pub why: String,
    /// Its value.
    pub data: bytes::Bytes,
}

/// Where reading begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// At the first event that is kept.
    Beginning,
    /// At the next event that is published.
    Now,
    /// At this offset of this partition, and in no other one.
    At {
        /// The partition.
        partition: i32,
        /// The offset: one that is kept, or the next.
        offset: i64,
    },
}

/// That reading can begin at `offset`, where a partition has events from `first` to
/// before `next`.
///
/// # Errors
/// Says where it can.
fn check_offset(offset: i64, first: i64, next: i64) -> Result<(), Error> {
    match (first..=next).contains(&offset) {
        true => Ok(()),
        false => Err(Error::Broker(format!(
            "there is no offset {offset}: the partition has events from {first} to before {next}"
        ))),
    }
}

/// That a partition isn't there.
fn no_partition(topic: &str, partition: i32) -> Error {
    Error::Broker(format!("the topic `{topic}` has no partition {partition}"))
}

/// A topic as `omni events topics` shows it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TopicStatus {
    /// Its name.
    pub name: String,
    /// How many partitions it has.
    pub partitions: i32,
    /// How many events it keeps.
    pub events: i64,
}

/// How far a group has got in one partition, as `omni events groups` shows it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct GroupStatus {
    /// The group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// The partition of the topic.
    pub partition: i32,
    /// The offset it goes on with.
    pub position: i64,
    /// How many events it has yet to handle.
    pub lag: i64,
}

/// A member of a group, or a tail.
#[async_trait]
pub trait Consumer: Send {
    /// The next deliveries, at most `limit`; waits for them. None are a sign that
    /// a tail is at the end of all its partitions, from brokers whose offsets don't
    /// show that: of a transaction in Kafka the last one is never delivered.
    ///
    /// # Errors
    /// When the broker can't be reached; the caller waits and asks again.
    async fn next(&mut self, limit: usize) -> Result<Vec<Delivery>, Error>;

    /// Records that `deliveries` have had their effect, in whatever order: the
    /// group never gets them again, save after a crash, when it goes on after
    /// the last one of each partition before which nothing is left to do.
    ///
    /// # Errors
    /// When the broker can't be reached.
    async fn commit(&mut self, deliveries: &[&Delivery]) -> Result<(), Error>;
}

/// Whether `topic` matches `pattern`: a name, or a prefix and `*`. Dead-letter
/// topics only match their own name or a prefix that begins with `dlq.`.
pub fn matches(pattern: &str, topic: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => {
            topic.starts_with(prefix) && (prefix.starts_with("dlq.") || !topic.starts_with("dlq."))
        }
        None => pattern == topic,
    }
}

/// The broker that the setting `events` names: `embedded:` or
/// `kafka://host:port[,host:port…]`.
///
/// # Errors
/// When the setting names neither, or the broker's own files can't be opened.
pub fn broker(config: &Config) -> BoxFuture<'_, Result<Arc<dyn Broker>, Error>> {
    Box::pin(async move {
        let broker: Arc<dyn Broker> = match config.events.split_once(':') {
            Some(("embedded", _)) => Arc::new(embedded::EmbeddedBroker::open(config).await?),
            Some(("kafka", _)) => Arc::new(kafka::KafkaBroker::connect(config)?),
            _ => {
                let expected = "expected `embedded:` or `kafka://host:port`";
                return Err(Error::setting("events", &config.events, expected));
            }
        };
        Ok(broker)
    })
}
