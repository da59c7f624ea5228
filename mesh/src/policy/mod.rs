//! What is decided elsewhere and watched: who may call whom, settings by route,
//! and which versions get the calls.
//!
//! A request is allowed or denied by the most exact intention that matches it;
//! where none does, by what services declare as their dependencies and by the
//! operators' right to call everything; else it is denied, but for calls of those that
//! are trusted to convert, and to them.

mod consul;
mod file;
mod intentions;
mod permission;
mod routes;
mod trust;
mod versions;

use std::sync::Arc;

use futures::future::BoxFuture;
use http::Request;
use tokio::sync::watch;

pub use self::{
    consul::watch_consul,
    file::watch_file,
    intentions::{Action, Decision, Intention, Intentions},
    permission::{HeaderMatch, InvalidPermission, PathMatch, Pattern, Permission, ValueMatch},
    routes::{Route, Routes},
    trust::Trust,
    versions::{Histories, History, Order, Revision, RuleBook, VersionRules, Versions},
};
use crate::{Error, config::Config, identity::SpiffeId};

/// Everything that was decided, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Who may call whom.
    pub intentions: Intentions,
    /// How calls are made, by route.
    pub routes: Routes,
    /// Which versions get the calls.
    pub versions: Arc<Versions>,
    /// Who may speak for others.
    pub trust: Trust,
}

impl Policy {
    /// Whether `source` may send `request` to `destination`.
    pub fn decide<B>(
        &self,
        source: &SpiffeId,
        destination: &str,
        request: &Request<B>,
    ) -> Decision {
        match self.intentions.decide(source, destination, request) {
            // It converts for whoever asks, and the called one decides on its callers.
            Decision::DeniedByDefault
                if [source.name(), destination].iter().any(|one| self.trust.converts(one)) =>
            {
                Decision::Allowed
            }
            decided => decided,
        }
    }
}

/// What a program knows ahead of its mesh: what the services of its own list declare.
#[derive(Clone, Debug, Default)]
pub struct Declared {
    /// Whom they call, as (caller, called); allowed unless an intention says otherwise.
    pub calls: Vec<(String, String)>,
    /// Which of them may speak for others.
    pub trust: Trust,
    /// What they serve and call: encoded `google.protobuf.FileDescriptorSet`s.
    pub descriptors: Vec<&'static [u8]>,
}

/// The policy of this process, watched at its source: Consul where the
/// registry is Consul, else the configuration file. The first one is there when
/// this returns.
///
/// # Errors
/// When the source can't be watched.
pub fn policy<'a>(
    config: &'a Config,
    declared: &'a Declared,
) -> BoxFuture<'a, Result<watch::Receiver<Arc<Policy>>, Error>> {
    Box::pin(async move {
        if config.registry.starts_with("consul:") {
            watch_consul(config, declared).await
        } else {
            watch_file(config, declared).await
        }
    })
}
