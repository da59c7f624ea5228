//! Consumes events, each with its effect once: the effect and the mark in the
//! inbox are one transaction.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sea_orm::{ActiveValue, DatabaseTransaction, EntityTrait as _, TryInsertResult};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{
    Event, Outbox, Outgoing,
    broker::{Broker, Consumer, Delivery, Undecodable},
    event::Attributes,
};
use crate::{
    Error,
    telemetry::trace::{self, Kind},
};

/// The table `inbox`.
mod mark {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "inbox")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub consumer: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub source: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub event_id: String,
        pub handled_at: DateTimeUtc,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// How many deliveries are taken at once.
const BATCH: usize = 256;
/// How often an event is tried before it goes to the dead letters.
const ATTEMPTS: u32 = 5;
/// How long to wait after a first failure, and after many.
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
}

/// A consumer of the topics that match a pattern.
pub struct Subscriber {
    service: Arc<str>,
    pattern: String,
    handler: Arc<dyn Handler>,
    outbox: Outbox,
    broker: Arc<dyn Broker>,
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
        Self { service: service.into(), pattern: pattern.into(), handler, outbox, broker }
    }

    /// Consumes until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        while !stop.is_cancelled() {
            let worked = tokio::select! {
                worked = self.consume(&mut pause) => worked,
                () = stop.cancelled() => return,
            };
            if let Err(why) = worked {
                tracing::warn!(service = %self.service, pattern = self.pattern, %why, "consuming waits");
                tokio::select! {
                    () = tokio::time::sleep(jittered(pause)) => {}
                    () = stop.cancelled() => return,
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// A group's name: each pattern of a service is read on its own.
    fn group(&self) -> String {
        format!("{}.{}", self.service, self.pattern.trim_end_matches(['*', '.']))
    }

    async fn consume(&self, pause: &mut Duration) -> Result<(), Error> {
        let mut consumer = self.broker.subscribe(&self.group(), &self.pattern).await?;
        loop {
            let deliveries: Arc<[Delivery]> = consumer.next(BATCH).await?.into();
            *pause = FIRST_PAUSE;
            self.handle(consumer.as_mut(), deliveries).await?;
        }
    }

    /// Handles `deliveries` in order. One that fails holds back those behind
    /// it, so that the order of its key stays.
    async fn handle(
        &self,
        consumer: &mut dyn Consumer,
        deliveries: Arc<[Delivery]>,
    ) -> Result<(), Error> {
        let (mut from, mut attempt) = (0, 1);
        while from < deliveries.len() {
            let done = self.handle_from(deliveries.clone(), from).await?;
            if done.next > from {
                consumer.commit(&deliveries[from..done.next]).await?;
                attempt = 1;
            }
            from = done.next;
            let Some(why) = done.failed else { continue };
            let delivery = &deliveries[from];
            tracing::warn!(
                service = %self.service, topic = delivery.topic, offset = delivery.offset,
                attempt, %why, "an event failed",
            );
            if attempt < ATTEMPTS && delivery.event.is_ok() {
                tokio::time::sleep(jittered(FIRST_PAUSE * 2u32.pow(attempt))).await;
                attempt += 1;
            } else {
                self.bury(delivery, &why, attempt).await?;
                consumer.commit(&deliveries[from..=from]).await?;
                (from, attempt) = (from + 1, 1);
            }
        }
        Ok(())
    }

    /// Handles as many as go, beginning with `from`, in one transaction.
    async fn handle_from(&self, deliveries: Arc<[Delivery]>, from: usize) -> Result<Done, Error> {
        let (service, group) = (self.service.clone(), self.group());
        let handler = self.handler.clone();
        let work = self.outbox.store().transaction(move |tx| {
            Box::pin(async move {
                let mut next = from;
                for delivery in &deliveries[from..] {
                    let outcome = match &delivery.event {
                        Ok(event) => {
                            let parent = trace::parse(&event.attributes.traceparent);
                            let name = format!("consume {}", delivery.topic);
                            let span =
                                trace::child(&service, Kind::Consumer, &name, parent.as_ref());
                            one(tx, &group, handler.as_ref(), &delivery.topic, event)
                                .instrument(span)
                                .await
                        }
                        Err(why) => Err(Error::Event(why.why.clone())),
                    };
                    match outcome {
                        Ok(()) => next += 1,
                        Err(why) => return Ok::<_, Error>(Done { next, failed: Some(why) }),
                    }
                }
                Ok(Done { next, failed: None })
            })
        });
        work.await
    }

    /// Puts a delivery into the dead letters, by way of the outbox.
    async fn bury(&self, delivery: &Delivery, why: &Error, attempts: u32) -> Result<(), Error> {
        let letter = dead_letter(delivery, &self.group(), why, attempts);
        let (outbox, group) = (self.outbox.clone(), self.group());
        let mark = delivery.event.as_ref().ok().map(|event| event.attributes.clone());
        self.outbox
            .store()
            .transaction(move |tx| {
                Box::pin(async move {
                    if let Some(attributes) = mark
                        && !mark_handled(tx, &group, &attributes).await?
                    {
                        return Ok(());
                    }
                    outbox.add(tx, vec![letter]).await
                })
            })
            .await
    }
}

struct Done {
    /// The first delivery that wasn't handled.
    next: usize,
    /// Why it wasn't.
    failed: Option<Error>,
}

/// Handles one event in a savepoint of its own.
async fn one(
    tx: &DatabaseTransaction,
    group: &str,
    handler: &dyn Handler,
    topic: &str,
    event: &Event,
) -> Result<(), Error> {
    use sea_orm::TransactionTrait as _;
    let savepoint = tx.begin().await?;
    let outcome = match mark_handled(&savepoint, group, &event.attributes).await {
        Ok(true) => handler.handle(&savepoint, topic, event).await,
        Ok(false) => Ok(()),
        Err(why) => Err(why),
    };
    crate::store::end_savepoint(savepoint, outcome).await
}

/// Marks an event as handled by `group`; `false` where it was before.
async fn mark_handled(
    tx: &DatabaseTransaction,
    group: &str,
    attributes: &Attributes,
) -> Result<bool, Error> {
    let mark = mark::ActiveModel {
        consumer: ActiveValue::Set(group.to_owned()),
        source: ActiveValue::Set(attributes.source.clone()),
        event_id: ActiveValue::Set(attributes.id.clone()),
        handled_at: ActiveValue::Set(chrono::Utc::now()),
    };
    let insert =
        mark::Entity::insert(mark).on_conflict_do_nothing().exec_without_returning(tx).await?;
    Ok(matches!(insert, TryInsertResult::Inserted(n) if n > 0))
}

/// The letter that says why, where, how often, and keeps the bytes.
fn dead_letter(delivery: &Delivery, group: &str, why: &Error, attempts: u32) -> Outgoing {
    let Delivery { topic, partition, offset, event } = delivery;
    let mut event = match event {
        Ok(event) => event.clone(),
        Err(Undecodable { data, .. }) => Event {
            attributes: Attributes {
                id: format!("{topic}/{partition}/{offset}"),
                source: format!("/topics/{topic}"),
                kind: "undecodable".into(),
                subject: String::new(),
                time: chrono::Utc::now(),
                datacontenttype: "application/octet-stream".into(),
                dataschema: String::new(),
                correlationid: format!("{topic}/{partition}/{offset}"),
                causationid: String::new(),
                traceparent: String::new(),
                extensions: Default::default(),
            },
            data: data.clone(),
        },
    };
    event.attributes.extensions.extend([
        ("dlqreason".to_owned(), why.to_string().chars().take(1024).collect()),
        ("dlqtopic".to_owned(), topic.clone()),
        ("dlqpartition".to_owned(), partition.to_string()),
        ("dlqoffset".to_owned(), offset.to_string()),
        ("dlqgroup".to_owned(), group.to_owned()),
        ("dlqattempts".to_owned(), attempts.to_string()),
        ("dlqtime".to_owned(), chrono::Utc::now().to_rfc3339()),
    ]);
    Outgoing::new(format!("dlq.{topic}"), event)
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.5..1.0))
}
