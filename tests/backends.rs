//! The suite on the real Consul, Kafka, PostgreSQL and Jaeger, and the faults on
//! a real Consul. Those that share these wait for one another ([`tests::turn`]): give it
//! many threads, so that the others needn't. That of TLS to Kafka fails
//! without `--features mesh/kafka-tls`.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod alerts;
#[allow(dead_code, reason = "each target runs the tests that fit it")]
mod children;
#[allow(dead_code, unused_imports, reason = "each target runs the tests that fit it")]
mod fleet;
mod secure_kafka;
mod suite;
mod transactions;
mod versions;

mod real {
    crate::suite::on!(tests::Layout::Real);
}

mod real_processes {
    crate::children::on!(tests::Layout::RealProcesses);
    crate::children::on! { tests::Layout::RealProcesses; a_database_that_is_away_is_waited_for }
}

mod real_consul {
    crate::fleet::on_any!(tests::ground::Ground::RealConsul);
    crate::fleet::on_consul!(tests::ground::Ground::RealConsul);
    crate::versions::on!(tests::ground::Ground::RealConsul);
    crate::fleet::on! { tests::ground::Ground::RealConsul;
        where_acls_deny_by_default_each_party_needs_its_own_policy_and_no_more
        another_coordinator_leads_when_one_is_killed
    }
}
