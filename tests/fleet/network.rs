//! The network between a client and an instance.

use std::{collections::HashMap, sync::Arc, time::Duration};

use mesh::registry;
use tests::{
    fleet::Fleet,
    ground::Ground,
    load::Load,
    proxy::{Mode, Proxy, Rerouted},
};

use super::{AVOIDED, RATE};

pub async fn a_network_that_fails_an_instance_fails_no_call(ground: Ground) {
    let fleet = Fleet::start_alone(ground, 3).await;
    let proxy = Proxy::start(fleet.address(0)).await;
    let config = fleet.config();
    let proxies = HashMap::from([(fleet.address(0), proxy.address)]);
    let registry = Rerouted::new(registry::registry(&config).unwrap(), proxies);
    let channel = fleet.channel_by(&config, Arc::new(registry)).await;
    let late = Mode::Delay(Duration::from_millis(150));
    for mode in [Mode::Reset, Mode::HalfClose, late, Mode::Stall] {
        let load = Load::start(&channel, RATE);
        load.run(Duration::from_millis(500)).await;
        let fault = std::time::Instant::now();
        proxy.set(mode);
        load.run(Duration::from_secs(3)).await;
        let report = load.stop().await;
        proxy.set(Mode::Pass);
        report.print(&format!("{ground:?}: one of three by a network that does {mode:?}"), fault);
        report.assert_none_failed();
        assert!(report.troubled_for(fault) < AVOIDED);
    }
    fleet.stop().await;
}
