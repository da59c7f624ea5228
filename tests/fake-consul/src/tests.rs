//! That the fake behaves as a real agent was seen to.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::FakeConsul;

/// How long a key is locked after its session ended.
const LOCK_DELAY: Duration = Duration::from_millis(500);

async fn get(consul: &FakeConsul, path: &str) -> (u64, Value) {
    let url = format!("http://{}/v1/{path}", consul.address);
    let answer = reqwest::Client::builder()
        .tls_certs_only([])
        .build()
        .unwrap()
        .get(url)
        .send()
        .await
        .unwrap();
    let index = answer.headers()["X-Consul-Index"].to_str().unwrap();
    let index = index.parse().unwrap();
    let body = answer.bytes().await.unwrap();
    (index, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn a_blocking_query_is_held_until_something_changes() {
    let consul = FakeConsul::start().await;
    let (index, all) = get(&consul, "connect/intentions").await;
    assert_eq!(all, json!([]));
    let held = async {
        let path = format!("connect/intentions?index={index}&wait=10s");
        get(&consul, &path).await
    };
    let change = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        consul.set_intention("a", "b", "allow");
    };
    let began = Instant::now();
    let ((later, all), ()) = tokio::join!(held, change);
    assert!(later > index && began.elapsed() >= Duration::from_millis(50));
    assert_eq!(all[0]["Action"], "allow");
}

#[tokio::test]
async fn a_query_with_a_later_index_is_held_for_the_whole_wait() {
    let consul = FakeConsul::start().await;
    consul.set_key("k", "v");
    let (index, _) = get(&consul, "kv/k").await;
    consul.reset_index();
    let began = Instant::now();
    let (now, pair) = get(&consul, &format!("kv/k?index={index}&wait=200ms")).await;
    assert!(now < index && began.elapsed() >= Duration::from_millis(200));
    assert_eq!(pair[0]["Value"], "dg==");
}

#[tokio::test]
async fn after_a_rotation_both_roots_are_listed_and_the_chain_holds_the_cross_signed_one() {
    let consul = FakeConsul::start().await;
    let (before, leaf) = get(&consul, "agent/connect/ca/leaf/a").await;
    let certificates = |leaf: &Value| {
        let chain = leaf["CertPEM"].as_str().unwrap();
        chain.matches("BEGIN CERTIFICATE").count()
    };
    assert_eq!(certificates(&leaf), 1);
    consul.rotate_root();
    let (after, leaf) = get(&consul, "agent/connect/ca/leaf/a").await;
    assert!(after > before);
    assert_eq!(certificates(&leaf), 2);
    let (_, roots) = get(&consul, "agent/connect/ca/roots").await;
    let active: Vec<_> = (0..2).map(|n| &roots["Roots"][n]["Active"]).collect();
    assert_eq!(active, [&json!(true), &json!(false)]);
}

async fn put(consul: &FakeConsul, path: &str, body: Value) -> (u16, String) {
    let url = format!("http://{}/v1/{path}", consul.address);
    let client = reqwest::Client::builder().tls_certs_only([]).build().unwrap();
    let answer = client.put(url).body(body.to_string()).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// Registers an instance whose check has `status`.
fn register(consul: &FakeConsul, status: &str) {
    consul.register(json!({ "ID": "a-1", "Name": "a", "Check": { "Status": status } }));
}

async fn create_session(consul: &FakeConsul) -> Result<String, String> {
    let delay = format!("{}ms", LOCK_DELAY.as_millis());
    let session = json!({ "LockDelay": delay, "ServiceChecks": [{ "ID": "service:a-1" }] });
    let (status, answer) = put(consul, "session/create", session).await;
    if status != 200 {
        return Err(answer);
    }
    let created: Value = serde_json::from_str(&answer).unwrap();
    Ok(created["ID"].as_str().unwrap().to_owned())
}

async fn acquire(consul: &FakeConsul, session: &str) -> (u16, String) {
    put(consul, &format!("kv/k?acquire={session}"), json!(1)).await
}

async fn release(consul: &FakeConsul, session: &str) -> (u16, String) {
    put(consul, &format!("kv/k?release={session}"), json!(1)).await
}

#[tokio::test]
async fn a_session_needs_its_checks_to_be_there_and_not_critical() {
    let consul = FakeConsul::start().await;
    let why = create_session(&consul).await.unwrap_err();
    assert_eq!(why, "apply failed: Missing check 'service:a-1' registration");
    register(&consul, "critical");
    let why = create_session(&consul).await.unwrap_err();
    assert_eq!(why, "apply failed: Check 'service:a-1' is in critical state");

    let ends: [fn(&FakeConsul); 3] = [
        |consul| consul.set_health("a-1", "critical"),
        |consul| consul.forget_service("a-1"),
        |consul| consul.destroy_sessions(),
    ];
    for end in ends {
        register(&consul, "passing");
        create_session(&consul).await.unwrap();
        assert_eq!(consul.sessions().len(), 1);
        end(&consul);
        assert!(consul.sessions().is_empty());
    }
}

#[tokio::test]
async fn a_key_is_locked_by_one_session_and_for_the_lock_delay_after_its_end() {
    let consul = FakeConsul::start().await;
    register(&consul, "passing");
    let one = create_session(&consul).await.unwrap();
    let other = create_session(&consul).await.unwrap();
    let (yes, no) = ((200, "true".to_owned()), (200, "false".to_owned()));
    assert_eq!(acquire(&consul, &one).await, yes);
    assert_eq!(acquire(&consul, &one).await, yes, "it holds it already");
    assert_eq!(acquire(&consul, &other).await, no);
    let (_, pair) = get(&consul, "kv/k").await;
    assert_eq!((&pair[0]["Session"], &pair[0]["LockIndex"]), (&json!(one), &json!(1)));

    // Let go of, it is free at once.
    assert_eq!(release(&consul, &other).await, no);
    assert_eq!(release(&consul, &one).await, yes);
    assert_eq!(acquire(&consul, &other).await, yes);
    // Its session ended, it is free later.
    let ended = Instant::now();
    put(&consul, &format!("session/destroy/{other}"), json!(null)).await;
    let (_, pair) = get(&consul, "kv/k").await;
    assert_eq!(pair[0].get("Session"), None);
    while acquire(&consul, &one).await == no {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(ended.elapsed() >= LOCK_DELAY, "{:?}", ended.elapsed());
    assert_eq!(acquire(&consul, &other).await.0, 500, "it has ended");
    assert_eq!(acquire(&consul, &one).await, yes, "it holds it");
    let (_, pair) = get(&consul, "kv/k").await;
    assert_eq!(pair[0]["LockIndex"], 3);
}
