//! Faults of a fleet under load. Each function is a test; the macros make the
//! same tests for each ground that they make sense on.

mod acl;
mod change;
mod consul;
mod coordinators;
mod drain;
mod identity;
mod instances;
mod network;

use std::time::Duration;

pub use self::{
    acl::*, change::*, consul::*, coordinators::*, drain::*, identity::*, instances::*, network::*,
};

/// How many calls a second the fleets get while instances are killed.
const RATE: u32 = 500;
/// How many they get in the longer tests, whose faults are others.
const LOW_RATE: u32 = 200;
/// How soon calls are kept away from an instance that doesn't answer.
const AVOIDED: Duration = Duration::from_secs(2);

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// The named tests on one ground.
macro_rules! on {
    ($ground:expr; $($test:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                crate::fleet::$test($ground).await;
            }
        )*
    };
}
pub(crate) use on;

/// The tests of what depends on how instances are found.
macro_rules! on_any {
    ($ground:expr) => {
        crate::fleet::on! { $ground;
            a_killed_instance_is_avoided_and_no_call_fails
            a_paused_instance_is_avoided_and_used_again
            rolling_restarts_fail_no_call
            an_instance_that_is_told_to_stop_fails_no_call
            the_last_instance_leaving_is_noticed_and_the_next_one_is_found
            an_idle_client_recovers_after_everything_restarted
            roots_rotate_under_load
        }
    };
}
pub(crate) use on_any;

/// The tests for every Consul.
macro_rules! on_consul {
    ($ground:expr) => {
        crate::fleet::on! { $ground;
            a_killed_instance_is_avoided_while_consul_hangs
            an_address_that_another_service_has_now_is_not_used
            calls_go_on_while_consul_is_away
            consul_restarts_without_its_services_and_no_call_fails
            instances_that_consul_forgets_are_back_before_a_call_fails
            a_flapping_consul_stops_no_call
            a_watch_that_hangs_goes_on_when_consul_does
            a_change_is_routed_by_at_once
        }
    };
}
pub(crate) use on_consul;
