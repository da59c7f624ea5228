//! What must hold when things fail under load, on everything that needs nothing
//! installed. In a target of its own: it measures time, and wants no neighbour.
//!
//! `OMNI_TEST_ROUNDS` is how many rolling restarts there are (2 unless set),
//! `OMNI_TEST_OUTAGE` how many seconds Consul is away (5 unless set).

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[allow(dead_code, unused_imports, reason = "each target runs the tests that fit it")]
mod fleet;

mod storage;

mod embedded {
    crate::fleet::on_any!(tests::ground::Ground::Embedded);
    crate::fleet::on! { tests::ground::Ground::Embedded;
        a_connection_is_told_to_move_and_what_is_in_flight_on_it_is_answered
        a_straggler_is_cut_off_at_the_end_of_the_drain
        a_network_that_fails_an_instance_fails_no_call
        leafs_that_live_for_seconds_are_renewed_under_load
        another_coordinator_leads_when_one_is_killed
    }
}

mod fake_consul {
    crate::fleet::on_consul!(tests::ground::Ground::FakeConsul);
    crate::fleet::on! { tests::ground::Ground::FakeConsul;
        a_consul_that_fails_or_counts_anew_stops_no_call
        a_consul_that_takes_all_for_sick_stops_no_call
    }
}
