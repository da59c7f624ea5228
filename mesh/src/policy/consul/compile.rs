//! Consul's intentions in the form of ours.
//!
//! What can't be compiled fails closed and is named in the log: an intention
//! with a condition that isn't known here denies its pair, an allowing
//! permission with one matches nothing, a denying one everything.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    consul::endpoints::{self, HttpHeader, HttpPermission},
    policy::{
        Action, Intention, PathMatch, Permission,
        permission::{Written, WrittenHeader},
    },
};

/// What an intention says that is no condition.
///
/// Source: Consul 1.22, `structs.Intention`.
const NOTES: [&str; 14] = [
    "ID",
    "Description",
    "Meta",
    "Precedence",
    "CreatedAt",
    "UpdatedAt",
    "CreateIndex",
    "ModifyIndex",
    "Hash",
    "DefaultAddr",
    "DefaultPort",
    "LegacyID",
    "LegacyMeta",
    "DestinationType",
];

/// The intention `theirs` in our form; `None` where it is about parties that
/// can't be of this mesh.
pub(super) fn intention(theirs: endpoints::Intention) -> Option<Intention> {
    // Parties of another cluster, namespace or partition have other ids.
    let here = |place: &str| matches!(place, "" | "default" | "*");
    let places = [
        &theirs.source_namespace,
        &theirs.destination_namespace,
        &theirs.source_partition,
        &theirs.destination_partition,
    ];
    if !theirs.source_peer.is_empty() || !places.iter().all(|place| here(place)) {
        return None;
    }
    let pair = format!("{} → {}", theirs.source_name, theirs.destination_name);
    let mut unknown: Vec<&str> = given(&theirs.more).filter(|name| !NOTES.contains(name)).collect();
    if !theirs.source_sameness_group.is_empty() {
        unknown.push("SourceSamenessGroup");
    }
    if !matches!(theirs.source_type.as_str(), "" | "consul") {
        unknown.push("SourceType");
    }
    let permissions = theirs.permissions.unwrap_or_default();
    let (action, permissions) = match theirs.action.as_str() {
        "deny" => (Some(Action::Deny), vec![]),
        _ if !unknown.is_empty() => {
            let unknown = unknown.join(", ");
            tracing::warn!(
                pair,
                unknown,
                "this intention denies all: a condition isn't known here"
            );
            (Some(Action::Deny), vec![])
        }
        "allow" if permissions.is_empty() => (Some(Action::Allow), vec![]),
        "" | "allow" => {
            let ours = permissions.into_iter().filter_map(|theirs| permission(&pair, theirs));
            (None, ours.collect())
        }
        other => {
            tracing::warn!(pair, action = other, "this intention denies all: not known here");
            (Some(Action::Deny), vec![])
        }
    };
    Some(Intention {
        source: theirs.source_name,
        destination: theirs.destination_name,
        action,
        permissions,
    })
}

/// The permission `theirs` in our form; `None` where it matches nothing.
fn permission(pair: &str, theirs: endpoints::Permission) -> Option<Permission> {
    let action = match theirs.action.as_str() {
        "allow" => Action::Allow,
        _ => Action::Deny,
    };
    let unknown = unknown(&theirs);
    let compiled = match unknown.is_empty() {
        true => Permission::try_from(written(action, theirs.http)).map_err(|why| why.to_string()),
        false => Err(format!("not known here: {}", unknown.join(", "))),
    };
    match (compiled, action) {
        (Ok(permission), _) => Some(permission),
        (Err(why), Action::Allow) => {
            tracing::warn!(pair, why, "this permission allows nothing");
            None
        }
        (Err(why), Action::Deny) => {
            tracing::warn!(pair, why, "this permission denies everything");
            Some(Permission { action, path: PathMatch::Any, methods: vec![], headers: vec![] })
        }
    }
}

/// The names of the conditions in `permission` that aren't known here.
fn unknown(permission: &endpoints::Permission) -> Vec<&str> {
    let http = permission.http.iter();
    let headers = http.clone().flat_map(|http| http.header.iter().flatten());
    let mut unknown: Vec<&str> = given(&permission.more)
        .chain(http.flat_map(|http| given(&http.more)))
        .chain(headers.flat_map(|header| given(&header.more)))
        .collect();
    if !matches!(permission.action.as_str(), "allow" | "deny") {
        unknown.push("Action");
    }
    unknown
}

fn written(action: Action, http: Option<HttpPermission>) -> Written {
    let http = http.unwrap_or_default();
    let headers = http.header.unwrap_or_default();
    Written {
        action,
        path_exact: http.path_exact,
        path_prefix: http.path_prefix,
        path_regex: http.path_regex,
        methods: http.methods.unwrap_or_default(),
        headers: headers.into_iter().map(WrittenHeader::from).collect(),
    }
}

impl From<HttpHeader> for WrittenHeader {
    fn from(theirs: HttpHeader) -> Self {
        Self {
            name: theirs.name,
            present: theirs.present,
            exact: theirs.exact,
            prefix: theirs.prefix,
            suffix: theirs.suffix,
            contains: theirs.contains,
            regex: theirs.regex,
            ignore_case: theirs.ignore_case,
            invert: theirs.invert,
        }
    }
}

/// The names of the fields that say anything.
fn given(fields: &BTreeMap<String, Value>) -> impl Iterator<Item = &str> {
    let says = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    };
    fields.iter().filter(move |(_, value)| says(value)).map(|(name, _)| name.as_str())
}
