//! The registry that is written in the configuration: `[instances]`, a list of
//! addresses for each service. Nothing registers; the client learns from its
//! calls which addresses answer.

use std::{collections::BTreeMap, num::NonZeroU16, sync::Arc};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Deregister, Instance, Registration, Registry, Snapshot};
use crate::{Error, config::Config};

/// The addresses in the configuration.
pub struct StaticRegistry {
    services: BTreeMap<String, Snapshot>,
}

impl StaticRegistry {
    /// Reads `[instances]`.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(config: &Config) -> Result<Self, Error> {
        if config.instances.is_empty() {
            return Err(Error::setting(
                "instances",
                "",
                "`registry = \"static:\"` needs the addresses of each service, \
                 such as `hook-receiver = [\"10.0.0.7:8001\"]`",
            ));
        }
        let services = config.instances.iter().map(|(service, addresses)| {
            let instances: Vec<Instance> = addresses
                .iter()
                .map(|address| Instance {
                    id: format!("{service}@{address}"),
                    service: service.clone(),
                    address: *address,
                    admin: None,
                    version: semver::Version::new(0, 0, 0),
                    packages: vec![],
                    capabilities: vec![],
                    weight: NonZeroU16::MIN,
                    healthy: true,
                })
                .collect();
            (service.clone(), Arc::from(instances))
        });
        Ok(Self { services: services.collect() })
    }
}

#[async_trait]
impl Registry for StaticRegistry {
    async fn register(&self, instance: Instance) -> Result<Registration, Error> {
        let known = self.services.get(&instance.service);
        if !known.is_some_and(|known| known.iter().any(|i| i.address == instance.address)) {
            tracing::warn!(
                service = instance.service,
                address = %instance.address,
                "not in `instances`: nobody will find this instance",
            );
        }
        Ok(Registration::new(Nothing))
    }

    async fn watch(&self, service: &str) -> Result<watch::Receiver<Snapshot>, Error> {
        let snapshot = self.services.get(service).cloned().unwrap_or_default();
        let (snapshots, watched) = watch::channel(snapshot);
        tokio::spawn(async move { snapshots.closed().await });
        Ok(watched)
    }

    async fn services(&self) -> Result<BTreeMap<String, Snapshot>, Error> {
        Ok(self.services.clone())
    }
}

/// Nothing was registered, so nothing is undone.
struct Nothing;

#[async_trait]
impl Deregister for Nothing {
    async fn deregister(self: Box<Self>) {}
    fn abandon(self: Box<Self>) {}
}
