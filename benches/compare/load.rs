//! The loads, each for a bounded time: streams, datagrams, transactions, connections.

use std::io::{IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use millrace_control::demo::interruption::Interruption;
use millrace_control::demo::traffic::request_response::{TransactionTimes, request_response_over};
use millrace_control::demo::traffic::stream::{StreamResult, stream_over};
use millrace_control::demo::traffic::{Endpoint, connect_by};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};

use crate::site::SERVER_PORT;

/// Datagrams of one system call.
const BATCH: usize = 64;
/// Payload of a datagram that makes a frame of 60 bytes, 64 with its checksum.
const DATAGRAM_BYTES: usize = 18;
/// Batches within which a socket's buffer is full; the kernel's default holds some hundred datagrams.
const FILLING: usize = 100;
/// Clients that open connections at once.
const CLIENTS: usize = 16;
/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Who sends to whom, and what the client dials: the server itself or a Service in front of it.
#[derive(Clone)]
pub(crate) struct Path {
    pub(crate) client: Endpoint,
    pub(crate) server: Endpoint,
    pub(crate) dialled: SocketAddr,
}

impl Path {
    /// Straight to the server.
    pub(crate) fn to(client: &Endpoint, server: &Endpoint) -> anyhow::Result<Path> {
        let address = *server.addresses.first().context("an end without an address")?;
        Ok(Path { client: client.clone(), server: server.clone(), dialled: SocketAddr::new(address, SERVER_PORT) })
    }

    fn listen(&self) -> anyhow::Result<TcpListener> {
        let address = *self.server.addresses.first().context("an end without an address")?;
        self.server.open("listen", || TcpListener::bind((address, SERVER_PORT)))
    }

    fn connect(&self, listener: &TcpListener) -> anyhow::Result<(TcpStream, TcpStream)> {
        connect_by(&self.client, &self.server, listener, self.dialled)
    }
}

/// Streams side by side: Gbit/s of all, and segments that were sent again.
pub(crate) fn streams(path: &Path, count: usize, duration: Duration) -> anyhow::Result<(f64, u64)> {
    let (listener, going_on) = (path.listen()?, Interruption::default());
    let pairs = (0..count).map(|_| path.connect(&listener)).collect::<anyhow::Result<Vec<_>>>()?;
    let results = std::thread::scope(|scope| {
        let going_on = &going_on;
        let start = |pair| scope.spawn(move || stream_over(pair, &path.client, &path.server, duration, going_on));
        let started: Vec<_> = pairs.into_iter().map(start).collect();
        started.into_iter().map(joined).collect::<anyhow::Result<Vec<StreamResult>>>()
    })?;
    let sum = results.iter().map(|result| result.gigabits_per_second).sum();
    // The counters are those of the client's namespace: each stream saw them of all.
    let again = results.iter().map(|result| result.retransmitted_segments).max();
    Ok((sum, again.unwrap_or(0)))
}

/// Transactions of one byte.
pub(crate) fn transactions(path: &Path, duration: Duration) -> anyhow::Result<TransactionTimes> {
    let listener = path.listen()?;
    request_response_over(path.connect(&listener)?, duration, &Interruption::default())
}

/// Datagrams one way: how many a second were sent, and how many reached the server's socket. Nobody reads them, so that no
/// receiver's wake-ups are measured: the socket is filled first, and the kernel counts each one that finds it full. An
/// interface's counters would not do, where a backend hands over several datagrams as one unit.
pub(crate) fn datagrams(path: &Path, duration: Duration) -> anyhow::Result<(f64, f64)> {
    let address = *path.server.addresses.first().context("an end without an address")?;
    let _unread = path.server.open("open a UDP socket", || UdpSocket::bind((address, SERVER_PORT)))?;
    let from = *path.client.addresses.first().context("an end without an address")?;
    let socket = path.client.open("open a UDP socket", || {
        let socket = UdpSocket::bind((from, 0))?;
        socket.connect((address, SERVER_PORT))?;
        Ok(socket)
    })?;
    let payload = [0x5a; DATAGRAM_BYTES];
    // One ahead, for neighbours to be known.
    socket.send(&payload)?;
    std::thread::sleep(Duration::from_millis(20));
    let empty = received(&path.server)?;
    for _ in 0..FILLING {
        if received(&path.server)? > empty {
            break;
        }
        send_batch(&socket, &payload)?;
        std::thread::sleep(Duration::from_millis(5));
    }
    let before = received(&path.server)?;
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < duration {
        sent += send_batch(&socket, &payload)?;
    }
    let elapsed = start.elapsed().as_secs_f64();
    // What is under way still counts for the time it was sent in.
    std::thread::sleep(Duration::from_millis(20));
    let arrived = received(&path.server)? - before;
    Ok((sent as f64 / elapsed, arrived as f64 / elapsed))
}

fn send_batch(socket: &UdpSocket, payload: &[u8]) -> anyhow::Result<usize> {
    let slices = [IoSlice::new(payload)];
    let mut controls: [SendAncillaryBuffer<'_, '_, '_>; BATCH] =
        std::array::from_fn(|_| SendAncillaryBuffer::default());
    let mut messages: Vec<_> = controls.iter_mut().map(|control| MMsgHdr::new(&slices, control)).collect();
    Ok(sendmmsg(socket, &mut messages, SendFlags::empty())?)
}

/// Datagrams that found the buffer of their socket full, of an end's whole namespace (`RcvbufErrors` in `/proc/net/snmp`).
fn received(end: &Endpoint) -> anyhow::Result<u64> {
    let text = end.open("read the counters", || std::fs::read_to_string("/proc/thread-self/net/snmp"))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut counts = names.split_whitespace().zip(values.split_whitespace());
    let count = counts.find(|(name, _)| *name == "RcvbufErrors").and_then(|(_, value)| value.parse().ok());
    count.context("the kernel does not count datagrams that find a full socket")
}

/// Connections opened, used for one byte each way, and closed by the server: how many a second, and how many failed.
pub(crate) fn connections(path: &Path, duration: Duration) -> anyhow::Result<(f64, u64)> {
    let listener = path.listen()?;
    listener.set_nonblocking(false)?;
    let (opened, failed, ended) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let start = Instant::now();
    std::thread::scope(|scope| {
        let (opened, failed, ended, listener) = (&opened, &failed, &ended, &listener);
        let serving = [(), ()].map(|()| scope.spawn(move || serve(listener, ended)));
        let asking: Vec<_> = (0..CLIENTS).map(|_| ask(scope, path, duration, opened, failed)).collect();
        let asked = asking.into_iter().map(joined).collect::<anyhow::Result<Vec<()>>>();
        ended.store(true, Ordering::Relaxed);
        // Each server waits for one connection; one that never comes would keep it.
        for _ in &serving {
            let address = listener.local_addr()?;
            let _ = path.server.open("connect", || TcpStream::connect_timeout(&address, PATIENCE));
        }
        serving.into_iter().try_for_each(joined)?;
        asked.map(drop)
    })?;
    let elapsed = start.elapsed().as_secs_f64();
    let opened = opened.load(Ordering::Relaxed);
    ensure!(opened > 0, "no connection opened");
    Ok((opened as f64 / elapsed, failed.load(Ordering::Relaxed)))
}

fn ask<'scope>(
    scope: &'scope Scope<'scope, '_>,
    path: &'scope Path,
    duration: Duration,
    opened: &'scope AtomicU64,
    failed: &'scope AtomicU64,
) -> ScopedJoinHandle<'scope, anyhow::Result<()>> {
    scope.spawn(move || {
        path.client.namespace.enter(|| {
            let end = Instant::now() + duration;
            while Instant::now() < end {
                let count = if ask_once(path.dialled).is_ok() { opened } else { failed };
                count.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        Ok(())
    })
}

fn ask_once(dialled: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&dialled, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[1])?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    // Until the server has closed, so that it keeps the TIME_WAIT and not one of the client's ports.
    stream.read(&mut byte).map(drop)
}

fn serve(listener: &TcpListener, ended: &AtomicBool) -> anyhow::Result<()> {
    while !ended.load(Ordering::Relaxed) {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut byte = [0];
        // A client that went away says so itself.
        if stream.read(&mut byte).is_ok_and(|length| length == 1) {
            let _ = stream.write_all(&byte);
        }
    }
    Ok(())
}

fn joined<T>(thread: ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("a thread of the load panicked")))
}
