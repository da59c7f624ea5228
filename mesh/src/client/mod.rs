//! The one outbound stack: trace, breaker, deadline, retry, pick, connect.
//!
//! A [`Channel`] is all a generated client needs:
//! `HookReceiverClient::new(client.channel("hook-receiver").await?)`.

mod balance;
mod breaker;
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
mod whole;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, PoisonError},
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::{Request, Response};
use tokio::sync::{Mutex, watch};
use tonic::{Status, body::Body};
use tower::{Service, ServiceBuilder, layer::layer_fn, util::BoxCloneSyncService};

use self::{
    balance::Balance,
    breaker::{Break, Breakers},
    budget::Budget,
    deadline::Deadline,
    metrics::Metrics,
    retry::{Retry, To},
    trace::Trace,
};
pub use self::{
    breaker::BreakerState,
    connection::Peer,
    upstream::{InstanceState, Upstream, UpstreamInstance},
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
    identity: Identity,
    registry: Arc<dyn Registry>,
    policy: watch::Receiver<Arc<Policy>>,
    interceptors: Interceptors,
    metrics: Arc<Metrics>,
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
        Self {
            identity,
            registry,
            policy,
            interceptors,
            metrics: Arc::new(Metrics::new()),
            channels: Arc::default(),
        }
    }

    /// The channel to `service`; the same one each time it is asked for.
    /// Instances needn't be there yet.
    ///
    /// # Errors
    /// When the registry can't be watched.
    pub async fn channel(&self, service: &str) -> Result<Channel, Error> {
        let mut channels = self.channels.lock().await;
        if let Some(channel) = channels.get(service) {
            return Ok(channel.clone());
        }
        let snapshots = self.registry.watch(service).await?;
        let (identity, metrics) = (self.identity.clone(), self.metrics.clone());
        let balance = Balance::follow(service.into(), identity, snapshots, metrics.clone());
        let to = Arc::new(To {
            balance,
            budget: Budget::new(),
            metrics,
            breakers: Breakers::new(),
            policy: self.policy.clone(),
        });
        let channel = Channel { stack: self.stack(&to), to };
        channels.insert(service.to_owned(), channel.clone());
        Ok(channel)
    }

    /// How the services that were asked for look from here.
    pub async fn upstreams(&self) -> Vec<Upstream> {
        let channels = self.channels.lock().await;
        let caller = self.identity.id();
        let of = |channel: &Channel| Upstream::of(caller.name(), &channel.to);
        let mut upstreams: Vec<_> = channels.values().map(of).collect();
        upstreams.sort_by(|a, b| a.service.cmp(&b.service));
        upstreams
    }

    fn stack(&self, to: &Arc<To>) -> Stack {
        let me = self.identity.id();
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
}

impl Channel {
    /// Where a call made now would go first, if it needn't wait: the look-up and
    /// the choice that every call begins with.
    pub fn pick(&self) -> Option<SocketAddr> {
        self.to.balance.try_pick(&[]).map(|(endpoint, _)| endpoint.instance.address)
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.stack.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.stack.call(request)
    }
}
