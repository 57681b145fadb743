//! A gateway in front of the server, which counts calls by their names, and answers some of them itself, cuts them off, or
//! has single entries of a batch fail.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A call that has come.
pub struct Call {
    pub name: String,
    /// As SQS (JSON) or SNS (the fields of a form) takes it.
    pub body: String,
    json: bool,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The server answers it.
    Pass,
    /// It is answered with this status and the name of an error, and is not done.
    Refuse(u16, &'static str),
    /// It is refused with this reason and these words by a server whose clock is so many seconds ahead.
    Doubt { code: &'static str, said: &'static str, ahead: i64 },
    /// The connection ends, and it is not done.
    Cut,
    /// The connection ends after it was done.
    Lose,
    /// The entry at this place of the batch is not done, for a reason that is the sender's fault or is not; the others are.
    Fail { place: usize, code: &'static str, sender_fault: bool },
}

type Judge = Box<dyn FnMut(&Call) -> Verdict + Send>;

pub struct Gateway {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    server: String,
    counts: Mutex<BTreeMap<String, u64>>,
    judge: Mutex<Judge>,
}

impl Gateway {
    /// In front of the server of this address.
    pub async fn to(url: &str) -> Self {
        let server = url.split("://").nth(1).unwrap().trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let judge: Judge = Box::new(|_| Verdict::Pass);
        let shared = Arc::new(Shared { server, counts: Mutex::default(), judge: Mutex::new(judge) });
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

    /// From now on calls are answered as this says, by their names: with a status and the name of an error, or by the server.
    pub fn answer(&self, mut decide: impl FnMut(&str) -> Option<(u16, &'static str)> + Send + 'static) {
        self.judge(move |call| match decide(&call.name) {
            Some((status, code)) => Verdict::Refuse(status, code),
            None => Verdict::Pass,
        });
    }

    /// From now on this says what becomes of each call.
    pub fn judge(&self, judge: impl FnMut(&Call) -> Verdict + Send + 'static) {
        *self.shared.judge.lock().unwrap() = Box::new(judge);
    }

    /// How many calls of a name there were.
    pub fn count(&self, name: &str) -> u64 {
        self.shared.counts.lock().unwrap().get(name).copied().unwrap_or_default()
    }
}

/// One call for each connection: the client opens another one.
async fn pass(mut client: TcpStream, shared: Arc<Shared>) {
    let Some((head, body)) = request(&mut client).await else { return };
    let json = head.to_lowercase().contains("x-amz-target");
    let body = String::from_utf8_lossy(&body).into_owned();
    let mut call = Call { name: name(&head, &body), body, json };
    *shared.counts.lock().unwrap().entry(call.name.clone()).or_default() += 1;
    let verdict = (shared.judge.lock().unwrap())(&call);
    match verdict {
        Verdict::Pass => {
            if let Some(answer) = forward(&mut client, &shared.server, &head, &call.body).await {
                let _ = client.write_all(&answer).await;
            }
        }
        Verdict::Refuse(status, code) => {
            let _ = client.write_all(answer(status, &call.error(code, "so it is")).as_bytes()).await;
        }
        Verdict::Doubt { code, said, ahead } => {
            let date = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(ahead);
            let date = date.strftime("%a, %d %b %Y %H:%M:%S GMT");
            let head = format!("\r\ndate: {date}\r\nconnection:");
            let answer = answer(403, &call.error(code, said)).replacen("\r\nconnection:", &head, 1);
            let _ = client.write_all(answer.as_bytes()).await;
        }
        Verdict::Cut => {}
        Verdict::Lose => drop(forward(&mut client, &shared.server, &head, &call.body).await),
        Verdict::Fail { place, code, sender_fault } => {
            let Some(id) = call.take_entry(place) else {
                panic!("{} has no entry {place}: {}", call.name, call.body)
            };
            let said = if call.has_entries() {
                let answer = forward(&mut client, &shared.server, &head, &call.body).await;
                answer.and_then(|answer| {
                    let answer = String::from_utf8_lossy(&answer).into_owned();
                    Some(answer.split_once("\r\n\r\n")?.1.to_owned())
                })
            } else {
                Some(call.nothing_done())
            };
            if let Some(said) = said {
                let said = call.with_failure(&said, &id, code, sender_fault);
                let _ = client.write_all(answer(200, &said).as_bytes()).await;
            }
        }
    }
}

fn answer(status: u16, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
}

/// What the server answers. None, where the client has gone, which takes its call along.
async fn forward(client: &mut TcpStream, server: &str, head: &str, body: &str) -> Option<Vec<u8>> {
    let mut server = TcpStream::connect(server).await.ok()?;
    let (first, rest) = head.split_once("\r\n").unwrap_or((head, ""));
    let is_ours = |line: &&str| {
        let line = line.to_lowercase();
        !line.starts_with("connection:") && !line.starts_with("content-length:")
    };
    let rest: Vec<_> = rest.split("\r\n").filter(is_ours).collect();
    let length = body.len();
    let head = format!("{first}\r\nconnection: close\r\ncontent-length: {length}\r\n{}", rest.join("\r\n"));
    server.write_all(head.as_bytes()).await.ok()?;
    server.write_all(body.as_bytes()).await.ok()?;
    let (mut answer, mut hangs_up) = (Vec::new(), [0]);
    tokio::select! {
        read = server.read_to_end(&mut answer) => read.is_ok().then_some(answer),
        _ = client.read(&mut hangs_up) => None,
    }
}

impl Call {
    /// The fields of the form.
    fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.body.split('&').filter_map(|pair| pair.split_once('='))
    }

    fn error(&self, code: &str, said: &str) -> String {
        if self.json {
            return format!(r#"{{"__type":"com.amazonaws.sqs#{code}","message":"{said}"}}"#);
        }
        format!(
            "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{said}</Message></Error>\
             <RequestId>1</RequestId></ErrorResponse>"
        )
    }

    /// Takes an entry out of a batch, and says its id.
    fn take_entry(&mut self, place: usize) -> Option<String> {
        if self.json {
            let mut body: Value = serde_json::from_str(&self.body).ok()?;
            let entries = body["Entries"].as_array_mut()?;
            let entry = (place < entries.len()).then(|| entries.remove(place))?;
            self.body = body.to_string();
            return entry["Id"].as_str().map(str::to_owned);
        }
        let (mut id, mut kept) = (None, Vec::new());
        for (name, value) in self.fields() {
            let entry = name.strip_prefix("PublishBatchRequestEntries.member.");
            let Some((number, field)) = entry.and_then(|entry| entry.split_once('.')) else {
                kept.push(format!("{name}={value}"));
                continue;
            };
            // They are counted from 1, and without a gap.
            match number.parse::<usize>().ok()?.cmp(&(place + 1)) {
                std::cmp::Ordering::Equal if field == "Id" => id = Some(value.to_owned()),
                std::cmp::Ordering::Equal => {}
                std::cmp::Ordering::Less => kept.push(format!("{name}={value}")),
                std::cmp::Ordering::Greater => {
                    let number = number.parse::<usize>().ok()? - 1;
                    kept.push(format!("PublishBatchRequestEntries.member.{number}.{field}={value}"));
                }
            }
        }
        self.body = kept.join("&");
        id
    }

    fn has_entries(&self) -> bool {
        if self.json {
            let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
            return body["Entries"].as_array().is_some_and(|entries| !entries.is_empty());
        }
        self.fields().any(|(name, _)| name.starts_with("PublishBatchRequestEntries.member."))
    }

    /// The answer to a batch of which nothing was done.
    fn nothing_done(&self) -> String {
        if self.json {
            return r#"{"Successful":[]}"#.to_owned();
        }
        format!("<{0}Response><{0}Result></{0}Result></{0}Response>", self.name)
    }

    /// The same answer, which says of one entry more that it has failed.
    fn with_failure(&self, answer: &str, id: &str, code: &str, sender_fault: bool) -> String {
        if self.json {
            let mut answer: Value = serde_json::from_str(answer).expect("the server answers in JSON");
            let failed =
                json!({ "Id": id, "Code": code, "Message": "so it is", "SenderFault": sender_fault });
            match answer["Failed"].as_array_mut() {
                Some(there) => there.push(failed),
                None => answer["Failed"] = json!([failed]),
            }
            return answer.to_string();
        }
        let answer =
            answer.replace("<Failed/>", "").replace("<Failed />", "").replace("<Failed></Failed>", "");
        assert!(!answer.contains("<Failed>"), "the server itself lets one fail: {answer}");
        let end = format!("</{}Result>", self.name);
        assert!(answer.contains(&end), "{answer}");
        let failed = format!(
            "<Failed><member><Id>{id}</Id><Code>{code}</Code><Message>so it is</Message>\
             <SenderFault>{sender_fault}</SenderFault></member></Failed>{end}"
        );
        answer.replace(&end, &failed)
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
fn name(head: &str, body: &str) -> String {
    let target = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("x-amz-target")
            .then(|| value.trim().rsplit('.').next().map(str::to_owned))?
    });
    let action = body.split('&').find_map(|pair| pair.strip_prefix("Action=").map(str::to_owned));
    target.or(action).unwrap_or_default()
}
