//! A CloudEvent 1.0 with the attributes that every event here has.

use std::{borrow::Cow, collections::BTreeMap};

use bytes::Bytes;
use chrono::{DateTime, Datelike as _, Utc};
use serde::{Deserialize, Serialize};

use crate::{Error, descriptors, json::JsonError};

/// How many bytes all attributes of an event may have together.
const MAX_ATTRIBUTE_BYTES: usize = 16 * 1024;
/// How many bytes its id and its source may have each.
const MAX_ID_BYTES: usize = 1024;
/// How many of them the attribute `traceparent` has.
const TRACEPARENT_BYTES: usize = 66;
/// What the attributes begin with that make an event a dead letter.
const LETTER: &str = "dlq";

/// An event on its way. The key, by which order is kept, is the correlation id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it says about itself.
    pub attributes: Attributes,
    /// The body, byte for byte.
    pub data: Bytes,
}

/// The attributes of a CloudEvent, and their form in the outbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Unique within `source`; consumers deduplicate on (source, id).
    pub id: String,
    /// Where it happened, such as `/hooks/github`.
    pub source: String,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it happened to; empty when the source says it all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// When it happened.
    pub time: DateTime<Utc>,
    /// The media type of the body.
    pub datacontenttype: String,
    /// The message and version in the body; empty for foreign bodies.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub dataschema: String,
    /// What belongs together: the key.
    pub correlationid: String,
    /// What caused it; empty for a beginning.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub causationid: String,
    /// The W3C `traceparent` of whoever published it; empty when untraced.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub traceparent: String,
    /// Further attributes, names in lower-case letters and digits.
    #[serde(flatten)]
    pub extensions: BTreeMap<String, String>,
}

impl Event {
    /// A typed event: `message` in proto3 JSON without what its fields declare
    /// sensitive, `type` and `dataschema` its full name, which has its version in it.
    ///
    /// # Errors
    /// When `message` isn't known by a descriptor, or doesn't say there that it is for
    /// events.
    pub fn typed<M: prost::Name>(
        source: impl Into<String>,
        correlation_id: impl Into<String>,
        message: &M,
    ) -> Result<Self, Error> {
        let name = M::full_name();
        if descriptors::pool().get_message_by_name(&name).is_none() {
            return Err(Error::Event(JsonError::Unknown(name).to_string()));
        }
        if !descriptors::is_event(&name) {
            return Err(Error::Event(format!(
                "`{name}` needs the option `(omnibridge.common.v1.event) = true`"
            )));
        }
        let json =
            crate::json::encode_redacted(message).map_err(|why| Error::Event(why.to_string()))?;
        Ok(Self {
            attributes: Attributes {
                id: uuid::Uuid::now_v7().to_string(),
                source: source.into(),
                kind: name.clone(),
                subject: String::new(),
                time: Utc::now(),
                datacontenttype: "application/json".into(),
                dataschema: name,
                correlationid: correlation_id.into(),
                causationid: String::new(),
                traceparent: String::new(),
                extensions: BTreeMap::new(),
            },
            data: Bytes::from(json),
        })
    }

    /// Whether it holds a typed message of this version.
    ///
    /// # Errors
    /// [`Error::Schema`] when it is of another version.
    pub fn is<M: prost::Name>(&self) -> Result<bool, Error> {
        let (found, expected) = (&self.attributes.dataschema, M::full_name());
        if *found == expected {
            return Ok(true);
        }
        match unversioned(found).is_some_and(|name| unversioned(&expected) == Some(name)) {
            true => Err(Error::Schema { found: found.clone(), expected }),
            false => Ok(false),
        }
    }

    /// The body as a typed message.
    ///
    /// # Errors
    /// [`Error::Schema`] when it holds another message, or another version of it;
    /// or that the body isn't one.
    pub fn decode<M: prost::Name + Default>(&self) -> Result<M, Error> {
        if !self.is::<M>()? {
            let found = self.attributes.dataschema.clone();
            return Err(Error::Schema { found, expected: M::full_name() });
        }
        crate::json::decode(&self.data).map_err(|why| Error::Event(why.to_string()))
    }
}

/// A message's full name without its version: package and message.
fn unversioned(full_name: &str) -> Option<(&str, &str)> {
    let is_version = |segment: &&str| {
        segment.strip_prefix('v').is_some_and(|n| n.starts_with(|c: char| c.is_ascii_digit()))
    };
    let version = full_name.split('.').find(is_version)?;
    full_name.split_once(&format!(".{version}."))
}

impl Attributes {
    /// All attributes as (name, value), the required ones first; `specversion`
    /// included, empty ones left out.
    pub fn pairs(&self) -> Vec<(&str, Cow<'_, str>)> {
        let time = self.time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        let mut pairs: Vec<(&str, Cow<'_, str>)> = vec![
            ("specversion", "1.0".into()),
            ("id", (&self.id).into()),
            ("source", (&self.source).into()),
            ("type", (&self.kind).into()),
            ("subject", (&self.subject).into()),
            ("time", time.into()),
            ("datacontenttype", (&self.datacontenttype).into()),
            ("dataschema", (&self.dataschema).into()),
            ("correlationid", (&self.correlationid).into()),
            ("causationid", (&self.causationid).into()),
            ("traceparent", (&self.traceparent).into()),
        ];
        pairs.extend(self.extensions.iter().map(|(name, value)| (name.as_str(), value.into())));
        pairs.retain(|(_, value)| !value.is_empty());
        pairs
    }

    /// Reads attributes back from (name, value).
    ///
    /// # Errors
    /// When a required one is missing, the version is another, or they are too
    /// long together.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Result<Self, Error> {
        let mut pairs: BTreeMap<String, String> = pairs.into_iter().collect();
        // Before anything is quoted in an error.
        check_length(pairs.iter().map(|(name, value)| (&**name, &**value)))?;
        let mut take = |name: &str| pairs.remove(name).unwrap_or_default();
        let version = take("specversion");
        if version != "1.0" {
            return Err(Error::Event(format!("specversion is `{version}`, expected `1.0`")));
        }
        let required = |name: &str, value: String| {
            if value.is_empty() {
                Err(Error::Event(format!("`{name}` is missing")))
            } else {
                Ok(value)
            }
        };
        let id = required("id", take("id"))?;
        let source = required("source", take("source"))?;
        let kind = required("type", take("type"))?;
        let time = required("time", take("time"))?;
        let time = DateTime::parse_from_rfc3339(&time)
            .map_err(|why| Error::Event(format!("time `{time}`: {why}")))?
            .to_utc();
        // By its offset it may be of a year that RFC 3339 can't write.
        if !(0..=9999).contains(&time.year()) {
            return Err(Error::Event(format!("time `{time}`: not of the years 0 to 9999")));
        }
        let attributes = Self {
            id,
            source,
            kind,
            time,
            subject: take("subject"),
            datacontenttype: take("datacontenttype"),
            dataschema: take("dataschema"),
            correlationid: take("correlationid"),
            causationid: take("causationid"),
            traceparent: take("traceparent"),
            extensions: pairs,
        };
        attributes.check_values(&attributes.pairs())?;
        Ok(attributes)
    }

    /// That every consumer can read and remember the event.
    ///
    /// # Errors
    /// When its id or source is longer than an index of PostgreSQL takes, its
    /// attributes are too long together, or one has a NUL, which PostgreSQL's texts
    /// can't have.
    pub(super) fn check(&self) -> Result<(), Error> {
        let pairs = self.pairs();
        check_length(pairs.iter().map(|(name, value)| (*name, &**value)))?;
        self.check_values(&pairs)
    }

    /// As [`Attributes::check`], of its `pairs`, but for the length of all.
    fn check_values(&self, pairs: &[(&str, Cow<'_, str>)]) -> Result<(), Error> {
        for (name, value) in [("id", &self.id), ("source", &self.source)] {
            if value.len() > MAX_ID_BYTES {
                return Err(Error::Event(format!("`{name}` exceeds {MAX_ID_BYTES} bytes")));
            }
        }
        match pairs.iter().find(|(_, value)| value.contains('\0')) {
            Some((name, _)) => Err(Error::Event(format!("`{name}` contains a NUL"))),
            None => Ok(()),
        }
    }
}

/// That attributes aren't too long together. The relay adds a `traceparent` where
/// there is none, and a dead letter says why in as much room again: an event that
/// went out once is read at every station.
fn check_length<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Result<(), Error> {
    let (mut own, mut letter, mut traceparent) = (0, 0, TRACEPARENT_BYTES);
    for (name, value) in pairs {
        let sum = match name {
            "traceparent" => {
                traceparent = 0;
                &mut own
            }
            name if name.starts_with(LETTER) => &mut letter,
            _ => &mut own,
        };
        *sum += name.len() + value.len();
    }
    match (own + traceparent).max(letter) <= MAX_ATTRIBUTE_BYTES {
        true => Ok(()),
        false => Err(Error::Event(format!("its attributes exceed {MAX_ATTRIBUTE_BYTES} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use crate::messages::lifecycle::v1::{ServiceChanged, ServiceState};

    use super::*;

    #[test]
    fn a_typed_event_says_its_schema_and_is_read_back() {
        let message = ServiceChanged {
            service: "audit".into(),
            state: ServiceState::Ready.into(),
            ..Default::default()
        };
        let event = Event::typed("/services/audit", "c", &message).unwrap();
        assert_eq!(event.attributes.dataschema, "omnibridge.lifecycle.v1.ServiceChanged");
        assert_eq!(&event.data[..], br#"{"service":"audit","state":"SERVICE_STATE_READY"}"#);
        assert_eq!(event.decode::<ServiceChanged>().unwrap(), message);
    }

    #[test]
    fn a_field_that_came_later_is_passed_over_and_another_version_is_refused() {
        let mut event = Event::typed("/s", "c", &ServiceChanged::default()).unwrap();
        event.data = r#"{"service":"audit","since":"then"}"#.into();
        assert_eq!(event.decode::<ServiceChanged>().unwrap().service, "audit");
        event.attributes.dataschema = "omnibridge.lifecycle.v2.ServiceChanged".into();
        assert!(matches!(event.is::<ServiceChanged>(), Err(Error::Schema { .. })));
        assert_eq!(unversioned("a.b.v1.Outer.Inner"), Some(("a.b", "Outer.Inner")));
        assert_eq!(unversioned("a.v.B"), None);
        for other in
            ["omnibridge.lifecycle.v1.Other", "omnibridge.audit.v1.ServiceChanged", "x", ""]
        {
            event.attributes.dataschema = other.into();
            assert!(!event.is::<ServiceChanged>().unwrap(), "{other}");
            assert!(matches!(event.decode::<ServiceChanged>(), Err(Error::Schema { .. })));
        }
    }

    #[test]
    fn only_what_says_that_it_is_for_events_becomes_one() {
        let why = Event::typed("/s", "c", &crate::messages::events::v1::CloudEvent::default())
            .unwrap_err();
        assert!(why.to_string().contains("(omnibridge.common.v1.event)"), "{why}");
    }

    #[test]
    fn attributes_survive_the_way_through_headers() {
        let mut event = Event::typed("/s", "c", &ServiceChanged::default()).unwrap();
        event.attributes.extensions.insert("sessionid".into(), "s1".into());
        event.attributes.time = DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap();
        let pairs =
            event.attributes.pairs().into_iter().map(|(k, v)| (k.to_owned(), v.into_owned()));
        assert_eq!(Attributes::from_pairs(pairs).unwrap(), event.attributes);
    }

    #[test]
    fn what_goes_out_is_read_with_what_is_added_on_the_way() {
        let mut attributes =
            Event::typed("/s", "c", &ServiceChanged::default()).unwrap().attributes;
        let others: usize = attributes.pairs().iter().map(|(k, v)| k.len() + v.len()).sum();
        let room = MAX_ATTRIBUTE_BYTES - TRACEPARENT_BYTES - others - "subject".len();
        attributes.subject = "x".repeat(room);
        attributes.check().unwrap();
        attributes.traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into();
        attributes.extensions.insert("dlqreason".into(), "y".repeat(1024));
        attributes.check().unwrap();
        attributes.subject.push('x');
        assert!(attributes.check().is_err());
    }

    #[test]
    fn what_is_no_cloud_event_is_refused_by_name() {
        let pairs = |id: &str| {
            [("specversion", "1.0"), ("id", id), ("source", "/s"), ("type", "t")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
        };
        let error = |p: [(String, String); 4]| Attributes::from_pairs(p).unwrap_err().to_string();
        assert!(error(pairs("")).contains("`id`"));
        assert!(error(pairs("1")).contains("`time`"));
        let timed = |id: &str| {
            let time = ("time".to_owned(), "2026-01-01T00:00:00Z".to_owned());
            Attributes::from_pairs(pairs(id).into_iter().chain([time]))
        };
        assert!(timed("1").is_ok());
        assert!(timed("a\0b").unwrap_err().to_string().contains("NUL"));
        let long = [("time".to_owned(), "x".repeat(1 << 20))];
        let why = Attributes::from_pairs(pairs("1").into_iter().chain(long)).unwrap_err();
        assert!(why.to_string().len() < 100, "it quotes nothing of any length");
        assert!(timed(&"x".repeat(1025)).unwrap_err().to_string().contains("1024"));
    }
}
