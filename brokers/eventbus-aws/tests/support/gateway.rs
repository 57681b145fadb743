//! A gateway in front of the server, which counts calls by their names, and answers some of them itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The error that a call is answered with instead: its status and its name.
type Answer = Option<(u16, &'static str)>;
type Decide = Box<dyn Fn(&str) -> Answer + Send>;

pub struct Gateway {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    server: String,
    counts: Mutex<BTreeMap<String, u64>>,
    decide: Mutex<Decide>,
}

impl Gateway {
    /// In front of the server of this address.
    pub async fn to(url: &str) -> Self {
        let server = url.split("://").nth(1).unwrap().trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let decide: Decide = Box::new(|_| None);
        let shared = Arc::new(Shared { server, counts: Mutex::default(), decide: Mutex::new(decide) });
        let passing = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, Arc::clone(&passing)));
            }
        });
        Self { port, shared }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on calls are answered as this says, by their names.
    pub fn answer(&self, decide: impl Fn(&str) -> Answer + Send + 'static) {
        *self.shared.decide.lock().unwrap() = Box::new(decide);
    }

    /// How many calls of a name there were.
    pub fn count(&self, name: &str) -> u64 {
        self.shared.counts.lock().unwrap().get(name).copied().unwrap_or_default()
    }
}

/// One call for each connection: the client opens another one.
async fn pass(mut client: TcpStream, shared: Arc<Shared>) {
    let Some((head, body)) = request(&mut client).await else { return };
    let name = name(&head, &body);
    *shared.counts.lock().unwrap().entry(name.clone()).or_default() += 1;
    let answer = (shared.decide.lock().unwrap())(&name);
    if let Some((status, code)) = answer {
        let body = if head.to_lowercase().contains("x-amz-target") {
            format!(r#"{{"__type":"com.amazonaws.sqs#{code}","message":"so it is"}}"#)
        } else {
            format!(
                "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>so it is</Message></Error>\
                 <RequestId>1</RequestId></ErrorResponse>"
            )
        };
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
        let _ = client.write_all(answer.as_bytes()).await;
        return;
    }
    let Ok(mut server) = TcpStream::connect(&shared.server).await else { return };
    let (first, rest) = head.split_once("\r\n").unwrap_or((&head, ""));
    let rest: Vec<_> =
        rest.split("\r\n").filter(|line| !line.to_lowercase().starts_with("connection:")).collect();
    let head = format!("{first}\r\nconnection: close\r\n{}", rest.join("\r\n"));
    if server.write_all(head.as_bytes()).await.is_err() || server.write_all(&body).await.is_err() {
        return;
    }
    let (mut answer, mut hangs_up) = (Vec::new(), [0]);
    // A client that has gone takes its call along.
    tokio::select! {
        read = server.read_to_end(&mut answer) => if read.is_ok() {
            let _ = client.write_all(&answer).await;
        },
        _ = client.read(&mut hangs_up) => {}
    }
}

/// The head of a request with its last line, and its body.
async fn request(client: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let (mut read, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        let count = client.read(&mut buffer).await.ok().filter(|count| *count > 0)?;
        read.extend_from_slice(&buffer[..count]);
        let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&read[..end + 4]).into_owned();
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
        });
        if read.len() >= end + 4 + length.unwrap_or_default() {
            return Some((head, read.split_off(end + 4)));
        }
    }
}

/// What is called: SQS says it in a header, SNS in the body.
fn name(head: &str, body: &[u8]) -> String {
    let target = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("x-amz-target")
            .then(|| value.trim().rsplit('.').next().map(str::to_owned))?
    });
    let body = String::from_utf8_lossy(body);
    let action = body.split('&').find_map(|pair| pair.strip_prefix("Action=").map(str::to_owned));
    target.or(action).unwrap_or_default()
}
