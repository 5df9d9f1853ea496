//! TCP (RFC 9293).

use super::{read_u16, read_u32};

/// Bytes of a header without options.
pub const HEADER_BYTES: usize = 20;
/// Source port.
pub const SOURCE_PORT: usize = 0;
/// Destination port.
pub const DESTINATION_PORT: usize = 2;
/// Sequence number.
pub const SEQUENCE: usize = 4;
/// Acknowledgement number.
pub const ACKNOWLEDGEMENT: usize = 8;
/// Header length in 32-bit words in the high half.
pub const DATA_OFFSET: usize = 12;
/// Flags, see [`flag`].
pub const FLAGS: usize = 13;
/// Receive window.
pub const WINDOW: usize = 14;
/// Checksum over pseudo header, header and payload.
pub const CHECKSUM: usize = 16;
/// Urgent pointer.
pub const URGENT: usize = 18;

/// Bits of the flags byte (RFC 9293 section 3.1, RFC 3168).
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 1 << 1;
    /// Reset the connection.
    pub const RST: u8 = 1 << 2;
    /// Push.
    pub const PSH: u8 = 1 << 3;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 1 << 4;
    /// The urgent pointer counts.
    pub const URG: u8 = 1 << 5;
    /// Explicit congestion notification echo.
    pub const ECE: u8 = 1 << 6;
    /// Congestion window reduced.
    pub const CWR: u8 = 1 << 7;
}

/// Sequence number.
#[must_use]
pub fn sequence(header: &[u8]) -> Option<u32> {
    read_u32(header, SEQUENCE)
}

/// Acknowledgement number.
#[must_use]
pub fn acknowledgement(header: &[u8]) -> Option<u32> {
    read_u32(header, ACKNOWLEDGEMENT)
}

/// Flags, see [`flag`].
#[must_use]
pub fn flags(header: &[u8]) -> Option<u8> {
    header.get(FLAGS).copied()
}

/// Bytes of the header, options included, by its own field.
#[must_use]
pub fn header_length(header: &[u8]) -> Option<usize> {
    header.get(DATA_OFFSET).map(|byte| usize::from(byte >> 4) * 4)
}

/// Checksum field.
#[must_use]
pub fn checksum(header: &[u8]) -> Option<u16> {
    read_u16(header, CHECKSUM)
}
