//! Groups, and how far they have got.

use std::time::{Duration, Instant};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    topic_partition_list::TopicPartitionListElem,
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
        let partitions = asking.partitions(|topic| !topic.starts_with("__"))?;
        let groups = asking.client.inner().fetch_group_list(None, asking.left()).map_err(failed)?;
        let mut all = Vec::new();
        for group in groups.groups() {
            let places = asking.places(group.name(), &partitions)?;
            all.extend(
                places.into_iter().filter(|place| place.has_begun).map(|place| place.status),
            );
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
        let places = asking.places(&group, &partitions)?;
        let mut all: Vec<_> = places.into_iter().map(|place| place.status).collect();
        all.sort_by_key(|of| (of.topic.clone(), of.partition));
        Ok(all)
    })
    .await
}

fn failed(why: impl std::fmt::Display) -> Error {
    Error::Broker(format!("groups can't be listed: {why}"))
}

struct Place {
    status: GroupStatus,
    /// Whether the group has committed anything there.
    has_begun: bool,
}

/// Questions that are answered before a deadline.
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

    /// The partitions of the topics that are wanted.
    fn partitions(&self, wanted: impl Fn(&str) -> bool) -> Result<TopicPartitionList, Error> {
        let metadata = topics::metadata(&self.client, self.settings)?;
        let mut partitions = TopicPartitionList::new();
        for topic in metadata.topics().iter().filter(|topic| wanted(topic.name())) {
            for partition in topic.partitions() {
                partitions.add_partition(topic.name(), partition.id());
            }
        }
        Ok(partitions)
    }

    /// How far `group` has got in `partitions`.
    fn places(&self, group: &str, partitions: &TopicPartitionList) -> Result<Vec<Place>, Error> {
        let mut config = self.settings.admin();
        config.set("group.id", group);
        let asking = config.create_with_context(Log::default());
        let asking: OffThread<BaseConsumer<Log>> = OffThread::new(asking.map_err(failed)?);
        let told = asking.committed_offsets(partitions.clone(), self.left()).map_err(failed)?;
        let place = |of: TopicPartitionListElem<'_>| {
            let (topic, partition) = (of.topic(), of.partition());
            let (first, next) = topics::bounds(&self.client, topic, partition, self.ends)?;
            let (position, has_begun) = match of.offset() {
                Offset::Offset(position) => (position, true),
                // It will read from the first event that is kept.
                _ => (first, false),
            };
            let lag = (next - position).max(0);
            let (group, topic) = (group.to_owned(), topic.to_owned());
            let status = GroupStatus { group, topic, partition, position, lag };
            Ok(Place { status, has_begun })
        };
        told.elements().into_iter().map(place).collect()
    }
}
