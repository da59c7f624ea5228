//! How a unit is.

use chrono::{DateTime, Utc};

/// Where a unit is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It waits for its turn, or for what it requires.
    #[default]
    Waiting,
    /// It is being started.
    Starting,
    /// All its instances are healthy, and all that it depends on is.
    Ready,
    /// It works, but something that it depends on doesn't, or an instance of it.
    Degraded,
    /// No instance of it is healthy; it is tried again.
    Failed,
    /// As failed, time and again: it is tried only now and then.
    CrashLooping,
    /// It finishes what it does.
    Draining,
    /// It isn't there, as it should be.
    Stopped,
}

impl State {
    /// Whether it does its work.
    pub fn is_healthy(self) -> bool {
        matches!(self, Self::Ready | Self::Degraded)
    }
}

/// How a unit is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Where it is in its life.
    pub state: State,
    /// Why, for people; empty where there is nothing to say.
    pub reason: String,
    /// Since when.
    pub since: DateTime<Utc>,
    /// How many instances it is to have.
    pub wanted: u32,
    /// How many of them are healthy.
    pub healthy: u32,
    /// How often an instance of it was started again because it had failed.
    pub restarts: u64,
    /// What tells its healthy instances apart, such as their addresses.
    pub notes: Vec<String>,
    /// Whether later levels needn't wait for it any longer.
    pub(super) settled: bool,
}

/// A change of a unit's state, or of the reason for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The unit.
    pub unit: String,
    /// The state it was in.
    pub from: State,
    /// The state it is in.
    pub to: State,
    /// Why.
    pub reason: String,
    /// When.
    pub at: DateTime<Utc>,
}
