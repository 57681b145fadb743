//! Whether a server answers, asked in its own protocol.

use std::io::{self, BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// How long one try may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The first line of a NATS server tells what it can do.
pub(super) fn nats(port: u16) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(connect(port)?).read_line(&mut line)?;
    if line.starts_with("INFO ") && line.contains("\"jetstream\":true") {
        return Ok(());
    }
    Err(unexpected(&line))
}

fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn unexpected(answer: &str) -> io::Error {
    io::Error::other(format!("it answered {answer:?}"))
}
