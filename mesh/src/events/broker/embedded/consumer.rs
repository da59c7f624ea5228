//! Reading: a pattern's topics from a place in the log on, for people or as a
//! member of a group.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::TryStreamExt as _;
use sea_orm::{
    ActiveValue, ColumnTrait as _, Condition, EntityTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _, sea_query::OnConflict,
};
use tokio::time::Instant;

use super::{last, log, offset};
use crate::{
    Error,
    events::{
        Attributes, Event,
        broker::{Consumer, Delivery, Undecodable, progress::Progress},
    },
    files,
    pace::Pace,
    store::Store,
};

/// How often a member that waits tries to take over.
const TAKE_OVER: Duration = Duration::from_millis(250);

/// How many bytes of bodies are taken at once, and one body more.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// How often the log is read at most: what comes meanwhile is read together.
const TURN: Duration = Duration::from_millis(1);

/// How often a group's place is recorded: after a crash its members get this much
/// again, and their inboxes know it.
const RECORD: Duration = Duration::from_millis(100);

/// Reads what matches a pattern from a place in the log on.
pub(super) struct Reader {
    store: Arc<Store>,
    pattern: String,
    position: i64,
    changes: files::Changes,
    pace: Pace,
}

impl Reader {
    pub(super) fn new(
        store: Arc<Store>,
        pattern: &str,
        position: i64,
        changes: files::Changes,
    ) -> Self {
        let pace = Pace::new(TURN);
        Self { store, pattern: pattern.to_owned(), position, changes, pace }
    }
}

/// The rows of topics that match `pattern`, as [`super::matches`] says.
pub(super) fn matching(pattern: &str) -> Condition {
    match pattern.strip_suffix('*') {
        Some(prefix) => {
            let matching = Condition::all().add(log::Column::Topic.starts_with(prefix));
            if prefix.starts_with("dlq.") {
                matching
            } else {
                matching.add(log::Column::Topic.not_like("dlq.%"))
            }
        }
        None => Condition::all().add(log::Column::Topic.eq(pattern)),
    }
}

#[async_trait]
impl Consumer for Reader {
    async fn next(&mut self, limit: usize) -> Result<Vec<Delivery>, Error> {
        loop {
            self.pace.turn().await;
            // Asked before the rows: what comes in between is read next time.
            let last = last(&self.store).await?;
            if last > self.position {
                let found = log::Entity::find()
                    .filter(matching(&self.pattern))
                    .filter(log::Column::Seq.gt(self.position))
                    .filter(log::Column::Seq.lte(last))
                    .order_by_asc(log::Column::Seq)
                    .limit(limit as u64);
                let mut found = found.stream(self.store.read()).await?;
                let (mut rows, mut bytes) = (Vec::<log::Model>::new(), 0);
                while rows.len() < limit
                    && bytes < BATCH_BYTES
                    && let Some(row) = found.try_next().await?
                {
                    bytes += row.data.len();
                    rows.push(row);
                }
                drop(found);
                let cut = rows.len() == limit || bytes >= BATCH_BYTES;
                self.position = rows.last().filter(|_| cut).map_or(last, |row| row.seq);
                if !rows.is_empty() {
                    return Ok(rows.into_iter().map(delivery).collect());
                }
            }
            self.changes.changed().await;
        }
    }

    async fn commit(&mut self, _: &[&Delivery]) -> Result<(), Error> {
        Ok(())
    }
}

fn delivery(row: log::Model) -> Delivery {
    let attributes = serde_json::from_str::<Attributes>(&row.attributes);
    let checked = attributes.map_err(|why| why.to_string()).and_then(|attributes| {
        attributes.check().map_err(|why| why.to_string())?;
        Ok(attributes)
    });
    let event = match checked {
        Ok(attributes) => Ok(Event { attributes, data: row.data.into() }),
        Err(why) => Err(Undecodable { why, data: row.data.into() }),
    };
    Delivery { topic: row.topic, partition: 0, offset: row.seq, event }
}

/// A member of a group; it reads while it holds the group's lock.
pub(super) struct Member {
    reader: Reader,
    group: String,
    lock: PathBuf,
    held: Option<std::fs::File>,
    /// Of the whole log, which is one partition.
    progress: Progress,
    /// When that was recorded last, or tried.
    recorded_at: Option<Instant>,
}

impl Member {
    /// A member of `group` that waits for the lock at `lock`.
    pub(super) fn new(reader: Reader, group: &str, lock: PathBuf) -> Self {
        let (group, progress) = (group.to_owned(), Progress::default());
        Self { reader, group, lock, held: None, progress, recorded_at: None }
    }

    /// Records how far it has got.
    async fn record(&mut self) -> Result<(), Error> {
        self.recorded_at = Some(Instant::now());
        let Some(reached) = self.progress.reached() else { return Ok(()) };
        let row = offset::ActiveModel {
            group_name: ActiveValue::Set(self.group.clone()),
            pattern: ActiveValue::Set(self.reader.pattern.clone()),
            seq: ActiveValue::Set(reached),
        };
        let recorded = self
            .reader
            .store
            .transaction(move |tx| {
                Box::pin(async move {
                    let update = OnConflict::column(offset::Column::GroupName)
                        .update_column(offset::Column::Seq)
                        .to_owned();
                    offset::Entity::insert(row)
                        .on_conflict(update)
                        .exec_without_returning(tx)
                        .await?;
                    Ok(())
                })
            })
            .await;
        if recorded.is_ok() {
            self.progress.recorded(reached);
        }
        recorded
    }
}

#[async_trait]
impl Consumer for Member {
    async fn next(&mut self, limit: usize) -> Result<Vec<Delivery>, Error> {
        while self.held.is_none() {
            let Some(held) = files::try_lock(&self.lock)? else {
                tokio::time::sleep(TAKE_OVER).await;
                continue;
            };
            let done =
                offset::Entity::find_by_id(&self.group).one(self.reader.store.read()).await?;
            self.reader.position = done.map_or(0, |done| done.seq);
            // Only now, for all this may be cut off.
            self.held = Some(held);
        }
        let deliveries = loop {
            let due = self.recorded_at.map_or_else(Instant::now, |at| at + RECORD);
            tokio::select! {
                deliveries = self.reader.next(limit) => break deliveries?,
                () = tokio::time::sleep_until(due), if self.progress.reached().is_some() => {
                    self.record().await?;
                }
            }
        };
        deliveries.iter().for_each(|delivery| self.progress.hand_out(delivery.offset));
        Ok(deliveries)
    }

    async fn commit(&mut self, deliveries: &[&Delivery]) -> Result<(), Error> {
        deliveries.iter().for_each(|delivery| self.progress.done(delivery.offset));
        if self.recorded_at.is_some_and(|at| at.elapsed() < RECORD) {
            return Ok(());
        }
        self.record().await
    }
}
