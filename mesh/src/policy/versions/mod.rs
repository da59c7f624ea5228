//! Which versions of a service get its calls: rules that people write, checked
//! before they count, and what they choose for each call.
//!
//! ```toml
//! [[rules]]                         # the first one that matches a call counts
//! callers = ["billing"]             # any of these; whoever calls, unless given
//! methods = ["/shop.v1.Shop/*"]     # any of these; all, unless given
//! headers = { x-canary = "yes" }    # all of these
//! to = [
//!     { version = "^1.2", weight = 95 },
//!     { version = "=2.0.0", weight = 5 },
//! ]
//! fallback = ["^1"]                 # where none of them has an instance
//! ```
//!
//! A call goes to an instance of the range that was drawn by weight; where there
//! is none, to one of the other ranges with a weight, in the order of the file,
//! and then to one of the fallbacks. Where no rule matches, any version will do.

mod book;
mod follow;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use http::{HeaderMap, HeaderName, HeaderValue, Request};
use rand::Rng;
use semver::VersionReq;
use serde::Deserialize;

pub use self::book::{Histories, History, Revision, RuleBook};
pub(super) use self::follow::follow;
use super::routes;
use crate::identity::is_name;

/// What a file of rules may hold: each call looks at the rules one by one.
const MAX_RULES: usize = 64;
const MAX_ITEMS: usize = 64;
const MAX_TO: usize = 16;
const MAX_BYTES: usize = 32 * 1024;
/// How long a range may be: it goes along with calls that are converted.
const MAX_RANGE: usize = 64;
/// What a range without a weight of its own weighs, and what one may.
const WEIGHT: u32 = 100;
const MAX_WEIGHT: u32 = 10_000;

/// The rules of all services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    by_service: HashMap<String, VersionRules>,
}

impl Versions {
    /// What the rules of `service` choose for a call by `caller`; `None` where no
    /// rule matches it.
    pub fn choose<B>(
        &self,
        service: &str,
        caller: &str,
        request: &Request<B>,
        rng: &mut impl Rng,
    ) -> Option<Order> {
        let rules = self.by_service.get(service)?;
        let rule = rules.rules.iter().find(|rule| rule.matches(caller, request))?;
        Some(Order { drawn: rule.draw(rng), rule: rule.clone() })
    }

    /// The rules of `service` are these now.
    pub(crate) fn set(&mut self, service: &str, rules: VersionRules) {
        match rules.rules.is_empty() {
            true => drop(self.by_service.remove(service)),
            false => drop(self.by_service.insert(service.to_owned(), rules)),
        }
    }
}

/// The rules of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionRules {
    rules: Vec<Arc<Rule>>,
}

/// What is chosen for the calls that it matches.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    callers: Vec<String>,
    #[serde(default)]
    methods: Vec<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    to: Vec<Destination>,
    #[serde(default)]
    fallback: Vec<VersionReq>,
}

/// A range of versions, and its share.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Destination {
    version: VersionReq,
    #[serde(default = "default_weight")]
    weight: u32,
}

fn default_weight() -> u32 {
    WEIGHT
}

/// The ranges that one call may go to, the best first.
#[derive(Clone, Debug)]
pub struct Order {
    rule: Arc<Rule>,
    drawn: usize,
}

impl Order {
    /// The ranges, the best first.
    pub fn ranges(&self) -> impl Iterator<Item = &VersionReq> {
        let Rule { to, fallback, .. } = &*self.rule;
        let rest = to.iter().enumerate().filter(|(nth, to)| *nth != self.drawn && to.weight > 0);
        let first = to.get(self.drawn).into_iter();
        first.chain(rest.map(|(_, to)| to)).map(|to| &to.version).chain(fallback)
    }
}

impl VersionRules {
    /// The rules in `text`.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Document {
            #[serde(default)]
            rules: Vec<Rule>,
        }

        if text.len() > MAX_BYTES {
            return Err(format!("they have {} bytes, not {MAX_BYTES} at most", text.len()));
        }
        let Document { rules } = toml::from_str(text).map_err(|why| why.to_string())?;
        if rules.len() > MAX_RULES {
            return Err(format!("they are {}, not {MAX_RULES} at most", rules.len()));
        }
        for (nth, rule) in rules.iter().enumerate() {
            rule.check().map_err(|why| format!("rule {}: {why}", nth + 1))?;
            if nth + 1 < rules.len() && rule.matches_all() {
                let next = nth + 2;
                return Err(format!(
                    "rule {next} is never reached: rule {} matches every call",
                    nth + 1
                ));
            }
        }
        Ok(Self { rules: rules.into_iter().map(Arc::new).collect() })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are none: any version will do.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Every range that is named, with the number of its rule, from 1 on.
    pub fn ranges(&self) -> impl Iterator<Item = (usize, &VersionReq)> {
        self.rules.iter().enumerate().flat_map(|(nth, rule)| {
            let to = rule.to.iter().map(|to| &to.version);
            to.chain(&rule.fallback).map(move |range| (nth + 1, range))
        })
    }
}

impl Rule {
    fn check(&self) -> Result<(), String> {
        let lists = [
            ("callers", self.callers.len(), MAX_ITEMS),
            ("methods", self.methods.len(), MAX_ITEMS),
            ("headers", self.headers.len(), MAX_ITEMS),
            ("to", self.to.len(), MAX_TO),
            ("fallback", self.fallback.len(), MAX_TO),
        ];
        if let Some((name, len, most)) = lists.iter().find(|(_, len, most)| len > most) {
            return Err(format!("`{name}` has {len} entries, not {most} at most"));
        }
        if let Some(caller) = self.callers.iter().find(|caller| !is_name(caller)) {
            return Err(format!("`{caller}` in `callers` can't be the name of a party"));
        }
        if let Some(method) = self.methods.iter().find(|method| !routes::is_path(method)) {
            return Err(format!(
                "`{method}` in `methods` is neither `/package.Service/Method` nor \
                 `/package.Service/*`"
            ));
        }
        for (name, value) in &self.headers {
            let lower = name.bytes().all(|byte| !byte.is_ascii_uppercase());
            if !lower || HeaderName::try_from(name).is_err() {
                return Err(format!("`{name}` in `headers` can't name one; they are lower-case"));
            }
            HeaderValue::try_from(value)
                .map_err(|_| format!("no header can have the value of `{name}` in `headers`"))?;
        }
        let ranges = self.to.iter().map(|to| &to.version).chain(&self.fallback);
        if let Some(long) = ranges.map(ToString::to_string).find(|text| text.len() > MAX_RANGE) {
            return Err(format!("the range `{long}` has more than {MAX_RANGE} bytes"));
        }
        if let Some(heavy) = self.to.iter().find(|to| to.weight > MAX_WEIGHT) {
            return Err(format!("the weight {} is more than {MAX_WEIGHT}", heavy.weight));
        }
        if self.to.iter().all(|to| to.weight == 0) {
            return Err("`to` names no range with a weight".to_owned());
        }
        Ok(())
    }

    fn matches_all(&self) -> bool {
        self.callers.is_empty() && self.methods.is_empty() && self.headers.is_empty()
    }

    fn matches<B>(&self, caller: &str, request: &Request<B>) -> bool {
        let path = request.uri().path();
        let one_of = |names: &[String], is: &dyn Fn(&str) -> bool| {
            names.is_empty() || names.iter().any(|name| is(name))
        };
        one_of(&self.callers, &|name| name == caller)
            && one_of(&self.methods, &|name| routes::covers(name, path))
            && self.headers.iter().all(|(name, value)| has(request.headers(), name, value))
    }

    /// One of `to`, by their weights.
    fn draw(&self, rng: &mut impl Rng) -> usize {
        let mut at = match self.to.iter().map(|to| to.weight).sum() {
            0 => return 0,
            all => rng.random_range(0..all),
        };
        let found = self.to.iter().position(|to| match at.checked_sub(to.weight) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        });
        found.unwrap_or(0)
    }
}

fn has(headers: &HeaderMap, name: &str, value: &str) -> bool {
    headers.get_all(name).iter().any(|header| header.as_bytes() == value.as_bytes())
}
