//! Replaces addresses and ports, and keeps every checksum that covers them as right or as wrong as it was.
//!
//! Incremental in every case (RFC 1624), so that a packet damaged on its way stays damaged for its receiver. SCTP's
//! CRC32c is linear: the change of the ports is carried to the packet's end by as many zero bytes, which costs about
//! half a cycle a byte; only SCTP packets whose ports change pay it. An ICMP echo has one identifier in place of ports; an ICMP error
//! has none, but the packet it quotes is translated with it (`quote.rs`).

use super::Translation;
use super::apply::at;
use super::quote::translate_quote;
use crate::drop_reason::DropReason;
use crate::packet::crc32c;
use crate::packet::parse::{flag, protocol};
use crate::packet::wire::{self, icmp, icmpv6, ipv4, ipv6, sctp, tcp, udp};
use crate::packet::{Checksum, FrameMemory, Headers, Network, Packet, checksum};

/// Which end of the flow is replaced.
#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

/// One end of a flow before and after, as one's-complement differences where checksums need them.
struct Replacement {
    side: Side,
    old_port: u16,
    port: u16,
    addresses: u16,
}

impl Replacement {
    fn ports(&self) -> u16 {
        checksum::difference(&self.old_port.to_be_bytes(), &self.port.to_be_bytes())
    }

    /// Where the port lies in a TCP, UDP or SCTP header.
    fn port_offset(&self) -> usize {
        match self.side {
            Side::Source => 0,
            Side::Destination => 2,
        }
    }
}

/// Replaces what `translation` names; the packet's headers lie `shift` bytes from where `headers` says.
pub(super) fn translate(
    memory: &FrameMemory,
    packet: &mut Packet,
    headers: &Headers,
    shift: i32,
    translation: &Translation,
) -> Result<(), DropReason> {
    let partial = matches!(packet.checksum(), Checksum::Partial { .. });
    let frame = memory.head_mut(packet);
    let sides = [
        (Side::Source, translation.source, headers.source, headers.ports[0]),
        (Side::Destination, translation.destination, headers.destination, headers.ports[1]),
    ];
    for (side, new, old_address, old_port) in sides {
        let Some((address, port)) = new else { continue };
        let network = frame.get_mut(at(headers.network_offset, shift)..).unwrap_or_default();
        let addresses = replace_address(network, headers.network, side, &old_address, &address)?;
        if headers.has(flag::LATER_FRAGMENT) {
            continue;
        }
        let replacement = Replacement { side, old_port, port, addresses };
        let segment = frame.get_mut(at(headers.transport_offset, shift)..).unwrap_or_default();
        replace_port(segment, headers, partial, &replacement)?;
    }
    if headers.has(flag::ICMP_ERROR) && !headers.has(flag::LATER_FRAGMENT) {
        let end = at(headers.network_offset, shift) + headers.network_length as usize;
        let end = end.min(frame.len());
        let message = frame.get_mut(at(headers.transport_offset, shift)..end).unwrap_or_default();
        translate_quote(message, headers.network == Network::Ipv6, partial, translation)
            .ok_or(DropReason::IcmpTruncated)?;
    }
    Ok(())
}

/// Writes the address; returns what that adds to the sum of the pseudo header.
fn replace_address(
    header: &mut [u8],
    network: Network,
    side: Side,
    old: &[u8; 16],
    new: &[u8; 16],
) -> Result<u16, DropReason> {
    let (done, length) = match (network, side) {
        (Network::Ipv4, Side::Source) => (ipv4::set_source(header, [new[0], new[1], new[2], new[3]]), 4),
        (Network::Ipv4, Side::Destination) => (ipv4::set_destination(header, [new[0], new[1], new[2], new[3]]), 4),
        (Network::Ipv6, Side::Source) => (ipv6::set_source(header, new), 16),
        (Network::Ipv6, Side::Destination) => (ipv6::set_destination(header, new), 16),
        (Network::Arp | Network::Other, _) => return Err(DropReason::EtherTypeUnsupported),
    };
    done.ok_or(DropReason::Ipv4Truncated)?;
    Ok(checksum::difference(&old[..length], &new[..length]))
}

fn replace_port(
    segment: &mut [u8],
    headers: &Headers,
    partial: bool,
    replacement: &Replacement,
) -> Result<(), DropReason> {
    match headers.protocol {
        protocol::TCP => {
            tcp_or_udp(segment, tcp::CHECKSUM, false, partial, replacement).ok_or(DropReason::TcpTruncated)
        }
        protocol::UDP => tcp_or_udp(segment, udp::CHECKSUM, true, partial, replacement).ok_or(DropReason::UdpTruncated),
        protocol::SCTP => sctp_port(segment, headers, partial, replacement),
        protocol::ICMP => echo(segment, headers, false, partial, replacement).ok_or(DropReason::IcmpTruncated),
        protocol::ICMPV6 => echo(segment, headers, true, partial, replacement).ok_or(DropReason::IcmpTruncated),
        _ => Ok(()),
    }
}

fn tcp_or_udp(segment: &mut [u8], field: usize, is_udp: bool, partial: bool, replacement: &Replacement) -> Option<()> {
    let old = wire::read_u16(segment, field)?;
    wire::write_u16(segment, replacement.port_offset(), replacement.port)?;
    if partial {
        // Ports lie behind the pseudo header and are summed when the checksum is completed.
        return wire::write_u16(segment, field, checksum::apply_partial(old, replacement.addresses));
    }
    if is_udp && old == 0 {
        return Some(());
    }
    let new = checksum::apply(checksum::apply(old, replacement.addresses), replacement.ports());
    wire::write_u16(segment, field, if is_udp { udp::checksum_field(new) } else { new })
}

/// The CRC covers no pseudo header, so it changes with the ports only.
fn sctp_port(
    segment: &mut [u8],
    headers: &Headers,
    partial: bool,
    replacement: &Replacement,
) -> Result<(), DropReason> {
    let (offset, changed) = (replacement.port_offset(), replacement.old_port ^ replacement.port);
    wire::write_u16(segment, offset, replacement.port).ok_or(DropReason::SctpTruncated)?;
    if changed == 0 || partial {
        return Ok(());
    }
    if headers.has(flag::FRAGMENT) {
        // The CRC covers bytes that are not here.
        return Err(DropReason::SctpFragment);
    }
    let before = usize::from(headers.transport_offset.saturating_sub(headers.network_offset));
    let length = (headers.network_length as usize).saturating_sub(before);
    let change = crc32c::change(changed.to_be_bytes(), length.saturating_sub(offset + 2));
    let field = wire::read_array::<4>(segment, sctp::CHECKSUM).ok_or(DropReason::SctpTruncated)?;
    let new = (u32::from_le_bytes(field) ^ change).to_le_bytes();
    wire::write_bytes(segment, sctp::CHECKSUM, &new).ok_or(DropReason::SctpTruncated)
}

/// The identifier of an echo stands for both ports, so it is written by the side that changes it. The checksum of
/// ICMP covers no pseudo header, that of ICMPv6 does.
fn echo(segment: &mut [u8], headers: &Headers, is_ipv6: bool, partial: bool, replacement: &Replacement) -> Option<()> {
    let mut sum = wire::read_u16(segment, icmp::CHECKSUM)?;
    let is_echo = !headers.has(flag::ICMP_ERROR | flag::ICMP_OTHER);
    if is_echo && replacement.port != replacement.old_port {
        // The other side may have written it already.
        let old = wire::read_u16(segment, icmp::IDENTIFIER)?;
        wire::write_u16(segment, icmp::IDENTIFIER, replacement.port)?;
        sum = if partial { sum } else { checksum::update(sum, old, replacement.port) };
    }
    if is_ipv6 {
        let apply = if partial { checksum::apply_partial } else { checksum::apply };
        sum = apply(sum, replacement.addresses);
    }
    wire::write_u16(segment, icmpv6::CHECKSUM, sum)
}
