//! ICMP and ICMPv6 echo over raw sockets (RFC 792, RFC 4443 section 4).
//!
//! Raw and not datagram ICMP sockets: those are forbidden to everybody in a fresh namespace (`ping_group_range`), and
//! the demo is root anyway.

use std::io;
use std::net::{IpAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, sockopt};

use super::Endpoint;

const HEADER_BYTES: usize = 8;
const DATA_BYTES: usize = 56;

/// Tells our echoes from those of other pingers in one namespace.
static NEXT_IDENTIFIER: AtomicU16 = AtomicU16::new(1);

/// A socket that pings one address.
#[derive(Debug)]
pub struct Pinger {
    socket: OwnedFd,
    ipv4: bool,
    identifier: u16,
    sequence: u16,
}

impl Pinger {
    /// Opens the socket in the namespace of `from`.
    pub fn open(from: &Endpoint, to: IpAddr) -> anyhow::Result<Pinger> {
        Self::open_on_link(from, to, 0)
    }

    /// As [`open`](Self::open), to a link-local address on the link with this number.
    pub fn open_on_link(from: &Endpoint, to: IpAddr, link: u32) -> anyhow::Result<Pinger> {
        let (family, protocol) = match to {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let socket = from.open("open an ICMP socket", || {
            let socket = rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
            // Only what comes from there is received.
            match to {
                IpAddr::V4(to) => rustix::net::connect(&socket, &SocketAddrV4::new(to, 0))?,
                IpAddr::V6(to) => rustix::net::connect(&socket, &SocketAddrV6::new(to, 0, 0, link))?,
            }
            Ok(socket)
        })?;
        let identifier = NEXT_IDENTIFIER.fetch_add(1, Ordering::Relaxed);
        Ok(Pinger { socket, ipv4: to.is_ipv4(), identifier, sequence: 0 })
    }

    /// Sends one echo request and waits for its reply; `None` if none comes in time.
    pub fn once(&mut self, timeout: Duration) -> io::Result<Option<Duration>> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = self.request();
        let start = Instant::now();
        match rustix::net::send(&self.socket, &request, SendFlags::empty()) {
            Ok(_) => {}
            // What an earlier ICMP error says about this destination: not reachable now.
            Err(rustix::io::Errno::HOSTUNREACH | rustix::io::Errno::NETUNREACH | rustix::io::Errno::ACCESS) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
        let mut buffer = [0u8; 2048];
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, Some(left))?;
            match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) if self.is_reply(buffer.get(..length).unwrap_or_default()) => {
                    return Ok(Some(start.elapsed()));
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::HOSTUNREACH) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn request(&self) -> Vec<u8> {
        let kind = if self.ipv4 { 8 } else { 128 };
        let mut message = vec![kind, 0, 0, 0];
        message.extend(self.identifier.to_be_bytes());
        message.extend(self.sequence.to_be_bytes());
        message.extend(super::pattern(DATA_BYTES));
        if self.ipv4 {
            // For ICMPv6 the kernel does it: the sum covers addresses only it knows.
            let sum = checksum(&message).to_be_bytes();
            message[2..4].copy_from_slice(&sum);
        }
        message
    }

    /// Whether a received message answers the last request, with the data unharmed.
    fn is_reply(&self, received: &[u8]) -> bool {
        // IPv4 raw sockets deliver the IP header too.
        let header = if self.ipv4 { usize::from(received.first().copied().unwrap_or(0) & 0x0f) * 4 } else { 0 };
        let kind = if self.ipv4 { 0 } else { 129 };
        let message = received.get(header..).unwrap_or_default();
        let Some((head, data)) = message.split_at_checked(HEADER_BYTES) else { return false };
        head.first() == Some(&kind)
            && head[4..] == self.request()[4..HEADER_BYTES]
            && data == super::pattern(DATA_BYTES)
    }
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
