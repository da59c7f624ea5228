//! Starts units in the order of their plan, keeps them up, and drains them in reverse.
//!
//! Each unit has a task of its own. It starts when the levels before have settled
//! (everything there is healthy, or has failed once) and what it requires is healthy;
//! it goes on trying what fails, and waits with its end for those who depend on it.
//!
//! In reading order: [`Runner`], what it is to start something; `status`, how units
//! are; `replica`, one instance of a unit; `unit`, all of them.

mod replica;
mod status;
#[cfg(test)]
mod tests;
mod unit;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use chrono::Utc;
use futures::future::BoxFuture;

use mesh::Error;
use tokio::{
    sync::{
        broadcast,
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

pub use self::status::{State, Status, Transition};
use crate::plan::{Plan, Unit};

/// How many transitions are kept for those who are slow to hear of them.
const TRANSITIONS: usize = 1024;
/// How many orders wait for a unit.
const ORDERS: usize = 8;
/// The most instances of a unit that one coordinator runs.
pub const MAX_INSTANCES: u32 = 32;

/// Knows how to start units.
#[async_trait]
pub trait Runner: Send + Sync + 'static {
    /// Starts one more instance of `unit`, and returns when it is healthy. Dropped
    /// before, it leaves nothing running. Instance 0 is the first one of its unit, and
    /// may have what there is only one of, such as a fixed port, while it lives.
    async fn start(&self, unit: &Unit, instance: u32) -> Result<Box<dyn Running>, Failure>;

    /// Whether instances of `unit` can live beside each other.
    fn is_many(&self, unit: &Unit) -> bool;
}

/// An instance that is healthy.
#[async_trait]
pub trait Running: Send {
    /// What tells it apart for people, such as its address; empty if there is nothing.
    fn note(&self) -> String;

    /// Returns when it isn't healthy any more, and why. It may be asked again.
    async fn ended(&mut self) -> String;

    /// Has it finish what it does, and returns when it is gone.
    async fn drain(self: Box<Self>);
}

/// Why an instance wasn't started.
#[derive(Debug)]
pub enum Failure {
    /// It may work the next time.
    Passing(String),
    /// It never will: everything is to end.
    Final(Error),
}

/// What was asked of a unit can't be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nobody knows it.
    #[error("there is no unit `{0}`")]
    Unknown(String),
    /// It isn't ours.
    #[error("`{0}` can't be told anything here: {1}")]
    NotOurs(String, &'static str),
    /// Too few or too many.
    #[error("expected 1 to {MAX_INSTANCES} instances")]
    Count,
    /// It began, and didn't go well.
    #[error("`{unit}` isn't as it was asked to be: {why}")]
    Failed {
        /// The unit.
        unit: String,
        /// What went wrong.
        why: String,
    },
    /// It has as many orders as may wait.
    #[error("`{0}` is busy with earlier orders")]
    Busy(String),
}

/// What a unit can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Replace each instance, one after the other.
    Restart,
    /// Have so many instances; 0 of them is [`Order::Drain`].
    Scale(u32),
    /// Have none, until it is told otherwise.
    Drain,
}

type Told = (Order, oneshot::Sender<Result<(), Refused>>);
type Statuses = BTreeMap<String, Status>;

/// Runs a plan.
pub struct Supervisor {
    control: Control,
    orders: BTreeMap<String, mpsc::Receiver<Told>>,
}

/// Sees how a supervisor's units are, and tells them what to do.
#[derive(Clone)]
pub struct Control {
    plan: Arc<Plan>,
    statuses: watch::Sender<Statuses>,
    transitions: broadcast::Sender<Transition>,
    orders: BTreeMap<String, mpsc::Sender<Told>>,
}

impl Supervisor {
    /// What will run `plan`.
    pub fn new(plan: Arc<Plan>) -> Self {
        let waiting = |name: &String| (name.clone(), Status::default());
        let statuses = plan.units().keys().map(waiting).collect();
        let (senders, receivers) = plan
            .units()
            .keys()
            .map(|name| {
                let (sender, receiver) = mpsc::channel(ORDERS);
                ((name.clone(), sender), (name.clone(), receiver))
            })
            .unzip();
        let control = Control {
            plan,
            statuses: watch::Sender::new(statuses),
            transitions: broadcast::Sender::new(TRANSITIONS),
            orders: senders,
        };
        Self { control, orders: receivers }
    }

    /// What sees and tells it.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Starts everything by `runner`, keeps it up until `stop`, and drains it.
    ///
    /// # Errors
    /// What can't be started ever; the others are drained.
    pub fn run(
        self,
        runner: Arc<dyn Runner>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, Result<(), Error>> {
        Box::pin(async move {
            let failed: Arc<Mutex<Option<Error>>> = Arc::default();
            let (mut units, mut names) = (JoinSet::new(), HashMap::new());

            for (name, orders) in self.orders {
                let unit = unit::Supervised::new(
                    &name,
                    self.control.clone(),
                    runner.clone(),
                    stop.clone(),
                    failed.clone(),
                );
                names.insert(units.spawn(unit.run(orders)).id(), name);
            }
            while let Some(ended) = units.join_next_with_id().await {
                let Err(why) = ended else { continue };
                stop.cancel();
                if let Some(unit) = names.get(&why.id()) {
                    // Else those it depends on would wait for its end.
                    self.control.set(unit, Status { state: State::Stopped, ..Status::default() });
                }
                let why = Error::Registry(format!("the task of a unit ended badly: {why}"));
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
            }
            let failed = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
            failed.map_or(Ok(()), Err)
        })
    }
}

impl Control {
    /// The plan that is run.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// How all units are, by name, now and whenever it changes.
    pub fn statuses(&self) -> watch::Receiver<BTreeMap<String, Status>> {
        self.statuses.subscribe()
    }

    /// What changes from now on, each change once.
    pub fn transitions(&self) -> broadcast::Receiver<Transition> {
        self.transitions.subscribe()
    }

    /// Has `unit` do as `order` says, and returns when it has.
    ///
    /// # Errors
    /// When it can't.
    pub async fn order(&self, unit: &str, order: Order) -> Result<(), Refused> {
        if matches!(order, Order::Scale(count) if !(1..=MAX_INSTANCES).contains(&count)) {
            return Err(Refused::Count);
        }
        let orders = self.orders.get(unit).ok_or_else(|| Refused::Unknown(unit.to_owned()))?;
        let (answer, answered) = oneshot::channel();
        let gone = || Refused::Failed { unit: unit.to_owned(), why: "it is ending".to_owned() };
        orders.try_send((order, answer)).map_err(|why| match why {
            TrySendError::Full(_) => Refused::Busy(unit.to_owned()),
            TrySendError::Closed(_) => gone(),
        })?;

        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Says how `unit` is.
    fn set(&self, unit: &str, next: Status) {
        self.statuses.send_if_modified(|statuses| {
            let Some(status) = statuses.get_mut(unit) else { return false };
            if status.state != next.state || status.reason != next.reason {
                let transition = Transition {
                    unit: unit.to_owned(),
                    from: status.state,
                    to: next.state,
                    reason: next.reason.clone(),
                    at: Utc::now(),
                };
                // Nobody may be listening.
                let _ = self.transitions.send(transition);
            }
            let changed = *status != next;
            *status = next;
            changed
        });
    }
}

/// Those of `names` that aren't healthy.
fn unhealthy<'a>(names: &'a BTreeSet<String>, statuses: &Statuses) -> Vec<&'a str> {
    let healthy = |name: &str| statuses.get(name).is_some_and(|status| status.state.is_healthy());
    names.iter().map(String::as_str).filter(|name| !healthy(name)).collect()
}
