//! Stands before a server, understands what is said, and says some of it differently.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;

/// `connection.blocked` with a reason, `connection.unblocked`, and `connection.close` as a server says it that is ended, and
/// one that cannot consume from a queue.
pub const BLOCKED: &[u8] = b"\x01\0\0\0\0\0\x0f\0\x0a\0\x3c\x0alow memory\xce";
pub const UNBLOCKED: &[u8] = b"\x01\0\0\0\0\0\x04\0\x0a\0\x3d\xce";
pub const CLOSE: &[u8] = b"\x01\0\0\0\0\0\x13\0\x0a\0\x32\x01\x40\x08shutdown\0\0\0\0\xce";
const INTERNAL_ERROR: &[u8] = b"\x01\0\0\0\0\0\x19\0\x0a\0\x32\x02\x1d\x0eINTERNAL_ERROR\0\x3c\0\x14\xce";

/// How the methods begin that are told apart: `connection.tune`, `queue.declare`, `basic.consume`, `basic.ack`.
const TUNE: &[u8] = &[0, 10, 0, 30];
const DECLARE: &[u8] = &[0, 50, 0, 10];
const CONSUME: &[u8] = &[0, 60, 0, 20];
const ACK: &[u8] = &[0, 60, 0, 80];

/// What stands before the server.
pub struct Between {
    pub url: String,
    says: broadcast::Sender<&'static [u8]>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// What the server says to whoever publishes does not arrive.
    mute: AtomicBool,
    /// What it says by the channels that confirmed something before this was set does not arrive.
    wedged: AtomicBool,
    /// So many of those who connected to publish hear nothing any more.
    deaf: AtomicUsize,
    publishers: AtomicUsize,
    /// How many channels a connection may have. 0: as the server says.
    channels: AtomicU16,
    /// Whoever consumes from this queue ends their connection.
    bad: Mutex<Option<String>>,
    ends: AtomicUsize,
    /// Who reads by a connection of its own has none: it is cut, or it is greeted by nobody.
    apart: Mutex<Apart>,
    parted: AtomicUsize,
    /// The server knows no queues of the type `stream`.
    streamless: AtomicBool,
    /// Whoever consumes from this queue hears of it once it is not named here any more.
    late: Mutex<Option<String>>,
}

impl Between {
    pub async fn to(server: &str) -> Self {
        let (credentials, rest) = server.split_once("://").unwrap().1.split_once('@').unwrap();
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, listener) = (host.to_owned(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let url = format!("amqp://{credentials}@{}/{path}", listener.local_addr().unwrap());
        let between = Self { url, says: broadcast::channel(8).0, shared: Arc::default() };
        let (says, shared) = (between.says.clone(), Arc::clone(&between.shared));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&host).await.unwrap();
                tokio::spawn(relay(client, server, says.subscribe(), Arc::clone(&shared)));
            }
        });
        between
    }

    /// Says something to whoever publishes.
    pub fn say(&self, frame: &'static [u8]) {
        self.says.send(frame).unwrap();
    }

    pub fn mute(&self, mute: bool) {
        self.shared.mute.store(mute, Ordering::SeqCst);
    }

    /// The channels that have confirmed something confirm nothing any more.
    pub fn wedge(&self) {
        self.shared.wedged.store(true, Ordering::SeqCst);
    }

    /// Who is connected to publish hears nothing any more.
    pub fn deafen(&self) {
        self.shared.deaf.store(self.shared.publishers.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    pub fn limit_channels(&self, channels: u16) {
        self.shared.channels.store(channels, Ordering::SeqCst);
    }

    /// The server ends the connection of whoever consumes from this queue.
    pub fn break_queue(&self, queue: Option<String>) {
        *self.shared.bad.lock().unwrap() = queue;
    }

    /// What becomes of the connections of those who read by one of their own.
    pub fn treat_apart(&self, how: Apart) {
        *self.shared.apart.lock().unwrap() = how;
    }

    /// The server is one without streams.
    pub fn forget_streams(&self) {
        self.shared.streamless.store(true, Ordering::SeqCst);
    }

    /// How many connections there were of those who read by one of their own.
    pub fn parted(&self) -> usize {
        self.shared.parted.load(Ordering::SeqCst)
    }

    /// How often it has done so.
    pub fn ends(&self) -> usize {
        self.shared.ends.load(Ordering::SeqCst)
    }

    /// What the server says to whoever consumes from this queue is late.
    pub fn delay_queue(&self, queue: Option<String>) {
        *self.shared.late.lock().unwrap() = queue;
    }
}

/// What becomes of the connections of those who read by one of their own.
#[derive(Clone, Copy, Default, PartialEq)]
pub enum Apart {
    #[default]
    Pass,
    /// They are closed.
    Cut,
    /// The server says nothing to them.
    Mute,
}

/// Takes frames apart.
#[derive(Default)]
struct Frames {
    bytes: VecDeque<u8>,
    /// A client greets before its first frame.
    greeting: usize,
}

impl Frames {
    fn of_client() -> Self {
        Self { bytes: VecDeque::new(), greeting: 8 }
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        let length = match self.greeting {
            0 if self.bytes.len() >= 7 => {
                let size = (3..7).fold(0, |size, at| size << 8 | usize::from(self.bytes[at]));
                size + 8
            }
            0 => return None,
            greeting => greeting,
        };
        if self.bytes.len() < length {
            return None;
        }
        self.greeting = 0;
        Some(self.bytes.drain(..length).collect())
    }
}

fn channel(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[1], frame[2]])
}

fn is_method(frame: &[u8], method: &[u8]) -> bool {
    frame[0] == 1 && frame[7..].starts_with(method)
}

/// Whether it consumes from this queue.
fn consumes(frame: &[u8], queue: &Mutex<Option<String>>) -> bool {
    let queue = queue.lock().unwrap().clone();
    let name = |queue: &String| {
        let length = usize::from(frame[13]);
        frame[14..14 + length] == *queue.as_bytes()
    };
    is_method(frame, CONSUME) && queue.as_ref().is_some_and(name)
}

async fn relay(
    mut client: TcpStream,
    mut server: TcpStream,
    mut said: broadcast::Receiver<&'static [u8]>,
    shared: Arc<Shared>,
) {
    let (mut of_client, mut of_server) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let (mut asked, mut answered) = (Frames::of_client(), Frames::default());
    // Who publishes, in their order.
    let (mut publisher, mut apart) = (None, false);
    let (mut confirming, mut wedged) = (Vec::new(), Vec::new());
    let (mut late, mut kept) = (false, Vec::new());
    loop {
        tokio::select! {
            read = client.read(&mut of_client) => {
                let Ok(count @ 1..) = read else { return };
                asked.bytes.extend(&of_client[..count]);
                while let Some(mut frame) = asked.next() {
                    // It is asked for a type that nobody knows, and says what it says then.
                    if is_method(&frame, DECLARE)
                        && shared.streamless.load(Ordering::SeqCst)
                        && let Some(at) = frame.windows(7).position(|part| part == b"\x06stream")
                    {
                        frame[at + 1..at + 7].copy_from_slice(b"streaM");
                    }
                    // It is in the name of the connection.
                    if publisher.is_none() && frame.windows(12).any(|part| part == b", publishing") {
                        publisher = Some(shared.publishers.fetch_add(1, Ordering::SeqCst));
                    }
                    if !apart && frame.windows(17).any(|part| part == b", consuming alone") {
                        apart = true;
                        shared.parted.fetch_add(1, Ordering::SeqCst);
                    }
                    if consumes(&frame, &shared.bad) {
                        shared.ends.fetch_add(1, Ordering::SeqCst);
                        client.write_all(INTERNAL_ERROR).await.unwrap();
                        continue;
                    }
                    late |= consumes(&frame, &shared.late);
                    if server.write_all(&frame).await.is_err() {
                        return;
                    }
                }
            }
            read = server.read(&mut of_server) => {
                let Ok(count @ 1..) = read else { return };
                answered.bytes.extend(&of_server[..count]);
                while let Some(mut frame) = answered.next() {
                    let channels = shared.channels.load(Ordering::SeqCst);
                    if channels > 0 && is_method(&frame, TUNE) {
                        frame[11..13].copy_from_slice(&channels.to_be_bytes());
                    }
                    if wedged.is_empty() && shared.wedged.load(Ordering::SeqCst) {
                        wedged.clone_from(&confirming);
                    }
                    if is_method(&frame, ACK) {
                        confirming.push(channel(&frame));
                    }
                    let is_deaf = publisher.is_some_and(|place| {
                        shared.mute.load(Ordering::SeqCst) || place < shared.deaf.load(Ordering::SeqCst)
                    });
                    let is_deaf = is_deaf || apart && *shared.apart.lock().unwrap() == Apart::Mute;
                    if is_deaf || wedged.contains(&channel(&frame)) {
                        continue;
                    }
                    if late {
                        kept.extend(frame);
                    } else if client.write_all(&frame).await.is_err() {
                        return;
                    }
                }
            }
            Ok(frame) = said.recv() => {
                if publisher.is_some() {
                    client.write_all(frame).await.unwrap();
                }
            }
            () = tokio::time::sleep(Duration::from_millis(10)), if late || apart => {
                if apart && *shared.apart.lock().unwrap() == Apart::Cut {
                    return;
                }
                if late && shared.late.lock().unwrap().is_none() {
                    late = false;
                    if client.write_all(&std::mem::take(&mut kept)).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}
