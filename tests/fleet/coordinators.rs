//! Several coordinators of one mesh, of which one leads.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::{
    fleet::Fleet,
    ground::{Consul, Ground},
    process::{self, Process},
    turn::Turn,
    until,
};

const NAME: &str = "service-coordinator";
/// How long nobody may lead after the leader was killed.
const TAKEOVER: Duration = Duration::from_secs(30);

/// What `omni status` or `omni services` shows.
fn shown(fleet: &Fleet, args: &[&str]) -> Value {
    let mut command = fleet.command(&process::binary());
    let output = command.args(args).arg("--json").output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// The address of the one that leads.
async fn leader(fleet: &Fleet, is_new: impl Fn(&str) -> bool) -> String {
    until("one leads", || async {
        let status = shown(fleet, &["status"]);
        let leader = status["leader"].as_str().filter(|id| is_new(id));
        leader.map(str::to_owned).ok_or_else(|| status["leader"].clone())
    })
    .await
}

/// With Consul's usual interval of 10 s between two looks at an instance, not the
/// tests' shorter one.
pub async fn another_coordinator_leads_when_one_is_killed(ground: Ground) {
    let settings = [("OMNI_CONSUL__CHECK_INTERVAL", "10s")];
    let turn = Turn::alone().await;
    let mut fleet = Fleet::empty(turn, Consul::start(ground).await, &settings).await;
    let mut coordinators: BTreeMap<String, Process> = BTreeMap::new();
    for _ in 0..2 {
        let (process, address) = fleet.serve(NAME, &[]).await;
        coordinators.insert(address.to_string(), process);
    }
    let first = leader(&fleet, |_| true).await;
    let instances = shown(&fleet, &["services"]);
    let of = |id: &str| {
        let all = instances.as_array().unwrap();
        let one = all.iter().find(|one| one["id"] == id);
        one.and_then(|one| one["address"].as_str()).unwrap().to_owned()
    };

    let killed = Instant::now();
    coordinators.remove(&of(&first)).unwrap().kill();
    let second = leader(&fleet, |id| id != first).await;
    println!("{ground:?}: another one leads {:.1?} after the kill", killed.elapsed());
    assert!(killed.elapsed() < TAKEOVER);

    // What it only sees, it tells: once, though it wasn't the only one to see it.
    let (process, _) = fleet.serve("audit", &[]).await;
    until("the leader tells what it sees", || async {
        let mut command = fleet.command(&process::binary());
        let told = command.args(["events", "trace", "audit", "--json"]).output().unwrap();
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let ready = told.matches("\"to\":\"UNIT_STATE_READY\"").count();
        if ready == 1 { Ok(()) } else { Err(told) }
    })
    .await;
    assert!(process.stop().success());

    // One that goes in order is followed at once.
    let (process, _) = fleet.serve(NAME, &[]).await;
    let told = Instant::now();
    assert!(coordinators.remove(&of(&second)).unwrap().stop().success());
    leader(&fleet, |id| id != second).await;
    println!("{ground:?}: another one leads {:.1?} after SIGTERM", told.elapsed());
    assert!(process.stop().success());
    for process in coordinators.into_values() {
        assert!(process.stop().success());
    }
}
