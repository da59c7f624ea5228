//! The harness of the end-to-end tests: a mesh of real `omni` processes on one
//! of several layouts of backends, and eyes and hands for a test.
//!
//! In reading order: [`layout`], [`backends`], [`mesh`], [`process`],
//! [`traces`], [`tls`].

pub mod backends;
pub mod layout;
pub mod mesh;
pub mod process;
pub mod tls;
pub mod traces;
pub mod wait;

pub use self::{layout::Layout, mesh::Mesh, wait::until};
