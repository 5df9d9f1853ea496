//! One TCP stream at full speed: how many bits a second arrive, and how many segments had to be sent again.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use super::super::interruption::Interruption;
use super::{Endpoint, Family, connect, join};

/// Bytes of one call.
const CHUNK_BYTES: usize = 256 << 10;

/// What a stream did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StreamResult {
    /// Bytes a second that arrived, times 8 / 10^9.
    pub gigabits_per_second: f64,
    /// Bytes that arrived.
    pub bytes: u64,
    /// From the first byte to the end.
    pub seconds: f64,
    /// Segments the sender's kernel sent.
    pub segments: u64,
    /// Those of them it sent again.
    pub retransmitted_segments: u64,
}

impl StreamResult {
    /// Share of the segments that were sent again.
    pub fn retransmitted_share(&self) -> f64 {
        self.retransmitted_segments as f64 / self.segments.max(1) as f64
    }
}

/// Streams from client to server.
pub fn stream(
    client: &Endpoint,
    server: &Endpoint,
    family: Family,
    duration: Duration,
    interruption: &Interruption,
) -> anyhow::Result<StreamResult> {
    let ends = connect(client, server, family)?;
    stream_over(ends, client, server, duration, interruption)
}

/// Streams over a connection that is open, from its first end to its second.
///
/// # Errors
/// If it stands still or breaks, or is interrupted.
pub fn stream_over(
    (sender, receiver): (TcpStream, TcpStream),
    client: &Endpoint,
    server: &Endpoint,
    duration: Duration,
    interruption: &Interruption,
) -> anyhow::Result<StreamResult> {
    let before = Segments::read(client)?;
    let (bytes, elapsed) = std::thread::scope(|scope| {
        let sending = scope.spawn(|| send(sender, duration, interruption));
        let receiving = scope.spawn(|| receive(receiver));
        join(sending)?;
        join(receiving)
    })
    .with_context(|| format!("TCP stream from {} to {}", client.name, server.name))?;
    interruption.check()?;
    let after = Segments::read(client)?;
    Ok(StreamResult {
        gigabits_per_second: bytes as f64 * 8.0 / elapsed.as_secs_f64().max(1e-9) / 1e9,
        bytes,
        seconds: elapsed.as_secs_f64(),
        segments: after.sent.saturating_sub(before.sent),
        retransmitted_segments: after.retransmitted.saturating_sub(before.retransmitted),
    })
}

fn send(mut socket: TcpStream, duration: Duration, interruption: &Interruption) -> anyhow::Result<()> {
    let chunk = vec![0x5a; CHUNK_BYTES];
    let end = Instant::now() + duration;
    while Instant::now() < end && !interruption.is_set() {
        match socket.write(&chunk) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => bail!("the stream stands still"),
            Err(error) => return Err(error.into()),
        }
    }
    socket.shutdown(Shutdown::Write)?;
    Ok(())
}

/// Counts from the first byte on, so that the handshake and the sender's start do not.
fn receive(mut socket: TcpStream) -> anyhow::Result<(u64, Duration)> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut start = None;
    let mut bytes = 0;
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return Ok((bytes, start.map_or(Duration::ZERO, |start: Instant| start.elapsed()))),
            Ok(length) => {
                start.get_or_insert_with(Instant::now);
                bytes += length as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => bail!("nothing arrives any more"),
            Err(error) => return Err(error.into()),
        }
    }
}

/// TCP counters of a namespace (`/proc/net/snmp`, RFC 4022 `tcpOutSegs` and `tcpRetransSegs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Segments {
    sent: u64,
    retransmitted: u64,
}

impl Segments {
    fn read(endpoint: &Endpoint) -> anyhow::Result<Segments> {
        // `/proc/net` would be that of the process's first thread.
        let text = endpoint.open("read the TCP counters", || std::fs::read_to_string("/proc/thread-self/net/snmp"))?;
        Self::parse(&text).context("the kernel's TCP counters cannot be read")
    }

    /// The file has two lines for each protocol: names, then values.
    fn parse(text: &str) -> Option<Segments> {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (lines.next()?, lines.next()?);
        let value = |wanted: &str| {
            let mut pairs = names.split_whitespace().zip(values.split_whitespace());
            pairs.find(|(name, _)| *name == wanted)?.1.parse().ok()
        };
        Some(Segments { sent: value("OutSegs")?, retransmitted: value("RetransSegs")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_are_found_by_name() {
        let text = "Ip: Forwarding\nIp: 1\nTcp: RtoMin InSegs OutSegs RetransSegs\nTcp: 200 7 1000 3\nUdp: A\nUdp: 1\n";
        assert_eq!(Segments::parse(text), Some(Segments { sent: 1000, retransmitted: 3 }));
        assert_eq!(Segments::parse("Tcp: OutSegs\nTcp: 5\n"), None);
    }
}
