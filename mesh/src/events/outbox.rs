//! Events on their way out, kept in the transaction of the state they report.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use sea_orm::{
    ActiveValue, ColumnTrait as _, Condition, ConnectionTrait, DatabaseTransaction, DbBackend,
    EntityTrait, ExprTrait as _, PaginatorTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _,
    entity::prelude::*,
    sea_query::{Alias, Query},
};

use super::{Event, broker::Record, event::Attributes};
use crate::{Error, store::Store};

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
    /// In the service's own table, by the id of its row: a body is stored once.
    Stored(String),
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
    /// The column of the id that [`Body::Stored`] names.
    pub id: &'static str,
    /// The column of the bytes.
    pub body: &'static str,
}

/// The outbox of one service. Clones are the same outbox.
#[derive(Clone)]
pub struct Outbox {
    store: Arc<Store>,
    bodies: Option<Bodies>,
    limit: u64,
    pending: Arc<AtomicU64>,
}

/// How many bytes of bodies are read at once, and in how many rows: bodies of a
/// whole batch need not fit into memory.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
const CHUNK: usize = 16;

/// An event that waits in the outbox.
pub(super) struct Pending {
    pub(super) seq: i64,
    pub(super) record: Record,
}

impl Outbox {
    /// The outbox in `store`, of at most `limit` events.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn open(
        store: Arc<Store>,
        bodies: Option<Bodies>,
        limit: u64,
    ) -> Result<Self, Error> {
        let outbox = Self { store, bodies, limit, pending: Arc::default() };
        outbox.count().await?;
        Ok(outbox)
    }

    /// The database it is in.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// How many events wait; those of other processes as of the last count.
    pub fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    /// Adds events inside `tx`: they go out if and only if it commits.
    ///
    /// # Errors
    /// [`Error::OutboxFull`] when the limit is reached, or the database's.
    pub async fn add(&self, tx: &DatabaseTransaction, events: Vec<Outgoing>) -> Result<(), Error> {
        if events.is_empty() {
            return Ok(());
        }
        let count = events.len() as u64;
        let pending = self.pending();
        if pending + count > self.limit {
            return Err(Error::OutboxFull { pending, limit: self.limit });
        }
        if tx.get_database_backend() == DbBackend::Postgres {
            // Numbers are given before they commit: without this lock a smaller
            // one could appear behind the relay's back.
            tx.execute_unprepared(
                "SELECT pg_advisory_xact_lock(hashtext(current_schema()), hashtext('outbox'))",
            )
            .await?;
        }
        let mut rows = Vec::with_capacity(events.len());
        for event in events {
            let attributes = serde_json::to_string(&event.attributes)
                .map_err(|why| Error::Event(why.to_string()))?;
            let (data, body_of) = match event.body {
                Body::Own(data) => (Some(data.to_vec()), None),
                Body::Stored(id) => (None, Some(id)),
            };
            rows.push(row::ActiveModel {
                seq: ActiveValue::NotSet,
                topic: ActiveValue::Set(event.topic),
                attributes: ActiveValue::Set(attributes),
                data: ActiveValue::Set(data),
                body_of: ActiveValue::Set(body_of),
            });
        }
        row::Entity::insert_many(rows).exec_without_returning(tx).await?;
        // Counted before the commit: after a rollback the count is too high
        // until the relay counts anew.
        self.pending.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }

    /// Counts what waits.
    pub(super) async fn count(&self) -> Result<u64, Error> {
        let count = row::Entity::find().count(self.store.read()).await?;
        self.pending.store(count, Ordering::Relaxed);
        Ok(count)
    }

    /// The oldest events, in order: `limit` of them, or fewer where their bodies
    /// are large.
    pub(super) async fn oldest(&self, limit: u64) -> Result<Vec<Pending>, Error> {
        let read = self.store.read();
        let rows =
            row::Entity::find().order_by_asc(row::Column::Seq).limit(limit).all(read).await?;
        let mut pending = Vec::with_capacity(rows.len());
        let mut bytes = 0;
        for rows in rows.chunks(CHUNK) {
            if bytes >= BATCH_BYTES {
                break;
            }
            let ids: Vec<&str> = rows.iter().filter_map(|row| row.body_of.as_deref()).collect();
            let stored = self.stored(read, &ids).await?;
            for row in rows {
                let next = to_pending(row, &stored)?;
                bytes += next.record.event.data.len();
                pending.push(next);
            }
        }
        Ok(pending)
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

    /// Forgets everything up to `seq`: the broker has it.
    pub(super) async fn forget(&self, seq: i64) -> Result<(), Error> {
        let gone = self
            .store
            .transaction(move |tx| {
                Box::pin(async move {
                    let delete = row::Entity::delete_many().filter(row::Column::Seq.lte(seq));
                    Ok::<_, Error>(delete.exec(tx).await?.rows_affected)
                })
            })
            .await?;
        let left = |pending: u64| Some(pending.saturating_sub(gone));
        // The closure always answers `Some`.
        let _ = self.pending.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
        Ok(())
    }
}

fn to_pending(row: &row::Model, stored: &HashMap<String, Vec<u8>>) -> Result<Pending, Error> {
    let attributes: Attributes = serde_json::from_str(&row.attributes)
        .map_err(|why| Error::Event(format!("outbox row {}: {why}", row.seq)))?;
    let data = match &row.body_of {
        None => row.data.clone().unwrap_or_default(),
        Some(id) => stored.get(id).cloned().ok_or_else(|| {
            Error::Event(format!("outbox row {}: its body `{id}` is gone", row.seq))
        })?,
    };
    let event = Event { attributes, data: data.into() };
    Ok(Pending { seq: row.seq, record: Record { topic: row.topic.clone(), event } })
}
