//! The harness of the end-to-end tests: a mesh of real `omni` processes on one
//! of several layouts of backends, and eyes and hands for a test.
//!
//! In reading order: [`layout`], [`backends`], [`mesh`], [`process`],
//! [`traces`], [`tls`]; and for faults under load [`ground`], [`agent`],
//! [`proxy`], [`fleet`], [`load`]; for versions [`shop`]; for the docs [`page`]; for events
//! under kill -9 [`chaos`]; for alerts [`prometheus`]; for a broker that asks who one is
//! [`kafka`]. [`turn`] says which tests run at the same time.

pub mod agent;
pub mod backends;
pub mod chaos;
pub mod fault;
pub mod fleet;
pub mod ground;
pub mod kafka;
pub mod layout;
pub mod load;
pub mod mesh;
pub mod page;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod shop;
pub mod tls;
pub mod traces;
pub mod turn;
pub mod wait;

pub use self::{layout::Layout, mesh::Mesh, wait::until};
