//! The table `entries` and its queries.

use std::sync::Arc;

use api::audit::v1::{Entry, ListEntriesRequest};
use chrono::Utc;
use mesh::{events::Event, messages::audit::v1::Outcome, page, store::Store, timestamp};
use sea_orm::{
    ActiveValue::{NotSet, Set},
    ColumnTrait as _, Condition, DatabaseTransaction, EntityTrait as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _,
};

use crate::{
    Error,
    entry::{self, Said},
};

/// The table `entries`.
mod row {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "entries")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub seq: i64,
        pub topic: String,
        pub event_id: String,
        pub event_source: String,
        pub actor: String,
        pub action: String,
        pub resource: String,
        pub outcome: i16,
        pub reason: String,
        pub correlation_id: String,
        pub event_at: DateTimeUtc,
        pub recorded_at: DateTimeUtc,
        pub traceparent: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Writes the entries of `events`, each with its topic, inside `tx`.
pub(crate) async fn insert(
    tx: &DatabaseTransaction,
    events: &[(&str, &Event)],
) -> Result<(), mesh::Error> {
    let rows = events.iter().map(|(topic, event)| to_row(topic, event));
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    row::Entity::insert_many(rows).exec_without_returning(tx).await?;
    Ok(())
}

fn to_row(topic: &str, event: &Event) -> Result<row::ActiveModel, mesh::Error> {
    let Said { actor, action, resource, outcome, reason } = entry::read(event)?;
    let attributes = &event.attributes;
    Ok(row::ActiveModel {
        seq: NotSet,
        topic: Set(topic.to_owned()),
        event_id: Set(attributes.id.clone()),
        event_source: Set(attributes.source.clone()),
        actor: Set(actor),
        action: Set(action),
        resource: Set(resource),
        // The outcomes of the API are few.
        outcome: Set(i32::from(outcome).try_into().unwrap_or_default()),
        reason: Set(reason),
        correlation_id: Set(attributes.correlationid.clone()),
        event_at: Set(attributes.time),
        recorded_at: Set(Utc::now()),
        traceparent: Set(attributes.traceparent.clone()),
    })
}

/// The trail, for reading.
pub(crate) struct Entries {
    store: Arc<Store>,
}

impl Entries {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    /// A page of entries, newest first, and the next page's token.
    pub(crate) async fn list(
        &self,
        request: &ListEntriesRequest,
    ) -> Result<(Vec<Entry>, String), Error> {
        let size = page::size(request.page_size)?;
        let mut condition = matching(request)?;
        if let Some(seq) = page::number("page_token", &request.page_token)? {
            condition = condition.add(row::Column::Seq.lt(seq));
        }
        let mut rows = row::Entity::find()
            .filter(condition)
            .order_by_desc(row::Column::Seq)
            .limit(size + 1)
            .all(self.store.read())
            .await?;
        let more = rows.len() as u64 > size;
        rows.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        let next = match rows.last() {
            Some(last) if more => page::token([&last.seq.to_string()]),
            _ => String::new(),
        };
        Ok((rows.into_iter().map(to_message).collect(), next))
    }
}

fn matching(request: &ListEntriesRequest) -> Result<Condition, Error> {
    let mut condition = Condition::all();
    for (column, wanted) in [
        (row::Column::Topic, &request.topic),
        (row::Column::CorrelationId, &request.correlation_id),
    ] {
        if !wanted.is_empty() {
            condition = condition.add(column.eq(wanted));
        }
    }
    if request.outcome() != Outcome::Unspecified {
        condition = condition.add(row::Column::Outcome.eq(request.outcome));
    }
    let range = request.time.unwrap_or_default();
    if let Some(start) = range.start {
        let start = timestamp::from_proto("time.start", start)?;
        condition = condition.add(row::Column::EventAt.gte(start));
    }
    if let Some(end) = range.end {
        let end = timestamp::from_proto("time.end", end)?;
        condition = condition.add(row::Column::EventAt.lt(end));
    }
    Ok(condition)
}

fn to_message(row: row::Model) -> Entry {
    Entry {
        sequence: row.seq,
        topic: row.topic,
        event_id: row.event_id,
        event_source: row.event_source,
        actor: row.actor,
        action: row.action,
        resource: row.resource,
        outcome: row.outcome.into(),
        reason: row.reason,
        correlation_id: row.correlation_id,
        event_time: Some(timestamp::to_proto(row.event_at)),
        recorded_time: Some(timestamp::to_proto(row.recorded_at)),
        traceparent: row.traceparent,
    }
}
