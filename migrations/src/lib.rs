//! The database migrations of services: one module for each that has tables of its own,
//! beside the kernel's. `build.rs` lists the files of this folder.
//!
//! A migration that was ever released isn't changed any more; what comes later
//! is a new one behind it.

include!(concat!(env!("OUT_DIR"), "/modules.rs"));
