//! The models under as many schedules as fit into a few seconds; `ITERATIONS` sets how many.

#![forbid(unsafe_code)]

use eventbus_models as models;

/// Random schedules, and those with few changes from thread to thread, which find what needs an order that chance does
/// not bring about.
fn check(model: fn()) {
    let iterations = std::env::var("ITERATIONS").map_or(2_000, |number| number.parse().expect("a number"));
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
