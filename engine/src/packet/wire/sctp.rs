//! SCTP common header and chunk types (RFC 9260 section 3).

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

/// Types of chunks (RFC 9260 section 3.2).
pub mod chunk {
    /// User data.
    pub const DATA: u8 = 0;
    /// Asks for an association.
    pub const INIT: u8 = 1;
    /// Answers INIT with a cookie.
    pub const INIT_ACK: u8 = 2;
    /// Acknowledges data.
    pub const SACK: u8 = 3;
    /// Asks whether a path works.
    pub const HEARTBEAT: u8 = 4;
    /// Says that it does.
    pub const HEARTBEAT_ACK: u8 = 5;
    /// Ends the association at once.
    pub const ABORT: u8 = 6;
    /// Begins to end it.
    pub const SHUTDOWN: u8 = 7;
    /// Answers SHUTDOWN.
    pub const SHUTDOWN_ACK: u8 = 8;
    /// Gives the cookie back.
    pub const COOKIE_ECHO: u8 = 10;
    /// Accepts the cookie: the association is established.
    pub const COOKIE_ACK: u8 = 11;
    /// Answers SHUTDOWN ACK: the association is over.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}
