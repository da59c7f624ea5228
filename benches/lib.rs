//! Benchmarks, of two kinds: `just bench` times what runs for every call and
//! every event (`kernel.rs`), and `just peers` runs the mesh side by side with
//! tonic and Envoy (`peers/`). Here is what both would reckon with, apart from
//! measuring: [`spread`] and [`document`].

pub mod document;
#[cfg(feature = "peers")]
pub mod machine;
pub mod spread;
