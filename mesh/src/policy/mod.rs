//! What is decided elsewhere and watched: who may call whom, and settings by
//! route.
//!
//! A request is allowed or denied by the most exact intention that matches it;
//! where none does, by what services declare as their dependencies and by the
//! operators' right to call everything; else it is denied.

mod consul;
mod file;
mod intentions;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::Deserialize;
use tokio::sync::watch;

pub use self::{
    consul::watch_consul,
    file::watch_file,
    intentions::{Action, Decision, Intention, Intentions, PathMatch, Permission},
};
use crate::{Error, config::Config};

/// Everything that was decided, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Who may call whom.
    pub intentions: Intentions,
    /// Settings by gRPC method path, such as
    /// `/omnibridge.hooks.v1.HookReceiver/Receive`.
    pub routes: BTreeMap<String, Route>,
}

/// Settings of one gRPC method.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// How long a call may take where the caller set no deadline; 10 s unless
    /// set.
    #[serde(default, with = "humantime_serde::option")]
    pub timeout: Option<Duration>,
}

/// The policy of this process, watched at its source: Consul where the
/// registry is Consul, else the configuration file. The first one is there when
/// this returns. `declared` are the dependencies of all services known, as
/// (caller, called).
///
/// # Errors
/// When the source can't be watched.
pub async fn policy(
    config: &Config,
    declared: &[(String, String)],
) -> Result<watch::Receiver<Arc<Policy>>, Error> {
    if config.registry.starts_with("consul:") {
        watch_consul(config, declared).await
    } else {
        watch_file(config, declared)
    }
}
