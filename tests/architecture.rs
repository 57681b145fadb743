//! The invariants of ARCHITECTURE.md that can be read off the sources.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules of core, floor by floor; a module uses its own floor and those below.
const FLOORS: [&[&str]; 7] = [
    &[
        "topic",
        "id",
        "headers",
        "codec",
        "event",
        "envelope",
        "trace_context",
        "error",
        "lock",
        "foreign",
        "log",
        "finite",
        "paused",
        "printable",
        "signals",
        "counted",
        "choice",
        "command_line",
        "media_type",
        "aside",
        "stderr",
        "sync",
        "line",
        "waiters",
    ],
    &["broker", "memory"],
    &["subscription", "backoff"],
    &[
        "publisher",
        "gate",
        "causation",
        "observe",
        "delivery",
        "extract",
        "outcome",
        "state",
        "handler",
        "blocking",
    ],
    &["worker", "middleware"],
    &["registry", "census", "check"],
    &["bus"],
];

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

/// Every source file of core with its path inside of `src` and its text without comments.
fn sources() -> Vec<(PathBuf, String)> {
    sources_of("eventbus-core")
}

/// The same of any crate, by its folder.
fn sources_of(krate: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(krate).join("src");
    let (mut folders, mut sources) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                // What a file's own tests do is no matter of the program.
                let program = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
                let code = program.lines().filter(|line| !line.trim_start().starts_with("//"));
                sources.push((
                    path.strip_prefix(&root).unwrap().to_owned(),
                    code.collect::<Vec<_>>().join("\n"),
                ));
            }
        }
    }
    sources
}

/// The module at the top of core that a file belongs to.
fn module(path: &Path) -> String {
    path.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

#[test]
fn arrows_between_the_floors_of_core_only_point_down() {
    let mut known = 0;
    for (path, code) in sources() {
        let Some(own) = floor(&module(&path)) else { continue };
        known += 1;
        for used in code.split("crate::").skip(1) {
            let used: String = used.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            if let Some(other) = floor(&used) {
                assert!(
                    other <= own,
                    "{} (floor {}) uses {used} (floor {})",
                    path.display(),
                    own + 1,
                    other + 1
                );
            }
        }
    }
    assert!(known > 30, "the sources were found: {known}");
}

/// A lock without a rank may be taken in any order, and under it anything may be called.
#[test]
fn locks_without_a_rank_stand_in_one_file() {
    for (path, code) in sources() {
        let name = path.to_str().unwrap();
        let plain = ["Mutex<", "RwLock<", "Mutex::", "RwLock::"].iter().any(|lock| {
            // The asynchronous one of tokio is held across awaits and blocks nobody.
            code.replace("tokio::sync::Mutex", "").contains(lock)
        });
        assert!(name == "lock.rs" || !plain, "{name} has a lock without a rank");
    }
}

/// What these of tokio call is several wakers in one loop: one that panics leaves the others asleep.
#[test]
fn whoever_tells_several_that_wait_tells_each_by_itself() {
    for krate in ["eventbus-core", "brokers/eventbus-sqlite"] {
        for (path, code) in sources_of(krate) {
            for loops in
                [".notify_waiters(", ".send_modify(", ".send_if_modified(", "broadcast::", "Semaphore::close"]
            {
                assert!(!code.contains(loops), "{} calls `{loops}`: see `waiters.rs`", path.display());
            }
        }
    }
}

#[test]
fn every_module_of_core_has_a_floor() {
    for (path, _) in sources() {
        let module = module(&path);
        assert!(
            floor(&module).is_some() || ["lib", "private"].contains(&module.as_str()),
            "{} stands on no floor",
            path.display()
        );
    }
}

#[test]
fn one_file_knows_the_crates_behind_the_registry_and_one_settles() {
    for (path, code) in sources() {
        let name = path.to_str().unwrap();
        assert!(name == "registry.rs" || !code.contains("linkme"), "{name} knows linkme");
        assert!(name == "registry.rs" || !code.contains("inventory::"), "{name} knows inventory");
        let settles = ["acker.ack()", "Acker::ack", "acker.reject(", "Acker::reject"];
        let settles = settles.iter().any(|call| code.contains(call));
        assert!(name == "worker/settle.rs" || !settles, "{name} settles");
    }
}

/// The arguments of a macro call, of which `code` is what follows the opening parenthesis.
fn arguments(code: &str) -> Vec<String> {
    let (mut arguments, mut depth, mut in_text, mut escaped) = (vec![String::new()], 0, false, false);
    for c in code.chars() {
        if in_text {
            in_text = c != '"' || escaped;
            escaped = c == '\\' && !escaped;
        } else {
            match c {
                '"' => in_text = true,
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' if depth == 0 => break,
                ')' | ']' | '}' => depth -= 1,
                ',' if depth == 0 => {
                    arguments.push(String::new());
                    continue;
                }
                _ => {}
            }
        }
        arguments.last_mut().unwrap().push(c);
    }
    arguments
        .iter()
        .map(|argument| argument.trim().to_owned())
        .filter(|argument| !argument.is_empty())
        .collect()
}

/// Whether an argument of a line of the log quotes nobody: a name, a number or a time of our own, or a text that names
/// constants at most.
fn quotes_nobody(argument: &str) -> bool {
    const OWN: [&str; 15] = [
        "parent",
        "timeout",
        "late",
        "target",
        "offset",
        "attempt",
        "attempts",
        "deliveries",
        "capacity",
        "handled",
        "events",
        "failed",
        "percent",
        "rate",
        "elapsed",
    ];
    const OWN_TIMES: [&str; 3] = ["?delay", "?pass.elapsed", "remaining"];
    let name = argument.split([' ', '=', ':']).next().unwrap();
    let constant = |text: &str| text.chars().all(|c| c.is_ascii_uppercase() || "_ :?".contains(c));
    if let Some(text) = argument.strip_prefix('"') {
        return text.split('{').skip(1).all(|part| constant(part.split('}').next().unwrap()));
    }
    OWN.contains(&name)
        || OWN_TIMES.contains(&name)
        || argument.ends_with(".len()")
        || argument.starts_with("if last")
        || argument.starts_with("counted(")
        || argument == "(LOOKS - 1)"
}

#[test]
fn every_line_of_the_log_passes_text_of_others_through_printable() {
    let mut lines = 0;
    for krate in ["eventbus-core", "brokers/eventbus-sqlite"] {
        for (path, code) in sources_of(krate) {
            if path.ends_with("log.rs") {
                continue;
            }
            for level in
                ["trace!(", "debug!(", "info!(", "warn!(", "error!(", "_span!(", "eprintln!(", "println!("]
            {
                for call in code.split(level).skip(1) {
                    lines += 1;
                    for argument in arguments(call) {
                        let escaped = argument.contains("printable(");
                        assert!(
                            escaped || quotes_nobody(&argument),
                            "{}: `{argument}` of a line that is written may hold text of others: \
                             `%printable(…)`, or make it known here as our own",
                            path.display()
                        );
                    }
                }
            }
        }
    }
    assert!(lines > 25, "the lines were found: {lines}");
}

#[test]
fn every_line_of_the_log_survives_a_subscriber_that_panics() {
    for krate in ["eventbus-core", "brokers/eventbus-sqlite"] {
        for (path, code) in sources_of(krate) {
            for line in ["trace!(", "debug!(", "info!(", "warn!(", "error!("] {
                let bare = code.contains(&format!("tracing::{line}"));
                assert!(!bare || path.ends_with("log.rs"), "{}: write `log::{line}`", path.display());
            }
        }
    }
}

#[test]
fn panics_of_others_are_caught_in_one_file() {
    for (path, code) in sources() {
        // What a file tests about panics is no call into code of others.
        let code = code.split("#[cfg(all(test").next().unwrap();
        let caught = code.contains("catch_unwind") || code.contains("spawn_blocking");
        assert!(!caught || path.ends_with("foreign.rs"), "{} catches panics by itself", path.display());
    }
}

/// Where code of others is called by name: each of these calls stands inside of a call of `foreign`.
#[test]
fn code_of_others_is_called_through_one_file() {
    const CALLS: [&str; 10] = [
        ".poll_receive(",
        "settler.holds(",
        "settler.release(",
        ".attempted(",
        ".published(",
        " hook(",
        "tell(&progress)",
        "handler.admit(",
        "broker.publish(",
        "broker.publish_all(",
    ];
    let mut found = [0; CALLS.len()];
    for (path, code) in sources() {
        if module(&path) == "memory" || path.ends_with("pace.rs") || path.starts_with("broker/mod.rs") {
            // Brokers of our own, and what is put around one.
            continue;
        }
        for (call, found) in CALLS.iter().zip(&mut found) {
            for (place, _) in code.match_indices(call) {
                let line = code[..place].rfind('\n').unwrap_or(0);
                let statement = &code[line..place];
                *found += 1;
                assert!(statement.contains("foreign::"), "{}: {call} is called by itself", path.display());
            }
        }
    }
    assert!(found.iter().all(|found| *found > 0), "the calls were found: {found:?}");
}
