//! What a packet's headers say of joining it with others of its flow: `joining.rs` has the rules and does it.
//!
//! Reads only; every length is checked against the packet. Runs on workers.

use std::ops::Range;

use super::field::{self, read16, read32};
use crate::packet::checksum::{self, Accumulator};
use crate::packet::copy_and_checksum::Kernel;
use crate::packet::parse::{ethertype, protocol};
use crate::packet::{Checksum, FrameMemory, Packet};

/// Flags that a segment of a unit may have.
const JOINABLE_FLAGS: u8 = field::ACK | ENDING_FLAGS;
/// Flags that end a unit.
pub(super) const ENDING_FLAGS: u8 = field::PSH | field::FIN;

/// What a packet is to the joiner.
pub(super) enum Found {
    /// A TCP segment or UDP datagram whose flow is known, joinable or not.
    Segment(Segment),
    /// Nothing that is ever joined: no flow of ours.
    Other,
    /// It may be of a flow, but which one cannot be told: a fragment, options, extensions, cut short.
    Unreadable,
}

/// What the headers of a TCP segment or UDP datagram say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) is_ipv6: bool,
    pub(super) is_udp: bool,
    pub(super) network: usize,
    pub(super) transport: usize,
    pub(super) payload: usize,
    /// Bytes of payload.
    pub(super) length: usize,
    /// Zero for UDP, where any datagram follows any.
    pub(super) sequence: u32,
    /// Zero for IPv6.
    pub(super) identification: u16,
    /// Zero for UDP.
    pub(super) flags: u8,
    pub(super) flow_hash: u32,
    /// Whether headers and metadata allow a join; the checksum was not looked at.
    pub(super) may_join: bool,
    /// Whether the checksum is left to whoever needs it, so that there is none to be wrong.
    is_open: bool,
}

impl Segment {
    /// Reads a packet whose head is `head`; UDP only if `datagrams`.
    pub(super) fn read(head: &[u8], packet: &Packet, datagrams: bool) -> Found {
        let Some((kind, network)) = network_header(head) else { return Found::Other };
        let is_ipv6 = match kind {
            ethertype::IPV4 => false,
            ethertype::IPV6 => true,
            _ => return Found::Other,
        };
        let read = if is_ipv6 { read_ipv6(head, network) } else { read_ipv4(head, network, datagrams) };
        match read {
            Some(Ip { protocol: protocol::TCP, length }) => Self::read_tcp(head, packet, is_ipv6, network, length),
            Some(Ip { protocol: protocol::UDP, length }) if datagrams => {
                Self::read_udp(head, packet, is_ipv6, network, length)
            }
            Some(_) => Found::Other,
            None => Found::Unreadable,
        }
    }

    /// `length` is what the IP header says, itself included.
    fn read_tcp(head: &[u8], packet: &Packet, is_ipv6: bool, network: usize, length: usize) -> Found {
        let transport = network + if is_ipv6 { field::IPV6_BYTES } else { field::IPV4_BYTES };
        let Some(header) = head.get(transport..transport + field::TCP_BYTES) else { return Found::Unreadable };
        let header_bytes = usize::from(header[field::TCP_DATA_OFFSET] >> 4) * 4;
        let payload = transport + header_bytes;
        let flags = header[field::TCP_FLAGS];
        let mut segment = Segment {
            is_ipv6,
            is_udp: false,
            network,
            transport,
            payload,
            length: packet.length().saturating_sub(payload),
            sequence: read32(header, field::TCP_SEQUENCE),
            identification: if is_ipv6 { 0 } else { read16(head, network + field::IPV4_IDENTIFICATION) },
            flags,
            flow_hash: 0,
            may_join: false,
            is_open: false,
        };
        segment.flow_hash = head.get(segment.flow()).map_or(0, hash);
        segment.may_join = network + length == packet.length()
            && header_bytes >= field::TCP_BYTES
            && header[field::TCP_DATA_OFFSET] & 15 == 0
            && payload <= packet.head_length()
            && segment.length > 0
            && flags & field::ACK != 0
            && flags & !JOINABLE_FLAGS == 0
            && packet.gso().is_none()
            && packet.checksum() == Checksum::Complete;
        Found::Segment(segment)
    }

    /// `length` is what the IP header says, itself included.
    fn read_udp(head: &[u8], packet: &Packet, is_ipv6: bool, network: usize, length: usize) -> Found {
        let transport = network + if is_ipv6 { field::IPV6_BYTES } else { field::IPV4_BYTES };
        let payload = transport + field::UDP_BYTES;
        let Some(header) = head.get(transport..payload) else { return Found::Unreadable };
        let start = (packet.start() + transport) as u16;
        let is_open = packet.checksum() == Checksum::Partial { start, offset: field::UDP_CHECKSUM as u16 };
        let has_checksum = packet.checksum() == Checksum::Complete && read16(header, field::UDP_CHECKSUM) != 0;
        let mut segment = Segment {
            is_ipv6,
            is_udp: true,
            network,
            transport,
            payload,
            length: packet.length().saturating_sub(payload),
            sequence: 0,
            identification: if is_ipv6 { 0 } else { read16(head, network + field::IPV4_IDENTIFICATION) },
            flags: 0,
            flow_hash: 0,
            may_join: false,
            is_open,
        };
        segment.flow_hash = head.get(segment.flow()).map_or(0, hash);
        segment.may_join = network + length == packet.length()
            && usize::from(read16(header, field::UDP_LENGTH)) == field::UDP_BYTES + segment.length
            && segment.length > 0
            && packet.gso().is_none()
            && (is_open || has_checksum);
        Found::Segment(segment)
    }

    /// Where the checksum lies in the layer-4 header.
    pub(super) fn checksum_offset(&self) -> usize {
        if self.is_udp { field::UDP_CHECKSUM } else { field::TCP_CHECKSUM }
    }

    /// What the sequence number of the next segment is.
    pub(super) fn next_sequence(&self) -> u32 {
        if self.is_udp { 0 } else { self.sequence.wrapping_add(self.length as u32) }
    }

    /// Addresses and ports: contiguous, since there are no options.
    #[inline]
    pub(super) fn flow(&self) -> Range<usize> {
        let addresses = if self.is_ipv6 { field::IPV6_ADDRESSES } else { field::IPV4_ADDRESSES };
        self.network + addresses..self.transport + 4
    }

    /// Sum of the pseudo header with a layer-4 length of `length`.
    pub(super) fn pseudo(&self, head: &[u8], length: usize) -> u32 {
        let flow = self.flow();
        let addresses = head.get(flow.start..flow.end - 4).unwrap_or_default();
        let protocol = if self.is_udp { protocol::UDP } else { protocol::TCP };
        checksum::sum(addresses) + u32::from(protocol) + length as u32
    }

    /// Whether the checksum is right, or left open.
    pub(super) fn verifies(&self, kernel: Kernel, memory: &FrameMemory, packet: &Packet) -> bool {
        if self.is_open {
            return true;
        }
        let head = memory.head(packet);
        let mut total = Accumulator::new(self.pseudo(head, self.payload - self.transport + self.length));
        let covered = head.get(self.transport..).unwrap_or_default();
        total.add(kernel.sum(covered), covered.len());
        for part in memory.parts(packet).skip(1) {
            total.add(kernel.sum(part), part.len());
        }
        total.sum() == 0xffff
    }
}

/// Whether two of the packets at least may be segments: most lists towards most pods can be left as they are.
pub(super) fn any_may_join(memory: &FrameMemory, packets: &[Packet], datagrams: bool) -> bool {
    packets.iter().filter(|packet| may_be_segment(memory.head(packet), datagrams)).nth(1).is_some()
}

/// "Yes" also for tagged frames.
#[inline]
fn may_be_segment(head: &[u8], datagrams: bool) -> bool {
    let Some(front) = head.first_chunk::<24>() else { return false };
    let is_ours = |number| number == protocol::TCP || datagrams && number == protocol::UDP;
    match u16::from_be_bytes([front[12], front[13]]) {
        ethertype::IPV4 => is_ours(front[23]),
        ethertype::IPV6 => is_ours(front[20]),
        ethertype::VLAN | ethertype::QINQ => true,
        _ => false,
    }
}

/// What an IP header without options or extensions says.
struct Ip {
    protocol: u8,
    /// Bytes of the packet, the header among them.
    length: usize,
}

/// `None` if of a protocol that is joined, and fragmented, with options, or cut short.
fn read_ipv4(head: &[u8], network: usize, datagrams: bool) -> Option<Ip> {
    let header = head.get(network..network + field::IPV4_BYTES)?;
    let ip = Ip { protocol: header[field::IPV4_PROTOCOL], length: usize::from(read16(header, field::IPV4_LENGTH)) };
    if ip.protocol != protocol::TCP && !(datagrams && ip.protocol == protocol::UDP) {
        return Some(ip);
    }
    let unfragmented = read16(header, field::IPV4_FRAGMENT) & !(u16::from(field::DONT_FRAGMENT) << 8) == 0;
    (header[0] == 0x45 && unfragmented && checksum::sum(header) == 0xffff).then_some(ip)
}

/// `None` if there are extension headers or it is cut short.
fn read_ipv6(head: &[u8], network: usize) -> Option<Ip> {
    let header = head.get(network..network + field::IPV6_BYTES)?;
    let protocol = header[field::IPV6_NEXT_HEADER];
    let is_known = matches!(protocol, protocol::TCP | protocol::UDP | protocol::ICMPV6 | protocol::SCTP);
    let length = usize::from(read16(header, field::IPV6_LENGTH)) + field::IPV6_BYTES;
    (header[0] >> 4 == 6 && is_known).then_some(Ip { protocol, length })
}

/// EtherType and first byte of what lies behind the Ethernet header and up to two tags.
#[inline]
fn network_header(head: &[u8]) -> Option<(u16, usize)> {
    let mut at = 12;
    for _ in 0..3 {
        let kind = u16::from_be_bytes(*head.get(at..)?.first_chunk()?);
        at += 2;
        if kind != ethertype::VLAN && kind != ethertype::QINQ {
            return Some((kind, at));
        }
        at += 2;
    }
    None
}

/// Tells flows apart quickly; equality is decided by the bytes themselves.
#[inline]
fn hash(flow: &[u8]) -> u32 {
    let (words, _) = flow.as_chunks::<4>();
    words.iter().fold(0, |hash: u32, word| (hash.rotate_left(5) ^ u32::from_ne_bytes(*word)).wrapping_mul(0x9e37_79b9))
}
