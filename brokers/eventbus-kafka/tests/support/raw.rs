//! Requests to the server as bytes: what the client would not write, or has no call for.

use super::server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PRODUCE: i16 = 0;
const LEAVE_GROUP: i16 = 13;

/// Sends a request, and has its answer without the number that it begins with.
async fn ask(request: i16, version: i16, body: &[u8]) -> Vec<u8> {
    let address = server();
    let mut stream = TcpStream::connect(address.trim_start_matches("kafka://")).await.unwrap();
    let mut written = Vec::new();
    written.extend(request.to_be_bytes());
    written.extend(version.to_be_bytes());
    written.extend(7_i32.to_be_bytes());
    text(&mut written, "tests");
    written.extend(body);
    stream.write_all(&(written.len() as i32).to_be_bytes()).await.unwrap();
    stream.write_all(&written).await.unwrap();
    let length = stream.read_i32().await.unwrap();
    let mut answer = vec![0; length as usize];
    stream.read_exact(&mut answer).await.unwrap();
    answer.split_off(4)
}

fn text(into: &mut Vec<u8>, text: &str) {
    into.extend((text.len() as i16).to_be_bytes());
    into.extend(text.as_bytes());
}

/// Writes a record with one header, whose name may be any bytes, to the first partition of a topic.
pub async fn produce(topic: &str, payload: &[u8], (name, value): (&[u8], &[u8])) {
    let mut record = vec![0];
    [0, 0, -1].iter().for_each(|number| varint(&mut record, *number));
    bytes(&mut record, payload);
    varint(&mut record, 1);
    bytes(&mut record, name);
    bytes(&mut record, value);
    let mut checked = Vec::new();
    checked.extend(0_i16.to_be_bytes());
    checked.extend(0_i32.to_be_bytes());
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as i64;
    checked.extend([now.to_be_bytes(), now.to_be_bytes(), (-1_i64).to_be_bytes()].concat());
    checked.extend((-1_i16).to_be_bytes());
    checked.extend([(-1_i32).to_be_bytes(), 1_i32.to_be_bytes()].concat());
    bytes(&mut checked, &record);
    let mut batch = vec![0; 8];
    batch.extend((checked.len() as i32 + 9).to_be_bytes());
    batch.extend((-1_i32).to_be_bytes());
    batch.push(2);
    batch.extend(crc32c(&checked).to_be_bytes());
    batch.extend(checked);
    let mut body = Vec::new();
    body.extend((-1_i16).to_be_bytes());
    body.extend((-1_i16).to_be_bytes());
    body.extend([10_000_i32.to_be_bytes(), 1_i32.to_be_bytes()].concat());
    text(&mut body, topic);
    body.extend([1_i32.to_be_bytes(), 0_i32.to_be_bytes(), (batch.len() as i32).to_be_bytes()].concat());
    body.extend(batch);
    let answer = ask(PRODUCE, 3, &body).await;
    // Two counts and the topic's name are before the partition, and then its error.
    let error = 4 + 2 + topic.len() + 4 + 4;
    assert_eq!(answer[error..error + 2], [0, 0], "{answer:?}");
}

/// Takes a member out of its group, as the tools of the server do. It is not told.
pub async fn leave(group: &str, member: &str) {
    let mut body = Vec::new();
    text(&mut body, group);
    text(&mut body, member);
    let answer = ask(LEAVE_GROUP, 0, &body).await;
    assert_eq!(answer[..2], [0, 0], "{answer:?}");
}

fn bytes(into: &mut Vec<u8>, bytes: &[u8]) {
    varint(into, bytes.len() as i64);
    into.extend(bytes);
}

/// A number as it is written in a record.
fn varint(into: &mut Vec<u8>, number: i64) {
    let mut left = ((number << 1) ^ (number >> 63)) as u64;
    while left >= 0x80 {
        into.push(left as u8 | 0x80);
        left >>= 7;
    }
    into.push(left as u8);
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg()))
    })
}
