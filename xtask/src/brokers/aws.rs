//! SNS and SQS of an emulator (ministack): what it has is lost where it is killed, unlike Amazon's.

use super::install::Installer;
use super::kind::{Address, Kind, Program};
use super::ready;
use super::server::Server;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub(super) struct Aws;

pub(super) const VERSION: &str = "1.5.33";

impl Kind for Aws {
    fn name(&self) -> &'static str {
        "aws"
    }

    fn variable(&self) -> &'static str {
        "AWS"
    }

    fn ports(&self) -> &'static [&'static str] {
        &["plain", "tls"]
    }

    /// The folder with its modules.
    fn install(&self, installer: &Installer) -> io::Result<PathBuf> {
        installer.python("ministack", VERSION)
    }

    /// A listener has TLS or not, so there are two, which know nothing of each other.
    fn programs(&self, server: &Server, modules: &Path) -> io::Result<Vec<Program>> {
        let tls = server.tls();
        let begin = |name: &str, port: &str| -> io::Result<Program> {
            let port = server.ports().of(port);
            let folder = server.folder().join(name);
            fs::create_dir_all(&folder)?;
            let mut command = Command::new("python3");
            command
                .args(["-m", "ministack.app"])
                .current_dir(&folder)
                .env("PYTHONPATH", modules)
                .env("GATEWAY_PORT", port.to_string())
                .env("BIND_HOST", "127.0.0.1")
                // What it is asked to end with is there when it begins again.
                .env("PERSIST_STATE", "1")
                .env("STATE_DIR", folder.join("data"))
                // Listeners of services that nobody here needs.
                .env("IOT_MTLS_ENABLED", "0")
                .env("SFTP_ENABLED", "0");
            Ok(Program { name: name.to_owned(), command, ready: Box::new(move || ready::http(port)) })
        };
        let plain = begin("aws", "plain")?;
        let mut secure = begin("aws-secure", "tls")?;
        secure.command.env("USE_SSL", "1").env("MINISTACK_SSL_CERT", tls.certificate);
        secure.command.env("MINISTACK_SSL_KEY", tls.key);
        let port = server.ports().of("tls");
        secure.ready = Box::new(move || ready::listens(port));
        Ok(vec![plain, secure])
    }

    fn addresses(&self, server: &Server) -> Vec<Address> {
        let (plain, tls) = (server.ports().of("plain"), server.ports().of("tls"));
        vec![
            Address::plain(format!("http://127.0.0.1:{plain}")),
            Address::tls(format!("https://localhost:{tls}")),
        ]
    }

    fn start_limit(&self) -> Duration {
        Duration::from_secs(60)
    }
}
