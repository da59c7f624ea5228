//! Who may call whom: Consul's intentions, compiled into a table.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use http::Request;
use serde::Deserialize;

use super::Permission;
use crate::identity::SpiffeId;

/// Stands for every service, in an intention's source or destination.
const ANY: &str = "*";

/// Whether a call is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is.
    Allow,
    /// It isn't.
    Deny,
}

/// Who may or may not call whom. Either `action`, for every request, or
/// `permissions`, of which the first that matches counts, and none is a denial.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intention {
    /// The caller's name, or `*`.
    pub source: String,
    /// The called service's name, or `*`.
    pub destination: String,
    /// What is decided for every request.
    #[serde(default)]
    pub action: Option<Action>,
    /// What is decided by path, method and headers.
    #[serde(default)]
    pub permissions: Vec<Permission>,
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

/// The compiled table. A decision takes five look-ups at most, however many
/// intentions there are, and allocates nothing.
///
/// Source of the precedence: Consul, "Intention precedence and match order"
/// (exact/exact 9, any/exact 8, exact/any 6, any/any 5).
#[derive(Clone, Debug, Default)]
pub struct Intentions {
    by_destination: HashMap<String, Sources>,
    to_any: Sources,
    declared: HashMap<String, HashSet<String>>,
}

/// The rules of one destination.
#[derive(Clone, Debug, Default)]
struct Sources {
    by_source: HashMap<String, Rule>,
    from_any: Option<Rule>,
}

#[derive(Clone, Debug)]
enum Rule {
    All(Action),
    First(Arc<[Permission]>),
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
        for Intention { source, destination, action, permissions } in intentions {
            // With both, the permissions count: the more exact say.
            let rule = match action {
                Some(action) if permissions.is_empty() => Rule::All(action),
                _ => Rule::First(permissions.into()),
            };
            let sources = match destination.as_str() {
                ANY => &mut table.to_any,
                _ => table.by_destination.entry(destination).or_default(),
            };
            match source.as_str() {
                ANY => sources.from_any = Some(rule),
                _ => drop(sources.by_source.insert(source, rule)),
            }
        }
        for (source, destination) in declared {
            table.declared.entry(destination.clone()).or_default().insert(source.clone());
        }
        table
    }

    /// Whether `source` may send `request` to `destination`.
    pub fn decide<B>(
        &self,
        source: &SpiffeId,
        destination: &str,
        request: &Request<B>,
    ) -> Decision {
        let exact = self.by_destination.get(destination);
        let rule = exact.and_then(|sources| sources.of(source));
        match rule.or_else(|| self.to_any.of(source)) {
            Some(rule) => match rule.of(request) {
                Action::Allow => Decision::Allowed,
                Action::Deny => Decision::DeniedByIntention,
            },
            None if source.is_operator() => Decision::Allowed,
            None => match self.declared.get(destination) {
                Some(sources) if sources.contains(source.name()) => Decision::Allowed,
                _ => Decision::DeniedByDefault,
            },
        }
    }
}

impl Sources {
    fn of(&self, source: &SpiffeId) -> Option<&Rule> {
        self.by_source.get(source.name()).or(self.from_any.as_ref())
    }
}

impl Rule {
    fn of<B>(&self, request: &Request<B>) -> Action {
        match self {
            Self::All(action) => *action,
            Self::First(permissions) => permissions
                .iter()
                .find(|permission| permission.matches(request))
                .map_or(Action::Deny, |permission| permission.action),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use bolero::TypeGenerator;

    use super::*;

    fn intention(source: &str, destination: &str, action: Action) -> Intention {
        Intention {
            source: source.into(),
            destination: destination.into(),
            action: Some(action),
            permissions: vec![],
        }
    }

    fn request(path: &str) -> Request<()> {
        Request::post(path).body(()).unwrap()
    }

    fn decide(table: &Intentions, source: &str, destination: &str) -> Decision {
        let id = SpiffeId::of_service("d", source).unwrap();
        table.decide(&id, destination, &request("/p.S/M"))
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
        let permissions = "permissions = [
            { action = 'deny', path_exact = '/p.S/Secret' },
            { action = 'allow', path_prefix = '/p.S/' },
        ]";
        let toml = format!("source = 'a'\ndestination = 'b'\n{permissions}");
        let table = Intentions::compile([toml::from_str::<Intention>(&toml).unwrap()], &[]);
        let a = SpiffeId::of_service("d", "a").unwrap();
        assert!(table.decide(&a, "b", &request("/p.S/M")).is_allowed());
        assert!(!table.decide(&a, "b", &request("/p.S/Secret")).is_allowed());
        assert!(!table.decide(&a, "b", &request("/q.S/M")).is_allowed());
    }

    /// An intention of few possible ones, so that random ones meet.
    #[derive(Clone, Copy, Debug, TypeGenerator)]
    struct Small {
        source: u8,
        destination: u8,
        allow: bool,
        /// One bit each: permissions, path, header.
        form: u8,
    }

    const SOURCES: [&str; 4] = ["a", "b", "operator", "*"];
    const DESTINATIONS: [&str; 3] = ["b", "c", "*"];
    const PATHS: [&str; 3] = ["/p.S/M", "/p.S/N", "/q.S/M"];

    impl Small {
        fn pair(self) -> (&'static str, &'static str) {
            (SOURCES[usize::from(self.source % 4)], DESTINATIONS[usize::from(self.destination % 3)])
        }

        fn action(self) -> Action {
            if self.allow { Action::Allow } else { Action::Deny }
        }

        fn intention(self) -> Intention {
            /// Compiled once: expressions take their time.
            static FORMS: LazyLock<Vec<Intention>> =
                LazyLock::new(|| (0..32).map(|n| Small::written(n & 16 != 0, n & 15)).collect());
            let (source, destination) = self.pair();
            let form = usize::from(self.form & 15) + if self.allow { 16 } else { 0 };
            let form = FORMS[form].clone();
            Intention { source: source.into(), destination: destination.into(), ..form }
        }

        fn written(allow: bool, form: u8) -> Intention {
            let action = if allow { "allow" } else { "deny" };
            let path = [
                "",
                ", path_regex = '/p.*'",
                ", path_prefix = '/p.S/N'",
                ", path_exact = '/q.S/M'",
            ];
            let path = path[usize::from(form >> 1 & 3)];
            let header = ["", ", headers = [{ name = 'x', exact = 'y' }]"];
            let header = header[usize::from(form >> 3 & 1)];
            let decided = match form & 1 {
                0 => format!("action = '{action}'"),
                _ => format!("permissions = [{{ action = '{action}'{path}{header} }}]"),
            };
            toml::from_str(&format!("source = ''\ndestination = ''\n{decided}")).unwrap()
        }

        /// What it says, read off its form.
        fn says(self, path: &str, header: bool) -> Action {
            let path = match self.form >> 1 & 3 {
                0 => true,
                1 => path.starts_with("/p"),
                2 => path.starts_with("/p.S/N"),
                _ => path == "/q.S/M",
            };
            let matches = self.form & 1 == 0 || (path && (self.form >> 3 & 1 == 0 || header));
            if matches { self.action() } else { Action::Deny }
        }

        /// Its number in Consul's table of precedence.
        fn precedence(self) -> u8 {
            match self.pair() {
                ("*", "*") => 5,
                (_, "*") => 6,
                ("*", _) => 8,
                _ => 9,
            }
        }
    }

    #[test]
    fn the_table_decides_as_consuls_precedence_read_line_by_line() {
        let declared = [("a".to_owned(), "b".to_owned())];
        bolero::check!().with_iterations(1000).with_max_len(64).with_type::<Vec<Small>>().for_each(
            |all| {
                let table =
                    Intentions::compile(all.iter().map(|small| small.intention()), &declared);
                for (source, destination, path, header) in cases() {
                    let matches = |name: &str, pattern: &str| pattern == "*" || name == pattern;
                    let line = all
                        .iter()
                        .filter(|s| matches(source, s.pair().0) && matches(destination, s.pair().1))
                        // The last of those with the highest number.
                        .max_by_key(|s| s.precedence());
                    let expected = match line.map(|line| line.says(path, header)) {
                        Some(Action::Allow) => Decision::Allowed,
                        Some(Action::Deny) => Decision::DeniedByIntention,
                        None if source == "operator" || (source, destination) == ("a", "b") => {
                            Decision::Allowed
                        }
                        None => Decision::DeniedByDefault,
                    };
                    let mut request = request(path);
                    if header {
                        request.headers_mut().insert("x", "y".parse().unwrap());
                    }
                    let id = SpiffeId::of_service("d", source).unwrap();
                    let decided = table.decide(&id, destination, &request);
                    assert_eq!(decided, expected, "{source} → {destination} {path} {header}");
                }
            },
        );
    }

    fn cases() -> impl Iterator<Item = (&'static str, &'static str, &'static str, bool)> {
        SOURCES[..3].iter().flat_map(|source| {
            DESTINATIONS[..2].iter().flat_map(move |destination| {
                PATHS.iter().flat_map(move |path| {
                    [true, false].map(|header| (*source, *destination, *path, header))
                })
            })
        })
    }
}
