//! UDP (RFC 768).

use super::{read_u16, write_u16};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 8;
/// Source port.
pub const SOURCE_PORT: usize = 0;
/// Destination port.
pub const DESTINATION_PORT: usize = 2;
/// Bytes of header and payload.
pub const LENGTH: usize = 4;
/// Checksum over pseudo header, header and payload; zero means none, which IPv6 forbids (RFC 8200 section 8.1).
pub const CHECKSUM: usize = 6;

/// Writes a header. `checksum` is what goes into the field: zero for none, else see [`checksum_field`].
pub fn write_udp(
    target: &mut [u8],
    source_port: u16,
    destination_port: u16,
    length: u16,
    checksum: u16,
) -> Option<usize> {
    let header = target.first_chunk_mut::<HEADER_BYTES>()?;
    header[SOURCE_PORT..DESTINATION_PORT].copy_from_slice(&source_port.to_be_bytes());
    header[DESTINATION_PORT..LENGTH].copy_from_slice(&destination_port.to_be_bytes());
    header[LENGTH..CHECKSUM].copy_from_slice(&length.to_be_bytes());
    header[CHECKSUM..].copy_from_slice(&checksum.to_be_bytes());
    Some(HEADER_BYTES)
}

/// The field's value for a finished checksum: a computed zero is sent as all ones, since zero means none.
#[inline]
#[must_use]
pub const fn checksum_field(finished: u16) -> u16 {
    if finished == 0 { 0xffff } else { finished }
}

/// Bytes of header and payload by the header's own field.
#[must_use]
pub fn length(header: &[u8]) -> Option<u16> {
    read_u16(header, LENGTH)
}

/// Checksum field.
#[must_use]
pub fn checksum(header: &[u8]) -> Option<u16> {
    read_u16(header, CHECKSUM)
}

/// Replaces the checksum field.
pub fn set_checksum(header: &mut [u8], checksum: u16) -> Option<()> {
    write_u16(header, CHECKSUM, checksum)
}
