//! What is decided elsewhere and watched: who may call whom, settings by route,
//! and which versions get the calls.
//!
//! A request is allowed or denied by the most exact intention that matches it;
//! where none does, by what services declare as their dependencies and by the
//! operators' right to call everything; else it is denied.

mod consul;
mod file;
mod intentions;
mod permission;
mod routes;
mod versions;

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::watch;

pub use self::{
    consul::watch_consul,
    file::watch_file,
    intentions::{Action, Decision, Intention, Intentions},
    permission::{HeaderMatch, InvalidPermission, PathMatch, Pattern, Permission, ValueMatch},
    routes::{Route, Routes},
    versions::{Histories, History, Order, Revision, RuleBook, VersionRules, Versions},
};
use crate::{Error, config::Config};

/// Everything that was decided, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Who may call whom.
    pub intentions: Intentions,
    /// How calls are made, by route.
    pub routes: Routes,
    /// Which versions get the calls.
    pub versions: Arc<Versions>,
}

/// The policy of this process, watched at its source: Consul where the
/// registry is Consul, else the configuration file. The first one is there when
/// this returns. `declared` are the dependencies of all services known, as
/// (caller, called).
///
/// # Errors
/// When the source can't be watched.
pub fn policy<'a>(
    config: &'a Config,
    declared: &'a [(String, String)],
) -> BoxFuture<'a, Result<watch::Receiver<Arc<Policy>>, Error>> {
    Box::pin(async move {
        if config.registry.starts_with("consul:") {
            watch_consul(config, declared).await
        } else {
            watch_file(config, declared).await
        }
    })
}
