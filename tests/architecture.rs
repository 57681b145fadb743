//! The invariants of ARCHITECTURE.md that can be read off the sources.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules of core, floor by floor; a module uses its own floor and those below.
const FLOORS: [&[&str]; 7] = [
    &["topic", "id", "headers", "codec", "event", "envelope", "trace_context", "error", "lock", "foreign"],
    &["broker", "memory"],
    &["subscription", "backoff"],
    &["publisher", "causation", "observe", "delivery", "extract", "outcome", "state", "handler"],
    &["worker", "middleware"],
    &["registry", "census", "check"],
    &["bus"],
];

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

/// Every source file of core with its path inside of `src` and its text without comments.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("eventbus-core/src");
    let (mut folders, mut sources) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
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
        let settles = code.contains("acker.ack()") || code.contains("acker.reject(");
        assert!(name == "worker/settle.rs" || !settles, "{name} settles");
    }
}
