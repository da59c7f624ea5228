//! Attacks on a server: real sockets, real mutual TLS, and frames made by hand;
//! a service to aim them at, a bare listener to compare with, and other callers
//! who mustn't feel any of it.
//!
//! In reading order: [`site`], [`callers`], [`frames`], [`wire`], [`attack`].
//! The tests beside show that the service stands; `benches/hostile.rs` measures
//! what its other callers feel.

pub mod attack;
pub mod callers;
pub mod frames;
pub mod site;
pub mod wire;

pub use self::{attack::Attack, site::Site};
