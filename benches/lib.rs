//! Benchmarks, of two kinds: `just bench` times what runs for every call and
//! every event (`kernel.rs`); `just peers` (`peers/`), `just webhooks`
//! (`webhooks/`) and `just events` (`events/`) run all of it side by side with
//! others. Here is what these reckon with, apart from measuring: [`spread`] and
//! [`document`], and how they send at a rate: `pace`.

pub mod document;
pub mod machine;
pub mod pace;
pub mod spread;
