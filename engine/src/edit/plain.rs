//! The edits of plain packets (`packet/parse/plain.rs`), of which no byte behind the headers is to be touched.
//!
//! One function for each combination of steps, made by the compiler of one body, and chosen by one number that the
//! flow's rewrite carries; what [`super::apply`] asks of every packet is decided there already. The result is the same;
//! a test compares them. About ten cycles for a routed packet, fifteen with outer headers.

use super::apply::{ECN_MASK, carry_congestion, entropy_port};
use super::compiled::step;
use super::translate_plain::translate_plain;
use super::{CompiledRewrite, Translation};
use crate::drop_reason::DropReason;
use crate::packet::parse::Plain;
use crate::packet::wire::{ethernet, ipv4, ipv6, udp};
use crate::packet::{FrameMemory, Packet, checksum};

const NETWORK: usize = ethernet::HEADER_BYTES;
/// Outer Ethernet, IPv4, UDP and VXLAN.
const OUTER_BYTES: usize = 50;
const OUTER_UDP: usize = NETWORK + ipv4::HEADER_BYTES;
const UDP_AND_VXLAN: usize = 16;
/// Ethernet and the part of either IP header that routing changes.
const ROUTED_BYTES: usize = NETWORK + ipv4::HEADER_BYTES;

const D: u8 = step::DECAPSULATE;
const R: u8 = step::ROUTE;
const E: u8 = step::ENCAPSULATE;

/// Applies translation and rewrite to a plain packet with nothing left to do to its payload; `None`, and nothing changed, if the
/// rewrite is one for [`super::apply`]. `flow_hash` chooses the tunnel's source port.
///
/// # Errors
/// Why the packet must be dropped instead.
#[inline]
pub fn apply_plain(
    memory: &FrameMemory,
    packet: &mut Packet,
    plain: &Plain,
    flow_hash: u64,
    compiled: &CompiledRewrite,
    translation: &Translation,
) -> Option<Result<(), DropReason>> {
    let edit = match compiled.steps {
        0 => edit::<0>,
        R => edit::<R>,
        D => edit::<D>,
        E => edit::<E>,
        step if step == D | R => edit::<{ D | R }>,
        step if step == R | E => edit::<{ R | E }>,
        step if step == D | E => edit::<{ D | E }>,
        step if step == D | R | E => edit::<{ D | R | E }>,
        _ => return None,
    };
    if !translation.is_none() {
        let frame = memory.head_mut(packet).get_mut(usize::from(plain.offset)..).unwrap_or_default();
        if translate_plain(frame, plain.is_ipv6, translation).is_none() {
            return Some(Err(DropReason::EthernetTruncated));
        }
    }
    Some(edit(memory, packet, plain, flow_hash, compiled))
}

/// The body of them all.
#[inline]
fn edit<const STEPS: u8>(
    memory: &FrameMemory,
    packet: &mut Packet,
    plain: &Plain,
    flow_hash: u64,
    compiled: &CompiledRewrite,
) -> Result<(), DropReason> {
    let mut traffic_class = plain.traffic_class;
    if STEPS & step::DECAPSULATE != 0 {
        if !packet.strip(usize::from(plain.offset)) {
            return Err(DropReason::VxlanTruncated);
        }
        packet.set_tunnelled(false);
        if plain.outer_traffic_class & ECN_MASK != 0 {
            let header = memory.head_mut(packet).get_mut(NETWORK..).unwrap_or_default();
            traffic_class = carry_congestion(header, plain.is_ipv6, traffic_class, plain.outer_traffic_class)?;
        }
    }
    let inner_bytes = packet.length();
    if STEPS & step::ROUTE != 0 {
        let frame = memory.head_mut(packet).first_chunk_mut().ok_or(DropReason::EthernetTruncated)?;
        route(frame, &compiled.macs, plain);
    }
    if STEPS & step::ENCAPSULATE != 0 {
        if !packet.prepend(OUTER_BYTES) {
            return Err(DropReason::Oversized);
        }
        packet.set_tunnelled(true);
        let outer = memory.head_mut(packet).first_chunk_mut().ok_or(DropReason::Oversized)?;
        encapsulate(outer, compiled, inner_bytes, traffic_class & ECN_MASK, entropy_port(flow_hash));
    }
    Ok(())
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
    let old = u16::from_be_bytes([frame[TTL], frame[TTL + 1]]);
    let new = u16::from_be_bytes([ttl, frame[TTL + 1]]);
    let sum = checksum::update(u16::from_be_bytes([frame[CHECKSUM], frame[CHECKSUM + 1]]), old, new);
    frame[TTL] = ttl;
    frame[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
}

#[inline]
fn encapsulate(outer: &mut [u8; OUTER_BYTES], compiled: &CompiledRewrite, inner_bytes: usize, ecn: u8, port: u16) {
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
