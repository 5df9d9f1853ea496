//! The kernel calls of UDP sockets that std and rustix have not, and their control messages: thin, one call each.
//!
//! Control messages and socket addresses are read and written as bytes (cmsg(3), ip(7), ipv6(7), udp(7)).
#![allow(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::port::socket::control_bytes;

/// Most messages of one call.
pub(super) const MESSAGES: usize = crate::limits::UDP_MESSAGES;

/// `UDP_SEGMENT` and `UDP_GRO` (include/uapi/linux/udp.h).
const UDP_SEGMENT: libc::c_int = 103;
pub(super) const UDP_GRO: libc::c_int = 104;
/// Index of the count of dropped packets in what `SO_MEMINFO` tells (`SK_MEMINFO_DROPS`).
const MEMORY_DROPS: usize = 8;

/// Bytes of `struct cmsghdr`.
const HEADER_BYTES: usize = 16;
/// Room for the three messages that come or go with a datagram: addresses (40 bytes at most), class and segment (24 each).
const CONTROL_BYTES: usize = 96;
/// Room for an address of either family; `struct sockaddr_in6` has 28 bytes.
const NAME_BYTES: usize = 32;

/// Control messages, aligned as the kernel writes them.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// An address, aligned as the kernel writes it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Name([u8; NAME_BYTES]);

/// What stands beside a datagram that arrived, or beside several of one sender that the kernel gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    /// Bytes in all.
    pub(super) length: usize,
    /// Bytes of each datagram but the last; the length of the only one.
    pub(super) segment: usize,
    /// Who sent it.
    pub(super) source: SocketAddr,
    /// The address of this node that it was sent to.
    pub(super) destination: IpAddr,
    /// DSCP and ECN.
    pub(super) traffic_class: u8,
}

impl Arrival {
    pub(super) const NONE: Arrival = Arrival {
        length: 0,
        segment: 0,
        source: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        destination: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        traffic_class: 0,
    };
}

/// What a datagram is sent with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Departure {
    pub(super) source: IpAddr,
    pub(super) destination: SocketAddr,
    /// The interface it leaves by.
    pub(super) interface: u32,
    pub(super) traffic_class: u8,
    /// Where the kernel cuts the bytes into datagrams of this length.
    pub(super) segment: Option<u16>,
}

/// Receives datagrams, each into its parts, and writes what stands beside them; how many there were.
pub(super) fn receive(
    socket: &OwnedFd,
    parts: &mut [[IoSliceMut<'_>; 2]],
    arrivals: &mut [Arrival; MESSAGES],
) -> io::Result<usize> {
    let mut names = [Name([0; NAME_BYTES]); MESSAGES];
    let mut controls = [Control([0; CONTROL_BYTES]); MESSAGES];
    // SAFETY: headers of zeros are valid ones: no name, no parts, no control messages.
    let mut headers: [libc::mmsghdr; MESSAGES] = unsafe { std::mem::zeroed() };
    let count = parts.len().min(MESSAGES);
    for (((header, parts), name), control) in headers.iter_mut().zip(parts).zip(&mut names).zip(&mut controls) {
        let header = &mut header.msg_hdr;
        // IoSliceMut has the layout of iovec, by its documentation.
        (header.msg_iov, header.msg_iovlen) = (parts.as_mut_ptr().cast(), parts.len() as _);
        (header.msg_name, header.msg_namelen) = (name.0.as_mut_ptr().cast(), NAME_BYTES as libc::socklen_t);
        (header.msg_control, header.msg_controllen) = (control.0.as_mut_ptr().cast(), CONTROL_BYTES as _);
    }
    let (start, no_limit) = (headers.as_mut_ptr(), std::ptr::null_mut());
    // SAFETY: `count` headers, with the parts and the room that they point to, live until the call returns, lengths given.
    let received = unsafe { libc::recvmmsg(socket.as_raw_fd(), start, count as libc::c_uint, 0, no_limit) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    let beside = headers.iter().zip(&names).zip(&controls).zip(arrivals);
    for (((header, name), control), arrival) in beside.take(received) {
        let control = control.0.get(..control_bytes(&header.msg_hdr)).unwrap_or_default();
        *arrival = read_arrival(header.msg_len as usize, &name.0, control);
    }
    Ok(received)
}

/// Sends the bytes of all parts as one datagram, or cut into several.
pub(super) fn send(socket: &OwnedFd, departure: &Departure, parts: &[IoSlice<'_>]) -> io::Result<()> {
    let (mut name, name_bytes) = name_of(departure.destination);
    let mut control = Control([0; CONTROL_BYTES]);
    let written = write_control(&mut control.0, departure);
    // SAFETY: a header of zeros is a valid one: no name, no parts, no control messages.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    // IoSlice has the layout of iovec, by its documentation; the kernel only reads it.
    (header.msg_iov, header.msg_iovlen) = (parts.as_ptr().cast_mut().cast(), parts.len() as _);
    (header.msg_name, header.msg_namelen) = (name.0.as_mut_ptr().cast(), name_bytes as libc::socklen_t);
    (header.msg_control, header.msg_controllen) = (control.0.as_mut_ptr().cast(), written as _);
    // SAFETY: the header, and the name, parts and control messages it points to, live until the call returns, lengths given.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ties a socket to an interface: only what comes in by it arrives.
pub(super) fn bind_to_interface(socket: &OwnedFd, interface: &str) -> io::Result<()> {
    let (level, option) = (libc::SOL_SOCKET, libc::SO_BINDTODEVICE);
    let (start, length) = (interface.as_ptr().cast(), interface.len() as libc::socklen_t);
    // SAFETY: the name lives until the call returns, its length is given, and the kernel only reads it.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, start, length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Datagrams that the kernel dropped because nobody took the earlier ones.
pub(super) fn dropped(socket: &OwnedFd) -> io::Result<u64> {
    let mut told = [0u32; MEMORY_DROPS + 1];
    let mut length = size_of_val(&told) as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_MEMINFO);
    // SAFETY: the numbers live until the call returns, and the kernel writes at most as many bytes as it is told.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut told).cast(), &raw mut length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(u64::from(told[MEMORY_DROPS])) }
}

fn name_of(address: SocketAddr) -> (Name, usize) {
    let mut name = Name([0; NAME_BYTES]);
    let bytes = &mut name.0;
    bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
    let (family, length) = match address.ip() {
        IpAddr::V4(ip) => {
            bytes[4..8].copy_from_slice(&ip.octets());
            (libc::AF_INET, 16)
        }
        IpAddr::V6(ip) => {
            bytes[8..24].copy_from_slice(&ip.octets());
            (libc::AF_INET6, 28)
        }
    };
    bytes[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    (name, length)
}

/// The address that the kernel wrote; one of no host, if it wrote none.
fn address_of(name: &[u8; NAME_BYTES]) -> SocketAddr {
    let port = u16::from_be_bytes([name[2], name[3]]);
    let ip = match i32::from(u16::from_ne_bytes([name[0], name[1]])) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::new(name[4], name[5], name[6], name[7])),
        libc::AF_INET6 => ipv6(&name[8..24]).map_or(Arrival::NONE.destination, IpAddr::V6),
        _ => Arrival::NONE.destination,
    };
    SocketAddr::new(ip, port)
}

fn ipv6(bytes: &[u8]) -> Option<Ipv6Addr> {
    Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?))
}

/// Writes the control messages of a departure; their bytes.
fn write_control(control: &mut [u8; CONTROL_BYTES], departure: &Departure) -> usize {
    let mut at = 0;
    let mut put = |level: libc::c_int, kind: libc::c_int, content: &[u8]| {
        let length = HEADER_BYTES + content.len();
        control[at..at + 8].copy_from_slice(&length.to_ne_bytes());
        control[at + 8..at + 12].copy_from_slice(&level.to_ne_bytes());
        control[at + 12..at + 16].copy_from_slice(&kind.to_ne_bytes());
        control[at + 16..at + length].copy_from_slice(content);
        at += length.next_multiple_of(8);
    };
    let class = i32::from(departure.traffic_class).to_ne_bytes();
    let interface = departure.interface.to_ne_bytes();
    match departure.source {
        IpAddr::V4(source) => {
            // struct in_pktinfo: interface, source, nothing.
            let mut content = [0; 12];
            content[..4].copy_from_slice(&interface);
            content[4..8].copy_from_slice(&source.octets());
            put(libc::IPPROTO_IP, libc::IP_PKTINFO, &content);
            put(libc::IPPROTO_IP, libc::IP_TOS, &class);
        }
        IpAddr::V6(source) => {
            // struct in6_pktinfo: source, interface.
            let mut content = [0; 20];
            content[..16].copy_from_slice(&source.octets());
            content[16..].copy_from_slice(&interface);
            put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &content);
            put(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &class);
        }
    }
    if let Some(segment) = departure.segment {
        put(libc::IPPROTO_UDP, UDP_SEGMENT, &segment.to_ne_bytes());
    }
    at
}

fn read_arrival(length: usize, name: &[u8; NAME_BYTES], mut control: &[u8]) -> Arrival {
    let mut arrival = Arrival { length, segment: length, source: address_of(name), ..Arrival::NONE };
    while let Some((header, rest)) = control.split_first_chunk::<HEADER_BYTES>() {
        let [l0, l1, l2, l3, l4, l5, l6, l7, v0, v1, v2, v3, k0, k1, k2, k3] = *header;
        let length = usize::from_ne_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
        let level = libc::c_int::from_ne_bytes([v0, v1, v2, v3]);
        let kind = libc::c_int::from_ne_bytes([k0, k1, k2, k3]);
        let number = rest.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                let address: Option<&[u8; 4]> = rest.get(8..).and_then(<[u8]>::first_chunk);
                arrival.destination = address.map_or(arrival.destination, |octets| IpAddr::from(*octets));
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                arrival.destination = ipv6(rest).map_or(arrival.destination, IpAddr::V6);
            }
            (libc::IPPROTO_IP, libc::IP_TOS) => arrival.traffic_class = rest.first().copied().unwrap_or_default(),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => arrival.traffic_class = number as u8,
            (libc::IPPROTO_UDP, UDP_GRO) if number > 0 => arrival.segment = number as usize,
            _ => {}
        }
        let next = length.max(HEADER_BYTES).checked_next_multiple_of(8).unwrap_or(usize::MAX);
        control = control.get(next..).unwrap_or_default();
    }
    arrival
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_beside_a_datagram_reads_the_same() {
        for (source, destination) in
            [("192.0.2.1", "192.0.2.2:8472"), ("2001:db8::1", "[2001:db8::2]:8472")].map(|(source, destination)| {
                (source.parse::<IpAddr>().expect("address"), destination.parse::<SocketAddr>().expect("address"))
            })
        {
            let departure = Departure { source, destination, interface: 7, traffic_class: 0xb9, segment: Some(1450) };
            let mut control = [0; CONTROL_BYTES];
            let written = write_control(&mut control, &departure);
            let (name, _) = name_of(destination);
            let read = read_arrival(9, &name.0, &control[..written]);
            assert_eq!((read.source, read.traffic_class, read.length, read.segment), (destination, 0xb9, 9, 9));
        }
    }

    #[test]
    fn broken_control_messages_say_nothing() {
        let message = |length: usize| {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend_from_slice(&libc::IPPROTO_UDP.to_ne_bytes());
            bytes.extend_from_slice(&UDP_GRO.to_ne_bytes());
            bytes
        };
        let gathered = [message(20), 100i32.to_ne_bytes().to_vec(), vec![0; 4]].concat();
        let read = |control: &[u8]| read_arrival(250, &[0; NAME_BYTES], control);
        assert_eq!(read(&gathered).segment, 100);
        assert_eq!(read(&[message(16), vec![0; 8], gathered.clone()].concat()).segment, 250, "its length is too short");
        for broken in [&message(usize::MAX)[..], &message(0), &gathered[..15], &[]] {
            assert_eq!(read(broken), Arrival { length: 250, segment: 250, ..Arrival::NONE });
        }
    }
}
