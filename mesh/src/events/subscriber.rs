//! Consumes events, each with its effect once: the effect and the mark in the
//! inbox are one transaction.
//!
//! What fails is tried again, later each time, and then goes to the dead
//! letters. Meanwhile those of its key wait, and no others.

use std::{collections::HashSet, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::FutureExt as _;
use opentelemetry::metrics::Counter;
use sea_orm::{DatabaseTransaction, TransactionTrait as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{
    DEAD_LETTERS, Event, Outbox, Outgoing, UNDECODABLE,
    broker::{Broker, Consumer, Delivery, Undecodable},
    event::Attributes,
    hand::Hand,
    inbox::{forget, mark_buried, mark_handled, mark_new, place},
    lag,
};
use crate::{
    Error,
    backoff::jittered,
    telemetry::trace::{self, Kind},
};

/// How many deliveries are taken, and handled in one transaction, at once.
const BATCH: usize = 256;
/// How often an event is tried before it goes to the dead letters.
const ATTEMPTS: u32 = 5;
/// How many marks too old go for each event that is handled.
const FORGOTTEN_PER_EVENT: u64 = 4;
/// How long effects may take, unless they are given less.
const EFFECT_LIMIT: Duration = Duration::from_secs(5);
/// After how long a transaction takes no more: with the last effect it is still
/// within what the store gives it.
const ENOUGH: Duration = Duration::from_secs(3);
/// How long to wait when the database or the broker fails, and when it goes on
/// failing.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The effect of an event.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Has its effect inside `tx`, in which the event is also marked as handled.
    ///
    /// # Errors
    /// Anything; nothing is kept then, and the event is tried again, and after
    /// some attempts goes to the dead letters.
    async fn handle(
        &self,
        tx: &DatabaseTransaction,
        topic: &str,
        event: &Event,
    ) -> Result<(), Error>;

    /// The messages it reads, by their full names. Events of other versions of these
    /// are converted, where the setting `mappings` has a way; unless it names any,
    /// it gets events as they are.
    fn reads(&self) -> &[&str] {
        &[]
    }

    /// Whether [`Handler::handle_all`] does better than one after the other. Only
    /// then is it called.
    fn handles_many(&self) -> bool {
        false
    }

    /// As [`Handler::handle`], for many events with their topics, in order, as by
    /// one statement for all. After an error each of them is handled alone.
    ///
    /// # Errors
    /// Anything; nothing of any is kept then.
    async fn handle_all(
        &self,
        tx: &DatabaseTransaction,
        events: &[(&str, &Event)],
    ) -> Result<(), Error> {
        for (topic, event) in events {
            self.handle(tx, topic, event).await?;
        }
        Ok(())
    }
}

/// A consumer of the topics that match a pattern.
pub struct Subscriber {
    service: Arc<str>,
    pattern: String,
    handler: Arc<dyn Handler>,
    outbox: Outbox,
    broker: Arc<dyn Broker>,
    letters: Counter<u64>,
    /// How long the effect of one event may take, and that of many together.
    pub(super) effect_limit: Duration,
}

impl Subscriber {
    /// Consumes what matches `pattern`, as the group `service`.
    pub fn new(
        service: &str,
        pattern: impl Into<String>,
        handler: Arc<dyn Handler>,
        outbox: Outbox,
        broker: Arc<dyn Broker>,
    ) -> Self {
        let letters = opentelemetry::global::meter("omnibridge")
            .u64_counter("omni.consumer.dead_letters")
            .with_description("Events that went to the dead letters")
            .build();
        let (service, pattern, effect_limit) = (service.into(), pattern.into(), EFFECT_LIMIT);
        Self { service, pattern, handler, outbox, broker, letters, effect_limit }
    }

    /// Consumes until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let (service, pattern) = (self.service.clone(), self.pattern.clone());
        let (broker, letters) = (self.broker.clone(), self.letters.clone());
        let report = lag::report(service, self.group(), pattern, broker, letters, stop.clone());
        tokio::join!(report, async {
            tokio::select! {
                () = self.consume() => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// A group's name: each pattern of a service is read on its own.
    fn group(&self) -> String {
        format!("{}.{}", self.service, self.pattern.trim_end_matches(['*', '.']))
    }

    async fn consume(&self) {
        let (mut pause, mut hand, mut consumer) = (FIRST_PAUSE, Hand::default(), None);
        loop {
            match self.step(&mut consumer, &mut hand).await {
                Ok(()) => pause = FIRST_PAUSE,
                Err(why) => {
                    tracing::warn!(
                        service = %self.service, pattern = self.pattern, %why, "consuming waits",
                    );
                    tokio::time::sleep(jittered(pause)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Handles what is ready, or waits for it. After an error everything is still
    /// in hand.
    async fn step(
        &self,
        consumer: &mut Option<Box<dyn Consumer>>,
        hand: &mut Hand,
    ) -> Result<(), Error> {
        let consumer = match consumer {
            Some(consumer) => consumer,
            None => consumer.insert(self.broker.subscribe(&self.group(), &self.pattern).await?),
        };
        let ready = hand.ready(Instant::now(), BATCH);
        if ready.is_empty() {
            match hand.next_due() {
                None => hand.take(consumer.next(BATCH).await?),
                Some(due) => tokio::select! {
                    next = consumer.next(BATCH), if hand.has_room() => hand.take(next?),
                    () = tokio::time::sleep_until(due) => {}
                },
            }
            return Ok(());
        }
        let (mut done, mut burial) = (Vec::new(), Ok(()));
        let together =
            self.handler.handles_many() && ready.iter().all(|delivery| !hand.has_failed(delivery));
        for (index, failure) in self.handle(&ready, together).await? {
            let delivery = &*ready[index];
            if let Some(why) = failure {
                match self.give_up(hand, delivery, &why).await {
                    Ok(true) => {}
                    Ok(false) => continue,
                    Err(why) => {
                        burial = Err(why);
                        continue;
                    }
                }
            }
            hand.settled(delivery);
            done.push(delivery);
        }
        consumer.commit(&done).await?;
        burial
    }

    /// Handles `deliveries`: `together`, if so; else, or where that fails, one by
    /// one, the first of them, as many as fit into a transaction's time. Answers
    /// which were handled, by their index, and why they failed; behind a failure
    /// those of its key are passed over.
    async fn handle(
        &self,
        deliveries: &[Arc<Delivery>],
        together: bool,
    ) -> Result<Vec<(usize, Option<Error>)>, Error> {
        let handled = match self.transaction(deliveries.to_vec(), together).await {
            Err(Undone::Late(_)) if together => self.transaction(deliveries.to_vec(), false).await,
            handled => handled,
        };
        match handled {
            Ok(outcomes) => Ok(outcomes),
            Err(Undone::By(why)) => Err(why),
            // It took those before it along, which are to be handled without it.
            Err(Undone::Late(late)) => {
                let before = self.transaction(deliveries[..late].to_vec(), false).await;
                let mut outcomes = match before {
                    Ok(outcomes) => outcomes,
                    Err(Undone::By(why)) => return Err(why),
                    // One of these was late this time; all come again.
                    Err(Undone::Late(_)) => return Ok(vec![]),
                };
                let all = outcomes.len() == late && outcomes.iter().all(|(_, why)| why.is_none());
                if all {
                    let why = format!("its effect took longer than {:?}", self.effect_limit);
                    outcomes.push((late, Some(Error::Event(why))));
                }
                Ok(outcomes)
            }
        }
    }

    async fn transaction(
        &self,
        deliveries: Vec<Arc<Delivery>>,
        together: bool,
    ) -> Result<Vec<(usize, Option<Error>)>, Undone> {
        let (service, group) = (self.service.clone(), self.group());
        let (handler, limit) = (self.handler.clone(), self.effect_limit);
        let work = self.outbox.store().transaction(move |tx| {
            Box::pin(async move {
                forget(tx, FORGOTTEN_PER_EVENT * deliveries.len() as u64).await?;
                let effects =
                    Effects { service: &service, group: &group, handler: &*handler, limit };
                if together && effects.of_all(tx, &deliveries).await? {
                    return Ok((0..deliveries.len()).map(|index| (index, None)).collect());
                }
                effects.one_by_one(tx, &deliveries).await
            })
        });
        work.await
    }

    /// Takes note of a failure; `true` where it was the last, and the delivery is
    /// in the dead letters.
    async fn give_up(
        &self,
        hand: &mut Hand,
        delivery: &Delivery,
        why: &Error,
    ) -> Result<bool, Error> {
        let attempt = hand.failed(delivery, Instant::now());
        let hopeless = delivery.event.is_err()
            || matches!(why, Error::Schema { .. } | Error::Conversion { .. });
        let last = attempt >= ATTEMPTS || hopeless;
        if attempt == 1 || last {
            tracing::warn!(
                service = %self.service, topic = delivery.topic, partition = delivery.partition,
                offset = delivery.offset, attempt, dead = last, %why, "an event failed",
            );
        }
        if last {
            self.bury(delivery, why, attempt).await?;
        }
        Ok(last)
    }

    /// Puts a delivery into the dead letters, by way of the outbox.
    async fn bury(&self, delivery: &Delivery, why: &Error, attempts: u32) -> Result<(), Error> {
        let letter = dead_letter(delivery, &self.group(), why, attempts);
        let (outbox, group, place) = (self.outbox.clone(), self.group(), place(delivery));
        let attributes = letter.attributes.clone();
        let burial = self.outbox.store().transaction(move |tx| {
            Box::pin(async move {
                if !mark_buried(tx, &group, &attributes, place).await? {
                    return Ok(false);
                }
                outbox.add(tx, vec![letter]).await?;
                Ok::<_, Error>(true)
            })
        });
        if burial.await? {
            lag::letters(&self.letters, &self.service, &self.group(), &delivery.topic, 1);
        }
        Ok(())
    }
}

/// Why nothing of a transaction was kept.
enum Undone {
    /// The effect of the delivery of this index took too long.
    Late(usize),
    By(Error),
}

impl From<Error> for Undone {
    fn from(why: Error) -> Self {
        Self::By(why)
    }
}

/// The effects of deliveries, inside a transaction.
struct Effects<'a> {
    service: &'a str,
    group: &'a str,
    handler: &'a dyn Handler,
    limit: Duration,
}

impl Effects<'_> {
    /// Handles all in one savepoint; `false`, and nothing is kept, where that fails,
    /// or can't be.
    async fn of_all(
        &self,
        tx: &DatabaseTransaction,
        deliveries: &[Arc<Delivery>],
    ) -> Result<bool, Undone> {
        let events = deliveries.iter().map(|of| Some((&*of.topic, of.event.as_ref().ok()?)));
        let Some(events) = events.collect::<Option<Vec<(&str, &Event)>>>() else {
            return Ok(false);
        };
        let attributes: Vec<_> = events.iter().map(|(_, event)| &event.attributes).collect();
        let savepoint = tx.begin().await.map_err(Error::from)?;
        let effects = async {
            let Some(new) = mark_new(&savepoint, self.group, &attributes).await? else {
                return Ok(false);
            };
            let new: Vec<_> = new.into_iter().map(|index| events[index]).collect();
            let _spans: Vec<_> =
                new.iter().map(|(topic, of)| span(self.service, topic, of)).collect();
            if !new.is_empty() {
                caught(self.handler.handle_all(&savepoint, &new)).await?;
            }
            Ok(true)
        };
        let outcome: Result<bool, Error> = match tokio::time::timeout(self.limit, effects).await {
            Ok(outcome) => outcome,
            // What it was doing may not be over.
            Err(_) => return Err(Undone::Late(0)),
        };
        match crate::store::end_savepoint(savepoint, outcome).await {
            Err(why) if !why.is_passing() => Ok(false),
            outcome => Ok(outcome?),
        }
    }

    /// Handles each in a savepoint of its own, until time is up.
    async fn one_by_one(
        &self,
        tx: &DatabaseTransaction,
        deliveries: &[Arc<Delivery>],
    ) -> Result<Vec<(usize, Option<Error>)>, Undone> {
        let (mut outcomes, mut held) = (Vec::new(), HashSet::new());
        let begun = Instant::now();
        for (index, delivery) in deliveries.iter().enumerate() {
            if begun.elapsed() > ENOUGH {
                break;
            }
            if !held.is_empty() && held.contains(&delivery.key()) {
                continue;
            }
            let effect = self.of_one(tx, delivery);
            let failure = match tokio::time::timeout(self.limit, effect).await {
                Ok(Ok(())) => None,
                // Nobody's fault here: all is to be tried again.
                Ok(Err(why)) if why.is_passing() => return Err(Undone::By(why)),
                Ok(Err(why)) => Some(why),
                // What it was doing may not be over.
                Err(_) => return Err(Undone::Late(index)),
            };
            if failure.is_some() {
                held.insert(delivery.key());
            }
            outcomes.push((index, failure));
        }
        Ok(outcomes)
    }

    /// Handles one delivery in a savepoint of its own.
    async fn of_one(&self, tx: &DatabaseTransaction, delivery: &Delivery) -> Result<(), Error> {
        let event = delivery.event.as_ref().map_err(|why| Error::Event(why.why.clone()))?;
        let span = span(self.service, &delivery.topic, event);
        let effect = async {
            let savepoint = tx.begin().await?;
            let outcome = match mark_handled(&savepoint, self.group, &event.attributes, delivery)
                .await
            {
                Ok(true) => caught(self.handler.handle(&savepoint, &delivery.topic, event)).await,
                Ok(false) => Ok(()),
                Err(why) => Err(why),
            };
            crate::store::end_savepoint(savepoint, outcome).await
        };
        effect.instrument(span).await
    }
}

/// A handler's outcome; its panic is a failure of the event at hand. Uncaught it
/// would take along what others write in the same transaction.
async fn caught(effect: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    let ended = AssertUnwindSafe(effect).catch_unwind().await;
    ended.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<&str>().copied();
        let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(Error::Event(format!("its handler panicked: {}", said.unwrap_or("no message"))))
    })
}

fn span(service: &str, topic: &str, event: &Event) -> tracing::Span {
    let parent = trace::parse(&event.attributes.traceparent);
    trace::child(service, Kind::Consumer, &format!("consume {topic}"), parent.as_ref())
}

/// Why, short enough and such that a header can hold it: it may quote the event.
fn reason(why: &Error) -> String {
    let plain = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    why.to_string().chars().take(1024).map(plain).collect()
}

/// The letter that says why, where, how often, and keeps the bytes.
fn dead_letter(delivery: &Delivery, group: &str, why: &Error, attempts: u32) -> Outgoing {
    let Delivery { topic, partition, offset, event } = delivery;
    let mut event = match event {
        Ok(event) => event.clone(),
        Err(Undecodable { data, .. }) => Event {
            attributes: Attributes {
                id: place(delivery),
                source: format!("/topics/{topic}"),
                kind: UNDECODABLE.into(),
                subject: String::new(),
                time: chrono::Utc::now(),
                datacontenttype: "application/octet-stream".into(),
                dataschema: String::new(),
                correlationid: place(delivery),
                causationid: String::new(),
                traceparent: String::new(),
                extensions: Default::default(),
            },
            data: data.clone(),
        },
    };
    event.attributes.extensions.extend([
        ("dlqreason".to_owned(), reason(why)),
        ("dlqtopic".to_owned(), topic.clone()),
        ("dlqpartition".to_owned(), partition.to_string()),
        ("dlqoffset".to_owned(), offset.to_string()),
        ("dlqgroup".to_owned(), group.to_owned()),
        ("dlqattempts".to_owned(), attempts.to_string()),
        ("dlqtime".to_owned(), chrono::Utc::now().to_rfc3339()),
    ]);
    Outgoing::new(format!("{DEAD_LETTERS}{topic}"), event)
}
