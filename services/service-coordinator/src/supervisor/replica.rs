//! One instance of a unit: started, started again when it fails, drained.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::FutureExt as _;
use mesh::{Error, backoff};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Failure, Runner, Running};
use crate::plan::Unit;

/// The pause after the first failure, so short that calls wait for what comes back; and
/// the longest one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// After how long the failures before don't count any more.
const STABLE: Duration = Duration::from_secs(5);
/// How many failures in a row are a crash loop.
pub(super) const CRASH_LOOP: u32 = 5;

/// How an instance is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) healthy: bool,
    /// What tells it apart.
    pub(super) note: String,
    /// Why it failed, if it did.
    pub(super) why: String,
    /// How often it failed in a row.
    pub(super) failures: u32,
}

/// How all instances of a unit are, by number.
pub(super) type Looks = watch::Sender<BTreeMap<u32, Look>>;

/// One instance, as its task sees it.
pub(super) struct Replica {
    pub(super) unit: Unit,
    pub(super) number: u32,
    pub(super) runner: Arc<dyn Runner>,
    pub(super) looks: Looks,
    /// How often any instance of the unit was started again.
    pub(super) restarts: Arc<AtomicU64>,
    pub(super) stop: CancellationToken,
    /// Ends everything.
    pub(super) stop_all: CancellationToken,
    pub(super) failed: Arc<Mutex<Option<Error>>>,
    /// Whether what will never work ends everything, as it does until it once did.
    pub(super) is_first: bool,
}

impl Replica {
    /// Has it up until it is stopped, and drains it.
    pub(super) async fn run(mut self) {
        // A defect of whoever starts it is a failure of it, as any other.
        while AssertUnwindSafe(self.work()).catch_unwind().await.is_err() {
            if !self.pause("its task panicked".to_owned()).await {
                break;
            }
        }
        self.looks.send_modify(|looks| drop(looks.remove(&self.number)));
    }

    async fn work(&mut self) {
        while let Some(healthy) = self.start().await {
            self.is_first = false;
            if !self.keep(healthy).await {
                return;
            }
        }
    }

    /// Tries until it is healthy; `None` once it is stopped.
    async fn start(&self) -> Option<Box<dyn Running>> {
        loop {
            let start = self.runner.start(&self.unit, self.number);
            let started = tokio::select! {
                started = tokio::time::timeout(self.unit.timeout, start) => started,
                () = self.stop.cancelled() => return None,
            };
            let why = match started {
                Ok(Ok(running)) => return Some(running),
                Ok(Err(Failure::Passing(why))) => why,
                Ok(Err(Failure::Final(why))) if !self.is_first => why.to_string(),
                Ok(Err(Failure::Final(why))) => {
                    let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                    failed.get_or_insert(why);
                    self.stop_all.cancel();
                    return None;
                }
                Err(_) => format!("it isn't healthy after {:?}", self.unit.timeout),
            };
            if !self.pause(why).await {
                return None;
            }
        }
    }

    /// Watches it while it is healthy; whether it is to be started again.
    async fn keep(&self, mut running: Box<dyn Running>) -> bool {
        let begun = Instant::now();
        let note = running.note();
        self.look(|look| {
            (look.healthy, look.note) = (true, note);
            look.why.clear();
        });
        let ended = tokio::select! {
            why = running.ended() => Some(why),
            () = self.stop.cancelled() => None,
        };
        let Some(why) = ended else {
            self.look(|look| look.healthy = false);
            running.drain().await;
            return false;
        };
        drop(running);
        if begun.elapsed() >= STABLE {
            self.look(|look| look.failures = 0);
        }
        self.pause(why).await
    }

    /// Says that it failed, and waits before the next try; `false` once it is stopped.
    async fn pause(&self, why: String) -> bool {
        tracing::warn!(unit = self.unit.name, instance = self.number, why, "it failed");
        let mut pause = Duration::ZERO;
        self.look(|look| {
            (look.healthy, look.why) = (false, why);
            pause = backoff::pause(look.failures, FIRST_PAUSE, LONGEST_PAUSE);
            look.failures += 1;
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => {
                                self.restarts.fetch_add(1, Ordering::Relaxed);
                true
            }
            () = self.stop.cancelled() => false,
        }
    }

    fn look(&self, change: impl FnOnce(&mut Look)) {
        self.looks.send_modify(|looks| change(looks.entry(self.number).or_default()));
    }
}
