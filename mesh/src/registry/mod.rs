//! Who is there: instances of services, registered by themselves and watched
//! by those that call them.

pub mod consul;
pub mod embedded;
pub mod fixed;
mod shared;

use std::{collections::BTreeMap, net::SocketAddr, num::NonZeroU16, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use self::shared::Shared;
use crate::{Error, config::Config};

/// One running instance of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Unique in the mesh.
    pub id: String,
    /// The service it is an instance of.
    pub service: String,
    /// Where others reach it: its mesh port, or the gateway's HTTP port.
    pub address: SocketAddr,
    /// Where its health and metrics are.
    pub admin: Option<SocketAddr>,
    /// The service's semantic version.
    pub version: semver::Version,
    /// The Protobuf packages it serves, from its own descriptors.
    pub packages: Vec<String>,
    /// What else it can do, such as `http`.
    pub capabilities: Vec<String>,
    /// Its share of the calls, against the weights of the others.
    pub weight: NonZeroU16,
    /// Whether the registry's own health check passes.
    pub healthy: bool,
}

/// The instances of one service at one moment, healthy or not, by id.
pub type Snapshot = Arc<[Instance]>;

/// Where instances register and are found. The last good snapshot stays when
/// the registry can't be reached.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Registers a ready instance, as passing. It stays registered, and is
    /// registered again should the registry forget it, until the guard goes.
    ///
    /// # Errors
    /// When the registry refuses the instance or can't be reached.
    async fn register(&self, instance: Instance) -> Result<Registration, Error>;

    /// Watches the instances of `service`. The first snapshot is there when
    /// this returns, or empty when the registry can't be reached yet.
    ///
    /// # Errors
    /// When watching can't begin at all.
    async fn watch(&self, service: &str) -> Result<watch::Receiver<Snapshot>, Error>;

    /// All services that have instances, with these.
    ///
    /// # Errors
    /// When the registry can't be reached.
    async fn services(&self) -> Result<BTreeMap<String, Snapshot>, Error>;
}

/// The registry that the setting `registry` names: `embedded:`, `static:` or
/// `consul://host:port`.
///
/// # Errors
/// When the setting names none of these.
pub fn registry(config: &Config) -> Result<Arc<dyn Registry>, Error> {
    match config.registry.split_once(':').map(|(scheme, _)| scheme) {
        Some("embedded") => Ok(Arc::new(Shared::new(embedded::EmbeddedRegistry::open(config)?))),
        Some("consul") => Ok(Arc::new(Shared::new(consul::ConsulRegistry::new(config)?))),
        Some("static") => Ok(Arc::new(fixed::StaticRegistry::new(config)?)),
        _ => Err(Error::setting(
            "registry",
            &config.registry,
            "expected `embedded:`, `static:` or `consul://host:port`",
        )),
    }
}

/// Keeps an instance registered; deregisters it when told to, or dropped.
pub struct Registration {
    undo: Option<Box<dyn Deregister>>,
}

/// How a registry forgets an instance.
#[async_trait]
pub trait Deregister: Send + Sync {
    /// Deregisters, and returns when others can see it.
    async fn deregister(self: Box<Self>);
    /// Does what can be done without waiting, from a drop.
    fn abandon(self: Box<Self>);
}

impl Registration {
    /// A registration that `undo` takes back.
    pub fn new(undo: impl Deregister + 'static) -> Self {
        Self { undo: Some(Box::new(undo)) }
    }

    /// Deregisters, and returns when others can see it.
    pub async fn deregister(mut self) {
        if let Some(undo) = self.undo.take() {
            undo.deregister().await;
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(undo) = self.undo.take() {
            undo.abandon();
        }
    }
}
