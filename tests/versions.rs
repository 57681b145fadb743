//! Two versions of eventbus in one program would each find their own subscribers only, and the others would be missing
//! in silence: cargo refuses such a program, and names both.

use std::path::Path;
use std::process::Command;

#[test]
fn two_versions_in_one_program_are_refused_and_named() {
    let core = Path::new(env!("CARGO_MANIFEST_DIR")).join("eventbus-core");
    let manifest = std::fs::read_to_string(core.join("Cargo.toml")).unwrap();
    let links =
        manifest.lines().find(|line| line.starts_with("links = ")).expect("the manifest says `links`");

    // A later version, as far as the resolver of cargo sees it, and a program whose crates depend on both.
    let folder = tempfile::tempdir().unwrap();
    let package = |folder: &Path, manifest: &str| {
        std::fs::create_dir_all(folder.join("src")).unwrap();
        std::fs::write(folder.join("src/lib.rs"), "").unwrap();
        std::fs::write(folder.join("build.rs"), "fn main() {}").unwrap();
        std::fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    };
    let later =
        format!("[package]\nname = \"eventbus-core\"\nversion = \"0.2.0\"\nedition = \"2024\"\n{links}\n");
    package(&folder.path().join("later"), &later);
    let program = format!(
        "[package]\nname = \"shop\"\nversion = \"1.0.0\"\nedition = \"2024\"\n\
         [workspace]\n\
         [dependencies]\n\
         eventbus-core = {{ path = {core:?} }}\n\
         later = {{ package = \"eventbus-core\", path = \"../later\" }}\n"
    );
    let program_at = folder.path().join("shop");
    package(&program_at, &program);
    // The versions of all else that this program was built with, so that nothing is looked up.
    std::fs::copy(core.join("../Cargo.lock"), program_at.join("Cargo.lock")).unwrap();

    let cargo =
        Command::new(env!("CARGO")).args(["tree", "--offline"]).current_dir(&program_at).output().unwrap();
    let told = String::from_utf8_lossy(&cargo.stderr);
    assert!(!cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stdout));
    for words in ["eventbus-core v0.1.0", "0.2.0", "eventbus-core\"", "Only one package"] {
        assert!(told.contains(words), "{words}: {told}");
    }
}
