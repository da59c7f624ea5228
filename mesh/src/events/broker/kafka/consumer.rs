//! Reading: as a member of a group, or a topic's tail for people.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{CommitMode, Consumer as _, StreamConsumer},
    error::{KafkaError, RDKafkaErrorCode as Code},
};
use tracing::{debug, warn};

use super::{Log, OffThread, blocking, record, settings::Settings, topics};
use crate::{
    Error,
    events::broker::{Consumer, Delivery, From},
};

/// How many bytes of bodies `next` returns at most, over its first delivery's.
const BATCH_BYTES: usize = 16 << 20;

/// How long a commit may take.
const COMMIT_LIMIT: Duration = Duration::from_secs(10);

/// How often a commit is tried while the group rebalances, and how far apart.
const COMMIT_TRIES: u32 = 10;
const COMMIT_PAUSE: Duration = Duration::from_millis(200);

/// What reads topics.
pub(super) struct Reader {
    /// Shared with a commit that runs on another thread.
    client: OffThread<Arc<StreamConsumer<Log>>>,
    /// Whether it is a member of a group and commits.
    member: bool,
}

/// Joins `group`, which reads the topics that match `pattern`. It joins once
/// there is such a topic.
pub(super) fn subscribe(settings: &Settings, group: &str, pattern: &str) -> Result<Reader, Error> {
    let (subscription, hidden) = subscription(pattern)?;
    let mut config = settings.consumer(group);
    if let Some(hidden) = hidden {
        config.set("topic.blacklist", hidden);
    }
    let failed =
        |why: KafkaError| Error::Broker(format!("`{group}` can't read `{pattern}`: {why}"));
    let client: StreamConsumer<Log> = config.create_with_context(Log).map_err(failed)?;
    client.subscribe(&[&subscription]).map_err(failed)?;
    Ok(Reader { client: OffThread::new(Arc::new(client)), member: true })
}

/// Reads the partitions that `topic` has now. The place to begin at is fixed
/// when this returns: what is published from then on is read.
pub(super) async fn tail(settings: &Settings, topic: &str, from: From) -> Result<Reader, Error> {
    let partitions = topics::watermarks(settings, topic).await?;
    let mut places = TopicPartitionList::with_capacity(partitions.len());
    let failed = |why: KafkaError| Error::Broker(format!("`{topic}` can't be read: {why}"));
    for (partition, first, next) in partitions {
        let place = match from {
            From::Beginning => first,
            From::Now => next,
        };
        places.add_partition_offset(topic, partition, Offset::Offset(place)).map_err(failed)?;
    }
    // librdkafka demands the name of a group; nothing joins it.
    let config = settings.consumer("omnibridge-tail");
    let client: StreamConsumer<Log> = config.create_with_context(Log).map_err(failed)?;
    client.assign(&places).map_err(failed)?;
    Ok(Reader { client: OffThread::new(Arc::new(client)), member: false })
}

#[async_trait]
impl Consumer for Reader {
    async fn next(&mut self, limit: usize) -> Result<Vec<Delivery>, Error> {
        if let Some((_, why)) = self.client.client().fatal_error() {
            return Err(Error::Broker(format!("the consumer has ended: {why}")));
        }
        let mut messages = self.client.stream();
        let mut deliveries = Vec::new();
        let mut bytes = 0;
        while deliveries.is_empty() {
            match messages.next().await {
                Some(Ok(message)) => deliveries.push(record::delivery(&message)),
                Some(Err(why)) => passing(why)?,
                None => return Err(Error::Broker("the consumer has ended".into())),
            }
        }
        // No await from here on, so that a cancelled `next` loses nothing.
        while deliveries.len() < limit && bytes < BATCH_BYTES {
            match messages.next().now_or_never().flatten() {
                Some(Ok(message)) => {
                    bytes += rdkafka::Message::payload(&message).map_or(0, <[u8]>::len);
                    deliveries.push(record::delivery(&message));
                }
                // What ended the batch will end the next one, if it lasts.
                Some(Err(why)) => {
                    debug!("after {} deliveries: {why}", deliveries.len());
                    break;
                }
                None => break,
            }
        }
        Ok(deliveries)
    }

    async fn commit(&mut self, deliveries: &[Delivery]) -> Result<(), Error> {
        if !self.member || deliveries.is_empty() {
            return Ok(());
        }
        let client = Arc::clone(&self.client);
        let next = next_offsets(deliveries);
        // librdkafka gives up by itself, after its session's timeout at most;
        // the limit is for a caller that has to stop sooner.
        let commit = blocking(move || commit(&client, &next));
        match tokio::time::timeout(COMMIT_LIMIT, commit).await {
            Ok(done) => done,
            Err(_) => Err(Error::Broker(format!(
                "offsets can't be committed: no answer within {COMMIT_LIMIT:?}"
            ))),
        }
    }
}

/// The first offset that isn't done, by topic and partition.
fn next_offsets(deliveries: &[Delivery]) -> BTreeMap<(String, i32), i64> {
    let mut next = BTreeMap::new();
    for delivery in deliveries {
        let place = (delivery.topic.clone(), delivery.partition);
        let offset = next.entry(place).or_insert(0);
        *offset = (*offset).max(delivery.offset + 1);
    }
    next
}

/// Commits those of partitions that are still this member's: another's must not
/// be put back to what this one had read.
fn commit(client: &StreamConsumer<Log>, next: &BTreeMap<(String, i32), i64>) -> Result<(), Error> {
    let failed = |why: KafkaError| Error::Broker(format!("offsets can't be committed: {why}"));
    let assigned = client.assignment().map_err(failed)?;
    let mut offsets = TopicPartitionList::with_capacity(next.len());
    for ((topic, partition), offset) in next {
        if assigned.find_partition(topic, *partition).is_some() {
            offsets
                .add_partition_offset(topic, *partition, Offset::Offset(*offset))
                .map_err(failed)?;
        }
    }
    if offsets.count() == 0 {
        return Ok(());
    }
    let mut tries = 1;
    loop {
        match client.commit(&offsets, CommitMode::Sync) {
            // The group takes in a member; it takes commits again in a moment.
            Err(KafkaError::ConsumerCommit(Code::RebalanceInProgress)) if tries < COMMIT_TRIES => {
                tries += 1;
                std::thread::sleep(COMMIT_PAUSE);
            }
            done => return done.map_err(failed),
        }
    }
}

/// Lets errors pass that librdkafka heals by itself: the caller waits on.
fn passing(why: KafkaError) -> Result<(), Error> {
    match why.rdkafka_error_code() {
        // There is no such topic yet; it is read once there is.
        Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition) => {
            debug!("{why}");
            Ok(())
        }
        // One broker of several, or one connection.
        Some(Code::BrokerTransportFailure | Code::Resolve | Code::OperationTimedOut) => {
            debug!("{why}");
            Ok(())
        }
        Some(Code::PollExceeded) => {
            warn!("`next` wasn't asked for too long: the group went on without this member");
            Ok(())
        }
        Some(Code::AllBrokersDown) => Err(Error::Broker(
            "no broker can be reached; `events` says where they should be".into(),
        )),
        Some(Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed) => {
            Err(Error::Broker(format!("{why}: grant the right to read on the broker")))
        }
        _ => Err(Error::Broker(why.to_string())),
    }
}

/// `pattern` as librdkafka has it: a name, or `^` and a regular expression; and
/// what of its matches must stay out of sight.
fn subscription(pattern: &str) -> Result<(String, Option<&'static str>), Error> {
    let prefix = pattern.strip_suffix('*');
    let name = prefix.unwrap_or(pattern);
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !name.chars().all(legal) || (name.is_empty() && prefix.is_none()) {
        return Err(Error::Broker(format!(
            "`{pattern}` is neither the name of a topic nor a prefix and `*`"
        )));
    }
    let Some(prefix) = prefix else {
        return Ok((name.to_owned(), None));
    };
    // Only a prefix as short as these matches dead letters or Kafka's own topics
    // without meaning them. Elsewhere nothing is hidden: a member hides it from
    // the assignments it makes for others, too.
    let hidden = match prefix {
        "" => Some("^dlq\\.,^__"),
        "d" | "dl" | "dlq" => Some("^dlq\\."),
        "_" => Some("^__"),
        _ => None,
    };
    Ok((format!("^{}.*", prefix.replace('.', "\\.")), hidden))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_becomes_an_anchored_expression() {
        let of = |pattern| subscription(pattern).unwrap();
        assert_eq!(of("audit.events"), ("audit.events".to_owned(), None));
        assert_eq!(of("hooks.*"), ("^hooks\\..*".to_owned(), None));
        assert_eq!(of("dlq.*"), ("^dlq\\..*".to_owned(), None));
        assert_eq!(of("d*"), ("^d.*".to_owned(), Some("^dlq\\.")));
        assert!(subscription("hooks.(a|b)").is_err());
        assert!(subscription("").is_err());
    }

    #[test]
    fn what_is_committed_is_the_offset_behind_the_last() {
        let delivery = |partition, offset| Delivery {
            topic: "t".into(),
            partition,
            offset,
            event: Err(crate::events::broker::Undecodable {
                why: String::new(),
                data: bytes::Bytes::new(),
            }),
        };
        let next = next_offsets(&[delivery(0, 4), delivery(1, 0), delivery(0, 3)]);
        let next: Vec<_> = next.into_iter().map(|((_, p), o)| (p, o)).collect();
        assert_eq!(next, [(0, 5), (1, 1)]);
    }
}
