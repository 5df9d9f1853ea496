//! The plain frame, which nearly every frame is: unicast, untagged, IPv4 without options or IPv6 without extension
//! headers, no fragment, TCP without SYN, FIN and RST, or UDP.
//!
//! A shortcut, not a second opinion: it takes only what [`super::parse_any`] takes, with the same result, and leaves
//! everything else to it, also every refusal. A test holds the two together over all kinds of mutated frames.

use super::{Headers, Network, ethertype, flag, protocol};
use crate::packet::wire::{ethernet, ipv4, ipv6, tcp, udp};

const NETWORK: usize = ethernet::HEADER_BYTES;
const BEHIND_IPV4: usize = NETWORK + ipv4::HEADER_BYTES;
const BEHIND_IPV6: usize = NETWORK + ipv6::HEADER_BYTES;
/// Version 4 and a header of five words.
const IPV4_WITHOUT_OPTIONS: u8 = 0x45;
const CONTROL: u8 = tcp::flag::SYN | tcp::flag::FIN | tcp::flag::RST;

/// Reads the frame if it is plain. False, and nothing of use in `headers`, if it is not. `head` is no longer than `length`.
#[inline]
pub(super) fn parse(headers: &mut Headers, head: &[u8], length: usize) -> bool {
    let Some(front) = head.first_chunk::<{ BEHIND_IPV4 + udp::HEADER_BYTES }>() else { return false };
    if front[ethernet::DESTINATION] & 1 != 0 {
        return false;
    }
    match u16_at(front, ethernet::ETHERTYPE) {
        ethertype::IPV4 => parse_ipv4(headers, head, front, length),
        ethertype::IPV6 => parse_ipv6(headers, head, length),
        _ => false,
    }
}

#[inline]
fn parse_ipv4<const N: usize>(headers: &mut Headers, head: &[u8], front: &[u8; N], length: usize) -> bool {
    let total_length = usize::from(u16_at(front, NETWORK + ipv4::TOTAL_LENGTH));
    let fragment = u16_at(front, NETWORK + ipv4::FRAGMENT);
    let source: [u8; 4] = at(front, NETWORK + ipv4::SOURCE);
    let destination: [u8; 4] = at(front, NETWORK + ipv4::DESTINATION);
    let plain = front[NETWORK] == IPV4_WITHOUT_OPTIONS
        && fragment & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) == 0
        && total_length >= ipv4::HEADER_BYTES
        && total_length <= length - NETWORK
        && header_sum_is_right(front)
        && is_plain_unicast(source)
        && is_plain_unicast(destination);
    if !plain {
        return false;
    }
    let number = front[NETWORK + ipv4::PROTOCOL];
    let Some(transport) = Transport::read(head, BEHIND_IPV4, number, total_length - ipv4::HEADER_BYTES) else {
        return false;
    };
    // Moves "don't fragment" to the bit of its flag.
    let flags = (fragment & ipv4::DONT_FRAGMENT) / (ipv4::DONT_FRAGMENT / flag::DONT_FRAGMENT);
    headers.network = Network::Ipv4;
    headers.ttl = front[NETWORK + ipv4::TTL];
    headers.traffic_class = front[NETWORK + ipv4::TRAFFIC_CLASS];
    headers.ethertype = ethertype::IPV4;
    headers.source = widen(source);
    headers.destination = widen(destination);
    transport.complete(headers, number, flags, BEHIND_IPV4, total_length);
    true
}

#[inline]
fn parse_ipv6(headers: &mut Headers, head: &[u8], length: usize) -> bool {
    let Some(front) = head.first_chunk::<{ BEHIND_IPV6 + udp::HEADER_BYTES }>() else { return false };
    let payload_length = usize::from(u16_at(front, NETWORK + ipv6::PAYLOAD_LENGTH));
    let source: [u8; 16] = at(front, NETWORK + ipv6::SOURCE);
    let destination: [u8; 16] = at(front, NETWORK + ipv6::DESTINATION);
    let plain = front[NETWORK] >> 4 == 6
        && payload_length <= length - BEHIND_IPV6
        && !ipv6::is_link_local(&source)
        && !ipv6::is_link_local(&destination)
        && !ipv6::is_multicast(&destination);
    if !plain {
        return false;
    }
    let number = front[NETWORK + ipv6::NEXT_HEADER];
    let Some(transport) = Transport::read(head, BEHIND_IPV6, number, payload_length) else { return false };
    headers.network = Network::Ipv6;
    headers.ttl = front[NETWORK + ipv6::HOP_LIMIT];
    headers.traffic_class = front[NETWORK] << 4 | front[NETWORK + 1] >> 4;
    headers.ethertype = ethertype::IPV6;
    headers.source = source;
    headers.destination = destination;
    transport.complete(headers, number, 0, BEHIND_IPV6, ipv6::HEADER_BYTES + payload_length);
    true
}

/// What is plain of a TCP or UDP header.
struct Transport {
    ports: [u16; 2],
    header_length: u16,
    tcp_flags: u8,
}

impl Transport {
    #[inline]
    fn read(head: &[u8], offset: usize, number: u8, payload_length: usize) -> Option<Transport> {
        let bytes = head.get(offset..)?;
        match number {
            protocol::UDP => {
                let header = bytes.first_chunk::<{ udp::HEADER_BYTES }>()?;
                let length = usize::from(u16_at(header, udp::LENGTH));
                let fits = length >= udp::HEADER_BYTES && length <= payload_length;
                fits.then(|| Self::new(header, udp::HEADER_BYTES as u16, 0))
            }
            protocol::TCP => {
                let header = bytes.first_chunk::<{ tcp::HEADER_BYTES }>()?;
                let length = u16::from(header[tcp::DATA_OFFSET] >> 4) * 4;
                let fits = usize::from(length) >= tcp::HEADER_BYTES
                    && usize::from(length) <= payload_length.min(bytes.len())
                    && header[tcp::FLAGS] & CONTROL == 0;
                fits.then(|| Self::new(header, length, header[tcp::FLAGS]))
            }
            _ => None,
        }
    }

    #[inline]
    fn new<const N: usize>(header: &[u8; N], header_length: u16, tcp_flags: u8) -> Self {
        Self { ports: [u16_at(header, 0), u16_at(header, 2)], header_length, tcp_flags }
    }

    /// Fills in what follows from the layer-4 header and from the frame's being plain.
    #[inline]
    fn complete(&self, headers: &mut Headers, number: u8, flags: u16, offset: usize, network_length: usize) {
        headers.protocol = number;
        headers.tcp_flags_or_icmp_type = self.tcp_flags;
        headers.vlan_tags = 0;
        headers.flags = flags;
        headers.vlan = [0; 2];
        headers.network_offset = NETWORK as u16;
        headers.transport_offset = offset as u16;
        headers.payload_offset = offset as u16 + self.header_length;
        headers.ports = self.ports;
        headers.network_length = network_length as u32;
    }
}

/// Neither multicast, limited broadcast nor link-local; "no" for the rest of class E, too.
#[inline]
fn is_plain_unicast(address: [u8; 4]) -> bool {
    address[0] < 0xe0 && u16::from_be_bytes([address[0], address[1]]) != 0xa9fe
}

/// Whether the IPv4 header sums up to all ones (RFC 1071), in words of the machine's byte order.
#[inline]
fn header_sum_is_right<const N: usize>(front: &[u8; N]) -> bool {
    let word = |offset| u64::from(u32::from_ne_bytes(at(front, NETWORK + offset)));
    let sum = word(0) + word(4) + word(8) + word(12) + word(16);
    let folded = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let folded = (folded & 0xffff) + (folded >> 16);
    (folded & 0xffff) + (folded >> 16) == 0xffff
}

#[inline]
fn widen([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// The `M` bytes at `offset`; both are constants, and the checks are made by the compiler.
#[inline]
fn at<const N: usize, const M: usize>(bytes: &[u8; N], offset: usize) -> [u8; M] {
    bytes[offset..].first_chunk().copied().unwrap_or([0; M])
}

#[inline]
fn u16_at<const N: usize>(bytes: &[u8; N], offset: usize) -> u16 {
    u16::from_be_bytes(at(bytes, offset))
}
