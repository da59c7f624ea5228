//! Who leads: of all that stand for a name, in every process of the mesh, one
//! at a time. Another takes over when it resigns, dies or is cut off.
//!
//! A leader holds a lock: in Consul one that is bound to its health check, else
//! one on a file, which dies with its process. docs/decisions/025.
//!
//! A process that is paused in the middle of its work goes on with it when it
//! wakes, whoever leads by then; before each step it can ask whether it still
//! leads. What must not happen twice for all that is told the leader's
//! [term](Leader::term), and refuses one that is lower than the last.

pub mod consul;
pub mod embedded;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch::{self, error::RecvError},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{consul::ConsulLeadership, embedded::EmbeddedLeadership};
use crate::{Error, config::Config, identity::is_name, registry::Instance};

/// Where one is chosen of those that stand for a name.
#[async_trait]
pub trait Leadership: Send + Sync + 'static {
    /// Stands for `name` as `instance`, until the candidacy is resigned or
    /// dropped. Nobody leads yet, as far as is known, when this returns. An
    /// instance that isn't registered yet waits for that.
    ///
    /// # Errors
    /// When `name` isn't 1 to 63 of `a-z`, `0-9` and `-`, or the end of the
    /// instance wouldn't be noticed.
    async fn stand(&self, name: &str, instance: &Instance) -> Result<Candidacy, Error>;

    /// Watches who leads as `name`, without standing for it; `None` is nobody. The
    /// first answer is there when this returns, or `None` when there is none yet.
    /// The last one stays while nothing can be learned.
    ///
    /// # Errors
    /// When `name` isn't one, or watching can't begin at all.
    async fn watch(&self, name: &str) -> Result<watch::Receiver<Option<Leader>>, Error>;
}

/// The leadership for the registry that the configuration names: Consul's for
/// Consul, else one among the processes that share the data directory.
///
/// # Errors
/// When the folder can't be made, or Consul's address isn't one.
pub fn leadership(config: &Config) -> Result<Arc<dyn Leadership>, Error> {
    match config.registry.starts_with("consul:") {
        true => Ok(Arc::new(ConsulLeadership::new(config)?)),
        false => Ok(Arc::new(EmbeddedLeadership::open(config)?)),
    }
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// The instance's id.
    pub id: String,
    /// Where others reach it.
    pub address: SocketAddr,
    /// Higher than that of every leader before, with gaps.
    pub term: u64,
}

/// Stands for a name; resigns when told to, or dropped.
pub struct Candidacy {
    standing: Standing,
    stop: DropGuard,
    stands: JoinHandle<()>,
}

impl Candidacy {
    /// Runs what `stand` makes, which tells what it sees, and which ends soon
    /// after it is told to stop.
    fn begin<F>(stand: impl FnOnce(watch::Sender<Seen>, CancellationToken) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, seen) = watch::channel(Seen::default());
        let stop = CancellationToken::new();
        let stands = tokio::spawn(stand(sender, stop.clone()));
        Self { standing: Standing { seen }, stop: stop.drop_guard(), stands }
    }

    /// What it knows; to be kept by whoever asks.
    pub fn standing(&self) -> Standing {
        self.standing.clone()
    }

    /// Stops to stand, and returns when another can lead: at once, or after 3 s
    /// when Consul doesn't answer. To be called before the instance is
    /// deregistered, which would take the lock away and delay the next leader.
    pub async fn resign(self) {
        let Self { stop, stands, .. } = self;
        drop(stop);
        if let Err(why) = stands.await {
            tracing::error!(%why, "a candidacy ended badly");
        }
    }
}

/// What a candidate knows: whether it leads, and who does. Asking is cheap.
#[derive(Clone)]
pub struct Standing {
    seen: watch::Receiver<Seen>,
}

impl Standing {
    /// Whether this candidate leads. Where it can't be told, it doesn't.
    pub fn is_leader(&self) -> bool {
        self.term().is_some()
    }

    /// The term in which this candidate leads; `None` while it doesn't. Another
    /// one than before says that others may have led in between.
    pub fn term(&self) -> Option<u64> {
        let seen = self.seen.borrow();
        let led = seen.leader.as_ref().filter(|_| self.holds(&seen));
        led.map(|leader| leader.term)
    }

    /// Who leads, as far as is known.
    pub fn leader(&self) -> Option<Leader> {
        let seen = self.seen.borrow();
        let lapsed = seen.claim.is_some() && !self.holds(&seen);
        seen.leader.clone().filter(|_| !lapsed)
    }

    /// Waits until another leads than when this was last waited for.
    ///
    /// # Errors
    /// When the candidacy has ended.
    pub async fn changed(&mut self) -> Result<(), RecvError> {
        self.seen.changed().await
    }

    /// Whether the claim that was seen holds. It ends with the task that tells it.
    fn holds(&self, seen: &Seen) -> bool {
        self.seen.has_changed().is_ok() && seen.claim.is_some_and(Claim::holds)
    }
}

/// What a candidate saw last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    leader: Option<Leader>,
    /// Set where it leads itself.
    claim: Option<Claim>,
}

/// How long a candidate may believe that it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// Until it lets go.
    Held,
    /// Until then, unless it is confirmed before. Whoever asks looks at the clock:
    /// the task may be the one that is held up.
    Until(Instant),
}

impl Claim {
    fn holds(self) -> bool {
        match self {
            Self::Held => true,
            Self::Until(end) => Instant::now() < end,
        }
    }
}

impl Seen {
    /// Tells `next`. Who waits isn't woken for a claim that was only confirmed.
    fn tell(seen: &watch::Sender<Self>, next: Self) {
        seen.send_if_modified(|now| {
            let news = now.leader != next.leader || now.claim.is_some() != next.claim.is_some();
            *now = next;
            news
        });
    }
}

/// What others are told of one that leads.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Candidate {
    id: String,
    address: SocketAddr,
}

impl Candidate {
    fn new(instance: &Instance) -> Self {
        Self { id: instance.id.clone(), address: instance.address }
    }

    fn leading(self, term: u64) -> Leader {
        Leader { id: self.id, address: self.address, term }
    }
}

/// Refuses a name that can't be a part of a key and of a file's name.
fn check_name(name: &str) -> Result<(), Error> {
    if is_name(name) {
        return Ok(());
    }
    let expected = "expected 1 to 63 of `a-z`, `0-9` and `-`";
    Err(Error::Leadership(format!("nobody can lead as `{name}`: {expected}")))
}
