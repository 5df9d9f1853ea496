//! The network layer: ARP, IPv4 with options and fragments, IPv6 with extension headers.

use super::{Headers, Network, flag, transport};
use crate::drop_reason::DropReason;
use crate::limits;
use crate::packet::wire::ipv6::extension;
use crate::packet::wire::{arp, ipv4, ipv6, tcp};

/// Longest reassembled packet, so no fragment may end beyond it.
const LONGEST_PACKET: usize = 65_535;

/// Everything that is neither IP nor ARP: the payload begins behind the tags.
pub(super) fn other(headers: &mut Headers, length: usize) {
    headers.transport_offset = headers.network_offset;
    headers.payload_offset = headers.network_offset;
    headers.network_length = (length - usize::from(headers.network_offset)) as u32;
}

/// ARP for Ethernet and IPv4 and nothing else. Who says what is for the slow path to read (`wire::arp`).
pub(super) fn arp(headers: &mut Headers, head: &[u8]) -> Result<(), DropReason> {
    let at = usize::from(headers.network_offset);
    let packet = head.get(at..).and_then(|rest| rest.first_chunk::<{ arp::PACKET_BYTES }>());
    match packet {
        Some(packet) if packet[..arp::OPERATION] == arp::ETHERNET_IPV4 => {
            headers.network = Network::Arp;
            headers.source[..4].copy_from_slice(&packet[arp::SENDER_ADDRESS..arp::SENDER_ADDRESS + 4]);
            headers.destination[..4].copy_from_slice(&packet[arp::TARGET_ADDRESS..arp::TARGET_ADDRESS + 4]);
            headers.network_length = arp::PACKET_BYTES as u32;
            headers.transport_offset = (at + arp::PACKET_BYTES) as u16;
            headers.payload_offset = headers.transport_offset;
            Ok(())
        }
        _ => Err(DropReason::ArpMalformed),
    }
}

/// IPv4. `length` is that of the whole frame, which may be padded behind the packet.
#[inline]
pub(super) fn ipv4(headers: &mut Headers, head: &[u8], length: usize) -> Result<(), DropReason> {
    let at = usize::from(headers.network_offset);
    let bytes = head.get(at..).unwrap_or_default();
    let Some(header) = bytes.first_chunk::<{ ipv4::HEADER_BYTES }>() else { return Err(DropReason::Ipv4Truncated) };
    let first = header[ipv4::VERSION_AND_LENGTH];
    if first >> 4 != 4 {
        return Err(DropReason::Ipv4Version);
    }
    let header_length = usize::from(first & 0xf) * 4;
    let available = length - at;
    if header_length < ipv4::HEADER_BYTES || header_length > available {
        return Err(DropReason::Ipv4HeaderLength);
    }
    let total_length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if total_length < header_length || total_length > available {
        return Err(DropReason::Ipv4TotalLength);
    }
    let mut sum = words_sum(header);
    if header_length > ipv4::HEADER_BYTES {
        headers.flags |= flag::OPTIONS;
        let Some(options) = bytes.get(ipv4::HEADER_BYTES..header_length) else { return Err(DropReason::Ipv4Truncated) };
        sum += words_sum(options);
    }
    if !sum_is_right(sum) {
        return Err(DropReason::Ipv4Checksum);
    }
    headers.network = Network::Ipv4;
    headers.protocol = header[ipv4::PROTOCOL];
    headers.ttl = header[ipv4::TTL];
    headers.traffic_class = header[ipv4::TRAFFIC_CLASS];
    headers.network_length = total_length as u32;
    headers.transport_offset = (at + header_length) as u16;
    headers.source[..4].copy_from_slice(&header[ipv4::SOURCE..ipv4::DESTINATION]);
    headers.destination[..4].copy_from_slice(&header[ipv4::DESTINATION..]);
    headers.flags |= ipv4_scope(headers.source_ipv4(), headers.destination_ipv4());
    let fragment = u16::from_be_bytes([header[ipv4::FRAGMENT], header[ipv4::FRAGMENT + 1]]);
    if fragment & ipv4::DONT_FRAGMENT != 0 {
        headers.flags |= flag::DONT_FRAGMENT;
    }
    let payload_length = total_length - header_length;
    let whole = fragment & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) == 0;
    if !whole {
        let offset = usize::from(fragment & ipv4::OFFSET_MASK) * 8;
        let more = fragment & ipv4::MORE_FRAGMENTS != 0;
        fragment_header(headers, offset, more, payload_length, header_length)?;
    }
    transport::transport(headers, head, payload_length, whole)
}

/// Sum of native-endian words, which for a check against all ones is as good as network order (RFC 1071 section 2 B).
/// IPv4 headers are multiples of four bytes long.
#[inline]
fn words_sum(bytes: &[u8]) -> u64 {
    bytes.as_chunks::<4>().0.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum()
}

/// Whether a sum over a header with its checksum is all ones.
#[inline]
fn sum_is_right(sum: u64) -> bool {
    let folded = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let folded = (folded & 0xffff) + (folded >> 16);
    (folded & 0xffff) + (folded >> 16) == 0xffff
}

/// The scope flag of a pair of IPv4 addresses: multicast or limited broadcast destination, or link-local.
#[inline]
fn ipv4_scope(source: [u8; 4], destination: [u8; 4]) -> u16 {
    let (source, destination) = (u32::from_be_bytes(source), u32::from_be_bytes(destination));
    let group = destination >> 28 == 0xe || destination == u32::MAX;
    let link_local = source >> 16 == 0xa9fe || destination >> 16 == 0xa9fe;
    u16::from(group | link_local) * flag::LINK_SCOPE
}

/// The rules for a fragment of either family (RFC 791 section 3.2, RFC 8200 section 4.5, RFC 3128).
///
/// `before` counts the bytes from the network header to the fragment's data that reassembly keeps.
#[cold]
fn fragment_header(
    headers: &mut Headers,
    offset: usize,
    more: bool,
    data: usize,
    before: usize,
) -> Result<(), DropReason> {
    headers.flags |= flag::FRAGMENT;
    if offset != 0 {
        headers.flags |= flag::LATER_FRAGMENT;
    }
    // A first fragment must hold the whole TCP header, so one that begins inside it can only mean to overwrite it.
    let overwrites = offset != 0 && offset < tcp::HEADER_BYTES && headers.protocol == super::protocol::TCP;
    if data == 0 || (more && !data.is_multiple_of(8)) || before + offset + data > LONGEST_PACKET || overwrites {
        return Err(DropReason::FragmentMalformed);
    }
    Ok(())
}

/// IPv6. `length` is that of the whole frame, which may be padded behind the packet.
#[inline]
pub(super) fn ipv6(headers: &mut Headers, head: &[u8], length: usize) -> Result<(), DropReason> {
    let at = usize::from(headers.network_offset);
    let bytes = head.get(at..).unwrap_or_default();
    let Some(header) = bytes.first_chunk::<{ ipv6::HEADER_BYTES }>() else { return Err(DropReason::Ipv6Truncated) };
    if header[0] >> 4 != 6 {
        return Err(DropReason::Ipv6Version);
    }
    let payload_length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    if payload_length > length - at - ipv6::HEADER_BYTES {
        return Err(DropReason::Ipv6PayloadLength);
    }
    headers.network = Network::Ipv6;
    headers.protocol = header[ipv6::NEXT_HEADER];
    headers.ttl = header[ipv6::HOP_LIMIT];
    headers.traffic_class = header[0] << 4 | header[1] >> 4;
    headers.network_length = (ipv6::HEADER_BYTES + payload_length) as u32;
    headers.transport_offset = (at + ipv6::HEADER_BYTES) as u16;
    headers.source.copy_from_slice(&header[ipv6::SOURCE..ipv6::DESTINATION]);
    headers.destination.copy_from_slice(&header[ipv6::DESTINATION..]);
    let local = ipv6::is_link_local(&headers.source) || ipv6::is_link_local(&headers.destination);
    if local || ipv6::is_multicast(&headers.destination) {
        headers.flags |= flag::LINK_SCOPE;
    }
    if is_extension(headers.protocol) {
        let (left, whole) = extensions(headers, head, payload_length)?;
        return transport::transport(headers, head, left, whole);
    }
    transport::transport(headers, head, payload_length, true)
}

#[inline]
fn is_extension(next_header: u8) -> bool {
    matches!(
        next_header,
        extension::HOP_BY_HOP
            | extension::ROUTING
            | extension::FRAGMENT
            | extension::AUTHENTICATION
            | extension::DESTINATION
    )
}

/// Walks the extension headers; moves `protocol` and `transport_offset` behind them. Gives the payload bytes left and
/// whether the packet is whole, be it an atomic fragment (RFC 6946).
///
/// Behind a later fragment's header lies payload, so the walk ends there and `protocol` is what the fragment header
/// names: the first header of the fragmented part, which may itself be an extension header.
#[cold]
fn extensions(headers: &mut Headers, head: &[u8], payload_length: usize) -> Result<(usize, bool), DropReason> {
    headers.flags |= flag::EXTENSIONS;
    let mut whole = true;
    let start = usize::from(headers.transport_offset);
    let end = start + payload_length;
    let mut at = start;
    for _ in 0..limits::IPV6_EXTENSION_HEADERS {
        let bytes = head.get(at..end.min(head.len())).unwrap_or_default();
        let Some(header) = bytes.first_chunk::<8>() else { return Err(DropReason::Ipv6Extension) };
        let size = match headers.protocol {
            extension::HOP_BY_HOP if at != start => return Err(DropReason::Ipv6Extension),
            extension::FRAGMENT => ipv6::FRAGMENT_BYTES,
            extension::AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        // An authentication header has twelve bytes of its own before the integrity value (RFC 4302 section 2).
        let short = headers.protocol == extension::AUTHENTICATION && size < 12;
        if short || size > bytes.len() {
            return Err(DropReason::Ipv6Extension);
        }
        let is_fragment = headers.protocol == extension::FRAGMENT;
        headers.protocol = header[0];
        at += size;
        headers.transport_offset = at as u16;
        if is_fragment {
            whole = ipv6_fragment(headers, *header, end - at, at - start - size)?;
        }
        if headers.has(flag::LATER_FRAGMENT) || !is_extension(headers.protocol) {
            return Ok((end - at, whole));
        }
    }
    Err(DropReason::Ipv6Extension)
}

/// A fragment header with `data` bytes behind it and `extensions` bytes of other headers before it. Gives whether it
/// is atomic: a whole packet, of which nothing is to be checked as a piece.
fn ipv6_fragment(headers: &mut Headers, header: [u8; 8], data: usize, extensions: usize) -> Result<bool, DropReason> {
    if headers.has(flag::FRAGMENT) {
        return Err(DropReason::Ipv6Extension);
    }
    let word = u16::from_be_bytes([header[2], header[3]]);
    let (offset, more) = (usize::from(word & ipv6::OFFSET_MASK), word & ipv6::MORE_FRAGMENTS != 0);
    if offset == 0 && !more {
        headers.flags |= flag::FRAGMENT;
        return Ok(true);
    }
    fragment_header(headers, offset, more, data, extensions).map(|()| false)
}
