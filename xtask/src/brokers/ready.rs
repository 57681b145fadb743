//! Whether a server answers, asked in its own protocol.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
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

/// A server that still reads its data answers with an error.
pub(super) fn redis(port: u16) -> io::Result<()> {
    let mut stream = connect(port)?;
    stream.write_all(b"PING\r\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if line == "+PONG\r\n" { Ok(()) } else { Err(unexpected(&line)) }
}

/// The protocol's header is answered by a frame with a method (1), `Connection.Start`.
pub(super) fn amqp(port: u16) -> io::Result<()> {
    let mut stream = connect(port)?;
    stream.write_all(b"AMQP\x00\x00\x09\x01")?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    if kind == [1] { Ok(()) } else { Err(unexpected(&format!("{kind:?}"))) }
}

/// `ApiVersions` in its oldest version, as number 1 of a client without a name; the answer has the number.
pub(super) fn kafka(port: u16) -> io::Result<()> {
    let mut stream = connect(port)?;
    stream.write_all(&[0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 0xff, 0xff])?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    if answer[4..] == [0, 0, 0, 1] { Ok(()) } else { Err(unexpected(&format!("{answer:?}"))) }
}

/// Any answer but an error of the server.
pub(super) fn http(port: u16) -> io::Result<()> {
    let mut stream = connect(port)?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    match line.split_whitespace().nth(1) {
        Some(status) if line.starts_with("HTTP/") && !status.starts_with('5') => Ok(()),
        _ => Err(unexpected(&line)),
    }
}

/// Whether a server takes connections, where what it speaks is encrypted.
pub(super) fn listens(port: u16) -> io::Result<()> {
    connect(port).map(drop)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    type Ask = fn(u16) -> io::Result<()>;

    /// Whether a server that says this passes for one that is ready.
    fn passes(ask: Ask, answer: &'static [u8]) -> bool {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || listener.accept().unwrap().0.write_all(answer));
        let ready = ask(port).is_ok();
        server.join().unwrap().unwrap();
        ready
    }

    #[track_caller]
    fn only(right: &'static [u8], wrong: &[&'static [u8]], ask: Ask) {
        assert!(passes(ask, right));
        assert!(wrong.iter().all(|wrong| !passes(ask, wrong)));
        assert!(!passes(ask, b""));
    }

    #[test]
    fn only_the_answer_of_the_protocol_counts() {
        only(b"INFO {\"jetstream\":true}\r\n", &[b"INFO {}\r\n"], nats);
        only(b"+PONG\r\n", &[b"-LOADING Redis is loading the dataset in memory\r\n"], redis);
        // The header of the protocol that a server would rather speak.
        only(b"\x01\x00\x00", &[b"AMQP\x00\x01\x00\x00"], amqp);
        only(b"\0\0\0\x0a\0\0\0\x01", &[b"HTTP/1.1 400", b"\0\0\0\x0a"], kafka);
        only(b"HTTP/1.1 404 Not Found\r\n", &[b"HTTP/1.1 503 Service Unavailable\r\n", b"+PONG\r\n"], http);
    }
}
