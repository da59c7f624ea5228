//! How soon a change in Consul is routed by.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use api::hooks::v1::{ListSessionsRequest, hook_receiver_client::HookReceiverClient};
use mesh::{
    client::Peer,
    registry::{Instance, Registry as _, Snapshot, consul::ConsulRegistry},
};
use tests::{
    fleet::{Fleet, SERVICE},
    ground::{Consul, Ground},
    tls,
    turn::Turn,
};
use tokio::time::timeout;

/// How many changes are measured.
const CHANGES: usize = 100;
/// Until the first call that is routed by a change, 99 of 100 times.
const BUDGET: Duration = Duration::from_millis(20);
/// How many handshakes it may take instead in a debug build, which spends most of the time
/// on the one of a new connection.
const HANDSHAKES: u32 = if cfg!(debug_assertions) { 3 } else { 0 };
/// The time between two changes.
const APART: Duration = Duration::from_millis(20);

/// One instance in Consul whose address changes between those of two processes,
/// which are in no Consul themselves: each change is one request to the agent.
pub async fn a_change_is_routed_by_at_once(ground: Ground) {
    let turn = Turn::alone().await;
    let consul = Consul::start(ground).await.unwrap();
    let address = consul.address();
    let mut fleet = Fleet::start_in(turn, Ground::Embedded, 2, &[]).await;
    fleet.consul = Some(consul);
    let consul = fleet.consul.as_ref().unwrap();
    let config = fleet.config();
    let operator = fleet.operator().await;
    let mut serials = Vec::new();
    for n in 0..2 {
        serials.push(tls::serial(&operator, SERVICE, fleet.address(n)).await.unwrap());
    }
    let by_consul = fleet.config_with(&[("registry", format!("consul://{address}"))]);
    let registry = Arc::new(ConsulRegistry::new(&by_consul).unwrap());
    let mut instance = Instance {
        id: "moving".to_owned(),
        service: SERVICE.to_owned(),
        address: fleet.address(1),
        admin: None,
        version: "1.0.0".parse().unwrap(),
        packages: vec![],
        capabilities: vec![],
        weight: std::num::NonZeroU16::MIN,
        healthy: true,
    };
    consul.register(&instance).await;
    let mut watched = registry.watch(SERVICE).await.unwrap();
    let mut client = HookReceiverClient::new(fleet.channel_by(&config, registry).await);
    let (mut seen, mut routed, mut handshakes) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..CHANGES {
        tokio::time::sleep(APART).await;
        instance.address = fleet.address(n % 2);
        consul.register(&instance).await;
        let changed = Instant::now();
        let see = async {
            let there = |all: &Snapshot| all.iter().any(|i| i.address == instance.address);
            watched.wait_for(there).await.unwrap();
            changed.elapsed()
        };
        let route = async {
            loop {
                let answer = client.list_sessions(ListSessionsRequest::default()).await.unwrap();
                let peer = answer.extensions().get::<Arc<Peer>>().unwrap();
                if same(&peer.serial, &serials[n % 2]) {
                    return changed.elapsed();
                }
            }
        };
        let both = async { tokio::join!(see, route) };
        let (see, route) = timeout(Duration::from_secs(10), both).await.expect("it is seen");
        seen.push(see);
        routed.push(route);
        let begun = Instant::now();
        tls::serial(&operator, SERVICE, instance.address).await.unwrap();
        handshakes.push(begun.elapsed());
    }
    print(ground, "to the snapshot with it", &mut seen);
    let p99 = print(ground, "to the first call routed by it", &mut routed);
    let handshake = print(ground, "beside them, a handshake alone", &mut handshakes);
    assert!(p99 < BUDGET.max(HANDSHAKES * handshake), "{p99:?}, a handshake {handshake:?}");
    fleet.stop().await;
}

/// Prints what was measured of all changes, and answers its 99th percentile.
fn print(ground: Ground, what: &str, took: &mut [Duration]) -> Duration {
    took.sort_unstable();
    let p99 = took[CHANGES * 99 / 100 - 1];
    println!(
        "{ground:?}: {CHANGES} changes in Consul {what}: min {:.1?}, median {:.1?}, p99 {p99:.1?}, \
         max {:.1?}",
        took[0],
        took[CHANGES / 2],
        took[CHANGES - 1],
    );
    p99
}

/// Whether two spellings of a serial number are of the same one.
fn same(one: &str, other: &str) -> bool {
    let digits = |text: &str| text.replace(':', "").trim_start_matches('0').to_ascii_lowercase();
    digits(one) == digits(other)
}
