//! Durable events: CloudEvents that are first a row in the outbox of the
//! service they happened in, in the transaction of the state they report, then
//! relayed to the broker, then consumed once each by the inbox's record.

pub mod broker;
mod event;
mod hand;
mod inbox;
mod lag;
mod outbox;
mod relay;
mod subscriber;
#[cfg(test)]
mod tests;
mod version;
mod waiting;

use std::time::Duration;

pub(crate) use self::version::Versioned;
pub use self::{
    event::{Attributes, Event},
    inbox::Inbox,
    outbox::{Bodies, Body, Outbox, Outgoing},
    relay::Relay,
    subscriber::{Handler, Subscriber},
};

/// How long topics keep events: 30 days.
pub(crate) const RETENTION: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The topics that the kernel itself publishes to, whatever the service: every
/// relay makes and checks them when it starts.
pub(crate) const KERNEL_TOPICS: [&str; 2] = [LIFECYCLE, AUDIT];
/// Where each service is in its life.
pub const LIFECYCLE: &str = "services.lifecycle";
/// Who did what, allowed or denied.
pub const AUDIT: &str = "audit.events";
/// What the names of dead-letter topics begin with, before their topic's.
pub const DEAD_LETTERS: &str = "dlq.";
/// The type of a dead letter whose record is no CloudEvent.
pub const UNDECODABLE: &str = "undecodable";
