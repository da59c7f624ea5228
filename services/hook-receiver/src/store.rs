//! The tables `hooks` and `sessions`, and their queries.

use std::collections::{BTreeMap, HashMap};

use api::hooks::v1::{self as pb, HookFilter, HookKind, Receipt};
use async_trait::async_trait;
use chrono::DateTime;
use futures::TryStreamExt as _;
use mesh::{
    events::{Attributes, Body, Outbox, Outgoing},
    page,
    store::{Batch, Batcher},
    timestamp,
};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, Condition, DatabaseTransaction, EntityTrait as _, ExprTrait as _,
    QueryFilter as _, QueryOrder as _, QuerySelect as _,
    sea_query::{Expr, OnConflict},
};

use crate::{Error, hook::Hook, session};

/// The table `hooks`.
pub(crate) mod row {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "hooks")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub seq: i64,
        pub id: String,
        pub kind: i16,
        pub source: String,
        #[sea_orm(column_name = "type")]
        pub hook_type: String,
        pub delivery_id: String,
        pub session_id: String,
        pub correlation_id: String,
        pub causation_id: String,
        pub headers: String,
        pub body: Vec<u8>,
        pub content_type: String,
        pub received_at: DateTimeUtc,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The table `sessions`.
mod session_row {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "sessions")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        pub first_hook_at: DateTimeUtc,
        pub last_hook_at: DateTimeUtc,
        pub hook_count: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// How many bytes of bodies a page holds: an answer stays under gRPC's usual
/// limit of 4 MiB with the largest body on top.
const PAGE_BYTES: usize = 2 * 1024 * 1024;

/// Hooks and sessions.
pub(crate) struct Hooks {
    outbox: Outbox,
    batcher: Batcher<Storing>,
}

impl Hooks {
    pub(crate) fn new(outbox: Outbox) -> Self {
        let batcher = outbox.store().batcher(Storing { outbox: outbox.clone() });
        Self { outbox, batcher }
    }

    /// Stores hooks with their events. A receipt is durable.
    pub(crate) async fn store(&self, hooks: Vec<Stored>) -> Vec<Result<Receipt, mesh::Error>> {
        self.batcher.submit(hooks).await
    }

    /// Changes with each commit of this process.
    pub(crate) fn commits(&self) -> tokio::sync::watch::Receiver<u64> {
        self.outbox.store().commits()
    }

    /// The hook with this id.
    pub(crate) async fn get(&self, id: &str) -> Result<Option<pb::Hook>, Error> {
        let row = row::Entity::find().filter(row::Column::Id.eq(id));
        Ok(row.one(self.outbox.store().read()).await?.map(to_message))
    }

    /// A page of hooks, newest first, and the next page's token.
    pub(crate) async fn list(
        &self,
        filter: &HookFilter,
        size: u64,
        token: &str,
    ) -> Result<(Vec<pb::Hook>, String), Error> {
        let mut condition = matching(filter)?;
        if let Some(seq) = page::number("page_token", token)? {
            condition = condition.add(row::Column::Seq.lt(seq));
        }
        let query = row::Entity::find().filter(condition).order_by_desc(row::Column::Seq);
        let rows = self.read(query.limit(size + 1), size).await?;
        let next = match rows.last() {
            Some(last) if self.any_before(filter, last.seq).await? => {
                page::token([&last.seq.to_string()])
            }
            _ => String::new(),
        };
        Ok((rows.into_iter().map(to_message).collect(), next))
    }

    /// Up to `size` hooks stored behind the place `after`, in order.
    pub(crate) async fn after(
        &self,
        filter: &HookFilter,
        after: i64,
        size: u64,
    ) -> Result<Vec<(i64, pb::Hook)>, Error> {
        let condition = matching(filter)?.add(row::Column::Seq.gt(after));
        let query = row::Entity::find().filter(condition).order_by_asc(row::Column::Seq);
        let rows = self.read(query.limit(size), size).await?;
        Ok(rows.into_iter().map(|row| (row.seq, to_message(row))).collect())
    }

    /// The place of the hook stored last.
    pub(crate) async fn last(&self) -> Result<i64, Error> {
        let last = row::Entity::find()
            .select_only()
            .column_as(row::Column::Seq.max(), "last")
            .into_tuple::<Option<i64>>()
            .one(self.outbox.store().read())
            .await?;
        Ok(last.flatten().unwrap_or_default())
    }

    /// Reads rows until there are `size` or their bodies fill a page: bodies of
    /// a thousand hooks need not fit into memory.
    async fn read(
        &self,
        query: sea_orm::Select<row::Entity>,
        size: u64,
    ) -> Result<Vec<row::Model>, Error> {
        let mut found = query.stream(self.outbox.store().read()).await?;
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while (rows.len() as u64) < size
            && bytes < PAGE_BYTES
            && let Some(row) = found.try_next().await?
        {
            bytes += row.body.len();
            rows.push(row);
        }
        Ok(rows)
    }

    async fn any_before(&self, filter: &HookFilter, seq: i64) -> Result<bool, Error> {
        let condition = matching(filter)?.add(row::Column::Seq.lt(seq));
        let one = row::Entity::find()
            .select_only()
            .column(row::Column::Seq)
            .filter(condition)
            .into_tuple::<i64>()
            .one(self.outbox.store().read())
            .await?;
        Ok(one.is_some())
    }

    /// The session with this id.
    pub(crate) async fn session(&self, id: &str) -> Result<Option<pb::Session>, Error> {
        let row = session_row::Entity::find_by_id(id).one(self.outbox.store().read()).await?;
        Ok(row.map(to_session))
    }

    /// A page of sessions, the one with the latest hook first.
    pub(crate) async fn sessions(
        &self,
        size: u64,
        token: &str,
    ) -> Result<(Vec<pb::Session>, String), Error> {
        use session_row::Column;
        let mut query = session_row::Entity::find()
            .order_by_desc(Column::LastHookAt)
            .order_by_desc(Column::Id)
            .limit(size + 1);
        if let Some([micros, id]) = page::place("page_token", token)? {
            let at = micros.parse().ok().and_then(DateTime::from_timestamp_micros);
            let at = at.ok_or_else(|| page::wrong("page_token"))?;
            let same = Condition::all().add(Column::LastHookAt.eq(at)).add(Column::Id.lt(id));
            query = query.filter(Condition::any().add(Column::LastHookAt.lt(at)).add(same));
        }
        let mut rows = query.all(self.outbox.store().read()).await?;
        let more = rows.len() as u64 > size;
        rows.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        let next = match rows.last() {
            Some(last) if more => {
                page::token([&last.last_hook_at.timestamp_micros().to_string(), &last.id])
            }
            _ => String::new(),
        };
        Ok((rows.into_iter().map(to_session).collect(), next))
    }
}

/// A hook to be stored, and the trace its event belongs to.
pub(crate) struct Stored {
    pub(crate) hook: Hook,
    pub(crate) traceparent: String,
}

/// Writes hooks, their sessions and their events.
struct Storing {
    outbox: Outbox,
}

#[async_trait]
impl Batch for Storing {
    type Item = Stored;
    type Output = Receipt;

    async fn apply(
        &self,
        tx: &DatabaseTransaction,
        items: &[Stored],
    ) -> Result<Vec<Receipt>, mesh::Error> {
        let mut receipts = earlier(tx, items).await?;
        let mut new: Vec<&Stored> = Vec::new();
        let mut answers = Vec::with_capacity(items.len());
        for item in items {
            let delivery = (item.hook.source.clone(), item.hook.delivery_id.clone());
            if let Some(receipt) = receipts.get(&delivery) {
                answers.push(Receipt { duplicate: true, ..receipt.clone() });
                continue;
            }
            let receipt = receipt(&item.hook);
            receipts.insert(delivery, receipt.clone());
            answers.push(receipt);
            new.push(item);
        }
        if !new.is_empty() {
            // First the outbox: its lock makes the order of hooks that of their
            // commits as well, which streams and pages rely on.
            self.outbox.add(tx, new.iter().map(|item| event(item)).collect()).await?;
            let rows = new.iter().map(|item| to_row(&item.hook)).collect::<Result<Vec<_>, _>>()?;
            row::Entity::insert_many(rows).exec_without_returning(tx).await?;
            add_to_sessions(tx, new.iter().map(|item| &item.hook)).await?;
        }
        Ok(answers)
    }
}

fn receipt(hook: &Hook) -> Receipt {
    Receipt {
        id: hook.id.clone(),
        correlation_id: hook.correlation_id.clone(),
        session_id: hook.session_id.clone(),
        duplicate: false,
    }
}

/// The receipts of those among `items` whose delivery was stored before, by
/// (source, delivery id).
async fn earlier(
    tx: &DatabaseTransaction,
    items: &[Stored],
) -> Result<HashMap<(String, String), Receipt>, mesh::Error> {
    let mut deliveries: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Stored { hook, .. } in items {
        deliveries.entry(&hook.source).or_default().push(&hook.delivery_id);
    }
    let same = deliveries.into_iter().fold(Condition::any(), |any, (source, ids)| {
        let of_source = row::Column::Source.eq(source).and(row::Column::DeliveryId.is_in(ids));
        any.add(of_source)
    });
    type Found = (String, String, String, String, String);
    let found: Vec<Found> = row::Entity::find()
        .select_only()
        .columns([
            row::Column::Source,
            row::Column::DeliveryId,
            row::Column::Id,
            row::Column::CorrelationId,
            row::Column::SessionId,
        ])
        .filter(same)
        .into_tuple()
        .all(tx)
        .await?;
    let receipts = found.into_iter().map(|(source, delivery, id, correlation_id, session_id)| {
        ((source, delivery), Receipt { id, correlation_id, session_id, duplicate: false })
    });
    Ok(receipts.collect())
}

fn event(Stored { hook, traceparent }: &Stored) -> Outgoing {
    let extensions = [
        ("hookkind", kind_name(hook.kind)),
        ("deliveryid", &hook.delivery_id),
        ("sessionid", &hook.session_id),
    ];
    Outgoing {
        topic: hook.topic(),
        attributes: Attributes {
            id: hook.id.clone(),
            source: format!("/hooks/{}", hook.source),
            kind: hook.hook_type.clone(),
            subject: String::new(),
            time: hook.received_at,
            datacontenttype: hook.content_type.clone(),
            dataschema: String::new(),
            correlationid: hook.correlation_id.clone(),
            causationid: hook.causation_id.clone(),
            traceparent: traceparent.clone(),
            extensions: extensions.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        },
        body: Body::Stored { id: hook.id.clone(), bytes: hook.body.len() },
    }
}

fn kind_name(kind: HookKind) -> &'static str {
    match kind {
        HookKind::PreExecution => "pre-execution",
        HookKind::PostExecution => "post-execution",
        HookKind::Webhook | HookKind::Unspecified => "webhook",
    }
}

fn to_row(hook: &Hook) -> Result<row::ActiveModel, mesh::Error> {
    let headers: Vec<(&str, &str)> =
        hook.headers.iter().map(|h| (h.name.as_str(), h.value.as_str())).collect();
    let headers =
        serde_json::to_string(&headers).map_err(|why| mesh::Error::Event(why.to_string()))?;
    Ok(row::ActiveModel {
        seq: sea_orm::ActiveValue::NotSet,
        id: Set(hook.id.clone()),
        // The kinds of the API are few.
        kind: Set(i32::from(hook.kind).try_into().unwrap_or_default()),
        source: Set(hook.source.clone()),
        hook_type: Set(hook.hook_type.clone()),
        delivery_id: Set(hook.delivery_id.clone()),
        session_id: Set(hook.session_id.clone()),
        correlation_id: Set(hook.correlation_id.clone()),
        causation_id: Set(hook.causation_id.clone()),
        headers: Set(headers),
        body: Set(hook.body.to_vec()),
        content_type: Set(hook.content_type.clone()),
        received_at: Set(hook.received_at),
    })
}

async fn add_to_sessions<'h>(
    tx: &DatabaseTransaction,
    hooks: impl Iterator<Item = &'h Hook>,
) -> Result<(), mesh::Error> {
    use session_row::{ActiveModel, Column, Entity};
    let rows = session::additions(hooks).into_iter().map(|(id, added)| ActiveModel {
        id: Set(id.to_owned()),
        first_hook_at: Set(added.first),
        last_hook_at: Set(added.last),
        hook_count: Set(added.count),
    });
    let rows: Vec<_> = rows.collect();
    let new = |column: Column| Expr::col(("excluded", column));
    let now = |column: Column| Expr::col((Entity, column));
    let merge = OnConflict::column(Column::Id)
        .update_column(Column::LastHookAt)
        .value(Column::HookCount, now(Column::HookCount).add(new(Column::HookCount)))
        .to_owned();
    Entity::insert_many(rows).on_conflict(merge).exec_without_returning(tx).await?;
    Ok(())
}

fn matching(filter: &HookFilter) -> Result<Condition, Error> {
    let mut condition = Condition::all();
    for (column, wanted) in [
        (row::Column::Source, &filter.source),
        (row::Column::HookType, &filter.r#type),
        (row::Column::SessionId, &filter.session_id),
    ] {
        if !wanted.is_empty() {
            condition = condition.add(column.eq(wanted));
        }
    }
    let range = filter.received.unwrap_or_default();
    if let Some(start) = range.start {
        condition = condition.add(
            row::Column::ReceivedAt.gte(timestamp::from_proto("filter.received.start", start)?),
        );
    }
    if let Some(end) = range.end {
        condition = condition
            .add(row::Column::ReceivedAt.lt(timestamp::from_proto("filter.received.end", end)?));
    }
    Ok(condition)
}

fn to_message(row: row::Model) -> pb::Hook {
    let headers: Vec<(String, String)> = serde_json::from_str(&row.headers).unwrap_or_default();
    let header = |(name, value)| mesh::messages::common::v1::Header { name, value };
    pb::Hook {
        id: row.id,
        kind: row.kind.into(),
        source: row.source,
        r#type: row.hook_type,
        delivery_id: row.delivery_id,
        session_id: row.session_id,
        correlation_id: row.correlation_id,
        causation_id: row.causation_id,
        headers: headers.into_iter().map(header).collect(),
        body: row.body.into(),
        content_type: row.content_type,
        received_time: Some(timestamp::to_proto(row.received_at)),
    }
}

fn to_session(row: session_row::Model) -> pb::Session {
    pb::Session {
        id: row.id,
        first_hook_time: Some(timestamp::to_proto(row.first_hook_at)),
        last_hook_time: Some(timestamp::to_proto(row.last_hook_at)),
        hook_count: row.hook_count,
    }
}
