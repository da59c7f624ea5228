//! The suite on the real Consul, Kafka, PostgreSQL and Jaeger. Run it one test
//! at a time: they share these.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod suite;

mod real {
    crate::suite::on!(tests::Layout::Real);
}
