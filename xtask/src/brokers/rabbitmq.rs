//! RabbitMQ 4. Where the machine has an older one or none, it comes from a Debian that has it, in a folder of its own.

use super::install::Installer;
use super::kind::{Address, Kind, PASSWORD, Program, USER};
use super::ready;
use super::server::Server;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub(super) struct RabbitMq;

/// What Debian 13 has.
#[cfg(test)]
pub(super) const VERSION: &str = "4.0.5";
const DEBIAN: &str = "trixie";
const OLDEST: &str = "4.0";

/// Where Debian puts the program.
const PROGRAM: &str = "usr/lib/rabbitmq/bin/rabbitmq-server";
/// What the program is told things with. The one on the path would do so as another user, who has another cookie.
const CONTROL: &str = "/usr/lib/rabbitmq/bin/rabbitmqctl";

const NODE: &str = "rabbit@localhost";
/// With more in use it takes no publishes.
const MEMORY: &str = "1GB";

/// `guest` and the password of [`USER`], salted and hashed as the server keeps them.
const GUEST_HASH: &str = "AQIDBEMMOXwY6PKx/JKP9PAqfsb4ozuD0Ta3pxxa9gEYBMmD";
const PASSWORD_HASH: &str = "AQIDBDB9kM21iEUzN1lZ+6VReCsdNqS0sERdAQTcY6Xs3PMz";

/// Nobody else is to reach it; and what is held for too long is found within a second of its time, not within a minute.
const ARGUMENTS: &str = "-kernel inet_dist_use_interface {127,0,0,1} -rabbit channel_tick_interval 1000";

/// Nobody else may see what is mounted: it is gone when the server is. `/proc` is read by its memory monitor.
const INSIDE: &str = r#"
root=$1 folder=$2
shift 2
mount -t proc proc "$root/proc" && mount --bind "$folder" "$root/srv" && exec chroot "$root" "$@"
"#;

/// The port mapper would go on in a session of its own where the server begins it; so it is one of the group.
const WITH_PORT_MAPPER: &str = r#"
epmd -port "$ERL_EPMD_PORT" &
until epmd -port "$ERL_EPMD_PORT" -names >/dev/null 2>&1; do sleep 0.05; done
exec "$0"
"#;

impl Kind for RabbitMq {
    fn name(&self) -> &'static str {
        "rabbitmq"
    }

    fn variable(&self) -> &'static str {
        "AMQP"
    }

    fn ports(&self) -> &'static [&'static str] {
        &["plain", "tls", "mapper", "distribution"]
    }

    /// The root of the system that has the program.
    fn install(&self, installer: &Installer) -> io::Result<PathBuf> {
        let version = |text: &str| text.trim().split('-').next().map(str::to_owned);
        let query = ["-W", "-f", "${Version}", "rabbitmq-server"];
        if installer.on_path("dpkg-query", &query, version, OLDEST).is_some() {
            return Ok(PathBuf::from("/"));
        }
        installer.other_debian(DEBIAN, &["rabbitmq-server"])
    }

    fn programs(&self, server: &Server, root: &Path) -> io::Result<Vec<Program>> {
        let folder = server.folder();
        let inside = root != Path::new("/");
        let home = if inside { Path::new("/srv") } else { folder };
        let tls = server.tls();
        for file in [&tls.authority, &tls.certificate, &tls.key] {
            fs::copy(file, folder.join(file.file_name().unwrap_or_default()))?;
        }
        fs::write(folder.join("enabled_plugins"), "[].\n")?;
        fs::write(folder.join("rabbitmq.conf"), config(server, home))?;
        fs::write(folder.join("definitions.json"), definitions())?;

        let mut command = if inside {
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", INSIDE, "sh"]).args([root, folder]);
            command.args(["sh", "-c", WITH_PORT_MAPPER]).arg(Path::new("/").join(PROGRAM));
            command
        } else {
            let mut command = Command::new("sh");
            command.args(["-c", WITH_PORT_MAPPER]).arg(root.join(PROGRAM));
            command
        };
        // Nothing of the environment is to reach the server.
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LANG", "C.UTF-8")
            .env("HOME", home);
        command
            .env("RABBITMQ_NODENAME", NODE)
            .env("RABBITMQ_MNESIA_BASE", home.join("data"))
            .env("RABBITMQ_LOG_BASE", home.join("log"))
            .env("RABBITMQ_CONFIG_FILE", home.join("rabbitmq.conf"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", home.join("enabled_plugins"))
            .env("RABBITMQ_PID_FILE", home.join("server-pid"))
            .env("RABBITMQ_DIST_PORT", server.ports().of("distribution").to_string())
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", ARGUMENTS)
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", server.ports().of("mapper").to_string());
        let port = server.ports().of("plain");
        let ready = Box::new(move || ready::amqp(port));
        Ok(vec![Program { name: "rabbitmq".to_owned(), command, ready }])
    }

    fn addresses(&self, server: &Server) -> Vec<Address> {
        let (plain, tls) = (server.ports().of("plain"), server.ports().of("tls"));
        vec![
            Address::plain(format!("amqp://guest:guest@127.0.0.1:{plain}/%2f")),
            Address::tls(format!("amqps://{USER}:{PASSWORD}@localhost:{tls}/%2f")),
        ]
    }

    fn starve(&self, server: &Server, short: bool) -> io::Result<()> {
        let process = fs::read_to_string(server.folder().join("server-pid"))?;
        let process = process.trim();
        let root = fs::read_link(format!("/proc/{process}/root"))?;
        let inside = root != Path::new("/");
        let mut command = Command::new(if inside { "nsenter" } else { CONTROL });
        if inside {
            command.args(["--target", process, "--mount", "--root"]);
            // The folder of this process is not there.
            command.args(["sh", "-c", "cd / && exec \"$0\" \"$@\"", CONTROL]);
        }
        command.args(["--node", NODE, "set_vm_memory_high_watermark", "absolute"]);
        command.arg(if short { "1MB" } else { MEMORY });
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LANG", "C.UTF-8")
            .env("HOME", if inside { Path::new("/srv") } else { server.folder() })
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", server.ports().of("mapper").to_string());
        let output = command.output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    fn start_limit(&self) -> Duration {
        Duration::from_secs(120)
    }

    fn end_limit(&self) -> Duration {
        Duration::from_secs(30)
    }
}

fn config(server: &Server, home: &Path) -> String {
    let home = home.display();
    format!(
        "listeners.tcp.1 = 127.0.0.1:{}
listeners.ssl.1 = 127.0.0.1:{}
ssl_options.cacertfile = {home}/ca.pem
ssl_options.certfile = {home}/server.pem
ssl_options.keyfile = {home}/server.key
ssl_options.verify = verify_none
load_definitions = {home}/definitions.json
loopback_users = none
vm_memory_high_watermark.absolute = {MEMORY}
disk_free_limit.absolute = 50MB
log.file = false
log.console = true
log.console.level = warning
",
        server.ports().of("plain"),
        server.ports().of("tls"),
    )
}

fn definitions() -> String {
    let user = |name: &str, hash: &str, tags: &[&str]| {
        serde_json::json!({
            "name": name, "password_hash": hash, "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": tags,
        })
    };
    let all = |name: &str| serde_json::json!({ "user": name, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*" });
    serde_json::json!({
        "users": [user("guest", GUEST_HASH, &["administrator"]), user(USER, PASSWORD_HASH, &[])],
        "vhosts": [{ "name": "/" }],
        "permissions": [all("guest"), all(USER)],
        // An exchange whose name begins so has queues that deliver nothing more than a few times, or a stream that soon
        // removes what is old.
        "policies": [{
            "vhost": "/", "name": "limited", "pattern": "^limited", "apply-to": "quorum_queues", "priority": 0,
            "definition": { "delivery-limit": 2 },
        }, {
            "vhost": "/", "name": "retained", "pattern": "^retained", "apply-to": "streams", "priority": 0,
            "definition": { "max-length-bytes": 40_000, "stream-max-segment-size-bytes": 10_000 },
        }],
    })
    .to_string()
}
