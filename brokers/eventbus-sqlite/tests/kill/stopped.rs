//! SIGSTOP: a process that does not answer, and comes back.

use crate::child::Work;
use crate::notes::{Notes, Told, What};
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

const LEASE: Duration = Duration::from_secs(4);
/// How long anything may take that has no time of its own.
const PATIENCE: Duration = Duration::from_secs(30);

/// A process that is killed at the end of the test, whatever became of it.
struct Process {
    name: &'static str,
    child: Child,
    notes: Notes,
}

impl Process {
    fn start(folder: &Path, name: &'static str, publish: bool, consume: bool) -> Self {
        let work = Work { publish, consume, lease: LEASE, ..Work::new(folder, name) };
        let process = Self { name, child: work.start(), notes: Notes::in_folder(folder) };
        wait(&format!("{name} is ready"), || process.notes.is_ready(name));
        process
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// How many attempts it has begun in the group `steady`.
    fn begun(&self) -> usize {
        self.notes.handled().iter().filter(|note| note.run == self.name && note.what == What::Begun).count()
    }

    /// Waits until it has begun `more` attempts than it had `before`; how long that took.
    fn wait_for(&self, before: usize, more: usize) -> Duration {
        let since = Instant::now();
        wait(&format!("{} handles {more} more", self.name), || self.begun() >= before + more);
        since.elapsed()
    }

    /// Stops it, and not inside of a transaction: SQLite has one writer, and whoever stops as that one stops all.
    fn stop(&self) {
        let since = Instant::now();
        loop {
            self.signal(Signal::STOP);
            let before = self.notes.numbers("acknowledged").len();
            let until = Instant::now() + Duration::from_millis(300);
            while Instant::now() < until {
                if self.notes.numbers("acknowledged").len() > before + 16 {
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            self.signal(Signal::CONT);
            assert!(since.elapsed() < PATIENCE, "it is always inside of a transaction");
            std::thread::sleep(Duration::from_millis(fastrand::u64(1..20)));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Lets a last process settle everything, and checks that nothing is lost and the order holds.
fn check_the_rest(folder: &Path, publisher: &mut Process, consumer: &mut Process) -> usize {
    publisher.kill();
    consumer.kill();
    let drain = Work { consume: true, drain: true, lease: LEASE, ..Work::new(folder, "last") };
    crate::killed::finish(drain.start());
    let notes = Notes::in_folder(folder);
    let (attempted, acknowledged) = (notes.numbers("attempted"), notes.numbers("acknowledged"));
    let told = Told::of(&notes.handled(), "steady");
    let lost: Vec<_> = acknowledged.difference(&told.done).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    assert!(told.done.is_subset(&attempted), "handled and never published");
    assert!(told.reordered.is_empty(), "handled too late: {:?}", told.reordered);
    acknowledged.len()
}

pub(crate) fn with_another() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = Process::start(folder.path(), "first", false, true);
    let mut publisher = Process::start(folder.path(), "publisher", true, false);
    first.wait_for(0, 100);
    let mut second = Process::start(folder.path(), "second", false, true);
    assert_eq!(second.begun(), 0, "one process handles a group at a time");

    first.stop();
    let taken_over = second.wait_for(0, 1);
    assert!(taken_over < 2 * LEASE, "taken over after {taken_over:?}");
    second.wait_for(0, 100);
    let begun_before = first.begun();
    first.signal(Signal::CONT);
    second.wait_for(second.begun(), 200);
    let zombies = first.begun() - begun_before;
    // Each of its two threads may have stopped between asking and the first line of the handler.
    assert!(zombies <= 2, "{zombies} deliveries were handled by a process that had lost them");

    let before = first.begun();
    second.kill();
    let freed = first.wait_for(before, 1);
    assert!(freed < LEASE / 2, "a process that has ended is noticed at once, not after {freed:?}");
    first.wait_for(before, 100);
    let acknowledged = check_the_rest(folder.path(), &mut publisher, &mut first);
    println!(
        "stopped: taken over after {} ms of a lease of {} ms, {zombies} begun by the one that had lost them; \
         killed: taken over after {} ms; {acknowledged} acknowledged, 0 lost, 0 reordered",
        taken_over.as_millis(),
        LEASE.as_millis(),
        freed.as_millis(),
    );
}

pub(crate) fn alone() {
    let folder = tempfile::tempdir().unwrap();
    let alone = Process::start(folder.path(), "alone", false, true);
    let mut publisher = Process::start(folder.path(), "publisher", true, false);
    alone.wait_for(0, 100);
    alone.stop();
    std::thread::sleep(LEASE + Duration::from_millis(500));
    let before = alone.begun();
    alone.signal(Signal::CONT);
    alone.wait_for(before, 200);
    let acknowledged = check_alone(&alone, &mut publisher);
    println!("stopped without another: {acknowledged} acknowledged, 0 lost, 0 reordered");
}

/// Nobody else may be needed to handle what was at hand when the process was stopped.
fn check_alone(alone: &Process, publisher: &mut Process) -> usize {
    publisher.kill();
    let acknowledged = alone.notes.numbers("acknowledged");
    wait("everything is handled by the process that was stopped", || {
        let told = Told::of(&alone.notes.handled(), "steady");
        acknowledged.is_subset(&told.done)
    });
    let told = Told::of(&alone.notes.handled(), "steady");
    assert!(told.reordered.is_empty(), "handled too late: {:?}", told.reordered);
    acknowledged.len()
}
