//! Sending events on their way, and seeing them arrive.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::ensure;
use async_trait::async_trait;
use benches::{pace::pace, spread::Latency};
use mesh::events::broker::Broker;
use tokio::task::JoinSet;

use crate::Args;

/// How many events are on their way into the outbox at once, at most.
const AT_ONCE: u64 = 256;
/// How long arrivals may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often is asked whether all have arrived.
const LOOK: Duration = Duration::from_millis(1);

/// How many keys events have.
const KEYS: u64 = 64;

/// The key of the event `number`.
pub(crate) fn key(number: u64) -> String {
    format!("key-{}", number % KEYS)
}

/// A topic of its own for each way, made on `broker`.
pub(crate) async fn topic(broker: &dyn Broker) -> anyhow::Result<Arc<str>> {
    let topic = format!("bench.{}", uuid::Uuid::now_v7().simple());
    broker.ensure(std::slice::from_ref(&topic)).await?;
    Ok(topic.into())
}

/// A way for events.
#[async_trait]
pub(crate) trait Way: Clone + Send + Sync + 'static {
    /// Sends the event `number` with this body; it is safe when this returns.
    async fn send(&self, number: u64, body: Vec<u8>) -> anyhow::Result<()>;

    /// What has arrived.
    fn arrivals(&self) -> &Arrivals;
}

/// What has arrived at the end of a way.
#[derive(Clone)]
pub(crate) struct Arrivals {
    origin: Instant,
    bytes: usize,
    count: Arc<AtomicU64>,
    took: Arc<Mutex<Vec<Duration>>>,
}

impl Arrivals {
    pub(crate) fn new(bytes: usize) -> Self {
        let (count, took) = Default::default();
        Self { origin: Instant::now(), bytes: bytes.max(8), count, took }
    }

    /// The body of an event that is due at `at`.
    fn body(&self, at: Instant) -> Vec<u8> {
        let since = u64::try_from((at - self.origin).as_nanos()).unwrap_or(u64::MAX);
        let mut body = since.to_le_bytes().to_vec();
        body.resize(self.bytes, b'x');
        body
    }

    /// Those with these bodies have arrived.
    pub(crate) fn note<'a>(&self, bodies: impl Iterator<Item = &'a [u8]>) {
        let now = self.origin.elapsed();
        let due = bodies.filter_map(|body| Some(u64::from_le_bytes(*body.first_chunk()?)));
        let took = due.map(|due| now.saturating_sub(Duration::from_nanos(due)));
        let mut all = self.took.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.len();
        all.extend(took);
        self.count.fetch_add((all.len() - before) as u64, Ordering::Relaxed);
    }

    fn reset(&self) {
        self.count.store(0, Ordering::Relaxed);
        self.took.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Waits until `count` have arrived since the last reset; what they took.
    pub(crate) async fn all(&self, count: u64) -> anyhow::Result<Vec<Duration>> {
        let (mut since, mut seen) = (Instant::now(), 0);
        loop {
            let now = self.count.load(Ordering::Relaxed);
            if now >= count {
                ensure!(now == count, "{now} of {count} have arrived");
                let mut took = self.took.lock().unwrap_or_else(PoisonError::into_inner);
                self.count.store(0, Ordering::Relaxed);
                return Ok(std::mem::take(&mut *took));
            }
            if now > seen {
                (since, seen) = (Instant::now(), now);
            }
            ensure!(since.elapsed() < PATIENCE, "{now} of {count} have arrived");
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// What was measured of a way.
pub(crate) struct Figures {
    /// Milliseconds from the moment an event was due to its consumer.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// How many arrive in a second, when as many are sent as go.
    pub(crate) per_second: f64,
}

impl Figures {
    pub(crate) async fn of(way: &impl Way, args: &Args) -> anyhow::Result<Self> {
        way.arrivals().reset();
        open(way, args.rate, Duration::from_secs(1)).await?;
        let Latency { p50, p99, .. } = open(way, args.rate, args.time()).await?;
        let per_second = flood(way, args.flood).await?;
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        Ok(Self { p50: ms(p50), p99: ms(p99), per_second })
    }
}

/// `rate` events a second for `time`, each when it is due.
async fn open(way: &impl Way, rate: u32, time: Duration) -> anyhow::Result<Latency> {
    let sending = Arc::new(Mutex::new(JoinSet::new()));
    let (way_of, all) = (way.clone(), sending.clone());
    let runtime = tokio::runtime::Handle::current();
    pace(rate, time, move |number, due| {
        let (way, body) = (way_of.clone(), way_of.arrivals().body(due));
        let send = async move { way.send(number as u64, body).await };
        all.lock().unwrap_or_else(PoisonError::into_inner).spawn_on(send, &runtime);
        Ok(())
    })
    .await?;
    let sending = std::mem::take(&mut *sending.lock().unwrap_or_else(PoisonError::into_inner));
    let sent = sending.join_all().await.into_iter().collect::<anyhow::Result<Vec<()>>>()?;
    Ok(Latency::of(way.arrivals().all(sent.len() as u64).await?))
}

/// `count` events as fast as they go; how many arrive in a second.
async fn flood(way: &impl Way, count: u64) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let mut sending = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (way, next) = (way.clone(), next.clone());
        sending.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(());
                }
                let body = way.arrivals().body(Instant::now());
                way.send(number, body).await?;
            }
        });
    }
    sending.join_all().await.into_iter().collect::<anyhow::Result<()>>()?;
    way.arrivals().all(count).await?;
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}
