//! Which file the log is: one file under all its names, and no other file under its name.

#![cfg(unix)]

mod support;

use eventbus::broker::AuditQuery;
use eventbus::{Bus, Delivery};
use eventbus_sqlite::SqliteBroker;
use rusqlite::Connection;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Log, Ping, Seen, pings, publish_pings, settled, until};
use tokio::sync::Semaphore;

async fn bus(path: &Path) -> Bus {
    bus_with_lease(path, Duration::from_secs(60)).await
}

async fn bus_with_lease(path: &Path, lease: Duration) -> Bus {
    let broker = SqliteBroker::builder(path).lease(lease).open().await.unwrap();
    Bus::builder().without_subscriptions().broker(broker).await.unwrap()
}

/// A bus at `path` that handles the events of one key, slowly.
async fn consumer(path: &Path, seen: &Seen<u64>) -> Bus {
    let bus = bus(path).await;
    let seen = seen.clone();
    let handler = move |delivery: Delivery| {
        let seen = seen.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            seen.push(serde_json::from_slice(delivery.envelope().payload().unwrap()).unwrap());
        }
    };
    bus.on_topic("order.placed", handler).group("mail").await.unwrap();
    bus.start().unwrap();
    bus
}

fn beside(log: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(log);
    name.push(end);
    name.into()
}

/// The lock files beside a log.
fn locks(log: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(log.parent().unwrap()).unwrap().map(|file| file.unwrap().path());
    files.filter(|file| file.to_str().unwrap().contains("-process-")).collect()
}

/// Waits until the lease was renewed so often: meanwhile everybody has looked for groups to take over, and the group has
/// stayed where it is.
async fn until_renewed(connection: &Connection, times: usize) {
    let holder = owner(connection);
    let lease = || -> i64 {
        connection.query_row("select max(leased_until) from subscription", [], |row| row.get(0)).unwrap()
    };
    for _ in 0..times {
        let before = lease();
        until("the lease is renewed", async || {
            assert_eq!(owner(connection), holder, "the group stays where it is");
            lease() != before
        })
        .await;
    }
}

fn owner(connection: &Connection) -> Option<String> {
    connection.query_row("select owner from subscription", [], |row| row.get(0)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn by_whatever_name_it_is_opened_each_event_is_handled_once_and_in_order() {
    let link = |log: &Path, name: &str| {
        let link = log.with_file_name(name);
        std::os::unix::fs::symlink("log.db", &link).unwrap();
        link
    };
    let hard_link = |log: &Path, name: &str| {
        let link = log.with_file_name(name);
        fs::hard_link(log, &link).unwrap();
        link
    };
    let round_about = |log: &Path, name: &str| {
        let folder = log.with_file_name(name);
        fs::create_dir(&folder).unwrap();
        folder.join("../log.db")
    };
    for other_name in [&link as &dyn Fn(&Path, &str) -> PathBuf, &hard_link, &round_about] {
        let (log, seen) = (Log::new(), Seen::new());
        let one = consumer(&log.path(), &seen).await;
        let two = consumer(&other_name(&log.path(), "aside"), &seen).await;
        for number in 0..100u64 {
            let bus = if number % 2 == 0 { &one } else { &two };
            bus.publish_to("order.placed", &number).key("customer").await.unwrap();
        }
        settled(&one).await;
        settled(&two).await;
        assert_eq!(seen.all(), (0..100).collect::<Vec<_>>());
        // Whoever comes next finds the same log by any of its names.
        two.shutdown().await.unwrap();
        one.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_name_in_another_folder_is_refused_with_what_to_do() {
    let (log, elsewhere) = (Log::new(), Log::new());
    let bus = bus(&log.path()).await;
    fs::hard_link(log.path(), elsewhere.path()).unwrap();
    let error = SqliteBroker::open(elsewhere.path()).await.unwrap_err().to_string();
    assert!(error.contains("several names (hard links)") && error.contains("copy"), "{error}");
    publish_pings(&bus, 0..1).await;
}

#[tokio::test]
async fn a_relative_path_means_the_folder_in_which_the_log_was_opened() {
    let (here, there) = (Log::new(), Log::new());
    // The other tests use no relative paths.
    std::env::set_current_dir(here.path().parent().unwrap()).unwrap();
    let broker = SqliteBroker::open("log.db").await.unwrap();
    std::env::set_current_dir(there.path().parent().unwrap()).unwrap();
    let bus = Bus::builder().without_subscriptions().broker(broker).await.unwrap();
    publish_pings(&bus, 0..1).await;
    assert_eq!(bus.audit_log().unwrap().query(AuditQuery::default()).await.unwrap().len(), 1);
    assert!(here.path().exists() && !there.path().exists());
}

#[tokio::test]
async fn every_character_of_a_path_stands_for_itself() {
    let log = Log::new();
    for name in ["with space?.db", "with%20percent.db", "a.db?mode=memory", "#1&2.db", "é.db"] {
        let path = log.path().with_file_name(name);
        let one = bus(&path).await;
        publish_pings(&one, 0..1).await;
        one.shutdown().await.unwrap();
        assert!(path.exists(), "{name}");
        let again = bus(&path).await;
        assert_eq!(again.audit_log().unwrap().query(AuditQuery::default()).await.unwrap().len(), 1, "{name}");
    }
}

#[tokio::test]
async fn what_names_no_file_is_refused_with_what_to_write() {
    for (path, told) in [
        ("", "`memory:`"),
        (":memory:", "`memory:`"),
        ("file:a.db?mode=memory", "the path alone"),
        ("/", "folder"),
    ] {
        let error = SqliteBroker::open(path).await.unwrap_err().to_string();
        assert!(error.contains(told) && error.contains(&format!("`{path}`")), "{path}: {error}");
    }
}

#[tokio::test]
async fn who_only_looks_creates_no_log() {
    let log = Log::new();
    let look = async || SqliteBroker::builder(log.path()).create(false).open().await;
    let error = look().await.unwrap_err().to_string();
    assert!(error.contains("there is no log") && error.contains(log.path().to_str().unwrap()), "{error}");
    assert!(!log.path().exists());
    fs::write(log.path(), "").unwrap();
    assert!(look().await.unwrap_err().to_string().contains("there is no log"));
    assert_eq!(fs::metadata(log.path()).unwrap().len(), 0, "an empty file stays empty");
    publish_pings(&bus(&log.path()).await, 0..1).await;
    look().await.unwrap();
}

/// What happens to the log while it is open, and what is told then.
type Fate = (&'static str, fn(&Path), &'static str);

const FATES: [Fate; 5] = [
    (
        "deleted",
        |log| ["", "-wal", "-shm"].iter().for_each(|end| fs::remove_file(beside(log, end)).unwrap()),
        "deleted or moved",
    ),
    ("moved", |log| fs::rename(log, beside(log, ".moved")).unwrap(), "deleted or moved"),
    (
        "replaced",
        |log| {
            fs::write(beside(log, ".new"), "").unwrap();
            fs::rename(beside(log, ".new"), log).unwrap();
        },
        "another file was put in the place",
    ),
    ("without its -wal", |log| fs::remove_file(beside(log, "-wal")).unwrap(), "-wal` was removed"),
    ("without its -shm", |log| fs::remove_file(beside(log, "-shm")).unwrap(), "-shm` was removed"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_taken_away_takes_no_publish_and_no_read() {
    for (fate, happen, told) in FATES {
        let log = Log::new();
        let bus = bus(&log.path()).await;
        pings(&bus, "pings").await;
        bus.start().unwrap();
        publish_pings(&bus, 0..10).await;
        settled(&bus).await;
        happen(&log.path());
        until("it is noticed", async || bus.publish(&Ping { number: 10 }).await.is_err()).await;
        let error = format!("{:?}", bus.publish(&Ping { number: 10 }).await.unwrap_err());
        assert!(error.contains(told) && error.contains("log.db"), "{fate}: {error}");
        assert!(error.contains("start"), "{fate}: what to do is told: {error}");
        let error = bus.audit_log().unwrap().query(AuditQuery::default()).await.unwrap_err().to_string();
        assert!(error.contains(told), "{fate}: {error}");
        let ended = bus.shutdown().await.unwrap_err().to_string();
        assert!(ended.contains(told), "{fate}: {ended}");
    }
}

/// What the program writes to its log from now on.
fn lines() -> Arc<Mutex<Vec<u8>>> {
    /// Appends to it.
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let lines: Arc<Mutex<Vec<u8>>> = Arc::default();
    let writer = Arc::clone(&lines);
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || Lines(Arc::clone(&writer))).init();
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_moved_back_goes_on_and_what_could_not_be_settled_comes_again() {
    let log = Log::new();
    let bus = bus_with_lease(&log.path(), Duration::from_millis(600)).await;
    let (seen, gate) = (Seen::new(), Arc::new(Semaphore::new(0)));
    let (numbers, held) = (seen.clone(), gate.clone());
    let handler = move |ping: Arc<Ping>| {
        let (numbers, held) = (numbers.clone(), held.clone());
        async move {
            numbers.push(ping.number);
            drop(held.acquire().await.unwrap());
        }
    };
    bus.on(handler).group("moved-back").await.unwrap();
    bus.start().unwrap();
    publish_pings(&bus, 0..1).await;
    until("it is being handled", async || seen.len() == 1).await;
    let lines = lines();
    let away = log.path().with_file_name("away.db");
    fs::rename(log.path(), &away).unwrap();
    until("it is noticed", async || bus.publish(&Ping { number: 1 }).await.is_err()).await;
    gate.add_permits(1_000_000);
    until("it cannot be settled", async || {
        let lines = lines.lock().unwrap();
        let mut lines = std::str::from_utf8(&lines).unwrap().lines();
        lines.any(|line| line.contains("did not take the ack") && line.contains("moved-back"))
    })
    .await;
    fs::rename(&away, log.path()).unwrap();
    until("it goes on", async || bus.publish(&Ping { number: 2 }).await.is_ok()).await;
    until("what was handled meanwhile comes again", async || {
        seen.all().iter().filter(|number| **number == 0).count() == 2
    })
    .await;
    settled(&bus).await;
    assert!(seen.all().contains(&2));
    bus.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_in_the_file_that_was_moved_away() {
    for end in ["", "-wal", "-shm"] {
        let log = Log::new();
        let bus = bus(&log.path()).await;
        publish_pings(&bus, 0..10).await;
        let away = Log::new();
        match end {
            "" => fs::rename(log.path(), away.path()).unwrap(),
            end => fs::rename(beside(&log.path(), end), beside(&away.path(), end)).unwrap(),
        }
        let mut unanswered = 0;
        until("it is noticed", async || {
            unanswered += u64::from(bus.publish(&Ping { number: 10 }).await.is_ok());
            bus.publish(&Ping { number: 10 }).await.is_err()
        })
        .await;
        bus.shutdown().await.unwrap_err();
        let found = if end.is_empty() { away.path() } else { log.path() };
        let connection = Connection::open(found).unwrap();
        let events: u64 = connection.query_row("select count(*) from event", [], |row| row.get(0)).unwrap();
        assert!(events >= 10 + unanswered, "{end}: {events} of {}", 10 + unanswered);
        let sound: String = connection.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(sound, "ok");
    }
}

#[tokio::test]
async fn a_second_program_does_not_open_a_log_whose_write_ahead_log_was_swept_away() {
    for end in ["-wal", "-shm"] {
        let log = Log::new();
        let _bus = bus(&log.path()).await;
        fs::remove_file(beside(&log.path(), end)).unwrap();
        let error = SqliteBroker::open(log.path()).await.unwrap_err().to_string();
        assert!(error.contains(end) && error.contains("end that program first"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_lock_file_is_swept_away_keeps_its_groups_and_locks_again() {
    let log = Log::new();
    let lease = Duration::from_millis(1_500);
    let one = bus_with_lease(&log.path(), lease).await;
    let first = pings(&one, "pings").await;
    one.start().unwrap();
    let two = bus_with_lease(&log.path(), lease).await;
    let second = pings(&two, "pings").await;
    two.start().unwrap();
    let connection = Connection::open(log.path()).unwrap();
    let before = owner(&connection);
    assert_eq!(locks(&log.path()).len(), 2);
    locks(&log.path()).iter().for_each(|lock| fs::remove_file(lock).unwrap());
    until("both lock again", async || locks(&log.path()).len() == 2).await;
    until_renewed(&connection, 3).await;
    assert_eq!(owner(&connection), before);
    publish_pings(&one, 0..10).await;
    settled(&one).await;
    assert_eq!((first.len(), second.len()), (10, 0));
}

/// Runs the test of this name in a process of its own, in which `ROLE` says so. `true`: this is that process.
fn in_a_process(test: &str, log: &Path, role: &str) -> bool {
    if std::env::var_os("ROLE").is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output =
        command.args(["--exact", test, "--nocapture"]).env("ROLE", role).env("LOG", log).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    match role {
        "killed" => assert!(!output.status.success(), "{text}"),
        _ => assert!(output.status.success(), "{text}"),
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn without_file_descriptors_others_are_not_taken_for_ended() {
    let log = Log::new();
    if !in_a_process("without_file_descriptors_others_are_not_taken_for_ended", &log.path(), "poor") {
        return;
    }
    let lease = Duration::from_millis(1_500);
    let one = bus_with_lease(&log.path(), lease).await;
    let first = pings(&one, "pings").await;
    one.start().unwrap();
    let two = bus_with_lease(&log.path(), lease).await;
    let second = pings(&two, "pings").await;
    two.start().unwrap();
    let connection = Connection::open(log.path()).unwrap();
    let before = owner(&connection);
    let limit = Rlimit { current: Some(128), maximum: getrlimit(Resource::Nofile).maximum };
    setrlimit(Resource::Nofile, limit).unwrap();
    let taken: Vec<_> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
    until_renewed(&connection, 3).await;
    assert!(fs::File::open("/dev/null").is_err(), "all are taken until now");
    assert_eq!(owner(&connection), before);
    drop(taken);
    publish_pings(&one, 0..10).await;
    settled(&one).await;
    assert_eq!((first.len(), second.len()), (10, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_program_leaves_nothing_beside_the_log_for_ever() {
    let log = Log::new();
    let name = "a_killed_program_leaves_nothing_beside_the_log_for_ever";
    if std::env::var_os("ROLE").is_some() {
        let path = PathBuf::from(std::env::var_os("LOG").unwrap());
        let bus = bus(&path).await;
        pings(&bus, "pings").await;
        bus.start().unwrap();
        publish_pings(&bus, 0..1).await;
        std::process::abort();
    }
    for _ in 0..3 {
        in_a_process(name, &log.path(), "killed");
    }
    assert!(!locks(&log.path()).is_empty());
    let bus = bus(&log.path()).await;
    assert_eq!(locks(&log.path()).len(), 1, "its own");
    assert_eq!(bus.groups().unwrap().list().await.unwrap().iter().filter(|group| group.active).count(), 0);
    bus.shutdown().await.unwrap();
    assert_eq!(locks(&log.path()), [] as [PathBuf; 0]);
    assert_eq!(fs::metadata(beside(&log.path(), "-wal")).unwrap_err().kind(), ErrorKind::NotFound);
}
