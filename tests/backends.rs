//! The suite on the real Consul, Kafka, PostgreSQL and Jaeger. Run it one test
//! at a time: they share these.

mod suite;

mod real {
    crate::suite::on!(tests::Layout::Real);
}
