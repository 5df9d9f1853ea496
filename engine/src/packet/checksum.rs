//! The Internet checksum (RFC 1071), its incremental update (RFC 1624), and the completion of partial ones.
//!
//! A checksum is kept as a one's-complement *sum* of big-endian 16-bit words while it is worked with and becomes a
//! *field* (folded to 16 bits and complemented) when it is written. Sums may be added in any order; a part that
//! begins at an odd offset counts with its bytes swapped, which [`Accumulator`] takes care of.
//!
//! A field is in one of two states, see [`Checksum`]: complete, or partial, where it holds the *uncomplemented* sum of
//! the pseudo header. Hence an edit uses [`update`] on the one and [`update_partial`] on the other, and only for the
//! pseudo header's words (addresses) on the other: ports are summed later.
//!
//! Long payloads go through [`super::copy_and_checksum`]; what is here is plain code for headers. Runs on workers.

use super::copy_and_checksum::Kernel;
use super::crc32c::Crc32c;
use super::{Checksum, FrameMemory, Packet};
use crate::drop_reason::DropReason;

/// Where the checksum field lies in a UDP header: the one protocol in which a field of zero means "none".
const UDP_FIELD: u16 = 6;
/// Where the checksum field lies in an SCTP header; no other protocol has it there.
const SCTP_FIELD: u16 = 8;

/// The one's-complement sum of `bytes` as big-endian 16-bit words, an odd last byte padded with zero.
/// At most 0xffff, so 65,537 of them can be added in a `u32`.
#[inline]
#[must_use]
pub fn sum(bytes: &[u8]) -> u32 {
    native_to_wire(native_sum(bytes))
}

/// The sum of `bytes` as native-endian words, not folded to the end: byte order does not matter until then
/// (RFC 1071 section 2 B).
#[inline]
pub(super) fn native_sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(8);
    let mut sum = 0u64;
    for word in words.by_ref() {
        sum = add_with_carry(sum, read::<8>(word).map_or(0, u64::from_ne_bytes));
    }
    let mut rest = words.remainder();
    let mut tail = 0u64;
    if let Some((word, after)) = rest.split_first_chunk::<4>() {
        tail += u64::from(u32::from_ne_bytes(*word));
        rest = after;
    }
    if let Some((word, after)) = rest.split_first_chunk::<2>() {
        tail += u64::from(u16::from_ne_bytes(*word));
        rest = after;
    }
    if let Some(byte) = rest.first() {
        tail += u64::from(u16::from_ne_bytes([*byte, 0]));
    }
    add_with_carry(sum, tail)
}

/// One's-complement addition of two 64-bit sums.
#[inline]
pub(super) fn add_with_carry(left: u64, right: u64) -> u64 {
    let (sum, carry) = left.overflowing_add(right);
    sum + u64::from(carry)
}

/// A native-endian sum as a big-endian one.
#[inline]
pub(super) fn native_to_wire(native: u64) -> u32 {
    u32::from(u16::from_be(fold(native)))
}

fn read<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.first_chunk().copied()
}

/// Folds a sum to 16 bits; zero only if the sum is zero.
#[inline]
#[must_use]
pub fn fold(sum: u64) -> u16 {
    let once = (sum & 0xffff_ffff) + (sum >> 32);
    let twice = (once & 0xffff) + ((once >> 16) & 0xffff) + (once >> 32);
    let thrice = (twice & 0xffff) + (twice >> 16);
    ((thrice & 0xffff) + (thrice >> 16)) as u16
}

/// The value for a checksum field: folded and complemented.
#[inline]
#[must_use]
pub fn finish(sum: u32) -> u16 {
    !fold(u64::from(sum))
}

/// As [`finish`], for UDP, where zero on the wire means "no checksum" and so is sent as 0xffff (RFC 768).
#[inline]
#[must_use]
pub fn finish_udp(sum: u32) -> u16 {
    match finish(sum) {
        0 => 0xffff,
        field => field,
    }
}

/// The sum of an IPv4 pseudo header (RFC 793 section 3.1); `length` counts the layer-4 header and its payload.
#[inline]
#[must_use]
pub fn pseudo_header_v4(source: [u8; 4], destination: [u8; 4], protocol: u8, length: u32) -> u32 {
    sum(&source) + sum(&destination) + u32::from(protocol) + (length >> 16) + (length & 0xffff)
}

/// The sum of an IPv6 pseudo header (RFC 8200 section 8.1); `length` counts the layer-4 header and its payload.
#[inline]
#[must_use]
pub fn pseudo_header_v6(source: &[u8; 16], destination: &[u8; 16], protocol: u8, length: u32) -> u32 {
    sum(source) + sum(destination) + u32::from(protocol) + (length >> 16) + (length & 0xffff)
}

/// A complete field after one covered 16-bit word changed (RFC 1624 equation 3).
#[inline]
#[must_use]
pub fn update(field: u16, old: u16, new: u16) -> u16 {
    !fold(u64::from(!field) + u64::from(!old) + u64::from(new))
}

/// A complete field after a covered 32-bit word changed, such as an IPv4 address.
#[inline]
#[must_use]
pub fn update32(field: u16, old: u32, new: u32) -> u16 {
    !fold(u64::from(!field) + u64::from(!old) + u64::from(new))
}

/// A complete UDP field after a covered word changed: a field of zero is no checksum and stays, a result of zero
/// is sent as 0xffff.
#[inline]
#[must_use]
pub fn update_udp(field: u16, old: u32, new: u32) -> u16 {
    match (field, update32(field, old, new)) {
        (0, _) => 0,
        (_, 0) => 0xffff,
        (_, updated) => updated,
    }
}

/// A partial field after a 16-bit word of the pseudo header changed. Other words, ports among them, do not count.
#[inline]
#[must_use]
pub fn update_partial(field: u16, old: u16, new: u16) -> u16 {
    fold(u64::from(field) + u64::from(!old) + u64::from(new))
}

/// A partial field after a 32-bit word of the pseudo header changed, such as an IPv4 address.
#[inline]
#[must_use]
pub fn update_partial32(field: u16, old: u32, new: u32) -> u16 {
    fold(u64::from(field) + u64::from(!old) + u64::from(new))
}

/// What a change of covered bytes from `old` to `new` adds to a sum; both begin at an even offset. Kept by the
/// flow cache and applied with [`apply`] or [`apply_partial`].
#[must_use]
pub fn difference(old: &[u8], new: &[u8]) -> u16 {
    fold(u64::from(!fold(u64::from(sum(old)))) + u64::from(sum(new)))
}

/// A complete field after a change whose [`difference`] is known.
#[inline]
#[must_use]
pub fn apply(field: u16, difference: u16) -> u16 {
    !fold(u64::from(!field) + u64::from(difference))
}

/// A partial field after a change of the pseudo header whose [`difference`] is known.
#[inline]
#[must_use]
pub fn apply_partial(field: u16, difference: u16) -> u16 {
    fold(u64::from(field) + u64::from(difference))
}

/// Adds up the sums of the parts of a packet, which may have odd lengths.
#[derive(Clone, Copy, Debug, Default)]
pub struct Accumulator {
    sum: u64,
    odd: bool,
}

impl Accumulator {
    /// An accumulator that already holds `sum`, usually that of a pseudo header.
    #[inline]
    #[must_use]
    pub fn new(sum: u32) -> Self {
        Self { sum: u64::from(sum), odd: false }
    }

    /// Adds the next part, `length` bytes long, whose own sum is `part`.
    #[inline]
    pub fn add(&mut self, part: u32, length: usize) {
        let folded = fold(u64::from(part));
        self.sum += u64::from(if self.odd { folded.swap_bytes() } else { folded });
        self.odd ^= length % 2 == 1;
    }

    /// The sum so far, folded.
    #[inline]
    #[must_use]
    pub fn sum(&self) -> u32 {
        u32::from(fold(self.sum))
    }
}

/// Completes a partial checksum over head and chain, as a NIC would: the sum runs from `start` to the packet's end.
/// Complete ones are left alone. Not for GSO units, whose segments get theirs when they are cut.
///
/// # Errors
/// [`DropReason::GsoMalformed`] if the field lies outside the packet's head; the packet is unchanged.
pub fn complete(memory: &mut FrameMemory, packet: &mut Packet) -> Result<(), DropReason> {
    complete_with(Kernel::detect(), memory, packet)
}

/// As [`complete`], with a kernel that was chosen before.
///
/// # Errors
/// As [`complete`].
pub fn complete_with(kernel: Kernel, memory: &mut FrameMemory, packet: &mut Packet) -> Result<(), DropReason> {
    let Checksum::Partial { start, offset } = packet.checksum() else { return Ok(()) };
    let malformed = DropReason::GsoMalformed;
    let first = usize::from(start).checked_sub(packet.start()).ok_or(malformed)?;
    let at = first + usize::from(offset);
    if offset == SCTP_FIELD {
        complete_sctp(memory, packet, first, at).ok_or(malformed)?;
    } else {
        let head = memory.head(packet);
        head.get(at..at + 2).ok_or(malformed)?;
        let sum = sum_from(kernel, memory, packet, first).sum();
        let field = if offset == UDP_FIELD { finish_udp(sum) } else { finish(sum) };
        memory.head_mut(packet)[at..at + 2].copy_from_slice(&field.to_be_bytes());
    }
    packet.set_checksum(Checksum::Complete);
    Ok(())
}

/// The sum of the packet's bytes from `first`, which lies in the head, to its end.
pub(crate) fn sum_from(kernel: Kernel, memory: &FrameMemory, packet: &Packet, first: usize) -> Accumulator {
    let mut total = Accumulator::default();
    for (number, part) in memory.parts(packet).enumerate() {
        let part = if number == 0 { part.get(first..).unwrap_or_default() } else { part };
        total.add(kernel.sum(part), part.len());
    }
    total
}

/// SCTP has a CRC32c instead, over the whole packet with the field taken as zero (RFC 9260 section 6.8).
fn complete_sctp(memory: &FrameMemory, packet: &mut Packet, first: usize, at: usize) -> Option<()> {
    memory.head_mut(packet).get_mut(at..at + 4)?.fill(0);
    let mut crc = Crc32c::new();
    for (number, part) in memory.parts(packet).enumerate() {
        crc.update(if number == 0 { part.get(first..).unwrap_or_default() } else { part });
    }
    memory.head_mut(packet).get_mut(at..at + 4)?.copy_from_slice(&crc.field());
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::FrameMemoryLayout;

    /// The definition, word by word.
    fn slow_sum(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            if sum > 0xffff {
                sum -= 0xffff;
            }
        }
        sum as u16
    }

    fn memory() -> FrameMemory {
        FrameMemory::new(FrameMemoryLayout { head_frames: 64, big_buffers: 2 }).expect("memory")
    }

    /// A packet whose parts have the given lengths, the first being the head.
    fn chained(memory: &mut FrameMemory, bytes: &[u8], lengths: &[usize]) -> Packet {
        let (first, mut rest) = bytes.split_at(lengths[0]);
        let mut packet = memory.packet_from(first).expect("packet");
        for length in &lengths[1..] {
            let (part, after) = rest.split_at(*length);
            let mut frame = memory.allocate_head().expect("frame");
            memory.bytes_mut(&mut frame)[3..3 + part.len()].copy_from_slice(part);
            memory.append(&mut packet, frame, 3, part.len());
            rest = after;
        }
        packet
    }

    #[test]
    fn the_examples_of_the_rfcs() {
        // RFC 1071 section 3: the sum of 00 01 f2 03 f4 f5 f6 f7 is ddf2.
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
        // RFC 1624 section 4: field dd2f, word 5555 becomes 3285, the field becomes 0000.
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
        assert_eq!(finish(0xffff), 0);
        assert_eq!(finish_udp(0xffff), 0xffff);
        assert_eq!(update_udp(0, 1, 2), 0);
        assert_eq!(update_udp(0xdd2f, 0x5555, 0x3285), 0xffff);
    }

    proptest! {
        #[test]
        fn sum_is_the_definition(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(sum(&bytes), u32::from(slow_sum(&bytes)));
        }

        #[test]
        fn updates_equal_a_new_sum(mut words in prop::collection::vec(any::<u8>(), 40), at in 0usize..9, new: u32) {
            let at = at * 4;
            let field = finish(sum(&words));
            let partial = fold(u64::from(sum(&words)));
            let old = u32::from_be_bytes(words[at..at + 4].try_into().expect("four bytes"));
            let changed = difference(&old.to_be_bytes(), &new.to_be_bytes());
            words[at..at + 4].copy_from_slice(&new.to_be_bytes());
            let expected = finish(sum(&words));
            // A valid field makes the whole sum to 0xffff; two fields that both do are equal or 0 and 0xffff.
            let valid = |field: u16| fold(u64::from(sum(&words)) + u64::from(field)) == 0xffff;
            prop_assert!(valid(expected) && valid(update32(field, old, new)) && valid(apply(field, changed)));
            let halves = update(field, (old >> 16) as u16, (new >> 16) as u16);
            prop_assert!(valid(update(halves, old as u16, new as u16)));
            let halves = update_partial(partial, (old >> 16) as u16, (new >> 16) as u16);
            for partial in [
                update_partial32(partial, old, new),
                update_partial(halves, old as u16, new as u16),
                apply_partial(partial, changed),
            ] {
                prop_assert!(valid(!partial));
            }
        }

        #[test]
        fn completion_over_any_chain_verifies(
            bytes in prop::collection::vec(any::<u8>(), 4 + 200..4 + 201),
            cuts in prop::collection::vec(1usize..60, 0..3),
            offset in prop::sample::select(vec![2u16, 6, 16]),
            pseudo: u16,
        ) {
            let mut memory = memory();
            let mut bytes = bytes;
            let at = 4 + usize::from(offset);
            bytes[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
            let mut lengths = vec![bytes.len() - cuts.iter().sum::<usize>()];
            lengths.extend(cuts);
            for kernel in Kernel::available() {
                let mut packet = chained(&mut memory, &bytes, &lengths);
                packet.set_checksum(Checksum::Partial { start: packet.start() as u16 + 4, offset });
                prop_assert_eq!(complete_with(kernel, &mut memory, &mut packet), Ok(()));
                prop_assert_eq!(packet.checksum(), Checksum::Complete);
                let after: Vec<u8> = memory.parts(&packet).flatten().copied().collect();
                let field = u16::from_be_bytes([after[at], after[at + 1]]);
                // Receiver's view: everything behind `start`, with the pseudo header, sums to all ones.
                prop_assert_eq!(fold(u64::from(slow_sum(&after[4..])) + u64::from(pseudo)), 0xffff);
                prop_assert!(offset != 6 || field != 0);
                prop_assert_eq!((&after[..at], &after[at + 2..]), (&bytes[..at], &bytes[at + 2..]));
                memory.release(packet);
            }
        }
    }

    #[test]
    fn sctp_completion_writes_the_crc_over_the_chain() {
        let mut memory = memory();
        let mut bytes: Vec<u8> = (0..101u8).collect();
        let mut packet = chained(&mut memory, &bytes, &[43, 35, 23]);
        packet.set_checksum(Checksum::Partial { start: packet.start() as u16 + 10, offset: 8 });
        complete(&mut memory, &mut packet).expect("field inside the head");
        bytes[18..22].fill(0);
        let mut crc = Crc32c::new();
        crc.update(&bytes[10..]);
        let head = memory.head(&packet);
        assert_eq!(head[18..22], crc.field());
        assert_ne!(head[18..22], [0; 4]);
        memory.release(packet);
    }

    #[test]
    fn a_field_outside_the_head_is_refused() {
        let mut memory = memory();
        let mut packet = memory.packet_from(&[7; 60]).expect("packet");
        let start = packet.start() as u16;
        for (start, offset) in
            [(start - 1, 16), (start + 59, 0), (start + 20, 50), (start + 20, u16::MAX), (start + 50, 8)]
        {
            packet.set_checksum(Checksum::Partial { start, offset });
            assert_eq!(complete(&mut memory, &mut packet), Err(DropReason::GsoMalformed));
            assert_eq!(memory.head(&packet), [7; 60]);
        }
        memory.release(packet);
    }
}
