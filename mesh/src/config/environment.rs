//! The environment as a source of settings: files in the place of values, names
//! that a shell takes, and the standard names of others.

use std::collections::HashMap;

use crate::Error;

/// The variable that sets `key`, such as `services.hook-receiver.port`.
pub fn variable(key: &str) -> String {
    format!("OMNI_{}", key.replace('.', "__").replace('-', "_").to_uppercase())
}

/// Resolves `…_FILE` and the standard names of OpenTelemetry.
pub(super) fn environment(
    mut env: HashMap<String, String>,
) -> Result<HashMap<String, String>, Error> {
    // What the tests and the scripts of compose/ tell each other.
    env.retain(|key, _| !key.starts_with("OMNI_TEST_"));
    for (key, path) in env.clone() {
        if let Some(name) = key.strip_suffix("_FILE").filter(|k| k.starts_with("OMNI_")) {
            let value = std::fs::read_to_string(&path).map_err(Error::file(&path))?;
            env.remove(&key);
            env.insert(name.to_owned(), value.trim_end_matches(['\r', '\n']).to_owned());
        }
    }
    // Names of services and sources have `-`, which a shell doesn't take.
    let named = ["OMNI_SERVICES__", "OMNI_INSTANCES__", "OMNI_HOOKS__SOURCES__"];
    for (key, value) in env.clone() {
        let Some(prefix) = named.iter().find(|prefix| key.starts_with(**prefix)) else { continue };
        let (name, rest) =
            key[prefix.len()..].split_once("__").unwrap_or((&key[prefix.len()..], ""));
        let separator = if rest.is_empty() { "" } else { "__" };
        env.remove(&key);
        env.insert(format!("{prefix}{}{separator}{rest}", name.replace('_', "-")), value);
    }
    let standard = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "OMNI_TELEMETRY__ENDPOINT"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OMNI_TELEMETRY__METRICS_ENDPOINT"),
        ("OTEL_TRACES_SAMPLER_ARG", "OMNI_TELEMETRY__SAMPLE"),
        ("CONSUL_HTTP_TOKEN", "OMNI_CONSUL__TOKEN"),
    ];
    for (theirs, ours) in standard {
        if let Some(value) = env.get(theirs).filter(|v| !v.is_empty()).cloned() {
            env.entry(ours.to_owned()).or_insert(value);
        }
    }
    Ok(env)
}
