//! VXLAN (RFC 7348 section 5): a UDP payload of eight bytes of header and an Ethernet frame.
//!
//! Only the I flag is looked at. All other bits are reserved; the RFC has them sent as zero and ignored by the
//! receiver, so a peer that marks packets there (the group policy extension) is still understood.

/// Bytes of the header.
pub const HEADER_BYTES: usize = 8;
/// Flags.
pub const FLAGS: usize = 0;
/// VXLAN network identifier, 24 bits.
pub const VNI: usize = 4;
/// In the flags byte: the VNI is valid.
pub const FLAG_VNI: u8 = 0x08;
/// Largest VNI.
pub const LARGEST_VNI: u32 = 0xff_ffff;
/// The port IANA assigned.
pub const PORT: u16 = 4789;
/// The port the Linux kernel uses by default, and so does flannel.
pub const PORT_LINUX: u16 = 8472;

/// Writes a header; only the lowest 24 bits of `vni` count.
pub fn write_vxlan(target: &mut [u8], vni: u32) -> Option<usize> {
    let header = target.first_chunk_mut::<HEADER_BYTES>()?;
    header[..VNI].copy_from_slice(&[FLAG_VNI, 0, 0, 0]);
    header[VNI..].copy_from_slice(&(vni << 8).to_be_bytes());
    Some(HEADER_BYTES)
}

/// The header's VNI; `None` if the header is cut short or says that it has none.
#[must_use]
pub fn read_vni(header: &[u8]) -> Option<u32> {
    let [flags, _, _, _, a, b, c, _] = *header.first_chunk::<HEADER_BYTES>()?;
    (flags & FLAG_VNI != 0).then(|| u32::from_be_bytes([0, a, b, c]))
}
