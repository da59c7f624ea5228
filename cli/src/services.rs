//! `omni services`: who is registered, and who answers.

use std::time::Duration;

use futures::future::join_all;
use mesh::registry::{self, Instance};
use serde::Serialize;
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    args::{Common, Services},
    config,
    output::{self, Table},
};

/// How long an instance may take to say that it is healthy.
const TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Shown {
    health: &'static str,
    #[serde(flatten)]
    instance: Instance,
}

/// Shows all instances.
pub(crate) async fn run(common: &Common, args: &Services) -> anyhow::Result<()> {
    let config = config::load(common, &[])?;
    let services = registry::registry(&config)?.services().await?;
    let instances = services.values().flat_map(|instances| instances.iter().cloned());
    let shown = join_all(
        instances
            .map(|instance| async move { Shown { health: health(&instance).await, instance } }),
    )
    .await;
    if args.json {
        return output::json(&shown);
    }
    if shown.is_empty() {
        return output::line("no service is registered; `omni up` runs them all");
    }
    let mut table = Table::new(["SERVICE", "VERSION", "ADDRESS", "HEALTH", "PACKAGES", "INSTANCE"]);
    for Shown { health, instance } in shown {
        table.row([
            instance.service,
            instance.version.to_string(),
            instance.address.to_string(),
            health.to_owned(),
            instance.packages.join(", "),
            instance.id,
        ]);
    }
    table.print()
}

/// What the instance itself says on its admin port; what the registry says,
/// where the instance doesn't tell its admin port.
async fn health(instance: &Instance) -> &'static str {
    if !instance.healthy {
        return "critical";
    }
    let Some(admin) = instance.admin else { return "unknown" };
    match tokio::time::timeout(TIMEOUT, ask(admin, &instance.service)).await {
        Ok(Ok(true)) => "passing",
        Ok(Ok(false)) => "not serving",
        Ok(Err(_)) | Err(_) => "no answer",
    }
}

async fn ask(admin: std::net::SocketAddr, service: &str) -> anyhow::Result<bool> {
    let channel = Endpoint::from_shared(format!("http://{admin}"))?.connect().await?;
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel).check(request).await?;
    Ok(answer.into_inner().status() == ServingStatus::Serving)
}
