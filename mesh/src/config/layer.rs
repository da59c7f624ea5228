//! Where each setting came from.

use std::collections::BTreeMap;

use config::{Value, ValueKind};

/// Parts of a key's last segment that make its value a secret.
const SECRET_KEYS: [&str; 5] = ["secret", "password", "token", "key", "database"];

/// One source of settings, by flattened key.
#[derive(Clone)]
pub(super) struct Layer {
    pub(super) name: String,
    pub(super) values: BTreeMap<String, String>,
}

/// One effective setting, for `omni config show`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Effective {
    /// The key, levels separated by dots.
    pub key: String,
    /// The value; `********` where it is a secret.
    pub value: String,
    /// Where it came from.
    pub origin: String,
}

/// Every effective value of `layers`, from the lowest to the highest, with its
/// origin, secrets masked, by key.
pub(super) fn effective(layers: &[Layer]) -> Vec<Effective> {
    let mut all = BTreeMap::new();
    for layer in layers {
        for (key, value) in &layer.values {
            all.insert(key.clone(), (mask(key, value), layer.name.clone()));
        }
    }
    all.into_iter().map(|(key, (value, origin))| Effective { key, value, origin }).collect()
}

impl std::fmt::Debug for Layer {
    /// Without the values: there are secrets among them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layer").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Layer {
    pub(super) fn flatten(name: &str, source: &config::Config) -> Self {
        let mut values = BTreeMap::new();
        flatten(String::new(), &source.cache, &mut values);
        Self { name: name.to_owned(), values }
    }
}

fn flatten(key: String, value: &Value, into: &mut BTreeMap<String, String>) {
    match &value.kind {
        ValueKind::Table(table) => {
            for (name, value) in table {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(key, value, into);
            }
        }
        ValueKind::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                flatten(format!("{key}[{index}]"), value, into);
            }
        }
        ValueKind::Nil => {}
        _ => {
            into.insert(key, value.clone().into_string().unwrap_or_default());
        }
    }
}

fn mask(key: &str, value: &str) -> String {
    let last = key.rsplit('.').next().unwrap_or(key);
    let path = last.ends_with("_file");
    let secret = SECRET_KEYS.iter().any(|s| last.contains(s));
    // `sqlite:` says where, and no more.
    let bare = last == "database" && value.split_once(':').is_some_and(|(_, rest)| rest.is_empty());
    if secret && !path && !value.is_empty() && !bare {
        "********".to_owned()
    } else {
        value.to_owned()
    }
}
