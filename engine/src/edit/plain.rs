//! The edits of plain packets: untagged IP of which no byte behind the headers is to be touched.
//!
//! One function for each combination of steps, made by the compiler of one body, and chosen by one number that the
//! flow's rewrite carries; what [`super::apply`] asks of every packet is decided there already. The result is the same;
//! a test compares them. About ten cycles for a routed packet, fifteen with outer headers.

use super::apply::{ECN_MASK, Subject, decapsulate, entropy_port};
use super::compiled::step;
use super::{CompiledRewrite, Translation};
use crate::drop_reason::DropReason;
use crate::packet::wire::{ethernet, ipv4, ipv6, udp};
use crate::packet::{FrameMemory, Headers, Network, Packet, checksum};

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

/// Applies the rewrite to a packet if both are plain; `None`, and nothing changed, if [`super::apply`] has to.
///
/// # Errors
/// Why the packet must be dropped instead.
#[inline]
pub fn apply_plain(
    memory: &FrameMemory,
    packet: &mut Packet,
    subject: &Subject<'_>,
    compiled: &CompiledRewrite,
    translation: &Translation,
) -> Option<Result<(), DropReason>> {
    let untagged_ip = subject.headers.network_offset as usize == NETWORK
        && matches!(subject.headers.network, Network::Ipv4 | Network::Ipv6);
    if !packet.is_finished() || !untagged_ip || !translation.is_none() {
        return None;
    }
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
    Some(edit(memory, packet, subject, compiled))
}

/// The body of them all.
#[inline]
fn edit<const STEPS: u8>(
    memory: &FrameMemory,
    packet: &mut Packet,
    subject: &Subject<'_>,
    compiled: &CompiledRewrite,
) -> Result<(), DropReason> {
    let mut traffic_class = subject.headers.traffic_class;
    if STEPS & step::DECAPSULATE != 0 {
        traffic_class = decapsulate(memory, packet, subject)?;
    }
    let inner_bytes = packet.length();
    if STEPS & step::ROUTE != 0 {
        let frame = memory.head_mut(packet).first_chunk_mut().ok_or(DropReason::EthernetTruncated)?;
        route(frame, &compiled.macs, subject.headers);
    }
    if STEPS & step::ENCAPSULATE != 0 {
        if !packet.prepend(OUTER_BYTES) {
            return Err(DropReason::Oversized);
        }
        let outer = memory.head_mut(packet).first_chunk_mut().ok_or(DropReason::Oversized)?;
        encapsulate(outer, compiled, inner_bytes, traffic_class & ECN_MASK, entropy_port(subject.flow_hash));
    }
    Ok(())
}

#[inline]
fn route(frame: &mut [u8; ROUTED_BYTES], macs: &[u8; 12], headers: &Headers) {
    frame[..ethernet::ETHERTYPE].copy_from_slice(macs);
    let ttl = headers.ttl.saturating_sub(1);
    if headers.network == Network::Ipv6 {
        frame[NETWORK + ipv6::HOP_LIMIT] = ttl;
        return;
    }
    const TTL: usize = NETWORK + ipv4::TTL;
    const CHECKSUM: usize = NETWORK + ipv4::CHECKSUM;
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
