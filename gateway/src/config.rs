//! The settings `[hooks]`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use mesh::{Error, config::Config};
use secrecy::SecretString;
use serde::Deserialize;

/// The largest body that hook-receiver takes.
const LARGEST_BODY: usize = 1024 * 1024;

/// The section `[hooks]`.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// How many bytes a webhook's body may have, up to 1 MiB.
    pub(crate) body_limit: usize,
    /// How long reading a body may take.
    #[serde(with = "humantime_serde")]
    pub(crate) body_timeout: Duration,
    /// What sensitive values are hashed with.
    pub(crate) hash_secret: Option<SecretString>,
    /// Who may send webhooks, by name.
    pub(crate) sources: BTreeMap<String, SourceSettings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            body_limit: LARGEST_BODY,
            body_timeout: Duration::from_secs(10),
            hash_secret: None,
            sources: BTreeMap::new(),
        }
    }
}

/// One source's settings; which of them it needs depends on its scheme.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceSettings {
    /// How its webhooks prove where they come from.
    pub(crate) scheme: SchemeName,
    /// `github`: the secret that both sides know.
    pub(crate) secret: Option<SecretString>,
    /// `github`: the file that holds the secret.
    pub(crate) secret_file: Option<PathBuf>,
    /// `api-key`: the key's SHA-256 in hexadecimal; the key itself isn't kept.
    pub(crate) key_sha256: Option<String>,
    /// What its webhooks hold that must not be kept.
    #[serde(default)]
    pub(crate) sensitive: SensitiveSettings,
}

/// What a source declares sensitive.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SensitiveSettings {
    /// JSONPath (RFC 9535) of what is replaced by `[redacted]`.
    pub(crate) redact: Vec<String>,
    /// JSONPath of what is replaced by its keyed hash.
    pub(crate) hash: Vec<String>,
    /// Headers, beyond those whose names tell it.
    pub(crate) headers: Vec<String>,
}

/// How a source's webhooks prove where they come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SchemeName {
    /// A signature of the body, as GitHub makes it.
    Github,
    /// A key that is sent along.
    ApiKey,
}

/// Reads the section and checks its own values; the sources are checked where
/// they are made.
pub(crate) fn load(config: &Config) -> Result<Settings, Error> {
    let settings: Settings = config.section("hooks")?;
    if !(1..=LARGEST_BODY).contains(&settings.body_limit) {
        let value = settings.body_limit.to_string();
        let cause = format!("expected 1 to {LARGEST_BODY}");
        return Err(Error::setting("hooks.body_limit", value, cause));
    }
    if settings.body_timeout.is_zero() {
        return Err(Error::setting("hooks.body_timeout", "0s", "expected more than 0s"));
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn read(toml: &str) -> Result<Settings, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), toml).unwrap();
        let config = Config::from_sources(Some(file.path()), HashMap::new(), &[]).unwrap();
        load(&config).map_err(|why| why.to_string())
    }

    #[test]
    fn the_section_is_read_and_has_defaults() {
        let settings = read("").unwrap();
        assert_eq!(settings.body_limit, 1024 * 1024);
        let settings = read(
            "[hooks]\nbody_limit = 10\nbody_timeout = \"2s\"\n\
             [hooks.sources.my-own]\nscheme = \"api-key\"\nkey_sha256 = \"00\"",
        )
        .unwrap();
        assert_eq!((settings.body_limit, settings.body_timeout), (10, Duration::from_secs(2)));
        assert_eq!(settings.sources["my-own"].scheme, SchemeName::ApiKey);
    }

    #[test]
    fn a_wrong_setting_is_named() {
        for (toml, key) in [
            ("[hooks]\nbody_limit = 0", "hooks.body_limit"),
            ("[hooks]\nbody_limit = 1048577", "hooks.body_limit"),
            ("[hooks]\nbody_timeout = \"0s\"", "hooks.body_timeout"),
            ("[hooks]\nbody_limt = 1", "body_limt"),
            ("[hooks.sources.a]\nsecret = \"x\"", "scheme"),
            ("[hooks.sources.a]\nscheme = \"md5\"", "sources.a.scheme"),
            ("[hooks.sources.a]\nscheme = \"github\"\nsecrt = \"x\"", "secrt"),
        ] {
            let error = read(toml).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
    }
}
