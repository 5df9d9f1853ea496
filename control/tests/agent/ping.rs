//! ICMP and ICMPv6 echo over raw sockets.

use std::net::{IpAddr, SocketAddrV4, SocketAddrV6};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, sockopt};

use crate::traffic::Endpoint;

/// Pings `to` from `from` with `length` bytes of data; whether the very same bytes came back within `patience`.
pub(crate) fn ping(from: &Endpoint, to: IpAddr, length: usize, patience: Duration) -> bool {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let open = || {
        let socket = rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
        match to {
            IpAddr::V4(to) => rustix::net::connect(&socket, &SocketAddrV4::new(to, 0))?,
            IpAddr::V6(to) => rustix::net::connect(&socket, &SocketAddrV6::new(to, 0, 0, 0))?,
        }
        Ok::<_, rustix::io::Errno>(socket)
    };
    let Ok(socket) = from.namespace.enter(open).expect("entered") else { return false };
    let request = request(to.is_ipv4(), length);
    if rustix::net::send(&socket, &request, SendFlags::empty()).is_err() {
        return false;
    }
    let end = Instant::now() + patience;
    let mut buffer = vec![0u8; length + 128];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(left)).expect("timeout");
        match rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((length, _)) if is_reply(to.is_ipv4(), &buffer[..length], &request) => return true,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Type, code, checksum, identifier, sequence, data. The kernel computes the checksum of ICMPv6.
fn request(ipv4: bool, length: usize) -> Vec<u8> {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let process = (std::process::id() as u16).to_be_bytes();
    let mut message = vec![if ipv4 { 8 } else { 128 }, 0, 0, 0, process[0], process[1], high, low];
    message.extend((0..length).map(|at| at as u8));
    if ipv4 {
        let sum = millrace_engine::testing::internet_checksum(&[&message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    message
}

/// A raw IPv4 socket gives the IP header too.
fn is_reply(ipv4: bool, received: &[u8], request: &[u8]) -> bool {
    let offset = if ipv4 { received.first().map_or(0, |first| usize::from(first & 15) * 4) } else { 0 };
    let Some(message) = received.get(offset..) else { return false };
    let kind = if ipv4 { 0 } else { 129 };
    message.first() == Some(&kind) && message.get(4..) == request.get(4..)
}
