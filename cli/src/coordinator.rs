//! What the coordinator is asked: `omni status`, and `omni restart`, `drain` and `scale`.

use std::{io::IsTerminal as _, time::Duration};

use anyhow::bail;
use api::coordinator::v1::{
    DrainRequest, RestartRequest, ScaleRequest, UnitState, UnitStatus, WatchStatusRequest,
    service_coordinator_client::ServiceCoordinatorClient as Client,
};
use chrono::Utc;
use futures::{Stream, StreamExt as _};
use mesh::{client::Channel, timestamp};
use serde::Serialize;

use crate::{
    args::{Common, OfUnit, Scale, Status},
    call::failed,
    certs, config,
    operator::Operator,
    output::{self, Live, Table, line},
};

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
    while let Some(answer) = answers.next().await {
        let units = answer.map_err(|status| failed(&status))?.units;
        if units.is_empty() {
            // The coordinator has only just begun to look.
            continue;
        }
        if is_live {
            live.show(table(&units))?;
        } else if !args.watch {
            return if args.json {
                output::json(&units.iter().map(Shown::from).collect::<Vec<_>>())
            } else {
                table(&units).print()
            };
        } else {
            for unit in units.iter().filter(|unit| !before.contains(*unit)) {
                told(unit, args.json)?;
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

/// One unit on a line.
fn told(unit: &UnitStatus, json: bool) -> anyhow::Result<()> {
    let shown = Shown::from(unit);
    if json {
        return line(&serde_json::to_string(&shown)?);
    }
    let healthy = shown.instances.iter().filter(|instance| instance.healthy).count();
    let time = Utc::now().format("%H:%M:%S");
    let text = format!("{time}  {:19} {:9} {healthy}  {}", shown.unit, shown.state, shown.reason);
    line(text.trim_end())
}

/// `omni restart`.
pub(crate) async fn restart(common: &Common, args: &OfUnit) -> anyhow::Result<()> {
    let request = RestartRequest { unit: args.name.clone() };
    let answers = client(common).await?.restart(request).await;
    let answers = answers.map_err(|status| failed(&status))?.into_inner();
    follow(answers.map(|answer| answer.map(|answer| answer.status))).await?;
    line(&format!("{} was restarted", args.name))
}

/// `omni drain`.
pub(crate) async fn drain(common: &Common, args: &OfUnit) -> anyhow::Result<()> {
    let request = DrainRequest { unit: args.name.clone() };
    let answers = client(common).await?.drain(request).await;
    let answers = answers.map_err(|status| failed(&status))?.into_inner();
    follow(answers.map(|answer| answer.map(|answer| answer.status))).await?;
    line(&format!("{0} was drained; `omni restart {0}` has it again", args.name))
}

/// `omni scale`.
pub(crate) async fn scale(common: &Common, args: &Scale) -> anyhow::Result<()> {
    let request = ScaleRequest { unit: args.name.clone(), instances: args.count };
    let answers = client(common).await?.scale(request).await;
    let answers = answers.map_err(|status| failed(&status))?.into_inner();
    follow(answers.map(|answer| answer.map(|answer| answer.status))).await?;
    let s = if args.count == 1 { "" } else { "s" };
    line(&format!("{} has {} instance{s}", args.name, args.count))
}

/// Tells how an order goes until it is done.
async fn follow(
    answers: impl Stream<Item = Result<Option<UnitStatus>, tonic::Status>>,
) -> anyhow::Result<()> {
    let mut answers = std::pin::pin!(answers);
    let mut before = None;
    while let Some(answer) = answers.next().await {
        let status = answer.map_err(|status| failed(&status))?;
        if let Some(status) = status.filter(|status| before.as_ref() != Some(status)) {
            told(&status, false)?;
            before = Some(status);
        }
    }
    Ok(())
}

/// A way to ask the coordinator, as an operator.
async fn client(common: &Common) -> anyhow::Result<Client<Channel>> {
    let config = config::load(common, &[])?;
    let operator = Operator::new(&config, certs::OPERATOR).await?;
    if !operator.registry.services().await?.contains_key(service_coordinator::NAME) {
        bail!(
            "no {} is registered: `omni up` runs one, and so does `omni serve {0}`",
            service_coordinator::NAME
        );
    }
    Ok(Client::new(operator.client.channel(service_coordinator::NAME).await?))
}
