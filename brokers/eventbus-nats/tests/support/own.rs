//! Servers with settings of their own.

use super::{secure, until};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A server of one test, with JetStream, which ends with the test.
pub struct Server {
    child: Child,
    folder: tempfile::TempDir,
    /// Its host and port.
    pub address: String,
}

impl Server {
    /// Begins one with these settings, and these limits of JetStream.
    pub async fn begin(settings: &str, limits: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "listen: \"127.0.0.1:-1\"\nports_file_dir: {0:?}\njetstream {{ store_dir: {0:?}, {limits} }}\n{settings}",
            folder.path()
        );
        let file = folder.path().join("nats.conf");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new(program());
        let child = command.arg("-c").arg(file).stderr(Stdio::null()).spawn().unwrap();
        let ports = folder.path().join(format!("nats-server_{}.ports", child.id()));
        let read = || serde_json::from_slice::<Value>(&std::fs::read(&ports).ok()?).ok();
        until("the server says where it is", || std::future::ready(read().is_some())).await;
        let url = read().unwrap()["nats"][0].as_str().unwrap().to_owned();
        let port = url.rsplit(':').next().unwrap();
        Self { child, folder, address: format!("localhost:{port}") }
    }

    /// The same, with the certificate that all servers for tests have.
    pub async fn with_tls(settings: &str) -> Self {
        let ca = PathBuf::from(secure("EVENTBUS_TEST_CA"));
        let of = |name: &str| ca.with_file_name(name);
        let tls = format!(
            "tls {{ cert_file: {:?}, key_file: {:?} }}\n{settings}",
            of("server.pem"),
            of("server.key")
        );
        Self::begin(&tls, "").await
    }

    /// A folder for what belongs to it.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The program of the server, as `cargo xtask brokers up nats` found or installed it.
fn program() -> PathBuf {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/brokers/installed");
    let found = std::fs::read_dir(installed).into_iter().flatten().flatten();
    let found = found.map(|entry| entry.path().join("bin/nats-server")).find(|path| path.exists());
    found.unwrap_or_else(|| PathBuf::from("nats-server"))
}
