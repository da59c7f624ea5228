//! What the coordinator is asked: `omni status`, and `omni restart`, `drain` and `scale`.

use std::{io::IsTerminal as _, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use api::coordinator::v1::{
    DrainRequest, GetStatusRequest, RestartRequest, ScaleRequest, UnitState, UnitStatus,
    WatchStatusRequest, WatchStatusResponse,
    service_coordinator_client::ServiceCoordinatorClient as Client,
};
use chrono::Utc;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use mesh::{
    client::Channel,
    registry::{self, Registry, Snapshot, fixed::StaticRegistry},
    timestamp,
};
use serde::Serialize;
use service_coordinator::NAME;

use crate::{
    args::{Common, OfUnit, Scale, Status},
    call::failed,
    certs, config,
    operator::Operator,
    output::{self, Live, Table, line},
};

const SECOND: Duration = Duration::from_secs(1);

/// A unit, as it is shown.
#[derive(Serialize)]
struct Shown<'a> {
    unit: &'a str,
    state: String,
    reason: &'a str,
    since: Option<chrono::DateTime<Utc>>,
    /// How many instances it is to have, where a coordinator runs it.
    wanted: Option<i32>,
    restarts: i64,
    instances: Vec<Instance<'a>>,
}

/// Everything.
#[derive(Serialize)]
struct All<'a> {
    /// The id of the coordinator that leads.
    leader: Option<&'a str>,
    units: Vec<Shown<'a>>,
}

#[derive(Serialize)]
struct Instance<'a> {
    id: &'a str,
    version: &'a str,
    address: &'a str,
    healthy: bool,
}

impl<'a> From<&'a UnitStatus> for Shown<'a> {
    fn from(status: &'a UnitStatus) -> Self {
        let instances = status.instances.iter().map(|instance| Instance {
            id: &instance.id,
            version: &instance.version,
            address: &instance.address,
            healthy: instance.healthy,
        });
        let since = status.since.and_then(|since| timestamp::from_proto("since", since).ok());
        Self {
            unit: &status.name,
            state: word(status.state()),
            reason: &status.reason,
            since,
            wanted: since.map(|_| status.wanted),
            restarts: status.restarts,
            instances: instances.collect(),
        }
    }
}

/// A state as people write it.
fn word(state: UnitState) -> String {
    let name = state.as_str_name();
    name.trim_start_matches("UNIT_STATE_").to_lowercase().replace('_', " ")
}

/// Shows how everything is.
pub(crate) async fn status(common: &Common, args: &Status) -> anyhow::Result<()> {
    let mut client = client(common).await?;
    let answers = client.watch_status(WatchStatusRequest {}).await;
    let mut answers = answers.map_err(|status| failed(&status))?.into_inner();
    let is_live = std::io::stdout().is_terminal() && !args.once && !args.json;
    let (mut live, mut before) = (Live::default(), Vec::new());
    let mut shown: Vec<UnitStatus> = Vec::new();
    loop {
        let answer = tokio::select! {
            answer = answers.next() => answer,
            // How long ago it was goes on.
            () = tokio::time::sleep(SECOND), if is_live && !shown.is_empty() => {
                live.show(table(&shown))?;
                continue;
            }
        };
        let Some(answer) = answer else { break };
        let WatchStatusResponse { units, leader } = answer.map_err(|status| failed(&status))?;
        if units.is_empty() {
            // The coordinator has only just begun to look.
            continue;
        }
        if is_live {
            live.show(table(&units))?;
            shown = units;
        } else if !args.watch {
            return if args.json {
                let units = units.iter().map(Shown::from).collect();
                output::json(&All {
                    leader: leader.as_ref().map(|leader| leader.id.as_str()),
                    units,
                })
            } else {
                table(&units).print()
            };
        } else {
            for unit in units.iter().filter(|unit| !before.contains(*unit)) {
                match args.json {
                    true => line(&serde_json::to_string(&Shown::from(unit))?)?,
                    false => line(&dated(unit))?,
                }
            }
            before = units;
        }
    }
    bail!("the coordinator is stopping; ask again")
}

/// A table of all units.
fn table(units: &[UnitStatus]) -> Table {
    let header =
        ["UNIT", "STATE", "SINCE", "INSTANCES", "RESTARTS", "VERSION", "ADDRESS", "REASON"];
    let mut table = Table::new(header);
    for unit in units {
        let shown = Shown::from(unit);
        let healthy = shown.instances.iter().filter(|instance| instance.healthy).count();
        let all = usize::try_from(shown.wanted.unwrap_or(0)).unwrap_or(0);
        let all = all.max(shown.instances.len());
        let mut versions: Vec<&str> = shown.instances.iter().map(|i| i.version).collect();
        versions.dedup();
        let addresses: Vec<&str> = shown.instances.iter().map(|i| i.address).collect();
        table.row([
            shown.unit.to_owned(),
            shown.state,
            shown.since.map(ago).unwrap_or_default(),
            if all == 0 { String::new() } else { format!("{healthy}/{all}") },
            shown.restarts.to_string(),
            versions.join(", "),
            addresses.join(", "),
            shown.reason.to_owned(),
        ]);
    }
    table
}

/// How long ago, in whole seconds.
fn ago(since: chrono::DateTime<Utc>) -> String {
    let seconds = (Utc::now() - since).num_seconds().try_into().unwrap_or(0);
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

/// One unit on a line, and when it was so.
fn dated(unit: &UnitStatus) -> String {
    let shown = Shown::from(unit);
    let healthy = shown.instances.iter().filter(|instance| instance.healthy).count();
    let time = Utc::now().format("%H:%M:%S");
    let text = format!("{time}  {:19} {:9} {healthy}  {}", shown.unit, shown.state, shown.reason);
    text.trim_end().to_owned()
}

/// What a service is told.
#[derive(Clone, Copy)]
enum Order {
    Restart,
    Drain,
    Scale(i32),
}

/// `omni restart`.
pub(crate) async fn restart(common: &Common, args: &OfUnit) -> anyhow::Result<()> {
    tell(common, &args.name, Order::Restart).await?;
    line(&format!("{} was restarted", args.name))
}

/// `omni drain`.
pub(crate) async fn drain(common: &Common, args: &OfUnit) -> anyhow::Result<()> {
    tell(common, &args.name, Order::Drain).await?;
    line(&format!("{0} was drained; `omni restart {0}` has it again", args.name))
}

/// `omni scale`.
pub(crate) async fn scale(common: &Common, args: &Scale) -> anyhow::Result<()> {
    tell(common, &args.name, Order::Scale(args.count)).await?;
    let s = if args.count == 1 { "" } else { "s" };
    line(&format!("{} has {} instance{s}", args.name, args.count))
}

/// Has each coordinator that runs `name` do as `order` says, one after the other.
async fn tell(common: &Common, name: &str, order: Order) -> anyhow::Result<()> {
    for mut client in who_run(common, name).await? {
        let unit = name.to_owned();
        let answers = match order {
            Order::Restart => client
                .restart(RestartRequest { unit })
                .await
                .map(|answers| answers.into_inner().map_ok(|answer| answer.status).boxed()),
            Order::Drain => client
                .drain(DrainRequest { unit })
                .await
                .map(|answers| answers.into_inner().map_ok(|answer| answer.status).boxed()),
            Order::Scale(instances) => client
                .scale(ScaleRequest { unit, instances })
                .await
                .map(|answers| answers.into_inner().map_ok(|answer| answer.status).boxed()),
        };
        follow(answers.map_err(|status| failed(&status))?).await?;
    }
    Ok(())
}

/// Tells on standard error how an order goes until it is done.
async fn follow(
    mut answers: BoxStream<'static, Result<Option<UnitStatus>, tonic::Status>>,
) -> anyhow::Result<()> {
    let mut before = None;
    while let Some(answer) = answers.next().await {
        let status = answer.map_err(|status| failed(&status))?;
        if let Some(status) = status.filter(|status| before.as_ref() != Some(status)) {
            output::whisper(&dated(&status));
            before = Some(status);
        }
    }
    Ok(())
}

/// A way to ask any coordinator, as an operator.
async fn client(common: &Common) -> anyhow::Result<Client<Channel>> {
    let config = config::load(common, &[])?;
    let operator = Operator::new(&config, certs::OPERATOR).await?;
    coordinators(operator.registry.as_ref()).await?;
    Ok(Client::new(operator.client.channel(NAME).await?))
}

/// The coordinators that run `unit`: on each machine its own. Where nobody does, one
/// that says why not.
async fn who_run(common: &Common, unit: &str) -> anyhow::Result<Vec<Client<Channel>>> {
    let mut config = config::load(common, &[])?;
    let all = coordinators(registry::registry(&config)?.as_ref()).await?;
    let (mut who, mut others) = (Vec::new(), Vec::new());
    for coordinator in all.iter() {
        config.instances = [(NAME.to_owned(), vec![coordinator.address])].into();
        let registry = Arc::new(StaticRegistry::new(&config)?);
        let operator = Operator::finding(&config, certs::OPERATOR, registry).await?;
        let mut client = Client::new(operator.client.channel(NAME).await?);
        let status = client.get_status(GetStatusRequest {}).await;
        match status.map_err(|status| failed(&status)) {
            // What it doesn't run it doesn't know since when.
            Ok(answer) => {
                let units = answer.into_inner().units;
                let runs = units.iter().any(|one| one.name == unit && one.since.is_some());
                if runs { who.push(client) } else { others.push(client) }
            }
            Err(why) => tracing::warn!(at = %coordinator.address, "it isn't asked: {why}"),
        }
    }
    others.truncate(usize::from(who.is_empty()));
    who.append(&mut others);
    anyhow::ensure!(!who.is_empty(), "no {NAME} answers");
    Ok(who)
}

/// All coordinators that are registered: one at least.
async fn coordinators(registry: &dyn Registry) -> anyhow::Result<Snapshot> {
    registry.services().await?.remove(NAME).with_context(|| {
        format!("no {NAME} is registered: `omni up` runs one, and so does `omni serve {NAME}`")
    })
}
