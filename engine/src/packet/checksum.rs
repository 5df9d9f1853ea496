//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// One's-complement sum of `bytes` as big-endian words, folded to 16 bits.
#[must_use]
pub fn sum(bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    let total: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    let last = rest.first().map_or(0, |byte| u64::from(*byte) << 8);
    u32::from(fold(total + last))
}

/// Folds a sum to 16 bits.
#[must_use]
pub fn fold(sum: u64) -> u16 {
    let mut sum = sum;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// What goes into a header field for this sum.
#[must_use]
pub fn finish(sum: u32) -> u16 {
    !fold(u64::from(sum))
}

/// Sum of the IPv4 pseudo header (RFC 9293 section 3.1).
#[must_use]
pub fn pseudo_header_v4(source: [u8; 4], destination: [u8; 4], protocol: u8, length: u32) -> u32 {
    let total = sum(&source) + sum(&destination) + u32::from(protocol) + (length >> 16) + (length & 0xffff);
    u32::from(fold(u64::from(total)))
}

/// Sum of the IPv6 pseudo header (RFC 8200 section 8.1).
#[must_use]
pub fn pseudo_header_v6(source: &[u8; 16], destination: &[u8; 16], protocol: u8, length: u32) -> u32 {
    let total = sum(source) + sum(destination) + u32::from(protocol) + (length >> 16) + (length & 0xffff);
    u32::from(fold(u64::from(total)))
}

/// `field` after a covered word changed from `old` to `new` (RFC 1624 equation 3).
#[must_use]
pub fn update(field: u16, old: u16, new: u16) -> u16 {
    !fold(u64::from(!field) + u64::from(!old) + u64::from(new))
}
