//! How soon a change in Consul is routed by.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use api::hooks::v1::{ListSessionsRequest, hook_receiver_client::HookReceiverClient};
use mesh::{
    client::Peer,
    registry::{Instance, consul::ConsulRegistry},
};
use tests::{
    fleet::{Fleet, SERVICE},
    ground::{Consul, Ground},
    tls,
};

/// How many changes are measured.
const CHANGES: usize = 100;
/// Until the first call that is routed by a change, 99 of 100 times; a debug
/// build spends most of that on the handshake.
const BUDGET: Duration = Duration::from_millis(if cfg!(debug_assertions) { 100 } else { 20 });
/// The time between two changes.
const APART: Duration = Duration::from_millis(20);

/// One instance in Consul whose address changes between those of two processes,
/// which are in no Consul themselves: each change is one request to the agent.
pub async fn a_change_is_routed_by_at_once(ground: Ground) {
    let consul = Consul::start(ground).await.unwrap();
    let address = consul.address();
    let mut fleet = Fleet::start(Ground::Embedded, 2).await;
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
    let mut client = HookReceiverClient::new(fleet.channel_by(&config, registry).await);
    let mut took = Vec::with_capacity(CHANGES);
    for n in 0..CHANGES {
        tokio::time::sleep(APART).await;
        instance.address = fleet.address(n % 2);
        consul.register(&instance).await;
        let changed = Instant::now();
        let routed = async {
            loop {
                let answer = client.list_sessions(ListSessionsRequest::default()).await.unwrap();
                let peer = answer.extensions().get::<Arc<Peer>>().unwrap();
                if same(&peer.serial, &serials[n % 2]) {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), routed).await.expect("it is seen");
        took.push(changed.elapsed());
    }
    took.sort_unstable();
    let (median, p99) = (took[CHANGES / 2], took[CHANGES * 99 / 100 - 1]);
    println!(
        "{ground:?}: a change in Consul to the first call routed by it, {CHANGES} changes: min \
         {:.1?}, median {median:.1?}, p99 {p99:.1?}, max {:.1?}",
        took[0],
        took[CHANGES - 1],
    );
    assert!(p99 < BUDGET, "{p99:?}");
    fleet.stop().await;
}

/// Whether two spellings of a serial number are of the same one.
fn same(one: &str, other: &str) -> bool {
    let digits = |text: &str| text.replace(':', "").trim_start_matches('0').to_ascii_lowercase();
    digits(one) == digits(other)
}
