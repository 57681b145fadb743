//! Deployments of several servers: sentinels that watch a primary and its replica, and a cluster. A test has each for itself,
//! on spare ports and with fresh data, and it ends with the test, whatever ends that.

use redis::{Cmd, FromRedisValue};
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long servers may take to do something.
const PATIENCE: Duration = Duration::from_secs(60);

/// One server of several.
pub struct Node {
    pub port: u16,
    folder: PathBuf,
    sentinel: bool,
    process: Option<Child>,
}

impl Node {
    /// Begins a server, with these lines in its configuration.
    fn begin(sentinel: bool, lines: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (port, number) = (spare_port(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(format!("eventbus-redis-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).expect("there is room for a server");
        let text = format!("bind 127.0.0.1\nport {port}\ndir {folder:?}\n{lines}\n");
        fs::write(folder.join("server.conf"), text).expect("there is room for a server");
        let mut node = Self { port, folder, sentinel, process: None };
        node.resume();
        node
    }

    /// A server that keeps data.
    pub fn store(lines: &str) -> Self {
        Self::begin(false, &format!("appendonly yes\nappendfsync always\nsave \"\"\n{lines}"))
    }

    /// Begins it again, with the data that it has.
    pub fn resume(&mut self) {
        let sentinel = if self.sentinel { "--sentinel" } else { "" };
        // It ends once the other end of its input is closed, as with this process.
        let shell = "redis-server server.conf $0 >server.log 2>&1 & cat >/dev/null; kill -KILL $!";
        let mut command = Command::new("sh");
        command.args(["-c", shell, sentinel]).current_dir(&self.folder);
        let process = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        self.process = Some(process.expect("a shell can be begun"));
        self.until("it answers", |node| node.try_ask::<String>(&redis::cmd("PING")).is_some());
    }

    /// Ends it in the middle of whatever it does.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop(process.stdin.take());
            process.wait().expect("it ends");
        }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn try_ask<T: FromRedisValue>(&self, command: &Cmd) -> Option<T> {
        let client = redis::Client::open(self.url()).expect("an address");
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(1)).ok()?;
        command.query(&mut connection).ok()
    }

    pub fn ask<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = Cmd::new();
        command.arg(words);
        self.try_ask(&command)
            .unwrap_or_else(|| panic!("the server on port {} does not take {words:?}", self.port))
    }

    pub fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let since = Instant::now();
        while !condition(self) {
            let log = || fs::read_to_string(self.folder.join("server.log")).unwrap_or_default();
            assert!(since.elapsed() < PATIENCE, "waited in vain until {what}: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether what it says of itself has this line.
    fn says(&self, words: &[&str], line: &str) -> bool {
        self.try_ask::<String>(Cmd::new().arg(words)).is_some_and(|said| said.lines().any(|one| one == line))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if !std::thread::panicking() {
            // What is left in the folder for temporary files harms nobody.
            drop(fs::remove_dir_all(&self.folder));
        }
    }
}

/// A primary and its replica.
pub fn pair() -> (Node, Node) {
    let primary = Node::store("");
    let replica = Node::store(&format!("replicaof 127.0.0.1 {}", primary.port));
    replica.until("the replica follows", |node| node.says(&["INFO", "replication"], "master_link_status:up"));
    (primary, replica)
}

fn spare_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("there are ports")
        .port()
}

/// A primary and its replica, and three sentinels, which call them `shop`.
pub struct Sentinels {
    pub servers: Vec<Node>,
    sentinels: Vec<Node>,
}

impl Sentinels {
    pub fn up() -> Self {
        let (primary, replica) = pair();
        let lines = format!(
            "sentinel monitor shop 127.0.0.1 {} 2\nsentinel down-after-milliseconds shop 1000\n\
             sentinel failover-timeout shop 5000",
            primary.port
        );
        let sentinels: Vec<_> = (0..3).map(|_| Node::begin(true, &lines)).collect();
        for sentinel in &sentinels {
            sentinel.until("the sentinels know each other and the replica", |node| {
                let known = |what: &str| {
                    let command = Cmd::new().arg("SENTINEL").arg(what).arg("shop").clone();
                    node.try_ask::<Vec<redis::Value>>(&command).unwrap_or_default().len()
                };
                known("SENTINELS") == 2 && known("REPLICAS") == 1
            });
        }
        Self { servers: vec![primary, replica], sentinels }
    }

    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.sentinels.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis+sentinel://{}/shop", hosts.join(","))
    }

    /// Which of the servers the first sentinel takes for the primary.
    pub fn primary(&self) -> usize {
        let (_, port): (String, u16) =
            self.sentinels[0].ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "shop"]);
        self.servers.iter().position(|node| node.port == port).expect("it is one of ours")
    }
}

impl Sentinels {
    /// Has the replica take over, although nothing has failed.
    pub fn fail_over(&self) {
        let before = self.primary();
        self.sentinels[0].until("a failover is begun", |node| {
            node.try_ask::<String>(Cmd::new().arg("SENTINEL").arg("FAILOVER").arg("shop")).is_some()
        });
        self.sentinels[0].until("the replica has taken over", |_| self.primary() != before);
    }

    /// Waits until all sentinels know that a server is a replica by now, and follows.
    pub fn settle(&self, replica: usize) {
        for sentinel in &self.sentinels {
            sentinel.until("the former primary is known as a replica", |node| {
                let mut command = Cmd::new();
                command.arg("SENTINEL").arg("REPLICAS").arg("shop");
                let replicas: Vec<BTreeMap<String, String>> = node.try_ask(&command).unwrap_or_default();
                let port = self.servers[replica].port.to_string();
                replicas.iter().any(|one| {
                    one["port"] == port && one["flags"] == "slave" && one["master-link-status"] == "ok"
                })
            });
        }
    }

    pub fn end_sentinel(&mut self, number: usize) {
        self.sentinels[number].kill();
    }
}

/// A cluster of three primaries, of which each may have a replica.
pub struct Cluster {
    pub nodes: Vec<Node>,
}

/// The last slot of each of three nodes, and one more.
const ENDS: [u16; 4] = [0, 5_461, 10_923, 16_384];

impl Cluster {
    /// `replicas`: each of the three has one, behind them in their order.
    pub fn up(replicas: bool) -> Self {
        let node = |_| {
            Node::store(&format!(
                "cluster-enabled yes\ncluster-config-file nodes.conf\ncluster-node-timeout 2000\ncluster-port {}",
                spare_port()
            ))
        };
        let nodes: Vec<_> = (0..if replicas { 6 } else { 3 }).map(node).collect();
        for (node, ends) in nodes.iter().zip(ENDS.windows(2)) {
            node.ask::<()>(&["CLUSTER", "ADDSLOTSRANGE", &ends[0].to_string(), &(ends[1] - 1).to_string()]);
        }
        for (number, node) in nodes.iter().enumerate() {
            // Each has a time of its own, by which they tell whose claim is newer.
            node.ask::<()>(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]);
        }
        for other in &nodes[1..] {
            let port: (String, String) = other.ask(&["CONFIG", "GET", "cluster-port"]);
            nodes[0].ask::<()>(&["CLUSTER", "MEET", "127.0.0.1", &other.port.to_string(), &port.1]);
        }
        let cluster = Self { nodes };
        cluster.until_ok();
        for number in 3..cluster.nodes.len() {
            let id: String = cluster.nodes[number - 3].ask(&["CLUSTER", "MYID"]);
            cluster.nodes[number].ask::<()>(&["CLUSTER", "REPLICATE", &id]);
        }
        for replica in &cluster.nodes[3..] {
            replica.until("the replica follows", |node| {
                node.says(&["INFO", "replication"], "master_link_status:up")
            });
        }
        cluster
    }

    fn until_ok(&self) {
        for node in &self.nodes {
            let known = format!("cluster_known_nodes:{}", self.nodes.len());
            node.until("the cluster is whole", |node| {
                node.says(&["CLUSTER", "INFO"], "cluster_state:ok") && node.says(&["CLUSTER", "INFO"], &known)
            });
        }
    }

    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    /// The node that has a key, and the slot of that.
    pub fn of(&self, key: &str) -> (usize, u16) {
        let slot: u16 = self.nodes[0].ask(&["CLUSTER", "KEYSLOT", key]);
        (ENDS.iter().rposition(|begin| *begin <= slot).expect("each slot has one"), slot)
    }

    /// Moves a slot with all its keys to another node, as `redis-cli --cluster reshard` does.
    pub fn move_slot(&self, slot: u16, from: usize, to: usize) {
        self.begin_move(slot, from, to);
        self.end_move(slot, from, to);
    }

    fn ids(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.ask(&["CLUSTER", "MYID"])).collect()
    }

    /// Tells two nodes that a slot is being moved; none of its keys is yet.
    pub fn begin_move(&self, slot: u16, from: usize, to: usize) {
        let (ids, text) = (self.ids(), slot.to_string());
        self.nodes[to].ask::<()>(&["CLUSTER", "SETSLOT", &text, "IMPORTING", &ids[from]]);
        self.nodes[from].ask::<()>(&["CLUSTER", "SETSLOT", &text, "MIGRATING", &ids[to]]);
    }

    /// Moves some keys of a slot that is being moved.
    pub fn move_keys(&self, keys: &[String], from: usize, to: usize) {
        let port = self.nodes[to].port.to_string();
        let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
        words.extend(keys.iter().map(String::as_str));
        // One may have expired by now.
        self.nodes[from].ask::<redis::Value>(&words);
    }

    /// Moves what is left of a slot.
    pub fn end_move(&self, slot: u16, from: usize, to: usize) {
        let (ids, text) = (self.ids(), slot.to_string());
        loop {
            let keys: Vec<String> = self.nodes[from].ask(&["CLUSTER", "GETKEYSINSLOT", &text, "10"]);
            if keys.is_empty() {
                break;
            }
            self.move_keys(&keys, from, to);
        }
        for number in [to, from].into_iter().chain((0..3).filter(|number| ![to, from].contains(number))) {
            self.nodes[number].ask::<()>(&["CLUSTER", "SETSLOT", &text, "NODE", &ids[to]]);
        }
    }
}
