//! A datagram in two fragments of which the second comes first, sent by a raw socket of the host.
//!
//! raw(7): a socket of `IPPROTO_RAW` sends what it is given, IP header included, in both families.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use crate::traffic::Endpoint;

/// Payload of the first fragment, UDP header included; fragments count in eights.
const FIRST_BYTES: usize = 1000;
const PAYLOAD_BYTES: usize = 1500;
const UDP: u8 = 17;
const FRAGMENT_HEADER: u8 = 44;
const BETWEEN: Duration = Duration::from_millis(50);

/// Sends it, and waits for what the other end's kernel makes of it.
pub(crate) fn arrive(from: &Endpoint, to: &Endpoint, ipv4: bool, patience: Duration) -> Result<String, String> {
    let server = to.udp(ipv4);
    server.set_read_timeout(Some(patience)).map_err(|error| error.to_string())?;
    let target = server.local_addr().map_err(|error| error.to_string())?;
    let (source, payload) = (from.address(ipv4), vec![0x5a; PAYLOAD_BYTES]);
    let datagram = datagram(source, target, &payload);
    let (first, second) = datagram.split_at(FIRST_BYTES);
    let send = || {
        let socket = raw_socket(ipv4)?;
        send(&socket, target.ip(), &fragment(source, target.ip(), second, FIRST_BYTES, false))?;
        std::thread::sleep(BETWEEN);
        send(&socket, target.ip(), &fragment(source, target.ip(), first, 0, true))
    };
    from.namespace.enter(send).expect("entered").map_err(|error| error.to_string())?;
    let mut buffer = vec![0; PAYLOAD_BYTES + 1];
    let (length, _) = server.recv_from(&mut buffer).map_err(|error| error.to_string())?;
    if buffer[..length] == payload { Ok("arrived".to_owned()) } else { Err("other bytes".to_owned()) }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The sum of RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn datagram(source: IpAddr, target: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let header = [&4000u16.to_be_bytes()[..], &target.port().to_be_bytes(), &length.to_be_bytes(), &[0, 0]].concat();
    let mut datagram = [&header[..], payload].concat();
    let pseudo =
        [&octets(source)[..], &octets(target.ip()), &u32::from(length).to_be_bytes(), &[0, 0, 0, UDP]].concat();
    let sum = checksum(&[&pseudo[..], &datagram].concat());
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

fn fragment(source: IpAddr, target: IpAddr, payload: &[u8], offset: usize, more: bool) -> Vec<u8> {
    const IDENTIFICATION: u16 = 0x3131;
    if source.is_ipv4() {
        let place = (offset / 8) as u16 | u16::from(more) << 13;
        let total = (20 + payload.len()) as u16;
        let mut header =
            [&[0x45, 0][..], &total.to_be_bytes(), &IDENTIFICATION.to_be_bytes(), &place.to_be_bytes()].concat();
        header.extend([64, UDP, 0, 0]);
        header.extend([octets(source), octets(target)].concat());
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        return [&header[..], payload].concat();
    }
    let length = (8 + payload.len()) as u16;
    let mut header = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[FRAGMENT_HEADER, 64]].concat();
    header.extend([octets(source), octets(target)].concat());
    header.extend([UDP, 0]);
    header.extend((offset as u16 | u16::from(more)).to_be_bytes());
    header.extend(u32::from(IDENTIFICATION).to_be_bytes());
    [&header[..], payload].concat()
}

fn raw_socket(ipv4: bool) -> io::Result<OwnedFd> {
    let family = if ipv4 { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: socket(2) touches no memory of ours.
    let descriptor = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor, and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn send(socket: &OwnedFd, target: IpAddr, packet: &[u8]) -> io::Result<()> {
    let mut address = [0u8; 28]; // as long as sockaddr_in6
    let family = if target.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    address[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    // sockaddr_in has the address at 4, sockaddr_in6 at 8; ports are zero, as raw sockets want it.
    let (at, length) = if target.is_ipv4() { (4, 16) } else { (8, 28) };
    let bytes = octets(target);
    address[at..at + bytes.len()].copy_from_slice(&bytes);
    let (data, to) = (packet.as_ptr().cast(), address.as_ptr().cast());
    // SAFETY: both pointers are to as many readable bytes as is said, which live through the call.
    let sent = unsafe { libc::sendto(socket.as_raw_fd(), data, packet.len(), 0, to, length) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
