//! Which events a group has handled, in the database of its service.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use sea_orm::{
    ActiveValue, ColumnTrait as _, Condition, ConnectionTrait, DatabaseTransaction,
    EntityTrait as _, ExprTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    TryInsertResult,
    prelude::DateTimeUtc,
    sea_query::{Expr, OnConflict},
};

use super::{RETENTION, broker::Delivery, event::Attributes};
use crate::{
    Error,
    config::Config,
    store::{Migrations, Store},
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

/// How long it is remembered that an event was handled: longer than its topic can
/// bring it again, or a replay of its dead letter. A week more, for Kafka deletes
/// by whole segments.
const REMEMBERED: Duration =
    RETENTION.saturating_mul(2).saturating_add(Duration::from_secs(7 * 24 * 60 * 60));

/// The inbox of one group, for its operators. Whoever consumes goes on meanwhile.
pub struct Inbox {
    store: Store,
    group: String,
}

impl Inbox {
    /// The inbox of `group` in the database of `service`.
    ///
    /// # Errors
    /// When the database can't be opened.
    pub async fn open(
        config: &Config,
        service: &str,
        migrations: Option<Migrations>,
        group: &str,
    ) -> Result<Self, Error> {
        let store = Store::open(config, service, migrations).await?;
        Ok(Self { store, group: group.to_owned() })
    }

    /// Whether the group has handled anything that it remembers.
    ///
    /// # Errors
    /// The database's.
    pub async fn knows_any(&self) -> Result<bool, Error> {
        let any = mark::Entity::find()
            .select_only()
            .column(mark::Column::HandledAt)
            .filter(mark::Column::Consumer.eq(&self.group));
        Ok(any.into_tuple::<DateTimeUtc>().one(self.store.read()).await?.is_some())
    }

    /// Which of `events` the group has neither handled nor given up on, by their
    /// indexes. Some hundreds may be asked for at once.
    ///
    /// # Errors
    /// The database's.
    pub async fn lacks(&self, events: &[&Attributes]) -> Result<Vec<usize>, Error> {
        let known = marks_of(self.store.read(), &self.group, events).await?;
        let known: HashSet<(&str, &str)> =
            known.iter().map(|(source, id, _)| (&**source, &**id)).collect();
        let lacks = |event: &Attributes| !known.contains(&(&*event.source, &*event.id));
        Ok((0..events.len()).filter(|index| lacks(events[*index])).collect())
    }

    /// Removes the marks of `events`: the group handles them when they come again.
    ///
    /// # Errors
    /// The database's.
    pub async fn forget(&self, events: &[&Attributes]) -> Result<(), Error> {
        let marks = of_events(&self.group, events);
        let work = self.store.transaction(move |tx| {
            Box::pin(async move {
                mark::Entity::delete_many().filter(marks).exec(tx).await?;
                Ok(())
            })
        });
        work.await
    }

    /// Closes the database.
    pub async fn close(self) {
        self.store.close().await;
    }
}

/// Marks events as handled by `group`. Answers which of them are new to it, by
/// their indexes; `None`, and nothing is marked, where one is in the dead
/// letters: that is for [`mark_handled`] to decide.
pub(super) async fn mark_new(
    tx: &DatabaseTransaction,
    group: &str,
    events: &[&Attributes],
) -> Result<Option<Vec<usize>>, Error> {
    let known = marks_of(tx, group, events).await?;
    let mut known: HashMap<(&str, &str), bool> =
        known.iter().map(|(source, id, buried)| ((&**source, &**id), buried.is_some())).collect();
    let mut new = Vec::with_capacity(events.len());
    for (index, event) in events.iter().enumerate() {
        match known.insert((&event.source, &event.id), false) {
            None => new.push(index),
            Some(false) => {}
            Some(true) => return Ok(None),
        }
    }
    if !new.is_empty() {
        let marks = new.iter().map(|index| mark(group, events[*index], None));
        mark::Entity::insert_many(marks).exec_without_returning(tx).await?;
    }
    Ok(Some(new))
}

/// The marks that `group` has of `events`: their source, their id, and from where
/// they are in the dead letters, if they are.
async fn marks_of(
    connection: &impl ConnectionTrait,
    group: &str,
    events: &[&Attributes],
) -> Result<Vec<(String, String, Option<String>)>, Error> {
    let found = mark::Entity::find()
        .select_only()
        .columns([mark::Column::Source, mark::Column::EventId, mark::Column::BuriedAt])
        .filter(of_events(group, events));
    Ok(found.into_tuple().all(connection).await?)
}

/// The marks of `group` for `events`, by the whole key of each: without the
/// group beside the source, SQLite would read all of the group's.
fn of_events(group: &str, events: &[&Attributes]) -> Condition {
    let mut ids: HashMap<&str, HashSet<&str>> = HashMap::new();
    for event in events {
        ids.entry(&event.source).or_default().insert(&event.id);
    }
    ids.into_iter().fold(Condition::any(), |any, (source, ids)| {
        let of_source = mark::Column::Consumer.eq(group).and(mark::Column::Source.eq(source));
        any.add(of_source.and(mark::Column::EventId.is_in(ids)))
    })
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
/// has been handled meanwhile, or is there from this place already.
pub(super) async fn mark_buried(
    tx: &DatabaseTransaction,
    group: &str,
    attributes: &Attributes,
    place: String,
) -> Result<bool, Error> {
    let buried_at = || Expr::col((mark::Entity, mark::Column::BuriedAt));
    let again =
        OnConflict::columns([mark::Column::Consumer, mark::Column::Source, mark::Column::EventId])
            .update_columns([mark::Column::BuriedAt, mark::Column::HandledAt])
            .action_and_where(buried_at().is_not_null())
            .action_and_where(buried_at().ne(&*place))
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
