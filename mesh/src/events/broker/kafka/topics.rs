//! Topics: what there is, and making what is missing. Each call has a client of
//! its own, gone when it returns: these are calls of a start and of people.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    admin::{
        AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
    },
    consumer::{BaseConsumer, Consumer as _},
    error::RDKafkaErrorCode as Code,
    metadata::Metadata,
};
use tracing::warn;

use super::{Log, OffThread, blocking, settings::Settings};
use crate::{
    Error,
    events::{RETENTION, broker::TopicStatus},
};

/// How long a call may take altogether.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// How long one that is asked why may try.
const TROUBLE_LIMIT: Duration = Duration::from_secs(2);

/// How long the broker may take to make topics, or to describe them.
const ADMIN_LIMIT: Duration = Duration::from_secs(5);

/// Shared with a call on another thread.
pub(super) type Client = Arc<OffThread<AdminClient<Log>>>;

pub(super) fn connect(settings: &Settings) -> Result<Client, Error> {
    let client = settings.admin().create_with_context(Log::default());
    let client = client.map_err(|why| Error::Broker(why.to_string()))?;
    Ok(Arc::new(OffThread::new(client)))
}

/// All topics but Kafka's own, by name.
pub(super) async fn list(settings: &Settings) -> Result<Vec<TopicStatus>, Error> {
    let settings = settings.clone();
    blocking(move || {
        let ends = Instant::now() + LIMIT;
        let client = connect(&settings)?;
        let metadata = metadata(&client, &settings)?;
        let mut all = Vec::new();
        for topic in metadata.topics() {
            if topic.name().starts_with("__") {
                continue;
            }
            let mut events = 0;
            for partition in topic.partitions() {
                let (first, next) = bounds(&client, topic.name(), partition.id(), ends)?;
                events += next - first;
            }
            all.push(TopicStatus {
                name: topic.name().to_owned(),
                partitions: i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX),
                events,
            });
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    })
    .await
}

/// Each partition of `topic` with its first offset and its next.
pub(super) async fn watermarks(
    settings: &Settings,
    topic: &str,
) -> Result<Vec<(i32, i64, i64)>, Error> {
    let settings = settings.clone();
    let topic = topic.to_owned();
    blocking(move || {
        let ends = Instant::now() + LIMIT;
        let client = connect(&settings)?;
        // Asked for by its name, a topic might be made by the broker.
        let metadata = metadata(&client, &settings)?;
        let Some(found) = metadata.topics().iter().find(|t| t.name() == topic) else {
            return Err(Error::Broker(format!(
                "there is no topic `{topic}`: `omni events topics` lists those there are; it is \
                 made when the service that publishes to it starts"
            )));
        };
        let bounds = |partition: i32| {
            let (first, next) = bounds(&client, &topic, partition, ends)?;
            Ok((partition, first, next))
        };
        found.partitions().iter().map(|p| bounds(p.id())).collect()
    })
    .await
}

pub(super) fn metadata(client: &Client, settings: &Settings) -> Result<Metadata, Error> {
    client.inner().fetch_metadata(None, LIMIT).map_err(|why| {
        let why = trouble(settings).unwrap_or_else(|| why.to_string());
        Error::Broker(format!(
            "no answer from {} within {LIMIT:?} ({why}): are `events` and `kafka.*` right, and \
             Kafka up?",
            settings.servers
        ))
    })
}

/// Why no connection comes about. An admin client doesn't tell, so another one
/// tries.
fn trouble(settings: &Settings) -> Option<String> {
    let asking = settings.admin().create_with_context(Log::default()).ok()?;
    let asking: OffThread<BaseConsumer<Log>> = OffThread::new(asking);
    // It fails as the first one did, and says why on the way.
    let _ = asking.fetch_metadata(None, TROUBLE_LIMIT);
    while asking.context().trouble().is_none() && asking.poll(Duration::ZERO).is_some() {}
    asking.context().trouble()
}

/// [`metadata`], for an async caller.
async fn ask(client: &Client, settings: &Settings) -> Result<Metadata, Error> {
    let (client, settings) = (Arc::clone(client), settings.clone());
    blocking(move || metadata(&client, &settings)).await
}

pub(super) fn bounds(
    client: &Client,
    topic: &str,
    partition: i32,
    ends: Instant,
) -> Result<(i64, i64), Error> {
    let left = ends.saturating_duration_since(Instant::now());
    let bounds = client.inner().fetch_watermarks(topic, partition, left);
    bounds.map_err(|why| Error::Broker(format!("partition {partition} of `{topic}`: {why}")))
}

/// As [`super::Broker::ensure`].
pub(super) async fn ensure(settings: &Settings, topics: &[String]) -> Result<(), Error> {
    let client = connect(settings)?;
    let found = ask(&client, settings).await?;
    let brokers = i32::try_from(found.brokers().len()).unwrap_or(i32::MAX);
    let wanted = Wanted::new(settings, brokers);
    let found: HashMap<&str, Layout> =
        found.topics().iter().map(|topic| (topic.name(), Layout::of(topic.partitions()))).collect();
    let topics: BTreeSet<&str> = topics.iter().map(String::as_str).collect();
    let (there, missing): (Vec<&str>, Vec<&str>) =
        topics.into_iter().partition(|topic| found.contains_key(topic));
    if !missing.is_empty() {
        create(&client, settings, &wanted, &missing).await?;
    }
    if !there.is_empty() {
        let configs = describe(&client, &there).await;
        for topic in there {
            let differences = wanted.differences(&found[topic], configs.get(topic));
            if !differences.is_empty() {
                warn!(topic, "the topic isn't as it would be made: {}", differences.join(", "));
            }
        }
    }
    Ok(())
}

/// How a topic is to be.
struct Wanted {
    layout: Layout,
    configs: Vec<(&'static str, String)>,
}

/// How a topic lies on the brokers.
#[derive(Clone, Copy)]
struct Layout {
    partitions: i32,
    replication: i32,
}

impl Layout {
    fn of(partitions: &[rdkafka::metadata::MetadataPartition]) -> Self {
        let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        Self {
            partitions: count(partitions.len()),
            replication: count(partitions.iter().map(|p| p.replicas().len()).min().unwrap_or(0)),
        }
    }
}

impl Wanted {
    fn new(settings: &Settings, brokers: i32) -> Self {
        let replication = settings.replication.min(brokers.max(1));
        let mut configs = vec![
            ("cleanup.policy", "delete".to_owned()),
            ("retention.ms", RETENTION.as_millis().to_string()),
            ("max.message.bytes", settings.record_bytes.to_string()),
        ];
        if replication >= 3 {
            // An event is acknowledged when two brokers have it, so that the
            // loss of one loses none.
            configs.push(("min.insync.replicas", "2".to_owned()));
        }
        Self { layout: Layout { partitions: settings.partitions, replication }, configs }
    }

    /// What `layout` and `configs` have otherwise, as people read it. Nothing is
    /// said of configs that the broker didn't tell.
    fn differences(&self, layout: &Layout, configs: Option<&ConfigResource>) -> Vec<String> {
        let differs = |name: &str, is: &str, wanted: &str| format!("{name} is {is}, not {wanted}");
        let layouts = [
            ("partitions", layout.partitions, self.layout.partitions),
            ("replication", layout.replication, self.layout.replication),
        ];
        let layouts = layouts
            .into_iter()
            .filter(|(_, is, wanted)| is != wanted)
            .map(|(name, is, wanted)| differs(name, &is.to_string(), &wanted.to_string()));
        let configs = self.configs.iter().filter_map(|(name, wanted)| {
            let is = configs?.get(name)?.value.as_deref()?;
            (is != wanted).then(|| differs(name, is, wanted))
        });
        layouts.chain(configs).collect()
    }
}

async fn create(
    client: &Client,
    settings: &Settings,
    wanted: &Wanted,
    missing: &[&str],
) -> Result<(), Error> {
    let Layout { partitions, replication } = wanted.layout;
    if replication < settings.replication {
        warn!(
            "topics are made with {replication} instead of {} replicas, as many as there are \
             brokers: what a lost disk held is lost",
            settings.replication
        );
    }
    let topics = missing.iter().map(|name| {
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replication));
        let configs = wanted.configs.iter();
        configs.fold(topic, |topic, (name, value)| topic.set(name, value))
    });
    let topics: Vec<_> = topics.collect();
    let answers = match client.create_topics(&topics, &options()).await {
        Ok(answers) => answers,
        Err(why) => {
            // Not every broker that lacks the call says so, some say nothing. The
            // next answer tells that from one that can't be reached any more.
            ask(client, settings).await?;
            warn!("the broker makes no topics ({why}): create {missing:?} there");
            return Ok(());
        }
    };
    for (topic, why) in answers.into_iter().filter_map(Result::err) {
        // Another process was faster.
        if why != Code::TopicAlreadyExists {
            warn!(topic, "the topic can't be made ({why}): create it on the broker");
        }
    }
    Ok(())
}

/// The configs of `topics`, those that the broker tells.
async fn describe(client: &Client, topics: &[&str]) -> HashMap<String, ConfigResource> {
    let resources: Vec<_> = topics.iter().map(|t| ResourceSpecifier::Topic(t)).collect();
    let answers = match client.describe_configs(&resources, &options()).await {
        Ok(answers) => answers,
        Err(why) => {
            warn!("the broker doesn't tell how its topics are set ({why}): they aren't compared");
            return HashMap::new();
        }
    };
    let named = |resource: ConfigResource| match &resource.specifier {
        rdkafka::admin::OwnedResourceSpecifier::Topic(name) => Some((name.clone(), resource)),
        _ => None,
    };
    answers.into_iter().flatten().filter_map(named).collect()
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ADMIN_LIMIT)).operation_timeout(Some(ADMIN_LIMIT))
}

#[cfg(test)]
mod tests {
    use rdkafka::admin::{ConfigEntry, ConfigSource, OwnedResourceSpecifier};

    use super::*;

    #[test]
    fn what_differs_is_said_with_both_values() {
        let settings = Settings::parse("kafka://a:1", 1 << 20).unwrap();
        let wanted = Wanted::new(&settings, 1);
        let entry = |name: &str, value: &str| ConfigEntry {
            name: name.to_owned(),
            value: Some(value.to_owned()),
            source: ConfigSource::Default,
            is_read_only: false,
            is_default: true,
            is_sensitive: false,
        };
        let configs = ConfigResource {
            specifier: OwnedResourceSpecifier::Topic("t".to_owned()),
            entries: vec![entry("retention.ms", "1000"), entry("cleanup.policy", "delete")],
        };
        let layout = Layout { partitions: 3, replication: 1 };
        assert_eq!(
            wanted.differences(&layout, Some(&configs)),
            ["partitions is 3, not 8", "retention.ms is 1000, not 2592000000"]
        );
        assert_eq!(wanted.differences(&wanted.layout, None), [""; 0]);
    }

    #[test]
    fn replicas_are_as_many_as_there_are_brokers_for() {
        let settings = Settings::parse("kafka://a:1", 1 << 20).unwrap();
        let replication = |brokers| Wanted::new(&settings, brokers).layout.replication;
        assert_eq!([1, 2, 3, 9].map(replication), [1, 2, 3, 3]);
        let three = Wanted::new(&settings, 3).configs;
        assert!(three.contains(&("min.insync.replicas", "2".to_owned())));
    }
}
