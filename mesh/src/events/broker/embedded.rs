//! The broker for one machine: a log in SQLite under the data directory, shared
//! by all processes on it.
//!
//! All topics are one log, so a group's place in it is one number. Of the
//! members of a group one reads at a time, and holds a lock that ends with its
//! process; the others wait to take over.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveValue, ColumnTrait as _, Condition, DatabaseTransaction, EntityTrait as _,
    QueryFilter as _, QueryOrder as _, QuerySelect as _, sea_query::OnConflict,
};

use super::{
    Broker, Consumer, Delivery, From, GroupStatus, Record, TopicStatus, Undecodable,
    progress::Progress,
};
use crate::{
    Error,
    config::Config,
    events::{Attributes, Event, RETENTION},
    files,
    store::Store,
};

/// How often a member that waits tries to take over.
const TAKE_OVER: Duration = Duration::from_millis(250);
/// How many expired events go for each that is published.
const EXPIRED_PER_EVENT: u64 = 4;
/// How many rows one statement inserts: what fits into its variables.
const CHUNK: usize = 512;

/// The table `log`.
mod log {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "log")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub seq: i64,
        pub topic: String,
        pub published_at: DateTimeUtc,
        pub attributes: String,
        pub data: Vec<u8>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The table `topics`.
mod topic {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "topics")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub name: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The table `offsets`.
mod offset {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "offsets")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub group_name: String,
        pub pattern: String,
        pub seq: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The log under the data directory.
pub struct EmbeddedBroker {
    store: Arc<Store>,
    folder: PathBuf,
    retention: Duration,
}

impl EmbeddedBroker {
    /// Opens the log, and makes it where there is none.
    ///
    /// # Errors
    /// When its files can't be opened or written.
    pub async fn open(config: &Config) -> Result<Self, Error> {
        let folder = config.data.join("events");
        files::make_folder(&folder.join("groups"))?;
        let store = Store::open_file(folder.join("broker.db"), migrations::broker).await?;
        Ok(Self { store: Arc::new(store), folder, retention: RETENTION })
    }

    async fn last(&self) -> Result<i64, Error> {
        last(&self.store).await
    }

    /// That `topic` is there.
    async fn find(&self, topic: &str) -> Result<(), Error> {
        let found = topic::Entity::find_by_id(topic).one(self.store.read()).await?;
        found.map(drop).ok_or_else(|| {
            Error::Broker(format!("there is no topic `{topic}`; `omni events topics` lists them"))
        })
    }

    fn reader(&self, pattern: &str, position: i64) -> Result<Reader, Error> {
        Ok(Reader {
            store: self.store.clone(),
            pattern: pattern.to_owned(),
            position,
            changes: files::watch(&self.folder)?,
        })
    }
}

/// Deletes up to `limit` of the oldest events, those from before `expired`. Each
/// publish does a little more of it than it adds, so that no writer waits long.
async fn forget(tx: &DatabaseTransaction, expired: DateTime<Utc>, limit: u64) -> Result<(), Error> {
    let oldest: Vec<(i64, DateTime<Utc>)> = log::Entity::find()
        .select_only()
        .columns([log::Column::Seq, log::Column::PublishedAt])
        .order_by_asc(log::Column::Seq)
        .limit(limit)
        .into_tuple()
        .all(tx)
        .await?;
    let last = oldest.iter().take_while(|(_, published)| *published < expired).last();
    if let Some((last, _)) = last {
        log::Entity::delete_many().filter(log::Column::Seq.lte(*last)).exec(tx).await?;
    }
    Ok(())
}

async fn last(store: &Store) -> Result<i64, Error> {
    let last = log::Entity::find()
        .select_only()
        .column_as(log::Column::Seq.max(), "last")
        .into_tuple::<Option<i64>>()
        .one(store.read())
        .await?;
    Ok(last.flatten().unwrap_or_default())
}

#[async_trait]
impl Broker for EmbeddedBroker {
    async fn ensure(&self, topics: &[String]) -> Result<(), Error> {
        let topics: Vec<_> = topics
            .iter()
            .map(|name| topic::ActiveModel { name: ActiveValue::Set(name.clone()) })
            .collect();
        self.store
            .transaction(move |tx| {
                Box::pin(async move {
                    topic::Entity::insert_many(topics)
                        .on_conflict_do_nothing()
                        .exec_without_returning(tx)
                        .await?;
                    Ok(())
                })
            })
            .await
    }

    async fn publish(&self, records: Vec<Record>, _: Duration) -> Vec<Result<(), Error>> {
        let count = records.len();
        let now = Utc::now();
        let expired = now - self.retention;
        let published = self.store.transaction(move |tx| {
            Box::pin(async move {
                forget(tx, expired, EXPIRED_PER_EVENT * count as u64).await?;
                let mut rows = Vec::with_capacity(records.len());
                for Record { topic, event } in records {
                    let attributes = serde_json::to_string(&event.attributes)
                        .map_err(|why| Error::Event(why.to_string()))?;
                    rows.push(log::ActiveModel {
                        seq: ActiveValue::NotSet,
                        topic: ActiveValue::Set(topic),
                        published_at: ActiveValue::Set(now),
                        attributes: ActiveValue::Set(attributes),
                        data: ActiveValue::Set(event.data.to_vec()),
                    });
                }
                while !rows.is_empty() {
                    let rest = rows.split_off(rows.len().min(CHUNK));
                    log::Entity::insert_many(rows).exec_without_returning(tx).await?;
                    rows = rest;
                }
                Ok::<_, Error>(())
            })
        });
        match published.await {
            Ok(()) => (0..count).map(|_| Ok(())).collect(),
            Err(why) => (0..count).map(|_| Err(Error::Broker(why.to_string()))).collect(),
        }
    }

    async fn subscribe(&self, group: &str, pattern: &str) -> Result<Box<dyn Consumer>, Error> {
        let reader = self.reader(pattern, 0)?;
        let lock = self.folder.join("groups").join(format!("{group}.lock"));
        let progress = Progress::default();
        Ok(Box::new(Member { reader, group: group.to_owned(), lock, held: None, progress }))
    }

    async fn tail(&self, topic: &str, from: From) -> Result<Box<dyn Consumer>, Error> {
        self.find(topic).await?;
        let position = match from {
            From::Beginning => 0,
            From::Now => self.last().await?,
        };
        Ok(Box::new(self.reader(topic, position)?))
    }

    async fn bounds(&self, topic: &str) -> Result<BTreeMap<i32, (i64, i64)>, Error> {
        self.find(topic).await?;
        let bounds = log::Entity::find()
            .select_only()
            .column_as(log::Column::Seq.min(), "first")
            .column_as(log::Column::Seq.max(), "last")
            .filter(log::Column::Topic.eq(topic))
            .into_tuple::<(Option<i64>, Option<i64>)>()
            .one(self.store.read())
            .await?;
        let (first, last) = bounds.unwrap_or_default();
        let next = last.unwrap_or_default() + 1;
        Ok([(0, (first.unwrap_or(next), next))].into())
    }

    async fn groups(&self, only: Option<&str>) -> Result<Vec<GroupStatus>, Error> {
        let topics = topic::Entity::find().order_by_asc(topic::Column::Name);
        let topics = topics.all(self.store.read()).await?;
        let mut groups = Vec::new();
        let mut offsets = offset::Entity::find().order_by_asc(offset::Column::GroupName);
        if let Some(only) = only {
            offsets = offsets.filter(offset::Column::GroupName.eq(only));
        }
        for group in offsets.all(self.store.read()).await? {
            let behind: Vec<(String, i64)> = log::Entity::find()
                .select_only()
                .column(log::Column::Topic)
                .column_as(log::Column::Seq.count(), "lag")
                .filter(matching(&group.pattern))
                .filter(log::Column::Seq.gt(group.seq))
                .group_by(log::Column::Topic)
                .into_tuple()
                .all(self.store.read())
                .await?;
            let lag = |topic: &str| behind.iter().find(|of| of.0 == topic).map_or(0, |of| of.1);
            let read = topics.iter().filter(|topic| super::matches(&group.pattern, &topic.name));
            groups.extend(read.map(|topic| GroupStatus {
                group: group.group_name.clone(),
                topic: topic.name.clone(),
                partition: 0,
                position: group.seq + 1,
                lag: lag(&topic.name),
            }));
        }
        Ok(groups)
    }

    async fn topics(&self) -> Result<Vec<TopicStatus>, Error> {
        let counts: Vec<(String, i64)> = log::Entity::find()
            .select_only()
            .column(log::Column::Topic)
            .column_as(log::Column::Seq.count(), "events")
            .group_by(log::Column::Topic)
            .into_tuple()
            .all(self.store.read())
            .await?;
        let topics = topic::Entity::find().order_by_asc(topic::Column::Name);
        let topics = topics.all(self.store.read()).await?.into_iter().map(|topic| {
            let events = counts.iter().find(|(name, _)| *name == topic.name).map_or(0, |(_, n)| *n);
            TopicStatus { name: topic.name, partitions: 1, events }
        });
        Ok(topics.collect())
    }
}

/// Reads what matches a pattern from a place in the log on.
struct Reader {
    store: Arc<Store>,
    pattern: String,
    position: i64,
    changes: files::Changes,
}

/// The rows of topics that match `pattern`, as [`super::matches`] says.
fn matching(pattern: &str) -> Condition {
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
            // Asked before the rows: what comes in between is read next time.
            let last = last(&self.store).await?;
            if last > self.position {
                let rows = log::Entity::find()
                    .filter(matching(&self.pattern))
                    .filter(log::Column::Seq.gt(self.position))
                    .filter(log::Column::Seq.lte(last))
                    .order_by_asc(log::Column::Seq)
                    .limit(limit as u64)
                    .all(self.store.read())
                    .await?;
                self.position = match rows.last() {
                    Some(row) if rows.len() == limit => row.seq,
                    _ => last,
                };
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
struct Member {
    reader: Reader,
    group: String,
    lock: PathBuf,
    held: Option<std::fs::File>,
    /// Of the whole log, which is one partition.
    progress: Progress,
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
        let deliveries = self.reader.next(limit).await?;
        deliveries.iter().for_each(|delivery| self.progress.hand_out(delivery.offset));
        Ok(deliveries)
    }

    async fn commit(&mut self, deliveries: &[&Delivery]) -> Result<(), Error> {
        deliveries.iter().for_each(|delivery| self.progress.done(delivery.offset));
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

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, path::Path};

    use super::*;
    use crate::events::broker::Scan;

    async fn open(data: &Path) -> EmbeddedBroker {
        let flags = [("data", data.display().to_string())];
        let config = Config::from_sources(None, HashMap::new(), &flags).unwrap();
        EmbeddedBroker::open(&config).await.unwrap()
    }

    fn record(topic: &str, id: &str) -> Record {
        let attributes = Attributes {
            id: id.into(),
            source: "/s".into(),
            kind: "t".into(),
            subject: String::new(),
            time: Utc::now(),
            datacontenttype: "text/plain".into(),
            dataschema: String::new(),
            correlationid: "c".into(),
            causationid: String::new(),
            traceparent: String::new(),
            extensions: Default::default(),
        };
        Record {
            topic: topic.into(),
            event: Event { attributes, data: id.as_bytes().to_vec().into() },
        }
    }

    async fn publish(broker: &EmbeddedBroker, topic: &str, ids: &[&str]) {
        broker.ensure(&[topic.to_owned()]).await.unwrap();
        let records = ids.iter().map(|id| record(topic, id)).collect();
        let results = broker.publish(records, Duration::from_secs(5)).await;
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }

    async fn next(consumer: &mut dyn Consumer) -> (Vec<String>, Vec<Delivery>) {
        let deliveries = tokio::time::timeout(Duration::from_secs(5), consumer.next(100));
        let deliveries = deliveries.await.expect("something comes").unwrap();
        let id = |d: &Delivery| d.event.as_ref().unwrap().attributes.id.clone();
        (deliveries.iter().map(id).collect(), deliveries)
    }

    #[tokio::test]
    async fn a_group_reads_in_order_across_processes_and_goes_on_where_it_was() {
        let data = tempfile::tempdir().unwrap();
        let (one, other) = (open(data.path()).await, open(data.path()).await);
        let mut first = other.subscribe("g", "hooks.*").await.unwrap();
        publish(&one, "hooks.a", &["1", "2"]).await;
        publish(&one, "other", &["x"]).await;
        publish(&one, "hooks.b", &["3"]).await;
        let mut seen = vec![];
        while seen.len() < 3 {
            let (ids, deliveries) = next(first.as_mut()).await;
            seen.extend(ids);
            if seen.len() < 3 {
                first.commit(&deliveries.iter().collect::<Vec<_>>()).await.unwrap();
            } else {
                first
                    .commit(&deliveries[..deliveries.len() - 1].iter().collect::<Vec<_>>())
                    .await
                    .unwrap();
            }
        }
        assert_eq!(seen, ["1", "2", "3"]);

        let mut second = one.subscribe("g", "hooks.*").await.unwrap();
        let waits = tokio::time::timeout(Duration::from_millis(100), second.next(1)).await;
        assert!(waits.is_err(), "one member reads at a time");
        drop(first);
        assert_eq!(next(second.as_mut()).await.0, ["3"], "what wasn't committed comes again");
    }

    #[tokio::test]
    async fn a_scan_ends_and_a_groups_lag_is_told() {
        let data = tempfile::tempdir().unwrap();
        let broker = open(data.path()).await;
        broker.ensure(&["empty".to_owned()]).await.unwrap();
        assert!(Scan::of(&broker, "empty").await.unwrap().next().await.unwrap().is_none());
        assert!(Scan::of(&broker, "nowhere").await.is_err());
        publish(&broker, "hooks.a", &["1", "2"]).await;
        publish(&broker, "hooks.b", &["3"]).await;
        let mut scan = Scan::of(&broker, "hooks.a").await.unwrap();
        publish(&broker, "hooks.a", &["4"]).await;
        let mut seen = 0;
        while let Some(deliveries) = scan.next().await.unwrap() {
            seen += deliveries.len();
        }
        assert_eq!(seen, 2, "what came later isn't read");

        let mut member = broker.subscribe("g", "hooks.*").await.unwrap();
        let (_, deliveries) = next(member.as_mut()).await;
        assert_eq!(broker.groups(None).await.unwrap(), [], "it hasn't begun");
        member.commit(&deliveries[..2].iter().collect::<Vec<_>>()).await.unwrap();
        let status = |topic: &str, lag| GroupStatus {
            group: "g".into(),
            topic: topic.into(),
            partition: 0,
            position: 3,
            lag,
        };
        let both = [status("hooks.a", 1), status("hooks.b", 1)];
        assert_eq!(broker.groups(None).await.unwrap(), both);
        assert_eq!(broker.groups(Some("g")).await.unwrap(), both);
        assert_eq!(broker.groups(Some("h")).await.unwrap(), []);
    }

    #[tokio::test]
    async fn what_is_older_than_the_retention_goes_as_others_come() {
        let data = tempfile::tempdir().unwrap();
        let mut broker = open(data.path()).await;
        publish(&broker, "hooks.a", &["1", "2", "3", "4", "5", "6"]).await;
        publish(&broker, "hooks.a", &["7"]).await;
        let mut all = broker.subscribe("all", "*").await.unwrap();
        assert_eq!(next(all.as_mut()).await.1.len(), 7, "none is too old");
        broker.retention = Duration::ZERO;
        publish(&broker, "hooks.a", &["8"]).await;
        assert_eq!(broker.bounds("hooks.a").await.unwrap(), [(0, (5, 9))].into());
        publish(&broker, "hooks.a", &["9"]).await;
        assert_eq!(broker.bounds("hooks.a").await.unwrap(), [(0, (9, 10))].into());
        assert_eq!(next(all.as_mut()).await.0, ["9"], "a reader goes on with what is left");
    }

    #[tokio::test]
    async fn a_prefix_never_matches_dead_letters() {
        let data = tempfile::tempdir().unwrap();
        let broker = open(data.path()).await;
        publish(&broker, "dlq.hooks.a", &["dead"]).await;
        publish(&broker, "hooks.a", &["1"]).await;
        let mut all = broker.subscribe("all", "*").await.unwrap();
        assert_eq!(next(all.as_mut()).await.0, ["1"]);
        let mut dead = broker.subscribe("dead", "dlq.*").await.unwrap();
        assert_eq!(next(dead.as_mut()).await.0, ["dead"]);
    }

    #[tokio::test]
    async fn a_tail_begins_where_it_is_told_and_topics_are_counted() {
        let data = tempfile::tempdir().unwrap();
        let broker = open(data.path()).await;
        assert!(broker.tail("hooks.a", From::Now).await.is_err());
        publish(&broker, "hooks.a", &["1"]).await;
        let mut now = broker.tail("hooks.a", From::Now).await.unwrap();
        let mut all = broker.tail("hooks.a", From::Beginning).await.unwrap();
        publish(&broker, "hooks.a", &["2"]).await;
        assert_eq!(next(now.as_mut()).await.0, ["2"]);
        assert_eq!(next(all.as_mut()).await.0, ["1", "2"]);
        assert_eq!(broker.bounds("hooks.a").await.unwrap(), [(0, (1, 3))].into());
        let topics = broker.topics().await.unwrap();
        assert_eq!(topics, [TopicStatus { name: "hooks.a".into(), partitions: 1, events: 2 }]);
    }
}
