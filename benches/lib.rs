//! Benchmarks of what runs for every call and every event. There is nothing to
//! import here: `just bench` runs `kernel.rs`.
