//! A stream that a thread of its own writes to, beside handlers: they go on whether anybody reads what is written or not.

use crate::counted::counted;
use crate::lock::{Lock, Locked, Rank};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar};
use std::time::{Duration, Instant};

/// How many pieces wait for their reader; of more, the oldest are left out.
const WAITING: usize = 1_024;
/// How long a writer waits for its piece to be written, so that lines come in their order beside those of others. Once
/// that was too short, nobody waits until the reader goes on.
const IN_ORDER: Duration = Duration::from_millis(20);

/// The stream; clones write to the same one. What is written to it is never an error: a reader that has left is told no
/// more.
#[derive(Clone)]
pub struct Aside(Arc<Handle>);

/// What all clones share; without them, the thread ends once everything is written.
struct Handle(Arc<Shared>);

struct Shared {
    queue: Lock<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Vec<u8>>,
    /// A piece is on its way.
    writing: bool,
    /// A piece has been on its way for longer than its writer waited.
    stuck: bool,
    left_out: u64,
    /// How many pieces are through.
    written: u64,
    over: bool,
}

impl Aside {
    /// Hands `stream` to a thread. Where pieces were left out, `note` says so in the stream.
    ///
    /// # Errors
    /// Where there is no thread.
    pub fn new(stream: impl Write + Send + 'static, note: bool) -> io::Result<Self> {
        let shared =
            Arc::new(Shared { queue: Lock::new(Rank::LEAF, Queue::default()), changed: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        let write = move || of_thread.write(stream, note);
        std::thread::Builder::new().name("eventbus-output".to_owned()).spawn(write)?;
        Ok(Self(Arc::new(Handle(shared))))
    }

    /// Waits until everything is written. Where there is a `patience`, a reader may be as long as that for each piece, and
    /// ten times as long for all of them.
    pub fn wait(&self, patience: Option<Duration>) {
        let Handle(shared) = &*self.0;
        let mut queue = shared.queue.lock();
        let Some(patience) = patience else { return drop(shared.wait_while(queue, None, Queue::is_busy)) };
        let began = Instant::now();
        while queue.is_busy() {
            let (written, left) = (queue.written, (10 * patience).saturating_sub(began.elapsed()));
            queue = shared.wait_while(queue, Some(patience.min(left)), |queue| {
                queue.is_busy() && queue.written == written
            });
            if queue.written == written {
                break;
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.queue.lock().over = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    /// Waits until `busy` says no, or the time is over.
    fn wait_while<'a>(
        &'a self,
        mut queue: Locked<'a, Queue>,
        patience: Option<Duration>,
        busy: impl Fn(&Queue) -> bool,
    ) -> Locked<'a, Queue> {
        let began = Instant::now();
        while busy(&queue) {
            let left = patience.map(|patience| patience.saturating_sub(began.elapsed()));
            if left.is_some_and(|left| left.is_zero()) {
                break;
            }
            queue = queue.wait(&self.changed, left);
        }
        queue
    }

    /// The thread.
    fn write(&self, mut stream: impl Write, note: bool) {
        let mut open = true;
        let mut queue = self.queue.lock();
        loop {
            let Some(piece) = queue.waiting.pop_front() else {
                if queue.over {
                    return;
                }
                queue = queue.wait(&self.changed, None);
                continue;
            };
            let left_out = std::mem::take(&mut queue.left_out);
            queue.writing = true;
            drop(queue);
            if open {
                let told = if note && left_out > 0 { tell_left_out(&mut stream, left_out) } else { Ok(()) };
                open = told.and_then(|()| stream.write_all(&piece)).and_then(|()| stream.flush()).is_ok();
            }
            queue = self.queue.lock();
            (queue.writing, queue.stuck) = (false, false);
            queue.written += 1;
            self.changed.notify_all();
        }
    }
}

fn tell_left_out(stream: &mut impl Write, left_out: u64) -> io::Result<()> {
    let line = format!("… {} left out here: nobody read them in time\n", counted(left_out, "line"));
    stream.write_all(line.as_bytes())
}

impl Queue {
    fn is_busy(&self) -> bool {
        self.writing || !self.waiting.is_empty()
    }

    fn push(&mut self, piece: &[u8]) {
        if self.waiting.len() == WAITING {
            self.waiting.pop_front();
            self.left_out += 1;
        }
        self.waiting.push_back(piece.to_vec());
    }
}

impl Write for Aside {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let Handle(shared) = &*self.0;
        let mut queue = shared.queue.lock();
        queue.push(piece);
        shared.changed.notify_all();
        let mut queue = shared.wait_while(queue, Some(IN_ORDER), |queue| queue.is_busy() && !queue.stuck);
        queue.stuck = queue.is_busy();
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A standard stream through a descriptor of its own. The lock of the program's one would be held while a write waits for
/// its reader.
#[cfg(unix)]
pub fn unlocked(stream: impl std::os::fd::AsFd + Write + Send + 'static) -> Box<dyn Write + Send> {
    match stream.as_fd().try_clone_to_owned() {
        Ok(descriptor) => Box::new(std::fs::File::from(descriptor)),
        Err(_) => Box::new(stream),
    }
}

/// A standard stream as it is: a console takes no bytes.
#[cfg(not(unix))]
pub fn unlocked(stream: impl Write + Send + 'static) -> Box<dyn Write + Send> {
    Box::new(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A stream whose reader takes a piece when it is told to.
    struct Slow {
        may: mpsc::Receiver<()>,
        read: mpsc::Sender<String>,
    }

    impl Write for Slow {
        fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
            self.may.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
            let _ = self.read.send(String::from_utf8_lossy(piece).into_owned());
            Ok(piece.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn slow() -> (Slow, mpsc::Sender<()>, mpsc::Receiver<String>) {
        let ((allow, may), (read, pieces)) = (mpsc::channel(), mpsc::channel());
        (Slow { may, read }, allow, pieces)
    }

    #[test]
    fn whoever_reads_nothing_holds_up_no_writer_and_is_told_what_was_left_out() {
        let (stream, allow, pieces) = slow();
        let mut aside = Aside::new(stream, true).unwrap();
        // One is on its way, so that five of them find no room.
        for number in 0..WAITING + 6 {
            aside.write_all(format!("{number}\n").as_bytes()).unwrap();
        }
        for _ in 0..WAITING + 2 {
            allow.send(()).unwrap();
        }
        aside.wait(Some(Duration::from_secs(60)));
        let pieces: Vec<_> = pieces.try_iter().collect();
        let expected = ["0\n", "… 5 lines left out here: nobody read them in time\n", "6\n", "7\n"];
        assert_eq!(pieces[..4], expected);
        assert_eq!((pieces.len(), pieces.last().unwrap().as_str()), (WAITING + 2, "1029\n"));
    }

    #[test]
    fn the_end_waits_for_a_reader_as_long_as_it_reads() {
        let (stream, allow, pieces) = slow();
        let mut aside = Aside::new(stream, true).unwrap();
        for number in 0..6 {
            aside.write_all(format!("{number}\n").as_bytes()).unwrap();
        }
        let patience = Duration::from_millis(400);
        let reader = std::thread::spawn(move || {
            for _ in 0..5 {
                std::thread::sleep(patience / 4);
                allow.send(()).unwrap();
            }
            allow
        });
        let began = Instant::now();
        aside.wait(Some(patience));
        assert!(began.elapsed() > patience, "five pieces took longer than one may");
        assert!(began.elapsed() < 20 * patience, "the sixth is not read");
        drop(reader.join().unwrap());
        assert_eq!(pieces.try_iter().count(), 5);
    }

    #[test]
    fn whoever_has_left_is_told_no_more() {
        let (stream, allow, _) = slow();
        drop(allow);
        let mut aside = Aside::new(stream, true).unwrap();
        for _ in 0..2 * WAITING {
            aside.write_all(b"a\n").unwrap();
        }
        aside.wait(Some(Duration::from_secs(60)));
        assert!(!aside.0.0.queue.lock().is_busy());
    }
}
