//! The one suite: what must hold on every layout. Each function is a test; the
//! macro `on!` makes the same tests for a layout, no more and no fewer.

mod api;
mod events;
mod faults;
mod identity;
mod privacy;
mod webhook;

pub use self::{api::*, events::*, faults::*, identity::*, privacy::*, webhook::*};

/// All tests of the suite on one layout.
macro_rules! on {
    ($layout:expr) => {
        crate::suite::on! { $layout;
            a_webhook_becomes_a_call_an_event_and_an_entry
            the_same_delivery_again_is_one_event
            a_hundred_deliveries_at_once_are_each_one_event
            one_delivery_a_hundred_times_at_once_is_one_event
            one_trace_leads_from_the_webhook_to_the_trail
            bad_input_is_answered_clearly_and_leaves_nothing_behind
            an_api_key_opens_its_source
            hooks_are_filtered_paged_and_watched
            hooks_of_one_conversation_are_one_session
            every_service_tells_its_life
            what_a_consumer_gives_up_on_is_listed_replayed_and_discarded
            a_topic_is_replayed_for_a_group_that_lacks_some_of_it
            the_story_of_a_correlation_is_told_over_all_topics
            what_is_sensitive_is_kept_nowhere
            strangers_are_refused_at_the_handshake
            a_denied_call_is_in_the_trail
            an_intention_stops_calls_and_its_removal_lets_them_through
            roots_rotate_while_calls_run
            an_event_survives_a_broker_that_is_away_and_a_killed_receiver
            another_receiver_relays_in_order_where_one_was_killed
            a_full_outbox_refuses_until_the_broker_is_back
            killed_again_and_again_they_lose_double_and_disorder_nothing
            a_broker_that_is_paused_and_killed_loses_doubles_and_disorders_nothing
            draining_ends_streams_with_unavailable_and_exits_with_success
        }
    };
    ($layout:expr; $($test:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let _turn = tests::turn::Turn::on($layout).await;
                let _watchdog = watchdog::Watchdog::start();
                crate::suite::$test($layout).await;
            }
        )*
    };
}
pub(crate) use on;
