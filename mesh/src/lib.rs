//! The kernel that every service stands on: identity, discovery, calls in and
//! out, durable events, storage, telemetry, and a service's life. It knows
//! none of the services.
//!
//! In reading order: [`config`], [`identity`], [`registry`], [`leadership`],
//! [`policy`], [`client`], [`server`], [`events`], [`store`], [`telemetry`],
//! [`service`]. [`consul`] is what the Consul side of identity, registry,
//! leadership and policy share.

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
