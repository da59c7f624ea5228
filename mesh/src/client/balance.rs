//! The instances of one service, and the choice among them for each call.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use semver::VersionReq;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::{
    connection::{Caller, Connection},
    ejection::{self, Crowd},
    endpoint::{At, Endpoint, Neighbourhood},
    metrics::Metrics,
    picker,
    wanted::{Wanted, is_in, speaks},
};
use crate::{
    registry::{Instance, Snapshot},
    status::{Reason, status, version_unavailable},
};

/// How long a call waits for an instance that it can be sent to.
pub(super) const WAIT_FOR_INSTANCE: Duration = Duration::from_secs(1);
/// What the first instances are assumed to take; only compared with each other.
const FIRST_LATENCY: Duration = Duration::from_millis(1);
/// How many versions an error tells of, the highest first.
const TOLD_VERSIONS: usize = 16;
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

/// The endpoint for a call, and its connection.
pub(super) type Chosen = (Arc<Endpoint>, Arc<Connection>);

/// Where a call can go.
pub(super) enum Found {
    /// To this one.
    Here(Chosen),
    /// To an instance in one of these ranges, the best first, once it is converted
    /// to a version that is spoken there.
    Converted(Vec<VersionReq>),
}

/// Why a call can't go anywhere.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nowhere {
    /// Those that it could go to can't be reached.
    Unreached,
    /// There is none that it could go to.
    Unfit,
}

/// One snapshot.
#[derive(Default)]
pub(super) struct Endpoints {
    pub(super) all: Vec<Arc<Endpoint>>,
    /// How many the registry holds for unhealthy.
    unhealthy: usize,
    /// Whether they are all of one version, and speak the same: the usual case, in
    /// which none has to be looked at to know whether it fits.
    alike: bool,
}

impl Endpoints {
    /// Whether so many are out that the reasons are doubted.
    fn panics(&self, ejected: usize) -> bool {
        let in_use = self.all.len().saturating_sub(self.unhealthy + ejected);
        in_use * PANIC < self.all.len()
    }

    /// Whether one that doesn't speak `package` is in `range`.
    fn is_convertible(&self, package: Option<&str>, range: Option<&VersionReq>) -> bool {
        let mut others = self.all.iter().map(|endpoint| &endpoint.instance);
        others.any(|one| !speaks(one, package) && is_in(one, range))
    }
}

/// Whether so many of `endpoints` are out that the reasons are doubted.
fn panic_among(endpoints: &[&Arc<Endpoint>], now: Instant) -> bool {
    let in_use = |endpoint: &&&Arc<Endpoint>| {
        endpoint.instance.healthy && endpoint.ejection.left(now).is_none()
    };
    endpoints.iter().filter(in_use).count() * PANIC < endpoints.len()
}

/// All that are of the same version and speak the same packages.
fn are_alike(endpoints: &[Arc<Endpoint>]) -> bool {
    let is = |a: &Instance, b: &Instance| a.version == b.version && a.packages == b.packages;
    endpoints.windows(2).all(|two| is(&two[0].instance, &two[1].instance))
}

impl Balance {
    /// Follows `snapshots` until it is dropped.
    pub(super) fn follow(
        service: Arc<str>,
        caller: Caller,
        mut snapshots: watch::Receiver<Snapshot>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (crowd, changed) = (Arc::new(Crowd::default()), Arc::new(Notify::new()));
        let neighbourhood = Neighbourhood { caller, crowd, changed, metrics };
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
    pub(super) fn try_pick(&self, wanted: &Wanted, tried: &[Arc<Endpoint>]) -> Option<Chosen> {
        match self.shared.find(wanted, tried, false) {
            Ok(Found::Here(chosen)) => Some(chosen),
            _ => None,
        }
    }

    /// The endpoint for a call that those at `tried` didn't answer. Waits a little
    /// where none can be reached.
    ///
    /// # Errors
    /// When there is none in time, or none that is wanted.
    pub(super) async fn pick(
        &self,
        wanted: &Wanted,
        tried: &[Arc<Endpoint>],
    ) -> Result<Chosen, Status> {
        match self.find(wanted, tried, false).await? {
            Found::Here(chosen) => Ok(chosen),
            Found::Converted(_) => Err(self.shared.unavailable(wanted)),
        }
    }

    /// As [`Balance::pick`], and whether the call could be converted, if it
    /// `may_convert`.
    ///
    /// # Errors
    /// As [`Balance::pick`].
    pub(super) async fn find(
        &self,
        wanted: &Wanted,
        tried: &[Arc<Endpoint>],
        may_convert: bool,
    ) -> Result<Found, Status> {
        let unfit = || self.shared.unfit(wanted);
        match self.shared.find(wanted, tried, may_convert) {
            Ok(found) => return Ok(found),
            Err(Nowhere::Unfit) => return Err(unfit()),
            Err(Nowhere::Unreached) => {}
        }
        let wait = async {
            loop {
                let changed = self.shared.neighbourhood.changed.notified();
                tokio::pin!(changed);
                // What changes between the look and the wait isn't missed.
                changed.as_mut().enable();
                match self.shared.find(wanted, tried, may_convert) {
                    Ok(found) => return Ok(found),
                    Err(Nowhere::Unfit) => return Err(unfit()),
                    Err(Nowhere::Unreached) => changed.await,
                }
            }
        };
        // Boxed, to be no part of what every call carries.
        let waited = Box::pin(tokio::time::timeout(WAIT_FOR_INSTANCE, wait)).await;
        waited.unwrap_or_else(|_| Err(self.shared.unavailable(wanted)))
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
            .collect::<Vec<_>>();
        let unhealthy = snapshot.iter().filter(|instance| !instance.healthy).count();
        let alike = are_alike(&all);
        self.endpoints.store(Arc::new(Endpoints { all, unhealthy, alike }));
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

    /// Where a call can go: to one that wasn't tried, if it can, in the order that
    /// is wanted. A range that nobody who speaks the call's package is in may be
    /// one for which it can be converted.
    fn find(
        &self,
        wanted: &Wanted,
        tried: &[Arc<Endpoint>],
        may_convert: bool,
    ) -> Result<Found, Nowhere> {
        let endpoints = self.endpoints.load();
        let package = wanted.package();
        let fits = |endpoint: &Endpoint, range| {
            speaks(&endpoint.instance, package)
                && is_in(&endpoint.instance, range)
                && is_in(&endpoint.instance, wanted.range())
        };
        if endpoints.alike && !wanted.has_order() {
            // Nothing to choose but the instance.
            return match endpoints.all.first() {
                Some(first) if !fits(first, None) => {
                    let converted = may_convert && endpoints.is_convertible(package, None);
                    converted.then(|| Found::Converted(vec![])).ok_or(Nowhere::Unfit)
                }
                _ => {
                    let panic = endpoints.panics(self.neighbourhood.crowd.ejected());
                    let found = pick_untried(&endpoints.all, tried, panic)
                        .or_else(|| pick_untried(&endpoints.all, &[], panic));
                    found.map(Found::Here).ok_or(Nowhere::Unreached)
                }
            };
        }
        let now = Instant::now();
        let mut nowhere =
            if endpoints.all.is_empty() { Nowhere::Unreached } else { Nowhere::Unfit };
        // A range whose instances are mostly out comes after the others, and one that
        // was tried last.
        let passes = [(tried, false), (tried, true), (&[][..], true)];
        for (nth, range) in passes.iter().flat_map(|pass| wanted.order().map(move |r| (pass, r))) {
            let (tried, doubts) = nth;
            let fitting: Vec<&Arc<Endpoint>> =
                endpoints.all.iter().filter(|endpoint| fits(endpoint, range)).collect();
            if fitting.is_empty() {
                if may_convert && endpoints.is_convertible(package, range) {
                    return Ok(Found::Converted(wanted.ranges_from(range)));
                }
                continue;
            }
            nowhere = Nowhere::Unreached;
            let panic = panic_among(&fitting, now);
            if (!panic || *doubts)
                && let Some(chosen) = pick_untried(&fitting, tried, panic)
            {
                return Ok(Found::Here(chosen));
            }
        }
        Err(nowhere)
    }

    fn unfit(&self, wanted: &Wanted) -> Status {
        let mut there = BTreeMap::<_, usize>::new();
        for Endpoint { instance, .. } in self.endpoints.load().all.iter().map(AsRef::as_ref) {
            let Instance { version, packages, .. } = instance;
            *there.entry((version.clone(), packages.join(", "))).or_default() += 1;
        }
        let there =
            there.into_iter().rev().take(TOLD_VERSIONS).map(|((version, packages), count)| {
                match count {
                    1 => format!("{version} ({packages})"),
                    count => format!("{count} of {version} ({packages})"),
                }
            });
        let mut asked = wanted.path().to_owned();
        if let Some(range) = wanted.range() {
            asked += &format!(" of {range}");
        }
        let rules: Vec<String> = wanted.order().flatten().map(ToString::to_string).collect();
        if !rules.is_empty() {
            asked += &format!(", by its rules of {}", rules.join(", or "));
        }
        version_unavailable(&self.service, &asked, &there.collect::<Vec<_>>().join("; "))
    }

    fn unavailable(&self, wanted: &Wanted) -> Status {
        let endpoints = self.endpoints.load();
        let package = wanted.package();
        let fitting = endpoints.all.iter().filter(|endpoint| speaks(&endpoint.instance, package));
        let mut why = fitting.map(|endpoint| {
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

/// One of `endpoints` that isn't among those tried, with its connection.
fn pick_untried<'e, E: Borrow<Arc<Endpoint>>>(
    endpoints: &'e [E],
    tried: &[Arc<Endpoint>],
    panic: bool,
) -> Option<Chosen> {
    let now = Instant::now();
    let is_tried = |endpoint: &Arc<Endpoint>| tried.iter().any(|one| Arc::ptr_eq(one, endpoint));
    let candidate = |endpoint: &'e E| {
        let endpoint: &'e Arc<Endpoint> = endpoint.borrow();
        (!is_tried(endpoint)).then(|| At { endpoint, now, panic })
    };
    let picked: &Arc<Endpoint> = picker::pick(endpoints, candidate, &mut rand::rng())?.borrow();
    // Closed since it was looked at is as good as not there.
    Some((picked.clone(), picked.link.connection()?))
}

fn mean_latency(endpoints: &[Arc<Endpoint>], now: Instant) -> Option<Duration> {
    let n = u32::try_from(endpoints.len()).ok().filter(|n| *n > 0)?;
    Some(endpoints.iter().map(|e| e.load.latency(now)).sum::<Duration>() / n)
}
