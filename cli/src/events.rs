//! `omni events`: topics and their events.

use std::io::IsTerminal as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mesh::events::{
    Event,
    broker::{self, Delivery, From},
};
use serde_json::{Map, Value, json};

use crate::{
    args::{Common, EventsTail, EventsTopics},
    config,
    output::{self, Table},
};

/// How many deliveries are read at once.
const BATCH: usize = 100;
/// How much of a body a person is shown.
const SHOWN: usize = 2048;

/// Prints the events of a topic as they come.
pub(crate) async fn tail(common: &Common, args: &EventsTail) -> anyhow::Result<()> {
    let config = config::load(common, &[])?;
    let broker = broker::broker(&config).await?;
    let from = if args.from_beginning { From::Beginning } else { From::Now };
    let mut consumer = broker.tail(&args.topic, from).await?;
    let mut left = args.limit.unwrap_or(u64::MAX);
    while left > 0 {
        let limit = usize::try_from(left).unwrap_or(BATCH).min(BATCH);
        let deliveries = tokio::select! {
            deliveries = consumer.next(limit) => deliveries?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        for delivery in &deliveries {
            output::line(&if args.json { machine(delivery) } else { human(delivery) })?;
        }
        left = left.saturating_sub(deliveries.len() as u64);
    }
    Ok(())
}

/// A CloudEvent in its JSON form, with the place it was read at.
///
/// Source: CloudEvents, JSON Event Format 1.0, section 3.1.
fn machine(delivery: &Delivery) -> String {
    let Delivery { topic, partition, offset, event } = delivery;
    let mut fields = Map::new();
    match event {
        Ok(Event { attributes, data }) => {
            for (name, value) in attributes.pairs() {
                fields.insert(name.to_owned(), value.into());
            }
            let json = attributes.datacontenttype.contains("json");
            let parsed = json.then(|| serde_json::from_slice::<Value>(data).ok()).flatten();
            match (parsed, std::str::from_utf8(data)) {
                (Some(value), _) => fields.insert("data".into(), value),
                (None, Ok(text)) => fields.insert("data".into(), text.into()),
                (None, Err(_)) => fields.insert("data_base64".into(), base64(data).into()),
            };
        }
        Err(undecodable) => {
            fields.insert("error".into(), undecodable.why.as_str().into());
            fields.insert("data_base64".into(), base64(&undecodable.data).into());
        }
    }
    let place = json!({ "topic": topic, "partition": partition, "offset": offset });
    fields.insert("omnibridge".into(), place);
    Value::Object(fields).to_string()
}

fn base64(data: &[u8]) -> String {
    STANDARD.encode(data)
}

/// `text` without what could steer a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

fn human(delivery: &Delivery) -> String {
    let Delivery { topic, partition, offset, event } = delivery;
    let (dim, plain) =
        if std::io::stdout().is_terminal() { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
    match event {
        Ok(Event { attributes, data }) => {
            let time = attributes.time.format("%Y-%m-%d %H:%M:%S%.3f");
            let body: String = String::from_utf8_lossy(data).chars().take(SHOWN).collect();
            format!(
                "{dim}{time}{plain} {} {} {dim}{topic}/{partition}@{offset} id {} correlation {}{plain}\n  {}",
                attributes.source,
                attributes.kind,
                attributes.id,
                attributes.correlationid,
                printable(&body).trim_end().replace('\n', "\n  "),
            )
        }
        Err(undecodable) => {
            format!("{topic}/{partition}@{offset} is no CloudEvent: {}", undecodable.why)
        }
    }
}

/// Lists the topics.
pub(crate) async fn topics(common: &Common, args: &EventsTopics) -> anyhow::Result<()> {
    let config = config::load(common, &[])?;
    let topics = broker::broker(&config).await?.topics().await?;
    if args.json {
        return output::json(&topics);
    }
    let mut table = Table::new(["TOPIC", "PARTITIONS", "EVENTS"]);
    for topic in topics {
        table.row([topic.name, topic.partitions.to_string(), topic.events.to_string()]);
    }
    table.print()
}
