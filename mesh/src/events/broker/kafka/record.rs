//! CloudEvents' binary mode on Kafka: each attribute is a header `ce_<name>`,
//! save for `datacontenttype`, which is `content-type`; the body is the value.
//! Source: the Kafka protocol binding for CloudEvents 1.0.2, section 3.2.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use rdkafka::{
    Message,
    message::{Header, Headers, OwnedHeaders},
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
        headers = headers.insert(Header { key, value: Some(&**value) });
        if *name == TRACEPARENT {
            headers = headers.insert(Header { key: TRACEPARENT, value: Some(&**value) });
        }
    }
    headers
}

/// The delivery that `message` is, whatever it holds.
pub(super) fn delivery(message: &impl Message) -> Delivery {
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

fn attributes(message: &impl Message) -> Result<Attributes, String> {
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

#[cfg(test)]
mod tests {
    use bolero::TypeGenerator;
    use rdkafka::{Timestamp, message::OwnedMessage};

    use super::*;

    /// A record as a foreign publisher may write it.
    #[derive(Debug, TypeGenerator)]
    struct Foreign {
        key: Option<Vec<u8>>,
        payload: Option<Vec<u8>>,
        /// The name, and the value: one of those that mean something, or any.
        headers: Vec<(u8, u8, Option<Vec<u8>>)>,
        sound: bool,
    }

    const NAMES: [&str; 12] = [
        "ce_specversion",
        "ce_id",
        "ce_source",
        "ce_type",
        "ce_time",
        "ce_correlationid",
        "content-type",
        "traceparent",
        "ce_traceparent",
        "ce_datacontenttype",
        "ce_",
        "x",
    ];
    const VALUES: [&[u8]; 8] = [
        b"1.0",
        b"a",
        b"",
        b"\xff",
        b"2026-11-21T00:00:00Z",
        b"9999-12-31T23:59:59-23:59",
        b"0000-01-01T00:00:00+23:59",
        b"2016-12-31T23:59:60.999999999Z",
    ];

    impl Foreign {
        fn message(&self) -> OwnedMessage {
            let sound: [(&str, &[u8]); 5] = [
                ("ce_specversion", b"1.0"),
                ("ce_id", b"1"),
                ("ce_source", b"/s"),
                ("ce_type", b"t"),
                ("ce_time", b"2026-11-21T00:00:00Z"),
            ];
            let mut headers = OwnedHeaders::new();
            for (key, value) in sound.iter().filter(|_| self.sound) {
                headers = headers.insert(Header { key, value: Some(*value) });
            }
            for (name, value, any) in &self.headers {
                let key = NAMES[usize::from(*name) % NAMES.len()];
                let known = VALUES[usize::from(*value) % VALUES.len()];
                let value = any.as_deref().unwrap_or(known);
                headers = headers.insert(Header { key, value: Some(value) });
            }
            let (payload, key) = (self.payload.clone(), self.key.clone());
            let topic = "t".to_owned();
            OwnedMessage::new(payload, key, topic, Timestamp::NotAvailable, 0, 0, Some(headers))
        }
    }

    #[test]
    fn any_record_is_an_event_that_can_be_published_again_or_says_why_not() {
        for time in 0..VALUES.len() as u8 {
            let headers = vec![(4, time, None)];
            check(&Foreign { key: None, payload: None, headers, sound: true });
        }
        let records = bolero::check!().with_iterations(1000).with_max_len(512);
        records.with_type::<Foreign>().for_each(check);
    }

    fn check(foreign: &Foreign) {
        let event = match delivery(&foreign.message()).event {
            Ok(event) => event,
            Err(Undecodable { why, .. }) => return assert!(!why.is_empty()),
        };
        assert!(!event.attributes.id.is_empty() && !event.attributes.source.is_empty());
        let again = OwnedMessage::new(
            Some(event.data.to_vec()),
            Some(event.attributes.correlationid.clone().into_bytes()),
            "t".to_owned(),
            Timestamp::NotAvailable,
            0,
            0,
            Some(headers(&event.attributes)),
        );
        let again = delivery(&again).event.expect("what is written is read");
        assert_eq!(again.attributes.pairs(), event.attributes.pairs());
    }
}
