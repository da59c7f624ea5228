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

/// All groups, or `only` one, with what they have committed, by group, topic and
/// partition.
pub(super) async fn list(
    settings: &Settings,
    only: Option<&str>,
) -> Result<Vec<GroupStatus>, Error> {
    let (settings, only) = (settings.clone(), only.map(str::to_owned));
    blocking(move || {
        let ends = Instant::now() + LIMIT;
        let left = || ends.saturating_duration_since(Instant::now());
        let client = topics::connect(&settings)?;
        let metadata = topics::metadata(&client, &settings)?;
        let failed = |why| Error::Broker(format!("groups can't be listed: {why}"));
        let names = match only {
            Some(only) => vec![only],
            None => {
                let groups = client.inner().fetch_group_list(None, left()).map_err(failed)?;
                groups.groups().iter().map(|group| group.name().to_owned()).collect()
            }
        };
        let mut asked = TopicPartitionList::new();
        for topic in metadata.topics().iter().filter(|topic| !topic.name().starts_with("__")) {
            for partition in topic.partitions() {
                asked.add_partition(topic.name(), partition.id());
            }
        }
        let mut all = Vec::new();
        for name in names {
            let mut config = settings.admin();
            config.set("group.id", &name);
            let asking = config.create_with_context(Log);
            let asking: OffThread<BaseConsumer<Log>> = OffThread::new(asking.map_err(failed)?);
            let told = asking.committed_offsets(asked.clone(), left()).map_err(failed)?;
            for place in told.elements() {
                let Offset::Offset(position) = place.offset() else { continue };
                let (topic, partition) = (place.topic(), place.partition());
                let (_, next) = topics::bounds(&client, topic, partition, ends)?;
                all.push(GroupStatus {
                    group: name.clone(),
                    topic: topic.to_owned(),
                    partition,
                    position,
                    lag: (next - position).max(0),
                });
            }
        }
        all.sort_by_key(|of| (of.group.clone(), of.topic.clone(), of.partition));
        Ok(all)
    })
    .await
}
