//! `omni events dlq`: what consumers gave up on.

use std::{
    collections::{BTreeMap, HashSet},
    io::IsTerminal as _,
    time::Duration,
};

use anyhow::{bail, ensure};
use api::audit::v1::{AuditEvent, Outcome};
use indicatif::ProgressBar;
use mesh::{
    config::Config,
    events::{
        AUDIT, DEAD_LETTERS, Event, UNDECODABLE,
        broker::{self, Broker, Delivery, Record, Scan},
    },
    identity,
};

use super::show;
use crate::{
    args::{Common, DlqList, DlqReplay, DlqShow},
    config,
    output::{self, Table},
};

/// How many events are published at once, and how long that may take.
const BATCH: usize = 100;
const PUBLISH: Duration = Duration::from_secs(30);

/// One dead letter.
struct Letter {
    /// The topic it was given up on, by the name of the letters' own: what a letter
    /// says of itself may be anybody's.
    topic: String,
    delivery: Delivery,
    event: Event,
}

impl Letter {
    /// What the letter says of itself: `what` is reason, topic, group, attempts,
    /// time, partition or offset.
    fn says(&self, what: &str) -> &str {
        self.event.attributes.extensions.get(&format!("dlq{what}")).map_or("", String::as_str)
    }

    /// The event as it was before it was given up on.
    fn original(&self) -> Event {
        let mut event = self.event.clone();
        event.attributes.extensions.retain(|name, _| !name.starts_with("dlq"));
        event
    }
}

/// All letters of `topic`, or of every topic.
async fn letters(broker: &dyn Broker, topic: Option<&str>) -> anyhow::Result<Vec<Letter>> {
    let mut letters = Vec::new();
    for status in broker.topics().await? {
        let Some(of) = status.name.strip_prefix(DEAD_LETTERS) else { continue };
        if topic.is_some_and(|topic| topic != of) {
            continue;
        }
        let mut scan = Scan::of(broker, &status.name).await?;
        while let Some(deliveries) = scan.next().await? {
            letters.extend(deliveries.into_iter().filter_map(|delivery| {
                let event = delivery.event.clone().ok()?;
                Some(Letter { topic: of.to_owned(), delivery, event })
            }));
        }
    }
    Ok(letters)
}

/// Lists the letters.
pub(super) async fn list(common: &Common, args: &DlqList) -> anyhow::Result<()> {
    let config = config::load(common, &[])?;
    let broker = broker::broker(&config).await?;
    let letters = letters(broker.as_ref(), args.topic.as_deref()).await?;
    if args.json {
        let all: Vec<_> = letters.iter().map(|l| show::cloud_event(&l.delivery)).collect();
        return output::json(&all);
    }
    let mut table = Table::new(["TIME", "TOPIC", "ID", "GROUP", "ATTEMPTS", "REASON"]);
    for letter in letters {
        let says = |what| show::printable(letter.says(what));
        let id = show::printable(&letter.event.attributes.id);
        table.row([
            says("time"),
            show::printable(&letter.topic),
            id,
            says("group"),
            says("attempts"),
            says("reason").replace('\n', " "),
        ]);
    }
    table.print()
}

/// Prints the letters of one event.
pub(super) async fn show(common: &Common, args: &DlqShow) -> anyhow::Result<()> {
    let config = config::load(common, &[])?;
    let broker = broker::broker(&config).await?;
    let mut found = letters(broker.as_ref(), None).await?;
    found.retain(|letter| letter.event.attributes.id == args.id);
    ensure!(!found.is_empty(), "there is no dead letter `{}`: see `omni events dlq list`", args.id);
    for letter in found {
        output::json(&show::cloud_event(&letter.delivery))?;
    }
    Ok(())
}

/// Publishes letters to their topics once more.
pub(super) async fn replay(common: &Common, args: &DlqReplay) -> anyhow::Result<()> {
    let config = config::load(common, &[])?;
    let broker = broker::broker(&config).await?;
    let (records, undecodable) = chosen(broker.as_ref(), args).await?;
    if undecodable > 0 {
        eprintln!("{undecodable} are no CloudEvents, and would be dead again: passed over");
    }
    let mut topics: BTreeMap<&str, usize> = BTreeMap::new();
    for record in &records {
        *topics.entry(&record.topic).or_default() += 1;
    }
    for (topic, count) in &topics {
        output::line(&format!("{count} to {topic}"))?;
    }
    if records.is_empty() {
        return output::line("nothing to replay");
    }
    if args.dry_run {
        return Ok(());
    }
    if !output::confirm(&format!("Replay {}?", records.len()), args.yes)? {
        bail!("nothing was replayed");
    }
    let audited: Vec<(String, usize)> =
        topics.into_iter().map(|(topic, count)| (topic.to_owned(), count)).collect();
    audit(&config, broker.as_ref(), &audited).await?;
    publish(broker.as_ref(), records).await
}

/// What is to be published, each event once, and how many can't be.
async fn chosen(broker: &dyn Broker, args: &DlqReplay) -> anyhow::Result<(Vec<Record>, usize)> {
    let mut found = letters(broker, args.topic.as_deref()).await?;
    if !args.all {
        for id in &args.ids {
            let known = found.iter().any(|letter| letter.event.attributes.id == *id);
            ensure!(known, "there is no dead letter `{id}`: see `omni events dlq list`");
        }
        found.retain(|letter| args.ids.contains(&letter.event.attributes.id));
    }
    let before = found.len();
    found.retain(|letter| letter.event.attributes.kind != UNDECODABLE);
    let undecodable = before - found.len();
    let mut seen = HashSet::new();
    let records =
        found.iter().map(|letter| Record { topic: letter.topic.clone(), event: letter.original() });
    let key = |record: &Record| {
        let attributes = &record.event.attributes;
        (record.topic.clone(), attributes.source.clone(), attributes.id.clone())
    };
    Ok((records.filter(|record| seen.insert(key(record))).collect(), undecodable))
}

async fn publish(broker: &dyn Broker, records: Vec<Record>) -> anyhow::Result<()> {
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::new(records.len() as u64),
        false => ProgressBar::hidden(),
    };
    let mut done = 0;
    for batch in records.chunks(BATCH) {
        for published in broker.publish(batch.to_vec(), PUBLISH).await {
            if let Err(why) = published {
                bail!("{done} were replayed, then: {why}; once more replays the rest");
            }
            done += 1;
        }
        bar.set_position(done);
    }
    bar.finish_and_clear();
    output::line(&format!("{done} replayed"))
}

/// Who replays what is in the trail before it happens.
async fn audit(
    config: &Config,
    broker: &dyn Broker,
    topics: &[(String, usize)],
) -> anyhow::Result<()> {
    let operator = identity::authority(config)?.identity("operator").await?;
    let mut records = Vec::new();
    for (topic, count) in topics {
        let message = AuditEvent {
            actor: operator.id().to_string(),
            on_behalf_of: String::new(),
            action: "events.dlq.replay".to_owned(),
            resource: topic.clone(),
            outcome: Outcome::Allowed.into(),
            reason: String::new(),
            count: i64::try_from(*count)?,
        };
        let event = Event::typed("/operators", &message.actor, &message)?;
        records.push(Record { topic: AUDIT.to_owned(), event });
    }
    for published in broker.publish(records, PUBLISH).await {
        published?;
    }
    Ok(())
}
