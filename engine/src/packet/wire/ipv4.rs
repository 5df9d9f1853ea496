//! IPv4 (RFC 791).
//!
//! Setters keep the header checksum right by its incremental update (RFC 1624); layer-4 checksums that cover the
//! addresses are the caller's.

use super::{read_array, read_u16, write_bytes, write_u16};
use crate::packet::checksum;

/// Bytes of a header without options.
pub const HEADER_BYTES: usize = 20;
/// Version in the high half, header length in 32-bit words in the low half.
pub const VERSION_AND_LENGTH: usize = 0;
/// DSCP and ECN (RFC 2474, RFC 3168).
pub const TRAFFIC_CLASS: usize = 1;
/// Bytes of header and payload.
pub const TOTAL_LENGTH: usize = 2;
/// Number that a packet's fragments share.
pub const IDENTIFICATION: usize = 4;
/// Flags in the high three bits, fragment offset in units of eight bytes below.
pub const FRAGMENT: usize = 6;
/// Hops left.
pub const TTL: usize = 8;
/// Layer-4 protocol.
pub const PROTOCOL: usize = 9;
/// Checksum over the header.
pub const CHECKSUM: usize = 10;
/// Source address.
pub const SOURCE: usize = 12;
/// Destination address.
pub const DESTINATION: usize = 16;
/// In the word at [`FRAGMENT`]: do not fragment.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// In the word at [`FRAGMENT`]: more fragments follow.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// In the word at [`FRAGMENT`]: the offset in units of eight bytes.
pub const OFFSET_MASK: u16 = 0x1fff;

/// What a header without options says; the builder derives the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Bytes of header and payload.
    pub total_length: u16,
    /// Number that the fragments share.
    pub identification: u16,
    /// Flags and offset as in the word at [`FRAGMENT`].
    pub fragment: u16,
    /// Hops left.
    pub ttl: u8,
    /// Layer-4 protocol.
    pub protocol: u8,
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
}

/// Writes a header without options, checksum included.
pub fn write_ipv4(target: &mut [u8], ipv4: &Ipv4) -> Option<usize> {
    let header = target.first_chunk_mut::<HEADER_BYTES>()?;
    header[VERSION_AND_LENGTH] = 0x45;
    header[TRAFFIC_CLASS] = ipv4.traffic_class;
    header[TOTAL_LENGTH..IDENTIFICATION].copy_from_slice(&ipv4.total_length.to_be_bytes());
    header[IDENTIFICATION..FRAGMENT].copy_from_slice(&ipv4.identification.to_be_bytes());
    header[FRAGMENT..TTL].copy_from_slice(&ipv4.fragment.to_be_bytes());
    header[TTL] = ipv4.ttl;
    header[PROTOCOL] = ipv4.protocol;
    header[CHECKSUM..SOURCE].fill(0);
    header[SOURCE..DESTINATION].copy_from_slice(&ipv4.source);
    header[DESTINATION..].copy_from_slice(&ipv4.destination);
    let sum = checksum::finish(checksum::sum(header));
    header[CHECKSUM..SOURCE].copy_from_slice(&sum.to_be_bytes());
    Some(HEADER_BYTES)
}

/// Bytes of the header, options included, by its own field.
#[must_use]
pub fn header_length(header: &[u8]) -> Option<usize> {
    header.first().map(|byte| usize::from(byte & 0xf) * 4)
}

/// Bytes of header and payload.
#[must_use]
pub fn total_length(header: &[u8]) -> Option<u16> {
    read_u16(header, TOTAL_LENGTH)
}

/// Number that a packet's fragments share.
#[must_use]
pub fn identification(header: &[u8]) -> Option<u16> {
    read_u16(header, IDENTIFICATION)
}

/// The fragment's offset in bytes and whether more follow.
#[must_use]
pub fn fragment(header: &[u8]) -> Option<(usize, bool)> {
    let word = read_u16(header, FRAGMENT)?;
    Some((usize::from(word & OFFSET_MASK) * 8, word & MORE_FRAGMENTS != 0))
}

/// Source address.
#[must_use]
pub fn source(header: &[u8]) -> Option<[u8; 4]> {
    read_array(header, SOURCE)
}

/// Destination address.
#[must_use]
pub fn destination(header: &[u8]) -> Option<[u8; 4]> {
    read_array(header, DESTINATION)
}

/// Replaces the word at the even offset `at`.
fn set_word(header: &mut [u8], at: usize, new: u16) -> Option<()> {
    let old = read_u16(header, at)?;
    let sum = read_u16(header, CHECKSUM)?;
    write_u16(header, at, new)?;
    write_u16(header, CHECKSUM, checksum::update(sum, old, new))
}

/// Replaces the TTL.
pub fn set_ttl(header: &mut [u8], ttl: u8) -> Option<()> {
    let protocol = *header.get(PROTOCOL)?;
    set_word(header, TTL, u16::from_be_bytes([ttl, protocol]))
}

/// Replaces DSCP and ECN.
pub fn set_traffic_class(header: &mut [u8], traffic_class: u8) -> Option<()> {
    let first = *header.first()?;
    set_word(header, VERSION_AND_LENGTH, u16::from_be_bytes([first, traffic_class]))
}

/// Replaces the total length.
pub fn set_total_length(header: &mut [u8], total_length: u16) -> Option<()> {
    set_word(header, TOTAL_LENGTH, total_length)
}

/// Replaces the identification.
pub fn set_identification(header: &mut [u8], identification: u16) -> Option<()> {
    set_word(header, IDENTIFICATION, identification)
}

/// Replaces the source address.
pub fn set_source(header: &mut [u8], address: [u8; 4]) -> Option<()> {
    set_address(header, SOURCE, address)
}

/// Replaces the destination address.
pub fn set_destination(header: &mut [u8], address: [u8; 4]) -> Option<()> {
    set_address(header, DESTINATION, address)
}

fn set_address(header: &mut [u8], at: usize, address: [u8; 4]) -> Option<()> {
    let [a, b, c, d] = address;
    set_word(header, at, u16::from_be_bytes([a, b]))?;
    set_word(header, at + 2, u16::from_be_bytes([c, d]))
}

/// Exchanges source and destination; no checksum changes by that.
pub fn swap_addresses(header: &mut [u8]) -> Option<()> {
    let (source, destination) = (source(header)?, destination(header)?);
    write_bytes(header, SOURCE, &destination)?;
    write_bytes(header, DESTINATION, &source)
}

/// Whether the checksum over the header, options included, is right.
#[must_use]
pub fn header_checksum_is_right(header: &[u8]) -> bool {
    header_length(header)
        .and_then(|length| header.get(..length))
        .is_some_and(|all| checksum::finish(checksum::sum(all)) == 0)
}
