//! A blocking HTTP/1.1 client over a unix socket: one request, one answer, one connection.
//!
//! It knows as much of HTTP (RFC 9112) as an answer of the agent needs: a status line, headers, and a body framed by
//! Content-Length, by chunks, or by the end of the connection. Every wait ends at one deadline, headers are
//! bounded by 16 KiB and bodies by what the caller allows, so that no agent can hold the caller. Shared by the
//! plugin and by the command line.

use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Bytes of the status line and all headers together, and of one line of a chunked body.
const HEADER_BYTES: u64 = 16 * 1024;

/// Where to send requests, and how long and how much to accept.
#[derive(Clone, Debug)]
pub struct AgentClient {
    /// The agent's socket.
    pub socket: PathBuf,
    /// From the begin of a request to the last byte of its answer.
    pub timeout: Duration,
    /// Longest body accepted.
    pub body_bytes: u64,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body, unframed.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum ClientError {
    /// Nobody listens on the socket.
    Absent(PathBuf, io::Error),
    /// The agent took longer than the time allowed.
    Timeout(Duration),
    /// The connection failed or was closed too early.
    Connection(io::Error),
    /// What came is not an HTTP answer, or a larger one than allowed.
    Malformed(&'static str),
}

impl fmt::Display for ClientError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(socket, error) => write!(formatter, "no agent listens on {}: {error}", socket.display()),
            Self::Timeout(timeout) => write!(formatter, "the agent did not answer within {} s", timeout.as_secs_f32()),
            Self::Connection(error) => write!(formatter, "the connection to the agent failed: {error}"),
            Self::Malformed(what) => write!(formatter, "the agent's answer cannot be understood: {what}"),
        }
    }
}

impl std::error::Error for ClientError {}

impl AgentClient {
    /// Sends `body` as JSON and returns the answer, whatever its status.
    ///
    /// # Errors
    /// When there is no whole answer in time.
    pub fn post(&self, path: &str, body: &[u8]) -> Result<Answer, ClientError> {
        self.request("POST", path, body)
    }

    /// Asks for `path`.
    ///
    /// # Errors
    /// When there is no whole answer in time.
    pub fn get(&self, path: &str) -> Result<Answer, ClientError> {
        self.request("GET", path, &[])
    }

    fn request(&self, method: &str, path: &str, body: &[u8]) -> Result<Answer, ClientError> {
        let deadline = Instant::now() + self.timeout;
        let name_timeout = |error: ClientError| match error {
            ClientError::Connection(error) if is_timeout(&error) => ClientError::Timeout(self.timeout),
            other => other,
        };
        let stream = connect(&self.socket, self.timeout).map_err(name_timeout)?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: agent\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let mut stream = Timed { stream, deadline };
        // A server may refuse a request before it has read all of it; its answer says more than the broken pipe.
        let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        match sent {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                return Err(name_timeout(ClientError::Connection(error)));
            }
            _ => {}
        }
        read_answer(&mut BufReader::new(stream), self.body_bytes).map_err(name_timeout)
    }
}

/// Connecting blocks while the listener's queue is full, and std has no time limit for it: hence the thread, which
/// ends with the connection or the process.
fn connect(socket: &Path, timeout: Duration) -> Result<UnixStream, ClientError> {
    let (sender, receiver) = mpsc::channel();
    let path = socket.to_owned();
    let spawned = std::thread::Builder::new().name("connect".into()).spawn(move || {
        // The receiver is gone when the time is over; nobody wants the stream then.
        let _ = sender.send(UnixStream::connect(path));
    });
    spawned.map_err(ClientError::Connection)?;
    match receiver.recv_timeout(timeout) {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            Err(ClientError::Absent(socket.to_owned(), error))
        }
        Ok(Err(error)) => Err(ClientError::Connection(error)),
        Err(_) => Err(ClientError::Timeout(timeout)),
    }
}

/// A stream whose every read and write ends at the deadline.
struct Timed {
    stream: UnixStream,
    deadline: Instant,
}

impl Timed {
    fn remaining(&self) -> io::Result<Duration> {
        let remaining = self.deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(remaining) }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.remaining()?))?;
        self.stream.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.remaining()?))?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

/// How the length of a body is known.
enum Framing {
    Length(u64),
    Chunked,
    UntilClosed,
}

fn read_answer(reader: &mut impl BufRead, body_bytes: u64) -> Result<Answer, ClientError> {
    let mut budget = HEADER_BYTES;
    let status = parse_status(&read_line(reader, &mut budget)?)?;
    let mut framing = Framing::UntilClosed;
    loop {
        let line = read_line(reader, &mut budget)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or(ClientError::Malformed("a header has no colon"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            framing = Framing::Chunked;
        } else if name.eq_ignore_ascii_case("content-length") && !matches!(framing, Framing::Chunked) {
            let length = value.parse().map_err(|_| ClientError::Malformed("Content-Length is no number"))?;
            framing = Framing::Length(length);
        }
    }
    let body = match framing {
        Framing::Length(length) => read_exactly(reader, length, body_bytes)?,
        Framing::Chunked => read_chunks(reader, body_bytes)?,
        Framing::UntilClosed => read_until_closed(reader, body_bytes)?,
    };
    Ok(Answer { status, body })
}

fn parse_status(line: &str) -> Result<u16, ClientError> {
    let mut words = line.split(' ');
    let version = words.next().unwrap_or_default();
    let status = words.next().and_then(|status| status.parse().ok());
    match status {
        Some(status) if version.starts_with("HTTP/1.") => Ok(status),
        _ => Err(ClientError::Malformed("no HTTP/1.1 status line")),
    }
}

/// One line without its end; takes its length off `budget`.
fn read_line(reader: &mut impl BufRead, budget: &mut u64) -> Result<String, ClientError> {
    let mut line = Vec::new();
    let read = reader.take(*budget).read_until(b'\n', &mut line).map_err(ClientError::Connection)?;
    *budget = budget.saturating_sub(read as u64);
    if line.pop() != Some(b'\n') {
        return Err(if *budget == 0 { ClientError::Malformed("the headers are too long") } else { closed() });
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    String::from_utf8(line).map_err(|_| ClientError::Malformed("a header is not text"))
}

fn read_exactly(reader: &mut impl BufRead, length: u64, limit: u64) -> Result<Vec<u8>, ClientError> {
    if length > limit {
        return Err(too_long());
    }
    let mut body = Vec::new();
    let read = reader.take(length).read_to_end(&mut body).map_err(ClientError::Connection)?;
    if read as u64 == length { Ok(body) } else { Err(closed()) }
}

fn read_chunks(reader: &mut impl BufRead, limit: u64) -> Result<Vec<u8>, ClientError> {
    let mut body = Vec::new();
    loop {
        let line = read_line(reader, &mut HEADER_BYTES.clone())?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let length =
            u64::from_str_radix(digits, 16).map_err(|_| ClientError::Malformed("a chunk's length is no number"))?;
        if length == 0 {
            return Ok(body); // Trailers carry nothing for us, and the connection ends here.
        }
        body.extend(read_exactly(reader, length, limit.saturating_sub(body.len() as u64))?);
        if !read_line(reader, &mut 2)?.is_empty() {
            return Err(ClientError::Malformed("a chunk is longer than it says"));
        }
    }
}

fn read_until_closed(reader: &mut impl BufRead, limit: u64) -> Result<Vec<u8>, ClientError> {
    let mut body = Vec::new();
    reader.take(limit.saturating_add(1)).read_to_end(&mut body).map_err(ClientError::Connection)?;
    if body.len() as u64 > limit { Err(too_long()) } else { Ok(body) }
}

fn closed() -> ClientError {
    ClientError::Connection(io::Error::new(ErrorKind::UnexpectedEof, "it was closed before the answer was complete"))
}

const fn too_long() -> ClientError {
    ClientError::Malformed("the body is longer than allowed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Answer, ClientError> {
        read_answer(&mut text.as_bytes(), 10)
    }

    #[test]
    fn all_three_framings_give_the_same_body() {
        for text in [
            "HTTP/1.1 200 OK\r\ncontent-LENGTH: 5\r\n\r\nhellojunk",
            "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\n\nhello",
        ] {
            let answer = read(text).expect(text);
            assert_eq!((answer.status, answer.body.as_slice()), (200, b"hello".as_slice()), "{text}");
        }
    }

    #[test]
    fn every_cut_and_every_lie_is_an_error() {
        let whole = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n";
        for end in 0..whole.len() {
            assert!(
                matches!(read(&whole[..end]), Err(ClientError::Connection(_) | ClientError::Malformed(_))),
                "{end}"
            );
        }
        let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "y".repeat(20_000));
        for text in [
            "SSH-2.0-OpenSSH\r\n",
            "HTTP/1.1 abc\r\n\r\n",
            "HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world",
            "HTTP/1.1 200 OK\r\n\r\nhello world",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello \r\n6\r\nworld \r\n0\r\n",
            long.as_str(),
        ] {
            assert!(matches!(read(text), Err(ClientError::Malformed(_))), "{text}");
        }
    }
}
