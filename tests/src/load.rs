//! Calls at a steady rate, whatever becomes of them, and what became of them.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use api::hooks::v1::{
    ListSessionsRequest, NewHook, ReceiveRequest, hook_receiver_client::HookReceiverClient,
};
use mesh::client::{Channel, Peer};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use crate::mesh::new_id;

/// A call that took this long was troubled, even if it succeeded: on a machine
/// that does nothing else it takes a few milliseconds.
const LATE: Duration = Duration::from_secs(1);
/// How long a call may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// One in this many calls writes; the others read.
const READS_PER_WRITE: usize = 50;

/// Calls of idempotent methods of hook-receiver, in an open loop: each starts
/// when it is due, however many are under way.
pub struct Load {
    stop: CancellationToken,
    running: JoinHandle<Vec<Sample>>,
}

/// One call.
#[derive(Debug)]
pub struct Sample {
    /// When it was to start.
    pub due: Instant,
    /// How long after that it ended.
    pub took: Duration,
    /// The serial number of the leaf of the instance that answered, or why it
    /// failed.
    pub outcome: Result<String, Status>,
}

impl Load {
    /// Starts `rate` calls a second: reads, and writes among them.
    pub fn start(channel: &Channel, rate: u32) -> Self {
        Self::begin(channel, rate, TIMEOUT, Some(READS_PER_WRITE))
    }

    /// As [`Load::start`], but reads only, with this deadline each.
    pub fn reads(channel: &Channel, rate: u32, timeout: Duration) -> Self {
        Self::begin(channel, rate, timeout, None)
    }

    fn begin(channel: &Channel, rate: u32, timeout: Duration, writes: Option<usize>) -> Self {
        let stop = CancellationToken::new();
        let (stopped, client) = (stop.clone(), HookReceiverClient::new(channel.clone()));
        let running = tokio::spawn(async move {
            let mut due = tokio::time::interval(Duration::from_secs(1) / rate);
            let mut calls = JoinSet::new();
            let mut samples = Vec::new();
            for n in 0.. {
                let due = tokio::select! {
                    due = due.tick() => due.into_std(),
                    () = stopped.cancelled() => break,
                };
                let write = writes.is_some_and(|nth| n % nth == 0);
                calls.spawn(sample(client.clone(), due, write, timeout));
                while let Some(ended) = calls.try_join_next() {
                    samples.push(ended.expect("a call doesn't panic"));
                }
            }
            samples.extend(calls.join_all().await);
            samples
        });
        Self { stop, running }
    }

    /// Lets it run for `time`.
    pub async fn run(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Starts no more calls, and waits for those under way.
    ///
    /// # Panics
    /// When a call panicked.
    pub async fn stop(self) -> Report {
        self.stop.cancel();
        let mut samples = self.running.await.expect("it doesn't panic");
        samples.sort_by_key(|sample| sample.due);
        Report { samples }
    }
}

async fn sample(
    mut client: HookReceiverClient<Channel>,
    due: Instant,
    write: bool,
    timeout: Duration,
) -> Sample {
    let peer = |extensions: &http::Extensions| {
        extensions.get::<Arc<Peer>>().map(|peer| peer.serial.clone()).unwrap_or_default()
    };
    let outcome = if write {
        let hook = NewHook {
            source: "tests".to_owned(),
            r#type: "load".to_owned(),
            delivery_id: new_id(),
            ..NewHook::default()
        };
        let mut request = Request::new(ReceiveRequest { hook: Some(hook) });
        request.set_timeout(timeout);
        client.receive(request).await.map(|answer| peer(answer.extensions()))
    } else {
        let mut request = Request::new(ListSessionsRequest { page_size: 1, ..Default::default() });
        request.set_timeout(timeout);
        client.list_sessions(request).await.map(|answer| peer(answer.extensions()))
    };
    Sample { due, took: due.elapsed(), outcome }
}

/// What `share` of `sorted` don't exceed; zero where there is none.
pub fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let nth = (sorted.len() as f64 * share) as usize;
    sorted.get(nth.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// What became of all calls.
#[derive(Debug)]
pub struct Report {
    /// The calls, in the order in which they were due.
    pub samples: Vec<Sample>,
}

impl Report {
    /// Those that failed, by their status, and how many of each there are. Times
    /// and ports differ from call to call: each number is a `#`.
    pub fn failures(&self) -> BTreeMap<String, usize> {
        let mut failures = BTreeMap::new();
        for why in self.samples.iter().filter_map(|sample| sample.outcome.as_ref().err()) {
            let parts = why.message().split(|c: char| c.is_ascii_digit() || c == '.');
            let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
            *failures.entry(format!("{:?}: {}", why.code(), parts.join("#"))).or_default() += 1;
        }
        failures
    }

    /// How many succeeded, by the leaf of the instance that answered.
    pub fn answered(&self) -> BTreeMap<&str, usize> {
        let mut answered = BTreeMap::new();
        for serial in self.samples.iter().filter_map(|sample| sample.outcome.as_ref().ok()) {
            *answered.entry(serial.as_str()).or_default() += 1;
        }
        answered
    }

    /// How long after `fault` the last call started that it troubled: one that
    /// failed or was late. Zero when it troubled none.
    pub fn troubled_for(&self, fault: Instant) -> Duration {
        let troubled = |sample: &&Sample| sample.outcome.is_err() || sample.took >= LATE;
        let last = self.samples.iter().rev().find(troubled);
        last.map(|sample| sample.due.saturating_duration_since(fault)).unwrap_or_default()
    }

    /// Prints one line a person can judge it by.
    pub fn print(&self, what: &str, fault: Instant) {
        let mut took: Vec<Duration> = self.samples.iter().map(|sample| sample.took).collect();
        took.sort_unstable();
        let share = |share| percentile(&took, share);
        let late = took.iter().filter(|took| **took >= LATE).count();
        println!(
            "{what}: {} calls, {} failed, {late} late (≥ {LATE:?}), p50 {:.1?}, p99 {:.1?}, max \
             {:.1?}; the last one in trouble started {:.0?} after the fault; answered {:?}",
            took.len(),
            self.failures().values().sum::<usize>(),
            share(0.5),
            share(0.99),
            share(1.0),
            self.troubled_for(fault),
            self.answered().values().collect::<Vec<_>>(),
        );
    }

    /// Takes out the calls that failed for want of an instance in one of `gaps`, in which
    /// there was none, after they had waited for one as long as a call does: 1 s.
    pub fn without_those_in(mut self, gaps: &[(Instant, Instant)]) -> Self {
        const WAIT: Duration = Duration::from_secs(1);
        self.samples.retain(|Sample { due, took, outcome }| {
            let in_gap = |(from, to): &(Instant, Instant)| {
                *to - *from >= WAIT && *took >= WAIT && *due <= *to && *due + *took >= *from
            };
            !outcome.as_ref().is_err_and(|why| why.message().starts_with("no instance of "))
                || !gaps.iter().any(in_gap)
        });
        self
    }

    /// Fails the test when a call failed.
    ///
    /// # Panics
    /// When a call failed, with all reasons.
    pub fn assert_none_failed(&self) {
        let failures = self.failures();
        assert!(failures.is_empty(), "{failures:#?}");
        assert!(!self.samples.is_empty(), "nothing was called");
    }
}
