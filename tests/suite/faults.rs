//! What must hold when things fail.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tests::{Layout, Mesh, chaos::Chaos, fault::Fault, mesh::new_id, until};

pub async fn an_event_survives_a_broker_that_is_away_and_a_killed_receiver(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    // The topic is there, and the consumer reads it.
    let first = mesh.post(&new_id(), b"{}").await;
    let first = first.body["correlation_id"].as_str().unwrap().to_owned();
    mesh.each_is_in_the_trail(&[first]).await;

    mesh.backends.stop_broker().await;
    let answer = mesh.post(&new_id(), br#"{"kept":true}"#).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "the outbox takes it: {answer:?}");
    let correlation = answer.body["correlation_id"].as_str().unwrap();
    until("it waits in the outbox", || async {
        match mesh.backends.pending().await {
            Ok(1..) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    mesh.take_process("hook-receiver").kill();
    assert!(mesh.backends.pending().await.unwrap() >= 1, "the kill lost nothing");
    mesh.backends.start_broker().await;
    mesh.restart("hook-receiver").await;

    mesh.each_is_in_the_trail(&[correlation.to_owned()]).await;
    until("nothing waits any more", || async {
        match mesh.backends.pending().await {
            Ok(0) => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let events = mesh.events("hooks.demo", correlation);
    let mut ids: Vec<&Value> = events.iter().map(|event| &event["id"]).collect();
    ids.dedup();
    assert_eq!(ids, [&answer.body["id"]], "once, after deduplication");
    assert_eq!(mesh.entries(correlation).len(), 1);
    mesh.stop().await;
}

pub async fn another_receiver_relays_in_order_where_one_was_killed(layout: Layout) {
    const SENT: usize = 20;
    let mesh = Mesh::start(layout).await;
    let first = mesh.post(&new_id(), b"{}").await;
    let first = first.body["correlation_id"].as_str().unwrap().to_owned();
    mesh.each_is_in_the_trail(&[first]).await;
    // It relays, for it was there before the other one.
    let relaying = mesh.take_process("hook-receiver");
    mesh.restart("hook-receiver").await;
    until("there are two", || async {
        let services = mesh.services();
        let is_one = |s: &&Value| s["service"] == "hook-receiver" && s["health"] == "passing";
        let count = services.as_array().map_or(0, |all| all.iter().filter(is_one).count());
        if count == 2 { Ok(()) } else { Err(services) }
    })
    .await;

    mesh.backends.stop_broker().await;
    let correlation = new_id();
    let mut sent = vec![];
    for _ in 0..SENT {
        let header = [("x-correlation-id", &*correlation)];
        let answer = mesh.post_with(&new_id(), b"{}", &header).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
        sent.push(answer.body["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(mesh.backends.pending().await.unwrap(), SENT as i64);
    relaying.kill();
    mesh.backends.start_broker().await;
    let trail = until("all are in the trail", || async {
        let trail = mesh.backends.trail(&correlation).await.map_err(|why| why.to_string())?;
        if trail.len() >= SENT { Ok(trail) } else { Err(format!("{} are", trail.len())) }
    })
    .await;
    assert_eq!(trail, sent, "once each, and in order");
    mesh.stop().await;
}

pub async fn a_full_outbox_refuses_until_the_broker_is_back(layout: Layout) {
    const LIMIT: usize = 20;
    let limit = ("OMNI_OUTBOX__LIMIT", LIMIT.to_string());
    let mesh = Mesh::start_with(layout, &[limit]).await;
    mesh.backends.stop_broker().await;
    let post = async || {
        let answer = mesh.post(&new_id(), b"{}").await;
        let correlation = answer.body["correlation_id"].as_str().map(str::to_owned);
        correlation.filter(|_| answer.status == StatusCode::ACCEPTED).ok_or(answer)
    };
    let mut acknowledged = vec![];
    let refused = loop {
        match post().await {
            Ok(correlation) => acknowledged.push(correlation),
            Err(answer) => break answer,
        }
        assert!(acknowledged.len() <= LIMIT, "more than its limit waits");
    };
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{refused:?}");
    assert_eq!(refused.body["code"], "OUTBOX_FULL", "{refused:?}");
    assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert!(post().await.is_err(), "it stays full");

    mesh.backends.start_broker().await;
    acknowledged.push(until("there is room again", post).await);
    mesh.each_is_in_the_trail(&acknowledged).await;
    mesh.stop().await;
}

pub async fn killed_again_and_again_they_lose_double_and_disorder_nothing(layout: Layout) {
    holds(layout, Fault::Kills).await;
}

pub async fn a_broker_that_is_paused_and_killed_loses_doubles_and_disorders_nothing(
    layout: Layout,
) {
    holds(layout, Fault::BrokerFails).await;
}

async fn holds(layout: Layout, fault: Fault) {
    let time = Duration::from_secs(20);
    let verdict = Chaos { layout, fault, time, rate: 50 }.run().await;
    println!("{layout:?}: {verdict}");
    assert!(verdict.holds(), "{verdict}");
}

pub async fn draining_ends_streams_with_unavailable_and_exits_with_success(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    let session = new_id();
    let request = json!({ "filter": { "sessionId": session } }).to_string();
    let watching = {
        let args = ["call", "--json", "omnibridge.hooks.v1.HookReceiver/WatchHooks", &request];
        let mut command = mesh.command_of(&args);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.spawn().unwrap()
    };
    // A hook that the stream shows proves that it runs: posted until it does.
    let output = tokio::task::spawn_blocking(move || watching.wait_with_output());
    let process = mesh.layout.process_of("hook-receiver");
    for _ in 0..20 {
        let posted = mesh.post_with(&new_id(), b"{}", &[("x-session-id", &session)]).await;
        assert_eq!(posted.status, StatusCode::ACCEPTED, "{posted:?}");
    }
    let stopping = mesh.take_process("hook-receiver");
    let stopped = tokio::task::spawn_blocking(move || stopping.stop());
    let output = output.await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("UNAVAILABLE (DRAINING)"), "{said}");
    assert!(stopped.await.unwrap().success());

    mesh.start_process(process);
    mesh.healthy().await;
    let posted = mesh.post(&new_id(), b"{}").await;
    assert_eq!(posted.status, StatusCode::ACCEPTED, "after the restart: {posted:?}");
    mesh.stop().await;
}
