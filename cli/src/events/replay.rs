//! `omni events replay`: a topic's events once more, for one group.

use std::collections::HashSet;

use anyhow::{Context as _, bail, ensure};
use mesh::{
    config::Config,
    events::{
        Attributes, Inbox,
        broker::{self, Broker, Record, Scan},
    },
};
use sha2::{Digest as _, Sha256};

use super::publish::{self, Publisher};
use crate::{
    args::{Common, EventsReplay},
    catalogue, config, output,
};

/// Publishes what the group lacks to its topic once more. Groups that have
/// handled it pass it over.
pub(crate) async fn run(common: &Common, args: &EventsReplay) -> anyhow::Result<()> {
    let config = config::load(common, &[])?;
    let broker = broker::broker(&config).await?;
    let inbox = inbox(&config, args).await?;
    let done = replay(&config, broker.as_ref(), &inbox, args).await;
    inbox.close().await;
    done
}

/// The inbox of a group, in the database of the service that its name begins with;
/// the rest of it is what it reads.
async fn inbox(config: &Config, args: &EventsReplay) -> anyhow::Result<Inbox> {
    let EventsReplay { group, topic, again, .. } = args;
    let (service, pattern) = group.split_once('.').unwrap_or((group, ""));
    let mut descriptors = catalogue::descriptors().into_iter();
    let descriptor = descriptors
        .find(|of| of.name == service && of.has_database())
        .with_context(|| format!("there is no group `{group}`: see `omni events groups`"))?;
    let reads =
        topic.strip_prefix(pattern).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    ensure!(reads, "the group `{group}` doesn't read `{topic}`: see `omni events groups`");
    let inbox = Inbox::open(config, service, descriptor.migrations, group).await?;
    ensure!(
        *again || inbox.knows_any().await?,
        "`{group}` has handled nothing, as far as this database tells; if it is {service}'s, and \
         has lost all of it, pass --again",
    );
    Ok(inbox)
}

async fn replay(
    config: &Config,
    broker: &dyn Broker,
    inbox: &Inbox,
    args: &EventsReplay,
) -> anyhow::Result<()> {
    let mut count = 0;
    let mut wanted = Wanted::begin(broker, inbox, args).await?;
    while let Some(records) = wanted.next().await? {
        count += records.len();
    }
    output::line(&format!("{count} of {}", args.topic))?;
    if count == 0 {
        return output::line("nothing to replay");
    }
    if args.consent.dry_run {
        return Ok(());
    }
    if !output::confirm(&format!("Replay {count} for {}?", args.group), args.consent.yes)? {
        bail!("nothing was replayed");
    }
    let time = |time: Option<chrono::DateTime<chrono::Utc>>| {
        time.map_or_else(|| "..".to_owned(), |time| time.to_rfc3339())
    };
    let again = if args.again { ", again" } else { "" };
    let reason = format!("for {} from {} to {}{again}", args.group, time(args.from), time(args.to));
    publish::audit(config, broker, "events.replay", (&args.topic, count), reason).await?;

    // The topic is read a second time: what it holds need not fit into memory.
    let mut wanted = Wanted::begin(broker, inbox, args).await?;
    let mut publisher = Publisher::new(broker, &args.rate, count);
    while let Some(records) = wanted.next().await? {
        if args.again {
            let events: Vec<_> = records.iter().map(|record| &record.event.attributes).collect();
            inbox.forget(&events).await?;
        }
        publisher.publish(&records).await?;
    }
    output::line(&format!("{} replayed", publisher.end()))
}

/// The events of the topic that are to be replayed, each once.
struct Wanted<'a> {
    scan: Scan,
    inbox: &'a Inbox,
    args: &'a EventsReplay,
    /// A digest of each, 32 bytes: a replay, or a crash, has put some there twice.
    seen: HashSet<[u8; 32]>,
}

impl<'a> Wanted<'a> {
    async fn begin(
        broker: &dyn Broker,
        inbox: &'a Inbox,
        args: &'a EventsReplay,
    ) -> anyhow::Result<Self> {
        let scan = Scan::of(broker, &args.topic).await?;
        Ok(Self { scan, inbox, args, seen: HashSet::new() })
    }

    /// Some of them; `None` at the end.
    async fn next(&mut self) -> anyhow::Result<Option<Vec<Record>>> {
        let Some(deliveries) = self.scan.next().await? else { return Ok(None) };
        let mut records = Vec::new();
        for event in deliveries.into_iter().filter_map(|delivery| delivery.event.ok()) {
            if self.is_in_time(&event.attributes) && self.seen.insert(digest(&event.attributes)) {
                records.push(Record { topic: self.args.topic.clone(), event });
            }
        }
        if !self.args.again && !records.is_empty() {
            let events: Vec<_> = records.iter().map(|record| &record.event.attributes).collect();
            let lacking = self.inbox.lacks(&events).await?;
            records = lacking.into_iter().map(|index| records[index].clone()).collect();
        }
        Ok(Some(records))
    }

    fn is_in_time(&self, event: &Attributes) -> bool {
        let EventsReplay { from, to, .. } = self.args;
        from.is_none_or(|from| event.time >= from) && to.is_none_or(|to| event.time < to)
    }
}

fn digest(event: &Attributes) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update((event.source.len() as u64).to_be_bytes());
    digest.update(&event.source);
    digest.update(&event.id);
    digest.finalize().into()
}
