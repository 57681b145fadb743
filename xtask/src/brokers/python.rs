//! The clients of brokers for Python, for services that take part beside ours: no server, but installed beside them.

use super::install::Installer;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `up` and `env` know it by.
pub(super) const NAME: &str = "python";
/// Where tests find the folder with the packages.
pub(super) const VARIABLE: &str = "EVENTBUS_TEST_PYTHON";

const REQUIREMENTS: &str = include_str!("../../../examples/shop/tests/interop/requirements.txt");

/// The folder with the packages, unless the environment names one.
pub(super) fn install(home: &Path) -> io::Result<PathBuf> {
    match given() {
        Some(folder) => Ok(folder),
        None => Installer::new(home).pypi(&name(), packages()),
    }
}

/// The same, where it is there already.
pub(super) fn installed(home: &Path) -> Option<PathBuf> {
    given().or_else(|| Some(home.join(name())).filter(|folder| folder.exists()))
}

fn given() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

fn packages() -> impl Iterator<Item = &'static str> {
    REQUIREMENTS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The folder is of these packages and of this Python, for which some of them are compiled.
fn name() -> String {
    let python = Command::new("python3").arg("--version").output();
    let mut hasher = DefaultHasher::new();
    (REQUIREMENTS, python.map(|output| output.stdout).unwrap_or_default()).hash(&mut hasher);
    format!("installed/python-{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_has_its_version() {
        assert!(packages().count() > 5);
        for package in packages() {
            let (name, version) = package.split_once("==").unwrap_or_else(|| panic!("{package} may be any"));
            assert!(
                !name.is_empty() && version.starts_with(|digit: char| digit.is_ascii_digit()),
                "{package}"
            );
        }
    }
}
