//! Faults on purpose, in tests of this crate only: every statement and every commit of the writer can be made to fail.

mod crash;
mod scenario;

pub(crate) use scenario::request;

use rusqlite::functions::FunctionFlags;
use rusqlite::trace::{TraceEvent, TraceEventCodes};
use rusqlite::{Connection, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A statement is interrupted. One that writes takes its whole transaction with it, as on a bad or full disk.
    Statement,
    /// A row is refused, which fails the one statement that writes it.
    Row,
    /// A commit is turned into a rollback.
    Commit,
    /// The file cannot grow while a transaction runs.
    Full,
}

/// Lets what a writer does fail, from the n-th time on for a while.
#[derive(Clone, Debug)]
pub(crate) struct Faults(Arc<Plan>);

#[derive(Debug)]
struct Plan {
    fault: Fault,
    /// The first that fails.
    first: i64,
    /// How many times pass before the first that fails.
    pass: AtomicI64,
    /// How many fail.
    burst: i64,
    on: AtomicBool,
    interrupt: AtomicBool,
}

impl Faults {
    /// `burst` times in a row fail, beginning with the `first`, once this is on.
    pub(crate) fn new(fault: Fault, first: i64, burst: i64) -> Self {
        let (on, interrupt) = (AtomicBool::new(false), AtomicBool::new(false));
        Self(Arc::new(Plan { fault, first, pass: AtomicI64::new(first - 1), burst, on, interrupt }))
    }

    /// Begins to count.
    pub(crate) fn turn_on(&self) {
        self.0.on.store(true, SeqCst);
    }

    /// Ends all faults.
    pub(crate) fn turn_off(&self) {
        self.0.on.store(false, SeqCst);
        self.0.interrupt.store(false, SeqCst);
    }

    /// How many times there were at which something may fail.
    pub(crate) fn passed(&self) -> i64 {
        self.0.first - 1 - self.0.pass.load(SeqCst)
    }

    /// Whether this time fails.
    fn strikes(&self, fault: Fault) -> bool {
        if self.0.fault != fault || !self.0.on.load(SeqCst) {
            return false;
        }
        let left = self.0.pass.fetch_sub(1, SeqCst);
        left <= 0 && left > -self.0.burst
    }

    /// A transaction of the writer is about to begin.
    pub(crate) fn before_transaction(&self, connection: &Connection) -> Result<()> {
        if self.0.fault == Fault::Full {
            // It is never smaller than the file.
            let pages: u32 = if self.strikes(Fault::Full) { 1 } else { u32::MAX - 1 };
            connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
        }
        Ok(())
    }

    /// Has the writer's connection fail.
    pub(crate) fn install(&self, connection: &mut Connection) -> Result<()> {
        let faults = self.clone();
        let statement = move |event: TraceEvent<'_>| {
            if matches!(event, TraceEvent::Stmt(..)) && faults.strikes(Fault::Statement) {
                faults.0.interrupt.store(true, SeqCst);
            }
        };
        connection.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(statement))?;
        let faults = self.clone();
        connection.progress_handler(1, Some(move || faults.0.interrupt.swap(false, SeqCst)))?;
        let faults = self.clone();
        connection.commit_hook(Some(move || faults.strikes(Fault::Commit)))?;
        let faults = self.clone();
        let refused = move |_: &mut rusqlite::functions::Context<'_>| Ok(faults.strikes(Fault::Row));
        connection.create_scalar_function("refused", 0, FunctionFlags::SQLITE_UTF8, refused)?;
        for table in ["event", "subscription", "delivery", "dead_letter", "suspect", "mended"] {
            for change in ["insert", "update", "delete"] {
                connection.execute_batch(&format!(
                    "create temp trigger {change}_{table} before {change} on main.{table} when refused() \
                     begin select raise(abort, 'refused on purpose'); end"
                ))?;
            }
        }
        Ok(())
    }
}
