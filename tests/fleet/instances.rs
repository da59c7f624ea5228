//! Instances that end, hang and come back.

use std::time::{Duration, Instant};

use api::hooks::v1::{ListSessionsRequest, hook_receiver_client::HookReceiverClient};
use tests::{fleet::Fleet, ground::Ground, load::Load, until};

use super::{AVOIDED, LOW_RATE, RATE, setting};

pub async fn a_killed_instance_is_avoided_and_no_call_fails(ground: Ground) {
    let mut fleet = Fleet::start_alone(ground, 3).await;
    let load = fleet.load(RATE).await;
    let killed = fleet.kill(0);
    load.run(Duration::from_secs(3)).await;
    let report = load.stop().await;
    report.print(&format!("{ground:?}: killed"), killed);
    report.assert_none_failed();
    assert!(report.troubled_for(killed) < AVOIDED);
    fleet.stop().await;
}

pub async fn a_killed_instance_is_avoided_while_consul_hangs(ground: Ground) {
    let mut fleet = Fleet::start_alone(ground, 3).await;
    let load = fleet.load(RATE).await;
    fleet.consul.as_ref().unwrap().hang();
    let killed = fleet.kill(0);
    load.run(Duration::from_secs(3)).await;
    let report = load.stop().await;
    report.print(&format!("{ground:?}: killed while Consul hangs"), killed);
    report.assert_none_failed();
    assert!(report.troubled_for(killed) < AVOIDED);
    fleet.consul.as_ref().unwrap().recover();
    fleet.stop().await;
}

/// Calls that are stuck in the paused instance may end with their deadline;
/// those that start two seconds later may not know of it. Reads only: it may be
/// paused with the lock on the database that it shares with the others.
pub async fn a_paused_instance_is_avoided_and_used_again(ground: Ground) {
    let fleet = Fleet::start_alone(ground, 3).await;
    let load = Load::reads(&fleet.channel().await, RATE, Duration::from_secs(1));
    load.run(Duration::from_secs(1)).await;
    let paused = fleet.pause(0);
    load.run(Duration::from_secs(4)).await;
    fleet.resume(0);
    load.run(Duration::from_secs(1)).await;
    let report = load.stop().await;
    report.print(&format!("{ground:?}: paused for 4 s, deadline 1 s"), paused);
    for (why, count) in report.failures() {
        println!("  {count} × {why}");
    }
    assert!(report.troubled_for(paused) < AVOIDED);
    fleet.stop().await;
}

pub async fn rolling_restarts_fail_no_call(ground: Ground) {
    let mut fleet = Fleet::start(ground, 3).await;
    let load = fleet.load(LOW_RATE).await;
    let begun = Instant::now();
    let rounds = setting("OMNI_TEST_ROUNDS", 2);
    for _ in 0..rounds {
        fleet.roll().await;
    }
    let report = load.stop().await;
    report.print(&format!("{ground:?}: {rounds} rolling restarts"), begun);
    report.assert_none_failed();
    fleet.stop().await;
}

pub async fn an_instance_that_is_told_to_stop_fails_no_call(ground: Ground) {
    let mut fleet = Fleet::start_alone(ground, 2).await;
    let load = fleet.load(RATE).await;
    let told = fleet.drain(0).await;
    let drained = told.elapsed();
    load.run(Duration::from_secs(1)).await;
    let report = load.stop().await;
    report.print(&format!("{ground:?}: SIGTERM, drained in {drained:.1?}"), told);
    report.assert_none_failed();
    fleet.stop().await;
}

pub async fn the_last_instance_leaving_is_noticed_and_the_next_one_is_found(ground: Ground) {
    let mut fleet = Fleet::start(ground, 1).await;
    let mut client = HookReceiverClient::new(fleet.channel().await);
    client.list_sessions(ListSessionsRequest::default()).await.unwrap();
    fleet.drain(0).await;
    let gone = Instant::now();
    until("the client knows that nobody is there", || {
        let mut client = client.clone();
        async move {
            match client.list_sessions(ListSessionsRequest::default()).await {
                Err(why) if why.message().contains("no instance of") => Ok(()),
                other => Err(other),
            }
        }
    })
    .await;
    println!("{ground:?}: the last one's leaving was noticed within {:.0?}", gone.elapsed());
    fleet.add().await;
    let back = Instant::now();
    client.list_sessions(ListSessionsRequest::default()).await.unwrap();
    println!("{ground:?}: the next one answered {:.0?} after it was ready", back.elapsed());
    fleet.stop().await;
}

pub async fn an_idle_client_recovers_after_everything_restarted(ground: Ground) {
    let mut fleet = Fleet::start_alone(ground, 2).await;
    let mut client = HookReceiverClient::new(fleet.channel().await);
    client.list_sessions(ListSessionsRequest::default()).await.unwrap();
    fleet.kill(0);
    fleet.kill(0);
    if let Some(consul) = &mut fleet.consul {
        consul.kill().await;
        consul.restart().await;
    }
    fleet.add().await;
    fleet.add().await;
    let ready = Instant::now();
    until("a call succeeds", || {
        let mut client = client.clone();
        async move { client.list_sessions(ListSessionsRequest::default()).await }
    })
    .await;
    println!("{ground:?}: the idle client recovered within {:.0?}", ready.elapsed());
    // It takes as long as the client waits between its questions to a Consul
    // that doesn't answer.
    assert!(ready.elapsed() < Duration::from_secs(8));
    fleet.stop().await;
}
