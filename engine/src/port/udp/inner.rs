//! What the sending kernel left to a wire that does not exist.
//!
//! A kernel that is joined to this one by a veth pair may leave the inner packet's checksum partial, and its unit of TCP
//! segments whole: for the kernel both are right as long as nothing is a wire. Such a packet is known by its checksum
//! field, which holds the sum of the pseudo header and nothing else; no other sign is believed. A right checksum equals
//! that sum once in 65,536 packets, and computing it again does no harm. Cost: a dozen loads a packet, no look at its
//! payload.

use crate::packet::parse::{ethertype, protocol};
use crate::packet::wire::{ethernet, ipv4, ipv6, tcp, udp};
use crate::packet::{Gso, GsoKind, checksum};

const NETWORK: usize = ethernet::HEADER_BYTES;

/// What is left to do to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unfinished {
    /// First byte of the layer-4 header, counted from the inner frame's first.
    pub(super) transport: usize,
    /// Where the checksum field lies behind it.
    pub(super) offset: u16,
    /// That it is a unit of segments: of the longest that the tunnel carries, since their size is not told.
    pub(super) gso: Option<Gso>,
}

struct Packet {
    transport: usize,
    protocol: u8,
    /// Bytes of the layer-4 packet.
    length: usize,
    /// Sum of addresses and protocol.
    pseudo: u32,
    is_ipv6: bool,
}

/// What is left to do to the inner frame whose first bytes are `frame`, all of its headers among them. `longest` is the
/// longest IP packet that the tunnel carries. `None` for a packet that is as on a wire.
#[inline]
pub(super) fn unfinished(frame: &[u8], longest: usize) -> Option<Unfinished> {
    let packet = read(frame)?;
    let offset = match packet.protocol {
        protocol::TCP => tcp::CHECKSUM,
        protocol::UDP => udp::CHECKSUM,
        _ => return None,
    };
    let transport = frame.get(packet.transport..)?;
    let field = transport.get(offset..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))?;
    let pseudo = u64::from(packet.pseudo) + packet.length as u64;
    (field == checksum::fold(pseudo)).then(|| Unfinished {
        transport: packet.transport,
        offset: offset as u16,
        gso: unit(&packet, transport, longest),
    })
}

/// Addresses, protocol and lengths of a packet without options, extensions or fragments.
#[inline]
fn read(frame: &[u8]) -> Option<Packet> {
    let kind = frame.get(ethernet::ETHERTYPE..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))?;
    let network = frame.get(NETWORK..)?;
    if kind == ethertype::IPV4 {
        let header: &[u8; ipv4::HEADER_BYTES] = network.first_chunk()?;
        let is_whole = header[6] & 0x3f | header[7] == 0;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]])).checked_sub(ipv4::HEADER_BYTES)?;
        let pseudo = checksum::sum(&header[12..]) + u32::from(header[9]);
        return (header[0] == 0x45 && is_whole).then_some(Packet {
            transport: NETWORK + ipv4::HEADER_BYTES,
            protocol: header[9],
            length,
            pseudo,
            is_ipv6: false,
        });
    }
    let header: &[u8; ipv6::HEADER_BYTES] = network.first_chunk().filter(|_| kind == ethertype::IPV6)?;
    Some(Packet {
        transport: NETWORK + ipv6::HEADER_BYTES,
        protocol: header[6],
        length: usize::from(u16::from_be_bytes([header[4], header[5]])),
        pseudo: checksum::sum(&header[8..]) + u32::from(header[6]),
        is_ipv6: true,
    })
}

/// Only TCP: datagrams' boundaries must not be guessed.
fn unit(packet: &Packet, transport: &[u8], longest: usize) -> Option<Gso> {
    let headers = packet.transport - NETWORK;
    if packet.protocol != protocol::TCP || headers + packet.length <= longest {
        return None;
    }
    let header = usize::from(transport.get(tcp::DATA_OFFSET)? >> 4) * 4;
    let size = longest.checked_sub(headers + header.max(tcp::HEADER_BYTES))?;
    let kind = if packet.is_ipv6 { GsoKind::TcpIpv6 } else { GsoKind::TcpIpv4 };
    (size > 0).then_some(Gso { kind, size: size as u16, ecn: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Mac;
    use crate::testing::{FrameBuilder, frame};

    const LONGEST: usize = 1450;

    fn between(ipv6: bool) -> FrameBuilder {
        let ends = if ipv6 { ["fd00::1", "fd00::2"] } else { ["10.1.0.5", "10.1.0.6"] };
        frame().from(Mac([2, 0, 0, 0, 0, 1]), ends[0]).to(Mac([2, 0, 0, 0, 0, 2]), ends[1])
    }

    #[test]
    fn a_partial_checksum_is_known_by_its_sum() {
        for (ipv6, transport) in [(false, 34), (true, 54)] {
            for (builder, offset) in [(between(ipv6).tcp(0x10), 16), (between(ipv6).udp(), 6)] {
                let left = |builder: FrameBuilder| unfinished(&builder.wire().bytes, LONGEST);
                let partial = builder.clone().payload_of(700).partial_checksum();
                assert_eq!(left(partial), Some(Unfinished { transport, offset, gso: None }));
                assert_eq!(left(builder.clone().payload_of(700)), None, "complete");
            }
        }
    }

    #[test]
    fn a_unit_is_one_of_the_longest_segments() {
        for (ipv6, headers) in [(false, 40), (true, 60)] {
            let whole = between(ipv6).tcp(0x10).payload_of(40_000).gso(1000).wire();
            let size = (LONGEST - headers) as u16;
            let kind = if ipv6 { GsoKind::TcpIpv6 } else { GsoKind::TcpIpv4 };
            let left = unfinished(&whole.bytes[..200], LONGEST).expect("a unit");
            assert_eq!(left.gso, Some(Gso { kind, size, ecn: false }));
        }
    }

    #[test]
    fn fragments_other_protocols_and_stumps_are_left_alone() {
        let whole = between(false).tcp(0x10).payload_of(40).partial_checksum().wire().bytes;
        let with = |at: usize, value: u8| {
            let mut changed = whole.clone();
            changed[at] = value;
            unfinished(&changed, LONGEST)
        };
        assert!(unfinished(&whole, LONGEST).is_some());
        assert_eq!([with(20, 0x20), with(21, 3), with(23, 1), with(14, 0x46), with(12, 9)], [None; 5]);
        assert!((0..whole.len().min(52)).all(|length| unfinished(&whole[..length], LONGEST).is_none()));
    }
}
