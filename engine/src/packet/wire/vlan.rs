//! VLAN tags: 802.1Q and 802.1ad (IEEE 802.1Q section 9.6).
//!
//! A tag lies between the source address and the EtherType: two bytes of tag protocol, two of control information.

use super::{ethernet, read_u16, write_bytes};

/// Bytes of a tag.
pub const TAG_BYTES: usize = 4;
/// Tags read at most: a service tag and a customer tag.
pub const TAGS: usize = 2;
/// The lowest 12 bits of the control information: the VLAN's number.
pub const ID_MASK: u16 = 0x0fff;

/// The VLAN's number; 0 means that the tag carries a priority only.
#[inline]
#[must_use]
pub const fn id(control: u16) -> u16 {
    control & ID_MASK
}

/// The priority code point, 0 to 7.
#[inline]
#[must_use]
pub const fn priority(control: u16) -> u8 {
    (control >> 13) as u8
}

/// Control information without the drop-eligible bit.
#[must_use]
pub const fn control(id: u16, priority: u8) -> u16 {
    (id & ID_MASK) | (priority as u16 & 7) << 13
}

/// Makes the frame that starts [`TAG_BYTES`] behind the start of `target` a tagged one that starts with `target`:
/// moves the addresses forward and writes the tag behind them.
pub fn push(target: &mut [u8], tag_protocol: u16, control: u16) -> Option<()> {
    let front = target.first_chunk_mut::<{ ethernet::ETHERTYPE + TAG_BYTES }>()?;
    front.copy_within(TAG_BYTES.., 0);
    front[ethernet::ETHERTYPE..ethernet::ETHERTYPE + 2].copy_from_slice(&tag_protocol.to_be_bytes());
    front[ethernet::ETHERTYPE + 2..].copy_from_slice(&control.to_be_bytes());
    Some(())
}

/// Removes the outer tag: moves the addresses back over it. The frame then starts [`TAG_BYTES`] later, which the
/// caller strips. Gives the tag's control information. The caller knows from the parse that there is a tag.
pub fn pop(frame: &mut [u8]) -> Option<u16> {
    let front = frame.first_chunk_mut::<{ ethernet::ETHERTYPE + TAG_BYTES }>()?;
    let control = read_u16(front, ethernet::ETHERTYPE + 2)?;
    front.copy_within(..ethernet::ETHERTYPE, TAG_BYTES);
    Some(control)
}

/// Writes one tag at the EtherType's place; the real EtherType follows behind it.
pub fn write_tag(target: &mut [u8], tag_protocol: u16, control: u16) -> Option<usize> {
    write_bytes(target, 0, &tag_protocol.to_be_bytes())?;
    write_bytes(target, 2, &control.to_be_bytes())?;
    Some(TAG_BYTES)
}
