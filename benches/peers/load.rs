//! The two loads, the same for every contestant.

use std::{
    num::NonZeroU64,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use api::hooks::v1::{NewHook, ReceiveRequest, ReceiveResponse};
use benches::spread::percentile;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tonic::{Response, Status};

use crate::{IN_FLIGHT, MESSAGE_BYTES, RATE};

/// How late one answer may be before the run is given up.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a client is asked for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Load {
    /// As many calls as go, [`IN_FLIGHT`] at a time, for so long.
    Closed(Duration),
    /// [`RATE`] calls a second, however long they take, for so long.
    Open(Duration),
}

/// What became of it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// How many calls were answered; one that fails ends the run.
    pub(crate) calls: u32,
    /// How long they took together.
    pub(crate) elapsed: Duration,
    /// How long each took; only of the open loop.
    pub(crate) latency: Option<Latency>,
}

/// How long calls took, from when each was meant to begin: a call that was kept
/// waiting by others is not let off.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) p999: Duration,
}

/// One connection to a server that answers with what it is sent.
pub(crate) trait Echo: Clone + Send + 'static {
    /// Sends `text`, and answers what comes back.
    fn call(&mut self, text: Bytes) -> impl Future<Output = Result<String, Status>> + Send;
}

/// The API's request that carries `text`.
pub(crate) fn request(text: Bytes) -> ReceiveRequest {
    ReceiveRequest { hook: Some(NewHook { body: text, ..NewHook::default() }) }
}

/// What the API's answer carries.
pub(crate) fn text_of(answer: Response<ReceiveResponse>) -> String {
    answer.into_inner().receipt.unwrap_or_default().id
}

impl Load {
    /// Makes this load on `connections`, evenly.
    ///
    /// # Errors
    /// When a call fails, or is answered with something else.
    pub(crate) async fn make<E: Echo>(self, connections: &[E]) -> anyhow::Result<Outcome> {
        match self {
            Self::Closed(time) => closed(connections, time).await,
            Self::Open(time) => open(connections, time).await,
        }
    }
}

async fn closed<E: Echo>(connections: &[E], time: Duration) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    let mut loops = JoinSet::new();
    for echo in connections.iter().cycle().take(IN_FLIGHT) {
        let (mut echo, text) = (echo.clone(), text());
        loops.spawn(async move {
            let mut calls = 0;
            while begun.elapsed() < time {
                call(&mut echo, &text).await?;
                calls += 1;
            }
            anyhow::Ok(calls)
        });
    }
    let all = async {
        let mut calls: u32 = 0;
        while let Some(ended) = loops.join_next().await {
            calls += ended??;
        }
        anyhow::Ok(calls)
    };
    let calls = tokio::time::timeout(time + PATIENCE, all).await.context("a call hangs")??;
    Ok(Outcome { calls, elapsed: begun.elapsed(), latency: None })
}

async fn open<E: Echo>(connections: &[E], time: Duration) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Handle::current();
    let connections = connections.to_vec();
    let text = text();
    let interval = Duration::from_secs(1) / RATE;
    // A thread of its own: the runtime's timers know only whole milliseconds.
    let pacing = tokio::task::spawn_blocking(move || {
        exact_sleeps()?;
        let begun = Instant::now();
        let mut due = begun;
        let mut calls = Vec::new();
        for echo in connections.iter().cycle() {
            if due - begun >= time {
                break;
            }
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let (mut echo, text) = (echo.clone(), text.clone());
            calls.push(runtime.spawn(async move {
                call(&mut echo, &text).await?;
                anyhow::Ok(due.elapsed())
            }));
            due += interval;
        }
        anyhow::Ok((begun, calls))
    });
    let (begun, calls) = pacing.await??;
    let all = async {
        let mut latencies = Vec::with_capacity(calls.len());
        for call in calls {
            latencies.push(call.await??);
        }
        anyhow::Ok(latencies)
    };
    let mut latencies = tokio::time::timeout(PATIENCE, all).await.context("a call hangs")??;
    latencies.sort_unstable();
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| percentile(&latencies, share));
    Ok(Outcome {
        calls: u32::try_from(latencies.len())?,
        elapsed: begun.elapsed(),
        latency: Some(Latency { p50, p99, p999 }),
    })
}

/// Sleeps of this thread end when they should. By default the system joins
/// wakeups that are up to 50 µs apart, which would stand in every latency.
fn exact_sleeps() -> anyhow::Result<()> {
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).context("the timer's slack")
}

/// The answer has no bytes, but text: so what is sent is text as well.
fn text() -> Bytes {
    Bytes::from(vec![b'x'; MESSAGE_BYTES])
}

async fn call(echo: &mut impl Echo, text: &Bytes) -> anyhow::Result<()> {
    let length = echo.call(text.clone()).await.context("a call failed")?.len();
    ensure!(length == MESSAGE_BYTES, "a call was answered with {length} bytes");
    Ok(())
}
