//! How an event is printed.

use std::io::IsTerminal as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mesh::events::{Event, broker::Delivery};
use serde_json::{Map, Value, json};

/// How much of a body a person is shown.
const SHOWN: usize = 2048;

/// A CloudEvent in its JSON form, with the place it was read at.
///
/// Source: CloudEvents, JSON Event Format 1.0, section 3.1.
pub(super) fn machine(delivery: &Delivery) -> String {
    cloud_event(delivery).to_string()
}

/// As [`machine`], as a value.
pub(super) fn cloud_event(delivery: &Delivery) -> Value {
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
    Value::Object(fields)
}

fn base64(data: &[u8]) -> String {
    STANDARD.encode(data)
}

/// `text` without what could steer a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// For a person: a line of attributes, and the body.
pub(super) fn human(delivery: &Delivery) -> String {
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
