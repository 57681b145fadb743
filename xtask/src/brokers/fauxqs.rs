//! SNS and SQS of a second emulator (fauxqs), which is right about other things than the first one. What it has is lost when
//! it ends.

use super::install::Installer;
use super::kind::{Address, Kind, Program};
use super::ready;
use super::server::Server;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(super) struct Fauxqs;

pub(super) const VERSION: &str = "2.4.1";
/// It needs 22.5 or newer, and on an older one npm takes an old release of it without a word.
const NODE: &str = "22.23.3";

/// The server itself listens on all interfaces, whatever it is told.
const BEGIN: &str = r"import net from 'node:net';
import { pathToFileURL } from 'node:url';

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (options, ...others) {
  return listen.call(this, { ...options, host: '127.0.0.1' }, ...others);
};
const { startFauxqs } = await import(pathToFileURL(process.argv[2]).href);
await startFauxqs({ port: Number(process.argv[3]), logger: false });
";

impl Kind for Fauxqs {
    fn name(&self) -> &'static str {
        "fauxqs"
    }

    fn variable(&self) -> &'static str {
        "FAUXQS"
    }

    fn ports(&self) -> &'static [&'static str] {
        &["plain"]
    }

    /// The folder with its modules, and with the node that it runs on.
    fn install(&self, installer: &Installer) -> io::Result<PathBuf> {
        let packages = [format!("fauxqs@{VERSION}"), format!("node@{NODE}")];
        installer.npm(&format!("installed/fauxqs-{VERSION}"), &packages)
    }

    fn programs(&self, server: &Server, folder: &Path) -> io::Result<Vec<Program>> {
        let port = server.ports().of("plain");
        let script = server.folder().join("begin.mjs");
        fs::write(&script, BEGIN)?;
        let modules = folder.join("node_modules");
        let mut command = Command::new(modules.join(".bin/node"));
        command
            .arg("--no-warnings")
            .arg(script)
            .arg(modules.join("fauxqs/dist/app.js"))
            .arg(port.to_string())
            .current_dir(server.folder());
        Ok(vec![Program {
            name: self.name().to_owned(),
            command,
            ready: Box::new(move || ready::http(port)),
        }])
    }

    fn addresses(&self, server: &Server) -> Vec<Address> {
        vec![Address::plain(format!("http://127.0.0.1:{}", server.ports().of("plain")))]
    }
}
