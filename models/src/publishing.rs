//! Publishers, the readers of their queues, and the gate of a bus: scenarios of those who wait in a line.

use crate::gate::{Gate, Refused};
use crate::places::Places;
use shuttle::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use shuttle::sync::{Condvar, Mutex};
use shuttle::thread;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

/// What a thread sleeps on until it is woken.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    ring: Condvar,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        *self.rung.lock().expect("nobody panics with it") = true;
        self.ring.notify_all();
    }
}

/// Polls until there is an answer, as a task does.
fn block_on<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(Arc::clone(&bell));
    loop {
        if let Poll::Ready(answer) = poll(&mut Context::from_waker(&waker)) {
            return answer;
        }
        let mut rung = bell.rung.lock().expect("nobody panics with it");
        while !std::mem::take(&mut *rung) {
            rung = bell.ring.wait(rung).expect("nobody panics with it");
        }
    }
}

fn wake(wakers: Vec<Waker>) {
    wakers.into_iter().for_each(Waker::wake);
}

/// A place in both queues or in none, as a publish to two groups.
fn take_both(queues: &[Arc<Places>; 2], limit: usize) -> Result<(), usize> {
    for (at, queue) in queues.iter().enumerate() {
        if !queue.take(limit) {
            queues[..at].iter().for_each(|queue| wake(queue.give_back(1)));
            return Err(at);
        }
    }
    Ok(())
}

/// Waits for room in both queues: in the line of the one that was full.
fn publish(queues: &[Arc<Places>; 2], limit: usize) {
    let mut line: Option<(usize, u64)> = None;
    block_on(|context| {
        loop {
            if let Some((at, number)) = &mut line {
                *number = queues[*at].line.enter(Some(*number), context.waker().clone());
            }
            match (take_both(queues, limit), line) {
                (Ok(()), _) => return Poll::Ready(()),
                (Err(full), Some((at, _))) if full == at => return Poll::Pending,
                (Err(full), other) => {
                    if let Some((at, number)) = other {
                        queues[at].line.leave(number);
                    }
                    line = Some((full, queues[full].line.enter(None, context.waker().clone())));
                }
            }
        }
    });
    if let Some((at, number)) = line {
        queues[at].line.leave(number);
    }
}

/// A handler's publish fails beside a reader that makes room: whoever waits outside is not forgotten.
pub fn a_publisher_is_not_forgotten_beside_a_publish_that_fails() {
    let queues = [Arc::new(Places::new(2)), Arc::new(Places::new(0))];
    let (of_handler, of_reader) = (Arc::clone(&queues[0]), Arc::clone(&queues[0]));
    let handler = thread::spawn(move || {
        if of_handler.take(2) {
            wake(of_handler.give_back(1));
        }
    });
    let reader = thread::spawn(move || wake(of_reader.give_back(2)));
    publish(&queues, 1);
    handler.join().expect("it ends");
    reader.join().expect("it ends");
}

/// What was pushed into a queue and not taken yet.
#[derive(Default)]
struct Inbox {
    pushed: Mutex<usize>,
    came: Condvar,
}

impl Inbox {
    fn push(&self) {
        *self.pushed.lock().expect("nobody panics with it") += 1;
        self.came.notify_all();
    }

    fn take(&self) {
        let mut pushed = self.pushed.lock().expect("nobody panics with it");
        while *pushed == 0 {
            pushed = self.came.wait(pushed).expect("nobody panics with it");
        }
        *pushed -= 1;
    }
}

/// Publishers to two groups whose queues are full, with room for one event each, a reader of each queue, and somebody
/// who does not wait for long: all publishers are let in.
pub fn publishers_to_two_full_queues_are_all_let_in() {
    let queues = [(); 2].map(|()| Arc::new(Places::new(1)));
    let inboxes = [(); 2].map(|()| Arc::new(Inbox::default()));
    let publishers: Vec<_> = (0..2)
        .map(|_| {
            let (queues, inboxes) = (queues.clone(), inboxes.clone());
            thread::spawn(move || {
                publish(&queues, 1);
                inboxes.iter().for_each(|inbox| inbox.push());
            })
        })
        .collect();
    let impatient = Arc::clone(&queues[1]);
    let impatient = thread::spawn(move || {
        let number = impatient.line.enter(None, Waker::noop().clone());
        impatient.line.leave(number);
    });
    let readers: Vec<_> = queues
        .into_iter()
        .zip(inboxes)
        .map(|(queue, inbox)| {
            thread::spawn(move || {
                // What was there before, and what the first of the two publishes; the other one's may stay.
                wake(queue.give_back(1));
                inbox.take();
                wake(queue.give_back(1));
            })
        })
        .collect();
    publishers.into_iter().for_each(|publisher| publisher.join().expect("it is let in"));
    impatient.join().expect("it ends");
    readers.into_iter().for_each(|reader| reader.join().expect("it ends"));
}

/// Publishes beside a shutdown: what was accepted when those under way are done is all that ever is.
pub fn nothing_is_accepted_after_a_shutdown_has_counted() {
    let (gate, stored) = (Arc::new(Gate::new()), Arc::new(AtomicUsize::new(0)));
    let publishers: Vec<_> = (0..2)
        .map(|_| {
            let (gate, stored) = (Arc::clone(&gate), Arc::clone(&stored));
            thread::spawn(move || {
                let mut accepted = 0;
                for _ in 0..2 {
                    let Ok(passage) = gate.enter(false) else { break };
                    stored.fetch_add(1, SeqCst);
                    drop(passage);
                    accepted += 1;
                }
                accepted
            })
        })
        .collect();
    wake(gate.drain());
    let mut number = None;
    block_on(|context| gate.poll_passed(context, &mut number));
    gate.leave_line(number);
    let counted = stored.load(SeqCst);
    let accepted: usize = publishers.into_iter().map(|publisher| publisher.join().expect("it ends")).sum();
    assert_eq!(accepted, counted, "something was accepted after the bus had counted");
}

/// A publisher that waits for a broker, and the end of the bus: it is told.
pub fn a_publisher_that_waits_learns_of_the_end() {
    let gate = Arc::new(Gate::new());
    let waiting = {
        let gate = Arc::clone(&gate);
        thread::spawn(move || {
            let mut passage = match gate.enter(false) {
                Ok(passage) => passage,
                Err(refused) => return refused,
            };
            block_on(|context| passage.wait(context).map_or(Poll::Pending, Poll::Ready))
        })
    };
    let draining = {
        let gate = Arc::clone(&gate);
        thread::spawn(move || wake(gate.drain()))
    };
    wake(gate.close());
    assert_eq!(waiting.join().expect("it is told"), Refused::Closed);
    draining.join().expect("it ends");
}
