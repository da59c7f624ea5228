//! Groups, and how far they have got.

use std::time::{Duration, Instant};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};

use super::{
    Log, OffThread, blocking,
    settings::Settings,
    topics::{self, Client, LIMIT},
};
use crate::{
    Error,
    events::broker::{GroupStatus, matches},
};

/// All groups with what they have committed, by group, topic and partition.
pub(super) async fn list(settings: &Settings) -> Result<Vec<GroupStatus>, Error> {
    let settings = settings.clone();
    blocking(move || {
        let asking = Asking::connect(&settings)?;
        let partitions = asking.partitions(|_| true)?;
        let groups = asking.client.inner().fetch_group_list(None, asking.left()).map_err(failed)?;
        let mut all = Vec::new();
        for group in groups.groups() {
            all.extend(asking.statuses(group.name(), &partitions, false)?);
        }
        all.sort_by_key(|of| (of.group.clone(), of.topic.clone(), of.partition));
        Ok(all)
    })
    .await
}

/// As [`super::Broker::group`].
pub(super) async fn one(
    settings: &Settings,
    group: &str,
    pattern: &str,
) -> Result<Vec<GroupStatus>, Error> {
    let (settings, group, pattern) = (settings.clone(), group.to_owned(), pattern.to_owned());
    blocking(move || {
        let asking = Asking::connect(&settings)?;
        let partitions = asking.partitions(|topic| matches(&pattern, topic))?;
        let mut all = asking.statuses(&group, &partitions, true)?;
        all.sort_by_key(|of| (of.topic.clone(), of.partition));
        Ok(all)
    })
    .await
}

fn failed(why: impl std::fmt::Display) -> Error {
    Error::Broker(format!("groups can't be listed: {why}"))
}

/// Questions, with a deadline for all after the first.
struct Asking<'a> {
    settings: &'a Settings,
    client: Client,
    ends: Instant,
}

impl<'a> Asking<'a> {
    fn connect(settings: &'a Settings) -> Result<Self, Error> {
        Ok(Self { settings, client: topics::connect(settings)?, ends: Instant::now() + LIMIT })
    }

    fn left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }

    /// The partitions of the topics that are wanted, Kafka's own never among them.
    fn partitions(&self, wanted: impl Fn(&str) -> bool) -> Result<TopicPartitionList, Error> {
        let metadata = topics::metadata(&self.client, self.settings)?;
        let mut partitions = TopicPartitionList::new();
        let wanted = |name: &str| !name.starts_with("__") && wanted(name);
        for topic in metadata.topics().iter().filter(|topic| wanted(topic.name())) {
            for partition in topic.partitions() {
                partitions.add_partition(topic.name(), partition.id());
            }
        }
        Ok(partitions)
    }

    /// How far `group` has got in `partitions`: in those that it has begun, or in
    /// all.
    fn statuses(
        &self,
        group: &str,
        partitions: &TopicPartitionList,
        all: bool,
    ) -> Result<Vec<GroupStatus>, Error> {
        let mut config = self.settings.admin();
        config.set("group.id", group);
        let asking = config.create_with_context(Log::default());
        let asking: OffThread<BaseConsumer<Log>> = OffThread::new(asking.map_err(failed)?);
        let told = asking.committed_offsets(partitions.clone(), self.left()).map_err(failed)?;
        let mut statuses = Vec::new();
        for place in told.elements() {
            let position = match place.offset() {
                Offset::Offset(position) => Some(position),
                _ if all => None,
                _ => continue,
            };
            let (topic, partition) = (place.topic(), place.partition());
            let (first, next) = topics::bounds(&self.client, topic, partition, self.ends)?;
            // It will read from the first event that is kept.
            let position = position.unwrap_or(first);
            let lag = (next - position).max(0);
            let (group, topic) = (group.to_owned(), topic.to_owned());
            statuses.push(GroupStatus { group, topic, partition, position, lag });
        }
        Ok(statuses)
    }
}
