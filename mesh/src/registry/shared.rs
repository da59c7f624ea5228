//! One watch for each service, whoever listens to it in this process.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Instance, Registration, Registry, Snapshot};
use crate::Error;

/// A registry whose watches are shared by all that call a service from this
/// process: each holds a connection to Consul's agent, or wakes for whatever
/// happens to a folder. They end with the registry and the last who listens.
pub(super) struct Shared<R> {
    registry: R,
    watches: Mutex<HashMap<String, watch::Receiver<Snapshot>>>,
}

impl<R> Shared<R> {
    pub(super) fn new(registry: R) -> Self {
        Self { registry, watches: Mutex::default() }
    }

    fn watches(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<Snapshot>>> {
        // Whole at any moment, whoever panicked.
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl<R: Registry> Registry for Shared<R> {
    async fn register(&self, instance: Instance) -> Result<Registration, Error> {
        self.registry.register(instance).await
    }

    async fn watch(&self, service: &str) -> Result<watch::Receiver<Snapshot>, Error> {
        let living = |watched: &watch::Receiver<_>| watched.has_changed().is_ok();
        if let Some(watched) = self.watches().get(service).filter(|watched| living(watched)) {
            return Ok(watched.clone());
        }
        let new = self.registry.watch(service).await?;
        let mut watches = self.watches();
        let watched = watches.entry(service.to_owned()).or_insert_with(|| new.clone());
        // Another caller may have been faster; then ours ends for want of listeners.
        if !living(watched) {
            *watched = new;
        }
        Ok(watched.clone())
    }

    async fn services(&self) -> Result<BTreeMap<String, Snapshot>, Error> {
        self.registry.services().await
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU16, time::Duration};

    use super::*;
    use crate::{config::Config, registry::embedded::EmbeddedRegistry};

    #[tokio::test]
    async fn all_who_listen_to_a_service_share_a_watch() {
        let data = tempfile::tempdir().unwrap();
        let flags = [("data", data.path().display().to_string())];
        let config = Config::from_sources(None, HashMap::new(), &flags).unwrap();
        let registry = Shared::new(EmbeddedRegistry::open(&config).unwrap());
        let (one, other) = tokio::join!(registry.watch("s"), registry.watch("s"));
        let (mut one, mut other) = (one.unwrap(), other.unwrap());
        assert!(one.same_channel(&other));
        assert!(one.same_channel(&registry.watch("s").await.unwrap()));
        assert!(!one.same_channel(&registry.watch("t").await.unwrap()));
        let instance = Instance {
            id: "s-1".to_owned(),
            service: "s".to_owned(),
            address: ([127, 0, 0, 1], 1).into(),
            admin: None,
            version: semver::Version::new(1, 0, 0),
            packages: vec![],
            capabilities: vec![],
            weight: NonZeroU16::MIN,
            healthy: true,
        };
        let _registered = registry.register(instance).await.unwrap();
        for watched in [&mut one, &mut other] {
            let seen = watched.wait_for(|instances| instances.len() == 1);
            assert!(tokio::time::timeout(Duration::from_secs(5), seen).await.is_ok());
        }
    }
}
