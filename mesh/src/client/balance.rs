//! The instances of one service, and the choice among them for each call.

use std::{collections::HashMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::{
    connection::Connection,
    ejection::{self, Crowd},
    endpoint::{At, Endpoint, Neighbourhood},
    metrics::Metrics,
    picker,
};
use crate::{
    identity::Identity,
    registry::Snapshot,
    status::{Reason, status},
};

/// How long a call waits for an instance that it can be sent to.
const WAIT_FOR_INSTANCE: Duration = Duration::from_secs(1);
/// What the first instances are assumed to take; only compared with each other.
const FIRST_LATENCY: Duration = Duration::from_millis(1);
/// Where fewer than one in so many may be called, the reasons are doubted and
/// all are.
const PANIC: usize = 2;

/// The instances of one service, as the registry says at the moment, and as
/// calls to them ended.
pub(super) struct Balance {
    shared: Arc<Shared>,
    _follower: AbortOnDropHandle<()>,
}

struct Shared {
    service: Arc<str>,
    neighbourhood: Neighbourhood,
    endpoints: ArcSwap<Endpoints>,
}

/// One snapshot.
#[derive(Default)]
pub(super) struct Endpoints {
    pub(super) all: Vec<Arc<Endpoint>>,
    /// How many the registry holds for unhealthy.
    unhealthy: usize,
}

impl Endpoints {
    /// Whether so many are out that the reasons are doubted.
    fn panics(&self, ejected: usize) -> bool {
        let in_use = self.all.len().saturating_sub(self.unhealthy + ejected);
        in_use * PANIC < self.all.len()
    }
}

impl Balance {
    /// Follows `snapshots` until it is dropped.
    pub(super) fn follow(
        service: Arc<str>,
        identity: Identity,
        mut snapshots: watch::Receiver<Snapshot>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (crowd, changed) = (Arc::new(Crowd::default()), Arc::new(Notify::new()));
        let neighbourhood = Neighbourhood { identity, crowd, changed, metrics };
        let shared = Shared { service, neighbourhood, endpoints: ArcSwap::default() };
        shared.update(&snapshots.borrow_and_update().clone());
        let shared = Arc::new(shared);
        let following = shared.clone();
        let follower = async move {
            let mut compare = tokio::time::interval(ejection::INTERVAL);
            loop {
                tokio::select! {
                    changed = snapshots.changed() => match changed {
                        Ok(()) => following.update(&snapshots.borrow_and_update().clone()),
                        // The registry is gone; the last good snapshot stays.
                        Err(_) => loop {
                            compare.tick().await;
                            following.compare();
                        },
                    },
                    _ = compare.tick() => following.compare(),
                }
            }
        };
        Self { shared, _follower: AbortOnDropHandle::new(tokio::spawn(follower)) }
    }

    /// The service.
    pub(super) fn service(&self) -> &Arc<str> {
        &self.shared.service
    }

    /// Its instances at the moment.
    pub(super) fn endpoints(&self) -> Arc<Endpoints> {
        self.shared.endpoints.load_full()
    }

    /// As [`Balance::pick`], without waiting.
    pub(super) fn try_pick(
        &self,
        tried: &[Arc<Endpoint>],
    ) -> Option<(Arc<Endpoint>, Arc<Connection>)> {
        self.shared.pick(tried)
    }

    /// The endpoint for a call that those at `tried` didn't answer, and its
    /// connection. Waits a little where there is none.
    ///
    /// # Errors
    /// When there is none in time.
    pub(super) async fn pick(
        &self,
        tried: &[Arc<Endpoint>],
    ) -> Result<(Arc<Endpoint>, Arc<Connection>), Status> {
        if let Some(picked) = self.try_pick(tried) {
            return Ok(picked);
        }
        let wait = async {
            loop {
                let changed = self.shared.neighbourhood.changed.notified();
                tokio::pin!(changed);
                // What changes between the look and the wait isn't missed.
                changed.as_mut().enable();
                if let Some(picked) = self.shared.pick(tried) {
                    return picked;
                }
                changed.await;
            }
        };
        // Boxed, to be no part of what every call carries.
        let waited = Box::pin(tokio::time::timeout(WAIT_FOR_INSTANCE, wait)).await;
        waited.map_err(|_| self.shared.unavailable())
    }
}

impl Shared {
    /// Takes in a snapshot. Endpoints that are in both keep their connections.
    fn update(&self, snapshot: &Snapshot) {
        let old = self.endpoints.load_full();
        let known: HashMap<&str, &Arc<Endpoint>> =
            old.all.iter().map(|e| (e.instance.id.as_str(), e)).collect();
        let now = Instant::now();
        let latency = mean_latency(&old.all, now).unwrap_or(FIRST_LATENCY);
        self.neighbourhood.crowd.resize(snapshot.len());
        let newcomers = !old.all.is_empty();
        let all = snapshot
            .iter()
            .map(|instance| match known.get(instance.id.as_str()) {
                Some(endpoint) if endpoint.instance == *instance => Arc::clone(endpoint),
                // Its health or its weight: the connection is to the same one.
                Some(endpoint) if endpoint.instance.address == instance.address => {
                    Arc::new(endpoint.told_anew(instance.clone()))
                }
                _ => {
                    let neighbourhood = &self.neighbourhood;
                    Arc::new(Endpoint::new(instance.clone(), neighbourhood, latency, newcomers))
                }
            })
            .collect();
        let unhealthy = snapshot.iter().filter(|instance| !instance.healthy).count();
        self.endpoints.store(Arc::new(Endpoints { all, unhealthy }));
        self.neighbourhood.changed.notify_waiters();
    }

    /// Ejects those that fail far more often than the others.
    fn compare(&self) {
        let endpoints = self.endpoints.load();
        let windows: Vec<_> = endpoints.all.iter().map(|e| e.ejection.window()).collect();
        let now = Instant::now();
        for (endpoint, outlier) in endpoints.all.iter().zip(ejection::outliers(&windows)) {
            if outlier && endpoint.ejection.eject(now) {
                endpoint.ejected("success_rate");
            }
        }
    }

    fn pick(&self, tried: &[Arc<Endpoint>]) -> Option<(Arc<Endpoint>, Arc<Connection>)> {
        let endpoints = self.endpoints.load();
        let panic = endpoints.panics(self.neighbourhood.crowd.ejected());
        let (now, mut rng) = (Instant::now(), rand::rng());
        let candidate = |endpoint| At { endpoint, now, panic };
        let untried = |endpoint: &Arc<Endpoint>| !tried.iter().any(|t| Arc::ptr_eq(t, endpoint));
        let all = &endpoints.all;
        let picked = picker::pick(all, |e| untried(e).then(|| candidate(e)), &mut rng)
            .or_else(|| picker::pick(all, |e| Some(candidate(e)), &mut rng))?;
        // Closed since it was looked at is as good as not there.
        Some((picked.clone(), picked.link.connection()?))
    }

    fn unavailable(&self) -> Status {
        let endpoints = self.endpoints.load();
        let mut why = endpoints.all.iter().map(|endpoint| {
            let why = endpoint.link.failure();
            let why = why.unwrap_or_else(|| "it doesn't take calls at the moment".to_owned());
            format!("{}: {why}", endpoint.instance.address)
        });
        let message = match why.next() {
            None => format!("no instance of {} is registered", self.service),
            Some(first) => format!("no instance of {} can be reached: {first}", self.service),
        };
        status(Reason::NoInstance, message)
    }
}

fn mean_latency(endpoints: &[Arc<Endpoint>], now: Instant) -> Option<Duration> {
    let n = u32::try_from(endpoints.len()).ok().filter(|n| *n > 0)?;
    Some(endpoints.iter().map(|e| e.load.latency(now)).sum::<Duration>() / n)
}
