//! The way to version-bridge, for calls that only another version of a service
//! could answer.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use http::{HeaderMap, HeaderValue};
use semver::VersionReq;
use tokio::sync::SetOnce;
use tonic::Status;

use super::{
    balance::{Balance, Chosen, WAIT_FOR_INSTANCE},
    endpoint::Endpoint,
    metrics::Metrics,
    wanted::{ORDER_HEADER, SERVICE_HEADER, VERSION_HEADER, Wanted},
};
use crate::{identity::Identity, registry::Registry};

/// The service that converts calls between versions.
pub const VERSION_BRIDGE: &str = "version-bridge";
/// What stands between two ranges in [`ORDER_HEADER`].
pub const BETWEEN_RANGES: char = ';';

/// Its instances, watched from the first call on that needs one.
pub(super) struct Bridge {
    registry: Arc<dyn Registry>,
    identity: Identity,
    metrics: Arc<Metrics>,
    balance: Arc<SetOnce<Balance>>,
    follows: AtomicBool,
    /// Whether there ever was one.
    seen: AtomicBool,
}

impl Bridge {
    pub(super) fn new(
        registry: Arc<dyn Registry>,
        identity: Identity,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (follows, seen) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { registry, identity, metrics, balance: Arc::default(), follows, seen }
    }

    /// One of its instances, without waiting for one that doesn't answer; `None`
    /// where there is none.
    pub(super) async fn try_pick(&self, tried: &[Arc<Endpoint>]) -> Option<Chosen> {
        self.balance().await?.try_pick(&Wanted::any(), tried)
    }

    /// One of its instances; `None` where there never was one.
    ///
    /// # Errors
    /// When none can be reached.
    pub(super) async fn pick(&self, tried: &[Arc<Endpoint>]) -> Result<Option<Chosen>, Status> {
        let Some(balance) = self.balance().await else { return Ok(None) };
        if !balance.endpoints().all.is_empty() {
            self.seen.store(true, Ordering::Relaxed);
        } else if !self.seen.load(Ordering::Relaxed) {
            return Ok(None);
        }
        balance.pick(&Wanted::any(), tried).await.map(Some)
    }

    /// Its instances, once they are watched. That isn't begun anew where the call
    /// that began it is given up.
    async fn balance(&self) -> Option<&Balance> {
        if !self.follows.swap(true, Ordering::Relaxed) {
            let (registry, identity) = (self.registry.clone(), self.identity.clone());
            let (metrics, balance) = (self.metrics.clone(), self.balance.clone());
            tokio::spawn(async move {
                match registry.watch(VERSION_BRIDGE).await {
                    Ok(snapshots) => {
                        let name = VERSION_BRIDGE.into();
                        let made = Balance::follow(name, identity, snapshots, metrics);
                        // The first call waits until they are connected; else it would
                        // go where the rules like it less.
                        if !made.endpoints().all.is_empty() {
                            let _ = made.pick(&Wanted::any(), &[]).await;
                        }
                        // Nobody else sets it.
                        let _ = balance.set(made);
                    }
                    Err(why) => tracing::error!(%why, "{VERSION_BRIDGE} can't be found"),
                }
            });
        }
        tokio::time::timeout(WAIT_FOR_INSTANCE, self.balance.wait()).await.ok()
    }
}

/// A call on its way to be converted: to which service it goes on from there, in
/// which range its caller wants it, and in which ones the rules do, the best first.
pub(super) struct Converted {
    pub(super) service: Arc<str>,
    pub(super) asked: Option<VersionReq>,
    pub(super) ranges: Vec<VersionReq>,
}

/// Says in `headers` where the call goes on, or that it goes nowhere else.
pub(super) fn mark(headers: &mut HeaderMap, converted: Option<&Converted>) {
    headers.remove(SERVICE_HEADER);
    headers.remove(ORDER_HEADER);
    let Some(Converted { service, asked, ranges }) = converted else { return };
    let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    let ranges = ranges.join(&BETWEEN_RANGES.to_string());
    let asked = asked.as_ref().map(ToString::to_string).unwrap_or_default();
    let told = [(SERVICE_HEADER, service.to_string()), (VERSION_HEADER, asked)];
    for (name, value) in told.into_iter().chain([(ORDER_HEADER, ranges)]) {
        // Names of services and ranges are ASCII.
        if let (false, Ok(value)) = (value.is_empty(), HeaderValue::try_from(value.as_str())) {
            headers.insert(name, value);
        }
    }
}
