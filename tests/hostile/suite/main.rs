//! What must hold when a server is attacked, and when it is told to stop.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod attacks;
mod drain;
mod edge;
