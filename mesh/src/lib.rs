//! The kernel that every service stands on: identity, discovery, calls in and
//! out, durable events, storage, telemetry, and a service's life. It knows
//! none of the services.
//!
//! In reading order: [`config`], [`identity`], [`registry`], [`policy`],
//! [`client`], [`server`], [`events`], [`store`], [`telemetry`], [`service`].
//! [`consul`] is what the Consul side of identity, registry and policy share.

pub mod config;
pub mod consul;
mod error;
pub mod events;
pub mod files;
pub mod identity;
pub mod json;
pub mod policy;
pub mod registry;

pub use error::Error;
