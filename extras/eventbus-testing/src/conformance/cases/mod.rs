//! The cases. Each is named after its promise; what it promises precisely stands before it.

mod dead_letters;
mod declaring;
mod delivering;
mod ending;
mod failing;
mod groups;
mod history;
mod load;
mod ordering;
mod sharing;
mod starting;
mod wire;

use super::case::Case;
use std::pin::Pin;
use std::sync::Arc;

/// Begins a case.
pub(super) type Begin = fn(Arc<Case>) -> Pin<Box<dyn Future<Output = ()>>>;

/// All cases, by room. What is in front of `=>` is handed to the macro in the brackets as well.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_cases {
    ([$($use_them:tt)+] $($first:tt)*) => {
        $($use_them)+! {
            $($first)*
            declaring {
                what_a_broker_declares_does_not_contradict_itself
            }
            starting {
                a_group_gets_all_that_is_published_after_it_subscribed
                a_group_that_begins_at_the_earliest_event_gets_what_was_published_before
                a_group_that_begins_at_the_latest_event_gets_nothing_from_before
                a_known_group_goes_on_where_it_was
            }
            delivering {
                each_of_two_groups_gets_every_event
                topics_do_not_leak
                patterns_cover_what_they_say
                an_event_that_nobody_listens_on_is_accepted
                each_event_of_a_batch_is_stored_or_refused_by_itself
            }
            ordering {
                events_of_one_key_are_handled_in_publish_order
                events_of_one_key_are_handled_in_publish_order_while_some_fail
                no_event_is_handled_while_one_before_it_in_its_lane_is_open
                what_is_given_back_comes_again_before_what_waits
            }
            failing {
                an_event_that_fails_is_tried_again_until_it_succeeds
                a_retry_comes_no_earlier_than_asked_for_and_not_much_later
                a_subscription_that_fails_changes_nothing_for_another
                bytes_that_do_not_decode_become_a_dead_letter_and_the_next_event_is_handled
                of_a_hundred_events_settled_at_once_the_bad_one_alone_is_a_dead_letter
            }
            dead_letters {
                a_dead_letter_says_what_failed_where_and_why
                a_dead_letter_goes_again_to_the_group_that_failed_and_to_no_other
                a_dead_letter_that_was_mended_goes_again_as_it_is_now
                what_is_done_to_a_dead_letter_twice_is_done_once
            }
            wire {
                payloads_arrive_byte_for_byte
                attributes_and_headers_arrive_as_they_were_sent
                a_header_value_is_carried_or_refused_and_never_changed
                an_event_that_is_published_twice_with_one_id_is_stored_once
            }
            ending {
                a_shutdown_flushes_what_is_being_published
                what_a_shutdown_cuts_off_is_not_settled
                shutdowns_under_load_lose_nothing
                a_publish_beside_a_shutdown_is_confirmed_or_refused
            }
            sharing {
                what_one_process_publishes_is_delivered_in_another
                processes_that_compete_share_a_group_and_handle_each_event_once
                order_by_key_holds_while_a_group_passes_from_one_process_to_the_next
                after_a_process_is_killed_another_takes_over_in_order
                what_a_killed_process_had_in_its_hands_is_delivered_again
                attempts_after_a_crash_are_as_the_broker_declares
                an_event_that_ends_the_process_again_and_again_is_given_up_and_no_other_is
                what_processes_were_killed_with_is_not_given_up
                a_handler_may_take_longer_than_a_process_may_be_silent
            }
            load {
                fifty_publishers_and_fifty_subscribers_miss_nothing
                many_subscriptions_that_come_and_go_lose_nothing
                what_waits_for_a_slow_handler_stays_at_the_broker
            }
            history {
                a_replay_delivers_again_and_moves_nobody
                a_replay_begins_and_ends_at_the_places_it_was_told
                a_live_replay_goes_on_with_what_is_published
                a_replay_that_its_broker_cuts_off_is_complete_or_an_error
                the_audit_log_answers_what_it_is_asked
            }
            groups {
                groups_are_listed_with_what_they_have_to_do
                groups_are_moved_renamed_and_dropped_only_while_nobody_handles_them
                a_group_that_was_moved_to_a_place_goes_on_behind_it
            }
        }
    };
}

macro_rules! table {
    (=> $($room:ident { $($case:ident)* })*) => {
        const CASES: &[(&str, Begin)] =
            &[$($((stringify!($case), |case| Box::pin($room::$case(case))),)*)*];
    };
}
__conformance_cases! { [table] => }

/// The case of this name.
pub(super) fn find(name: &str) -> Begin {
    let case = CASES.iter().find(|(case, _)| *case == name);
    case.unwrap_or_else(|| panic!("the suite has no case `{name}`")).1
}
