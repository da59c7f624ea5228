//! `mock-kafka`: librdkafka's mock of a Kafka broker, as a process. It says its address, and
//! obeys lines: `up` and `down`, after each of which it says `done`. It ends with its input.

use std::net::SocketAddr;

use rdkafka::mocking::MockCluster;
use tokio::net::TcpSocket;

/// The topics that the suite uses.
const TOPICS: [&str; 7] = [
    "services.lifecycle",
    "audit.events",
    "dlq.audit.events",
    "hooks.demo",
    "hooks.robot",
    "hooks.shop",
    "hooks.tests",
];

fn main() {
    let cluster = MockCluster::new(1).expect("the mock starts");
    // The mock has no admin API: what services would make is made here.
    for topic in TOPICS {
        cluster.create_topic(topic, 4, 1).expect("the mock obeys");
    }
    let address = cluster.bootstrap_servers();
    println!("{address}");
    let address = address.parse().expect("its address");
    let mut held = None;
    for line in std::io::stdin().lines() {
        let up = line.expect("it is text") == "up";
        let changed = if up { cluster.broker_up(1) } else { cluster.broker_down(1) };
        changed.expect("the mock obeys");
        drop(held.take());
        held = (!up).then(|| hold(address));
        println!("done");
    }
}

/// Keeps `address` from other processes without listening there: the mock, which
/// shares it, is to find it free when it is back.
fn hold(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("there is room");
    socket.set_reuseaddr(true).expect("it can be shared");
    socket.bind(address).expect("nobody was faster");
    socket
}
