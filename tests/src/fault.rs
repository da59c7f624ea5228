//! What is done to a mesh while webhooks come in.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::ValueEnum;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::Mesh;

/// How long after a start a process is killed.
const LIFE: std::ops::Range<f64> = 2.0..10.0;
/// How often the broker is paused, and how often it is killed.
const ROUNDS: u32 = 5;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// Every process is killed at random every 2 to 10 s.
    Kills,
    /// The broker is away until the end.
    BrokerAway,
    /// The broker is paused and killed in turn, five times each.
    BrokerFails,
}

impl Fault {
    /// Begins, as a part of `tasks`, and ends with `stop`, or after `time`; counts in
    /// `faults`.
    pub(crate) fn begin(
        self,
        mesh: &Arc<Mesh>,
        time: Duration,
        tasks: &TaskTracker,
        stop: &CancellationToken,
        faults: &Arc<AtomicU64>,
    ) {
        let given = || (mesh.clone(), stop.clone(), faults.clone());
        match self {
            Self::Kills => {
                for process in mesh.layout.processes() {
                    let (mesh, stop, faults) = given();
                    tasks.spawn(kill_again_and_again(mesh, process, stop, faults));
                }
            }
            Self::BrokerAway => {
                let (mesh, stop, faults) = given();
                tasks.spawn(async move {
                    mesh.backends.stop_broker().await;
                    faults.fetch_add(1, Ordering::Relaxed);
                    stop.cancelled().await;
                    mesh.backends.start_broker().await;
                });
            }
            Self::BrokerFails => {
                let (mesh, _, faults) = given();
                tasks.spawn(broker_fails(mesh, time / (4 * ROUNDS), faults));
            }
        }
    }
}

async fn kill_again_and_again(
    mesh: Arc<Mesh>,
    process: &'static str,
    stop: CancellationToken,
    kills: Arc<AtomicU64>,
) {
    loop {
        let life = Duration::from_secs_f64(rand::random_range(LIFE));
        tokio::select! {
            () = tokio::time::sleep(life) => {}
            () = stop.cancelled() => return,
        }
        mesh.take_process(process).kill();
        mesh.start_process(process);
        kills.fetch_add(1, Ordering::Relaxed);
    }
}

async fn broker_fails(mesh: Arc<Mesh>, time: Duration, faults: Arc<AtomicU64>) {
    let rest = || tokio::time::sleep(time);
    for _ in 0..ROUNDS {
        rest().await;
        mesh.backends.pause_broker().await;
        faults.fetch_add(1, Ordering::Relaxed);
        rest().await;
        mesh.backends.resume_broker().await;
        rest().await;
        mesh.backends.kill_broker().await;
        faults.fetch_add(1, Ordering::Relaxed);
        rest().await;
        mesh.backends.start_broker().await;
    }
}
