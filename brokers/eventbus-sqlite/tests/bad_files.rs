//! Files that are no log, not ours, damaged or out of reach: each is refused by name, with what to do about it.

mod support;

use eventbus::broker::{AuditQuery, Broker, FailureKind};
use eventbus::{Bus, Envelope, Event, State, Topic, subscribe};
use eventbus_sqlite::{Durability, SqliteBroker};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use support::{Log, Ping, Seen, pings, publish_pings, settled};

/// What opening the file at `path` is answered with.
async fn refusal(path: &Path) -> String {
    match SqliteBroker::open(path).await {
        Ok(_) => panic!("it opens"),
        Err(error) => error.to_string(),
    }
}

async fn assert_refused(path: &Path, parts: &[&str]) {
    let refusal = refusal(path).await;
    for part in parts.iter().copied().chain([path.to_str().unwrap()]) {
        assert!(refusal.contains(part), "\"{part}\" is not in: {refusal}");
    }
}

/// A closed log with a few hundred events.
async fn written() -> Log {
    let log = Log::new();
    let bus = log.bus().await;
    publish_pings(&bus, 0..300).await;
    bus.shutdown().await.unwrap();
    log
}

#[tokio::test]
async fn what_is_no_database_is_refused_and_left_alone() {
    let log = Log::new();
    let text = "dear diary, ".repeat(1_000);
    fs::write(log.path(), &text).unwrap();
    assert_refused(&log.path(), &["is not an SQLite database", "choose another file"]).await;
    assert_eq!(fs::read_to_string(log.path()).unwrap(), text);
}

#[tokio::test]
async fn the_database_of_another_program_is_refused_and_left_alone() {
    let log = Log::new();
    Connection::open(log.path()).unwrap().execute_batch("create table photo (name text)").unwrap();
    let before = fs::read(log.path()).unwrap();
    assert_refused(&log.path(), &["of another program", "choose another file"]).await;
    assert_eq!(fs::read(log.path()).unwrap(), before);
}

#[tokio::test]
async fn a_log_of_a_newer_version_is_refused_and_left_alone() {
    let log = written().await;
    Connection::open(log.path()).unwrap().execute_batch("pragma user_version = 99").unwrap();
    assert_refused(&log.path(), &["version 99", "up to version 3", "newer eventbus"]).await;
    let version: i64 = Connection::open(log.path())
        .unwrap()
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    assert_eq!(version, 99);
}

#[tokio::test]
async fn a_log_from_before_the_first_release_is_refused_and_left_alone() {
    let log = written().await;
    Connection::open(log.path()).unwrap().execute_batch("pragma user_version = 1").unwrap();
    let before = log.bytes();
    assert_refused(&log.path(), &["version 1", "before the first release", "choose another file"]).await;
    assert_eq!(log.bytes(), before);
}

#[tokio::test]
async fn a_truncated_log_is_refused() {
    for keep in [50, 4_096, 20_000, 40_000] {
        let log = written().await;
        assert!(log.bytes().len() as u64 > keep);
        let file = fs::File::options().write(true).open(log.path()).unwrap();
        file.set_len(keep).unwrap();
        drop(file);
        let refusal = refusal(&log.path()).await;
        assert!(refusal.contains("restore it from a backup"), "{keep} bytes: {refusal}");
        assert!(refusal.contains(log.path().to_str().unwrap()), "{refusal}");
    }
}

#[tokio::test]
async fn a_log_with_a_damaged_header_is_refused() {
    let log = written().await;
    let mut bytes = log.bytes();
    bytes[..16].fill(0x5a);
    fs::write(log.path(), bytes).unwrap();
    assert_refused(&log.path(), &["is not an SQLite database"]).await;
}

#[tokio::test]
async fn pages_of_noise_are_told_and_the_rest_is_what_was_published() {
    let log = written().await;
    let intact = log.bytes();
    let seed = fastrand::u64(..);
    println!("from seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..30 {
        let mut bytes = intact.clone();
        let page = random.usize(..bytes.len() / 4_096);
        random.fill(&mut bytes[page * 4_096..(page + 1) * 4_096]);
        let noisy = Log::new();
        fs::write(noisy.path(), bytes).unwrap();
        let opened = SqliteBroker::builder(noisy.path()).durability(Durability::Off).open().await;
        let broker = match opened {
            Ok(broker) => broker,
            Err(error) => {
                assert!(error.to_string().contains(noisy.path().to_str().unwrap()), "{error}");
                continue;
            }
        };
        let found = broker.verify().await;
        assert!(found.is_err() || found.is_ok_and(|found| !found.is_empty()), "page {page} of noise is told");
        let mut all = AuditQuery::default();
        all.limit = usize::MAX;
        for recorded in broker.audit_log().unwrap().query(all).await.into_iter().flatten() {
            let number = recorded.envelope.event::<Ping>().unwrap().number;
            assert_eq!(u128::from(number) + 1, recorded.offset.get(), "what is shown was published there");
        }
    }
}

#[tokio::test]
async fn a_damaged_event_becomes_a_dead_letter_and_those_around_it_are_handled() {
    let log = Log::new();
    let bus = log.bus().await;
    drop(pings(&bus, "pings").await);
    bus.start().unwrap();
    bus.shutdown().await.unwrap();
    let bus = log.bus().await;
    publish_pings(&bus, 1..6).await;
    bus.shutdown().await.unwrap();
    // Other bytes, a text that is none, and a topic that nobody has written.
    let damage = "update event set payload = cast('{\"number\":9}' as blob) where offset = 2; \
                  update event set key = cast(x'ff' as text) where offset = 3; \
                  pragma foreign_keys = off; update event set source = 77 where offset = 4;";
    Connection::open(log.path()).unwrap().execute_batch(damage).unwrap();
    let broker = log.broker().await;
    let found = broker.verify().await.unwrap().join("\n");
    for offset in [2, 3, 4] {
        assert!(found.contains(&format!("the event {offset} is damaged")), "{found}");
    }
    let bus = Bus::builder().without_subscriptions().broker(broker).await.unwrap();
    let seen = pings(&bus, "pings").await;
    bus.start().unwrap();
    settled(&bus).await;
    assert_eq!(seen.sorted(), [1, 5]);
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    let damaged: Vec<_> = letters.iter().map(|(_, letter)| (letter.offset.get(), letter.kind)).collect();
    assert_eq!(damaged, [2, 3, 4].map(|offset| (offset, FailureKind::Damaged)));
}

#[tokio::test]
async fn a_list_of_the_audit_log_goes_on_behind_a_damaged_event() {
    let log = Log::new();
    let bus = log.bus().await;
    publish_pings(&bus, 1..10).await;
    bus.shutdown().await.unwrap();
    let damage = "update event set payload = cast('{\"number\":9}' as blob) where offset in (2, 3, 7)";
    Connection::open(log.path()).unwrap().execute_batch(damage).unwrap();
    let broker = log.broker().await;
    let log = broker.audit_log().unwrap();
    let places = async |newest_first, limit| {
        let mut query = AuditQuery::default();
        (query.newest_first, query.limit) = (newest_first, limit);
        let found = log.query(query).await.unwrap();
        found.iter().map(|event| event.offset.get()).collect::<Vec<_>>()
    };
    // Fewer than were asked for would be all there are.
    assert_eq!(places(false, 2).await, [1, 4]);
    assert_eq!(places(false, 5).await, [1, 4, 5, 6, 8]);
    assert_eq!(places(true, 3).await, [9, 8, 6]);
    assert_eq!(places(false, 7).await, [1, 4, 5, 6, 8, 9]);
    assert_eq!(places(false, 0).await, [] as [u128; 0]);
}

/// A handler that takes one event at a time, or some.
#[subscribe("ping.sent", group = "single", retries = 2)]
async fn single(ping: Ping, seen: State<Seen<u64>>) {
    seen.push(ping.number);
}

#[subscribe("ping.sent", group = "batched", batch = 4, retries = 2)]
async fn batched(pings: Vec<Ping>, seen: State<Seen<u64>>) {
    pings.iter().for_each(|ping| seen.push(ping.number));
}

#[tokio::test]
async fn a_damaged_event_is_a_failure_of_a_replay_and_of_a_rebuild() {
    let log = Log::new();
    let bus = log.bus().await;
    publish_pings(&bus, 1..10).await;
    bus.shutdown().await.unwrap();
    let damage = "update event set payload = cast('{\"number\":99}' as blob) where offset in (3, 7)";
    Connection::open(log.path()).unwrap().execute_batch(damage).unwrap();
    let swap = async || Ok::<_, eventbus::BoxError>(());
    for (group, subscriber) in [("single", single::SUBSCRIBER), ("batched", batched::SUBSCRIBER)] {
        let seen: Seen<u64> = Seen::new();
        let builder = Bus::builder().state(seen.clone()).only([subscriber]);
        let bus = builder.broker(log.broker().await).await.unwrap();
        bus.start().unwrap();
        let refusals = [
            bus.replay(group).await.unwrap_err().to_string(),
            bus.rebuild(group).swap(swap).await.unwrap_err().to_string(),
        ];
        for refusal in refusals {
            assert!(refusal.contains("2 of 9 events failed") && refusal.contains("checksum"), "{refusal}");
        }
        let reports = [
            bus.replay(group).skip_failures().await.unwrap(),
            bus.rebuild(group).skip_failures().swap(swap).await.unwrap(),
        ];
        for report in reports {
            assert_eq!((report.events, report.acked, report.failed), (9, 7, 2));
            let told = |letter: &Arc<eventbus::broker::DeadLetter>| {
                (letter.offset.get(), letter.kind, letter.attempts)
            };
            let failures: Vec<_> = report.failures.iter().map(told).collect();
            assert_eq!(failures, [3, 7].map(|offset| (offset, FailureKind::Damaged, 0)));
        }
        assert!(!seen.all().contains(&99), "no handler sees it");
        assert_eq!(bus.dead_letters().unwrap().list().await.unwrap().len(), 0);
        bus.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_group_whose_progress_is_damaged_does_not_start_until_it_is_told_where() {
    let log = written().await;
    let bus = log.bus().await;
    drop(pings(&bus, "pings").await);
    bus.start().unwrap();
    bus.shutdown().await.unwrap();
    // One bit of where it has come to, in the file, and in what is left of earlier rows: 300 becomes 44.
    let mut bytes = log.bytes();
    let row = b"pingsping.sent\x01\x2c\x01\x2c";
    let rows: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(row)).collect();
    assert!(!rows.is_empty(), "the row of the group");
    rows.iter().for_each(|at| bytes[at + row.len() - 2] ^= 1);
    fs::write(log.path(), bytes).unwrap();
    let bus = log.bus().await;
    let handler = |_: Arc<Ping>| async {};
    let error = bus.on(handler).group("pings").await.unwrap_err().to_string();
    assert!(error.contains("`pings`") && error.contains("`seek`") && error.contains("log.db"), "{error}");
    let broker = log.broker().await;
    let found = broker.verify().await.unwrap();
    assert!(found.iter().any(|line| line.contains("`pings`")), "{found:?}");
    let latest = broker.audit_log().unwrap().latest().await.unwrap();
    assert!(broker.groups().unwrap().seek("pings", latest).await.unwrap());
    assert_eq!(broker.verify().await.unwrap(), [] as [&str; 0]);
    bus.on(handler).group("pings").await.unwrap();
}

#[tokio::test]
async fn places_that_cannot_be_written_are_refused() {
    let log = Log::new();
    fs::create_dir(log.path()).unwrap();
    assert_refused(&log.path(), &["is a folder", "choose a file"]).await;
    let file = written().await;
    assert_refused(&file.path().join("log.db"), &["choose a folder that exists"]).await;
    let missing = log.path().with_file_name("missing");
    let create = format!("there is no folder `{0}`; create it (`mkdir -p '{0}'`)", missing.display());
    assert_refused(&missing.join("log.db"), &[&create, "log.db"]).await;
    let within = format!("there is no folder `missing` in `{}`", std::env::current_dir().unwrap().display());
    assert_refused(std::path::Path::new("missing/log.db"), &[&within]).await;
}

/// A file that nobody may write, or a folder that nobody may write to, until it is dropped.
struct Protected<'a>(&'a Path, u32);

impl<'a> Protected<'a> {
    /// Permissions do not apply to root, but this attribute does.
    fn new(path: &'a Path) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(path).unwrap().permissions().mode();
        let mut permissions = fs::metadata(path).unwrap().permissions();
        permissions.set_mode(if path.is_dir() { 0o500 } else { 0o400 });
        fs::set_permissions(path, permissions).unwrap();
        let _ = Command::new("chattr").arg("+i").arg(path).output();
        let written = if path.is_dir() {
            fs::File::create(path.join("probe")).is_ok()
        } else {
            fs::File::options().append(true).open(path).and_then(|mut file| file.write(b"")).is_ok()
        };
        assert!(
            !written,
            "this test protects a file: run it as another user than root, or where `chattr +i` works"
        );
        Self(path, mode)
    }
}

impl Drop for Protected<'_> {
    fn drop(&mut self) {
        use std::os::unix::fs::PermissionsExt;
        let _ = Command::new("chattr").arg("-i").arg(self.0).output();
        fs::set_permissions(self.0, fs::Permissions::from_mode(self.1)).unwrap();
    }
}

#[tokio::test]
async fn a_file_or_folder_that_may_not_be_written_is_refused() {
    let log = written().await;
    drop(log.bytes());
    let path = log.path();
    {
        let _protected = Protected::new(&path);
        assert_refused(&path, &["writ", "folder"]).await;
    }
    let empty = Log::new();
    let (path, folder) = (empty.path(), empty.path().parent().unwrap().to_owned());
    let _protected = Protected::new(&folder);
    assert_refused(&path, &["choose a folder that exists and can be written to"]).await;
}

mod versions {
    use super::*;

    #[derive(Event, Clone, Debug, Serialize, Deserialize)]
    #[event(topic = "user.named")]
    pub(super) struct Old {
        pub(super) name: String,
    }

    #[derive(Event, Clone, Debug, Serialize, Deserialize)]
    #[event(topic = "user.named", version = 2, upcast_from = Old)]
    pub(super) struct New {
        pub(super) first: String,
    }

    impl From<Old> for New {
        fn from(old: Old) -> Self {
            Self { first: old.name.split(' ').next().unwrap_or_default().to_owned() }
        }
    }
}

#[tokio::test]
async fn programs_of_two_versions_share_a_log_and_what_one_does_not_know_is_kept_as_such() {
    use versions::{New, Old};

    let log = Log::new();
    let (old_program, new_program) = (log.bus().await, log.bus().await);
    let (old_names, new_names) = (Seen::new(), Seen::new());
    let (old_seen, new_seen) = (old_names.clone(), new_names.clone());
    let old = move |user: Arc<Old>| {
        let seen = old_seen.clone();
        async move { seen.push(user.name.clone()) }
    };
    old_program.on(old).group("old").await.unwrap();
    let new = move |user: Arc<New>| {
        let seen = new_seen.clone();
        async move { seen.push(user.first.clone()) }
    };
    new_program.on(new).group("new").await.unwrap();
    old_program.start().unwrap();
    new_program.start().unwrap();
    old_program.publish(&Old { name: "Ada Lovelace".into() }).await.unwrap();
    new_program.publish(&New { first: "Grace".into() }).await.unwrap();
    support::until("both have seen both", async || {
        new_names.len() == 2 && old_program.dead_letters().unwrap().list().await.unwrap().len() == 1
    })
    .await;
    settled(&old_program).await;
    assert_eq!(
        (new_names.sorted(), old_names.all()),
        (vec!["Ada".into(), "Grace".into()], vec!["Ada Lovelace".into()])
    );
    let letter = Arc::clone(&old_program.dead_letters().unwrap().list().await.unwrap()[0].1);
    assert_eq!((letter.kind, letter.group.as_str()), (FailureKind::UnknownType, "old"));
}

#[tokio::test]
async fn payloads_of_any_bytes_and_up_to_the_limit_come_back_as_they_were() {
    let log = Log::new();
    let bus = log.bus().await;
    let sizes = [0, 1, 1 << 20, 8 << 20];
    for (number, size) in sizes.into_iter().enumerate() {
        let payload: Vec<u8> = (0..size).map(|at| (at * 31 + number) as u8).collect();
        let mut envelope = Envelope::from_bytes(
            Topic::from_static("blob.stored"),
            "application/octet-stream",
            payload.into(),
        );
        envelope.headers_mut().append("naïve-name", "zürich");
        envelope.headers_mut().append("naïve-name", "\u{1f980}\"\\\n");
        bus.publish_envelope(envelope).await.unwrap();
    }
    bus.shutdown().await.unwrap();
    let broker = log.broker().await;
    let stored = broker.audit_log().unwrap().query(AuditQuery::default()).await.unwrap();
    assert_eq!(stored.len(), sizes.len());
    for (number, (recorded, size)) in stored.iter().zip(sizes).enumerate() {
        let payload = recorded.envelope.payload().unwrap();
        assert!(
            payload.len() == size
                && payload.iter().enumerate().all(|(at, byte)| *byte == (at * 31 + number) as u8)
        );
        let headers: Vec<_> = recorded.envelope.headers().iter().collect();
        assert_eq!(headers, [("naïve-name", "zürich"), ("naïve-name", "\u{1f980}\"\\\n")]);
    }
}
