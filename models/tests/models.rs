//! The models under as many schedules as fit into a few seconds; `ITERATIONS` sets how many.

#![forbid(unsafe_code)]

use eventbus_models as models;

/// Random schedules, and those with few changes from thread to thread, which find what needs an order that chance does
/// not bring about.
fn check(model: fn()) {
    let iterations = std::env::var("ITERATIONS").map_or(1_000, |number| number.parse().expect("a number"));
    shuttle::check_random(model, iterations);
    shuttle::check_pct(model, iterations, 3);
}

#[test]
fn a_publisher_is_not_forgotten_beside_a_publish_that_fails() {
    check(models::a_publisher_is_not_forgotten_beside_a_publish_that_fails);
}

#[test]
fn publishers_to_two_full_queues_are_all_let_in() {
    check(models::publishers_to_two_full_queues_are_all_let_in);
}

#[test]
fn nothing_is_accepted_after_a_shutdown_has_counted() {
    check(models::nothing_is_accepted_after_a_shutdown_has_counted);
}

#[test]
fn a_publisher_that_waits_learns_of_the_end() {
    check(models::a_publisher_that_waits_learns_of_the_end);
}

#[test]
fn everything_published_is_handled() {
    check(models::everything_published_is_handled);
}

#[test]
fn everything_published_is_handled_beside_the_watchdog() {
    check(models::everything_published_is_handled_beside_the_watchdog);
}

#[test]
fn a_handler_that_computes_does_not_hold_up_the_others() {
    check(models::a_handler_that_computes_does_not_hold_up_the_others);
}

#[test]
fn a_handler_that_waits_does_not_hold_up_the_others() {
    check(models::a_handler_that_waits_does_not_hold_up_the_others);
}

#[test]
fn what_failed_is_tried_again_before_what_follows_it() {
    check(models::what_failed_is_tried_again_before_what_follows_it);
}

#[test]
fn batches_keep_the_order_of_their_keys() {
    check(models::batches_keep_the_order_of_their_keys);
}

#[test]
fn a_retry_that_comes_due_while_the_broker_is_asked_is_not_forgotten() {
    check(models::a_retry_that_comes_due_while_the_broker_is_asked_is_not_forgotten);
}

#[test]
fn what_follows_a_settled_member_does_not_wait_for_the_rest_of_its_batch() {
    check(models::what_follows_a_settled_member_does_not_wait_for_the_rest_of_its_batch);
}

#[test]
fn what_has_room_after_a_settled_member_does_not_wait_for_the_rest_of_its_batch() {
    check(models::what_has_room_after_a_settled_member_does_not_wait_for_the_rest_of_its_batch);
}

#[test]
fn whoever_is_stopped_gives_back_what_is_not_handled() {
    check(models::whoever_is_stopped_gives_back_what_is_not_handled);
}

#[test]
fn whoever_is_stopped_gives_back_a_batch_that_is_gathered() {
    check(models::whoever_is_stopped_gives_back_a_batch_that_is_gathered);
}

#[test]
fn handlers_that_are_dropped_give_back_what_they_had() {
    check(models::handlers_that_are_dropped_give_back_what_they_had);
}

#[test]
fn a_worker_that_has_only_just_begun_is_dropped_as_well() {
    check(models::a_worker_that_has_only_just_begun_is_dropped_as_well);
}

#[test]
fn whoever_waits_for_the_end_of_a_source_learns_of_it() {
    check(models::whoever_waits_for_the_end_of_a_source_learns_of_it);
}
