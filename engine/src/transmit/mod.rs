//! From a decided packet to bytes on a port: what a port cannot take is brought into a form that it can.

#[cfg(test)]
mod frames;
pub mod joining;
pub mod outer_checksum;
pub mod segmentation;

/// Offsets into TCP, UDP and IP headers that segmentation and joining both write, and the TCP flags they know.
pub(crate) mod field {
    /// Total length of an IPv4 header.
    pub(crate) const IPV4_LENGTH: usize = 2;
    /// Identification of an IPv4 header.
    pub(crate) const IPV4_IDENTIFICATION: usize = 4;
    /// Flags and fragment offset of an IPv4 header.
    pub(crate) const IPV4_FRAGMENT: usize = 6;
    /// Protocol of an IPv4 header.
    pub(crate) const IPV4_PROTOCOL: usize = 9;
    /// Checksum of an IPv4 header.
    pub(crate) const IPV4_CHECKSUM: usize = 10;
    /// Source address of an IPv4 header; the destination follows.
    pub(crate) const IPV4_ADDRESSES: usize = 12;
    /// Bytes of an IPv4 header without options.
    pub(crate) const IPV4_BYTES: usize = 20;
    /// "Don't fragment" in the first byte at [`IPV4_FRAGMENT`].
    pub(crate) const DONT_FRAGMENT: u8 = 0x40;
    /// Payload length of an IPv6 header.
    pub(crate) const IPV6_LENGTH: usize = 4;
    /// Source address of an IPv6 header; the destination follows.
    pub(crate) const IPV6_ADDRESSES: usize = 8;
    /// Bytes of an IPv6 header without extensions.
    pub(crate) const IPV6_BYTES: usize = 40;
    /// Next header of an IPv6 header.
    pub(crate) const IPV6_NEXT_HEADER: usize = 6;
    /// Sequence number of a TCP header.
    pub(crate) const TCP_SEQUENCE: usize = 4;
    /// Acknowledgement number of a TCP header.
    pub(crate) const TCP_ACKNOWLEDGEMENT: usize = 8;
    /// Data offset of a TCP header, in words, in the upper half of the byte.
    pub(crate) const TCP_DATA_OFFSET: usize = 12;
    /// Flags of a TCP header.
    pub(crate) const TCP_FLAGS: usize = 13;
    /// Window of a TCP header.
    pub(crate) const TCP_WINDOW: usize = 14;
    /// Checksum of a TCP header.
    pub(crate) const TCP_CHECKSUM: usize = 16;
    /// Bytes of a TCP header without options.
    pub(crate) const TCP_BYTES: usize = 20;
    /// Length of a UDP header and its payload.
    pub(crate) const UDP_LENGTH: usize = 4;
    /// Checksum of a UDP header.
    pub(crate) const UDP_CHECKSUM: usize = 6;
    /// Bytes of a UDP header.
    pub(crate) const UDP_BYTES: usize = 8;

    /// TCP FIN.
    pub(crate) const FIN: u8 = 0x01;
    /// TCP PSH.
    pub(crate) const PSH: u8 = 0x08;
    /// TCP ACK.
    pub(crate) const ACK: u8 = 0x10;
    /// TCP CWR.
    pub(crate) const CWR: u8 = 0x80;

    /// The 16-bit number at `at`; zero beyond the end, which no validated header has.
    #[inline]
    pub(crate) fn read16(bytes: &[u8], at: usize) -> u16 {
        bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u16::from_be_bytes(*word))
    }

    /// The 32-bit number at `at`; zero beyond the end.
    #[inline]
    pub(crate) fn read32(bytes: &[u8], at: usize) -> u32 {
        bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_be_bytes(*word))
    }

    /// Writes a 16-bit number at `at`; nothing beyond the end.
    #[inline]
    pub(crate) fn write16(bytes: &mut [u8], at: usize, value: u16) {
        if let Some(word) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
            *word = value.to_be_bytes();
        }
    }

    /// Writes a 32-bit number at `at`; nothing beyond the end.
    #[inline]
    pub(crate) fn write32(bytes: &mut [u8], at: usize, value: u32) {
        if let Some(word) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
            *word = value.to_be_bytes();
        }
    }
}
