//! One file per protocol: where its fields lie and how to build one.
//!
//! Offsets count from the first byte of the protocol's own header. A reader takes a slice that begins there and
//! gives `None` where the slice ends too early. A builder takes the slice to write at and gives the number of bytes
//! written, or `None`, with nothing promised about the slice, if it does not fit. Nothing here allocates or panics,
//! so the slow path and the edits use these functions on a worker; the hot path uses the constants.

pub mod arp;
pub mod ethernet;
pub mod icmp;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod nd;
pub mod sctp;
pub mod tcp;
pub mod udp;
pub mod vlan;
pub mod vxlan;

/// The `N` bytes at `offset`.
#[inline]
#[must_use]
pub fn read_array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// The big-endian 16-bit number at `offset`.
#[inline]
#[must_use]
pub fn read_u16(bytes: &[u8], offset: usize) -> Option<u16> {
    read_array(bytes, offset).map(u16::from_be_bytes)
}

/// The big-endian 32-bit number at `offset`.
#[inline]
#[must_use]
pub fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    read_array(bytes, offset).map(u32::from_be_bytes)
}

/// Writes `value` at `offset`; `None`, and nothing written, if it does not fit.
#[inline]
pub fn write_bytes(bytes: &mut [u8], offset: usize, value: &[u8]) -> Option<()> {
    bytes.get_mut(offset..)?.get_mut(..value.len())?.copy_from_slice(value);
    Some(())
}

/// Writes a big-endian 16-bit number at `offset`; `None`, and nothing written, if it does not fit.
#[inline]
pub fn write_u16(bytes: &mut [u8], offset: usize, value: u16) -> Option<()> {
    write_bytes(bytes, offset, &value.to_be_bytes())
}

#[cfg(test)]
mod tests;
