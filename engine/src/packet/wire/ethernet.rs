//! Ethernet II (IEEE 802.3 section 3.1, type interpretation).

use super::{read_array, read_u16, write_bytes};
use crate::packet::Mac;

/// Bytes of the header, tags not counted.
pub const HEADER_BYTES: usize = 14;
/// Destination address.
pub const DESTINATION: usize = 0;
/// Source address.
pub const SOURCE: usize = 6;
/// EtherType, or length if below [`SMALLEST_ETHERTYPE`].
pub const ETHERTYPE: usize = 12;
/// Smaller numbers are the length of an LLC frame.
pub const SMALLEST_ETHERTYPE: u16 = 0x0600;
/// Shortest frame on a wire, frame check sequence not counted.
pub const SHORTEST_FRAME: usize = 60;

/// Writes a header.
pub fn write_ethernet(target: &mut [u8], destination: Mac, source: Mac, ethertype: u16) -> Option<usize> {
    let header = target.first_chunk_mut::<HEADER_BYTES>()?;
    header[DESTINATION..SOURCE].copy_from_slice(&destination.0);
    header[SOURCE..ETHERTYPE].copy_from_slice(&source.0);
    header[ETHERTYPE..].copy_from_slice(&ethertype.to_be_bytes());
    Some(HEADER_BYTES)
}

/// The frame's destination address.
#[must_use]
pub fn destination(frame: &[u8]) -> Option<Mac> {
    read_array(frame, DESTINATION).map(Mac)
}

/// The frame's source address.
#[must_use]
pub fn source(frame: &[u8]) -> Option<Mac> {
    read_array(frame, SOURCE).map(Mac)
}

/// The EtherType of an untagged frame, of a tagged one the outer tag's.
#[must_use]
pub fn ethertype(frame: &[u8]) -> Option<u16> {
    read_u16(frame, ETHERTYPE)
}

/// Replaces both addresses.
pub fn set_addresses(frame: &mut [u8], destination: Mac, source: Mac) -> Option<()> {
    let addresses = frame.first_chunk_mut::<ETHERTYPE>()?;
    addresses[DESTINATION..SOURCE].copy_from_slice(&destination.0);
    addresses[SOURCE..].copy_from_slice(&source.0);
    Some(())
}

/// Sends the frame back to where it came from: its source becomes its destination, `source` its source.
pub fn answer_to_source(frame: &mut [u8], source: Mac) -> Option<()> {
    let destination = self::source(frame)?;
    set_addresses(frame, destination, source)
}

/// The group address of an IPv4 multicast address (RFC 1112 section 6.4).
#[must_use]
pub fn multicast_ipv4(address: [u8; 4]) -> Mac {
    Mac([0x01, 0x00, 0x5e, address[1] & 0x7f, address[2], address[3]])
}

/// The group address of an IPv6 multicast address (RFC 2464 section 7).
#[must_use]
pub fn multicast_ipv6(address: &[u8; 16]) -> Mac {
    Mac([0x33, 0x33, address[12], address[13], address[14], address[15]])
}

/// Replaces the EtherType at `offset`, which is [`ETHERTYPE`] plus four for each tag.
pub fn set_ethertype(frame: &mut [u8], offset: usize, ethertype: u16) -> Option<()> {
    write_bytes(frame, offset, &ethertype.to_be_bytes())
}
