//! The broker `kafka://`: topics on Apache Kafka, or on what speaks its
//! protocol, through librdkafka. Nothing here waits for the broker at the start:
//! a process comes up without it, and its outbox fills until Kafka is back.

mod consumer;
mod groups;
mod producer;
mod record;
mod settings;
mod topics;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use rdkafka::{
    TopicPartitionList,
    client::ClientContext,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, ConsumerContext, Rebalance},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};
use tokio::runtime::Handle;
use tracing::{debug, info, warn};

use self::{producer::Publisher, settings::Settings};
use super::{Broker, Consumer, From, GroupStatus, Record, TopicStatus};
use crate::{Error, config::Config};

/// Kafka, as the setting `events` names it.
pub struct KafkaBroker {
    settings: Settings,
    publisher: Publisher,
}

impl KafkaBroker {
    /// The broker at `events = kafka://host:port[,host:port…]`. Two parameters
    /// may follow, for topics that are made: `?partitions=8&replication=3`.
    /// It connects when it is first used, and again whenever it has to.
    ///
    /// # Errors
    /// When the setting can't be read.
    pub fn connect(config: &Config) -> Result<Self, Error> {
        let settings = Settings::read(config)?;
        let publisher = Publisher::new(&settings);
        Ok(Self { settings, publisher })
    }
}

#[async_trait]
impl Broker for KafkaBroker {
    async fn ensure(&self, topics: &[String]) -> Result<(), Error> {
        topics::ensure(&self.settings, topics).await
    }

    async fn publish(&self, records: Vec<Record>, deadline: Duration) -> Vec<Result<(), Error>> {
        self.publisher.publish(records, deadline).await
    }

    async fn subscribe(&self, group: &str, pattern: &str) -> Result<Box<dyn Consumer>, Error> {
        Ok(Box::new(consumer::subscribe(&self.settings, group, pattern)?))
    }

    async fn tail(&self, topic: &str, from: From) -> Result<Box<dyn Consumer>, Error> {
        Ok(Box::new(consumer::tail(&self.settings, topic, from).await?))
    }

    async fn bounds(&self, topic: &str) -> Result<BTreeMap<i32, (i64, i64)>, Error> {
        let bounds = topics::watermarks(&self.settings, topic).await?;
        Ok(bounds.into_iter().map(|(partition, first, next)| (partition, (first, next))).collect())
    }

    async fn topics(&self) -> Result<Vec<TopicStatus>, Error> {
        topics::list(&self.settings).await
    }

    async fn groups(&self) -> Result<Vec<GroupStatus>, Error> {
        groups::list(&self.settings).await
    }

    async fn group(&self, group: &str, pattern: &str) -> Result<Vec<GroupStatus>, Error> {
        groups::one(&self.settings, group, pattern).await
    }
}

/// What librdkafka has to say, told to `tracing`. It calls every lost
/// connection an error and then heals it by itself, so nothing here is more than
/// a warning: what a caller must know comes back to that caller as an error.
#[derive(Clone, Default)]
struct Log {
    /// Why a connection failed last.
    trouble: Arc<Mutex<Option<String>>>,
}

impl Log {
    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Log {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => {
                warn!(target: "librdkafka", facility, "{message}");
            }
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                info!(target: "librdkafka", facility, "{message}");
            }
            RDKafkaLogLevel::Debug => debug!(target: "librdkafka", facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(target: "librdkafka", "{reason}");
        // That one only counts the others.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            *trouble = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Log {
    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        match result {
            Ok(()) | Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
            Err(why) => warn!("offsets aren't committed yet, and events may come again: {why}"),
        }
    }

    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let named = |partitions: &TopicPartitionList| {
            let named = partitions.elements();
            let named = named.iter().map(|p| format!("{}/{}", p.topic(), p.partition()));
            named.collect::<Vec<_>>().join(" ")
        };
        match rebalance {
            Rebalance::Assign(all) => debug!(partitions = named(all), "partitions assigned"),
            Rebalance::Revoke(all) => debug!(partitions = named(all), "partitions revoked"),
            Rebalance::Error(why) => warn!("the group's partitions can't be assigned: {why}"),
        }
    }
}

/// How long a runtime that ends waits for a client to say goodbye.
const CLOSE_LIMIT: Duration = Duration::from_secs(15);

/// A client of librdkafka, dropped on a thread of its own: its drop joins
/// threads, commits, leaves its group, and takes up to ten seconds without a
/// broker. One that librdkafka has lost (see [`consumer`]) may not end at all;
/// its thread is left behind.
struct OffThread<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> OffThread<T> {
    fn new(client: T) -> Self {
        Self(Some(client))
    }
}

impl<T: Send + 'static> Deref for OffThread<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("only the drop takes it")
    }
}

impl<T: Send + 'static> Drop for OffThread<T> {
    fn drop(&mut self) {
        let client = self.0.take();
        let (closing, closed) = mpsc::channel::<()>();
        let close = move || {
            drop(client);
            drop(closing);
        };
        // Without a thread to be had, the closure is dropped here, client and all.
        let started = thread::Builder::new().name("kafka-close".into()).spawn(close).is_ok();
        // A process that stops in good order leaves its groups first.
        if let Ok(runtime) = Handle::try_current()
            && started
        {
            runtime.spawn_blocking(move || closed.recv_timeout(CLOSE_LIMIT));
        }
    }
}

/// Runs what blocks in librdkafka.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(why) => Err(Error::Broker(format!("the call was cut off: {why}"))),
    }
}
