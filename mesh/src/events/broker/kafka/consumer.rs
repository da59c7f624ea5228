//! Reading: as a member of a group, or a topic's tail for people.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{Consumer as _, StreamConsumer},
    error::{KafkaError, RDKafkaErrorCode as Code},
};
use tracing::{debug, warn};

use super::{Log, OffThread, record, settings::Settings, topics};
use crate::{
    Error,
    events::broker::{Consumer, Delivery, From},
};

/// How many bytes of bodies `next` returns at most, over its first delivery's.
const BATCH_BYTES: usize = 16 << 20;

/// What reads topics.
pub(super) struct Reader {
    client: OffThread<StreamConsumer<Log>>,
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
    Ok(Reader { client: OffThread::new(client), member: true })
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
    Ok(Reader { client: OffThread::new(client), member: false })
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

    /// Takes note of the offsets; librdkafka commits them within 200 ms, and
    /// before it gives partitions away or leaves the group. Its call that waits
    /// for the broker's answer has no limit: without a broker it never returns.
    async fn commit(&mut self, deliveries: &[Delivery]) -> Result<(), Error> {
        if !self.member || deliveries.is_empty() {
            return Ok(());
        }
        let failed = |why: KafkaError| Error::Broker(format!("offsets can't be stored: {why}"));
        let next = next_offsets(deliveries);
        let mut offsets = TopicPartitionList::with_capacity(next.len());
        for ((topic, partition), offset) in next {
            offsets
                .add_partition_offset(topic, partition, Offset::Offset(offset))
                .map_err(failed)?;
        }
        match self.client.store_offsets(&offsets) {
            // They are another member's by now, who has a place of its own there.
            Err(KafkaError::StoreOffset(Code::State)) => Ok(()),
            done => done.map_err(failed),
        }
    }
}

/// The first offset that isn't done, by topic and partition.
fn next_offsets(deliveries: &[Delivery]) -> BTreeMap<(&str, i32), i64> {
    let mut next = BTreeMap::new();
    for delivery in deliveries {
        let place = (delivery.topic.as_str(), delivery.partition);
        let offset = next.entry(place).or_insert(0);
        *offset = (*offset).max(delivery.offset + 1);
    }
    next
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
        let deliveries = [delivery(0, 4), delivery(1, 0), delivery(0, 3)];
        let next = next_offsets(&deliveries);
        let next: Vec<_> = next.into_iter().map(|((_, p), o)| (p, o)).collect();
        assert_eq!(next, [(0, 5), (1, 1)]);
    }
}
