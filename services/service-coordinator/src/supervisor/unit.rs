//! All instances of a unit: when they start, how many there are, when they go.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use chrono::Utc;
use mesh::Error;
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Control, Order, Refused, Runner, State, Status, Statuses, Told,
    replica::{CRASH_LOOP, Look, Looks, Replica},
    unhealthy,
};
use crate::plan::Unit;

/// What a unit's own task has decided; the rest follows from its instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Waiting,
    /// It is to have so many instances.
    Running(u32),
    Draining,
    Stopped,
}

/// A unit, and what decides on it.
pub(super) struct Supervised {
    unit: Unit,
    /// The names of all earlier levels.
    earlier: Vec<String>,
    /// Who has to be gone before it goes.
    dependents: BTreeSet<String>,
    control: Control,
    runner: Arc<dyn Runner>,
    stop: CancellationToken,
    failed: Arc<Mutex<Option<Error>>>,
    looks: Looks,
    restarts: Arc<AtomicU64>,
    life: watch::Sender<Life>,
}

/// The task of one instance.
struct Task {
    stop: CancellationToken,
    ended: AbortOnDropHandle<()>,
}

impl Task {
    async fn stop(self, unit: &str) {
        self.stop.cancel();
        if let Err(why) = self.ended.await {
            tracing::error!(unit, %why, "an instance's task ended badly");
        }
    }
}

impl Supervised {
    pub(super) fn new(
        name: &str,
        control: Control,
        runner: Arc<dyn Runner>,
        stop: CancellationToken,
        failed: Arc<Mutex<Option<Error>>>,
    ) -> Self {
        let plan = control.plan();
        let level = plan.level(name).unwrap_or_default();
        let earlier = plan.levels()[..level].concat();
        let dependents = plan.dependents(name).into_iter().map(str::to_owned).collect();
        Self {
            unit: plan.units()[name].clone(),
            earlier,
            dependents,
            control,
            runner,
            stop,
            failed,
            looks: Looks::default(),
            restarts: Arc::default(),
            life: watch::Sender::new(Life::Waiting),
        }
    }

    /// Its whole life.
    pub(super) async fn run(self, orders: mpsc::Receiver<Told>) {
        let told = self.tell();
        tokio::pin!(told);
        tokio::select! {
            () = &mut told => {}
            () = self.decide(orders) => {}
        }
        self.control.set(&self.unit.name, self.status());
    }

    /// Tells how it is whenever that changes.
    async fn tell(&self) {
        let (mut all, mut looks) = (self.control.statuses(), self.looks.subscribe());
        let mut life = self.life.subscribe();
        loop {
            self.control.set(&self.unit.name, self.status());
            // Their senders are ours, so they don't end.
            let _ = tokio::select! {
                changed = all.changed() => changed,
                changed = looks.changed() => changed,
                changed = life.changed() => changed,
            };
        }
    }

    /// Waits for its turn, does as it is told, and goes.
    async fn decide(&self, mut orders: mpsc::Receiver<Told>) {
        let mut tasks = BTreeMap::new();
        let mut all = self.control.statuses();
        let its_turn = loop {
            tokio::select! {
                turn = all.wait_for(|statuses| self.is_its_turn(statuses)) => break turn.is_ok(),
                () = self.stop.cancelled() => break false,
                Some((_, answer)) = orders.recv() => {
                    // Who asked may have given up.
                    let _ = answer.send(Err(self.refused("it hasn't been started yet")));
                }
            }
        };
        if its_turn {
            self.life.send_replace(Life::Running(1));
            self.add(&mut tasks, true);
            while let Some((order, answer)) = self.next(&mut orders).await {
                let done = match order {
                    Order::Restart => self.restart(&mut tasks).await,
                    Order::Scale(2..) if !self.runner.is_many(&self.unit) => {
                        Err(self.refused("there can't be two of it in one process"))
                    }
                    Order::Scale(count) => {
                        self.scale(&mut tasks, count).await;
                        self.healthy(&tasks).await
                    }
                    Order::Drain => {
                        self.scale(&mut tasks, 0).await;
                        Ok(())
                    }
                };
                // Who asked may have given up.
                let _ = answer.send(done);
            }
            let gone = |statuses: &Statuses| {
                let stopped =
                    |name: &String| statuses.get(name).is_some_and(|s| s.state == State::Stopped);
                self.dependents.iter().all(stopped)
            };
            // The sender is ours, so it doesn't end.
            let _ = all.wait_for(gone).await;
            self.life.send_replace(Life::Draining);
            let numbers = tasks.keys().copied().collect();
            self.end(&mut tasks, numbers).await;
        }
        self.life.send_replace(Life::Stopped);
    }

    async fn next(&self, orders: &mut mpsc::Receiver<Told>) -> Option<Told> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            told = orders.recv() => told,
        }
    }

    /// Whether the levels before have settled.
    fn is_its_level(&self, statuses: &Statuses) -> bool {
        self.earlier.iter().all(|name| statuses.get(name).is_some_and(|status| status.settled))
    }

    fn is_its_turn(&self, statuses: &Statuses) -> bool {
        self.is_its_level(statuses) && unhealthy(&self.unit.requires, statuses).is_empty()
    }

    /// Has `count` instances from now on; those that go have gone when this returns.
    async fn scale(&self, tasks: &mut BTreeMap<u32, Task>, count: u32) {
        self.life.send_replace(Life::Running(count));
        let surplus = tasks.len().saturating_sub(count as usize);
        let last = tasks.keys().rev().take(surplus).copied().collect();
        self.end(tasks, last).await;
        while tasks.len() < count as usize {
            self.add(tasks, false);
        }
    }

    /// Starts one more instance, with the least number that is free.
    fn add(&self, tasks: &mut BTreeMap<u32, Task>, is_first: bool) -> u32 {
        let number = (0..).find(|number| !tasks.contains_key(number)).unwrap_or_default();
        let stop = CancellationToken::new();
        let replica = Replica {
            unit: self.unit.clone(),
            number,
            runner: self.runner.clone(),
            looks: self.looks.clone(),
            restarts: self.restarts.clone(),
            stop: stop.clone(),
            stop_all: self.stop.clone(),
            failed: self.failed.clone(),
            is_first,
        };
        self.looks.send_modify(|looks| drop(looks.insert(number, Look::default())));
        let ended = AbortOnDropHandle::new(tokio::spawn(replica.run()));
        tasks.insert(number, Task { stop, ended });
        number
    }

    async fn end(&self, tasks: &mut BTreeMap<u32, Task>, numbers: Vec<u32>) {
        let ending = numbers.iter().filter_map(|number| tasks.remove(number));
        futures::future::join_all(ending.map(|task| task.stop(&self.unit.name))).await;
    }

    /// Replaces each instance: the next one goes when the one before is healthy again.
    async fn restart(&self, tasks: &mut BTreeMap<u32, Task>) -> Result<(), Refused> {
        let old: Vec<u32> = tasks.keys().copied().collect();
        if old.is_empty() {
            self.scale(tasks, 1).await;
            return self.healthy(tasks).await;
        }
        for number in old {
            if !self.runner.is_many(&self.unit) {
                self.end(tasks, vec![number]).await;
                let again = self.add(tasks, false);
                self.is_healthy(again).await?;
                continue;
            }
            let stand_in = self.replace(tasks, number).await?;
            if number == 0 {
                // It alone may have what there is only one of.
                self.replace(tasks, stand_in).await?;
            }
        }
        Ok(())
    }

    /// Has another instance in the place of `number`, which goes when that one is
    /// healthy; else what there was goes on.
    async fn replace(&self, tasks: &mut BTreeMap<u32, Task>, number: u32) -> Result<u32, Refused> {
        let new = self.add(tasks, false);
        let healthy = self.is_healthy(new).await;
        let leaves = if healthy.is_ok() { number } else { new };
        self.end(tasks, vec![leaves]).await;
        healthy.map(|()| new)
    }

    /// Waits until every instance is healthy.
    async fn healthy(&self, tasks: &BTreeMap<u32, Task>) -> Result<(), Refused> {
        let all = tasks.keys().map(|number| self.is_healthy(*number));
        futures::future::try_join_all(all).await.map(drop)
    }

    /// Waits until an instance is healthy, as long as it may take.
    async fn is_healthy(&self, number: u32) -> Result<(), Refused> {
        let mut looks = self.looks.subscribe();
        let settled = |looks: &BTreeMap<u32, Look>| {
            looks.get(&number).is_none_or(|look| look.healthy || look.failures > 0)
        };
        let waited = tokio::select! {
            waited = tokio::time::timeout(self.unit.timeout, looks.wait_for(settled)) => waited,
            () = self.stop.cancelled() => return Err(self.refused("everything is ending")),
        };
        match waited {
            Ok(Ok(looks)) => match looks.get(&number) {
                Some(look) if look.healthy => Ok(()),
                Some(look) => Err(self.refused(&look.why)),
                None => Err(self.refused("it has gone")),
            },
            _ => Err(self.refused(&format!("it isn't healthy after {:?}", self.unit.timeout))),
        }
    }

    fn refused(&self, why: &str) -> Refused {
        Refused::Failed { unit: self.unit.name.clone(), why: why.to_owned() }
    }

    /// How it is, by what it decided, its instances, and what it depends on.
    fn status(&self) -> Status {
        let (statuses, looks) = (self.control.statuses.borrow(), self.looks.borrow());
        let (before, life) = (statuses.get(&self.unit.name), *self.life.borrow());
        let healthy: Vec<&Look> = looks.values().filter(|look| look.healthy).collect();
        let wanted = if let Life::Running(wanted) = life { wanted } else { 0 };
        let count = u32::try_from(healthy.len()).unwrap_or(u32::MAX);
        let (state, reason) = match life {
            Life::Waiting => (State::Waiting, self.awaited(&statuses)),
            Life::Draining => (State::Draining, String::new()),
            Life::Running(0) if looks.is_empty() => (State::Stopped, "it was drained".to_owned()),
            Life::Running(0) => (State::Draining, String::new()),
            Life::Stopped => (State::Stopped, String::new()),
            Life::Running(_) if count > 0 => self.works(&statuses, &looks, wanted, count),
            Life::Running(_) => fails(&looks),
        };
        let settled = match life {
            // Then it waits for what it requires, which failed.
            Life::Waiting => self.is_its_level(&statuses) && !self.is_its_turn(&statuses),
            _ => state != State::Starting,
        };
        let same = before.filter(|before| before.state == state);
        let since = same.map_or_else(Utc::now, |before| before.since);
        let restarts = self.restarts.load(Ordering::Relaxed);
        let notes = healthy.iter().map(|look| look.note.clone()).collect();
        Status { state, reason, since, wanted, healthy: count, restarts, notes, settled }
    }

    /// For what it waits.
    fn awaited(&self, statuses: &Statuses) -> String {
        if !self.is_its_level(statuses) {
            return String::new();
        }
        let missing = unhealthy(&self.unit.requires, statuses);
        let each = missing.iter().map(|name| match statuses.get(*name) {
            Some(status) if !status.reason.is_empty() => format!("{name} ({})", status.reason),
            _ => (*name).to_owned(),
        });
        let each: Vec<String> = each.collect();
        if each.is_empty() { String::new() } else { format!("waits for {}", each.join(", ")) }
    }

    /// How it is where an instance works.
    fn works(
        &self,
        statuses: &Statuses,
        looks: &BTreeMap<u32, Look>,
        wanted: u32,
        count: u32,
    ) -> (State, String) {
        let mut missing = unhealthy(&self.unit.requires, statuses);
        missing.extend(unhealthy(&self.unit.wants, statuses));
        let mut reasons = Vec::new();
        if !missing.is_empty() {
            reasons.push(format!("without {}", missing.join(", ")));
        }
        if count < wanted {
            let why = looks.values().map(|look| &look.why).find(|why| !why.is_empty());
            let why = why.map_or(String::new(), |why| format!(" ({why})"));
            reasons.push(format!("{count} of {wanted} instances{why}"));
        }
        let state = if reasons.is_empty() { State::Ready } else { State::Degraded };
        (state, reasons.join("; "))
    }
}

/// How a unit is of which no instance works.
fn fails(looks: &BTreeMap<u32, Look>) -> (State, String) {
    match looks.values().max_by_key(|look| look.failures) {
        Some(look) if look.failures >= CRASH_LOOP => {
            (State::CrashLooping, format!("{} failures in a row: {}", look.failures, look.why))
        }
        Some(look) if look.failures > 0 => (State::Failed, look.why.clone()),
        _ => (State::Starting, String::new()),
    }
}
