//! Applies a compiled rewrite to one packet, in place.
//!
//! Cost: one pass over the headers, no look-up, no allocation. Every step knows both checksum modes: with a partial
//! checksum the field holds the uncomplemented pseudo-header sum, in which addresses count with the other sign and
//! ports do not count at all. A step that does not fit (a programmer's mistake elsewhere) drops the packet.

use super::translate::translate;
use super::{CompiledRewrite, Encapsulation, Translation};
use crate::drop_reason::DropReason;
use crate::packet::wire::{self, ethernet, ipv4, ipv6, udp, vlan};
use crate::packet::{FrameMemory, Headers, Network, Packet};
use crate::tables::Tag;
use crate::transmit::{Layout, OuterLayout};

/// Lowest source port of tunnelled frames; the flow's hash is added (RFC 7348 section 5: the dynamic range).
const ENTROPY_BASE: u16 = 49152;
const ENTROPY_MASK: u16 = 0x3fff;
/// Priority and drop-eligible bits of a tag's control information.
const PRIORITY_MASK: u16 = !vlan::ID_MASK;
pub(super) const ECN_MASK: u8 = 3;
/// The codepoints of RFC 3168 section 5: not capable, and capable in two shades.
const ECN_NOT_CAPABLE: u8 = 0;
const ECN_CAPABLE_1: u8 = 1;
const ECN_CAPABLE_0: u8 = 2;
const ECN_CONGESTION: u8 = 3;

/// What the edit must know of the packet it gets.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Headers of the innermost frame.
    pub headers: &'a Headers,
    /// Bytes before the innermost frame: the tunnel's outer headers, or 0.
    pub inner_offset: usize,
    /// DSCP and ECN of the outer header, 0 without one.
    pub outer_traffic_class: u8,
    /// Hash of the flow, for the tunnel's source port.
    pub flow_hash: u64,
}

/// Applies `rewrite` to the packet; says where its headers lie afterwards, for cutting and completing it.
///
/// # Errors
/// Why the packet must be dropped instead.
#[inline]
pub fn apply(
    memory: &FrameMemory,
    packet: &mut Packet,
    subject: &Subject<'_>,
    compiled: &CompiledRewrite,
    translation: &Translation,
) -> Result<Layout, DropReason> {
    let rewrite = &compiled.rewrite;
    let mut shift = 0i32;
    let mut traffic_class = subject.headers.traffic_class;
    if rewrite.decapsulate {
        traffic_class = decapsulate(memory, packet, subject)?;
    }
    if rewrite.pop_tags > 0 {
        shift -= pop_tags(memory, packet, rewrite.pop_tags)?;
    }
    if translation.source.is_some() || translation.destination.is_some() {
        translate(memory, packet, subject.headers, shift, translation)?;
    }
    if let Some(macs) = rewrite.route {
        let frame = memory.head_mut(packet);
        ethernet::set_addresses(frame, macs.destination, macs.source).ok_or(DropReason::EthernetTruncated)?;
        let network = at(subject.headers.network_offset, shift);
        decrement_ttl(frame.get_mut(network..).unwrap_or_default(), subject.headers)?;
    }
    if let Some(tag) = rewrite.push_tag {
        let priority = if rewrite.pop_tags > 0 { subject.headers.vlan[0] & PRIORITY_MASK } else { 0 };
        shift += push_tag(memory, packet, tag, priority)?;
    }
    let outer = match &rewrite.encapsulate {
        None => None,
        Some(encapsulation) => Some(encapsulate(memory, packet, subject, traffic_class, compiled, encapsulation)?),
    };
    let base = shift + outer.map_or(0, |_| i32::from(compiled.template_length));
    let headers = subject.headers;
    Ok(Layout {
        outer,
        network_offset: at(headers.network_offset, base) as u16,
        transport_offset: at(headers.transport_offset, base) as u16,
        payload_offset: at(headers.payload_offset, base) as u16,
    })
}

#[inline]
pub(super) fn at(offset: u16, shift: i32) -> usize {
    (i32::from(offset) + shift).max(0) as usize
}

/// Takes the outer headers off and carries congestion inwards; returns the inner DSCP and ECN as they are then.
fn decapsulate(memory: &FrameMemory, packet: &mut Packet, subject: &Subject<'_>) -> Result<u8, DropReason> {
    if !packet.strip(subject.inner_offset) {
        return Err(DropReason::VxlanTruncated);
    }
    packet.set_tunnelled(false);
    let headers = subject.headers;
    let inner = headers.traffic_class;
    if !matches!(headers.network, Network::Ipv4 | Network::Ipv6) {
        return Ok(inner);
    }
    let header = memory.head_mut(packet).get_mut(headers.network_offset as usize..).unwrap_or_default();
    carry_congestion(header, headers.network == Network::Ipv6, inner, subject.outer_traffic_class)
}

/// Writes into an inner IP header what a tunnel's outer one says of congestion; returns its DSCP and ECN as they are then.
pub(super) fn carry_congestion(header: &mut [u8], is_ipv6: bool, inner: u8, outer: u8) -> Result<u8, DropReason> {
    let traffic_class = inner & !ECN_MASK | inner_ecn(inner & ECN_MASK, outer & ECN_MASK)?;
    if traffic_class == inner {
        return Ok(inner);
    }
    let done = if is_ipv6 {
        ipv6::set_traffic_class(header, traffic_class)
    } else {
        ipv4::set_traffic_class(header, traffic_class)
    };
    done.map(|()| traffic_class).ok_or(DropReason::VxlanTruncated)
}

/// The ECN field that leaves a tunnel (RFC 6040 figure 4): congestion is carried inwards, a sender that cannot hear of
/// it loses the packet instead, and the weaker sign of pre-congestion overrules ECT(0).
#[inline]
fn inner_ecn(inner: u8, outer: u8) -> Result<u8, DropReason> {
    match (inner, outer) {
        (ECN_NOT_CAPABLE, ECN_CONGESTION) => Err(DropReason::EcnNotCapable),
        (ECN_NOT_CAPABLE, _) => Ok(ECN_NOT_CAPABLE),
        (_, ECN_CONGESTION) => Ok(ECN_CONGESTION),
        (ECN_CAPABLE_0, ECN_CAPABLE_1) => Ok(ECN_CAPABLE_1),
        (inner, _) => Ok(inner),
    }
}

/// Moves the MAC addresses over `tags` VLAN tags; returns the bytes that went.
fn pop_tags(memory: &FrameMemory, packet: &mut Packet, tags: u8) -> Result<i32, DropReason> {
    let bytes = usize::from(tags) * 4;
    let frame = memory.head_mut(packet);
    if frame.len() < ethernet::HEADER_BYTES + bytes {
        return Err(DropReason::EthernetTruncated);
    }
    frame.copy_within(0..12, bytes);
    if packet.strip(bytes) { Ok(bytes as i32) } else { Err(DropReason::EthernetTruncated) }
}

/// Puts a VLAN tag behind the MAC addresses; returns the bytes that came.
fn push_tag(memory: &FrameMemory, packet: &mut Packet, tag: Tag, priority: u16) -> Result<i32, DropReason> {
    if !packet.prepend(4) {
        return Err(DropReason::Oversized);
    }
    let frame = memory.head_mut(packet);
    if frame.len() < ethernet::HEADER_BYTES + 4 {
        return Err(DropReason::EthernetTruncated);
    }
    frame.copy_within(4..16, 0);
    frame[12..14].copy_from_slice(&tag.protocol.ethertype().to_be_bytes());
    frame[14..16].copy_from_slice(&(tag.identifier & vlan::ID_MASK | priority).to_be_bytes());
    Ok(4)
}

#[inline]
fn decrement_ttl(header: &mut [u8], headers: &Headers) -> Result<(), DropReason> {
    let ttl = headers.ttl.saturating_sub(1);
    match headers.network {
        Network::Ipv4 => ipv4::set_ttl(header, ttl).ok_or(DropReason::Ipv4Truncated),
        Network::Ipv6 => ipv6::set_hop_limit(header, ttl).ok_or(DropReason::Ipv6Truncated),
        Network::Arp | Network::Other => Ok(()),
    }
}

/// The UDP source port of a flow's outer headers.
#[inline]
pub(super) fn entropy_port(flow_hash: u64) -> u16 {
    ENTROPY_BASE + ((flow_hash >> 17) as u16 & ENTROPY_MASK)
}

/// Puts the outer headers on. Lengths are those of the packet as it is; cutting a unit writes each segment's own.
#[inline]
fn encapsulate(
    memory: &FrameMemory,
    packet: &mut Packet,
    subject: &Subject<'_>,
    traffic_class: u8,
    compiled: &CompiledRewrite,
    encapsulation: &Encapsulation,
) -> Result<OuterLayout, DropReason> {
    let inner_bytes = packet.length();
    let template = compiled.template();
    if !packet.prepend(template.len()) {
        return Err(DropReason::Oversized);
    }
    packet.set_tunnelled(true);
    let is_ipv6 = encapsulation.source.is_ipv6();
    let frame = memory.head_mut(packet);
    frame[..template.len()].copy_from_slice(template);
    let (network, udp_offset) = (ethernet::HEADER_BYTES, template.len() - 16);
    let datagram = inner_bytes + 16;
    let ecn = match subject.headers.network {
        Network::Ipv4 | Network::Ipv6 => traffic_class & ECN_MASK,
        Network::Arp | Network::Other => 0,
    };
    let header = &mut frame[network..];
    if is_ipv6 {
        ipv6::set_payload_length(header, datagram.min(65535) as u16).ok_or(DropReason::Oversized)?;
        ipv6::set_traffic_class(header, ecn).ok_or(DropReason::Oversized)?;
    } else {
        let total = (datagram + ipv4::HEADER_BYTES).min(65535) as u16;
        wire::write_bytes(header, ipv4::TRAFFIC_CLASS, &[ecn]).ok_or(DropReason::Oversized)?;
        wire::write_u16(header, ipv4::TOTAL_LENGTH, total).ok_or(DropReason::Oversized)?;
        let sum = compiled.ipv4_checksum(ecn, total);
        wire::write_u16(header, ipv4::CHECKSUM, sum).ok_or(DropReason::Oversized)?;
    }
    let source_port = entropy_port(subject.flow_hash);
    let udp_header = &mut frame[udp_offset..];
    wire::write_u16(udp_header, udp::SOURCE_PORT, source_port).ok_or(DropReason::Oversized)?;
    wire::write_u16(udp_header, udp::LENGTH, datagram.min(65535) as u16).ok_or(DropReason::Oversized)?;
    Ok(OuterLayout { network_offset: network as u16, udp_offset: udp_offset as u16, is_ipv6 })
}
