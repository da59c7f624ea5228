//! Keeps one connection to an instance open, so that no call waits for one
//! while another instance is ready.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use futures::future::BoxFuture;
use tokio::{sync::Notify, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::connection::{self, Caller, Connection};
use crate::{backoff::jittered, registry::Instance};

/// The pause after a failed try to connect: twice as long each time, up to the
/// longest; a random part of it, so that clients don't come all at once.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a connection must have held to be followed by another at once.
const HELD: Duration = Duration::from_secs(1);

/// A connection that is made anew whenever it ends, in a task that ends with
/// the link.
///
/// ```text
///               connected                 closed and used of late
///   connecting ───────────▶ open ──────────────────────────────┐
///     ▲  │ ▲                 │ closed and not used             │
///     │  │ │                 ▼                                 │
///     │  │ └──── wanted ── idle                                │
///     │  └─▶ failed: a pause ─┐                                │
///     └───────────────────────┴────────────────────────────────┘
/// ```
pub(super) struct Link {
    shared: Arc<Shared>,
    _keeper: AbortOnDropHandle<()>,
}

struct Shared {
    connection: ArcSwapOption<Connection>,
    /// Why the last try failed; `None` once one succeeded.
    failure: Mutex<Option<String>>,
    /// Whether a call went over the connection since it was opened.
    used: AtomicBool,
    wanted: Notify,
}

impl Link {
    /// Begins to connect to `instance`. Each time a connection opens or can't be
    /// opened `changed` is told.
    pub(super) fn keep(instance: Instance, caller: Caller, changed: Arc<Notify>) -> Self {
        let shared = Arc::new(Shared {
            connection: ArcSwapOption::empty(),
            failure: Mutex::new(None),
            used: AtomicBool::new(true),
            wanted: Notify::new(),
        });
        let keeper = keep(shared.clone(), instance, caller, changed);
        Self { shared, _keeper: AbortOnDropHandle::new(tokio::spawn(keeper)) }
    }

    /// The connection, if there is an open one.
    pub(super) fn connection(&self) -> Option<Arc<Connection>> {
        let connection = self.shared.connection.load_full().filter(|c| c.is_open());
        if connection.is_some() && !self.shared.used.load(Ordering::Relaxed) {
            self.shared.used.store(true, Ordering::Relaxed);
        }
        connection
    }

    /// Whether there is an open connection. Where there is none because nobody
    /// needed it, one is made.
    pub(super) fn is_open(&self) -> bool {
        let open = self.shared.connection.load().as_ref().is_some_and(|c| c.is_open());
        if !open {
            // Kept for the keeper, should it only be about to wait.
            self.shared.wanted.notify_one();
        }
        open
    }

    /// Why there is no connection, if a try failed.
    pub(super) fn failure(&self) -> Option<String> {
        self.shared.failure().clone()
    }
}

impl Shared {
    fn failure(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection in use, and what ends when its peer is to be trusted no longer.
struct InUse {
    connection: Arc<Connection>,
    lost: BoxFuture<'static, ()>,
}

async fn keep(shared: Arc<Shared>, instance: Instance, mut caller: Caller, changed: Arc<Notify>) {
    let Instance { service, address, .. } = &instance;
    let mut pause = FIRST_PAUSE;
    let mut in_use = None;
    loop {
        // What changes from here on is seen below.
        caller.identity.seen();
        let (connection, lost) = match connection::connect(&caller, service, *address).await {
            Ok((connection, lost)) => (Arc::new(connection), Box::pin(lost)),
            Err(why) => {
                // The first of a row: the others are the same.
                if shared.failure().replace(why.to_string()).is_none() {
                    tracing::warn!(service, %address, %why, me = %caller.identity.id(), "can't connect");
                }
                changed.notify_waiters();
                let pausing = tokio::time::sleep(jittered(pause));
                pause = (2 * pause).min(LONGEST_PAUSE);
                tokio::pin!(pausing);
                tokio::select! {
                    () = &mut pausing => {}
                    () = gone(&mut in_use) => {
                        shared.connection.store(None);
                        in_use = None;
                        pausing.await;
                    }
                }
                continue;
            }
        };
        *shared.failure() = None;
        shared.used.store(false, Ordering::Relaxed);
        // What is in flight on one that this replaces ends there.
        shared.connection.store(Some(connection.clone()));
        in_use = Some(InUse { connection, lost });
        changed.notify_waiters();
        let opened = Instant::now();
        tokio::select! {
            biased;
            () = gone(&mut in_use) => {}
            // Another leaf, or other roots: another connection, made with them.
            () = caller.identity.changed() => continue,
        }
        shared.connection.store(None);
        in_use = None;
        if opened.elapsed() < HELD {
            tokio::time::sleep(jittered(pause)).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        } else {
            pause = FIRST_PAUSE;
        }
        if !shared.used.load(Ordering::Relaxed) {
            shared.wanted.notified().await;
        }
    }
}

/// Waits until the connection takes no more requests, or must get none.
async fn gone(in_use: &mut Option<InUse>) {
    match in_use {
        Some(InUse { connection, lost }) => tokio::select! {
            () = connection.closed.cancelled() => {}
            () = lost => {}
        },
        None => std::future::pending().await,
    }
}
