//! The way to services that convert, for calls that only another version of a service
//! could answer.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{HeaderMap, HeaderValue};
use semver::VersionReq;
use tokio::sync::{SetOnce, watch};
use tonic::Status;

use super::{
    balance::{Balance, Chosen, WAIT_FOR_INSTANCE},
    connection::Caller,
    endpoint::Endpoint,
    metrics::Metrics,
    wanted::{ORDER_HEADER, SERVICE_HEADER, VERSION_HEADER, Wanted},
};
use crate::{policy::Policy, registry::Registry};

/// What stands between two ranges in [`ORDER_HEADER`].
pub const BETWEEN_RANGES: char = ';';

/// All services that are trusted to convert, each watched from the first call on that
/// needs one.
pub(super) struct Bridge {
    registry: Arc<dyn Registry>,
    caller: Caller,
    metrics: Arc<Metrics>,
    policy: watch::Receiver<Arc<Policy>>,
    converters: Converters,
}

/// Those that are watched, by name.
type Converters = Arc<Mutex<HashMap<String, Arc<Converter>>>>;

/// The instances of one service that converts.
#[derive(Default)]
struct Converter {
    /// `None` where it can't be watched.
    balance: SetOnce<Option<Balance>>,
    /// Whether there ever was one.
    seen: AtomicBool,
}

impl Bridge {
    pub(super) fn new(
        registry: Arc<dyn Registry>,
        caller: Caller,
        metrics: Arc<Metrics>,
        policy: watch::Receiver<Arc<Policy>>,
    ) -> Self {
        Self { registry, caller, metrics, policy, converters: Converters::default() }
    }

    /// An instance of one that converts, without waiting for one that doesn't answer;
    /// `None` where there is none.
    pub(super) async fn try_pick(&self, tried: &[Arc<Endpoint>]) -> Option<Chosen> {
        for converter in self.converters() {
            let Some(balance) = converter.balance().await else { continue };
            if let Some(chosen) = balance.try_pick(&Wanted::any(), tried) {
                return Some(chosen);
            }
        }
        None
    }

    /// An instance of one that converts; `None` where there never was one.
    ///
    /// # Errors
    /// When none can be reached.
    pub(super) async fn pick(&self, tried: &[Arc<Endpoint>]) -> Result<Option<Chosen>, Status> {
        let mut answer = Ok(None);
        for converter in self.converters() {
            let Some(balance) = converter.balance().await else { continue };
            if !balance.endpoints().all.is_empty() {
                converter.seen.store(true, Ordering::Relaxed);
            } else if !converter.seen.load(Ordering::Relaxed) {
                continue;
            }
            answer = balance.pick(&Wanted::any(), tried).await.map(Some);
            if answer.is_ok() {
                break;
            }
        }
        answer
    }

    /// Those that are trusted at the moment, by name.
    fn converters(&self) -> Vec<Arc<Converter>> {
        let policy = self.policy.borrow().clone();
        let trusted = &policy.trust.converters;
        let mut watched = self.converters.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|name, _| trusted.contains(name));
        let converters = trusted.iter().map(|name| match watched.get(name) {
            Some(converter) => converter.clone(),
            None => watched.entry(name.clone()).or_insert_with(|| self.follow(name)).clone(),
        });
        converters.collect()
    }

    /// Begins to watch `name`. That isn't begun anew where the call that needed it is
    /// given up.
    fn follow(&self, name: &str) -> Arc<Converter> {
        let converter = Arc::<Converter>::default();
        let (registry, caller, metrics) =
            (self.registry.clone(), self.caller.clone(), self.metrics.clone());
        let (following, name) = (converter.clone(), name.to_owned());
        let watched = self.converters.clone();
        tokio::spawn(async move {
            match registry.watch(&name).await {
                Ok(snapshots) => {
                    let balance = Balance::follow(name.as_str().into(), caller, snapshots, metrics);
                    // The first call waits until they are connected; else it would
                    // go where the rules like it less.
                    if !balance.endpoints().all.is_empty() {
                        let _ = balance.pick(&Wanted::any(), &[]).await;
                    }
                    // Nobody else sets it.
                    let _ = following.balance.set(Some(balance));
                }
                Err(why) => {
                    tracing::error!(%why, "{name} can't be found");
                    let _ = following.balance.set(None);
                    // The next call begins anew.
                    let mut watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
                    if watched.get(&name).is_some_and(|one| Arc::ptr_eq(one, &following)) {
                        watched.remove(&name);
                    }
                }
            }
        });
        converter
    }
}

impl Converter {
    /// Its instances, once they are watched.
    async fn balance(&self) -> Option<&Balance> {
        let balance = tokio::time::timeout(WAIT_FOR_INSTANCE, self.balance.wait()).await.ok()?;
        balance.as_ref()
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
