//! A hook, checked when it is taken in and valid ever after.

use api::hooks::v1::{HookKind, NewHook};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use mesh::messages::common::v1::Header;
use uuid::Uuid;

use crate::{Error, session};

/// How many bytes a body may have.
pub const MAX_BODY: usize = 1024 * 1024;
/// How many headers a hook may have, and how many bytes all of them together.
pub const MAX_HEADERS: usize = 128;
const MAX_HEADER_BYTES: usize = 32 * 1024;
/// How many bytes an id, a type or a media type may have.
const MAX_TEXT: usize = 255;
/// How many bytes a source's name may have, as a service's.
const MAX_SOURCE: usize = 63;

/// A hook as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Hook {
    /// A UUID v7; also the id of its event.
    pub id: String,
    /// What kind of moment it reports.
    pub kind: HookKind,
    /// Who sent it.
    pub source: String,
    /// What happened.
    pub hook_type: String,
    /// The source's id for this delivery.
    pub delivery_id: String,
    /// The session it belongs to.
    pub session_id: String,
    /// What belongs together.
    pub correlation_id: String,
    /// What caused it, or empty.
    pub causation_id: String,
    /// The headers, redacted.
    pub headers: Vec<Header>,
    /// The body, byte for byte.
    pub body: Bytes,
    /// The body's media type.
    pub content_type: String,
    /// When it was received.
    pub received_at: DateTime<Utc>,
}

impl Hook {
    /// Checks a hook and gives it an id, its correlation and its session.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the first field that is wrong.
    pub fn receive(new: NewHook, now: DateTime<Utc>) -> Result<Self, Error> {
        let kind = match new.kind() {
            HookKind::Unspecified => HookKind::Webhook,
            kind => kind,
        };
        if HookKind::try_from(new.kind).is_err() {
            return Err(Error::invalid("hook.kind", "is none of the API's kinds"));
        }
        check_source(&new.source)?;
        check_text("hook.type", &new.r#type, 1)?;
        check_text("hook.delivery_id", &new.delivery_id, 1)?;
        check_text("hook.session_id", &new.session_id, 0)?;
        check_text("hook.correlation_id", &new.correlation_id, 0)?;
        check_text("hook.causation_id", &new.causation_id, 0)?;
        check_text("hook.content_type", &new.content_type, 0)?;
        check_headers(&new.headers)?;
        if new.body.len() > MAX_BODY {
            let description = format!("has {} bytes, at most {MAX_BODY} are taken", new.body.len());
            return Err(Error::invalid("hook.body", description));
        }
        let id = Uuid::now_v7().to_string();
        let correlation_id = or(new.correlation_id, || id.clone());
        Ok(Self {
            kind,
            source: new.source,
            hook_type: new.r#type,
            delivery_id: new.delivery_id,
            session_id: session::id(new.session_id, &correlation_id),
            correlation_id,
            causation_id: new.causation_id,
            headers: new.headers,
            body: new.body,
            content_type: or(new.content_type, || "application/octet-stream".to_owned()),
            received_at: now,
            id,
        })
    }

    /// The topic its event goes to.
    pub fn topic(&self) -> String {
        format!("hooks.{}", self.source)
    }
}

fn or(given: String, default: impl FnOnce() -> String) -> String {
    if given.is_empty() { default() } else { given }
}

fn check_source(source: &str) -> Result<(), Error> {
    let valid = (1..=MAX_SOURCE).contains(&source.len())
        && source.starts_with(|c: char| c.is_ascii_lowercase())
        && source.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if valid {
        return Ok(());
    }
    let rule = format!("must be 1 to {MAX_SOURCE} of a-z, 0-9 and `-`, beginning with a letter");
    Err(Error::invalid("hook.source", rule))
}

fn check_text(field: &'static str, text: &str, at_least: usize) -> Result<(), Error> {
    if (at_least..=MAX_TEXT).contains(&text.len()) && !text.chars().any(char::is_control) {
        return Ok(());
    }
    let rule = format!("must have {at_least} to {MAX_TEXT} bytes and no control characters");
    Err(Error::invalid(field, rule))
}

fn check_headers(headers: &[Header]) -> Result<(), Error> {
    let bytes: usize = headers.iter().map(|h| h.name.len() + h.value.len()).sum();
    if headers.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
        let rule =
            format!("at most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes in all are taken");
        return Err(Error::invalid("hook.headers", rule));
    }
    let name = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase() && b != b':')
    };
    if headers.iter().all(|header| name(&header.name)) {
        return Ok(());
    }
    Err(Error::invalid("hook.headers", "names must be visible ASCII in lower case"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new() -> NewHook {
        NewHook {
            source: "github".into(),
            r#type: "push".into(),
            delivery_id: "1".into(),
            ..Default::default()
        }
    }

    #[test]
    fn what_is_not_given_is_made() {
        let hook = Hook::receive(new(), Utc::now()).unwrap();
        assert_eq!(hook.kind, HookKind::Webhook);
        assert_eq!(hook.correlation_id, hook.id);
        assert_eq!(hook.session_id, hook.correlation_id);
        assert_eq!(hook.content_type, "application/octet-stream");
        assert_eq!(hook.topic(), "hooks.github");
    }

    #[test]
    fn what_is_given_stays() {
        let given = NewHook { correlation_id: "c".into(), session_id: "s".into(), ..new() };
        let hook = Hook::receive(given, Utc::now()).unwrap();
        assert_eq!((hook.correlation_id.as_str(), hook.session_id.as_str()), ("c", "s"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = "x".repeat(256);
        let header = |name: &str| vec![Header { name: name.into(), value: String::new() }];
        for (field, wrong) in [
            ("hook.kind", NewHook { kind: 9, ..new() }),
            ("hook.source", NewHook { source: String::new(), ..new() }),
            ("hook.source", NewHook { source: "Git/hub".into(), ..new() }),
            ("hook.source", NewHook { source: "a".repeat(64), ..new() }),
            ("hook.type", NewHook { r#type: String::new(), ..new() }),
            ("hook.delivery_id", NewHook { delivery_id: long.clone(), ..new() }),
            ("hook.correlation_id", NewHook { correlation_id: "a\nb".into(), ..new() }),
            ("hook.content_type", NewHook { content_type: long, ..new() }),
            ("hook.headers", NewHook { headers: header("A"), ..new() }),
            ("hook.headers", NewHook { headers: vec![header("a").remove(0); 129], ..new() }),
            ("hook.body", NewHook { body: vec![0; MAX_BODY + 1].into(), ..new() }),
        ] {
            match Hook::receive(wrong, Utc::now()) {
                Err(Error::Invalid(invalid)) => assert_eq!(invalid.field, field),
                other => panic!("{field}: {other:?}"),
            }
        }
    }
}
