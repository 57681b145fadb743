//! Where everything is: the folder `target/brokers`, its locks, and the ports that are remembered there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Ports are taken from here: below those that systems give to outgoing connections. A client that tries again and
/// again to reach a server that is down would be given the server's own port some time, and be connected with itself.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// The folder of all servers of this checkout.
pub(super) fn home() -> io::Result<PathBuf> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/brokers");
    fs::create_dir_all(&home)?;
    fs::canonicalize(home)
}

/// Waits for the lock of that name, which is released when the file is dropped, or when this process ends.
pub(super) fn lock(file: &Path) -> io::Result<File> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let lock = File::options().create(true).append(true).open(file)?;
    lock.lock()?;
    Ok(lock)
}

/// Whether `holds` became true in time.
pub(super) fn wait_until(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    loop {
        if holds() {
            return true;
        }
        if began.elapsed() > limit {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The ports of a server, by what each is for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Ports(BTreeMap<String, u16>);

impl Ports {
    /// The ports that `file` remembers, and spare ones for what it does not; all are in the file then.
    pub(super) fn remembered(file: &Path, names: &[&str]) -> io::Result<Self> {
        let mut ports = Self::read(file)?.unwrap_or_default();
        let missing = ports.without(names);
        for (name, port) in missing.iter().zip(spare(missing.len())?) {
            ports.0.insert((*name).to_owned(), port);
        }
        fs::write(file, ports.to_lines())?;
        Ok(ports)
    }

    pub(super) fn read(file: &Path) -> io::Result<Option<Self>> {
        match fs::read_to_string(file) {
            Ok(lines) => Self::from_lines(&lines)
                .map(Some)
                .ok_or_else(|| io::Error::other(format!("{} is damaged: remove it", file.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn must_be_free(&self) -> io::Result<()> {
        for (name, port) in self.all() {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| {
                let advice = "end who has it, or take the server down and up, for other ports";
                io::Error::new(
                    error.kind(),
                    format!("the port {port} ({name}) cannot be had: {error}: {advice}"),
                )
            })?;
        }
        Ok(())
    }

    /// # Panics
    ///
    /// Where a kind of server asks for a port that it does not list.
    pub(super) fn of(&self, name: &str) -> u16 {
        *self.0.get(name).unwrap_or_else(|| panic!("no port is listed as `{name}`"))
    }

    /// Those of the names that have none.
    pub(super) fn without<'a>(&self, names: &[&'a str]) -> Vec<&'a str> {
        names.iter().copied().filter(|name| !self.0.contains_key(*name)).collect()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&str, u16)> {
        self.0.iter().map(|(name, port)| (&**name, *port))
    }

    fn to_lines(&self) -> String {
        self.all().map(|(name, port)| format!("{name}={port}\n")).collect()
    }

    fn from_lines(lines: &str) -> Option<Self> {
        let pair = |line: &str| {
            let (name, port) = line.split_once('=')?;
            Some((name.to_owned(), port.parse().ok().filter(|port| *port > 0)?))
        };
        lines.lines().map(pair).collect::<Option<_>>().map(Self)
    }
}

/// That many ports that nobody listens on.
fn spare(count: usize) -> io::Result<Vec<u16>> {
    // All are held until the last is found, so that none is found twice.
    let mut held = Vec::new();
    for _ in 0..1_000 {
        if held.len() == count {
            break;
        }
        held.extend(TcpListener::bind((Ipv4Addr::LOCALHOST, fastrand::u16(PORTS))));
    }
    if held.len() < count {
        return Err(io::Error::other(format!("of the ports {PORTS:?} no {count} are free")));
    }
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_remembered_and_new_ones_join_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ports");
        let first = Ports::remembered(&file, &["plain", "tls"]).unwrap();
        assert_ne!(first.of("plain"), first.of("tls"));
        let again = Ports::remembered(&file, &["plain", "tls", "monitor"]).unwrap();
        assert_eq!((again.of("plain"), again.of("tls")), (first.of("plain"), first.of("tls")));
        assert_eq!(Ports::read(&file).unwrap().unwrap(), again);
        assert!(again.all().all(|(_, port)| PORTS.contains(&port)));
    }

    #[test]
    fn a_damaged_file_of_ports_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ports");
        for lines in ["plain", "plain=0", "plain=70000", "plain=x"] {
            fs::write(&file, lines).unwrap();
            assert!(Ports::read(&file).is_err(), "{lines}");
        }
        assert_eq!(Ports::read(&folder.path().join("nothing")).unwrap(), None);
    }

    #[test]
    fn spare_ports_differ_and_can_be_listened_on() {
        let all_can = || {
            let ports = spare(20).unwrap();
            let listen = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port));
            ports.iter().map(listen).collect::<Result<Vec<_>, _>>().is_ok()
        };
        // Another program may take one of them meanwhile.
        assert!((0..5).any(|_| all_can()));
    }
}
