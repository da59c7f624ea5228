//! `omni services`: who is registered, and who answers.

use std::{collections::BTreeSet, time::Duration};

use futures::future::join_all;
use mesh::{
    client::Upstream,
    registry::{self, Instance},
};
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
    let upstreams = if args.wide { upstreams(&shown).await } else { vec![] };
    if args.json {
        return match args.wide {
            true => output::json(&Wide { instances: &shown, upstreams: &upstreams }),
            false => output::json(&shown),
        };
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
    table.print()?;
    if args.wide { show_upstreams(upstreams) } else { Ok(()) }
}

/// With `--wide --json`.
#[derive(Serialize)]
struct Wide<'a> {
    instances: &'a [Shown],
    upstreams: &'a [Upstream],
}

fn show_upstreams(upstreams: Vec<Upstream>) -> anyhow::Result<()> {
    output::line("")?;
    if upstreams.is_empty() {
        return output::line("no process tells how it sees others");
    }
    let mut table = Table::new([
        "CALLER",
        "CALLED",
        "ADDRESS",
        "STATE",
        "LATENCY",
        "IN FLIGHT",
        "RETRIES LEFT",
        "NOTE",
    ]);
    let mut breakers = Vec::new();
    for Upstream { caller, service, retries_left, breakers: of_methods, instances } in upstreams {
        for instance in instances {
            table.row([
                caller.clone(),
                service.clone(),
                instance.address.to_string(),
                word(&instance.state),
                format!("{:.2} ms", instance.latency_ms),
                instance.in_flight.to_string(),
                retries_left.to_string(),
                instance.note.unwrap_or_default(),
            ]);
        }
        for (method, state) in of_methods {
            breakers.push([caller.clone(), method, word(&state)]);
        }
    }
    table.print()?;
    if breakers.is_empty() {
        return output::line("\nevery breaker is closed");
    }
    output::line("")?;
    let mut table = Table::new(["CALLER", "METHOD", "BREAKER"]);
    breakers.into_iter().for_each(|row| table.row(row));
    table.print()
}

/// As it is in JSON.
fn word(state: &impl Serialize) -> String {
    let value = serde_json::to_value(state).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

/// What the processes of `shown` say of the services they call.
async fn upstreams(shown: &[Shown]) -> Vec<Upstream> {
    let admins: BTreeSet<_> = shown.iter().filter_map(|shown| shown.instance.admin).collect();
    let told = join_all(admins.into_iter().map(|admin| async move {
        let told = tokio::time::timeout(TIMEOUT, upstreams_of(admin)).await;
        match told.map_err(anyhow::Error::from).and_then(|told| told) {
            Ok(told) => told,
            Err(why) => {
                tracing::warn!(%admin, %why, "doesn't tell how it sees others");
                vec![]
            }
        }
    }));
    told.await.into_iter().flatten().collect()
}

async fn upstreams_of(admin: std::net::SocketAddr) -> anyhow::Result<Vec<Upstream>> {
    let client = reqwest::Client::builder().tls_certs_only([]).build()?;
    let answer =
        client.get(format!("http://{admin}/upstreams")).send().await?.error_for_status()?;
    Ok(serde_json::from_slice(&answer.bytes().await?)?)
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
