//! What an instance says of itself, in the form of Consul's service metadata:
//! at most 64 pairs, a value of at most 512 bytes. A longer list goes on in
//! `packages-2`, `packages-3` and so on.
//!
//! Source of the limits: Consul, `structs.ValidateServiceMetadata`.

use std::{collections::HashMap, net::SocketAddr};

use crate::{Error, registry::Instance};

pub(super) const PACKAGES: &str = "packages";
pub(super) const CAPABILITIES: &str = "capabilities";
const VERSION: &str = "version";
const ADMIN: &str = "admin";

const MAX_PAIRS: usize = 64;
const MAX_VALUE_BYTES: usize = 512;

/// The metadata of `instance`.
///
/// # Errors
/// When it says more than Consul takes.
pub(super) fn write(instance: &Instance) -> Result<HashMap<String, String>, Error> {
    let mut meta = HashMap::from([(VERSION.to_owned(), instance.version.to_string())]);
    if let Some(admin) = instance.admin {
        meta.insert(ADMIN.to_owned(), admin.to_string());
    }
    write_list(&mut meta, PACKAGES, &instance.packages);
    write_list(&mut meta, CAPABILITIES, &instance.capabilities);
    if let Some((key, value)) = meta.iter().find(|(_, v)| v.len() > MAX_VALUE_BYTES) {
        return Err(Error::Registry(format!(
            "{}: `{key}` is `{value}`; Consul takes {MAX_VALUE_BYTES} bytes at most",
            instance.service
        )));
    }
    if meta.len() > MAX_PAIRS {
        return Err(Error::Registry(format!(
            "{}: its packages and capabilities are more than Consul takes, {MAX_PAIRS} values of \
             {MAX_VALUE_BYTES} bytes",
            instance.service
        )));
    }
    Ok(meta)
}

/// The version in `meta`; 0.0.0 for an instance that isn't one of ours.
pub(super) fn version(meta: &HashMap<String, String>) -> semver::Version {
    meta.get(VERSION)
        .and_then(|version| version.parse().ok())
        .unwrap_or(semver::Version::new(0, 0, 0))
}

/// The admin address in `meta`.
pub(super) fn admin(meta: &HashMap<String, String>) -> Option<SocketAddr> {
    meta.get(ADMIN)?.parse().ok()
}

/// The list in `meta` that begins at `key`.
pub(super) fn list(meta: &HashMap<String, String>, key: &str) -> Vec<String> {
    (1..=MAX_PAIRS)
        .map_while(|n| meta.get(&numbered(key, n)))
        .flat_map(|value| value.split(',').filter(|item| !item.is_empty()))
        .map(str::to_owned)
        .collect()
}

fn write_list(meta: &mut HashMap<String, String>, key: &str, items: &[String]) {
    let mut values: Vec<String> = Vec::new();
    for item in items {
        match values.last_mut() {
            Some(value) if value.len() + 1 + item.len() <= MAX_VALUE_BYTES => {
                value.push(',');
                value.push_str(item);
            }
            _ => values.push(item.clone()),
        }
    }
    let numbered = values.into_iter().enumerate().map(|(i, value)| (numbered(key, i + 1), value));
    meta.extend(numbered);
}

fn numbered(key: &str, n: usize) -> String {
    match n {
        1 => key.to_owned(),
        n => format!("{key}-{n}"),
    }
}
