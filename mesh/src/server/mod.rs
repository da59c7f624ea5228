//! The one inbound stack: accept, authenticate, limit, trace, intercept,
//! authorise.
//!
//! In reading order: `listener` accepts, `connection` is one peer from its
//! handshake to its end, `preface` and `awaited` how long it may keep silent, `tracked`
//! and `streams` its requests, `limit` the first of the stack's layers. `quota` and
//! `silent` count, `ledger` tells, `throttle` keeps quiet.

mod admin;
mod authorize;
mod awaited;
mod connection;
mod context;
mod denials;
mod ledger;
mod limit;
mod listener;
mod preface;
mod quota;
mod received;
mod silent;
mod streams;
mod tracked;

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context as TaskContext, Poll},
};

use futures::future::BoxFuture;
use http::{Request, Response};
use tokio::sync::watch;
use tonic::{Status, body::Body, service::Routes};
use tower::{Service, ServiceBuilder, ServiceExt, layer::layer_fn, util::BoxCloneSyncService};

pub use self::{
    admin::{Admin, Readiness},
    connection::Remote,
    denials::{Denial, Denials},
    listener::{Security, serve},
};
use self::{
    authorize::Authorize,
    context::{Context, Server},
    limit::{Gate, Limit},
};
use crate::{
    config::LimitsConfig,
    intercept::{Intercept, Interceptors},
    policy::Policy,
};

/// What is served on a port.
pub type App = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// The whole inbound stack of the service `me` around its `routes`. What is
/// denied is counted in `denials`.
pub fn stack(
    me: &str,
    routes: Routes,
    limits: &LimitsConfig,
    policy: watch::Receiver<Arc<Policy>>,
    interceptors: Interceptors,
    denials: Denials,
) -> App {
    let me: Arc<str> = me.into();
    let (for_intercept, gate) = (me.clone(), Gate::new(me.clone(), limits));
    let server =
        Server { me: me.clone(), unary_timeout: limits.unary_timeout, policy: policy.clone() };
    let server = Arc::new(server);
    let stack = ServiceBuilder::new()
        // Outermost: whatever fails inside leaves as a gRPC status.
        .layer(layer_fn(|inner| Answer { inner }))
        // Before any work is done: what is too much costs next to nothing.
        .layer(layer_fn(move |inner| Limit::new(inner, gate.clone())))
        // Next: all that follows can ask who calls, until when, in which trace.
        .layer(layer_fn(move |inner| Context::new(inner, server.clone())))
        // Outside of the decision: interceptors see what is denied as well.
        .layer(layer_fn(move |inner| {
            Intercept::inbound(inner, for_intercept.clone(), interceptors.clone())
        }))
        // Innermost: nothing of a denied request reaches a handler.
        .layer(layer_fn(move |inner| {
            Authorize::new(inner, me.clone(), policy.clone(), denials.clone())
        }))
        .service(ServiceExt::<Request<Body>>::map_err(routes, |never: Infallible| match never {}));
    BoxCloneSyncService::new(stack)
}

/// An axum router as what is served on a port.
pub fn app(router: axum::Router) -> App {
    BoxCloneSyncService::new(ServiceExt::<Request<Body>>::map_response(
        router,
        |response: Response<axum::body::Body>| response.map(Body::new),
    ))
}

/// Turns a status into the answer that carries it.
#[derive(Clone)]
struct Answer<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Answer<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Status>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        // The stack is always ready: what is too much is refused, not kept waiting.
        self.inner.poll_ready(cx).map(|_| Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.inner.call(request);
        Box::pin(async move { Ok(answer.await.unwrap_or_else(Status::into_http)) })
    }
}
