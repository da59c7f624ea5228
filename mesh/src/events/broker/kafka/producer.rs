//! Publishing: every record's own delivery report, within a deadline.
//!
//! A record without a report by the deadline may be with the broker, on its way,
//! or lost, and the relay will publish it again. Two things keep that in order.
//! First, each `publish` has a producer to itself, and one that has failed in
//! any way is never used again: it is purged, and closed, and what it had queued
//! is gone. Purging is all or nothing, so a shared producer would take the
//! records of other callers along. Second, what was already on the wire can
//! arrive late, even after the same records of the next `publish`, but only as
//! the beginning of what was sent, without a gap. Two runs of one key that each
//! begin no later than the first record unaccounted for, and have no gap, can be
//! mixed in any way: the first occurrences stay in order, the rest are
//! duplicates.
//!
//! That there is no gap takes two rounds. A broker refuses a sequence number out
//! of order, but not to a producer that it doesn't know in a partition yet: what
//! follows a failed first request would get in. So the first round has each
//! key's first record, and the second the rest, to partitions that know the
//! producer. There a request that fails makes those behind it fail, and librdkafka
//! sends no others (`enable.gapless.guarantee`).

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode as Code},
    producer::{DeliveryFuture, FutureProducer, FutureRecord},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use super::{Log, OffThread, record, settings::Settings};
use crate::{Error, events::broker::Record};

/// How many `publish` run at once, each with a producer of its own; further
/// ones wait. A relay runs one.
const PRODUCERS: usize = 8;

/// How long the reports of a purged producer may take.
const PURGE_LIMIT: Duration = Duration::from_secs(2);

type Producer = OffThread<FutureProducer<Log>>;

/// The producers of this process.
pub(super) struct Publisher {
    config: ClientConfig,
    idle: Mutex<Vec<Producer>>,
    slots: Semaphore,
}

impl Publisher {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            config: settings.producer(),
            idle: Mutex::default(),
            slots: Semaphore::new(PRODUCERS),
        }
    }

    /// As [`super::Broker::publish`]. A record that is at fault itself answers
    /// [`Error::Event`]: it will never be taken as it is. Behind a record that
    /// failed nothing is sent; those answer errors too, and may be published
    /// again once it is dealt with.
    pub(super) async fn publish(
        &self,
        records: Vec<Record>,
        deadline: Duration,
    ) -> Vec<Result<(), Error>> {
        let ends = Instant::now() + deadline;
        let late = || format!("no answer from the broker within {deadline:?}");
        let Ok(Ok(_slot)) = timeout_at(ends, self.slots.acquire()).await else {
            let busy = format!("{}: {PRODUCERS} others are being published", late());
            return fail_all(&records, &busy);
        };
        let producer = match self.take() {
            Ok(producer) => producer,
            Err(why) => return fail_all(&records, &why.to_string()),
        };

        // From here a drop of this future drops the producer, which purges it.
        let mut batch = Batch::new(&records);
        let (firsts, others) = rounds(&records);
        if batch.deliver(&producer, &firsts, ends).await
            && batch.deliver(&producer, &others, ends).await
        {
            self.give_back(producer);
        } else {
            drop(producer);
            batch.collect(Instant::now() + PURGE_LIMIT).await;
        }
        batch.into_answers(&late())
    }

    fn take(&self) -> Result<Producer, KafkaError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(producer) => Ok(producer),
            None => Ok(OffThread::new(self.config.create_with_context(Log::default())?)),
        }
    }

    /// At most [`PRODUCERS`] are out, so no more can come back.
    fn give_back(&self, producer: Producer) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(producer);
    }
}

/// Which of `records` are their key's first, and which are not, in order.
fn rounds(records: &[Record]) -> (Vec<usize>, Vec<usize>) {
    let mut seen = HashSet::new();
    (0..records.len()).partition(|index| {
        let Record { topic, event } = &records[*index];
        let key = &event.attributes.correlationid;
        key.is_empty() || seen.insert((topic, key))
    })
}

/// The records of one `publish` and what became of each.
struct Batch<'a> {
    records: &'a [Record],
    states: Vec<State>,
}

enum State {
    /// Not handed to librdkafka.
    Unsent,
    Sent(DeliveryFuture),
    Done(Result<(), KafkaError>),
}

impl<'a> Batch<'a> {
    fn new(records: &'a [Record]) -> Self {
        Self { records, states: records.iter().map(|_| State::Unsent).collect() }
    }

    /// Publishes those of `round`; whether all are delivered. It ends with the
    /// first that isn't: librdkafka leaves what is queued behind it where it is.
    async fn deliver(
        &mut self,
        producer: &FutureProducer<Log>,
        round: &[usize],
        ends: Instant,
    ) -> bool {
        if !self.send(producer, round, ends).await {
            return false;
        }
        for &index in round {
            let state = &mut self.states[index];
            if !state.settle(ends).await || !matches!(state, State::Done(Ok(()))) {
                return false;
            }
        }
        true
    }

    /// Hands those of `round` over, until one is refused; whether there was the
    /// time to. A full queue is waited for: it empties as reports come in.
    async fn send(
        &mut self,
        producer: &FutureProducer<Log>,
        round: &[usize],
        ends: Instant,
    ) -> bool {
        let mut reports = round.iter();
        for &index in round {
            let Record { topic, event } = &self.records[index];
            let key = &event.attributes.correlationid;
            self.states[index] = loop {
                let record = FutureRecord {
                    topic,
                    partition: None,
                    payload: Some(&event.data[..]),
                    key: Some(key).filter(|key| !key.is_empty()),
                    timestamp: None,
                    headers: Some(record::headers(&event.attributes)),
                };
                match producer.send_result(record) {
                    Ok(report) => break State::Sent(report),
                    Err((KafkaError::MessageProduction(Code::QueueFull), _)) => {
                        let oldest = reports.next().filter(|oldest| **oldest < index);
                        let Some(oldest) = oldest else {
                            break State::Done(Err(KafkaError::MessageProduction(Code::QueueFull)));
                        };
                        if !self.states[*oldest].settle(ends).await {
                            return false;
                        }
                    }
                    Err((why, _)) => break State::Done(Err(why)),
                }
            };
            if let State::Done(Err(_)) = self.states[index] {
                break;
            }
        }
        true
    }

    /// Takes the reports that come until `ends`.
    async fn collect(&mut self, ends: Instant) {
        for state in &mut self.states {
            state.settle(ends).await;
        }
    }

    fn into_answers(self, late: &str) -> Vec<Result<(), Error>> {
        let answer = |(record, state): (&Record, State)| match state {
            State::Done(Ok(())) => Ok(()),
            State::Done(Err(why)) => Err(failure(record, &why, late)),
            State::Sent(_) => Err(Error::Broker(late.to_owned())),
            State::Unsent => Err(Error::Broker("not sent, because another one failed".into())),
        };
        self.records.iter().zip(self.states).map(answer).collect()
    }
}

impl State {
    /// Waits for the report; whether it came.
    async fn settle(&mut self, ends: Instant) -> bool {
        if let Self::Sent(report) = self {
            let Ok(report) = timeout_at(ends, report).await else {
                return false;
            };
            *self = Self::Done(match report {
                Ok(report) => report.map(drop).map_err(|(why, _)| why),
                Err(_) => Err(KafkaError::Canceled),
            });
        }
        true
    }
}

/// Why `record` wasn't delivered, and what to do.
fn failure(record: &Record, why: &KafkaError, late: &str) -> Error {
    let Record { topic, event } = record;
    let id = &event.attributes.id;
    match why.rdkafka_error_code() {
        Some(Code::MessageSizeTooLarge) => Error::Event(format!(
            "{id} has {} bytes, more than the topic `{topic}` takes: raise the topic's \
             `max.message.bytes`",
            event.data.len()
        )),
        Some(Code::InvalidTopic | Code::InvalidRecord | Code::InvalidMessage) => {
            Error::Event(format!("{id} can't be published to `{topic}`: {why}"))
        }
        Some(Code::UnknownTopic | Code::UnknownTopicOrPartition) => Error::Topic {
            topic: topic.clone(),
            cause: "it isn't there, and the broker doesn't make it by itself: create it".into(),
        },
        Some(Code::TopicAuthorizationFailed) => Error::Topic {
            topic: topic.clone(),
            cause: "no right to write to it: grant it on the broker".into(),
        },
        Some(Code::PurgeQueue | Code::PurgeInflight) => Error::Broker(late.to_owned()),
        _ => match why {
            KafkaError::Nul(_) => {
                Error::Event(format!("{id}: `{topic}` can't be the name of a topic"))
            }
            _ => Error::Broker(format!("to the topic `{topic}`: {why}")),
        },
    }
}

fn fail_all(records: &[Record], why: &str) -> Vec<Result<(), Error>> {
    let failed = |_| Err(Error::Broker(why.to_owned()));
    records.iter().map(failed).collect()
}
