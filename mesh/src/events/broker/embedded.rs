//! The broker for one machine: a log in SQLite under the data directory, shared
//! by all processes on it.
//!
//! All topics are one log, so a group's place in it is one number. Of the
//! members of a group one reads at a time, and holds a lock that ends with its
//! process; the others wait to take over.

mod consumer;
mod tables;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap, fs::File, os::unix::fs::FileExt as _, path::PathBuf, sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveValue, ColumnTrait as _, DatabaseTransaction, EntityTrait as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _,
};

use self::consumer::{Member, Reader, matching};
use super::{Broker, Consumer, From, GroupStatus, Record, TopicStatus, check_offset, no_partition};
use crate::{Error, config::Config, events::RETENTION, files, store::Store};

/// How many expired events go for each that is published.
const EXPIRED_PER_EVENT: u64 = 4;
/// How many rows one statement inserts: what fits into its variables.
const CHUNK: usize = 512;
/// The folder that readers watch.
const CHANGES: &str = "changes";

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
    /// Written to behind each publish: readers of all processes watch its folder.
    /// SQLite's own files change dozens of times for one commit.
    published: File,
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
        files::make_folder(&folder.join(CHANGES))?;
        let store = Store::open_file(folder.join("broker.db"), &[tables::migrations]).await?;
        let published = folder.join(CHANGES).join("published");
        let open = File::options().create(true).truncate(false).write(true).open(&published);
        let published = open.map_err(Error::file(&published))?;
        Ok(Self { store: Arc::new(store), folder, published, retention: RETENTION })
    }

    /// That `topic` is there.
    async fn find(&self, topic: &str) -> Result<(), Error> {
        let found = topic::Entity::find_by_id(topic).one(self.store.read()).await?;
        found.map(drop).ok_or_else(|| {
            Error::Broker(format!("there is no topic `{topic}`; `omni events topics` lists them"))
        })
    }

    /// All topics, by name.
    async fn all_topics(&self) -> Result<Vec<topic::Model>, Error> {
        let topics = topic::Entity::find().order_by_asc(topic::Column::Name);
        Ok(topics.all(self.store.read()).await?)
    }

    /// How far `group` has got in `topics`, which has handled what matches `pattern`
    /// up to `seq`.
    async fn status(
        &self,
        topics: &[topic::Model],
        group: &str,
        pattern: &str,
        seq: i64,
    ) -> Result<Vec<GroupStatus>, Error> {
        let behind: Vec<(String, i64)> = log::Entity::find()
            .select_only()
            .column(log::Column::Topic)
            .column_as(log::Column::Seq.count(), "lag")
            .filter(matching(pattern))
            .filter(log::Column::Seq.gt(seq))
            .group_by(log::Column::Topic)
            .into_tuple()
            .all(self.store.read())
            .await?;
        let lag = |topic: &str| behind.iter().find(|of| of.0 == topic).map_or(0, |of| of.1);
        let read = topics.iter().filter(|topic| super::matches(pattern, &topic.name));
        let statuses = read.map(|topic| GroupStatus {
            group: group.to_owned(),
            topic: topic.name.clone(),
            partition: 0,
            position: seq + 1,
            lag: lag(&topic.name),
        });
        Ok(statuses.collect())
    }

    fn reader(&self, pattern: &str, position: i64) -> Result<Reader, Error> {
        let changes = files::watch(&self.folder.join(CHANGES))?;
        Ok(Reader::new(self.store.clone(), pattern, position, changes))
    }
}

/// Deletes up to `limit` of the oldest events, those from before `expired`. Each
/// publish does a little more of it than it adds, so that no writer waits long.
async fn forget(tx: &DatabaseTransaction, expired: DateTime<Utc>, limit: u64) -> Result<(), Error> {
    let oldest = |limit| {
        log::Entity::find()
            .select_only()
            .columns([log::Column::Seq, log::Column::PublishedAt])
            .order_by_asc(log::Column::Seq)
            .limit(limit)
            .into_tuple::<(i64, DateTime<Utc>)>()
    };
    // Mostly there is nothing to do, and one row tells.
    if oldest(1).one(tx).await?.is_none_or(|(_, published)| published >= expired) {
        return Ok(());
    }
    let oldest = oldest(limit).all(tx).await?;
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
            Ok(()) => {
                // Where this fails, or the process ends before it, readers find
                // out by themselves a little later.
                let _ = self.published.write_at(b".", 0);
                (0..count).map(|_| Ok(())).collect()
            }
            Err(why) => (0..count).map(|_| Err(Error::Broker(why.to_string()))).collect(),
        }
    }

    async fn subscribe(&self, group: &str, pattern: &str) -> Result<Box<dyn Consumer>, Error> {
        let reader = self.reader(pattern, 0)?;
        let lock = self.folder.join("groups").join(format!("{group}.lock"));
        Ok(Box::new(Member::new(reader, group, lock)))
    }

    async fn tail(&self, topic: &str, from: From) -> Result<Box<dyn Consumer>, Error> {
        self.find(topic).await?;
        let position = match from {
            From::Beginning => 0,
            From::Now => last(&self.store).await?,
            From::At { partition: 0, offset } => {
                let (first, next) = self.bounds(topic).await?[&0];
                check_offset(offset, first, next)?;
                offset - 1
            }
            From::At { partition, .. } => return Err(no_partition(topic, partition)),
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

    async fn groups(&self) -> Result<Vec<GroupStatus>, Error> {
        let topics = self.all_topics().await?;
        let offsets = offset::Entity::find().order_by_asc(offset::Column::GroupName);
        let mut groups = Vec::new();
        for offset::Model { group_name, pattern, seq } in offsets.all(self.store.read()).await? {
            groups.extend(self.status(&topics, &group_name, &pattern, seq).await?);
        }
        Ok(groups)
    }

    async fn group(&self, group: &str, pattern: &str) -> Result<Vec<GroupStatus>, Error> {
        let offset = offset::Entity::find_by_id(group).one(self.store.read()).await?;
        let seq = offset.map_or(0, |offset| offset.seq);
        self.status(&self.all_topics().await?, group, pattern, seq).await
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
        let topics = self.all_topics().await?.into_iter().map(|topic| {
            let events = counts.iter().find(|(name, _)| *name == topic.name).map_or(0, |(_, n)| *n);
            TopicStatus { name: topic.name, partitions: 1, events }
        });
        Ok(topics.collect())
    }
}
