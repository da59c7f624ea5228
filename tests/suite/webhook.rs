//! The main path, from the webhook to the trail.

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::StatusCode;
use serde_json::json;
use tests::{
    Layout, Mesh,
    mesh::{API_KEY, new_id},
    until,
};

const LIST_HOOKS: &str = "omnibridge.hooks.v1.HookReceiver/ListHooks";

/// A delivery as GitHub sends it, with what JSON libraries like to change:
/// spaces, escapes, the order of keys, a large number.
const PUSH: &[u8] =
    br#"{"ref": "refs/heads/main",  "z":1,"a":12345678901234567890, "e":"caf\u00e9"}"#;

pub async fn a_webhook_becomes_a_call_an_event_and_an_entry(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    let (delivery, session) = (new_id(), new_id());
    let more = [("x-session-id", session.as_str()), ("authorization", "Bearer planted-secret")];
    let answer = mesh.post_with(&delivery, PUSH, &more).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    assert_eq!(answer.body["duplicate"], false);
    let (id, correlation) = (&answer.body["id"], answer.body["correlation_id"].as_str().unwrap());

    let event = until("the event is in its topic", || async {
        let events = mesh.events("hooks.demo", correlation);
        if events.len() == 1 { Ok(events[0].clone()) } else { Err(events) }
    })
    .await;
    assert_eq!(&event["id"], id);
    assert_eq!(event["source"], "/hooks/demo");
    assert_eq!(event["type"], "push");
    assert_eq!(event["deliveryid"], delivery);
    assert_eq!(event["sessionid"], session);
    assert_eq!(event["data"]["a"], json!(12345678901234567890u64));

    let hooks = mesh.call(LIST_HOOKS, &json!({ "filter": { "sessionId": session } })).unwrap();
    let hook = &hooks["hooks"][0];
    assert_eq!(&hook["id"], id);
    let body = STANDARD.decode(hook["body"].as_str().unwrap()).unwrap();
    assert_eq!(body, PUSH, "byte for byte");
    assert!(!hook["headers"].to_string().contains("planted-secret"), "{}", hook["headers"]);

    let entry = until("the trail has it", || async {
        let entries = mesh.entries(correlation);
        if entries.len() == 1 { Ok(entries[0].clone()) } else { Err(entries) }
    })
    .await;
    assert_eq!(&entry["eventId"], id);
    assert_eq!(entry["topic"], "hooks.demo");
    assert_eq!(entry["resource"], session);
    mesh.stop().await;
}

pub async fn the_same_delivery_again_is_one_event(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    let delivery = new_id();
    let first = mesh.post(&delivery, PUSH).await;
    let again = mesh.post(&delivery, PUSH).await;
    assert_eq!(again.status, StatusCode::ACCEPTED);
    assert_eq!(again.body["duplicate"], true);
    assert_eq!(again.body["id"], first.body["id"]);
    let after = mesh.post(&new_id(), PUSH).await;

    let correlation = first.body["correlation_id"].as_str().unwrap();
    let last = after.body["correlation_id"].as_str().unwrap();
    until("what came after it is in the trail", || async {
        let entries = mesh.entries(last);
        if entries.len() == 1 { Ok(()) } else { Err(entries) }
    })
    .await;
    assert_eq!(mesh.events("hooks.demo", correlation).len(), 1);
    assert_eq!(mesh.entries(correlation).len(), 1);
    mesh.stop().await;
}

pub async fn a_hundred_deliveries_at_once_are_each_one_event(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    let correlation = new_id();
    let deliveries: Vec<String> = (0..100).map(|_| new_id()).collect();
    let gateway = mesh.address("gateway");
    let url = format!("http://{gateway}/hooks/demo");
    let body = b"{}";
    let posts = deliveries.iter().map(|delivery| {
        let headers = HashMap::from([
            ("content-type", "application/json".to_owned()),
            ("x-github-event", "push".to_owned()),
            ("x-github-delivery", delivery.clone()),
            ("x-hub-signature-256", tests::mesh::signature(body)),
            ("x-correlation-id", correlation.clone()),
        ]);
        mesh.send(&url, headers, body)
    });
    for answer in futures::future::join_all(posts).await {
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
        assert_eq!(answer.body["duplicate"], false);
    }
    let seen = until("all are in the topic", || async {
        let events = mesh.events("hooks.demo", &correlation);
        if events.len() >= 100 { Ok(events) } else { Err(events.len()) }
    })
    .await;
    let mut seen: Vec<&str> = seen.iter().filter_map(|e| e["deliveryid"].as_str()).collect();
    let mut sent: Vec<&str> = deliveries.iter().map(String::as_str).collect();
    seen.sort_unstable();
    sent.sort_unstable();
    assert_eq!(seen, sent);
    mesh.stop().await;
}

pub async fn one_delivery_a_hundred_times_at_once_is_one_event(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    let delivery = new_id();
    let posts = (0..100).map(|_| mesh.post(&delivery, PUSH));
    let answers = futures::future::join_all(posts).await;
    let id = &answers[0].body["id"];
    for answer in &answers {
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
        assert_eq!(&answer.body["id"], id, "all are told of the same hook");
    }
    let new = answers.iter().filter(|answer| answer.body["duplicate"] == false).count();
    assert_eq!(new, 1);

    let after = mesh.post(&new_id(), PUSH).await;
    let last = after.body["correlation_id"].as_str().unwrap();
    until("what came after it is in the trail", || async {
        let entries = mesh.entries(last);
        if entries.len() == 1 { Ok(()) } else { Err(entries) }
    })
    .await;
    let of_it = |event: &&serde_json::Value| event["deliveryid"] == delivery.as_str();
    let correlation = answers[0].body["correlation_id"].as_str().unwrap();
    assert_eq!(mesh.events("hooks.demo", correlation).iter().filter(of_it).count(), 1);
    assert_eq!(mesh.entries(correlation).len(), 1);
    mesh.stop().await;
}

pub async fn one_trace_leads_from_the_webhook_to_the_trail(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    // A trace of the outside is a link, never a parent.
    let outside = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traceparent = format!("00-{outside}-00f067aa0ba902b7-01");
    let answer = mesh.post_with(&new_id(), PUSH, &[("traceparent", &traceparent)]).await;
    let correlation = answer.body["correlation_id"].as_str().unwrap();
    let event = until("the event is in its topic", || async {
        mesh.events("hooks.demo", correlation).first().cloned().ok_or(())
    })
    .await;
    let trace_id = event["traceparent"].as_str().unwrap().split('-').nth(1).unwrap().to_owned();
    assert_ne!(trace_id, outside);

    let chain = [
        ("gateway", "POST /hooks/{source}"),
        ("hook-receiver", "receive"),
        ("hook-receiver", "relay hooks.demo"),
        ("audit", "consume hooks.demo"),
    ];
    let spans = until("the trace is whole", || async {
        let spans = mesh.traces.of(&trace_id).await;
        let there = |(service, name): &(&str, &str)| {
            spans.iter().any(|span| span.service == *service && span.name == *name)
        };
        if chain.iter().all(there) { Ok(spans) } else { Err(spans) }
    })
    .await;
    let mut parent = String::new();
    for (service, name) in chain {
        let span = spans.iter().find(|span| span.service == service && span.name == name).unwrap();
        assert_eq!(span.parent, parent, "{service} {name} in {spans:#?}");
        parent.clone_from(&span.id);
    }
    mesh.stop().await;
}

pub async fn bad_input_is_answered_clearly_and_leaves_nothing_behind(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    let session = new_id();
    let own = ("x-session-id", session.as_str());
    let large = vec![b' '; 2 * 1024 * 1024];
    let cases = [
        (mesh.post_with("d", PUSH, &[own, ("x-hub-signature-256", "sha256=00")]).await, 401),
        (mesh.post_with("d", PUSH, &[own, ("content-type", "image/png")]).await, 415),
        (mesh.post_with("d", &large, &[own]).await, 413),
    ];
    for (answer, status) in cases {
        assert_eq!(answer.status.as_u16(), status, "{answer:?}");
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        assert_eq!(answer.body["status"], status);
        assert_eq!(answer.body["trace_id"].as_str().map(str::len), Some(32), "{answer:?}");
    }
    let gateway = mesh.address("gateway");
    let nowhere = mesh.send(&format!("http://{gateway}/hooks/nobody"), HashMap::new(), b"").await;
    assert_eq!(nowhere.status, StatusCode::NOT_FOUND);
    assert_eq!(nowhere.headers["content-type"], "application/problem+json");

    let hooks = mesh.call(LIST_HOOKS, &json!({ "filter": { "sessionId": session } })).unwrap();
    assert_eq!(hooks, json!({}));
    mesh.stop().await;
}

pub async fn an_api_key_opens_its_source(layout: Layout) {
    let mesh = Mesh::start(layout).await;
    let gateway = mesh.address("gateway");
    let url = format!("http://{gateway}/hooks/robot");
    let headers = |key: &str| {
        HashMap::from([
            ("content-type", "application/json".to_owned()),
            ("x-api-key", key.to_owned()),
            ("x-delivery-id", new_id()),
            ("x-event-type", "moved".to_owned()),
        ])
    };
    let answer = mesh.send(&url, headers(API_KEY), b"{}").await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    let correlation = answer.body["correlation_id"].as_str().unwrap();
    let event = until("the event is in its topic", || async {
        mesh.events("hooks.robot", correlation).first().cloned().ok_or(())
    })
    .await;
    assert_eq!(event["type"], "moved");
    let refused = mesh.send(&url, headers("another"), b"{}").await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    mesh.stop().await;
}
