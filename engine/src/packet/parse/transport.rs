//! The transport layer: ports, TCP flags, ICMP types, and where the payload begins.
//!
//! A header must lie whole in the IP payload and in the head. For first fragments that is a rule of its own: the
//! whole header chain must be in the first fragment (RFC 7112; RFC 1858 for IPv4), or nobody could filter it.

use super::{Headers, Network, flag, protocol};
use crate::drop_reason::DropReason;
use crate::packet::wire::sctp::chunk;
use crate::packet::wire::{icmp, icmpv6, nd, sctp, tcp, udp};

/// Reads what lies at `transport_offset`; `payload_length` bytes of IP payload are there, of which the head may
/// hold fewer. `whole` says that the payload is no first fragment. Protocols that are not known have no header: their payload begins at once.
#[inline]
pub(super) fn transport(
    headers: &mut Headers,
    head: &[u8],
    payload_length: usize,
    whole: bool,
) -> Result<(), DropReason> {
    headers.payload_offset = headers.transport_offset;
    if headers.has(flag::LATER_FRAGMENT) {
        return Ok(());
    }
    let bytes = head.get(usize::from(headers.transport_offset)..).unwrap_or_default();
    let bytes = bytes.get(..payload_length).unwrap_or(bytes);
    match headers.protocol {
        protocol::TCP => tcp(headers, bytes),
        protocol::UDP => udp(headers, bytes, if whole { payload_length } else { usize::MAX }),
        protocol::ICMP if headers.network == Network::Ipv4 => icmp(headers, bytes),
        protocol::ICMPV6 if headers.network == Network::Ipv6 => icmpv6(headers, bytes, payload_length),
        protocol::SCTP => sctp(headers, bytes),
        _ => Ok(()),
    }
}

#[inline]
fn tcp(headers: &mut Headers, bytes: &[u8]) -> Result<(), DropReason> {
    let Some(header) = bytes.first_chunk::<{ tcp::HEADER_BYTES }>() else { return Err(DropReason::TcpTruncated) };
    let header_length = usize::from(header[tcp::DATA_OFFSET] >> 4) * 4;
    if header_length < tcp::HEADER_BYTES || header_length > bytes.len() {
        return Err(DropReason::TcpTruncated);
    }
    headers.ports = ports([header[0], header[1], header[2], header[3]]);
    headers.tcp_flags_or_icmp_type = header[tcp::FLAGS];
    headers.payload_offset += header_length as u16;
    if header[tcp::FLAGS] & (tcp::flag::SYN | tcp::flag::FIN | tcp::flag::RST) != 0 {
        headers.flags |= flag::CONNECTION_CONTROL;
    }
    Ok(())
}

/// `longest` bounds the length field: the IP payload, but for a first fragment, which holds a part of the datagram.
#[inline]
fn udp(headers: &mut Headers, bytes: &[u8], longest: usize) -> Result<(), DropReason> {
    let Some(header) = bytes.first_chunk::<{ udp::HEADER_BYTES }>() else { return Err(DropReason::UdpTruncated) };
    let length = usize::from(u16::from_be_bytes([header[udp::LENGTH], header[udp::LENGTH + 1]]));
    if length < udp::HEADER_BYTES || length > longest {
        return Err(DropReason::UdpTruncated);
    }
    headers.ports = ports([header[0], header[1], header[2], header[3]]);
    headers.payload_offset += udp::HEADER_BYTES as u16;
    Ok(())
}

fn sctp(headers: &mut Headers, bytes: &[u8]) -> Result<(), DropReason> {
    let Some(header) = bytes.first_chunk::<{ sctp::HEADER_BYTES }>() else { return Err(DropReason::SctpTruncated) };
    headers.ports = ports([header[0], header[1], header[2], header[3]]);
    headers.payload_offset += sctp::HEADER_BYTES as u16;
    let first = bytes.get(sctp::HEADER_BYTES).copied().unwrap_or(chunk::DATA);
    headers.tcp_flags_or_icmp_type = first;
    if !matches!(first, chunk::DATA | chunk::SACK | chunk::HEARTBEAT | chunk::HEARTBEAT_ACK) {
        headers.flags |= flag::CONNECTION_CONTROL;
    }
    Ok(())
}

#[inline]
fn ports([a, b, c, d]: [u8; 4]) -> [u16; 2] {
    [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]
}

fn icmp(headers: &mut Headers, bytes: &[u8]) -> Result<(), DropReason> {
    let Some(header) = bytes.first_chunk::<{ icmp::HEADER_BYTES }>() else { return Err(DropReason::IcmpTruncated) };
    let message_type = header[icmp::TYPE];
    headers.tcp_flags_or_icmp_type = message_type;
    headers.payload_offset += icmp::HEADER_BYTES as u16;
    match message_type {
        icmp::kind::ECHO_REQUEST | icmp::kind::ECHO_REPLY => echo(headers, header),
        _ if icmp::is_error(message_type) => headers.flags |= flag::ICMP_ERROR,
        _ => headers.flags |= flag::ICMP_OTHER,
    }
    Ok(())
}

fn icmpv6(headers: &mut Headers, bytes: &[u8], payload_length: usize) -> Result<(), DropReason> {
    let Some(header) = bytes.first_chunk::<{ icmpv6::HEADER_BYTES }>() else { return Err(DropReason::IcmpTruncated) };
    let message_type = header[icmpv6::TYPE];
    headers.tcp_flags_or_icmp_type = message_type;
    headers.payload_offset += icmpv6::HEADER_BYTES as u16;
    match message_type {
        icmpv6::kind::ECHO_REQUEST | icmpv6::kind::ECHO_REPLY => echo(headers, header),
        0..=127 => headers.flags |= flag::ICMP_ERROR,
        _ => headers.flags |= flag::ICMP_OTHER,
    }
    if nd::is_nd(message_type) {
        return neighbour_discovery(headers, bytes, payload_length);
    }
    Ok(())
}

/// Nobody may act on an ND message that breaks RFC 4861 or comes in fragments (RFC 6980), so none is forwarded.
fn neighbour_discovery(headers: &Headers, bytes: &[u8], payload_length: usize) -> Result<(), DropReason> {
    let whole = bytes.len() == payload_length && !headers.has(flag::FRAGMENT);
    if whole && nd::is_valid(bytes, headers.ttl, &headers.source, &headers.destination) {
        Ok(())
    } else {
        Err(DropReason::NeighbourDiscoveryMalformed)
    }
}

/// An echo's identifier takes the place of both ports, so that a flow of echoes has a key.
fn echo(headers: &mut Headers, header: &[u8; icmp::HEADER_BYTES]) {
    let identifier = u16::from_be_bytes([header[icmp::IDENTIFIER], header[icmp::IDENTIFIER + 1]]);
    headers.ports = [identifier; 2];
}
