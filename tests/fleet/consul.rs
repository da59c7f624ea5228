//! Consul under all that happens to it, while calls go on.

use std::time::{Duration, Instant};

use mesh::registry::{self, Snapshot};
use tests::{
    fleet::{Fleet, SERVICE},
    ground::{Consul, Ground},
    proxy::Mode,
};
use tokio::{sync::watch, time::timeout};

use super::{LOW_RATE, setting};

/// How long a client may go on with what it last knew after Consul is back: the
/// longest pause between its questions, and an answer.
const CAUGHT_UP: Duration = Duration::from_secs(8);

pub async fn calls_go_on_while_consul_is_away(ground: Ground) {
    let mut fleet = Fleet::start(ground, 3).await;
    let load = fleet.load(LOW_RATE).await;
    let watched = watched(&fleet).await;
    let outage = Duration::from_secs(setting("OMNI_TEST_OUTAGE", 5));
    let away = Instant::now();
    fleet.consul.as_mut().unwrap().kill().await;
    load.run(outage).await;
    fleet.consul.as_mut().unwrap().restart().await;
    let back = Instant::now();
    sees_a_newcomer(&mut fleet, watched).await;
    let seen = back.elapsed();
    let report = load.stop().await;
    report.print(&format!("{ground:?}: Consul away for {outage:?}"), away);
    println!(
        "{ground:?}: a newcomer was seen {seen:.1?} after Consul's return, its start included"
    );
    report.assert_none_failed();
    fleet.stop().await;
}

pub async fn consul_restarts_without_its_services_and_no_call_fails(ground: Ground) {
    let mut fleet = Fleet::start(ground, 3).await;
    let load = fleet.load(LOW_RATE).await;
    let lost = Instant::now();
    fleet.consul.as_mut().unwrap().lose_services().await;
    load.run(Duration::from_secs(3)).await;
    let report = load.stop().await;
    report.print(&format!("{ground:?}: Consul restarted without its services"), lost);
    report.assert_none_failed();
    registered(&fleet, 3).await;
    fleet.stop().await;
}

pub async fn instances_that_consul_forgets_are_back_before_a_call_fails(ground: Ground) {
    let fleet = Fleet::start(ground, 3).await;
    let load = fleet.load(LOW_RATE).await;
    let registry = registry::registry(&fleet.config()).unwrap();
    let known = registry.services().await.unwrap()[SERVICE].clone();
    let forgotten = Instant::now();
    for instance in known.iter() {
        fleet.consul.as_ref().unwrap().forget(&instance.id).await;
    }
    registered(&fleet, 3).await;
    let back = forgotten.elapsed();
    load.run(Duration::from_secs(1)).await;
    let report = load.stop().await;
    let what = format!("{ground:?}: Consul forgot all instances; back after {back:.1?}");
    report.print(&what, forgotten);
    report.assert_none_failed();
    fleet.stop().await;
}

pub async fn a_flapping_consul_stops_no_call(ground: Ground) {
    let mut fleet = Fleet::start(ground, 3).await;
    let load = fleet.load(LOW_RATE).await;
    let watched = watched(&fleet).await;
    let flapping = Instant::now();
    for _ in 0..8 {
        fleet.link.as_ref().unwrap().set(Mode::Reset);
        load.run(Duration::from_millis(150)).await;
        fleet.link.as_ref().unwrap().set(Mode::Pass);
        load.run(Duration::from_millis(250)).await;
    }
    sees_a_newcomer(&mut fleet, watched).await;
    let report = load.stop().await;
    report.print(&format!("{ground:?}: Consul flaps"), flapping);
    report.assert_none_failed();
    fleet.stop().await;
}

/// The agent hangs where it can be made to; else the network to it does.
pub async fn a_watch_that_hangs_goes_on_when_consul_does(ground: Ground) {
    let mut fleet = Fleet::start(ground, 3).await;
    let load = fleet.load(LOW_RATE).await;
    let watched = watched(&fleet).await;
    let hung = Instant::now();
    match (&fleet.consul, &fleet.link) {
        (Some(consul @ Consul::Real(_)), _) => consul.hang(),
        (_, link) => link.as_ref().unwrap().set(Mode::Stall),
    }
    load.run(Duration::from_secs(3)).await;
    match (&fleet.consul, &fleet.link) {
        (Some(consul @ Consul::Real(_)), _) => consul.recover(),
        (_, link) => link.as_ref().unwrap().set(Mode::Pass),
    }
    sees_a_newcomer(&mut fleet, watched).await;
    let report = load.stop().await;
    report.print(&format!("{ground:?}: Consul hangs for 3 s"), hung);
    report.assert_none_failed();
    fleet.stop().await;
}

/// What only the fake can be made to do.
pub async fn a_consul_that_fails_or_counts_anew_stops_no_call(ground: Ground) {
    let mut fleet = Fleet::start(ground, 3).await;
    let load = fleet.load(LOW_RATE).await;
    let watched = watched(&fleet).await;
    let begun = Instant::now();
    let Some(Consul::Fake(fake)) = &fleet.consul else { unreachable!("it is for the fake") };
    fake.fail_with(500);
    load.run(Duration::from_secs(2)).await;
    fake.recover();
    load.run(Duration::from_secs(1)).await;
    fake.reset_index();
    load.run(Duration::from_secs(1)).await;
    // Its services are gone and its index begins anew, while it answers.
    fake.lose_services();
    sees_a_newcomer(&mut fleet, watched).await;
    let report = load.stop().await;
    report.print(&format!("{ground:?}: 500s, an index that begins anew, lost services"), begun);
    report.assert_none_failed();
    fleet.stop().await;
}

/// Checks that fail while the instances are well, such as from an agent that
/// lost its network.
pub async fn a_consul_that_takes_all_for_sick_stops_no_call(ground: Ground) {
    let fleet = Fleet::start(ground, 3).await;
    let load = fleet.load(LOW_RATE).await;
    let begun = Instant::now();
    let Some(Consul::Fake(fake)) = &fleet.consul else { unreachable!("it is for the fake") };
    for status in ["critical", "passing", "critical", "passing"] {
        for id in fake.services() {
            fake.set_health(&id, status);
        }
        load.run(Duration::from_millis(500)).await;
    }
    let report = load.stop().await;
    report.print(&format!("{ground:?}: all instances are critical, twice"), begun);
    report.assert_none_failed();
    fleet.stop().await;
}

/// A watch that began before the fault, as the load's did.
async fn watched(fleet: &Fleet) -> watch::Receiver<Snapshot> {
    registry::registry(&fleet.config()).unwrap().watch(SERVICE).await.unwrap()
}

/// Starts one more instance, and waits until `watched` shows all.
async fn sees_a_newcomer(fleet: &mut Fleet, watched: watch::Receiver<Snapshot>) {
    fleet.add().await;
    shows(watched, fleet.size()).await;
}

/// Waits until `size` instances are known to one who asks.
pub(super) async fn registered(fleet: &Fleet, size: usize) {
    let registry = registry::registry(&fleet.config()).unwrap();
    shows(registry.watch(SERVICE).await.unwrap(), size).await;
}

async fn shows(mut watched: watch::Receiver<Snapshot>, size: usize) {
    let all = watched.wait_for(|all| all.iter().filter(|i| i.healthy).count() >= size);
    timeout(CAUGHT_UP, all).await.expect("Consul knows them again").unwrap();
}
