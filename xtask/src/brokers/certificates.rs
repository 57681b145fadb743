//! A certificate authority of the tests, and a certificate for `localhost` and 127.0.0.1; made once.

use super::install::{Installer, run};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

const EXTENSIONS: &str = "\
basicConstraints=critical,CA:FALSE
extendedKeyUsage=serverAuth,clientAuth
subjectAltName=DNS:localhost,IP:127.0.0.1
";

/// The files.
#[derive(Debug, Clone)]
pub(super) struct Certificates {
    /// What clients trust.
    pub(super) authority: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Certificates {
    pub(super) fn of(home: &Path) -> Self {
        let file = |name: &str| home.join("tls").join(name);
        Self { authority: file("ca.pem"), certificate: file("server.pem"), key: file("server.key") }
    }

    /// Makes them where they are not there yet.
    pub(super) fn made(installer: &Installer) -> io::Result<Self> {
        let certificates = Self::of(installer.home());
        installer.once("tls", |folder| {
            installer.needs("openssl", "openssl")?;
            let openssl = |arguments: &str| {
                run(Command::new("openssl").args(arguments.split(' ')).current_dir(folder), folder)
            };
            fs::write(folder.join("extensions"), EXTENSIONS)?;
            openssl(
                "req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=eventbus-tests -keyout ca.key -out ca.pem \
                 -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign",
            )?;
            openssl("req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr")?;
            openssl("x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 -extfile extensions \
                 -out server.pem",
            )
        })?;
        Ok(certificates)
    }
}
