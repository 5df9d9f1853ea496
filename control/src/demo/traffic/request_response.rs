//! One byte there, one byte back, over one TCP connection: the time a transaction takes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;

use super::super::interruption::Interruption;
use super::{Endpoint, Family, connect, join};

/// Most transactions of one measurement: the memory for their times.
const MOST: usize = 1 << 20;

/// Times of transactions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TransactionTimes {
    /// How many there were.
    pub transactions: usize,
    /// Half of them took no longer.
    pub p50_microseconds: f64,
    /// 99 of 100 took no longer.
    pub p99_microseconds: f64,
    /// 999 of 1,000 took no longer.
    pub p999_microseconds: f64,
}

/// Transactions one after another, as many as fit.
pub fn request_response(
    client: &Endpoint,
    server: &Endpoint,
    family: Family,
    duration: Duration,
    interruption: &Interruption,
) -> anyhow::Result<TransactionTimes> {
    let ends = connect(client, server, family)?;
    request_response_over(ends, duration, interruption)
        .with_context(|| format!("requests from {} to {}", client.name, server.name))
}

/// The same over a connection that is open, asked by its first end.
///
/// # Errors
/// If it breaks, or is interrupted.
pub fn request_response_over(
    (client_end, server_end): (TcpStream, TcpStream),
    duration: Duration,
    interruption: &Interruption,
) -> anyhow::Result<TransactionTimes> {
    client_end.set_nodelay(true)?;
    server_end.set_nodelay(true)?;
    let times = std::thread::scope(|scope| {
        let answering = scope.spawn(|| answer(server_end));
        let times = ask(client_end, duration, interruption);
        join(answering)?;
        times
    });
    interruption.check()?;
    summarize(times?)
}

fn ask(mut socket: TcpStream, duration: Duration, interruption: &Interruption) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(MOST);
    let mut byte = [1];
    let end = Instant::now() + duration;
    while times.len() < MOST && !interruption.is_set() {
        let start = Instant::now();
        if start >= end {
            break;
        }
        socket.write_all(&byte)?;
        socket.read_exact(&mut byte)?;
        times.push(start.elapsed());
    }
    socket.shutdown(Shutdown::Write)?;
    Ok(times)
}

fn answer(mut socket: TcpStream) -> anyhow::Result<()> {
    let mut byte = [0];
    loop {
        match socket.read(&mut byte) {
            // The client has seen enough, or failed, and then says why.
            Ok(0) => return Ok(()),
            Ok(_) => socket.write_all(&byte)?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn summarize(mut times: Vec<Duration>) -> anyhow::Result<TransactionTimes> {
    ensure!(!times.is_empty(), "no transaction was completed");
    times.sort_unstable();
    let at = |thousandths: usize| times.get((times.len() - 1) * thousandths / 1000).copied().unwrap_or_default();
    let microseconds = |time: Duration| time.as_nanos() as f64 / 1000.0;
    Ok(TransactionTimes {
        transactions: times.len(),
        p50_microseconds: microseconds(at(500)),
        p99_microseconds: microseconds(at(990)),
        p999_microseconds: microseconds(at(999)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let times = (1..=101).rev().map(Duration::from_micros).collect();
        let summary = summarize(times).expect("times");
        assert_eq!(
            summary,
            TransactionTimes {
                transactions: 101,
                p50_microseconds: 51.0,
                p99_microseconds: 100.0,
                p999_microseconds: 100.0
            }
        );
        assert!(summarize(Vec::new()).is_err());
    }
}
