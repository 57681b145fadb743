//! Crashes: copies of a log's files at a moment, which have to agree with what was known at that moment.

use super::scenario::{Noted, Notes, may_begin, number, receive, request};
use crate::SqliteBroker;
use eventbus_core::broker::Broker;
use rusqlite::Connection;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// The files of a log as a crash leaves them.
pub(super) struct Crash {
    folder: TempDir,
    acknowledged: BTreeSet<u64>,
    /// What was settled, or about to be.
    settled: BTreeSet<(String, u64)>,
}

impl Crash {
    /// The program crashes now, for all that the copy knows.
    pub(super) fn now(log: &Path, notes: &Notes) -> Self {
        // What was acknowledged before has to be there; what is there was settled before, or meanwhile.
        let Noted { acknowledged, .. } = notes.now();
        let folder = tempfile::tempdir().unwrap();
        for end in ["", "-wal"] {
            let from = PathBuf::from(format!("{}{end}", log.display()));
            std::fs::copy(from, folder.path().join(format!("log.db{end}"))).unwrap();
        }
        let Noted { settled, .. } = notes.now();
        Self { folder, acknowledged, settled }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("log.db")
    }

    /// Nothing counts as settled that was not, no dead letter is unsettled, and one event at most is to blame.
    pub(super) fn check(&self) {
        let connection = Connection::open(self.path()).unwrap();
        let pairs = |sql: &str| -> Vec<(i64, i64)> {
            let mut statement = connection.prepare(sql).unwrap();
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
            rows.map(Result::unwrap).collect()
        };
        let alone = pairs("select offset, crashes from suspect where begun = 2");
        assert!(alone.len() <= 1, "{alone:?} were alone in a handler");
        let numbers: BTreeMap<i64, u64> =
            pairs("select offset, cast(cast(payload as text) as integer) from event")
                .into_iter()
                .map(|(offset, number)| (offset, u64::try_from(number).unwrap()))
                .collect();
        for group in ["a", "b"] {
            let of = |sql: &str| pairs(&sql.replace("?", group));
            let place = of("select cursor, reached from subscription where \"group\" = '?'");
            let Some((cursor, reached)) = place.first().copied() else { continue };
            let rows: BTreeSet<i64> = of("select d.offset, d.republished from delivery d \
                 join subscription s on s.id = d.subscription where s.\"group\" = '?' and not d.republished")
            .into_iter()
            .map(|(offset, _)| offset)
            .collect();
            assert!(
                rows.iter().all(|row| (cursor + 1..=reached).contains(row)),
                "{group}: {cursor} {rows:?} {reached}"
            );
            let settled: BTreeSet<u64> = numbers
                .iter()
                .filter(|(offset, _)| **offset <= reached && !rows.contains(offset))
                .map(|(_, number)| *number)
                .collect();
            for number in settled {
                let known = self.settled.contains(&(group.to_owned(), number));
                assert!(known, "{group} has not settled {number}, and the file says so");
            }
            for (offset, _) in of("select offset, id from dead_letter where \"group\" = '?'") {
                let settled = offset <= reached && !rows.contains(&offset);
                assert!(settled, "{group} has a dead letter of {offset}, and has not settled it");
            }
        }
    }

    /// What the file says of suspects.
    fn suspects(&self, what: &str) -> i64 {
        let file = Connection::open(self.path()).unwrap();
        let sql = format!("select cast({what} as integer) from suspect");
        file.query_row(&sql, [], |row| row.get(0)).unwrap()
    }

    /// The next program handles what was unfinished, and no dead letter once more.
    pub(super) async fn resume(self) {
        let connection = Connection::open(self.path()).unwrap();
        let letters: BTreeSet<(String, i64)> = {
            let mut statement = connection.prepare("select \"group\", offset from dead_letter").unwrap();
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
            rows.map(Result::unwrap).collect()
        };
        drop(connection);
        let before = self.suspects("total(crashes)");
        let broker = SqliteBroker::open(self.path()).await.unwrap();
        let mut handled = self.settled.clone();
        for group in ["a", "b"] {
            let mut deliveries = broker.subscribe(request(group)).await.unwrap();
            assert!(self.suspects("total(crashes)") <= before + 1, "one is charged with the crash at most");
            loop {
                let settled = broker.settled().unwrap();
                let received = tokio::select! {
                    received = receive(&mut deliveries) => received,
                    () = settled => break,
                };
                for delivery in received {
                    let offset = i64::try_from(delivery.receipt.offset.get()).unwrap();
                    let letter = letters.contains(&(group.to_owned(), offset));
                    assert!(!letter, "{group} is delivered the dead letter of {offset}");
                    assert!(may_begin(&delivery).await);
                    handled.insert((group.to_owned(), number(&delivery.receipt.envelope)));
                    delivery.settler.ack(delivery.receipt).await.unwrap();
                }
            }
            for number in &self.acknowledged {
                assert!(handled.contains(&(group.to_owned(), *number)), "{group} has never seen {number}");
            }
        }
        tokio::time::timeout(Duration::from_secs(60), broker.close()).await.unwrap().unwrap();
        assert_eq!(self.suspects("count(*)"), 0, "what has ended is noted no more");
    }
}
