//! The admin port of a process: gRPC health for Consul, `/livez`, `/readyz`,
//! `/metrics`, and `/upstreams` for `omni services --wide`. Loopback unless configured otherwise.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Json, Router, extract::State, response::IntoResponse, routing::get};
use http::StatusCode;
use tokio::sync::Mutex;
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::App;
use crate::{
    Error,
    client::{Clients, Upstream},
    telemetry::Telemetry,
};

/// Which services of this process are ready.
#[derive(Clone)]
pub struct Readiness {
    health: HealthReporter,
    services: Arc<Mutex<BTreeMap<String, bool>>>,
}

impl Readiness {
    /// Says whether `service` is ready, to gRPC health and to `/readyz`.
    pub async fn set(&self, service: &str, ready: bool) {
        // Held over both, so that of two changes the later one is told last.
        let mut services = self.services.lock().await;
        services.insert(service.to_owned(), ready);
        let all = services.values().all(|ready| *ready);
        for (name, ready) in [(service, ready), ("", all)] {
            let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            self.health.set_service_status(name, status).await;
        }
    }
}

/// What is served on the admin port.
pub struct Admin {
    /// To say which services are ready.
    pub readiness: Readiness,
    /// To be served with [`super::serve`].
    pub app: App,
}

impl Admin {
    /// An admin port that shows `telemetry`'s metrics, and what `clients` see.
    pub async fn new(telemetry: Arc<Telemetry>, clients: Clients) -> Self {
        let (health, server) = tonic_health::server::health_reporter();
        health.set_service_status("", ServingStatus::NotServing).await;
        let readiness = Readiness { health, services: Arc::default() };
        let pages = Router::new()
            .route("/livez", get(|| async { "alive\n" }))
            .route("/readyz", get(readyz).with_state(readiness.clone()))
            .route("/metrics", get(metrics).with_state(telemetry))
            .route("/upstreams", get(upstreams).with_state(clients));
        let router = Routes::new(server).prepare().into_axum_router().merge(pages);
        Self { readiness, app: super::app(router) }
    }
}

async fn readyz(State(readiness): State<Readiness>) -> impl IntoResponse {
    let services = readiness.services.lock().await.clone();
    let ready = !services.is_empty() && services.values().all(|ready| *ready);
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(services))
}

async fn upstreams(State(clients): State<Clients>) -> Json<Vec<Upstream>> {
    Json(clients.upstreams().await)
}

async fn metrics(State(telemetry): State<Arc<Telemetry>>) -> Result<String, (StatusCode, String)> {
    let failed = |why: Error| (StatusCode::INTERNAL_SERVER_ERROR, why.to_string());
    telemetry.prometheus().map_err(failed)
}
