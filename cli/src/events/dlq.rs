//! `omni events dlq`: what consumers gave up on.

use std::collections::{BTreeMap, HashSet};

use anyhow::{bail, ensure};
use mesh::{
    config::Config,
    events::{
        UNDECODABLE,
        broker::{self, Broker, Record},
    },
};

use super::{
    letters::{How, Letter, letters},
    publish::{self, Publisher},
    show,
};
use crate::{
    args::{Common, Consent, DlqDiscard, DlqList, DlqReplay, DlqShow},
    config,
    output::{self, Table},
};

/// How many letters are taken off the list at once.
const BATCH: usize = 100;

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
    let mut letters = args.choice.letters(broker.as_ref()).await?;
    let before = letters.len();
    letters.retain(|letter| letter.event.attributes.kind != UNDECODABLE);
    let undecodable = before - letters.len();
    if undecodable > 0 {
        eprintln!("{undecodable} are no CloudEvents, and would be dead again: passed over");
    }
    if !announce(&config, broker.as_ref(), &letters, &args.consent, "replay").await? {
        return Ok(());
    }
    let records = once_each(&letters);
    let mut publisher = Publisher::new(broker.as_ref(), &args.rate, records.len());
    publisher.publish(&records).await?;
    settle(broker.as_ref(), &letters, How::Replayed).await?;
    output::line(&format!("{} replayed", publisher.end()))
}

/// Takes letters off the list.
pub(super) async fn discard(common: &Common, args: &DlqDiscard) -> anyhow::Result<()> {
    let config = config::load(common, &[])?;
    let broker = broker::broker(&config).await?;
    let letters = args.choice.letters(broker.as_ref()).await?;
    if !announce(&config, broker.as_ref(), &letters, &args.consent, "discard").await? {
        return Ok(());
    }
    settle(broker.as_ref(), &letters, How::Discarded).await?;
    output::line(&format!("{} discarded", letters.len()))
}

/// Says what would be done to `letters`, asks, and has it in the trail; `false`
/// where there is nothing to do, or not yet.
async fn announce(
    config: &Config,
    broker: &dyn Broker,
    letters: &[Letter],
    consent: &Consent,
    what: &str,
) -> anyhow::Result<bool> {
    let mut topics: BTreeMap<&str, usize> = BTreeMap::new();
    for letter in letters {
        *topics.entry(&letter.topic).or_default() += 1;
    }
    for (topic, count) in &topics {
        output::line(&format!("{count} of {topic}"))?;
    }
    if letters.is_empty() {
        output::line(&format!("nothing to {what}"))?;
        return Ok(false);
    }
    if consent.dry_run {
        return Ok(false);
    }
    if !output::confirm(&format!("{what} {} letters?", letters.len()), consent.yes)? {
        bail!("nothing was done");
    }
    for of_topic in topics {
        let action = format!("events.dlq.{what}");
        publish::audit(config, broker, &action, of_topic, String::new()).await?;
    }
    Ok(true)
}

/// The events of `letters`, each once: it may have been given up on by several
/// groups.
fn once_each(letters: &[Letter]) -> Vec<Record> {
    let mut seen = HashSet::new();
    let once = letters.iter().filter(|letter| {
        let attributes = &letter.event.attributes;
        seen.insert((&letter.topic, &attributes.source, &attributes.id))
    });
    once.map(|letter| Record { topic: letter.topic.clone(), event: letter.original() }).collect()
}

async fn settle(broker: &dyn Broker, letters: &[Letter], how: How) -> anyhow::Result<()> {
    for letters in letters.chunks(BATCH) {
        publish::publish(broker, letters.iter().map(|letter| letter.settled(how)).collect())
            .await?;
    }
    Ok(())
}
