//! What there is to start: services by what they declare, and the backends that the
//! configuration names.

use std::{collections::BTreeSet, time::Duration};

use mesh::{
    Error,
    config::Config,
    events::broker,
    registry,
    service::{Descriptor, Phase},
    store,
};

use crate::plan::{Kind, Unit};

/// How long a backend may take to answer, before it is asked again.
const BACKEND_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a backend is looked at, and how long it may take to answer.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);

/// A backend that others run. What is embedded is always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Backend {
    Consul,
    Kafka,
    Postgres,
}

impl Backend {
    /// Those that `config` names.
    pub(crate) fn of(config: &Config) -> BTreeSet<Self> {
        let named = [
            config.registry.starts_with("consul:").then_some(Self::Consul),
            config.events.starts_with("kafka:").then_some(Self::Kafka),
            config.database_url().starts_with("postgres").then_some(Self::Postgres),
        ];
        named.into_iter().flatten().collect()
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Consul => "consul",
            Self::Kafka => "kafka",
            Self::Postgres => "postgres",
        }
    }

    /// Whether it answers; else why not.
    pub(crate) async fn answer(self, config: &Config) -> Result<(), String> {
        match tokio::time::timeout(INTERVAL, self.probe(config)).await {
            Ok(answer) => answer.map_err(|why| why.to_string()),
            Err(_) => Err(format!("no answer within {INTERVAL:?}")),
        }
    }

    async fn probe(self, config: &Config) -> Result<(), Error> {
        match self {
            Self::Consul => registry::registry(config)?.services().await.map(drop),
            // Of no topic it is asked which brokers there are, and no more.
            Self::Kafka => broker::broker(config).await?.ensure(&[]).await,
            Self::Postgres => store::ping(config).await,
        }
    }
}

/// The units of `services`, and of the backends of `config`.
pub fn units(services: &[Descriptor], config: &Config) -> Vec<Unit> {
    let backends = Backend::of(config);
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let mut units: Vec<Unit> = backends
        .iter()
        .map(|backend| Unit {
            name: backend.name().to_owned(),
            kind: Kind::Backend,
            phase: Phase::Infrastructure,
            requires: BTreeSet::new(),
            wants: BTreeSet::new(),
            timeout: BACKEND_TIMEOUT,
        })
        .collect();
    for service in services {
        let mut unit = Unit {
            name: service.name.to_owned(),
            kind: Kind::Service,
            phase: service.phase,
            requires: names(service.dependencies),
            wants: names(service.optional),
            timeout: config.start_timeout(service.name),
        };
        for backend in &backends {
            let needed = match backend {
                Backend::Consul => &mut unit.requires,
                // What a service tells waits in its outbox while the broker is away.
                Backend::Kafka => &mut unit.wants,
                Backend::Postgres if service.has_database() => &mut unit.requires,
                Backend::Postgres => continue,
            };
            needed.insert(backend.name().to_owned());
        }
        units.push(unit);
    }
    units
}
