//! Small traffic tools on plain sockets inside pods' namespaces: what `ping`, `iperf` and `netperf` are used for.
//!
//! A socket keeps the namespace it was opened in, so only opening it needs a visit there; the work is done by threads
//! of this process. All is bounded in time, and ends early when interrupted.

pub mod exchange;
pub(crate) mod named_server;
pub mod ping;
pub mod request_response;
pub mod stream;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::Context;
use millrace_engine::port::namespace::NamespaceHandle;

/// How long a connection may take to open, and how long a reader waits for the next byte.
const PATIENCE: Duration = Duration::from_secs(5);

/// Somewhere traffic starts or ends.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its name for people.
    pub name: String,
    /// Its network namespace.
    pub namespace: NamespaceHandle,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// A version of the Internet Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Family {
    /// Version 4.
    #[serde(rename = "IPv4")]
    Ipv4,
    /// Version 6.
    #[serde(rename = "IPv6")]
    Ipv6,
}

impl Family {
    /// Both versions.
    pub const BOTH: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    /// Its name.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        }
    }
}

impl Endpoint {
    /// Its address of a family.
    pub fn address(&self, family: Family) -> anyhow::Result<IpAddr> {
        let found = self.addresses.iter().find(|address| address.is_ipv4() == (family == Family::Ipv4));
        found.copied().with_context(|| format!("{} has no {} address", self.name, family.text()))
    }

    /// Opens a socket in its namespace.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open<T: Send>(&self, what: &str, open: impl FnOnce() -> io::Result<T> + Send) -> anyhow::Result<T> {
        self.namespace.enter(open)?.with_context(|| format!("cannot {what} in {}", self.name))
    }

    /// A UDP socket of its own port; a reader waits a fifth of a second.
    pub fn udp_socket(&self, family: Family) -> anyhow::Result<UdpSocket> {
        let address = self.address(family)?;
        let socket = self.open("open a UDP socket", || UdpSocket::bind((address, 0)))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(socket)
    }
}

/// A TCP connection between two endpoints: the client's end, then the server's.
fn connect(client: &Endpoint, server: &Endpoint, family: Family) -> anyhow::Result<(TcpStream, TcpStream)> {
    let address = server.address(family)?;
    let listener = server.open("listen", || TcpListener::bind((address, 0)))?;
    let target: SocketAddr = listener.local_addr()?;
    connect_by(client, server, &listener, target)
}

/// A TCP connection from the client to `target`, which leads to the server's listener: the client's end, then the server's.
///
/// # Errors
/// If it does not open within seconds.
pub fn connect_by(
    client: &Endpoint,
    server: &Endpoint,
    listener: &TcpListener,
    target: SocketAddr,
) -> anyhow::Result<(TcpStream, TcpStream)> {
    let connected = client.open("connect", || TcpStream::connect_timeout(&target, PATIENCE));
    let connected = connected.with_context(|| format!("{} to {} at {target}", client.name, server.name))?;
    // The connection is open, so one is waiting.
    let (accepted, _) = listener.accept()?;
    for stream in [&connected, &accepted] {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
    }
    Ok((connected, accepted))
}

/// Waits for a thread of ours; that it panicked is an error like others.
pub(super) fn join<T>(thread: std::thread::ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a traffic thread panicked")))
}

/// The byte at a place of the pattern that exchanges send and check: period 251 is prime to all frame sizes.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}
