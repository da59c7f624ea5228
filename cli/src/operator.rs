//! An operator's way into the mesh: an identity and the same client stack that
//! services have.

use std::sync::Arc;

use mesh::{
    client::Client,
    config::Config,
    identity,
    policy::{self, Trust},
    registry::{self, Registry},
};

use crate::catalogue;

/// An operator's registry and client.
pub(crate) struct Operator {
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) client: Client,
    /// Who may convert its calls.
    pub(crate) trust: Trust,
}

impl Operator {
    /// The party `name`, with what the configuration names.
    pub(crate) async fn new(config: &Config, name: &str) -> anyhow::Result<Self> {
        Self::finding(config, name, registry::registry(config)?).await
    }

    /// As [`Operator::new`], but what it calls is found by `registry`.
    pub(crate) async fn finding(
        config: &Config,
        name: &str,
        registry: Arc<dyn Registry>,
    ) -> anyhow::Result<Self> {
        let identity = identity::authority(config)?.identity(name).await?;
        let policy = policy::policy(config, &catalogue::declared()).await?;
        let trust = policy.borrow().trust.clone();
        let client = Client::new(identity, registry.clone(), policy, Default::default());
        Ok(Self { registry, client, trust })
    }
}
