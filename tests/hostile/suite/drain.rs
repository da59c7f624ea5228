//! A server that stops, or lets a connection go: nobody's call fails.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use api::audit::v1::{ListEntriesRequest, audit_client::AuditClient};
use hostile::{
    Site,
    callers::{call, connect},
    frames::{self, flag, kind},
    site::{HELD, SERVICE},
    wire::{self, WINDOW},
};
use mesh::{
    client::{Channel, Client},
    intercept::Interceptors,
    registry::fixed::StaticRegistry,
    server::{self, Security},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How long a test waits for what must happen.
const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn calls_in_flight_are_answered_after_the_stop_and_late_ones_too() {
    let site = Site::start(|_| {}).await;
    let mut client = connect(&site.caller, site.service).await.unwrap();
    call(&mut client, "", "x").await.unwrap();
    let mut held = client.clone();
    let held = tokio::spawn(async move { call(&mut held, HELD, "x").await });
    let (mut to, mut from) = wire::open(&site.attacker, site.service, WINDOW).await.unwrap();
    site.drain();
    // Told to go, but not to be rude: until it answers the server's ping, this
    // peer needn't have heard of it.
    while from.next().await.unwrap().kind != kind::GOAWAY {}
    let stream = to.begin(&[]).await.unwrap();
    let whole = frames::message(false, &[]);
    to.send(&frames::frame(kind::DATA, flag::END_STREAM, stream, &whole)).await.unwrap();
    let answered = async { while from.next().await.unwrap().stream != stream {} };
    timeout(DEADLINE, answered).await.expect("what was under way is answered");
    site.answers.add_permits(1);
    held.await.unwrap().expect("what was in flight is answered");
    drop((to, from));
    site.stop().await;
}

/// The mesh's own client of the instances of `site`.
async fn client(site: &Site, addresses: &[std::net::SocketAddr]) -> AuditClient<Channel> {
    let mut config = site.config().clone();
    config.instances = [(SERVICE.to_owned(), addresses.to_vec())].into();
    let registry = Arc::new(StaticRegistry::new(&config).unwrap());
    // Its settings never change: the sender may go.
    let (_, policy) = watch::channel(Arc::default());
    let client = Client::new(site.caller.clone(), registry, policy, Interceptors::default());
    AuditClient::new(client.channel(SERVICE).await.unwrap())
}

async fn ask(client: &mut AuditClient<Channel>) -> Result<(), Status> {
    client.list_entries(ListEntriesRequest::default()).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_are_restarted_under_load_fail_no_call() {
    const ROLLS: u32 = 10;
    let site = Site::start(|_| {}).await;
    let mut instances =
        vec![site.instance("127.0.0.1:0").await, site.instance("127.0.0.1:0").await];
    let addresses: Vec<_> = instances.iter().map(|instance| instance.address).collect();
    let client = client(&site, &addresses).await;
    let (done, calls) = (CancellationToken::new(), Arc::new(AtomicU32::new(0)));
    let mut callers = JoinSet::new();
    for _ in 0..16 {
        let (mut client, done, calls) = (client.clone(), done.clone(), calls.clone());
        callers.spawn(async move {
            while !done.is_cancelled() {
                ask(&mut client).await?;
                calls.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, Status>(())
        });
    }
    let mut longest = Duration::ZERO;
    for roll in 0..ROLLS {
        // Each one has calls before it goes.
        let before = calls.load(Ordering::Relaxed);
        let begun = Instant::now();
        while calls.load(Ordering::Relaxed) < before + 100 {
            assert!(begun.elapsed() < DEADLINE, "calls stand still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let instance = instances.remove(0);
        let (address, begun) = (instance.address.to_string(), Instant::now());
        timeout(DEADLINE, instance.stop()).await.expect("it drains");
        longest = longest.max(begun.elapsed());
        instances.push(site.instance(&address).await);
        assert!(callers.try_join_next().is_none(), "a call failed in roll {roll}");
    }
    done.cancel();
    while let Some(caller) = callers.join_next().await {
        caller.unwrap().expect("no call fails");
    }
    println!(
        "{ROLLS} restarts, {} calls, longest drain {longest:?}",
        calls.load(Ordering::Relaxed)
    );
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_let_go_and_its_client_does_not_notice() {
    // Longer than a client takes for a connection that doesn't hold.
    const IDLE: Duration = Duration::from_millis(1100);
    let site = Site::start(|limits| limits.idle_timeout = IDLE).await;
    let (_to, mut from) = wire::open(&site.attacker, site.service, WINDOW).await.unwrap();
    let begun = Instant::now();
    let goaway = async { while from.next().await.expect("told first").kind != kind::GOAWAY {} };
    timeout(DEADLINE, goaway).await.expect("it is told to go");
    assert!(begun.elapsed() >= IDLE / 2, "too soon: {:?}", begun.elapsed());

    let mut callers = JoinSet::new();
    for caller in 0..16_u32 {
        let mut client = client(&site, &[site.service]).await;
        callers.spawn(async move {
            for call in 0..5_u32 {
                ask(&mut client).await?;
                // Around the moment at which the server lets go.
                let offset = Duration::from_micros(100) * (call * 16 + caller);
                tokio::time::sleep(IDLE + offset - Duration::from_millis(4)).await;
            }
            Ok::<_, Status>(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap().expect("no call fails");
    }
    site.stop().await;
}

#[tokio::test]
async fn a_connection_made_before_the_stop_has_its_request_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let site = Site::start(|_| {}).await;
    let limits = site.config().limits.clone();
    let app = server::app(axum::Router::new().route("/", axum::routing::get(|| async { "here" })));
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    // Some of them wait to be accepted when the stop comes.
    let mut streams = vec![];
    for _ in 0..20 {
        streams.push(TcpStream::connect(address).await.unwrap());
    }
    let served = tokio::spawn(async move {
        server::serve(listener, Security::Edge, &limits, app, stopping, DEADLINE).await;
    });
    for _ in 0..20 {
        streams.push(TcpStream::connect(address).await.unwrap());
    }
    stop.cancel();
    for stream in &mut streams {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.ends_with("here"), "{answer}");
    }
    timeout(DEADLINE, served).await.expect("it drains").unwrap();
    site.stop().await;
}

#[tokio::test]
async fn an_idle_connection_over_http_1_is_told_to_go_by_its_next_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let site = Site::start(|_| {}).await;
    let limits = site.config().limits.clone();
    let app = server::app(axum::Router::new().route("/", axum::routing::get(|| async { "here" })));
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    let served = tokio::spawn(async move {
        server::serve(listener, Security::Edge, &limits, app, stopping, DEADLINE).await;
    });
    let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut used = TcpStream::connect(address).await.unwrap();
    let mut ask = async || {
        used.write_all(request).await.unwrap();
        let (mut answer, mut part) = (String::new(), [0; 1024]);
        while !answer.ends_with("here") {
            let read = timeout(DEADLINE, used.read(&mut part)).await.unwrap().unwrap();
            assert!(read > 0, "it closes without a word: {answer}");
            answer += std::str::from_utf8(&part[..read]).unwrap();
        }
        answer.contains("connection: close")
    };
    assert!(!ask().await, "nobody stops");
    stop.cancel();
    // The connection's task may not have heard of the stop yet.
    while !ask().await {}
    assert_eq!(timeout(DEADLINE, used.read(&mut [0])).await.unwrap().unwrap(), 0, "it closes");
    timeout(DEADLINE, served).await.expect("it drains").unwrap();
    site.stop().await;
}

#[tokio::test]
async fn what_does_not_end_is_cut_off_at_the_deadline() {
    let site = Site::start(|_| {}).await;
    let mut client = connect(&site.caller, site.service).await.unwrap();
    call(&mut client, "", "x").await.unwrap();
    let held = tokio::spawn(async move { call(&mut client, HELD, "x").await });
    let begun = Instant::now();
    timeout(DEADLINE, site.stop()).await.expect("it stops all the same");
    println!("cut off after {:?}", begun.elapsed());
    assert!(held.await.unwrap().is_err());
}
