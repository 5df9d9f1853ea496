//! The edits of plain packets (`packet/parse/plain.rs`), of which no byte behind the headers is to be touched.
//!
//! The steps are bits of one number that the flow's rewrite carries; what [`super::apply`] asks of every packet is decided
//! there already. The result is the same; a test compares them. About six cycles for a routed packet, some ten more for new
//! addresses or for outer headers.

use super::apply::{ECN_MASK, carry_congestion, entropy_port};
use super::compiled::step;
use super::translate_plain::translate_plain;
use super::{CompiledRewrite, NewEnds};
use crate::drop_reason::DropReason;
use crate::packet::parse::Plain;
use crate::packet::wire::{ethernet, ipv4, ipv6, udp};
use crate::packet::{FrameMemory, Packet};

const NETWORK: usize = ethernet::HEADER_BYTES;
/// Outer Ethernet, IPv4, UDP and VXLAN.
const OUTER_BYTES: usize = 50;
const OUTER_UDP: usize = NETWORK + ipv4::HEADER_BYTES;
const UDP_AND_VXLAN: usize = 16;
/// Ethernet and the part of either IP header that routing changes.
const ROUTED_BYTES: usize = NETWORK + ipv4::HEADER_BYTES;

/// Applies new ends and rewrite to a plain packet with nothing left to do to its payload; `None`, and nothing changed, if the
/// rewrite is one for [`super::apply`]. `flow_hash` chooses a tunnel's source port.
///
/// # Errors
/// Why the packet must be dropped instead.
#[inline(always)]
pub fn apply_plain(
    memory: &FrameMemory,
    packet: &mut Packet,
    plain: &Plain,
    flow_hash: impl FnOnce() -> u64,
    compiled: &CompiledRewrite,
    ends: NewEnds<'_>,
) -> Option<Result<(), DropReason>> {
    let steps = compiled.steps;
    if steps & step::OTHER != 0 {
        return None;
    }
    let mut traffic_class = plain.traffic_class;
    if steps & step::DECAPSULATE != 0 {
        match decapsulate(memory, packet, plain) {
            Ok(inner) => traffic_class = inner,
            Err(reason) => return Some(Err(reason)),
        }
    }
    if steps & step::ROUTE != 0 || !ends.is_none() {
        let frame = memory.head_mut(packet);
        if !ends.is_none() && translate_plain(frame, plain.is_ipv6, ends).is_none() {
            return Some(Err(DropReason::EthernetTruncated));
        }
        if steps & step::ROUTE != 0 {
            let Some(frame) = frame.first_chunk_mut() else { return Some(Err(DropReason::EthernetTruncated)) };
            route(frame, &compiled.macs, plain);
        }
    }
    if steps & step::ENCAPSULATE != 0 {
        return Some(encapsulate(memory, packet, compiled, traffic_class & ECN_MASK, entropy_port(flow_hash())));
    }
    Some(Ok(()))
}

/// Takes outer headers off; the DSCP and ECN that the inner one has then.
#[inline]
fn decapsulate(memory: &FrameMemory, packet: &mut Packet, plain: &Plain) -> Result<u8, DropReason> {
    if !packet.strip(usize::from(plain.offset)) {
        return Err(DropReason::VxlanTruncated);
    }
    packet.set_tunnelled(false);
    if plain.outer_traffic_class & ECN_MASK == 0 {
        return Ok(plain.traffic_class);
    }
    let header = memory.head_mut(packet).get_mut(NETWORK..).unwrap_or_default();
    carry_congestion(header, plain.is_ipv6, plain.traffic_class, plain.outer_traffic_class)
}

#[inline]
fn route(frame: &mut [u8; ROUTED_BYTES], macs: &[u8; 12], plain: &Plain) {
    const TTL: usize = NETWORK + ipv4::TTL;
    const CHECKSUM: usize = NETWORK + ipv4::CHECKSUM;
    frame[..ethernet::ETHERTYPE].copy_from_slice(macs);
    let ttl = plain.ttl.saturating_sub(1);
    if plain.is_ipv6 {
        frame[NETWORK + ipv6::HOP_LIMIT] = ttl;
        return;
    }
    let sum = u16::from_be_bytes([frame[CHECKSUM], frame[CHECKSUM + 1]]);
    let sum = with_less_ttl(sum, plain.ttl - ttl);
    frame[TTL] = ttl;
    frame[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The checksum of an IPv4 header whose TTL became less by 0 or 1. The TTL is the high byte of a summed word, and the field
/// has the complement of the sum, so it grows by what the word loses (RFC 1624 equation 3, with the constant worked out).
#[inline]
fn with_less_ttl(field: u16, hops: u8) -> u16 {
    let sum = u32::from(field) + (u32::from(hops) << 8);
    (sum + u32::from(sum >= 0xffff)) as u16
}

/// Puts outer headers of IPv4 on.
#[inline]
fn encapsulate(
    memory: &FrameMemory,
    packet: &mut Packet,
    compiled: &CompiledRewrite,
    ecn: u8,
    port: u16,
) -> Result<(), DropReason> {
    let inner_bytes = packet.length();
    if !packet.prepend(OUTER_BYTES) {
        return Err(DropReason::Oversized);
    }
    packet.set_tunnelled(true);
    let outer = memory.head_mut(packet).first_chunk_mut().ok_or(DropReason::Oversized)?;
    write_outer(outer, compiled, inner_bytes, ecn, port);
    Ok(())
}

#[inline]
fn write_outer(outer: &mut [u8; OUTER_BYTES], compiled: &CompiledRewrite, inner_bytes: usize, ecn: u8, port: u16) {
    let datagram = inner_bytes + UDP_AND_VXLAN;
    let total_length = (datagram + ipv4::HEADER_BYTES).min(65535) as u16;
    let template: &[u8; OUTER_BYTES] = compiled.template.first_chunk().unwrap_or(&[0; OUTER_BYTES]);
    *outer = *template;
    outer[NETWORK + ipv4::TRAFFIC_CLASS] = ecn;
    let mut put = |at: usize, value: u16| outer[at..at + 2].copy_from_slice(&value.to_be_bytes());
    put(NETWORK + ipv4::TOTAL_LENGTH, total_length);
    put(NETWORK + ipv4::CHECKSUM, compiled.ipv4_checksum(ecn, total_length));
    put(OUTER_UDP + udp::SOURCE_PORT, port);
    put(OUTER_UDP + udp::LENGTH, datagram.min(65535) as u16);
}
