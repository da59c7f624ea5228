//! The kernel that every service stands on: identity, discovery, calls in and
//! out, durable events, storage, telemetry, and a service's life. It knows
//! none of the services.
//!
//! In reading order: [`config`], [`identity`], [`registry`], [`leadership`],
//! [`policy`], [`client`], [`server`], [`events`], [`store`], [`telemetry`],
//! [`service`]. [`consul`] is what the Consul side of identity, registry,
//! leadership and policy share.
//!
//! What other crates await now and then, and what does much, answers a boxed future: its
//! code is made once, here. That of an `async fn` is made anew in each crate that awaits
//! it, with all that it awaits.

pub mod backoff;
mod bundle;
pub mod call;
pub mod client;
pub mod config;
pub mod consul;
pub mod descriptors;
mod error;
pub mod events;
pub mod files;
#[cfg(test)]
mod fuzz;
mod gather;
pub mod identity;
pub mod intercept;
pub mod json;
pub mod leadership;
pub mod messages;
mod pace;
pub mod page;
pub mod policy;
pub mod registry;
mod sensitive;
pub mod server;
pub mod service;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod timestamp;

pub use error::Error;
