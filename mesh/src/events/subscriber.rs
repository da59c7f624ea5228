//! Consumes events, each with its effect once: the effect and the mark in the
//! inbox are one transaction.
//!
//! What fails is tried again, later each time, and then goes to the dead
//! letters. Meanwhile those of its key wait, and no others.

use std::{collections::HashSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use sea_orm::{
    ActiveValue, ColumnTrait as _, DatabaseTransaction, EntityTrait as _, ExprTrait as _,
    QueryFilter as _, QueryOrder as _, QuerySelect as _, TryInsertResult,
    prelude::DateTimeUtc,
    sea_query::{Expr, OnConflict},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{
    DEAD_LETTERS, Event, Outbox, Outgoing, RETENTION, UNDECODABLE,
    broker::{Broker, Consumer, Delivery, Undecodable},
    event::Attributes,
    hand::Hand,
    lag,
};
use crate::{
    Error,
    backoff::jittered,
    telemetry::trace::{self, Kind},
};

/// The table `inbox`.
pub(super) mod mark {
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
        pub buried_at: Option<String>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// How many deliveries are taken, and handled in one transaction, at once.
const BATCH: usize = 256;
/// How often an event is tried before it goes to the dead letters.
const ATTEMPTS: u32 = 5;
/// How long it is remembered that an event was handled: longer than its topic can
/// bring it again, or a replay of its dead letter. A week more, for Kafka deletes
/// by whole segments.
const REMEMBERED: Duration =
    RETENTION.saturating_mul(2).saturating_add(Duration::from_secs(7 * 24 * 60 * 60));
/// How many marks too old go for each event that is handled.
const FORGOTTEN_PER_EVENT: u64 = 4;
/// How long the effect of one event may take.
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
        let (service, broker) = (self.service.clone(), self.broker.clone());
        tokio::join!(lag::report(service, self.group(), broker, stop.clone()), async {
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
        for (index, failure) in self.handle(&ready).await? {
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

    /// Handles the first of `deliveries`, as many as fit into a transaction's
    /// time. Answers which were handled, by their index, and why they failed;
    /// behind a failure those of its key are passed over.
    async fn handle(
        &self,
        deliveries: &[Arc<Delivery>],
    ) -> Result<Vec<(usize, Option<Error>)>, Error> {
        match self.transaction(deliveries.to_vec()).await {
            Ok(outcomes) => Ok(outcomes),
            Err(Undone::By(why)) => Err(why),
            // It took those before it along, which are to be handled without it.
            Err(Undone::Late(late)) => {
                let before = self.transaction(deliveries[..late].to_vec()).await;
                let mut outcomes = match before {
                    Ok(outcomes) => outcomes,
                    Err(Undone::By(why)) => return Err(why),
                    // One of these was late this time; all come again.
                    Err(Undone::Late(_)) => return Ok(vec![]),
                };
                let all = outcomes.len() == late && outcomes.iter().all(|(_, why)| why.is_none());
                if all {
                    let why = format!("its effect took longer than {EFFECT_LIMIT:?}");
                    outcomes.push((late, Some(Error::Event(why))));
                }
                Ok(outcomes)
            }
        }
    }

    async fn transaction(
        &self,
        deliveries: Vec<Arc<Delivery>>,
    ) -> Result<Vec<(usize, Option<Error>)>, Undone> {
        let (service, group) = (self.service.clone(), self.group());
        let handler = self.handler.clone();
        let work = self.outbox.store().transaction(move |tx| {
            Box::pin(async move {
                forget(tx, FORGOTTEN_PER_EVENT * deliveries.len() as u64).await?;
                let (mut outcomes, mut held) = (Vec::new(), HashSet::new());
                let begun = Instant::now();
                for (index, delivery) in deliveries.iter().enumerate() {
                    if begun.elapsed() > ENOUGH {
                        break;
                    }
                    if !held.is_empty() && held.contains(&delivery.key()) {
                        continue;
                    }
                    let effect = one(tx, &service, &group, handler.as_ref(), delivery);
                    let failure = match tokio::time::timeout(EFFECT_LIMIT, effect).await {
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
        let last = attempt >= ATTEMPTS || delivery.event.is_err();
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
        let attributes = delivery.event.as_ref().ok().map(|event| event.attributes.clone());
        self.outbox
            .store()
            .transaction(move |tx| {
                Box::pin(async move {
                    if let Some(attributes) = attributes
                        && !mark_buried(tx, &group, &attributes, place).await?
                    {
                        return Ok(());
                    }
                    outbox.add(tx, vec![letter]).await
                })
            })
            .await
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

/// Handles one delivery in a savepoint of its own.
async fn one(
    tx: &DatabaseTransaction,
    service: &str,
    group: &str,
    handler: &dyn Handler,
    delivery: &Delivery,
) -> Result<(), Error> {
    use sea_orm::TransactionTrait as _;
    let event = delivery.event.as_ref().map_err(|why| Error::Event(why.why.clone()))?;
    let parent = trace::parse(&event.attributes.traceparent);
    let name = format!("consume {}", delivery.topic);
    let span = trace::child(service, Kind::Consumer, &name, parent.as_ref());
    let effect = async {
        let savepoint = tx.begin().await?;
        let outcome = match mark_handled(&savepoint, group, &event.attributes, delivery).await {
            Ok(true) => handler.handle(&savepoint, &delivery.topic, event).await,
            Ok(false) => Ok(()),
            Err(why) => Err(why),
        };
        crate::store::end_savepoint(savepoint, outcome).await
    };
    effect.instrument(span).await
}

/// Marks an event as handled by `group`; `false` where it was before. What is in
/// the dead letters is handled when it comes again from another place: as a
/// replay.
pub(super) async fn mark_handled(
    tx: &DatabaseTransaction,
    group: &str,
    attributes: &Attributes,
    delivery: &Delivery,
) -> Result<bool, Error> {
    let mark = mark(group, attributes, None);
    let insert =
        mark::Entity::insert(mark).on_conflict_do_nothing().exec_without_returning(tx).await?;
    if matches!(insert, TryInsertResult::Inserted(n) if n > 0) {
        return Ok(true);
    }
    let id = (group.to_owned(), attributes.source.clone(), attributes.id.clone());
    let found = mark::Entity::find_by_id(id).one(tx).await?;
    let Some(found) = found.filter(|mark| mark.buried_at.is_some()) else { return Ok(false) };
    if found.buried_at.as_deref() == Some(&*place(delivery)) {
        return Ok(false);
    }
    let mut found: mark::ActiveModel = found.into();
    found.buried_at = ActiveValue::Set(None);
    found.handled_at = ActiveValue::Set(chrono::Utc::now());
    mark::Entity::update(found).exec(tx).await?;
    Ok(true)
}

/// Marks an event as being in the dead letters, from `place`; `false` where it
/// has been handled meanwhile.
pub(super) async fn mark_buried(
    tx: &DatabaseTransaction,
    group: &str,
    attributes: &Attributes,
    place: String,
) -> Result<bool, Error> {
    let again =
        OnConflict::columns([mark::Column::Consumer, mark::Column::Source, mark::Column::EventId])
            .update_columns([mark::Column::BuriedAt, mark::Column::HandledAt])
            .action_and_where(Expr::col((mark::Entity, mark::Column::BuriedAt)).is_not_null())
            .to_owned();
    let insert = mark::Entity::insert(mark(group, attributes, Some(place)))
        .on_conflict(again)
        .exec_without_returning(tx)
        .await?;
    Ok(insert > 0)
}

fn mark(group: &str, attributes: &Attributes, buried_at: Option<String>) -> mark::ActiveModel {
    mark::ActiveModel {
        consumer: ActiveValue::Set(group.to_owned()),
        source: ActiveValue::Set(attributes.source.clone()),
        event_id: ActiveValue::Set(attributes.id.clone()),
        handled_at: ActiveValue::Set(chrono::Utc::now()),
        buried_at: ActiveValue::Set(buried_at),
    }
}

/// Deletes up to `limit` of the oldest marks, those that are older than they need
/// be. It goes along with the work, so that no writer waits long.
pub(super) async fn forget(tx: &DatabaseTransaction, limit: u64) -> Result<(), Error> {
    let old = mark::Entity::find()
        .select_only()
        .column(mark::Column::HandledAt)
        .filter(mark::Column::HandledAt.lt(chrono::Utc::now() - REMEMBERED))
        .order_by_asc(mark::Column::HandledAt)
        .limit(limit)
        .into_tuple::<DateTimeUtc>()
        .all(tx)
        .await?;
    if let Some(last) = old.last() {
        mark::Entity::delete_many().filter(mark::Column::HandledAt.lte(*last)).exec(tx).await?;
    }
    Ok(())
}

/// Where a record is in its topic.
pub(super) fn place(delivery: &Delivery) -> String {
    format!("{}/{}/{}", delivery.topic, delivery.partition, delivery.offset)
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
        ("dlqreason".to_owned(), why.to_string().chars().take(1024).collect()),
        ("dlqtopic".to_owned(), topic.clone()),
        ("dlqpartition".to_owned(), partition.to_string()),
        ("dlqoffset".to_owned(), offset.to_string()),
        ("dlqgroup".to_owned(), group.to_owned()),
        ("dlqattempts".to_owned(), attempts.to_string()),
        ("dlqtime".to_owned(), chrono::Utc::now().to_rfc3339()),
    ]);
    Outgoing::new(format!("{DEAD_LETTERS}{topic}"), event)
}
