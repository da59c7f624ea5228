//! Who is who, and who may what.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use api::hooks::v1::{ListHooksRequest, hook_receiver_client::HookReceiverClient};
use http::StatusCode;
use mesh::identity::dev::DevAuthority;
use serde_json::json;
use tests::{Layout, Mesh, mesh::new_id, tls, until};

/// How soon an intention must count.
const INTENTION_DEADLINE: Duration = Duration::from_secs(5);
/// How many calls are made after a rotation.
const AFTER_ROTATION: usize = 20;

pub async fn strangers_are_refused_at_the_handshake(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    let address = mesh.address("hook-receiver");
    let nobody = tls::as_stranger(None, address).await;
    assert!(nobody.is_err(), "without a certificate: {nobody:?}");

    let elsewhere = tempfile::tempdir().unwrap();
    let flags = [("data", elsewhere.path().display().to_string())];
    let config = mesh::config::Config::from_sources(None, Default::default(), &flags).unwrap();
    let other = DevAuthority::open(&config).unwrap().issue("operator").unwrap();
    let foreign = tls::as_stranger(Some((&other.chain, &other.key)), address).await;
    assert!(foreign.is_err(), "with another CA's: {foreign:?}");

    let operator = mesh.operator().await;
    let known = tls::serial(&operator, "hook-receiver", address).await;
    assert!(known.is_ok(), "with this mesh's: {known:?}");
    let wrong = tls::serial(&operator, "audit", address).await;
    assert!(wrong.is_err(), "hook-receiver can't stand for audit");
    mesh.stop().await;
}

pub async fn a_denied_call_is_in_the_trail(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    let since = chrono::Utc::now().to_rfc3339();
    let method = "omnibridge.hooks.v1.HookReceiver/ListHooks";
    // Audit has an identity, but declares no need to call hook-receiver.
    let mut client = HookReceiverClient::new(mesh.channel_as("audit", "hook-receiver").await);
    let mut request = tonic::Request::new(ListHooksRequest::default());
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traceparent = format!("00-{trace}-00f067aa0ba902b7-01");
    request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    let denied = client.list_hooks(request).await.unwrap_err();
    assert_eq!(denied.code(), tonic::Code::PermissionDenied, "{denied:?}");
    let log = mesh.log("hook-receiver");
    let of_trace = |line: &str| line.contains("call denied") && line.contains(trace);
    assert!(log.lines().any(of_trace), "the line says which trace it belongs to:\n{log}");

    let denied = mesh.call_with(&["--as-service", "audit"], method, &json!({})).unwrap_err();
    assert!(denied.contains("PERMISSION_DENIED"), "{denied}");
    let request = json!({ "outcome": "OUTCOME_DENIED", "time": { "start": since } });
    let entry = until("the denial is in the trail", || async {
        let answer = mesh.call("omnibridge.audit.v1.Audit/ListEntries", &request).unwrap();
        answer["entries"].get(0).cloned().ok_or(answer)
    })
    .await;
    assert!(entry["actor"].as_str().unwrap().ends_with("/svc/audit"), "{entry}");
    assert_eq!(entry["resource"], "hook-receiver");
    assert_eq!(entry["topic"], "audit.events");
    mesh.stop().await;
}

pub async fn an_intention_stops_calls_and_its_removal_lets_them_through(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    assert_eq!(mesh.post(&new_id(), b"{}").await.status, StatusCode::ACCEPTED);
    mesh.deny("gateway", "hook-receiver").await;
    let begun = Instant::now();
    until("the intention stops calls", || async {
        let status = mesh.post(&new_id(), b"{}").await.status;
        if status == StatusCode::FORBIDDEN { Ok(()) } else { Err(status) }
    })
    .await;
    let stopped = begun.elapsed();
    mesh.undo_denial("gateway", "hook-receiver").await;
    let begun = Instant::now();
    until("its removal lets them through", || async {
        let status = mesh.post(&new_id(), b"{}").await.status;
        if status == StatusCode::ACCEPTED { Ok(()) } else { Err(status) }
    })
    .await;
    let allowed = begun.elapsed();
    println!("denied after {stopped:?}, allowed again after {allowed:?}");
    assert!(stopped < INTENTION_DEADLINE && allowed < INTENTION_DEADLINE);
    mesh.stop().await;
}

pub async fn roots_rotate_while_calls_run(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    let operator = mesh.operator().await;
    let address = mesh.address("hook-receiver");
    let before = tls::serial(&operator, "hook-receiver", address).await.unwrap();
    let done = AtomicBool::new(false);
    let calls = AtomicUsize::new(0);
    let callers = async {
        while !done.load(Ordering::Relaxed) {
            let answer = mesh.post(&new_id(), b"{}").await;
            assert_eq!(answer.status, StatusCode::ACCEPTED, "{calls:?}: {answer:?}");
            calls.fetch_add(1, Ordering::Relaxed);
        }
    };
    let rotation = async {
        for _ in 0..2 {
            let before = tls::serial(&operator, "hook-receiver", address).await.unwrap();
            mesh.backends.rotate_root(|args| mesh.omni(args)).await;
            until("hook-receiver shows a new leaf", || async {
                let now = tls::serial(&operator, "hook-receiver", address).await;
                match now {
                    Ok(serial) if serial != before => Ok(()),
                    now => Err(now),
                }
            })
            .await;
        }
        // Some calls go by the new leafs before they end.
        let rotated = calls.load(Ordering::Relaxed);
        until("calls go on", || async {
            let now = calls.load(Ordering::Relaxed);
            if now >= rotated + AFTER_ROTATION { Ok(()) } else { Err(now) }
        })
        .await;
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(callers, rotation);
    let after = tls::serial(&operator, "hook-receiver", address).await.unwrap();
    assert_ne!(before, after, "the peer's serial number changed");
    println!("{} calls over two rotations, none failed", calls.into_inner());
    mesh.stop().await;
}
