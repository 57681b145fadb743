//! A full disk: publishing fails by name, the process lives, and all goes on when there is room again.

#![cfg(target_os = "linux")]

mod support;

use eventbus::Bus;
use eventbus_sqlite::SqliteBroker;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use support::{OrderPlaced, Ping, Seen, pings, settled, until};
use tempfile::TempDir;
use tokio::sync::Semaphore;

/// A small disk of memory, until it is dropped.
struct Disk(TempDir);

impl Disk {
    /// None where this process may not mount one.
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "none"]).arg(folder.path()).output();
        mount.is_ok_and(|mount| mount.status.success()).then_some(Self(folder))
    }

    fn log(&self) -> PathBuf {
        self.0.path().join("log.db")
    }

    /// A file of others, which takes what is left.
    fn filler(&self) -> PathBuf {
        self.0.path().join("filler")
    }

    fn fill(&self) {
        let mut filler = std::fs::File::create(self.filler()).unwrap();
        while std::io::Write::write_all(&mut filler, &[0; 4_096]).is_ok() {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Runs `test` of this binary again where it is allowed to mount: as root of a namespace of its own.
fn run_where_one_may_mount(test: &str) {
    assert!(std::env::var_os("EVENTBUS_MAY_MOUNT").is_none(), "not even there a disk can be mounted");
    let binary = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount"]).arg(&binary).args([
        "--exact",
        test,
        "--nocapture",
    ]);
    let ran = command.env("EVENTBUS_MAY_MOUNT", "1").status();
    assert!(
        ran.is_ok_and(|status| status.success()),
        "this test mounts a small disk: run it as root, or where `unshare --user --mount` is allowed"
    );
}

async fn bus(log: &Path) -> Bus {
    let broker = SqliteBroker::open(log).await.unwrap();
    Bus::builder().without_subscriptions().broker(broker).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_by_name_and_all_goes_on_when_there_is_room() {
    let Some(disk) = Disk::mount() else {
        return run_where_one_may_mount("a_full_disk_refuses_by_name_and_all_goes_on_when_there_is_room");
    };
    let bus = bus(&disk.log()).await;
    let gate = Arc::new(Semaphore::new(0));
    let failed = Seen::new();
    let (opens, fails) = (Arc::clone(&gate), failed.clone());
    bus.on(move |ping: Arc<Ping>| {
        let (opens, fails) = (Arc::clone(&opens), fails.clone());
        async move {
            drop(opens.acquire().await);
            fails.push(ping.number);
            Err::<(), _>("no")
        }
    })
    .group("failing")
    .retries(0)
    .await
    .unwrap();
    let late = Seen::new();
    let (opens, comes) = (Arc::clone(&gate), late.clone());
    bus.on(move |ping: Arc<Ping>| {
        let (opens, comes) = (Arc::clone(&opens), comes.clone());
        async move {
            drop(opens.acquire().await);
            comes.push(ping.number);
        }
    })
    .group("late")
    .await
    .unwrap();
    let seen = pings(&bus, "seeing").await;
    bus.start().unwrap();

    let (mut acknowledged, mut number) = (Vec::new(), 0);
    let mut publish = async |until_refused: bool, count: usize| {
        for _ in 0..count {
            number += 1;
            match bus.publish(&Ping { number }).await {
                Ok(_) => acknowledged.push(number),
                Err(error) if until_refused => return Some(error.to_string()),
                Err(error) => panic!("{error}"),
            }
        }
        None
    };
    assert_eq!(publish(false, 20).await, None);
    disk.fill();
    let refusal = publish(true, 100_000).await.expect("a full disk takes no events");
    let log = disk.log();
    for part in ["disk", "full", "make room", log.to_str().unwrap()] {
        assert!(refusal.contains(part), "{refusal}");
    }
    // Neither acks nor dead letters can be written, and further events fail in the same transactions.
    gate.add_permits(1_000_000);
    until("handlers have answered", async || {
        assert!(publish(true, 1).await.is_some(), "it is still full");
        failed.len() >= 20 && late.len() >= 20
    })
    .await;

    disk.make_room();
    settled(&bus).await;
    assert_eq!(publish(false, 20).await, None);
    settled(&bus).await;
    let letters = bus.dead_letters().unwrap().list().await.unwrap();
    bus.shutdown().await.unwrap();
    assert_eq!(late.sorted(), acknowledged, "what was handled while the disk was full is not handled again");
    assert_eq!(seen.sorted(), acknowledged, "what was acknowledged is handled, and nothing else");
    let mut given_up: Vec<_> =
        letters.iter().map(|(_, letter)| letter.envelope.event::<Ping>().unwrap().number).collect();
    given_up.sort_unstable();
    assert_eq!(given_up, acknowledged, "what a handler gave up is kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_become_a_dead_letter_on_a_full_disk_is_overtaken_by_nothing_of_its_key() {
    let Some(disk) = Disk::mount() else {
        return run_where_one_may_mount(
            "what_cannot_become_a_dead_letter_on_a_full_disk_is_overtaken_by_nothing_of_its_key",
        );
    };
    let bus = bus(&disk.log()).await;
    let (gate, handled) = (Arc::new(Semaphore::new(0)), Seen::new());
    let (opens, seen) = (Arc::clone(&gate), handled.clone());
    bus.on(move |order: Arc<OrderPlaced>| {
        let (opens, seen) = (Arc::clone(&opens), seen.clone());
        async move {
            drop(opens.acquire().await);
            seen.push(order.number);
            if order.number == 0 { Err("poison") } else { Ok(()) }
        }
    })
    .group("ordered")
    .retries(0)
    .await
    .unwrap();
    bus.start().unwrap();
    let order = |customer, number| OrderPlaced { customer, number };
    for number in 0..5 {
        bus.publish(order(1, number)).await.unwrap();
    }
    bus.publish(order(2, 5)).await.unwrap();
    disk.fill();
    until("the disk is full", async || bus.publish(&Ping { number: 0 }).await.is_err()).await;
    gate.add_permits(1_000_000);
    until("both keys were handled", async || handled.len() >= 2).await;
    // Each is answered after its transaction, and the second one begins after the dead letter was given to the writer.
    for _ in 0..2 {
        bus.publish(&Ping { number: 0 }).await.unwrap_err();
    }
    assert!(bus.dead_letters().unwrap().list().await.unwrap().is_empty());
    disk.make_room();
    settled(&bus).await;
    assert_eq!(handled.sorted(), [0, 1, 2, 3, 4, 5], "no handler is asked once more");
    let of_its_key: Vec<_> = handled.all().into_iter().filter(|number| *number != 5).collect();
    assert_eq!(of_its_key, [0, 1, 2, 3, 4]);
    assert_eq!(bus.dead_letters().unwrap().list().await.unwrap().len(), 1);
    bus.shutdown().await.unwrap();
}
