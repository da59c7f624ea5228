//! The commands about topics and their events.

use chrono::{DateTime, Utc};
use clap::{Args as ClapArgs, Subcommand};

use super::Listing;

#[derive(Debug, Subcommand)]
pub(crate) enum EventsCommand {
    /// Print the events of a topic as they come
    Tail(EventsTail),
    /// List the topics
    Topics(Listing),
    /// Show how far each group of consumers has got
    #[command(visible_alias = "lag")]
    Groups(Listing),
    /// Tell the story of one correlation, over all topics
    Trace(EventsTrace),
    /// Bring a group the events of a topic that it hasn't handled, or all once more
    Replay(EventsReplay),
    /// Look at what consumers gave up on, and try it again
    #[command(subcommand)]
    Dlq(DlqCommand),
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  omni events tail hooks.demo --from-beginning
  omni events tail hooks.demo --since 10m --type push
  omni events tail hooks.demo --partition 3 --offset 1200 --limit 1
  omni events tail services.lifecycle --from-beginning --limit 5 --json | jq .")]
pub(crate) struct EventsTail {
    /// The topic
    pub(crate) topic: String,
    /// Begin with the first event that is kept, not with the next
    #[arg(long)]
    pub(crate) from_beginning: bool,
    /// Begin with events of this time: 10m, 2h, 1d ago, or 2026-11-21T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since, conflicts_with = "from_beginning")]
    pub(crate) since: Option<DateTime<Utc>>,
    /// Begin with the event at this place of one partition, and read no other
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["from_beginning", "since"])]
    pub(crate) offset: Option<i64>,
    /// The partition of --offset
    #[arg(long, value_name = "NUMBER", default_value_t = 0, requires = "offset")]
    pub(crate) partition: i32,
    #[command(flatten)]
    pub(crate) filter: EventFilter,
    /// Stop after so many events
    #[arg(long, short = 'n', value_name = "COUNT")]
    pub(crate) limit: Option<u64>,
    /// Print each event as a CloudEvent in JSON, on one line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct EventFilter {
    /// Only events of this type
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kind: Option<String>,
    /// Only events of this source, such as /hooks/demo
    #[arg(long)]
    pub(crate) source: Option<String>,
    /// Only events of this correlation
    #[arg(long, value_name = "ID")]
    pub(crate) correlation_id: Option<String>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Example: post a webhook, and follow the correlation_id of its answer
  omni events trace 0198c0de-7000-7000-8000-000000000000")]
pub(crate) struct EventsTrace {
    /// The correlation id
    pub(crate) correlation_id: String,
    /// Print the events as CloudEvents in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DlqCommand {
    /// List the dead letters
    List(DlqList),
    /// Print the letters of one event as CloudEvents in JSON
    Show(DlqShow),
    /// Publish letters to their topics once more; what was handled meanwhile isn't handled again
    Replay(DlqReplay),
    /// Take letters off the list without trying them again
    Discard(DlqDiscard),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DlqList {
    /// Only those of this topic, such as hooks.demo
    #[arg(long)]
    pub(crate) topic: Option<String>,
    /// Print them as CloudEvents in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DlqShow {
    /// The event's id
    pub(crate) id: String,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  omni events dlq replay 0198c0de-7000-7000-8000-000000000000
  omni events dlq replay --all --topic hooks.demo --dry-run
  omni events dlq replay --all --yes")]
pub(crate) struct DlqReplay {
    #[command(flatten)]
    pub(crate) choice: DlqChoice,
    #[command(flatten)]
    pub(crate) consent: Consent,
    #[command(flatten)]
    pub(crate) rate: Rate,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  omni events dlq discard 0198c0de-7000-7000-8000-000000000000
  omni events dlq discard --all --topic hooks.demo --yes")]
pub(crate) struct DlqDiscard {
    #[command(flatten)]
    pub(crate) choice: DlqChoice,
    #[command(flatten)]
    pub(crate) consent: Consent,
}

/// Which letters.
#[derive(Debug, ClapArgs)]
pub(crate) struct DlqChoice {
    /// The ids of the events
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// All there are
    #[arg(long)]
    pub(crate) all: bool,
    /// Only those of this topic, such as hooks.demo
    #[arg(long)]
    pub(crate) topic: Option<String>,
}

/// Whether it is to be done.
#[derive(Debug, ClapArgs)]
pub(crate) struct Consent {
    /// Only say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Don't ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Rate {
    /// How many events are published a second, at most
    #[arg(long, default_value_t = 1000, value_name = "EVENTS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rate: u32,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  omni events replay hooks.demo --group audit.hooks --dry-run
  omni events replay hooks.demo --group audit.hooks --from 2h --to 1h --again")]
pub(crate) struct EventsReplay {
    /// The topic
    pub(crate) topic: String,
    /// The group, as `omni events groups` lists it
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: String,
    /// Only events from this time on: 10m, 2h, 1d ago, or 2026-11-21T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub(crate) from: Option<DateTime<Utc>>,
    /// Only events from before this time
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub(crate) to: Option<DateTime<Utc>>,
    /// Also those that it has handled, whose effects it then has once more
    #[arg(long)]
    pub(crate) again: bool,
    #[command(flatten)]
    pub(crate) consent: Consent,
    #[command(flatten)]
    pub(crate) rate: Rate,
}

/// A time, or how long ago.
fn since(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    let ago = humantime::parse_duration(text).ok();
    ago.and_then(|ago| chrono::TimeDelta::from_std(ago).ok())
        .and_then(|ago| Utc::now().checked_sub_signed(ago))
        .ok_or_else(|| "expected a time such as 10m or 2026-11-21T12:00:00Z".to_owned())
}
