//! The one outbound stack: trace, deadline, retry, pick, connect.
//!
//! A [`Channel`] is all a generated client needs:
//! `HookReceiverClient::new(client.channel("hook-receiver").await?)`.

mod balance;
mod breaker;
mod connection;
pub(crate) mod deadline;
mod endpoint;
mod retry;
pub(crate) mod trace;

use std::{
    collections::HashMap,
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use http::{Request, Response};
use tokio::sync::{Mutex, watch};
use tonic::{Status, body::Body};
use tower::{Service, ServiceBuilder, layer::layer_fn, util::BoxCloneSyncService};

pub use self::connection::Peer;
use self::{balance::Balance, deadline::Deadline, retry::Retry, trace::Trace};
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
        Self { identity, registry, policy, interceptors, channels: Arc::default() }
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
        let balance = Balance::follow(service.into(), self.identity.clone(), snapshots);
        let channel = Channel { stack: self.stack(service, balance) };
        channels.insert(service.to_owned(), channel.clone());
        Ok(channel)
    }

    fn stack(&self, service: &str, balance: Arc<Balance>) -> Stack {
        let me = self.identity.id();
        let (name, service): (Arc<str>, Arc<str>) = (me.name().into(), service.into());
        let (policy, interceptors) = (self.policy.clone(), self.interceptors.clone());
        let stack = ServiceBuilder::new()
            // Outermost: interceptors see the call as its caller does.
            .layer(layer_fn(move |inner| {
                Intercept::outbound(inner, service.clone(), me.clone(), interceptors.clone())
            }))
            // Outside of deadline and tries, so that one span covers them.
            .layer(layer_fn(move |inner| Trace::new(inner, name.clone())))
            // Outside of the tries: together they have what one call has.
            .layer(layer_fn(move |inner| Deadline::new(inner, policy.clone())))
            // Innermost: each try picks anew.
            .service(Retry::new(balance));
        BoxCloneSyncService::new(stack)
    }
}

type Stack = BoxCloneSyncService<Request<Body>, Response<Body>, Status>;

/// A way to call one service, on whichever of its instances. Clones share
/// connections.
#[derive(Clone)]
pub struct Channel {
    stack: Stack,
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
