//! Letting go of events. The value inside of one is of others, and so is its destructor, which may publish on this very
//! log and wait for that: on the thread that writes it would wait for itself. So that thread drops no event: it hands
//! over those of which it has the last reference.

use eventbus_core::{Envelope, foreign};
use std::cell::RefCell;
use std::mem::take;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};

thread_local! {
    /// What the thread that writes is to hand over; none on other threads.
    static LET_GO: RefCell<Option<Vec<Envelope>>> = const { RefCell::new(None) };
}

/// From here on this thread drops no event, and [hands over](hand_over) what it lets go of.
pub(crate) fn never_here() {
    LET_GO.set(Some(Vec::new()));
}

/// Lets go of an event. To be called with no lock held.
pub(crate) fn let_go(event: Arc<Envelope>) {
    // Whoever else has it lets go of it.
    let Some(event) = Arc::into_inner(event) else { return };
    let here = LET_GO.with_borrow_mut(|let_go| match let_go {
        Some(let_go) => {
            let_go.push(event);
            None
        }
        None => Some(event),
    });
    here.into_iter().for_each(discard);
}

/// Hands over what this thread has let go of.
pub(crate) fn hand_over() {
    let events = LET_GO.with_borrow_mut(|let_go| let_go.as_mut().map(take)).unwrap_or_default();
    if events.is_empty() {
        return;
    }
    static ELSEWHERE: OnceLock<Option<Sender<Vec<Envelope>>>> = OnceLock::new();
    let unsent = match ELSEWHERE.get_or_init(start) {
        Some(elsewhere) => elsewhere.send(events).err().map(|unsent| unsent.0),
        None => Some(events),
    };
    // Without a thread they are dropped where they are.
    unsent.into_iter().flatten().for_each(discard);
}

/// One thread drops what all logs of the process let go of.
fn start() -> Option<Sender<Vec<Envelope>>> {
    let (elsewhere, events) = channel();
    let work = move || drop_all(&events);
    std::thread::Builder::new().name("eventbus-let-go".to_owned()).spawn(work).ok().map(|_| elsewhere)
}

fn drop_all(events: &Receiver<Vec<Envelope>>) {
    while let Ok(events) = events.recv() {
        events.into_iter().for_each(discard);
    }
}

fn discard(event: Envelope) {
    foreign::tell("an event's destructor", || drop(event));
}
