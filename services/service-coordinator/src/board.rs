//! How everything is: what the supervisor knows of what it runs, and what the registry
//! and the backends say of the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::Arc,
};

use api::coordinator::v1::{
    Instance, Kind as ProtoKind, Leader, Phase as ProtoPhase, Unit as ProtoUnit, UnitChanged,
    UnitState, UnitStatus,
};
use chrono::Utc;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use mesh::{
    Error,
    config::Config,
    leadership::Standing,
    registry::Snapshot,
    service::{Context, Phase},
    timestamp,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::WatchStream;

use crate::{
    NAME, lead,
    plan::{Kind, Plan, Unit},
    supervisor::{Control, Refused, State, Status},
    tell::Dated,
    units::{Backend, INTERVAL},
};

/// How everything is, now and whenever it changes.
#[derive(Clone)]
pub(crate) struct Board {
    plan: Arc<Plan>,
    control: Control,
    /// Who leads.
    known: lead::Known,
    /// Told what changes elsewhere, where this one leads.
    seen: mpsc::Sender<Dated>,
    shown: watch::Sender<Shown>,
}

/// How everything is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Shown {
    pub(crate) units: Vec<UnitStatus>,
    pub(crate) leader: Option<Leader>,
}

/// What was seen last.
#[derive(Default)]
struct Seen {
    /// What the supervisor says of what it runs.
    supervised: BTreeMap<String, Status>,
    /// The registered instances of each service.
    instances: BTreeMap<String, Snapshot>,
    /// Backends that answered when they were last asked; else why not.
    answers: BTreeMap<String, Result<(), String>>,
}

/// What is seen next.
enum Sight {
    Supervised(BTreeMap<String, Status>),
    Instances(String, Snapshot),
    Answer(&'static str, Result<(), String>),
    /// Another one leads.
    Leads,
}

impl Board {
    pub(crate) fn new(
        plan: Arc<Plan>,
        control: Control,
        known: lead::Known,
        seen: mpsc::Sender<Dated>,
    ) -> Self {
        Self { plan, control, known, seen, shown: watch::Sender::default() }
    }

    /// Keeps it up to date until the service stops.
    ///
    /// # Errors
    /// When the registry can't be watched.
    pub(crate) async fn watch(&self, context: &Context) -> Result<(), Error> {
        let mut sights: Vec<BoxStream<'static, Sight>> = Vec::new();
        for unit in self.plan.units().values().filter(|unit| unit.kind == Kind::Service) {
            let name = unit.name.clone();
            let snapshots = WatchStream::new(context.registry().watch(&name).await?);
            sights.push(snapshots.map(move |now| Sight::Instances(name.clone(), now)).boxed());
        }
        sights.push(WatchStream::new(self.control.statuses()).map(Sight::Supervised).boxed());
        sights.push(WatchStream::new(self.known.subscribe()).map(|_| Sight::Leads).boxed());
        let config = Arc::new(context.config().clone());
        for backend in Backend::of(&config) {
            if !self.is_supervised(backend.name()) {
                sights.push(answers(backend, config.clone()).boxed());
            }
        }
        let (board, stopping) = (self.clone(), context.stopping());
        context.spawn(async move {
            let mut seen = Seen::default();
            let mut sights =
                pin!(stream::select_all(sights).take_until(stopping.cancelled_owned()));
            while let Some(sight) = sights.next().await {
                seen.take(sight);
                board.update(board.show(&seen));
            }
        });
        Ok(())
    }

    fn update(&self, next: Shown) {
        let leads = self.known.borrow().as_ref().is_some_and(Standing::is_leader);
        self.shown.send_if_modified(|now| {
            // There is no before for the first one.
            for (before, after) in now.units.iter().zip(&next.units) {
                let same = before.state == after.state && before.reason == after.reason;
                if leads && !same && !self.is_supervised(&after.name) {
                    let change = UnitChanged {
                        unit: after.name.clone(),
                        from: before.state,
                        to: after.state,
                        reason: after.reason.clone(),
                        coordinator: String::new(),
                    };
                    if self.seen.try_send((change, Utc::now())).is_err() {
                        tracing::warn!(unit = after.name, "a change isn't told");
                    }
                }
            }
            let changed = *now != next;
            *now = next;
            changed
        });
    }

    /// How everything is, now and whenever it changes.
    pub(crate) fn shown(&self) -> watch::Receiver<Shown> {
        self.shown.subscribe()
    }

    /// The units in the order in which they start.
    pub(crate) fn units(&self) -> Vec<ProtoUnit> {
        let levels = (0..).zip(self.plan.levels());
        let units = levels.flat_map(|(level, names)| {
            names.iter().map(move |name| (level, &self.plan.units()[name]))
        });
        units.map(|(level, unit)| proto(unit, level)).collect()
    }

    /// Who can tell `unit` what to do.
    ///
    /// # Errors
    /// When nobody can here.
    pub(crate) fn control_of(&self, unit: &str) -> Result<&Control, Refused> {
        let planned = self.plan.units().get(unit);
        let planned = planned.ok_or_else(|| Refused::Unknown(unit.to_owned()))?;
        let why = match planned.kind {
            Kind::Backend => "it is a backend, which others run",
            Kind::Service if unit == NAME => "it is who would do it",
            Kind::Service if self.is_supervised(unit) => return Ok(&self.control),
            Kind::Service => "this coordinator doesn't run it",
        };
        Err(Refused::NotOurs(unit.to_owned(), why))
    }

    fn is_supervised(&self, unit: &str) -> bool {
        self.control.plan().units().contains_key(unit)
    }

    fn show(&self, seen: &Seen) -> Shown {
        let units = self.plan.levels().iter().flatten().map(|name| &self.plan.units()[name]);
        let works: BTreeSet<&str> = units
            .clone()
            .filter(|unit| match seen.supervised.get(&unit.name) {
                Some(status) => status.state.is_healthy(),
                None => seen.works(unit).is_ok(),
            })
            .map(|unit| unit.name.as_str())
            .collect();
        let shown = units.map(|unit| match seen.supervised.get(&unit.name) {
            Some(status) => seen.supervised(&unit.name, status),
            None => seen.observed(unit, &works),
        });
        let leader = self.known.borrow().as_ref().and_then(Standing::leader);
        let leader =
            leader.map(|leader| Leader { id: leader.id, address: leader.address.to_string() });
        Shown { units: shown.collect(), leader }
    }
}

impl Seen {
    fn take(&mut self, sight: Sight) {
        match sight {
            Sight::Supervised(statuses) => self.supervised = statuses,
            Sight::Instances(service, snapshot) => drop(self.instances.insert(service, snapshot)),
            Sight::Answer(backend, answer) => drop(self.answers.insert(backend.into(), answer)),
            Sight::Leads => {}
        }
    }

    /// The registered instances of `name`.
    fn instances(&self, name: &str) -> Vec<Instance> {
        let instances = self.instances.get(name).map(|snapshot| snapshot.iter());
        let instances = instances.into_iter().flatten().map(|instance| Instance {
            id: instance.id.clone(),
            version: instance.version.to_string(),
            address: instance.address.to_string(),
            healthy: instance.healthy,
        });
        instances.collect()
    }

    fn supervised(&self, name: &str, status: &Status) -> UnitStatus {
        UnitStatus {
            name: name.to_owned(),
            state: UnitState::from(status.state).into(),
            reason: status.reason.clone(),
            since: Some(timestamp::to_proto(status.since)),
            wanted: status.wanted.try_into().unwrap_or(i32::MAX),
            restarts: status.restarts.try_into().unwrap_or(i64::MAX),
            instances: self.instances(name),
        }
    }

    /// Whether a unit that somebody else runs works; else how it is, and why.
    fn works(&self, unit: &Unit) -> Result<(), (UnitState, String)> {
        let instances = self.instances.get(&unit.name).map_or(&[][..], |instances| instances);
        let failed = |why: &str| Err((UnitState::Failed, why.to_owned()));
        match unit.kind {
            Kind::Backend => match self.answers.get(&unit.name) {
                Some(Ok(())) => Ok(()),
                Some(Err(why)) => failed(why),
                None => Err((UnitState::Starting, String::new())),
            },
            Kind::Service if instances.iter().any(|instance| instance.healthy) => Ok(()),
            Kind::Service if instances.is_empty() => {
                Err((UnitState::Stopped, "no instance is registered".to_owned()))
            }
            Kind::Service => failed("no instance is healthy"),
        }
    }

    /// How a unit is that somebody else runs, where those in `works` work.
    fn observed(&self, unit: &Unit, works: &BTreeSet<&str>) -> UnitStatus {
        let depends = unit.requires.iter().chain(&unit.wants).map(String::as_str);
        let missing: Vec<&str> = depends.filter(|name| !works.contains(name)).collect();
        let (state, reason) = match self.works(unit) {
            Err(why) => why,
            Ok(()) if missing.is_empty() => (UnitState::Ready, String::new()),
            Ok(()) => (UnitState::Degraded, format!("without {}", missing.join(", "))),
        };
        UnitStatus {
            name: unit.name.clone(),
            state: state.into(),
            reason,
            instances: self.instances(&unit.name),
            ..UnitStatus::default()
        }
    }
}

/// What `backend` answers, now and again.
fn answers(backend: Backend, config: Arc<Config>) -> impl futures::Stream<Item = Sight> {
    stream::unfold(false, move |asked| {
        let config = config.clone();
        async move {
            if asked {
                tokio::time::sleep(INTERVAL).await;
            }
            Some((Sight::Answer(backend.name(), backend.answer(&config).await), true))
        }
    })
}

fn proto(unit: &Unit, level: i32) -> ProtoUnit {
    let kind = match unit.kind {
        Kind::Backend => ProtoKind::Backend,
        Kind::Service => ProtoKind::Service,
    };
    let phase = match unit.phase {
        Phase::Infrastructure => ProtoPhase::Infrastructure,
        Phase::Intelligence => ProtoPhase::Intelligence,
        Phase::Services => ProtoPhase::Services,
        Phase::Coordination => ProtoPhase::Coordination,
    };
    ProtoUnit {
        name: unit.name.clone(),
        kind: kind.into(),
        phase: phase.into(),
        level,
        requires: unit.requires.iter().cloned().collect(),
        wants: unit.wants.iter().cloned().collect(),
    }
}

impl From<State> for UnitState {
    fn from(state: State) -> Self {
        match state {
            State::Waiting => Self::Waiting,
            State::Starting => Self::Starting,
            State::Ready => Self::Ready,
            State::Degraded => Self::Degraded,
            State::Failed => Self::Failed,
            State::CrashLooping => Self::CrashLooping,
            State::Draining => Self::Draining,
            State::Stopped => Self::Stopped,
        }
    }
}
