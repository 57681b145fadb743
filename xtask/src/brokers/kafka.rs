//! Apache Kafka in KRaft mode: one process that is broker and controller.

use super::install::{Installer, run};
use super::kind::{Address, Kind, PASSWORD, Program, USER};
use super::ready;
use super::server::Server;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub(super) struct Kafka;

pub(super) const VERSION: &str = "4.4.0";
/// How long files may be where the disk is to be full: those of an index are begun with 10 MB.
const FULL: u64 = 12 << 20;
/// As good as any: clusters never meet.
const CLUSTER: &str = "MkU3OEVBNTcwNTJENDM2Qg";

impl Kind for Kafka {
    fn name(&self) -> &'static str {
        "kafka"
    }

    fn variable(&self) -> &'static str {
        "KAFKA"
    }

    fn ports(&self) -> &'static [&'static str] {
        // At `proxy` nobody listens: it is kept for a proxy of a test.
        &["plain", "controller", "tls", "sasl", "proxied", "proxy"]
    }

    /// The folder with its jars: a Kafka of the machine has scripts, and settings that are not ours.
    fn install(&self, installer: &Installer) -> io::Result<PathBuf> {
        installer.needs("java", "openjdk-17-jre-headless")?;
        installer.maven("org.apache.kafka", "kafka_2.13", VERSION)
    }

    fn programs(&self, server: &Server, jars: &Path) -> io::Result<Vec<Program>> {
        let folder = server.folder();
        let config = folder.join("server.properties");
        let tls = server.tls();
        let key = folder.join("server-both.pem");
        fs::write(&key, fs::read_to_string(tls.key)? + &fs::read_to_string(tls.certificate)?)?;
        fs::write(&config, properties(server, &key, &tls.authority))?;
        let classes = format!("{}/*", jars.display());
        if !folder.join("data").exists() {
            let scram = |hash: &str| format!("SCRAM-SHA-{hash}=[name={USER},password={PASSWORD}]");
            let mut format = Command::new("java");
            format.args(["-XX:TieredStopAtLevel=1", "-cp", &classes, "kafka.tools.StorageTool", "format"]);
            format.args(["-t", CLUSTER, "-c"]).arg(&config);
            format.args(["--add-scram", &scram("512"), "--add-scram", &scram("256")]);
            run(&mut format, folder)?;
        }
        let mut command = Command::new("java");
        command.args(["-Xms256m", "-Xmx768m", "-XX:+UseG1GC", "-cp", &classes, "kafka.Kafka"]).arg(config);
        let port = server.ports().of("plain");
        Ok(vec![Program { name: "kafka".to_owned(), command, ready: Box::new(move || ready::kafka(port)) }])
    }

    fn addresses(&self, server: &Server) -> Vec<Address> {
        let port = |name: &str| server.ports().of(name);
        let sasl = format!("kafka://{USER}:{PASSWORD}@127.0.0.1:{}", port("sasl"));
        vec![
            Address::plain(format!("kafka://127.0.0.1:{}", port("plain"))),
            Address::tls(format!("kafkas://{USER}:{PASSWORD}@localhost:{}", port("tls"))),
            // User and password without TLS.
            Address { ending: "SASL_URL", value: sasl },
            // A client goes on to where the server says that it is. Here it says the port that is kept for a proxy.
            Address { ending: "PROXIED_URL", value: format!("kafka://127.0.0.1:{}", port("proxied")) },
            Address { ending: "PROXY", value: format!("127.0.0.1:{}", port("proxy")) },
        ]
    }

    /// Short of disk: no file may be longer than that. It can be told at once, and needs no rights.
    fn starve(&self, server: &Server, short: bool) -> io::Result<()> {
        server.processes()?.iter().try_for_each(|process| process.limit_files(short.then_some(FULL)))
    }

    fn start_limit(&self) -> Duration {
        Duration::from_secs(120)
    }

    fn end_limit(&self) -> Duration {
        Duration::from_secs(30)
    }
}

fn properties(server: &Server, key: &Path, authority: &Path) -> String {
    let port = |name: &str| server.ports().of(name);
    let (plain, controller, tls, sasl) = (port("plain"), port("controller"), port("tls"), port("sasl"));
    let (proxied, proxy) = (port("proxied"), port("proxy"));
    let mut text = format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller},SASL_SSL://127.0.0.1:{tls},SASL_PLAINTEXT://127.0.0.1:{sasl},PROXIED://127.0.0.1:{proxied}
advertised.listeners=PLAINTEXT://127.0.0.1:{plain},SASL_SSL://localhost:{tls},SASL_PLAINTEXT://127.0.0.1:{sasl},PROXIED://127.0.0.1:{proxy}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,SASL_PLAINTEXT:SASL_PLAINTEXT,PROXIED:PLAINTEXT
sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512,PLAIN
ssl.keystore.type=PEM
ssl.keystore.location={}
ssl.truststore.type=PEM
ssl.truststore.location={}
log.dirs={}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=5
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=5
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=5
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
num.partitions=4
",
        key.display(),
        authority.display(),
        server.folder().join("data").display(),
    );
    for listener in ["sasl_ssl", "sasl_plaintext"] {
        for hash in ["256", "512"] {
            text += &format!(
                "listener.name.{listener}.scram-sha-{hash}.sasl.jaas.config=\
                 org.apache.kafka.common.security.scram.ScramLoginModule required;\n"
            );
        }
        text += &format!(
            "listener.name.{listener}.plain.sasl.jaas.config=\
             org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";\n"
        );
    }
    text
}
