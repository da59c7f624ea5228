//! Each alert of `compose/prometheus` fires when its cause is there, and is
//! silent before.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use futures::{StreamExt as _, stream};
use tests::{
    Layout, Mesh, backends::WriteLock, mesh::new_id, prometheus::Prometheus, turn::Turn,
    wait::within,
};
use watchdog::Watchdog;

/// Consuming has stalled after a minute, which is looked at every 15 s.
const SOON: Duration = Duration::from_secs(150);
const OUTBOX_LIMIT: usize = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_alert_fires_when_its_cause_is_there() {
    let _turn = Turn::alone().await;
    let _watchdog = Watchdog::start();
    let settings = [
        ("OMNI_OUTBOX__LIMIT", OUTBOX_LIMIT.to_string()),
        ("OMNI_DEV_IDENTITY__LEAF_TTL", "20s".to_owned()),
    ];
    let mesh = Mesh::start_with(Layout::Serve, &settings).await;
    let prometheus = Prometheus::start(&admin_ports(&mesh)).await;
    let fire = async |names: &[&str]| {
        within(SOON, "the alerts fire", || async {
            let firing = prometheus.firing().await?;
            let all = names.iter().all(|name| firing.contains(*name));
            if all { Ok(()) } else { Err(format!("{names:?}, but {firing:?}")) }
        })
        .await
    };
    let silence = async || {
        within(SOON, "no alert fires", || async {
            let firing = prometheus.firing().await?;
            if firing.is_empty() { Ok(()) } else { Err(format!("{firing:?}")) }
        })
        .await
    };
    stays_silent(&prometheus).await;

    crate::suite::publish_poison(&mesh).await;
    fire(&["OmniDeadLetters"]).await;

    let audit = WriteLock::take(&mesh.data().join("db/audit.db")).await;
    post(&mesh, 1100).await;
    fire(&["OmniConsumerLag", "OmniConsumerStalled"]).await;
    audit.give_back().await;
    silence().await;

    mesh.backends.stop_broker().await;
    post(&mesh, OUTBOX_LIMIT * 9 / 10).await;
    fire(&["OmniOutboxFilling", "OmniRelayBreakerOpen"]).await;
    mesh.backends.start_broker().await;
    silence().await;

    // Sooner than the database gives up, and the answer would tell.
    mesh.write_policy("[routes.'*']\ntry_timeout = \"1s\"\n");
    let hooks = WriteLock::take(&mesh.data().join("db/hook-receiver.db")).await;
    let in_vain = stream::repeat(()).for_each_concurrent(4, |()| async {
        let answer = mesh.post(&new_id(), b"{}").await;
        assert!(answer.status.is_server_error(), "{answer:?}");
    });
    tokio::select! {
        () = fire(&["OmniBreakerOpen"]) => {}
        () = in_vain => {}
    }
    hooks.give_back().await;
    silence().await;

    let audit = mesh.take_process("audit");
    audit.pause();
    fire(&["OmniDown"]).await;
    audit.resume();
    silence().await;
    // What was there before isn't new after a pause in asking for it.
    stays_silent(&prometheus).await;

    std::fs::write(mesh.data().join("ca/signer.pem"), "").unwrap();
    fire(&["OmniCertificateExpiring"]).await;
    assert_eq!(prometheus.fired().await.unwrap(), prometheus.alerts().await.unwrap(), "each");
}

/// Nothing fires before the marker does, which takes all targets to be well for longer
/// than any alert waits.
async fn stays_silent(prometheus: &Prometheus) {
    within(SOON, "the marker fires", || async {
        let marked = prometheus.is_marked().await?;
        assert_eq!(prometheus.firing().await, Ok(BTreeSet::new()), "all is well");
        if marked { Ok(()) } else { Err("nothing fires".to_owned()) }
    })
    .await;
}

/// Posts until `count` webhooks are acknowledged.
async fn post(mesh: &Mesh, count: usize) {
    let gateway = mesh.address("gateway");
    stream::iter(0..count)
        .for_each_concurrent(8, |_| async {
            within(SOON, "it is acknowledged", || async {
                let answer = mesh.post_to(gateway, &new_id(), b"{}", &[]).await;
                if answer.status.is_success() { Ok(()) } else { Err(answer) }
            })
            .await;
        })
        .await;
}

/// Where the processes' metrics are.
fn admin_ports(mesh: &Mesh) -> Vec<SocketAddr> {
    let services = mesh.services();
    let all = services.as_array().expect("a list").iter();
    all.map(|service| service["admin"].as_str().and_then(|it| it.parse().ok()).unwrap()).collect()
}
