//! Who is trusted to speak for others: what is decided of a service, and never what it
//! says of itself.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::identity::{is_name, is_operator_name};

/// How many names a list may have.
const MAX_NAMES: usize = 64;

/// The services that may speak for others, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trust {
    /// Those that forward calls under the name of whoever made them.
    #[serde(deserialize_with = "names")]
    pub proxies: BTreeSet<String>,
    /// Those that do so to convert calls between versions. Everybody may call them, and
    /// they may call everybody, unless an intention says otherwise.
    #[serde(deserialize_with = "names")]
    pub converters: BTreeSet<String>,
}

impl Trust {
    /// Whether `service` may forward calls under the name of whoever made them.
    pub fn forwards(&self, service: &str) -> bool {
        self.proxies.contains(service) || self.converts(service)
    }

    /// Whether `service` converts calls between versions.
    pub fn converts(&self, service: &str) -> bool {
        self.converters.contains(service)
    }

    /// All that are trusted by one or the other.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self {
            proxies: &self.proxies | &other.proxies,
            converters: &self.converters | &other.converters,
        }
    }
}

/// Names in a list or, as the environment has them, in one text with commas between.
fn names<'de, D: Deserializer<'de>>(source: D) -> Result<BTreeSet<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Names {
        List(BTreeSet<String>),
        Text(String),
    }
    let names = match Names::deserialize(source)? {
        Names::List(names) => names,
        Names::Text(text) => text.split(',').map(|name| name.trim().to_owned()).collect(),
    };
    if names.len() > MAX_NAMES {
        return Err(D::Error::custom(format!("more than {MAX_NAMES} names")));
    }
    match names.iter().find(|name| !is_name(name) || is_operator_name(name)) {
        Some(name) => Err(D::Error::custom(format!("`{name:.64}` can't name a service"))),
        None => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_a_list_or_a_text_with_commas_and_nothing_else() {
        let trust = |text: &str| toml::from_str::<Trust>(text);
        let expected = Trust { proxies: ["a".into(), "b-c".into()].into(), ..Trust::default() };
        assert_eq!(trust("proxies = ['a', 'b-c']").unwrap(), expected);
        assert_eq!(trust("proxies = 'b-c, a'").unwrap(), expected);
        assert_eq!(trust("").unwrap(), Trust::default());
        for wrong in [
            "proxies = 'a,'",
            "proxies = ['*']",
            "proxies = ['operator-ann']",
            "proxy = ['a']",
            "converters = 1",
        ] {
            assert!(trust(wrong).is_err(), "{wrong}");
        }
        assert!(expected.forwards("a") && !expected.converts("a") && !expected.forwards("c"));
    }
}
