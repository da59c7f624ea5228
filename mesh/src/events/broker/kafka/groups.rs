//! Groups, and how far they have got.

use std::time::Instant;

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};

use super::{
    Log, OffThread, blocking,
    settings::Settings,
    topics::{self, LIMIT},
};
use crate::{Error, events::broker::GroupStatus};

/// All groups with what they have committed, by group, topic and partition.
pub(super) async fn list(settings: &Settings) -> Result<Vec<GroupStatus>, Error> {
    let settings = settings.clone();
    blocking(move || {
        let ends = Instant::now() + LIMIT;
        let left = || ends.saturating_duration_since(Instant::now());
        let client = topics::connect(&settings)?;
        let metadata = topics::metadata(&client, &settings)?;
        let failed = |why| Error::Broker(format!("groups can't be listed: {why}"));
        let groups = client.inner().fetch_group_list(None, left()).map_err(failed)?;
        let mut all = Vec::new();
        for group in groups.groups() {
            let asking = settings.consumer(group.name()).create_with_context(Log);
            let asking: OffThread<BaseConsumer<Log>> = OffThread::new(asking.map_err(failed)?);
            let mut asked = TopicPartitionList::new();
            for topic in metadata.topics().iter().filter(|topic| !topic.name().starts_with("__")) {
                for partition in topic.partitions() {
                    asked.add_partition(topic.name(), partition.id());
                }
            }
            let told = asking.committed_offsets(asked, left()).map_err(failed)?;
            for place in told.elements() {
                let Offset::Offset(position) = place.offset() else { continue };
                let (topic, partition) = (place.topic(), place.partition());
                let (_, next) = topics::bounds(&client, topic, partition, ends)?;
                all.push(GroupStatus {
                    group: group.name().to_owned(),
                    topic: topic.to_owned(),
                    partition,
                    position,
                    lag: (next - position).max(0),
                });
            }
        }
        let by = |a: &GroupStatus| (a.group.clone(), a.topic.clone(), a.partition);
        all.sort_by_key(by);
        Ok(all)
    })
    .await
}
