//! A connection that fails: what the fault tests of brokers with a server share.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// Stands between a client and a server, and fails as it is told to.
pub struct Proxy {
    scheme: String,
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: String,
    /// Counts cuts: connections of before are closed.
    cuts: AtomicU64,
    /// Counts stalls: on connections of before nothing passes any more, and they are not closed.
    stalls: AtomicU64,
    /// Nothing passes in either direction, and nothing is closed.
    swallows: AtomicBool,
    /// Nothing of the server passes.
    mute: AtomicBool,
    /// That is so from the moment on at which a client sends these words.
    mute_at: Mutex<Option<&'static str>>,
    /// New connections are closed at once.
    refuses: AtomicBool,
    /// How many bytes of the server have passed.
    passed: AtomicU64,
    /// Something of the server was kept back.
    kept: AtomicBool,
}

impl Proxy {
    /// Between clients and the server of this address, of whatever scheme, without TLS.
    pub async fn to(url: &str) -> Self {
        Self::at("127.0.0.1:0", url).await
    }

    /// The same at an address of its own, for a server that sends its clients there.
    pub async fn at(address: &str, url: &str) -> Self {
        let (scheme, server) = url.split_once("://").expect("an address with a scheme");
        let (scheme, server) = (scheme.to_owned(), server.trim_end_matches('/').to_owned());
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server,
            cuts: AtomicU64::new(0),
            stalls: AtomicU64::new(0),
            swallows: AtomicBool::new(false),
            mute: AtomicBool::new(false),
            mute_at: Mutex::new(None),
            refuses: AtomicBool::new(false),
            passed: AtomicU64::new(0),
            kept: AtomicBool::new(false),
        });
        tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { scheme, address, shared }
    }

    /// The address to connect to instead.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Closes what is connected.
    pub fn cut(&self) {
        self.shared.cuts.fetch_add(1, Ordering::SeqCst);
    }

    /// Forgets what is connected, as a firewall does that is begun anew: it hears nothing any more, and is told of nothing.
    pub fn stall(&self) {
        self.shared.stalls.fetch_add(1, Ordering::SeqCst);
    }

    pub fn swallow(&self, swallows: bool) {
        self.shared.swallows.store(swallows, Ordering::SeqCst);
    }

    pub fn mute(&self, mute: bool) {
        self.shared.mute.store(mute, Ordering::SeqCst);
    }

    /// Mutes the server as soon as a client has sent these words, which pass.
    pub fn mute_at(&self, words: &'static str) {
        *self.shared.mute_at.lock().unwrap() = Some(words);
    }

    /// How many bytes the server has sent.
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::SeqCst)
    }

    /// Whether the server has said something that was kept back.
    pub fn has_kept(&self) -> bool {
        self.shared.kept.load(Ordering::SeqCst)
    }

    pub fn refuse(&self, refuses: bool) {
        self.shared.refuses.store(refuses, Ordering::SeqCst);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        if shared.refuses.load(Ordering::SeqCst) {
            continue;
        }
        let Ok(server) = TcpStream::connect(&shared.server).await else { continue };
        let met = (shared.cuts.load(Ordering::SeqCst), shared.stalls.load(Ordering::SeqCst));
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        tokio::spawn(pass(Arc::clone(&shared), met, false, from_client, to_server));
        tokio::spawn(pass(Arc::clone(&shared), met, true, from_server, to_client));
    }
}

async fn pass(
    shared: Arc<Shared>,
    (cuts, stalls): (u64, u64),
    of_server: bool,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let stalled = || shared.stalls.load(Ordering::SeqCst) != stalls;
        let mute = || of_server && shared.mute.load(Ordering::SeqCst);
        let held = || shared.swallows.load(Ordering::SeqCst) || mute() || stalled();
        let is_cut = || shared.cuts.load(Ordering::SeqCst) != cuts;
        let read = tokio::time::timeout(Duration::from_millis(10), from.read(&mut buffer)).await;
        if is_cut() {
            return;
        }
        let Ok(read) = read else { continue };
        let Ok(count @ 1..) = read else { return };
        while held() {
            shared.kept.fetch_or(of_server, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(10)).await;
            if is_cut() {
                return;
            }
        }
        let says = |words: &str| buffer[..count].windows(words.len()).any(|part| part == words.as_bytes());
        if !of_server && shared.mute_at.lock().unwrap().take_if(|words| says(words)).is_some() {
            shared.mute.store(true, Ordering::SeqCst);
        }
        if of_server {
            shared.passed.fetch_add(count as u64, Ordering::SeqCst);
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
