//! What the service does under attack, and what its other callers notice:
//! nothing.

use std::time::Duration;

use hostile::{
    Attack, Site,
    callers::{call, callers, connect, resident},
    frames::{self, code, flag, kind},
    wire::{self, WINDOW},
};
use mesh::status::{self, Reason};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long each attack goes on.
const ATTACK: Duration = Duration::from_secs(2);
/// How much the memory of this process, attackers and all, may grow by then.
const MEMORY: u64 = 128 * 1024 * 1024;
/// How long a test waits for what must happen.
const DEADLINE: Duration = Duration::from_secs(20);

/// Limits that show within a test's time.
fn short(limits: &mut mesh::config::LimitsConfig) {
    limits.handshake_timeout = Duration::from_millis(500);
    limits.body_timeout = Duration::from_millis(500);
    limits.unary_timeout = Duration::from_secs(2);
    limits.ping_interval = Duration::from_millis(300);
    limits.ping_timeout = Duration::from_millis(300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_callers_are_answered_under_every_attack_and_memory_stays_bounded() {
    let site = Site::start(|_| {}).await;
    let before = resident();
    for attack in Attack::ALL {
        let stop = CancellationToken::new();
        let ((), sessions, fared) = tokio::join!(
            async {
                tokio::time::sleep(ATTACK).await;
                stop.cancel();
            },
            attack.run(&site.attacker, site.service, stop.clone()),
            callers(&site.caller, site.service, 100, stop.clone()),
        );
        let grown = resident().saturating_sub(before);
        println!(
            "{:20} {sessions:4} sessions, {} calls, p99 {:?}, memory +{} KB",
            attack.name(),
            fared.latencies.len(),
            fared.p99(),
            grown / 1024,
        );
        assert!(sessions > 0, "{}: nobody attacked", attack.name());
        assert!(fared.failed.is_empty(), "{}: {:?}", attack.name(), fared.failed);
        assert!(fared.latencies.len() > 20, "{}: too few calls", attack.name());
        assert!(grown < MEMORY, "{}: {grown} bytes more", attack.name());
    }
    site.stop().await;
}

/// Reads until the server closes, and answers the code of its GOAWAY.
async fn closed(receiver: &mut wire::Receiver) -> Option<u32> {
    let frames = timeout(DEADLINE, receiver.rest()).await.expect("the server closes");
    frames.iter().filter_map(wire::Frame::goaway).next_back()
}

#[tokio::test]
async fn cancelling_at_once_ends_the_connection() {
    let site = Site::start(short).await;
    let (mut to, mut from) = wire::open(&site.attacker, site.service, WINDOW).await.unwrap();
    let block = frames::headers(hostile::site::METHOD, &[]);
    let mut burst = vec![];
    for _ in 0..100 {
        let stream = to.stream();
        burst.extend(frames::frame(kind::HEADERS, flag::END_HEADERS, stream, &block));
        burst.extend(frames::reset(stream, code::CANCEL));
    }
    to.send(&burst).await.unwrap();
    assert_eq!(closed(&mut from).await, Some(code::ENHANCE_YOUR_CALM));
    site.stop().await;
}

#[tokio::test]
async fn cancelling_what_was_begun_ends_the_connection_when_it_is_most_of_it() {
    let site = Site::start(|limits| limits.resets = 50).await;
    let (mut to, mut from) = wire::open(&site.attacker, site.service, WINDOW).await.unwrap();
    let cancel = async {
        let mut cancelled = 0;
        loop {
            let stream = to.begin(&[]).await?;
            // By the answer to a ping sent behind it, the request is looked at.
            to.send(&frames::frame(kind::PING, flag::NONE, 0, &[0; 8])).await?;
            while from.next().await.is_some_and(|frame| frame.kind != kind::PING) {}
            to.send(&frames::reset(stream, code::CANCEL)).await?;
            cancelled += 1;
            assert!(cancelled < 1000, "nobody minds");
        }
    };
    let ended: std::io::Result<()> = timeout(DEADLINE, cancel).await.expect("the server closes");
    assert!(ended.is_err());
    site.stop().await;
}

#[tokio::test]
async fn headers_without_end_end_the_connection() {
    let site = Site::start(short).await;
    let session = Attack::ContinuationFlood.session(&site.attacker, site.service);
    timeout(DEADLINE, session).await.expect("the server closes").ok();
    site.stop().await;
}

#[tokio::test]
async fn who_says_nothing_or_not_enough_is_let_go() {
    let site = Site::start(short).await;
    let begun = Instant::now();
    let mut silent = wire::tcp(site.service).await.unwrap();
    let mut tls = wire::tls(&site.attacker, site.service).await.unwrap();
    tls.write_all(b"PRI * HTTP").await.unwrap();
    let (mut slow, mut slow_from) = wire::open(&site.attacker, site.service, WINDOW).await.unwrap();
    let stream = slow.stream();
    slow.send(&frames::frame(kind::HEADERS, flag::NONE, stream, &[])).await.unwrap();
    let mut read = vec![];
    // Closed or reset: gone is gone.
    timeout(DEADLINE, silent.read_to_end(&mut read)).await.expect("it is let go").ok();
    timeout(DEADLINE, tls.read_to_end(&mut read)).await.expect("it is let go").ok();
    closed(&mut slow_from).await;
    println!("let go after {:?}", begun.elapsed());
    site.stop().await;
}

#[tokio::test]
async fn a_body_that_trickles_is_answered_that_it_is_late() {
    let site = Site::start(short).await;
    let (mut to, mut from) = wire::open(&site.attacker, site.service, WINDOW).await.unwrap();
    // Whatever deadline it asks for.
    let stream = to.begin(&[("grpc-timeout", "99H")]).await.unwrap();
    let begun = frames::message(false, &[0; 100]);
    to.send(&frames::frame(kind::DATA, flag::NONE, stream, &begun[..50])).await.unwrap();
    let answered = async {
        loop {
            let frame = from.next().await.expect("the connection stays");
            if frame.stream == stream && frame.kind == kind::HEADERS {
                return;
            }
        }
    };
    timeout(DEADLINE, answered).await.expect("it is answered");
    site.stop().await;
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_given_up() {
    let site = Site::start(|limits| limits.unary_timeout = Duration::from_millis(500)).await;
    let (mut to, mut from) = wire::open(&site.attacker, site.service, 0).await.unwrap();
    let stream = to.begin(&[]).await.unwrap();
    let whole = frames::message(false, &[18, 1, b'x']);
    to.send(&frames::frame(kind::DATA, flag::END_STREAM, stream, &whole)).await.unwrap();
    let reset = async {
        while let Some(frame) = from.next().await {
            if frame.kind == kind::RST_STREAM && frame.stream == stream {
                return;
            }
        }
        panic!("the connection stays");
    };
    timeout(DEADLINE, reset).await.expect("it is reset");
    site.stop().await;
}

#[tokio::test]
async fn a_bomb_is_answered_and_takes_no_more_than_a_message_may() {
    let site = Site::start(|_| {}).await;
    for encoding in ["gzip", "zstd"] {
        let (mut to, mut from) = wire::open(&site.attacker, site.service, WINDOW).await.unwrap();
        let before = resident();
        let stream = hostile::attack::bomb(&mut to, encoding).await.unwrap();
        let answered = async {
            loop {
                let frame = from.next().await.expect("the connection stays");
                if frame.stream == stream && frame.kind == kind::HEADERS {
                    return String::from_utf8_lossy(&frame.payload).into_owned();
                }
            }
        };
        timeout(DEADLINE, answered).await.expect("it is answered");
        let grown = resident().saturating_sub(before);
        println!("{encoding}: memory +{} KB", grown / 1024);
        assert!(grown < 16 * 1024 * 1024, "{encoding}: {grown} bytes more");
    }
    site.stop().await;
}

#[tokio::test]
async fn metadata_beyond_the_limit_reaches_nobody() {
    let site = Site::start(short).await;
    let (mut to, mut from) = wire::open(&site.attacker, site.service, WINDOW).await.unwrap();
    // The server may close before all of it was sent.
    let _ = hostile::attack::huge(&mut to).await;
    closed(&mut from).await;
    site.stop().await;
}

#[tokio::test]
async fn one_address_leaves_others_room_for_handshakes() {
    let site = Site::start(|limits| limits.handshakes = 8).await;
    let mut held = vec![];
    for _ in 0..20 {
        held.push(wire::tcp(site.service).await.unwrap());
    }
    let mut client = connect(&site.caller, site.service).await.expect("there is room for others");
    call(&mut client, "", "x").await.unwrap();
    // What is over one address's share is closed at once, the rest is held.
    let (closed, mut closings) = tokio::sync::mpsc::unbounded_channel();
    let mut reads = tokio::task::JoinSet::new();
    for mut stream in held {
        let closed = closed.clone();
        reads.spawn(async move {
            assert!(stream.read_u8().await.is_err(), "nothing is said");
            closed.send(()).unwrap();
        });
    }
    for _ in 0..16 {
        timeout(DEADLINE, closings.recv()).await.expect("it is closed").unwrap();
    }
    call(&mut client, "", "x").await.unwrap();
    assert!(closings.try_recv().is_err(), "the others are held");
    site.stop().await;
}

#[tokio::test]
async fn one_identity_has_only_so_many_connections() {
    let site = Site::start(|limits| limits.connections_per_peer = 2).await;
    let mut clients = vec![];
    for _ in 0..2 {
        let mut client = connect(&site.attacker, site.service).await.unwrap();
        call(&mut client, "", "x").await.unwrap();
        clients.push(client);
    }
    let third = async {
        let mut client = connect(&site.attacker, site.service).await.ok()?;
        call(&mut client, "", "x").await.ok()
    };
    assert!(third.await.is_none());
    let mut other = connect(&site.caller, site.service).await.unwrap();
    call(&mut other, "", "x").await.unwrap();
    site.stop().await;
}

#[tokio::test]
async fn what_is_too_much_is_refused_at_once_and_others_are_not() {
    let site = Site::start(|limits| limits.in_flight = 8).await;
    let mut hog = connect(&site.attacker, site.service).await.unwrap();
    let mut held = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let mut client = hog.clone();
        held.spawn(async move { call(&mut client, hostile::site::HELD, "x").await });
    }
    // The next is refused once the four are there.
    let begun = Instant::now();
    let refused = loop {
        match call(&mut hog, "", "x").await {
            Err(refused) => break refused,
            Ok(()) => assert!(begun.elapsed() < DEADLINE, "nothing is refused"),
        }
    };
    assert_eq!(status::reason(&refused), Reason::Overloaded);
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    assert!(status::retry_after(&refused).is_some());
    let mut other = connect(&site.caller, site.service).await.unwrap();
    call(&mut other, "", "x").await.expect("another party has room");

    site.answers.add_permits(4);
    while let Some(answer) = held.join_next().await {
        answer.unwrap().expect("what was taken in is answered");
    }
    call(&mut hog, "", "x").await.expect("there is room again");
    site.stop().await;
}
