//! SIGKILL at random instants, and what the log and the notes say in the end.

use crate::child::{RETRIES, Work, is_hopeless};
use crate::notes::{KILLS, Notes, Number, Told};
use rusqlite::Connection;
use std::collections::BTreeSet;
use std::process::Child;
use std::time::{Duration, Instant};

/// How many deliveries of a group may be handled again after a kill.
const REPEATS: usize = 1_024;
const GROUPS: [&str; 3] = ["steady", "failing", "batched"];

pub(crate) fn run() {
    let cycles = setting("EVENTBUS_KILL_CYCLES").unwrap_or(20);
    let seed = setting("EVENTBUS_KILL_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("{cycles} kills from seed {seed} (EVENTBUS_KILL_CYCLES, EVENTBUS_KILL_SEED)");
    let mut random = fastrand::Rng::with_seed(seed);
    let folder = tempfile::tempdir().unwrap();
    let notes = Notes::in_folder(folder.path());
    let began = Instant::now();
    for cycle in 0..cycles {
        let work = Work { publish: true, consume: true, ..Work::new(folder.path(), cycle.to_string()) };
        let mut child = work.start();
        // Some are killed while they open the log.
        let life = if random.u8(..5) == 0 { random.u64(..60) } else { random.u64(60..600) };
        std::thread::sleep(Duration::from_millis(life));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let drain = Work { consume: true, drain: true, ..Work::new(folder.path(), "last") };
    finish(drain.start());
    check(&notes, cycles, began);
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// Waits until a process has ended by itself.
pub(crate) fn finish(mut child: Child) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match child.try_wait().unwrap() {
            Some(status) => return assert!(status.success(), "the last run ended with {status}"),
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            None => {
                child.kill().unwrap();
                panic!("the last run did not settle everything");
            }
        }
    }
}

fn check(notes: &Notes, cycles: u64, began: Instant) {
    let (attempted, acknowledged) = (notes.numbers("attempted"), notes.numbers("acknowledged"));
    let log = Connection::open(notes.log()).unwrap();
    let stored = stored(&log);
    let all: BTreeSet<_> = stored.iter().copied().collect();
    assert_eq!(all.len(), stored.len(), "no event is stored twice");
    let lost: Vec<_> = acknowledged.difference(&all).collect();
    let invented: Vec<_> = all.difference(&attempted).collect();
    assert!(is_ordered(&stored), "events of a key are stored in the order they were published");

    let handled = notes.handled();
    let hopeless: BTreeSet<_> = all.iter().copied().filter(|event| is_hopeless(*event)).collect();
    let (mut handled_in_all, mut repeats, mut most, mut reordered) = (0, 0, 0, 0);
    for group in GROUPS {
        let told = Told::of(&handled, group);
        let mut due = all.clone();
        if group == "failing" {
            due = &due - &hopeless;
        }
        let missed: Vec<_> = due.difference(&told.done).take(10).collect();
        assert!(missed.is_empty(), "{group} did not handle {missed:?}, and perhaps more");
        let foreign: Vec<_> = told.done.difference(&due).take(10).collect();
        assert!(foreign.is_empty(), "{group} handled {foreign:?}, which was not to be handled");
        assert!(told.reordered.is_empty(), "{group} handled {:?} too late", told.reordered);
        assert!(told.miscounted.is_empty(), "{group} counted attempts wrong: {:?}", told.miscounted);
        handled_in_all += told.handled;
        reordered += told.reordered.len();
        repeats += told.repeats.values().sum::<usize>();
        most = told.repeats.values().copied().max().unwrap_or(0).max(most);
    }
    println!(
        "{cycles} cycles: {} published, {} acknowledged, {handled_in_all} handled by {} groups, {repeats} repeats, \
         at most {most} per kill and group, {} lost, {} invented, {reordered} reordered, {} dead letters, {:.1} s",
        attempted.len(),
        acknowledged.len(),
        GROUPS.len(),
        lost.len(),
        invented.len(),
        hopeless.len(),
        began.elapsed().as_secs_f64(),
    );
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    assert!(invented.is_empty(), "never published: {invented:?}");
    assert!(most <= REPEATS, "{most} deliveries of a group were repeated after one kill");
    assert!(!acknowledged.is_empty(), "something was published");
    check_dead_letters(&log, &hopeless);
    let unfinished: i64 = log.query_row("select count(*) from delivery", [], |row| row.get(0)).unwrap();
    assert_eq!(unfinished, 0, "nothing is left to do");
    let damage: String = log.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(damage, "ok");
}

/// The numbers in the log, in its order.
fn stored(log: &Connection) -> Vec<Number> {
    let sql = "select payload ->> 'key', payload ->> 'number' from events where topic = 'number.drawn' order by offset";
    let mut statement = log.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| Ok(Number { key: row.get(0)?, number: row.get(1)? })).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

fn is_ordered(stored: &[Number]) -> bool {
    let mut last_of = std::collections::BTreeMap::new();
    stored.iter().all(|event| last_of.insert(event.key, event.number).is_none_or(|last| last < event.number))
}

fn check_dead_letters(log: &Connection, hopeless: &BTreeSet<Number>) {
    let sql = "select payload ->> 'key', payload ->> 'number', \"group\", attempts, kind from dead_letters";
    let mut statement = log.prepare(sql).unwrap();
    let mut rows = statement.query([]).unwrap();
    let mut found = BTreeSet::new();
    while let Some(row) = rows.next().unwrap() {
        let event = Number { key: row.get(0).unwrap(), number: row.get(1).unwrap() };
        let (group, attempts): (String, u32) = (row.get(2).unwrap(), row.get(3).unwrap());
        let kind: String = row.get(4).unwrap();
        assert_eq!((group.as_str(), kind.as_str()), ("failing", "failed"), "{event:?}");
        assert!(
            (RETRIES + 1..=RETRIES + 1 + KILLS).contains(&attempts),
            "{event:?} after {attempts} attempts"
        );
        assert!(found.insert(event), "{event:?} has one dead letter");
    }
    assert_eq!(&found, hopeless, "what was given up is kept");
}
