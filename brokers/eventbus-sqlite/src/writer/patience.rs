//! How long the writer waits for another program that writes: long, but not once the log is to be closed.

use crate::broker::Store;
use crate::schema::{BUSY, BUSY_LOOK};
use rusqlite::Connection;
use std::cell::{Cell, RefCell};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How long to wait for another program once the log is to be closed. What cannot be written by then is an error to
/// whoever waits for it, and what was settled meanwhile is delivered again.
const WHILE_CLOSING: Duration = Duration::from_secs(1);

thread_local! {
    /// The log that this thread writes. SQLite's handler is a plain function.
    static LOG: RefCell<Weak<Store>> = const { RefCell::new(Weak::new()) };
    /// Nobody is waited for.
    static WITHOUT: Cell<bool> = const { Cell::new(false) };
}

/// Makes the connection wait as a writer does.
pub(super) fn of_writer(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.busy_handler(Some(|looks| {
        if WITHOUT.get() {
            return false;
        }
        std::thread::sleep(BUSY_LOOK);
        let closing_for = LOG.with_borrow(Weak::upgrade).and_then(|store| store.writes.closing_for());
        let waited = BUSY_LOOK * u32::try_from(looks).unwrap_or(u32::MAX);
        waited < BUSY && closing_for.is_none_or(|since| since < WHILE_CLOSING)
    }))
}

/// Does something that is an error at once where another program writes.
pub(super) fn without<T>(work: impl FnOnce() -> T) -> T {
    WITHOUT.set(true);
    let done = work();
    WITHOUT.set(false);
    done
}

/// From here on, this thread waits less once `store` is to be closed.
pub(super) fn depends_on(store: &Arc<Store>) {
    LOG.set(Arc::downgrade(store));
}
