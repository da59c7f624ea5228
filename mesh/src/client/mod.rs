//! The one outbound stack: trace, breaker, deadline, retry, pick, connect.
//!
//! A [`Channel`] is all a generated client needs:
//! `HookReceiverClient::new(client.channel("hook-receiver").await?)`.

mod balance;
mod breaker;
mod bridge;
mod budget;
mod connection;
pub(crate) mod deadline;
mod ejection;
mod endpoint;
mod gate;
mod link;
mod load;
mod metrics;
mod picker;
mod retry;
#[cfg(test)]
mod tests;
pub(crate) mod trace;
mod upstream;
mod wanted;
mod whole;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, PoisonError},
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::{Request, Response};
use semver::VersionReq;
use tokio::sync::{Mutex, watch};
use tonic::{Status, body::Body};
use tower::{Service, ServiceBuilder, layer::layer_fn, util::BoxCloneSyncService};

use self::{
    balance::Balance,
    breaker::{Break, Breakers},
    bridge::Bridge,
    budget::Budget,
    connection::Caller,
    deadline::Deadline,
    metrics::Metrics,
    retry::{Retry, To},
    trace::Trace,
    wanted::{Range, Spoken, Wanted},
};
pub use self::{
    breaker::BreakerState,
    bridge::BETWEEN_RANGES,
    connection::Peer,
    upstream::{InstanceState, Upstream, UpstreamInstance},
    wanted::{ORDER_HEADER, SERVICE_HEADER, VERSION_HEADER},
};
use crate::{
    Error,
    identity::Identity,
    intercept::{Intercept, Interceptors},
    policy::Policy,
    registry::Registry,
};

/// Makes channels to services, as one party of the mesh.
#[derive(Clone)]
pub struct Client {
    caller: Caller,
    registry: Arc<dyn Registry>,
    policy: watch::Receiver<Arc<Policy>>,
    interceptors: Interceptors,
    metrics: Arc<Metrics>,
    bridge: Arc<Bridge>,
    channels: Arc<Mutex<HashMap<String, Channel>>>,
}

impl Client {
    /// A client with this identity. Nothing is connected yet.
    pub fn new(
        identity: Identity,
        registry: Arc<dyn Registry>,
        policy: watch::Receiver<Arc<Policy>>,
        interceptors: Interceptors,
    ) -> Self {
        let metrics = Arc::new(Metrics::new());
        let in_place = policy.borrow().trust.converts(identity.id().name());
        let caller = Caller { identity, in_place };
        let bridge = Bridge::new(registry.clone(), caller.clone(), metrics.clone(), policy.clone());
        let (bridge, channels) = (Arc::new(bridge), Arc::default());
        Self { caller, registry, policy, interceptors, metrics, bridge, channels }
    }

    /// The channel to `service`; the same one each time it is asked for.
    /// Instances needn't be there yet.
    ///
    /// # Errors
    /// When the registry can't be watched.
    pub fn channel<'a>(&'a self, service: &'a str) -> BoxFuture<'a, Result<Channel, Error>> {
        Box::pin(async move {
            let mut channels = self.channels.lock().await;
            if let Some(channel) = channels.get(service) {
                return Ok(channel.clone());
            }
            let snapshots = self.registry.watch(service).await?;
            let (caller, metrics) = (self.caller.clone(), self.metrics.clone());
            let balance = Balance::follow(service.into(), caller, snapshots, metrics.clone());
            let to = Arc::new(To {
                caller: self.caller.identity.id().name().into(),
                balance,
                bridge: self.bridge.clone(),
                budget: Budget::new(),
                metrics,
                breakers: Breakers::new(),
                policy: self.policy.clone(),
            });
            let channel = Channel { stack: self.stack(&to), to, range: None, package: None };
            channels.insert(service.to_owned(), channel.clone());
            Ok(channel)
        })
    }

    /// How the services that were asked for look from here.
    pub async fn upstreams(&self) -> Vec<Upstream> {
        let channels = self.channels.lock().await;
        let caller = self.caller.identity.id();
        let of = |channel: &Channel| Upstream::of(caller.name(), &channel.to);
        let mut upstreams: Vec<_> = channels.values().map(of).collect();
        upstreams.sort_by(|a, b| a.service.cmp(&b.service));
        upstreams
    }

    fn stack(&self, to: &Arc<To>) -> Stack {
        let me = self.caller.identity.id();
        let (name, service): (Arc<str>, _) = (me.name().into(), to.balance.service().clone());
        let interceptors = self.interceptors.clone();
        let (for_break, for_deadline) = (to.clone(), to.clone());
        let stack = ServiceBuilder::new()
            // Outermost: interceptors see the call as its caller does.
            .layer(layer_fn(move |inner| {
                Intercept::outbound(inner, service.clone(), me.clone(), interceptors.clone())
            }))
            // Outside of deadline and tries, so that one span covers them.
            .layer(layer_fn(move |inner| Trace::new(inner, name.clone())))
            // Outside of the deadline: what comes too late is a failure to it.
            .layer(layer_fn(move |inner| Break::new(inner, for_break.clone())))
            // Outside of the tries: together they have what one call has.
            .layer(layer_fn(move |inner| Deadline::new(inner, for_deadline.clone())))
            // Innermost: each try picks anew.
            .service(Retry::new(to.clone()));
        BoxCloneSyncService::new(stack)
    }
}

/// The clients of one process, for its admin port to show.
#[derive(Clone, Default)]
pub struct Clients {
    all: Arc<std::sync::Mutex<Vec<Client>>>,
}

impl Clients {
    /// One client more.
    pub fn add(&self, client: Client) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).push(client);
    }

    /// How the services that were asked for look from here.
    pub async fn upstreams(&self) -> Vec<Upstream> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let upstreams = futures::future::join_all(all.iter().map(Client::upstreams));
        upstreams.await.into_iter().flatten().collect()
    }
}

type Stack = BoxCloneSyncService<Request<Body>, Response<Body>, Status>;

/// A way to call one service, on whichever of its instances. Clones share
/// connections.
#[derive(Clone)]
pub struct Channel {
    stack: Stack,
    to: Arc<To>,
    range: Option<Arc<VersionReq>>,
    package: Option<Arc<str>>,
}

impl Channel {
    /// The same channel for calls to instances of these versions, unless a call
    /// names others in [`VERSION_HEADER`].
    #[must_use]
    pub fn of_version(mut self, range: VersionReq) -> Self {
        self.range = Some(Arc::new(range));
        self
    }

    /// The same channel for calls of what every server has, as reflection: they go to
    /// instances that speak this Protobuf package.
    #[must_use]
    pub fn of_package(mut self, package: &str) -> Self {
        self.package = Some(package.into());
        self
    }

    /// Where a call made now would go first, if it needn't wait: the look-up and
    /// the choice that every call begins with.
    pub fn pick(&self) -> Option<SocketAddr> {
        self.to.balance.try_pick(&Wanted::any(), &[]).map(|(endpoint, _)| endpoint.instance.address)
    }

    /// Whether an instance of the service in `range`, if one is given, is registered
    /// that speaks the Protobuf package `package`.
    pub fn speaks(&self, package: &str, range: Option<&VersionReq>) -> bool {
        let endpoints = self.to.balance.endpoints();
        let mut instances = endpoints.all.iter().map(|endpoint| &endpoint.instance);
        instances.any(|one| wanted::speaks(one, Some(package)) && wanted::is_in(one, range))
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.stack.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(range) = &self.range {
            request.extensions_mut().insert(Range(range.clone()));
        }
        if let Some(package) = &self.package {
            request.extensions_mut().insert(Spoken(package.clone()));
        }
        self.stack.call(request)
    }
}
