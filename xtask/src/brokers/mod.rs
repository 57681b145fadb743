//! `cargo xtask brokers`: the servers that tests and benchmarks need, on a bare machine.
//!
//! Everything is under `target/brokers`: what was installed, data, logs, the ids of processes, and ports. Servers listen
//! on the loopback only. An *instance* is a set of servers of its own, so that a test that kills its server does not
//! disturb the others.

mod aws;
mod beside;
mod certificates;
mod environment;
mod fauxqs;
mod install;
mod kafka;
mod kind;
mod nats;
mod place;
mod process;
mod python;
mod rabbitmq;
mod ready;
mod redis;
mod server;

pub(crate) use beside::Beside;

use install::Installer;
use kind::{Address, KINDS, Kind};
use server::{Condition, Data, Server, Times};
use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

pub(crate) const USAGE: &str = "\
cargo xtask brokers up|down|env|kill|pause|continue|starve|feed|restart|status [NAME…] [--instance NAME] [--keep]
  up                install and begin servers, with fresh data; those that run already are left as they are
  down              end them; their data stays until the next `up`
  env               print what tests read, as `export NAME=value`
  kill              kill -9; `restart` begins them again, with their data and on their ports
  pause, continue   stop them where they are, and let them go on
  starve, feed      make a server short of memory (rabbitmq) or of disk (kafka), and let it be as before
  status            tell how they are, and where
  NAME              nats, redis, valkey, rabbitmq, kafka, aws, and for `up` and `env` also python: their clients
                    (default: all)
  --instance NAME   servers of their own beside the others (default: main)
  --keep            `up` keeps the data and the ports of before";

/// Installs what the workspace is built with beside Rust, where it is missing: the headers for the client of Kafka.
pub(crate) fn build_needs() -> io::Result<()> {
    let installer = Installer::new(&Brokers::here()?.home);
    fs::create_dir_all(installer.home())?;
    installer.headers()
}

/// The instance of those who do not care.
const MAIN: &str = "main";

pub(crate) fn run(arguments: impl Iterator<Item = String>) -> ExitCode {
    let done = Order::read(arguments)
        .map_err(|wrong| io::Error::other(format!("{wrong}\nusage: {USAGE}")))
        .and_then(|order| Brokers::here()?.carry_out(&order));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("== {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Verb {
    Up,
    Down,
    Env,
    Kill,
    Pause,
    Continue,
    Starve,
    Feed,
    Restart,
    Status,
    /// What [`Beside`] begins: takes down what was begun for a run of tests, once its standard input is closed.
    Guard,
}

/// What was asked for.
struct Order {
    verb: Verb,
    kinds: Vec<&'static dyn Kind>,
    /// Whether `kinds` were named, or are all that there are.
    named: bool,
    /// Whether the clients for Python are meant as well.
    python: bool,
    instance: Option<String>,
    data: Data,
}

impl Order {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let verb = match arguments.next().as_deref() {
            Some("up") => Verb::Up,
            Some("down") => Verb::Down,
            Some("env") => Verb::Env,
            Some("kill") => Verb::Kill,
            Some("pause") => Verb::Pause,
            Some("continue") => Verb::Continue,
            Some("starve") => Verb::Starve,
            Some("feed") => Verb::Feed,
            Some("restart") => Verb::Restart,
            Some("status") => Verb::Status,
            Some("guard") => Verb::Guard,
            Some(other) => return Err(format!("there is no `brokers {other}`")),
            None => return Err("`brokers` does not say what to do".to_owned()),
        };
        let mut order =
            Self { verb, kinds: Vec::new(), named: true, python: false, instance: None, data: Data::Fresh };
        while let Some(argument) = arguments.next() {
            match &*argument {
                "--instance" => order.instance = Some(instance(arguments.next())?),
                "--keep" if verb == Verb::Up => order.data = Data::Kept,
                name if name.starts_with('-') => {
                    return Err(format!("`brokers` has no option `{name}` here"));
                }
                python::NAME if matches!(verb, Verb::Up | Verb::Env) => order.python = true,
                name => order.kinds.push(kind::named(name).ok_or_else(|| unknown(name))?),
            }
        }
        if order.kinds.is_empty() && !order.python {
            order.named = false;
            order.python = verb == Verb::Up;
            order.kinds = KINDS.to_vec();
        }
        Ok(order)
    }
}

fn unknown(name: &str) -> String {
    let names: Vec<_> = KINDS.iter().map(|kind| kind.name()).collect();
    format!("there is no server `{name}`, but {}", names.join(", "))
}

/// The name of an instance is that of a folder.
fn instance(name: Option<String>) -> Result<String, String> {
    let name = name.ok_or("`--instance` has no value")?;
    let fits = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_');
    if name.is_empty() || !name.chars().all(fits) {
        return Err(format!("`--instance {name}` should be of letters, digits, `-` and `_`"));
    }
    Ok(name)
}

/// The servers of this checkout.
struct Brokers {
    home: std::path::PathBuf,
}

impl Brokers {
    fn here() -> io::Result<Self> {
        Ok(Self { home: place::home()? })
    }

    /// Whether all of it could be done.
    fn carry_out(&self, order: &Order) -> io::Result<bool> {
        match order.verb {
            Verb::Env => self.env(order),
            Verb::Status => self.status(order),
            Verb::Guard => beside::guard(self).map(|()| true),
            _ => self.change(order),
        }
    }

    /// Does to each of the servers what was asked for, all at once.
    fn change(&self, order: &Order) -> io::Result<bool> {
        let mut servers = Vec::new();
        for server in self.meant(order)? {
            match self.given(&server) {
                Some(url) if order.verb == Verb::Up => {
                    println!("{:<9} is given by the environment: {url}", server.kind().name());
                }
                Some(url) if order.named && order.verb != Verb::Down => {
                    return Err(io::Error::other(format!(
                        "{} was not begun here, but is given by the environment ({url}): only who began it can do \
                         that; `--instance NAME` has servers of its own",
                        server.kind().name()
                    )));
                }
                Some(_) => {}
                None => servers.push(server),
            }
        }
        let done = thread::scope(|scope| {
            let mut threads: Vec<_> =
                servers.iter_mut().map(|server| scope.spawn(|| change(server, order))).collect();
            if order.python {
                threads.push(scope.spawn(|| self.install_python()));
            }
            threads.into_iter().all(|thread| thread.join().is_ok_and(|done| done))
        });
        self.write_environment()?;
        Ok(done)
    }

    /// Installs the clients for Python, and tells of it.
    fn install_python(&self) -> bool {
        match python::install(&self.home) {
            Ok(folder) => println!("{:<9} {}", python::NAME, folder.display()),
            Err(error) => {
                eprintln!("{:<9} {error}", python::NAME);
                return false;
            }
        }
        true
    }

    /// The servers that an order means: what is not named must be there, but for `up`.
    fn meant(&self, order: &Order) -> io::Result<Vec<Server>> {
        let instances = match &order.instance {
            Some(instance) => vec![instance.clone()],
            None if order.named || matches!(order.verb, Verb::Up | Verb::Env) => vec![MAIN.to_owned()],
            None => self.instances()?,
        };
        let mut servers = Vec::new();
        for instance in instances {
            for kind in &order.kinds {
                let server = Server::new(&self.home, *kind, &instance)?;
                let dead_only = order.verb == Verb::Restart;
                let meant = match server.condition()? {
                    _ if order.named || order.verb == Verb::Up => true,
                    Condition::Down => false,
                    Condition::Dead => {
                        dead_only || matches!(order.verb, Verb::Down | Verb::Env | Verb::Status)
                    }
                    Condition::Up | Condition::Paused => true,
                };
                if meant {
                    servers.push(server);
                }
            }
        }
        Ok(servers)
    }

    /// The instances that there ever were.
    fn instances(&self) -> io::Result<Vec<String>> {
        let folder = self.home.join("servers");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry?.file_name().into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The URL of a server that runs already, and is not one of ours.
    fn given(&self, server: &Server) -> Option<String> {
        let main = server.instance() == MAIN;
        let read = |name: &str| std::env::var(name).ok();
        main.then(|| environment::given(server.kind(), read)).flatten()
    }

    fn env(&self, order: &Order) -> io::Result<bool> {
        let mut ours = Vec::new();
        for server in self.meant(order)? {
            // What is given is in the environment as it is.
            if self.given(&server).is_some() {
                continue;
            }
            if server.condition()? == Condition::Down {
                return Err(io::Error::other(format!(
                    "{name} ({instance}) is not up: `cargo xtask brokers up {name} --instance {instance}`",
                    name = server.kind().name(),
                    instance = server.instance(),
                )));
            }
            ours.push(server);
        }
        print!("{}", environment::exports(&environment::variables(&self.home, &ours)?));
        Ok(true)
    }

    fn status(&self, order: &Order) -> io::Result<bool> {
        let servers = self.meant(order)?;
        for server in &servers {
            let condition = match server.condition()? {
                Condition::Down => "down",
                Condition::Up => "up",
                Condition::Paused => "paused",
                Condition::Dead => "dead",
            };
            let (name, instance) = (server.kind().name(), server.instance());
            let told = match (condition, server.outdated()) {
                ("down", _) => String::new(),
                (_, Some(outdated)) => outdated,
                (_, None) => {
                    let all = server.kind().addresses(server).into_iter();
                    all.filter(Address::is_url).map(|address| address.value).collect::<Vec<_>>().join("  ")
                }
            };
            println!("{name:<9} {instance:<9} {condition:<7} {}", told.trim_end());
        }
        if servers.is_empty() {
            println!("no server is up");
        }
        Ok(true)
    }

    fn write_environment(&self) -> io::Result<()> {
        let servers = KINDS.iter().map(|kind| Server::new(&self.home, *kind, MAIN));
        environment::write(&self.home, servers.collect::<io::Result<Vec<_>>>()?)
    }

    fn home(&self) -> &Path {
        &self.home
    }
}

/// Does what was asked for to one server, and tells of it.
fn change(server: &mut Server, order: &Order) -> bool {
    let done = match order.verb {
        Verb::Up => {
            server.up(order.data, beside::this_run().as_deref()).map(|times| told_of_start(times.as_ref()))
        }
        Verb::Restart => server.restart().map(|times| told_of_start(times.as_ref())),
        Verb::Down => server.down().map(|()| "down".to_owned()),
        Verb::Kill => server.kill().map(|()| "killed".to_owned()),
        Verb::Pause => server.pause().map(|()| "paused".to_owned()),
        Verb::Continue => server.resume().map(|()| "goes on".to_owned()),
        Verb::Starve => server.starve(true).map(|()| "is short of memory or of disk".to_owned()),
        Verb::Feed => server.starve(false).map(|()| "has enough again".to_owned()),
        Verb::Env | Verb::Status | Verb::Guard => unreachable!("they change nothing"),
    };
    let name = match server.instance() {
        MAIN => server.kind().name().to_owned(),
        instance => format!("{} ({instance})", server.kind().name()),
    };
    match done {
        Ok(done) => println!("{name:<9} {done}"),
        Err(error) => {
            eprintln!("{name:<9} {error}");
            return false;
        }
    }
    true
}

fn told_of_start(times: Option<&Times>) -> String {
    let Some(Times { installing, starting }) = times else { return "is up already".to_owned() };
    let installed = match installing {
        short if *short < Duration::from_millis(500) => String::new(),
        long => format!(", after {:.1} s of installing", long.as_secs_f64()),
    };
    format!("up in {:.1} s{installed}", starting.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &str) -> Result<Order, String> {
        Order::read(arguments.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn an_order_names_servers_or_means_all() {
        let all = read("up").unwrap();
        assert_eq!(
            (all.verb, all.kinds.len(), all.named, all.data),
            (Verb::Up, KINDS.len(), false, Data::Fresh)
        );
        let one = read("up nats --keep --instance faults").unwrap();
        assert_eq!((one.kinds.len(), one.named, one.data), (1, true, Data::Kept));
        assert_eq!((all.python, one.python), (true, false));
        let clients = read("up python").unwrap();
        assert_eq!((clients.kinds.len(), clients.python), (0, true), "and no server");
        assert_eq!(one.instance.as_deref(), Some("faults"));
    }

    #[test]
    fn a_wrong_order_says_what_is_wrong() {
        for (wrong, word) in [
            ("", "what to do"),
            ("begin", "`brokers begin`"),
            ("up natz", "`natz`, but nats, redis"),
            ("kill python", "`python`, but nats, redis"),
            ("up --instance", "has no value"),
            ("up --instance ../x", "letters"),
            ("kill --keep", "`--keep`"),
        ] {
            let error = read(wrong).err().unwrap();
            assert!(error.contains(word), "{wrong}: {error}");
        }
    }
}
