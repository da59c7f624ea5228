//! CloudEvents' binary mode on Kafka: each attribute is a header `ce_<name>`,
//! save for `datacontenttype`, which is `content-type`; the body is the value.
//! Source: the Kafka protocol binding for CloudEvents 1.0.2, section 3.2.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use rdkafka::{
    Message,
    message::{BorrowedMessage, Header, Headers, OwnedHeaders},
};

use crate::events::{Event, broker::Delivery, broker::Undecodable, event::Attributes};

const CONTENT_TYPE: &str = "content-type";
const TRACEPARENT: &str = "traceparent";

/// The headers of `attributes`. `traceparent` is there under its plain name
/// too, where tracing of other consumers looks for it.
pub(super) fn headers(attributes: &Attributes) -> OwnedHeaders {
    let pairs = attributes.pairs();
    let mut headers = OwnedHeaders::new_with_capacity(pairs.len() + 1);
    for (name, value) in &pairs {
        let prefixed = format!("ce_{name}");
        let key = match *name {
            "datacontenttype" => CONTENT_TYPE,
            _ => &prefixed,
        };
        headers = headers.insert(Header { key, value: Some(value) });
        if *name == TRACEPARENT {
            headers = headers.insert(Header { key: TRACEPARENT, value: Some(value) });
        }
    }
    headers
}

/// The delivery that `message` is, whatever it holds.
pub(super) fn delivery(message: &BorrowedMessage<'_>) -> Delivery {
    let data = Bytes::copy_from_slice(message.payload().unwrap_or_default());
    // rdkafka panics at a header whose name isn't UTF-8, and offers no other way
    // to read headers: such a record must not end the consumer.
    let attributes = catch_unwind(AssertUnwindSafe(|| attributes(message)))
        .unwrap_or_else(|_| Err("a header's name isn't UTF-8".to_owned()));
    Delivery {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        event: match attributes {
            Ok(attributes) => Ok(Event { attributes, data }),
            Err(why) => Err(Undecodable { why, data }),
        },
    }
}

fn attributes(message: &BorrowedMessage<'_>) -> Result<Attributes, String> {
    let mut pairs = Vec::new();
    let mut traceparent = None;
    for header in message.headers().into_iter().flat_map(Headers::iter) {
        let name = match header.key {
            CONTENT_TYPE => "datacontenttype",
            TRACEPARENT => TRACEPARENT,
            key => match key.strip_prefix("ce_") {
                Some(name) => name,
                None => continue,
            },
        };
        let value = std::str::from_utf8(header.value.unwrap_or_default())
            .map_err(|_| format!("the header `{}` isn't UTF-8", header.key))?;
        let pair = (name.to_owned(), value.to_owned());
        if header.key == TRACEPARENT {
            traceparent = Some(pair);
        } else {
            pairs.push(pair);
        }
    }
    if pairs.iter().all(|(name, _)| name != "specversion") {
        return Err("it has no header `ce_specversion`: it is no CloudEvent in binary mode".into());
    }
    // Whoever publishes without these attributes still keeps order by key and
    // traces by the plain header.
    let has = |name: &str| pairs.iter().any(|(n, _)| n == name);
    let key = (!has("correlationid")).then(|| message.key().map(std::str::from_utf8));
    let traceparent = traceparent.filter(|_| !has(TRACEPARENT));
    if let Some(Some(Ok(key))) = key {
        pairs.push(("correlationid".to_owned(), key.to_owned()));
    }
    pairs.extend(traceparent);
    Attributes::from_pairs(pairs).map_err(|why| why.to_string())
}
