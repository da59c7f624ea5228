//! Reading: as a member of a group, or a topic's tail for people.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{Consumer as _, StreamConsumer},
    error::{KafkaError, RDKafkaErrorCode as Code},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tracing::{debug, warn};

use super::{Log, OffThread, record, settings::Settings, topics};
use crate::{
    Error,
    events::broker::{Consumer, Delivery, From, check_offset, no_partition, progress::Progress},
};

/// How many bytes of bodies `next` returns at most, over its first delivery's.
const BATCH_BYTES: usize = 16 << 20;

/// How long nothing may come before the broker is asked whether it is there,
/// and how long it may take to answer.
const QUIET: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// What reads topics.
pub(super) struct Reader {
    settings: Settings,
    plan: Plan,
    /// Shared with a question on another thread.
    client: Arc<OffThread<StreamConsumer<Log>>>,
    /// When something last came from the broker.
    heard: Instant,
    /// Whether it is there, asked when nothing came; the answer outlasts whoever
    /// waits for it.
    asked: Option<JoinHandle<Result<(), Error>>>,
    /// Of each partition that was read.
    progress: BTreeMap<(String, i32), Progress>,
    /// Of a tail: which of its partitions are read to their end, until it is told
    /// that all are.
    at_end: BTreeSet<i32>,
}

/// What a reader reads, should it have to begin again.
enum Plan {
    /// What matches `pattern`, from the group's committed offsets.
    Member { group: String, pattern: String },
    /// Partitions from these offsets; they move on with what is read.
    Tail { places: BTreeMap<(String, i32), i64> },
}

/// Joins `group`, which reads the topics that match `pattern`. It joins once
/// there is such a topic.
pub(super) fn subscribe(settings: &Settings, group: &str, pattern: &str) -> Result<Reader, Error> {
    let plan = Plan::Member { group: group.to_owned(), pattern: pattern.to_owned() };
    Reader::open(settings.clone(), plan)
}

/// Reads the partitions that `topic` has now. The place to begin at is fixed
/// when this returns: what is published from then on is read.
pub(super) async fn tail(settings: &Settings, topic: &str, from: From) -> Result<Reader, Error> {
    let mut places = BTreeMap::new();
    for (partition, first, next) in topics::watermarks(settings, topic).await? {
        let offset = match from {
            From::Beginning => first,
            From::Now => next,
            From::At { partition: wanted, .. } if wanted != partition => continue,
            From::At { offset, .. } => {
                check_offset(offset, first, next)?;
                offset
            }
        };
        places.insert((topic.to_owned(), partition), offset);
    }
    if let From::At { partition, .. } = from
        && places.is_empty()
    {
        return Err(no_partition(topic, partition));
    }
    let plan = Plan::Tail { places };
    Reader::open(settings.clone(), plan)
}

impl Reader {
    fn open(settings: Settings, plan: Plan) -> Result<Self, Error> {
        let client = Arc::new(OffThread::new(plan.open(&settings)?));
        let (heard, progress, at_end) = (Instant::now(), BTreeMap::new(), BTreeSet::new());
        Ok(Self { settings, plan, client, heard, asked: None, progress, at_end })
    }

    /// The next delivery, waited for; none at the end of a tail.
    async fn first(&mut self) -> Result<Option<Delivery>, Error> {
        loop {
            if let Plan::Tail { places } = &self.plan
                && !places.is_empty()
                && self.at_end.len() == places.len()
            {
                self.at_end.clear();
                return Ok(None);
            }
            let message = timeout_at(self.heard + QUIET, self.client.recv()).await;
            match message.map(|message| message.map(|message| record::delivery(&message))) {
                Ok(Ok(delivery)) => {
                    self.heard = Instant::now();
                    return Ok(Some(delivery));
                }
                Ok(Err(KafkaError::PartitionEOF(partition))) => {
                    self.heard = Instant::now();
                    self.at_end.insert(partition);
                }
                Ok(Err(why)) => passing(why)?,
                Err(_) => self.ask_or_begin_again().await?,
            }
        }
    }

    /// A broker that has just come back may name no broker at all, not even
    /// itself. librdkafka then forgets all it knows and never connects again,
    /// so a client that gets no answer is replaced.
    async fn ask_or_begin_again(&mut self) -> Result<(), Error> {
        let asked = self.asked.get_or_insert_with(|| {
            let client = Arc::clone(&self.client);
            tokio::task::spawn_blocking(move || match client.fetch_metadata(None, ANSWER_LIMIT) {
                Ok(_) => Ok(()),
                Err(why) => Err(Error::Broker(format!("no broker answers: {why}; see `events`"))),
            })
        });
        let answer = asked.await;
        self.asked = None;
        let answer = answer.unwrap_or_else(|why| Err(Error::Broker(why.to_string())));
        if answer.is_err() {
            self.client = Arc::new(OffThread::new(self.plan.open(&self.settings)?));
            self.at_end.clear();
        }
        self.heard = Instant::now();
        answer
    }
}

impl Plan {
    fn open(&self, settings: &Settings) -> Result<StreamConsumer<Log>, Error> {
        let opened = match self {
            Self::Member { group, pattern } => {
                let (subscription, hidden) = subscription(pattern)?;
                let mut config = settings.consumer(group);
                if let Some(hidden) = hidden {
                    config.set("topic.blacklist", hidden);
                }
                let client = config.create_with_context(Log::default());
                client.and_then(|client: StreamConsumer<Log>| {
                    client.subscribe(&[&subscription])?;
                    Ok(client)
                })
            }
            Self::Tail { places } => {
                // librdkafka demands the name of a group; nothing joins it.
                let mut config = settings.consumer("omnibridge-tail");
                config.set("enable.partition.eof", "true");
                let client = config.create_with_context(Log::default());
                client.and_then(|client: StreamConsumer<Log>| {
                    client.assign(&offsets(places.iter().map(|((t, p), o)| ((&**t, *p), *o)))?)?;
                    Ok(client)
                })
            }
        };
        opened.map_err(|why| Error::Broker(format!("topics can't be read: {why}")))
    }
}

#[async_trait]
impl Consumer for Reader {
    async fn next(&mut self, limit: usize) -> Result<Vec<Delivery>, Error> {
        let Some(first) = self.first().await? else { return Ok(vec![]) };
        let (mut deliveries, mut ended) = (vec![first], vec![]);
        // No await from here on, so that a cancelled `next` loses nothing.
        let mut messages = self.client.stream();
        let mut bytes = 0;
        while deliveries.len() < limit && bytes < BATCH_BYTES {
            match messages.next().now_or_never().flatten() {
                Some(Ok(message)) => {
                    bytes += rdkafka::Message::payload(&message).map_or(0, <[u8]>::len);
                    deliveries.push(record::delivery(&message));
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => ended.push(partition),
                // What ended the batch will end the next one, if it lasts.
                Some(Err(why)) => {
                    debug!("after {} deliveries: {why}", deliveries.len());
                    break;
                }
                None => break,
            }
        }
        drop(messages);
        for Delivery { topic, partition, offset, .. } in &deliveries {
            let partition = (topic.clone(), *partition);
            match &mut self.plan {
                Plan::Member { .. } => {
                    self.progress.entry(partition).or_default().hand_out(*offset);
                }
                Plan::Tail { places } => {
                    self.at_end.remove(&partition.1);
                    places.insert(partition, offset + 1);
                }
            }
        }
        self.at_end.extend(ended);
        Ok(deliveries)
    }

    /// Takes note of the offsets; librdkafka commits them within 200 ms, and
    /// before it gives partitions away or leaves the group. Its call that waits
    /// for the broker's answer has no limit: without a broker it never returns.
    async fn commit(&mut self, deliveries: &[&Delivery]) -> Result<(), Error> {
        let mut reached = BTreeMap::new();
        for Delivery { topic, partition, offset, .. } in deliveries {
            // A tail has none.
            let place = (topic.clone(), *partition);
            let Some(progress) = self.progress.get_mut(&place) else { continue };
            progress.done(*offset);
            if let Some(offset) = progress.reached() {
                reached.insert(place, offset + 1);
            }
        }
        if reached.is_empty() {
            return Ok(());
        }
        let places =
            reached.iter().map(|((topic, partition), next)| ((&**topic, *partition), *next));
        let stored = offsets(places).and_then(|offsets| self.client.store_offsets(&offsets));
        match stored {
            Ok(()) => {}
            // They are another member's by now, who has a place of its own there.
            Err(KafkaError::StoreOffset(Code::State)) => {}
            Err(why) => return Err(Error::Broker(format!("offsets can't be stored: {why}"))),
        }
        for (place, next) in reached {
            if let Some(progress) = self.progress.get_mut(&place) {
                progress.recorded(next - 1);
            }
        }
        Ok(())
    }
}

fn offsets<'a>(
    places: impl IntoIterator<Item = ((&'a str, i32), i64)>,
) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for ((topic, partition), offset) in places {
        list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    }
    Ok(list)
}

/// Lets errors pass that librdkafka heals by itself: the caller waits on.
fn passing(why: KafkaError) -> Result<(), Error> {
    match why.rdkafka_error_code() {
        // There is no such topic yet; it is read once there is.
        Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition) => {
            debug!("{why}");
            Ok(())
        }
        // Connections, which it makes again. These come in crowds, old ones
        // among them, so it is silence that tells that the broker is gone.
        Some(
            Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::Resolve
            | Code::OperationTimedOut,
        ) => {
            debug!("{why}");
            Ok(())
        }
        Some(Code::PollExceeded) => {
            warn!("`next` wasn't asked for too long: the group went on without this member");
            Ok(())
        }
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
}
