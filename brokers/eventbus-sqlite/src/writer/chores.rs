//! What the writer looks after between transactions. Each chore has a time when it is due, and one that fails leaves
//! the others alone; it comes again.

use super::Writer;
use crate::claim::{self, Claim};
use crate::lease::Lease;
use crate::let_go::let_go;
use crate::reader::head;
use crate::retention;
use crate::schema::{explain, tidy_up_in_the_end};
use eventbus_core::log;
use eventbus_core::printable::printable;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often idle subscriptions are moved on, and groups that others left are looked for.
const HOUSEKEEPING: Duration = Duration::from_millis(250);
/// How many subscriptions are looked after at once, so that a thousand idle ones do not hold up publishers.
const KEPT_AT_ONCE: usize = 64;

/// When each chore is due.
#[derive(Debug)]
pub(super) struct Chores {
    follow: Instant,
    renew: Instant,
    housekeeping: Instant,
    /// Who is still to be looked after since it was due.
    to_keep: VecDeque<Arc<Claim>>,
    retention: Instant,
}

impl Chores {
    /// All are due.
    pub(super) fn new(now: Instant) -> Self {
        Self { follow: now, renew: now, housekeeping: now, to_keep: VecDeque::new(), retention: now }
    }
}

/// Whether `due` has come; then it comes again after `pause`.
fn is_due(due: &mut Instant, now: Instant, pause: Duration) -> bool {
    let is_due = now >= *due;
    if is_due {
        *due = now + pause;
    }
    is_due
}

impl Writer {
    /// How long to wait at most, before looking around.
    pub(super) fn pause(&self) -> Option<Duration> {
        let settings = &self.store.settings;
        let watching = self.store.is_watched().then_some(settings.poll_interval);
        let keeping = (!retention::is_forever(&settings.retention))
            .then(|| self.chores.retention.saturating_duration_since(Instant::now()));
        [watching, keeping].into_iter().flatten().min()
    }

    /// Does what is due.
    pub(super) fn look_around(&mut self, now: Instant) {
        let poll_interval = self.store.settings.poll_interval;
        if !is_due(&mut self.chores.follow, now, poll_interval) {
            return;
        }
        if self.store.file.check().is_err() {
            let saved = self.save_what_is_gone();
            return self.report(saved);
        }
        if std::mem::take(&mut self.saved_gone) {
            self.report(tidy_up_in_the_end(&self.connection, true));
        }
        let claims = self.store.claims();
        let followed = self.follow(&claims);
        self.report(followed);
        let lease = self.store.settings.lease;
        if !claims.is_empty() && is_due(&mut self.chores.renew, now, lease / 3) {
            self.renew();
        }
        if self.chores.to_keep.is_empty() && is_due(&mut self.chores.housekeeping, now, HOUSEKEEPING) {
            self.chores.to_keep.extend(claims.iter().cloned());
        }
        for _ in 0..KEPT_AT_ONCE {
            let Some(claim) = self.chores.to_keep.pop_front() else { break };
            self.report(self.keep(&claim));
        }
        let forever = retention::is_forever(&self.store.settings.retention);
        let interval = self.store.settings.retention_interval;
        if !forever && is_due(&mut self.chores.retention, now, interval) {
            match self.retention.go_on(&self.connection, &self.store.settings.retention) {
                Ok(true) => self.chores.retention = now,
                Ok(false) => {}
                failed => self.report(failed.map(drop)),
            }
        }
    }

    fn report(&self, result: rusqlite::Result<()>) {
        if let Err(error) = result {
            let error = explain(&self.store.settings.path, error);
            log::warn!(
                target: "eventbus", error = %printable(error), "cannot look after the log; trying again"
            );
        }
    }

    /// Follows other processes: what have they stored, and what published again?
    fn follow(&mut self, claims: &[Arc<Claim>]) -> rusqlite::Result<()> {
        let version = self.read_data_version()?;
        if version == self.data_version {
            return Ok(());
        }
        let head = head(&self.connection)?;
        let republished: HashSet<i64> = claim::republished(&self.connection)?.into_iter().collect();
        if head != self.head {
            let forgotten = self.store.tail().clear();
            forgotten.into_iter().for_each(let_go);
            // Nobody may skip what it was not told of.
            self.call((self.head, head), Vec::new());
            self.head = head;
            self.store.set_head(head);
        }
        self.data_version = version;
        if !republished.is_empty() {
            for claim in claims {
                claim.look_for_republished(&republished);
            }
        }
        Ok(())
    }

    /// Says that this process goes on, and learns what others have taken meanwhile.
    fn renew(&self) {
        let store = Arc::clone(&self.store);
        let given = Lease::of(store.settings.lease);
        let until = store.clock().saturating_add(given.length.unsigned_abs());
        if let Err(error) = store.process.stay() {
            log::warn!(
                target: "eventbus", error = %printable(error),
                "cannot lock a file beside the log; if this process ends, others wait until its lease is over"
            );
        }
        drop(self.store.writes.run_then(
            move |work| {
                let owners = store.process.owners();
                work.connection
                    .prepare_cached("update subscription set leased_until = ?2 where owner glob ?1")?
                    .execute((&owners, given.until))?;
                let mut owned =
                    work.connection.prepare_cached("select owner from subscription where owner glob ?1")?;
                let owned = owned.query_map([&owners], |row| row.get(0))?;
                let owned: HashSet<String> = owned.collect::<rusqlite::Result<_>>()?;
                let claims = store.claims();
                let active = claims.iter().filter(|claim| claim.is_active());
                let active = active.map(|one| (Arc::clone(one), one.epoch(), owned.contains(&one.owner())));
                Ok(active.collect::<Vec<_>>())
            },
            move |active| {
                for (claim, epoch, ours) in active {
                    if !ours {
                        claim.lose(epoch);
                        continue;
                    }
                    claim.hold_until(until);
                    if claim.has_refused() {
                        claim.begin_again();
                    }
                }
            },
        ));
    }

    /// Moves a subscription on that is idle, begins again where deliveries were dropped, takes over what others left, and
    /// leaves what nobody reads.
    fn keep(&self, claim: &Arc<Claim>) -> rusqlite::Result<()> {
        if claim.has_ended() {
            claim.leave();
        } else if claim.is_active() {
            if claim.has_refused() {
                claim.begin_again();
            }
            claim.skip_to(self.head);
            if claim.wants_republished() {
                claim.find_republished();
            }
        } else if claim.may_take_over(&self.connection)? {
            claim.take_over();
        }
        Ok(())
    }
}
