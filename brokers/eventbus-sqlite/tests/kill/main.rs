//! Processes that are killed, or stopped, at random instants while they publish and consume.
//!
//! ```text
//! cargo test -p eventbus-sqlite --test kill
//! EVENTBUS_KILL_CYCLES=200 EVENTBUS_KILL_SEED=7 cargo test -p eventbus-sqlite --test kill
//! ```
//!
//! The processes are this binary again. Each writes down what it publishes, what was acknowledged, and what its
//! handlers did, one `write` per line: a killed process keeps what it wrote. The parent compares that with the log.

mod child;
mod killed;
mod notes;
mod stopped;

fn main() {
    if let Some(work) = child::Work::asked_for() {
        return child::run(work);
    }
    // `cargo test` passes the names of tests, and options that are for its own harness.
    let wanted: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    let tests: [(&str, fn()); 3] = [
        ("killed_at_random_instants_nothing_acknowledged_is_lost", killed::run),
        ("another_process_takes_over_from_one_that_is_stopped_or_killed", stopped::with_another),
        ("a_process_that_was_stopped_goes_on", stopped::alone),
    ];
    for (name, test) in tests {
        if wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
}
