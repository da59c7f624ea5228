//! The mapping's file: what a person writes of how two versions differ.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::InvalidMapping;

/// How two versions of a package differ. Names are relative to the packages,
/// `Order.Line` is the message `Line` in `Order`; a path such as `address.zip`
/// leads into messages that a field holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Mapping {
    /// The older package, such as `shop.v1`.
    pub old: String,
    /// The newer one.
    pub new: String,
    /// Services, by their names in the older package; those that differ only.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub services: BTreeMap<String, ServiceMapping>,
    /// Messages, by their names in the older package; those that differ only.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub messages: BTreeMap<String, MessageMapping>,
    /// Enums, by their names in the older package; those that differ only.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub enums: BTreeMap<String, EnumMapping>,
    /// Services, messages and enums of the older package that have no counterpart,
    /// though something in the newer one may have their name.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub apart: BTreeSet<String>,
}

/// How a service differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceMapping {
    /// Its name in the newer package; the same unless said.
    #[serde(skip_serializing_if = "is_empty")]
    pub name: Option<String>,
    /// Methods with another name: old to new.
    #[serde(skip_serializing_if = "is_empty")]
    pub methods: BTreeMap<String, String>,
    /// Methods of the older service that have no counterpart, though one of the newer
    /// one may have their name.
    #[serde(skip_serializing_if = "is_empty")]
    pub apart: BTreeSet<String>,
}

/// How a message differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MessageMapping {
    /// Its name in the newer package; the same unless said.
    #[serde(skip_serializing_if = "is_empty")]
    pub name: Option<String>,
    /// What has another name or place: old path to new path, both ways.
    #[serde(skip_serializing_if = "is_empty")]
    pub fields: BTreeMap<String, String>,
    /// What is done from old to new only.
    #[serde(skip_serializing_if = "is_empty")]
    pub upgrade: OneWay,
    /// What is done from new to old only.
    #[serde(skip_serializing_if = "is_empty")]
    pub downgrade: OneWay,
}

/// What is done in one direction only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct OneWay {
    /// Paths of the target, with the CEL expressions that give their values. In
    /// those, the source's fields go by their names.
    #[serde(skip_serializing_if = "is_empty")]
    pub set: BTreeMap<String, String>,
    /// Paths of the source that nothing is made of.
    #[serde(skip_serializing_if = "is_empty")]
    pub drop: BTreeSet<String>,
    /// Paths of the target that get no value.
    #[serde(skip_serializing_if = "is_empty")]
    pub unset: BTreeSet<String>,
}

/// How an enum differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct EnumMapping {
    /// Its name in the newer package; the same unless said.
    #[serde(skip_serializing_if = "is_empty")]
    pub name: Option<String>,
    /// Values with another name: old to new, both ways.
    #[serde(skip_serializing_if = "is_empty")]
    pub values: BTreeMap<String, String>,
    /// What becomes of old values only: old to new.
    #[serde(skip_serializing_if = "is_empty")]
    pub upgrade: BTreeMap<String, String>,
    /// What becomes of new values only: new to old.
    #[serde(skip_serializing_if = "is_empty")]
    pub downgrade: BTreeMap<String, String>,
}

/// Whether nothing is said: it isn't written either.
fn is_empty<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Mapping {
    /// The mapping that `toml` is.
    ///
    /// # Errors
    /// When it is none, or names the same package twice.
    pub fn parse(toml: &str) -> Result<Self, InvalidMapping> {
        let mapping: Self = toml::from_str(toml).map_err(|why| InvalidMapping(why.to_string()))?;
        for package in [&mapping.old, &mapping.new] {
            if package.is_empty() {
                return Err(InvalidMapping("`old` and `new` name packages, not nothing".into()));
            }
        }
        if mapping.old == mapping.new {
            return Err(InvalidMapping(format!("`{}` is both `old` and `new`", mapping.old)));
        }
        Ok(mapping)
    }
}
