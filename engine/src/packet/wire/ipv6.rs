//! IPv6 and its extension headers (RFC 8200).

use super::{read_array, read_u16, write_bytes, write_u16};

/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 40;
/// Version, traffic class and flow label.
pub const VERSION_CLASS_LABEL: usize = 0;
/// Bytes behind the fixed header.
pub const PAYLOAD_LENGTH: usize = 4;
/// What follows: an extension header or a layer-4 protocol.
pub const NEXT_HEADER: usize = 6;
/// Hops left.
pub const HOP_LIMIT: usize = 7;
/// Source address.
pub const SOURCE: usize = 8;
/// Destination address.
pub const DESTINATION: usize = 24;
/// Bytes of a fragment header (RFC 8200 section 4.5).
pub const FRAGMENT_BYTES: usize = 8;
/// In a fragment header: offset in units of eight bytes in the high 13 bits, "more fragments" in the lowest.
pub const FRAGMENT_OFFSET: usize = 2;
/// In a fragment header: the number that a packet's fragments share.
pub const FRAGMENT_IDENTIFICATION: usize = 4;
/// In the word at [`FRAGMENT_OFFSET`]: the offset in bytes.
pub const OFFSET_MASK: u16 = 0xfff8;
/// In the word at [`FRAGMENT_OFFSET`]: more fragments follow.
pub const MORE_FRAGMENTS: u16 = 1;
/// Smallest MTU of a link, and longest ICMPv6 error (RFC 8200 section 5, RFC 4443 section 2.4).
pub const SMALLEST_MTU: usize = 1280;

/// Numbers of extension headers.
pub mod extension {
    /// Hop-by-hop options (RFC 8200 section 4.3); only directly behind the fixed header.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing header (RFC 8200 section 4.4).
    pub const ROUTING: u8 = 43;
    /// Fragment header (RFC 8200 section 4.5).
    pub const FRAGMENT: u8 = 44;
    /// Authentication header (RFC 4302); its length counts 32-bit words.
    pub const AUTHENTICATION: u8 = 51;
    /// Nothing follows (RFC 8200 section 4.7).
    pub const NONE: u8 = 59;
    /// Destination options (RFC 8200 section 4.6).
    pub const DESTINATION: u8 = 60;
}

/// What a fixed header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// The lowest 20 bits (RFC 6437).
    pub flow_label: u32,
    /// Bytes behind the fixed header.
    pub payload_length: u16,
    /// What follows.
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
}

/// Writes a fixed header.
pub fn write_ipv6(target: &mut [u8], ipv6: &Ipv6) -> Option<usize> {
    let header = target.first_chunk_mut::<HEADER_BYTES>()?;
    let first = 6 << 28 | u32::from(ipv6.traffic_class) << 20 | ipv6.flow_label & 0xf_ffff;
    header[VERSION_CLASS_LABEL..PAYLOAD_LENGTH].copy_from_slice(&first.to_be_bytes());
    header[PAYLOAD_LENGTH..NEXT_HEADER].copy_from_slice(&ipv6.payload_length.to_be_bytes());
    header[NEXT_HEADER] = ipv6.next_header;
    header[HOP_LIMIT] = ipv6.hop_limit;
    header[SOURCE..DESTINATION].copy_from_slice(&ipv6.source);
    header[DESTINATION..].copy_from_slice(&ipv6.destination);
    Some(HEADER_BYTES)
}

/// Bytes behind the fixed header.
#[must_use]
pub fn payload_length(header: &[u8]) -> Option<u16> {
    read_u16(header, PAYLOAD_LENGTH)
}

/// Source address.
#[must_use]
pub fn source(header: &[u8]) -> Option<[u8; 16]> {
    read_array(header, SOURCE)
}

/// Destination address.
#[must_use]
pub fn destination(header: &[u8]) -> Option<[u8; 16]> {
    read_array(header, DESTINATION)
}

/// Replaces the hop limit.
pub fn set_hop_limit(header: &mut [u8], hop_limit: u8) -> Option<()> {
    write_bytes(header, HOP_LIMIT, &[hop_limit])
}

/// Replaces the payload length.
pub fn set_payload_length(header: &mut [u8], payload_length: u16) -> Option<()> {
    write_u16(header, PAYLOAD_LENGTH, payload_length)
}

/// Replaces DSCP and ECN.
pub fn set_traffic_class(header: &mut [u8], traffic_class: u8) -> Option<()> {
    let [first, second] = read_array(header, VERSION_CLASS_LABEL)?;
    write_bytes(header, 0, &[first & 0xf0 | traffic_class >> 4, traffic_class << 4 | second & 0x0f])
}

/// Replaces the source address.
pub fn set_source(header: &mut [u8], address: &[u8; 16]) -> Option<()> {
    write_bytes(header, SOURCE, address)
}

/// Replaces the destination address.
pub fn set_destination(header: &mut [u8], address: &[u8; 16]) -> Option<()> {
    write_bytes(header, DESTINATION, address)
}

/// The number that the fragments of a packet share; `None` if the packet that begins with its fixed header is none.
#[must_use]
pub fn fragment_identification(packet: &[u8]) -> Option<u32> {
    read_array(packet, fragment_header(packet)? + FRAGMENT_IDENTIFICATION).map(u32::from_be_bytes)
}

/// Replaces that number.
pub fn set_fragment_identification(packet: &mut [u8], number: u32) -> Option<()> {
    let at = fragment_header(packet)? + FRAGMENT_IDENTIFICATION;
    write_bytes(packet, at, &number.to_be_bytes())
}

/// Where the fragment header of the packet begins that begins with its fixed header.
fn fragment_header(packet: &[u8]) -> Option<usize> {
    let (mut next, mut at) = (*packet.get(NEXT_HEADER)?, HEADER_BYTES);
    // Each step goes on by at least eight bytes.
    while let Some(header) = packet.get(at..) {
        match next {
            extension::FRAGMENT => return Some(at),
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => {
                next = *header.first()?;
                at += (usize::from(*header.get(1)?) + 1) * 8;
            }
            _ => return None,
        }
    }
    None
}

/// Exchanges source and destination.
pub fn swap_addresses(header: &mut [u8]) -> Option<()> {
    let (source, destination) = (source(header)?, destination(header)?);
    set_source(header, &destination)?;
    set_destination(header, &source)
}

/// Whether the address is fe80::/10.
#[inline]
#[must_use]
pub const fn is_link_local(address: &[u8; 16]) -> bool {
    address[0] == 0xfe && address[1] & 0xc0 == 0x80
}

/// Whether the address is ff00::/8.
#[inline]
#[must_use]
pub const fn is_multicast(address: &[u8; 16]) -> bool {
    address[0] == 0xff
}
