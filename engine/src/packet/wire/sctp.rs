//! SCTP common header (RFC 9260 section 3.1).

/// Bytes of the common header; chunks follow.
pub const HEADER_BYTES: usize = 12;
/// Source port.
pub const SOURCE_PORT: usize = 0;
/// Destination port.
pub const DESTINATION_PORT: usize = 2;
/// Verification tag of the association.
pub const VERIFICATION_TAG: usize = 4;
/// CRC32c over the whole SCTP packet (RFC 9260 section 6.8), which covers no address but does cover the ports.
pub const CHECKSUM: usize = 8;
