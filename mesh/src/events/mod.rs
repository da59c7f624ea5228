//! Durable events: CloudEvents that are first a row in the outbox of the
//! service they happened in, in the transaction of the state they report, then
//! relayed to the broker, then consumed once each by the inbox's record.

pub mod broker;
mod event;
mod outbox;
mod relay;
mod subscriber;

pub use self::{
    event::{Attributes, Event},
    outbox::{Bodies, Body, Outbox, Outgoing},
    relay::Relay,
    subscriber::{Handler, Subscriber},
};
