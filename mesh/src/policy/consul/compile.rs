//! Consul's intentions in the form of ours.
//!
//! What can't be compiled fails closed and is named in the log: an allowing
//! permission with a condition that isn't known here matches nothing, a
//! denying one matches everything.

use crate::{
    consul::endpoints::{self, HttpPermission},
    policy::{Action, Intention, PathMatch, Permission},
};

/// The method of every gRPC request.
const GRPC_METHOD: &str = "POST";

/// The intention `theirs` in our form; `None` where it is about callers that
/// can't be of this mesh.
pub(super) fn intention(theirs: endpoints::Intention) -> Option<Intention> {
    // Callers of another cluster have another trust domain: never let in.
    if !theirs.source_peer.is_empty() {
        return None;
    }
    let pair = format!("{} → {}", theirs.source_name, theirs.destination_name);
    let conditional = is_given(theirs.jwt.as_ref()) || !theirs.source_sameness_group.is_empty();
    let permissions = theirs.permissions.unwrap_or_default();
    let action = match theirs.action.as_str() {
        "allow" if conditional => {
            tracing::warn!(%pair, "denied: this intention has a condition that isn't known here");
            Some(Action::Deny)
        }
        "allow" => Some(Action::Allow),
        _ if permissions.is_empty() || conditional => Some(Action::Deny),
        _ => None,
    };
    Some(Intention {
        source: theirs.source_name,
        destination: theirs.destination_name,
        action,
        permissions: permissions
            .into_iter()
            .filter_map(|theirs| permission(&pair, theirs))
            .collect(),
    })
}

/// The permission `theirs` in our form; `None` where it matches no gRPC call.
fn permission(pair: &str, theirs: endpoints::Permission) -> Option<Permission> {
    let action = match theirs.action.as_str() {
        "allow" => Action::Allow,
        _ => Action::Deny,
    };
    let unknown = unknown(&theirs);
    if unknown.is_empty() {
        let path = path(theirs.http)?;
        return Some(Permission { action, path });
    }
    let unknown = unknown.join(", ");
    match action {
        Action::Allow => {
            tracing::warn!(pair, unknown, "this permission allows nothing: not known here");
            None
        }
        Action::Deny => {
            tracing::warn!(pair, unknown, "this permission denies everything: not known here");
            Some(Permission { action, path: PathMatch::PathPrefix(String::new()) })
        }
    }
}

/// The names of the conditions in `permission` that can't be compiled.
fn unknown(permission: &endpoints::Permission) -> Vec<&str> {
    let http = permission.http.iter().flat_map(|http| &http.more);
    let mut unknown: Vec<&str> = permission
        .more
        .iter()
        .chain(http)
        .filter(|(_, value)| is_given(Some(value)))
        .map(|(name, _)| name.as_str())
        .collect();
    if !matches!(permission.action.as_str(), "allow" | "deny") {
        unknown.push("Action");
    }
    unknown
}

fn path(http: Option<HttpPermission>) -> Option<PathMatch> {
    let Some(http) = http else {
        return Some(PathMatch::PathPrefix(String::new()));
    };
    let methods = http.methods.unwrap_or_default();
    if !methods.is_empty() && !methods.iter().any(|method| method == GRPC_METHOD) {
        return None;
    }
    match http.path_exact.is_empty() {
        true => Some(PathMatch::PathPrefix(http.path_prefix)),
        false => Some(PathMatch::PathExact(http.path_exact)),
    }
}

/// Whether a field says anything.
fn is_given(value: Option<&serde_json::Value>) -> bool {
    use serde_json::Value;
    match value {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(fields)) => !fields.is_empty(),
        Some(_) => true,
    }
}
