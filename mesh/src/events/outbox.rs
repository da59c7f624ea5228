//! Events on their way out, kept in the transaction of the state they report.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use futures::TryStreamExt as _;
use opentelemetry::metrics::Counter;
use sea_orm::{
    ActiveValue, ColumnTrait as _, Condition, ConnectionTrait, DatabaseTransaction, DbBackend,
    EntityTrait, ExprTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    entity::prelude::*,
    sea_query::{Alias, Query},
};

use super::{
    Event,
    broker::Record,
    event::Attributes,
    waiting::{Load, Waiting},
};
use crate::{Error, config::OutboxConfig, store::Store, telemetry::label};

/// The table `outbox`.
mod row {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "outbox")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub seq: i64,
        pub topic: String,
        pub attributes: String,
        pub data: Option<Vec<u8>>,
        pub body_of: Option<String>,
        pub bytes: i64,
        pub set_aside: Option<String>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Where an outgoing event's body is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// In the event.
    Own(Bytes),
    /// In the service's own table: a body is stored once.
    Stored {
        /// The id of its row.
        id: String,
        /// How long it is.
        bytes: usize,
    },
}

/// An event to be added to the outbox.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The topic it goes to.
    pub topic: String,
    /// What it says about itself.
    pub attributes: Attributes,
    /// Its body.
    pub body: Body,
}

impl Outgoing {
    /// An event that brings its own body.
    pub fn new(topic: impl Into<String>, event: Event) -> Self {
        Self { topic: topic.into(), attributes: event.attributes, body: Body::Own(event.data) }
    }
}

/// The table and columns in which a service stores bodies itself.
#[derive(Clone, Copy, Debug)]
pub struct Bodies {
    /// The table.
    pub table: &'static str,
    /// The column of the id by which [`Body::Stored`] names it.
    pub id: &'static str,
    /// The column of the bytes.
    pub body: &'static str,
}

/// The outbox of one service. Clones are the same outbox.
#[derive(Clone)]
pub struct Outbox {
    store: Arc<Store>,
    bodies: Option<Bodies>,
    limits: Arc<OutboxConfig>,
    waiting: Arc<Waiting>,
    dropped: Counter<u64>,
}

/// How many bytes of bodies are read at once, and one body more: those of a whole
/// batch need not fit into memory.
const BATCH_BYTES: i64 = 4 * 1024 * 1024;
/// How many events are dropped at once to make room for bytes.
const DROP_AT_ONCE: u64 = 20_000;

/// An event that waits in the outbox.
pub(super) struct Pending {
    pub(super) seq: i64,
    /// The record; an error where the row can't be read as one.
    pub(super) record: Result<Record, Error>,
}

impl Outbox {
    /// The outbox of `service` in `store`.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn open(
        service: &'static str,
        store: Arc<Store>,
        bodies: Option<Bodies>,
        limits: OutboxConfig,
    ) -> Result<Self, Error> {
        let dropped = opentelemetry::global::meter("omnibridge")
            .u64_counter("omni.outbox.dropped")
            .with_description("Events dropped to make room for later ones of their topic")
            .build();
        let waiting = Waiting::new(service, &limits);
        let outbox = Self { store, bodies, limits: limits.into(), waiting, dropped };
        outbox.count().await?;
        Ok(outbox)
    }

    /// The database it is in.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// How many events wait; those of other processes as of the last count.
    pub fn pending(&self) -> u64 {
        self.waiting.now().events
    }

    /// Adds events inside `tx`: they go out if and only if it commits.
    ///
    /// # Errors
    /// [`Error::OutboxFull`] when a limit is reached; [`Error::Event`] for one that
    /// no consumer would take; or the database's.
    pub async fn add(&self, tx: &DatabaseTransaction, events: Vec<Outgoing>) -> Result<(), Error> {
        if events.is_empty() {
            return Ok(());
        }
        self.make_room(tx, &events).await?;
        if tx.get_database_backend() == DbBackend::Postgres {
            // Numbers are given before they commit: without this lock a smaller
            // one could appear behind the relay's back.
            tx.execute_unprepared(
                "SELECT pg_advisory_xact_lock(hashtext(current_schema()), hashtext('outbox'))",
            )
            .await?;
        }
        let count = events.len() as u64;
        let (mut rows, mut added) = (Vec::with_capacity(events.len()), 0);
        for event in events {
            event.attributes.check()?;
            let attributes = serde_json::to_string(&event.attributes)
                .map_err(|why| Error::Event(why.to_string()))?;
            let bytes = event.body.len() as u64;
            added += bytes;
            let (data, body_of) = match event.body {
                Body::Own(data) => (Some(data.to_vec()), None),
                Body::Stored { id, .. } => (None, Some(id)),
            };
            rows.push(row::ActiveModel {
                seq: ActiveValue::NotSet,
                topic: ActiveValue::Set(event.topic),
                attributes: ActiveValue::Set(attributes),
                data: ActiveValue::Set(data),
                body_of: ActiveValue::Set(body_of),
                bytes: ActiveValue::Set(bytes.try_into().unwrap_or(i64::MAX)),
                set_aside: ActiveValue::Set(None),
            });
        }
        row::Entity::insert_many(rows).exec_without_returning(tx).await?;
        // Counted before the commit: after a rollback the count is too high
        // until the relay counts anew.
        self.waiting.more(Load { events: count, bytes: added });
        Ok(())
    }

    /// Sees to it that `events` fit: the oldest of their topics go, where these
    /// are made so.
    async fn make_room(&self, tx: &DatabaseTransaction, events: &[Outgoing]) -> Result<(), Error> {
        let now = self.waiting.now();
        let bytes: u64 = events.iter().map(|event| event.body.len() as u64).sum();
        let too_many = (now.events + events.len() as u64).saturating_sub(self.limits.limit);
        let too_large = (now.bytes + bytes).saturating_sub(self.limits.bytes);
        if too_many == 0 && too_large == 0 {
            return Ok(());
        }
        let limit = if too_many > 0 { "outbox.limit" } else { "outbox.bytes" };
        let full = || Error::OutboxFull { events: now.events, bytes: now.bytes, limit };
        let topic = &events[0].topic;
        let droppable = self.limits.drop_oldest.contains(topic)
            && events.iter().all(|event| event.topic == *topic);
        if !droppable {
            return Err(full());
        }
        // As many as come, and as many more as there are bytes too many.
        let (mut gone, mut freed, mut last) = (0, 0, 0);
        let mut oldest = row::Entity::find()
            .select_only()
            .columns([row::Column::Seq, row::Column::Bytes])
            .filter(row::Column::Topic.eq(topic))
            .filter(row::Column::SetAside.is_null())
            .order_by_asc(row::Column::Seq)
            .limit(too_many + if too_large > 0 { DROP_AT_ONCE } else { 0 })
            .into_tuple::<(i64, i64)>()
            .stream(tx)
            .await?;
        while (gone < too_many || freed < too_large)
            && let Some((seq, bytes)) = oldest.try_next().await?
        {
            gone += 1;
            freed += u64::try_from(bytes).unwrap_or_default();
            last = seq;
        }
        drop(oldest);
        if gone < too_many || freed < too_large {
            return Err(full());
        }
        row::Entity::delete_many()
            .filter(row::Column::Topic.eq(topic))
            .filter(row::Column::SetAside.is_null())
            .filter(row::Column::Seq.lte(last))
            .exec(tx)
            .await?;
        self.waiting.less(Load { events: gone, bytes: freed });
        self.dropped.add(gone, &[label("topic", topic.clone())]);
        Ok(())
    }

    /// Counts what waits.
    pub(super) async fn count(&self) -> Result<(), Error> {
        let seen = self.waiting.added();
        // All that was added by now is committed, or rolled back, once this is.
        self.store.transaction(|_| Box::pin(async { Ok::<_, Error>(()) })).await?;
        let counts = row::Entity::find()
            .select_only()
            .column_as(row::Column::SetAside.is_not_null(), "aside")
            .column_as(row::Column::Seq.count(), "events")
            .column_as(row::Column::Bytes.sum().cast_as("bigint"), "bytes")
            .group_by(row::Column::SetAside.is_not_null())
            .into_tuple::<(bool, i64, i64)>()
            .all(self.store.read())
            .await?;
        let of = |aside: bool| {
            let found = counts.iter().find(|count| count.0 == aside);
            let (events, bytes) = found.map_or((0, 0), |count| (count.1, count.2));
            let number = |n| u64::try_from(n).unwrap_or_default();
            Load { events: number(events), bytes: number(bytes) }
        };
        let (ready, aside) = (of(false), of(true));
        self.waiting.counted(ready + aside, aside.events, seen);
        Ok(())
    }

    /// The oldest events behind the place `after` that aren't for the topics
    /// `but_for`, in order: `limit` of them, or fewer where their bodies are large.
    pub(super) async fn oldest(
        &self,
        after: i64,
        but_for: impl IntoIterator<Item = &str>,
        limit: u64,
    ) -> Result<Vec<Pending>, Error> {
        let read = self.store.read();
        let rows = row::Entity::find()
            .filter(row::Column::Seq.gt(after))
            .filter(row::Column::SetAside.is_null())
            .filter(row::Column::Topic.is_not_in(but_for))
            .order_by_asc(row::Column::Seq)
            .limit(limit)
            .all(read)
            .await?;
        let mut bytes = 0;
        let fit = rows.iter().take_while(|row| {
            let begun_below = bytes < BATCH_BYTES;
            bytes += row.bytes;
            begun_below
        });
        let rows = &rows[..fit.count()];
        let ids: Vec<&str> = rows.iter().filter_map(|row| row.body_of.as_deref()).collect();
        let stored = self.stored(read, &ids).await?;
        let pending = rows.iter().map(|row| Pending { seq: row.seq, record: record(row, &stored) });
        Ok(pending.collect())
    }

    async fn stored(
        &self,
        read: &impl ConnectionTrait,
        ids: &[&str],
    ) -> Result<HashMap<String, Vec<u8>>, Error> {
        let Some(bodies) = self.bodies.filter(|_| !ids.is_empty()) else {
            return Ok(Default::default());
        };
        let mut query = Query::select();
        query
            .column(Alias::new(bodies.id))
            .column(Alias::new(bodies.body))
            .from(Alias::new(bodies.table))
            .cond_where(
                Condition::all().add(Expr::col(Alias::new(bodies.id)).is_in(ids.iter().copied())),
            );
        let rows = read.query_all(&query).await?;
        rows.iter()
            .map(|row| Ok((row.try_get("", bodies.id)?, row.try_get("", bodies.body)?)))
            .collect()
    }

    /// Forgets the events of `seqs`: the broker has them.
    pub(super) async fn forget(&self, seqs: Vec<i64>) -> Result<(), Error> {
        let work = self.store.transaction(move |tx| {
            Box::pin(async move {
                let delete = Query::delete()
                    .from_table(row::Entity)
                    .cond_where(row::Column::Seq.is_in(seqs))
                    .returning_col(row::Column::Bytes)
                    .to_owned();
                let gone = tx.query_all(&delete).await?;
                let bytes = gone.iter().map(|row| row.try_get_by_index(0));
                Ok::<_, Error>(bytes.collect::<Result<Vec<i64>, _>>()?)
            })
        });
        let gone = work.await?;
        let bytes = gone.iter().sum::<i64>().try_into().unwrap_or_default();
        self.waiting.less(Load { events: gone.len() as u64, bytes });
        Ok(())
    }

    /// Keeps the event of `seq` back from now on, and says why in its row: the
    /// broker will never take it as it is, and others wait behind it.
    pub(super) async fn set_aside(&self, seq: i64, why: String) -> Result<(), Error> {
        self.store
            .transaction(move |tx| {
                Box::pin(async move {
                    row::Entity::update_many()
                        .col_expr(row::Column::SetAside, Expr::value(why))
                        .filter(row::Column::Seq.eq(seq))
                        .exec(tx)
                        .await?;
                    Ok::<_, Error>(())
                })
            })
            .await?;
        self.count().await
    }

    /// Lets what was set aside be tried again.
    pub(super) async fn take_back(&self) -> Result<(), Error> {
        self.store
            .transaction(|tx| {
                Box::pin(async move {
                    row::Entity::update_many()
                        .col_expr(row::Column::SetAside, Expr::value(None::<String>))
                        .filter(row::Column::SetAside.is_not_null())
                        .exec(tx)
                        .await?;
                    Ok::<_, Error>(())
                })
            })
            .await?;
        self.count().await
    }
}

impl Body {
    fn len(&self) -> usize {
        match self {
            Self::Own(data) => data.len(),
            Self::Stored { bytes, .. } => *bytes,
        }
    }
}

/// The event of a row.
fn record(row: &row::Model, stored: &HashMap<String, Vec<u8>>) -> Result<Record, Error> {
    let attributes: Attributes = serde_json::from_str(&row.attributes)
        .map_err(|why| Error::Event(format!("its attributes can't be read: {why}")))?;
    let data = match &row.body_of {
        None => row.data.clone().unwrap_or_default(),
        Some(id) => stored
            .get(id)
            .cloned()
            .ok_or_else(|| Error::Event(format!("its body `{id}` is gone")))?,
    };
    Ok(Record { topic: row.topic.clone(), event: Event { attributes, data: data.into() } })
}
