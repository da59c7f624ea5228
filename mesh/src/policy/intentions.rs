//! Who may call whom: Consul's intentions, compiled into a table.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::identity::SpiffeId;

/// Stands for every service, in an intention's source or destination.
const ANY: &str = "*";

/// Whether a call is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is.
    Allow,
    /// It isn't.
    Deny,
}

/// Who may or may not call whom. Either `action`, for every method, or
/// `permissions`, of which the first that matches counts, and none is a denial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intention {
    /// The caller's name, or `*`.
    pub source: String,
    /// The called service's name, or `*`.
    pub destination: String,
    /// What is decided for every method.
    #[serde(default)]
    pub action: Option<Action>,
    /// What is decided method by method.
    #[serde(default)]
    pub permissions: Vec<Permission>,
}

/// What is decided for the methods that match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Permission {
    /// What is decided.
    pub action: Action,
    /// For which paths.
    #[serde(flatten)]
    pub path: PathMatch,
}

/// Which gRPC method paths are meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathMatch {
    /// This one.
    PathExact(String),
    /// Those that begin so.
    PathPrefix(String),
}

impl PathMatch {
    fn matches(&self, path: &str) -> bool {
        match self {
            Self::PathExact(exact) => path == exact,
            Self::PathPrefix(prefix) => path.starts_with(prefix.as_str()),
        }
    }
}

/// What was decided of a request, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Let through.
    Allowed,
    /// Denied by an intention.
    DeniedByIntention,
    /// Denied because nothing allows it.
    DeniedByDefault,
}

impl Decision {
    /// Whether the request is let through.
    pub fn is_allowed(self) -> bool {
        self == Self::Allowed
    }

    /// Why it was denied, for a person to read.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::DeniedByIntention => "denied by an intention",
            Self::DeniedByDefault => "no intention and no declared dependency allows it",
        }
    }
}

/// The compiled table: one look-up for each of the four forms of precedence.
///
/// Source of the precedence: Consul, "Intention precedence and match order"
/// (exact/exact 9, any/exact 8, exact/any 6, any/any 5).
#[derive(Clone, Debug, Default)]
pub struct Intentions {
    by_destination: HashMap<String, HashMap<String, Rule>>,
    declared: HashMap<String, Vec<String>>,
}

#[derive(Clone, Debug)]
enum Rule {
    All(Action),
    First(Vec<Permission>),
}

impl Intentions {
    /// Compiles `intentions`, and under them the dependencies that services
    /// declare, as (caller, called). Of two intentions of one pair the later
    /// one counts.
    pub fn compile(
        intentions: impl IntoIterator<Item = Intention>,
        declared: &[(String, String)],
    ) -> Self {
        let mut table = Self::default();
        for intention in intentions {
            // With both, the permissions count: the more exact say.
            let rule = match intention.action {
                Some(action) if intention.permissions.is_empty() => Rule::All(action),
                _ => Rule::First(intention.permissions),
            };
            table
                .by_destination
                .entry(intention.destination)
                .or_default()
                .insert(intention.source, rule);
        }
        for (source, destination) in declared {
            table.declared.entry(destination.clone()).or_default().push(source.clone());
        }
        table
    }

    /// Whether `source` may call `path` of `destination`.
    pub fn decide(&self, source: &SpiffeId, destination: &str, path: &str) -> Decision {
        let rule = [destination, ANY].iter().find_map(|destination| {
            let sources = self.by_destination.get(*destination)?;
            sources.get(source.name()).or_else(|| sources.get(ANY))
        });
        match rule {
            Some(Rule::All(Action::Allow)) => Decision::Allowed,
            Some(Rule::All(Action::Deny)) => Decision::DeniedByIntention,
            Some(Rule::First(permissions)) => {
                match permissions.iter().find(|p| p.path.matches(path)) {
                    Some(Permission { action: Action::Allow, .. }) => Decision::Allowed,
                    _ => Decision::DeniedByIntention,
                }
            }
            None if source.is_operator() => Decision::Allowed,
            None => match self.declared.get(destination) {
                Some(sources) if sources.iter().any(|s| s == source.name()) => Decision::Allowed,
                _ => Decision::DeniedByDefault,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intention(source: &str, destination: &str, action: Action) -> Intention {
        Intention {
            source: source.into(),
            destination: destination.into(),
            action: Some(action),
            permissions: vec![],
        }
    }

    fn decide(table: &Intentions, source: &str, destination: &str) -> Decision {
        let id = SpiffeId::of_service("d", source).unwrap();
        table.decide(&id, destination, "/p.S/M")
    }

    #[test]
    fn without_intentions_only_declared_callers_and_operators_are_allowed() {
        let table = Intentions::compile([], &[("a".into(), "b".into())]);
        assert_eq!(decide(&table, "a", "b"), Decision::Allowed);
        assert_eq!(decide(&table, "operator-ann", "b"), Decision::Allowed);
        assert_eq!(decide(&table, "b", "a"), Decision::DeniedByDefault);
        assert_eq!(decide(&table, "c", "b"), Decision::DeniedByDefault);
    }

    #[test]
    fn the_most_exact_intention_counts() {
        use Action::{Allow, Deny};
        let all = [
            (intention("*", "*", Deny), Decision::DeniedByIntention),
            (intention("a", "*", Allow), Decision::Allowed),
            (intention("*", "b", Deny), Decision::DeniedByIntention),
            (intention("a", "b", Allow), Decision::Allowed),
        ];
        for n in 1..=all.len() {
            let table = Intentions::compile(all[..n].iter().map(|(i, _)| i.clone()), &[]);
            assert_eq!(decide(&table, "a", "b"), all[n - 1].1, "with the first {n}");
        }
    }

    #[test]
    fn an_intention_counts_before_a_declared_dependency_and_an_operators_right() {
        let denials = [intention("a", "b", Action::Deny), intention("*", "c", Action::Deny)];
        let table = Intentions::compile(denials, &[("a".into(), "b".into())]);
        assert_eq!(decide(&table, "a", "b"), Decision::DeniedByIntention);
        assert_eq!(decide(&table, "operator", "c"), Decision::DeniedByIntention);
    }

    #[test]
    fn of_permissions_the_first_match_counts_and_none_is_a_denial() {
        let permissions = vec![
            Permission { action: Action::Deny, path: PathMatch::PathExact("/p.S/Secret".into()) },
            Permission { action: Action::Allow, path: PathMatch::PathPrefix("/p.S/".into()) },
        ];
        let intention =
            Intention { source: "a".into(), destination: "b".into(), action: None, permissions };
        let table = Intentions::compile([intention], &[]);
        let a = SpiffeId::of_service("d", "a").unwrap();
        assert!(table.decide(&a, "b", "/p.S/M").is_allowed());
        assert!(!table.decide(&a, "b", "/p.S/Secret").is_allowed());
        assert!(!table.decide(&a, "b", "/q.S/M").is_allowed());
    }
}
