//! What consumers have read once, they can always read: the messages of events
//! change only in ways that older events and older consumers don't notice.
//!
//! `schemas.txt` has what was published, a line for each field and each value.
//! A line that is gone from the API is a breaking change: it needs a new version,
//! in a package of its own. A new line is added by
//! `OMNI_TEST_WRITE=1 cargo test -p tests --test schemas`.

use std::{collections::BTreeSet, path::Path};

use mesh::descriptors;
use prost_reflect::{EnumDescriptor, Kind, MessageDescriptor};

#[test]
fn no_message_of_an_event_changes_in_a_way_that_breaks_its_readers() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas.txt");
    let published = std::fs::read_to_string(&file).unwrap_or_default();
    let published: BTreeSet<String> = published.lines().map(str::to_owned).collect();
    let now = lines();
    let broken = broken(&published, &now);
    assert!(broken.is_empty(), "a breaking change; make a new version:\n{}", broken.join("\n"));
    if std::env::var_os("OMNI_TEST_WRITE").is_some() {
        let all: Vec<String> = now.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&file, all.concat()).unwrap();
        return;
    }
    let new: Vec<_> = now.difference(&published).cloned().collect();
    assert!(
        new.is_empty(),
        "not in schemas.txt yet; OMNI_TEST_WRITE=1 adds them:\n{}",
        new.join("\n")
    );
}

#[test]
fn a_field_that_is_gone_or_has_another_type_number_or_name_breaks() {
    let published = lines();
    for (was, is) in [
        ("AuditEvent 1 actor (actor): string", None),
        ("AuditEvent 1 actor (actor): string", Some("AuditEvent 1 actor (actor): bytes")),
        ("AuditEvent 1 actor (actor): string", Some("AuditEvent 9 actor (actor): string")),
        ("AuditEvent 1 actor (actor): string", Some("AuditEvent 1 actor (who): string")),
        ("Outcome 2 OUTCOME_DENIED", Some("Outcome 2 OUTCOME_REFUSED")),
    ] {
        let full = |line: &str| format!("omnibridge.audit.v1.{line}");
        let mut now = published.clone();
        assert!(now.remove(&full(was)), "{was}");
        now.extend(is.map(full));
        assert_eq!(broken(&published, &now), [full(was)]);
    }
    let mut more = published.clone();
    more.insert("omnibridge.audit.v1.AuditEvent 99 more (more): string".to_owned());
    assert_eq!(broken(&published, &more), Vec::<String>::new(), "a field more breaks nobody");
}

/// What readers of `published` would miss.
fn broken(published: &BTreeSet<String>, now: &BTreeSet<String>) -> Vec<String> {
    published.difference(now).cloned().collect()
}

/// Every field of every message of events, and every value of their enums.
fn lines() -> BTreeSet<String> {
    descriptors::add(api::DESCRIPTORS).expect("they are ours");
    let mut lines = BTreeSet::new();
    let mut messages: Vec<MessageDescriptor> = descriptors::events();
    assert!(!messages.is_empty());
    let mut seen = BTreeSet::new();
    while let Some(message) = messages.pop() {
        if !seen.insert(message.full_name().to_owned()) {
            continue;
        }
        for field in message.fields() {
            let label = match (field.is_map(), field.is_list(), field.containing_oneof()) {
                (true, ..) => "map ".to_owned(),
                (_, true, _) => "repeated ".to_owned(),
                (.., Some(oneof)) => format!("{} of ", oneof.name()),
                _ => String::new(),
            };
            let kind = match field.kind() {
                Kind::Message(of) => {
                    messages.push(of.clone());
                    of.full_name().to_owned()
                }
                Kind::Enum(of) => {
                    values(&of, &mut lines);
                    of.full_name().to_owned()
                }
                kind => format!("{kind:?}").to_lowercase(),
            };
            let (name, number) = (message.full_name(), field.number());
            let json = field.json_name();
            lines.insert(format!("{name} {number} {} ({json}): {label}{kind}", field.name()));
        }
    }
    lines
}

fn values(of: &EnumDescriptor, lines: &mut BTreeSet<String>) {
    for value in of.values() {
        lines.insert(format!("{} {} {}", of.full_name(), value.number(), value.name()));
    }
}
