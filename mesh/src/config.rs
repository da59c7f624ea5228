//! One typed configuration: built-in defaults, the kernel's and those that services
//! declare < `omni.toml` < environment < flags.
//!
//! Environment variables are `OMNI_` and the key in capitals, with `__` between
//! the levels: `OMNI_REGISTRY`, `OMNI_LOG__FORMAT`. Any of them can be given as
//! `…_FILE`, the path of a file that holds the value. A crate with settings of
//! its own reads its section by [`Config::section`].

mod environment;
mod layer;
mod limits;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    num::NonZeroU16,
    path::{Path, PathBuf},
    time::Duration,
};

use config::{Environment, File, FileFormat};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, de::DeserializeOwned};

use self::{environment::environment, layer::Layer};
pub use self::{environment::variable, layer::Effective, limits::LimitsConfig};
use crate::Error;

/// The kernel's built-in defaults, in the form of `omni.toml`.
pub const DEFAULTS: &str = include_str!("defaults.toml");

/// How long an instance may take to be healthy, unless it is set.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// The configuration of one process, valid ever after it was loaded.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// Where this process and its neighbours keep what they own.
    pub data: PathBuf,
    /// The address that mesh ports and the gateway bind.
    pub bind: IpAddr,
    /// The address that others are told, where it isn't `bind`.
    pub advertise: Option<IpAddr>,
    /// The address that admin ports bind.
    pub admin_bind: IpAddr,
    /// `embedded:`, `static:` or `consul://host:port`.
    pub registry: String,
    /// `dev:` or `consul:`.
    pub identity: String,
    /// `embedded:` or `kafka://host:port[,host:port…]`.
    pub events: String,
    /// `sqlite:` or `postgres://…`; it may hold a password.
    pub database: SecretString,
    /// The folder of mappings between versions, `*.toml`, and of the versions
    /// that they name: `.proto` files in it and below, and descriptor sets,
    /// `*.binpb`. None unless set.
    pub mappings: Option<PathBuf>,
    /// How long a stop may take before what is still in flight is cut off.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// The consul agent's settings.
    pub consul: ConsulConfig,
    /// How Kafka is reached.
    pub kafka: KafkaConfig,
    /// The outbox's limits.
    pub outbox: OutboxConfig,
    /// The `dev` authority's settings.
    pub dev_identity: DevIdentityConfig,
    /// Logs.
    pub log: LogConfig,
    /// Traces and metrics.
    pub telemetry: TelemetryConfig,
    /// The limits of every server.
    pub limits: LimitsConfig,
    /// Ports, by service.
    pub services: BTreeMap<String, ServiceConfig>,
    /// Instances for `static:`, as `host:port`, by service.
    pub instances: BTreeMap<String, Vec<std::net::SocketAddr>>,
    /// Whose calls are allowed or denied, before what services declare.
    pub intentions: Vec<crate::policy::Intention>,
    /// How calls are made, by route.
    pub routes: crate::policy::Routes,
    /// Who may speak for others, besides the services of the program's own list.
    pub trust: crate::policy::Trust,
    #[serde(skip)]
    layers: Vec<Layer>,
    #[serde(skip)]
    above: Above,
    #[serde(skip)]
    file: Option<PathBuf>,
}

/// Settings of the Consul agent.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsulConfig {
    /// The ACL token; none where ACLs are off.
    pub token: Option<SecretString>,
    /// How often Consul checks an instance.
    #[serde(with = "humantime_serde")]
    pub check_interval: Duration,
    /// How long an instance may be critical before Consul deregisters it; one
    /// minute at least, by Consul's own rule.
    #[serde(with = "humantime_serde")]
    pub deregister_after: Duration,
}

/// How Kafka is reached: in the clear unless set otherwise.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// Whether by TLS, where brokers must prove that they are who they are called.
    pub tls: bool,
    /// The roots to judge brokers by, in PEM; the system's unless set.
    pub ca: Option<String>,
    /// The certificate to show them, in PEM, and those between it and its root.
    pub certificate: Option<String>,
    /// The certificate's key, in PEM.
    pub key: Option<SecretString>,
    /// How the user is authenticated: a mechanism of SASL.
    pub mechanism: String,
    /// The user; none where brokers don't ask.
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<SecretString>,
}

/// Limits of the outbox.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutboxConfig {
    /// How many events may wait for the broker; further writes are refused.
    pub limit: u64,
    /// How many bytes their bodies may have.
    pub bytes: u64,
    /// Topics whose oldest events make room instead, and are lost.
    pub drop_oldest: Vec<String>,
}

/// Settings of the `dev` authority.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevIdentityConfig {
    /// How long a leaf is valid; it is renewed at half of it.
    #[serde(with = "humantime_serde")]
    pub leaf_ttl: Duration,
}

/// Settings of the logs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// How lines look.
    pub format: LogFormat,
    /// Which lines are written, in `tracing`'s filter syntax.
    pub filter: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people; coloured in a terminal only.
    Human,
    /// One JSON object a line.
    Json,
}

/// Settings of traces and metrics.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetryConfig {
    /// Where traces go by OTLP over gRPC; without it none are made.
    pub endpoint: Option<String>,
    /// Where metrics go by OTLP over gRPC; without it they are only on the admin
    /// port. A setting of its own, for Jaeger takes traces and refuses metrics.
    pub metrics_endpoint: Option<String>,
    /// Which share of new traces is sampled, 0 to 1.
    pub sample: f64,
}

/// Settings that every service has.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// The mesh port, or the gateway's HTTP port; 0 picks a free one.
    pub port: Option<u16>,
    /// The admin port when the service has a process of its own.
    pub admin_port: Option<u16>,
    /// Its instances' share of the calls, against those of other weights; 1
    /// unless set.
    pub weight: Option<NonZeroU16>,
    /// How long an instance may take to be healthy, before whoever starts it tries
    /// again; 30 s unless set.
    #[serde(default, with = "humantime_serde")]
    pub start_timeout: Option<Duration>,
}

/// The part of the configuration that may change while the process runs.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Live {
    pub(crate) intentions: Vec<crate::policy::Intention>,
    pub(crate) routes: crate::policy::Routes,
    pub(crate) trust: crate::policy::Trust,
}

/// The sources that count over the file: the environment, and flags over that.
#[derive(Clone, Default)]
struct Above(Vec<config::Config>);

impl std::fmt::Debug for Above {
    /// Without the values: there are secrets among them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Above").finish_non_exhaustive()
    }
}

impl Config {
    /// Loads the configuration of this process: what its services declare, as
    /// [`crate::service::defaults`] says it; `file` if given, else `omni.toml` in the
    /// working folder if there is one; this process's environment; and `flags` over
    /// all of it.
    ///
    /// # Errors
    /// When a source can't be read, or a value doesn't fit its key.
    pub fn load(
        declared: &str,
        file: Option<&Path>,
        flags: &[(&str, String)],
    ) -> Result<Self, Error> {
        let env = std::env::vars().collect();
        let default_file = Path::new("omni.toml");
        let file = file.or_else(|| default_file.exists().then_some(default_file));
        Self::read(declared, file, env, flags)
    }

    /// Loads from the sources given and no others; no service declares anything.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_sources(
        file: Option<&Path>,
        env: HashMap<String, String>,
        flags: &[(&str, String)],
    ) -> Result<Self, Error> {
        Self::read("", file, env, flags)
    }

    fn read(
        declared: &str,
        file: Option<&Path>,
        env: HashMap<String, String>,
        flags: &[(&str, String)],
    ) -> Result<Self, Error> {
        let defaults = config::Config::builder()
            .add_source(File::from_str(DEFAULTS, FileFormat::Toml))
            .add_source(File::from_str(declared, FileFormat::Toml))
            .build()?;
        let mut sources = vec![("default".to_owned(), defaults)];
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(Error::file(path))?;
            let source = config::Config::builder()
                .add_source(File::from_str(&text, FileFormat::Toml))
                .build()
                .map_err(|why| Error::setting("omni.toml", path.display().to_string(), why))?;
            sources.push((path.display().to_string(), source));
        }
        let env = Environment::with_prefix("OMNI")
            .prefix_separator("_")
            .separator("__")
            .ignore_empty(true)
            .source(Some(environment(env)?.into_iter().collect()));
        sources
            .push(("environment".to_owned(), config::Config::builder().add_source(env).build()?));
        let mut overrides = config::Config::builder();
        for (key, value) in flags {
            overrides = overrides.set_override(*key, value.as_str())?;
        }
        sources.push(("flag".to_owned(), overrides.build()?));

        let layers = sources.iter().map(|(name, source)| Layer::flatten(name, source)).collect();
        let above = sources.iter().rev().take(2).rev().map(|(_, source)| source.clone()).collect();
        let merged = sources
            .into_iter()
            .fold(config::Config::builder(), |all, (_, source)| all.add_source(source))
            .build()?;
        let mut config: Self = merged.try_deserialize()?;
        config.layers = layers;
        config.above = Above(above);
        config.file = file.map(Path::to_owned);
        config.check()
    }

    /// What of it may change while the process runs, where the file says `text` now. What
    /// is given by the environment and by flags still counts over that.
    ///
    /// # Errors
    /// When the text is empty, as one is that isn't written yet, or a value doesn't fit
    /// its key.
    pub(crate) fn live(&self, text: &str) -> Result<Live, Error> {
        if text.trim().is_empty() {
            return Err(Error::setting("omni.toml", "", "it is empty"));
        }
        let file = config::Config::builder().add_source(File::from_str(text, FileFormat::Toml));
        let all = self.above.0.iter().cloned().fold(file, |all, source| all.add_source(source));
        Ok(all.build()?.try_deserialize()?)
    }

    fn check(self) -> Result<Self, Error> {
        if !(0.0..=1.0).contains(&self.telemetry.sample) {
            let value = self.telemetry.sample.to_string();
            return Err(Error::setting("telemetry.sample", value, "expected 0 to 1"));
        }
        if self.dev_identity.leaf_ttl < Duration::from_secs(2) {
            let value = format!("{:?}", self.dev_identity.leaf_ttl);
            return Err(Error::setting("dev_identity.leaf_ttl", value, "expected 2s or more"));
        }
        self.limits.check()?;
        Ok(self)
    }

    /// The section `key` as a crate of its own reads it; its default when it
    /// isn't there.
    ///
    /// # Errors
    /// When a value doesn't fit its key.
    pub fn section<T: DeserializeOwned + Default>(&self, key: &str) -> Result<T, Error> {
        let prefix = format!("{key}.");
        let mut builder = config::Config::builder();
        for layer in &self.layers {
            for (k, value) in &layer.values {
                if let Some(rest) = k.strip_prefix(&prefix) {
                    builder = builder.set_override(rest, value.as_str())?;
                }
            }
        }
        let section = builder.build()?;
        if Layer::flatten("", &section).values.is_empty() {
            return Ok(T::default());
        }
        section.try_deserialize().map_err(|why| Error::setting(key, "", why))
    }

    /// Refuses keys whose first level is neither the kernel's nor in
    /// `sections`, so that a misspelt key doesn't pass in silence.
    ///
    /// # Errors
    /// Names the key and where it stands.
    pub fn check_keys(&self, sections: &[&str]) -> Result<(), Error> {
        let Some((defaults, given)) = self.layers.split_first() else {
            return Ok(());
        };
        let first = |key: &str| key.split(['.', '[']).next().unwrap_or_default().to_owned();
        let mut known: BTreeSet<String> = defaults.values.keys().map(|k| first(k)).collect();
        known.extend(sections.iter().map(|s| (*s).to_owned()));
        known.extend(
            ["advertise", "instances", "intentions", "mappings", "routes", "services", "trust"]
                .map(str::to_owned),
        );
        for layer in given {
            if let Some(key) = layer.values.keys().find(|key| !known.contains(&first(key))) {
                return Err(Error::setting(
                    key,
                    // Not shown: a misspelt key may be a secret's.
                    "…",
                    format!("no such setting (from {}); `omni config show` lists them", layer.name),
                ));
            }
        }
        Ok(())
    }

    /// Every effective value with its origin, secrets masked, by key.
    pub fn effective(&self) -> Vec<Effective> {
        layer::effective(&self.layers)
    }

    /// The file it was loaded from, if any.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The database's URL, password and all.
    pub fn database_url(&self) -> &str {
        self.database.expose_secret()
    }

    /// The mesh port that `service` is to bind, where it is set or declared.
    pub fn port(&self, service: &str) -> Option<u16> {
        self.services.get(service).and_then(|s| s.port)
    }

    /// The weight of `service`'s instances in this process.
    pub fn weight(&self, service: &str) -> NonZeroU16 {
        self.services.get(service).and_then(|s| s.weight).unwrap_or(NonZeroU16::MIN)
    }

    /// How long an instance of `service` may take to be healthy.
    pub fn start_timeout(&self, service: &str) -> Duration {
        self.services.get(service).and_then(|s| s.start_timeout).unwrap_or(START_TIMEOUT)
    }

    /// The admin port that `service` is to bind in a process of its own.
    pub fn admin_port(&self, service: &str) -> u16 {
        self.services.get(service).and_then(|s| s.admin_port).unwrap_or(0)
    }
}
