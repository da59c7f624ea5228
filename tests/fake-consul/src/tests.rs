//! That the fake behaves as a real agent was seen to.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::FakeConsul;

async fn get(consul: &FakeConsul, path: &str) -> (u64, Value) {
    let url = format!("http://{}/v1/{path}", consul.address);
    let answer =
        reqwest::Client::builder().use_rustls_tls().build().unwrap().get(url).send().await.unwrap();
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
