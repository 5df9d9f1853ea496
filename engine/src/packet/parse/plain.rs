//! The plain frame, which nearly every frame is: untagged, IPv4 without options or IPv6 without extension headers, no
//! fragment, TCP without SYN, FIN and RST, or UDP, everything in its head.
//!
//! Of such a frame the hit path needs very little: that it is sound, and a few numbers. Everything that says which flow it
//! is (addresses, ports, MAC addresses) stands at fixed places and goes into the flow key unread; what the slow path would
//! make of a group address it says once, when the flow is decided. So a hit costs some 60 instructions here and
//! [`super::parse_into`] some 300. A frame that is not plain, or whose flow is not known, is parsed.
//!
//! A shortcut, not a second opinion: it takes only what `parse` takes, and says the same of it. A test holds the two
//! together over all kinds of mutated frames.

use super::protocol;
use crate::packet::wire::{ethernet, ipv4, ipv6, tcp, udp, vxlan};

const NETWORK: usize = ethernet::HEADER_BYTES;
const BEHIND_IPV4: usize = NETWORK + ipv4::HEADER_BYTES;
const BEHIND_IPV6: usize = NETWORK + ipv6::HEADER_BYTES;
/// EtherType of IPv4, version 4 and a header of five words, as they stand in a frame.
const IPV4_WITHOUT_OPTIONS: u32 = u32::from_le_bytes([0x08, 0x00, 0x45, 0]);
/// EtherType and version of IPv6.
const IPV6: u32 = u32::from_le_bytes([0x86, 0xdd, 0x60, 0]);
const CONTROL: u8 = tcp::flag::SYN | tcp::flag::FIN | tcp::flag::RST;
/// Shortest plain frames: headers and a UDP header.
pub(crate) const SHORTEST_IPV4: usize = BEHIND_IPV4 + udp::HEADER_BYTES;
pub(crate) const SHORTEST_IPV6: usize = BEHIND_IPV6 + udp::HEADER_BYTES;
/// Outer headers of IPv4 up to the inner frame.
const OUTER_IPV4: usize = BEHIND_IPV4 + udp::HEADER_BYTES + vxlan::HEADER_BYTES;

/// A plain frame's front: all that its flow key and its edits are made of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Front<'a> {
    /// Ethernet, IPv4 and ports.
    Ipv4(&'a [u8; SHORTEST_IPV4]),
    /// Ethernet, IPv6 and ports.
    Ipv6(&'a [u8; SHORTEST_IPV6]),
}

/// The numbers that differ from packet to packet of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plain {
    /// Bytes from the network header to the packet's end, as [`super::Headers::network_length`].
    pub network_length: u32,
    /// Bytes before the frame: outer headers, or 0.
    pub offset: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Whether it is IPv6.
    pub is_ipv6: bool,
    /// DSCP and ECN of the outer header, or 0.
    pub outer_traffic_class: u8,
}

/// Reads the frame at the front of `head` if it is plain. `length` is the frame's, at least that of `head`.
#[inline(always)]
pub(crate) fn read(head: &[u8], length: usize) -> Option<(Plain, Front<'_>)> {
    let front: &[u8; SHORTEST_IPV4] = head.first_chunk()?;
    let kind = u32::from_le_bytes(at(front, ethernet::ETHERTYPE));
    if kind & 0x00ff_ffff == IPV4_WITHOUT_OPTIONS {
        read_ipv4(head, front, length)
    } else if kind & 0x00f0_ffff == IPV6 {
        read_ipv6(head, length)
    } else {
        None
    }
}

#[inline]
fn read_ipv4<'a>(head: &[u8], front: &'a [u8; SHORTEST_IPV4], length: usize) -> Option<(Plain, Front<'a>)> {
    let total_length = usize::from(u16_at(front, NETWORK + ipv4::TOTAL_LENGTH));
    let payload_length = total_length.wrapping_sub(ipv4::HEADER_BYTES);
    let sound = total_length <= length - NETWORK
        && is_whole(front)
        && header_sum_is_right(front)
        && transport_is_plain(head, BEHIND_IPV4, front[NETWORK + ipv4::PROTOCOL], payload_length);
    let plain = Plain {
        network_length: total_length as u32,
        ttl: front[NETWORK + ipv4::TTL],
        traffic_class: front[NETWORK + ipv4::TRAFFIC_CLASS],
        ..Plain::default()
    };
    sound.then_some((plain, Front::Ipv4(front)))
}

#[inline]
fn read_ipv6(head: &[u8], length: usize) -> Option<(Plain, Front<'_>)> {
    let front: &[u8; SHORTEST_IPV6] = head.first_chunk()?;
    let payload_length = usize::from(u16_at(front, NETWORK + ipv6::PAYLOAD_LENGTH));
    let sound = payload_length <= length - BEHIND_IPV6
        && transport_is_plain(head, BEHIND_IPV6, front[NETWORK + ipv6::NEXT_HEADER], payload_length);
    let plain = Plain {
        network_length: (ipv6::HEADER_BYTES + payload_length) as u32,
        ttl: front[NETWORK + ipv6::HOP_LIMIT],
        traffic_class: front[NETWORK] << 4 | front[NETWORK + 1] >> 4,
        is_ipv6: true,
        ..Plain::default()
    };
    sound.then_some((plain, Front::Ipv6(front)))
}

/// Whether an untagged IPv4 packet is no fragment. Of the word only "don't fragment" and the reserved bit may be set.
#[inline]
fn is_whole(front: &[u8; SHORTEST_IPV4]) -> bool {
    u16_at(front, NETWORK + ipv4::FRAGMENT) & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) == 0
}

/// Whether the payload is TCP or UDP, sound, and no packet that only the slow path may serve. `payload_length` may have
/// wrapped round; then it is longer than any packet, and the frame is refused for it where the header is parsed.
#[inline]
fn transport_is_plain(head: &[u8], offset: usize, number: u8, payload_length: usize) -> bool {
    match number {
        protocol::UDP => {
            let Some(length) = head.get(offset + udp::LENGTH..).and_then(|rest| rest.first_chunk()) else {
                return false;
            };
            let length = usize::from(u16::from_be_bytes(*length));
            length >= udp::HEADER_BYTES && length <= payload_length && payload_length < 1 << 16
        }
        protocol::TCP => {
            let Some(header) = head.get(offset..).and_then(|rest| rest.first_chunk::<{ tcp::HEADER_BYTES }>()) else {
                return false;
            };
            let length = usize::from(header[tcp::DATA_OFFSET] >> 4) * 4;
            length >= tcp::HEADER_BYTES
                && length <= payload_length.min(head.len() - offset)
                && payload_length < 1 << 16
                && header[tcp::FLAGS] & CONTROL == 0
        }
        _ => false,
    }
}

/// Outer headers over IPv4 that need no second look: a VXLAN packet without checksum, whole, without options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outer {
    /// Outer source and destination, in network order.
    pub(crate) addresses: [u8; 8],
    /// VXLAN network identifier.
    pub(crate) vni: u32,
    /// Where the inner frame ends, by the outer header's own length.
    pub(crate) end: usize,
    pub(crate) traffic_class: u8,
}

impl Outer {
    /// Where the inner frame begins.
    pub(crate) const BYTES: usize = OUTER_IPV4;

    /// Reads the outer headers of a packet for UDP port `udp_port`, if they are plain.
    #[inline]
    pub(crate) fn read(head: &[u8], length: usize, udp_port: u16) -> Option<Outer> {
        let outer: &[u8; OUTER_IPV4 + ethernet::HEADER_BYTES] = head.first_chunk()?;
        let front: &[u8; SHORTEST_IPV4] = outer.first_chunk()?;
        let kind = u32::from_le_bytes(at(front, ethernet::ETHERTYPE));
        let total_length = usize::from(u16_at(front, NETWORK + ipv4::TOTAL_LENGTH));
        let datagram = usize::from(u16_at(front, BEHIND_IPV4 + udp::LENGTH));
        let vxlan: [u8; 8] = at(outer, BEHIND_IPV4 + udp::HEADER_BYTES);
        let sound = kind & 0x00ff_ffff == IPV4_WITHOUT_OPTIONS
            && front[NETWORK + ipv4::PROTOCOL] == protocol::UDP
            && u16_at(front, BEHIND_IPV4 + udp::DESTINATION_PORT) == udp_port
            && u16_at(front, BEHIND_IPV4 + udp::CHECKSUM) == 0
            && is_whole(front)
            && total_length <= length - NETWORK
            && datagram + ipv4::HEADER_BYTES <= total_length
            && datagram >= udp::HEADER_BYTES + vxlan::HEADER_BYTES + ethernet::HEADER_BYTES
            && vxlan::read_vni(&vxlan).is_some()
            && header_sum_is_right(front);
        let outer = Outer {
            addresses: at(front, NETWORK + ipv4::SOURCE),
            vni: vxlan::read_vni(&vxlan).unwrap_or_default(),
            end: NETWORK + total_length,
            traffic_class: front[NETWORK + ipv4::TRAFFIC_CLASS],
        };
        sound.then_some(outer)
    }
}

/// Whether the IPv4 header sums up to all ones (RFC 1071), in words of the machine's byte order. A word plus itself with its
/// halves changed has their sum in its upper half, with the carry where it belongs.
#[inline]
fn header_sum_is_right(front: &[u8; SHORTEST_IPV4]) -> bool {
    let word = |offset| u64::from_ne_bytes(at(front, NETWORK + offset));
    let rest = u64::from(u32::from_ne_bytes(at(front, NETWORK + 16)));
    let sum = with_carry(with_carry(word(0), word(8)), rest);
    let half = (with_carry(sum, sum.rotate_left(32)) >> 32) as u32;
    let (twice, carry) = half.overflowing_add(half.rotate_left(16));
    twice.wrapping_add(u32::from(carry)) >> 16 == 0xffff
}

/// One's-complement sum.
#[inline]
fn with_carry(one: u64, other: u64) -> u64 {
    let (sum, carry) = one.overflowing_add(other);
    sum.wrapping_add(u64::from(carry))
}

/// The `M` bytes at `offset`; both are constants, and the checks are made by the compiler.
#[inline]
pub(crate) fn at<const N: usize, const M: usize>(bytes: &[u8; N], offset: usize) -> [u8; M] {
    bytes[offset..].first_chunk().copied().unwrap_or([0; M])
}

#[inline]
fn u16_at<const N: usize>(bytes: &[u8; N], offset: usize) -> u16 {
    u16::from_be_bytes(at(bytes, offset))
}
