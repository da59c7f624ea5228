//! How long the gateway's port waits for a connection to say something, and whose it
//! keeps.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use axum::{Router, routing::get};
use mesh::{
    config::{Config, LimitsConfig},
    server::{self, Security},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use watchdog::Watchdog;

/// How long a test waits for what must happen.
const DEADLINE: Duration = Duration::from_secs(20);
/// A time that passes within a test, and one that doesn't.
const SHORT: Duration = Duration::from_millis(700);
const LONG: Duration = Duration::from_secs(60);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

/// A port like the gateway's, which answers `here`.
struct Edge {
    address: SocketAddr,
    stop: CancellationToken,
    served: JoinHandle<()>,
    _watchdog: Watchdog,
}

impl Edge {
    async fn start(change: impl FnOnce(&mut LimitsConfig)) -> Self {
        let config = Config::from_sources(None, HashMap::new(), &[]).unwrap();
        let mut limits = config.limits;
        (limits.handshake_timeout, limits.first_byte_timeout) = (LONG, LONG);
        limits.keep_alive_timeout = LONG;
        change(&mut limits);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let slow = get(|| async {
            tokio::time::sleep(2 * SHORT).await;
            "here"
        });
        let routes = Router::new().route("/", get(|| async { "here" })).route("/slow", slow);
        let app = server::app(routes);
        let stop = CancellationToken::new();
        let until = stop.clone();
        let served = tokio::spawn(async move {
            server::serve(listener, Security::Edge, &limits, app, until, DEADLINE).await;
        });
        Self { address, stop, served, _watchdog: Watchdog::start() }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(DEADLINE, self.served).await.expect("it drains").unwrap();
    }
}

async fn ask(stream: &mut TcpStream) {
    ask_by(stream, REQUEST).await;
}

async fn ask_by(stream: &mut TcpStream, request: &[u8]) {
    stream.write_all(request).await.unwrap();
    let (mut answer, mut part) = (String::new(), [0; 1024]);
    while !answer.ends_with("here") {
        let read = timeout(DEADLINE, stream.read(&mut part)).await.expect("an answer").unwrap();
        assert!(read > 0, "it is closed: {answer}");
        answer += std::str::from_utf8(&part[..read]).unwrap();
    }
}

async fn closes(stream: &mut TcpStream) {
    let read = timeout(DEADLINE, stream.read_u8()).await.expect("it is let go");
    assert!(read.is_err(), "nothing is said");
}

#[tokio::test]
async fn who_says_nothing_is_let_go_after_a_while() {
    let edge = Edge::start(|limits| limits.first_byte_timeout = SHORT).await;
    let begun = Instant::now();
    let mut silent = edge.connect().await;
    closes(&mut silent).await;
    assert!(begun.elapsed() >= SHORT, "too soon: {:?}", begun.elapsed());
    edge.stop().await;
}

#[tokio::test]
async fn who_has_no_further_request_is_let_go_after_a_while() {
    let edge = Edge::start(|limits| limits.keep_alive_timeout = SHORT).await;
    let mut idle = edge.connect().await;
    for _ in 0..3 {
        ask(&mut idle).await;
    }
    let begun = Instant::now();
    closes(&mut idle).await;
    // The last answer was sent a moment before it was read.
    assert!(begun.elapsed() >= SHORT / 2, "too soon: {:?}", begun.elapsed());
    edge.stop().await;
}

#[tokio::test]
async fn a_request_that_takes_longer_than_a_header_is_answered_and_timed_from_its_end() {
    let short = |limits: &mut LimitsConfig| {
        (limits.handshake_timeout, limits.keep_alive_timeout) = (SHORT, SHORT);
    };
    let edge = Edge::start(short).await;
    let mut idle = edge.connect().await;
    ask_by(&mut idle, b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
    closes(&mut idle).await;
    edge.stop().await;
}

#[tokio::test]
async fn the_beginning_of_http_2_opens_nothing_where_it_is_not_spoken() {
    let edge = Edge::start(|limits| limits.handshake_timeout = SHORT).await;
    let mut peer = edge.connect().await;
    peer.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    let mut answer = Vec::new();
    // Refused or not, it ends.
    timeout(DEADLINE, peer.read_to_end(&mut answer)).await.expect("it is let go").ok();
    edge.stop().await;
}

#[tokio::test]
async fn a_header_that_trickles_is_cut_off_at_its_own_time() {
    let edge = Edge::start(|limits| limits.handshake_timeout = SHORT).await;
    let (mut first, mut second) = (edge.connect().await, edge.connect().await);
    ask(&mut second).await;
    for slow in [&mut first, &mut second] {
        let trickle = async {
            for byte in REQUEST.iter().cycle() {
                if slow.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(SHORT).await;
            }
        };
        timeout(DEADLINE, trickle).await.expect("it is cut off");
    }
    edge.stop().await;
}

#[tokio::test]
async fn of_an_address_the_oldest_silent_connections_make_room_for_new_ones() {
    let edge = Edge::start(|limits| limits.connections_per_peer = 8).await;
    let mut spoken = edge.connect().await;
    ask(&mut spoken).await;
    let mut silent = vec![];
    for _ in 0..6 {
        silent.push(edge.connect().await);
    }
    for oldest in &mut silent[..2] {
        closes(oldest).await;
    }
    for kept in &mut silent[2..] {
        ask(kept).await;
    }
    ask(&mut spoken).await;
    edge.stop().await;
}

#[tokio::test]
async fn where_it_is_crowded_nobody_is_awaited_for_longer_than_a_header() {
    let crowd = |limits: &mut LimitsConfig| {
        (limits.connections, limits.handshake_timeout) = (4, SHORT);
    };
    let edge = Edge::start(crowd).await;
    let mut spoken = edge.connect().await;
    ask(&mut spoken).await;
    let (mut one, mut other) = (edge.connect().await, edge.connect().await);
    // Three of four: as they go, it is crowded no more.
    tokio::select! {
        () = closes(&mut spoken) => {}
        () = closes(&mut one) => {}
        () = closes(&mut other) => {}
    }
    edge.stop().await;
}
