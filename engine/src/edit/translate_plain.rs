//! Replaces addresses and ports of plain packets (`packet/parse/plain.rs`): TCP or UDP, whole, checksums complete.
//!
//! What [`super::translate`] does to any packet, for those of which everything stands at a fixed place: both addresses and both
//! ports in a row, written at once ([`NewEnds`]). The words that go and those that come are summed as the machine reads them,
//! since one's-complement sums mind neither the order of bytes nor how many of them are added at a time (RFC 1071 section 2),
//! and each field is updated once for all of them (RFC 1624 equation 3). Some thirty instructions over IPv4.

use super::NewEnds;
use super::new_ends::{IPV4_BYTES, IPV6_BYTES};
use crate::packet::checksum;
use crate::packet::parse::plain::{self, at};
use crate::packet::parse::protocol;
use crate::packet::wire::{ethernet, ipv4, ipv6, tcp, udp};

const NETWORK: usize = ethernet::HEADER_BYTES;
const BEHIND_IPV4: usize = NETWORK + ipv4::HEADER_BYTES;
const BEHIND_IPV6: usize = NETWORK + ipv6::HEADER_BYTES;

/// Sums of the complements of the old words and of the new words.
struct Replaced {
    addresses: u64,
    ports: u64,
}

/// Gives a plain frame these addresses and ports. `None` if it is shorter than its headers or of the other family, which no
/// plain frame of the flow is.
#[inline]
pub(super) fn translate_plain(frame: &mut [u8], is_ipv6: bool, ends: NewEnds<'_>) -> Option<()> {
    if is_ipv6 { translate_ipv6(frame, ends.ipv6()?) } else { translate_ipv4(frame, ends.ipv4()?) }
}

#[inline]
fn translate_ipv4(frame: &mut [u8], new: &[u8; IPV4_BYTES]) -> Option<()> {
    const CHECKSUM: usize = NETWORK + ipv4::CHECKSUM;
    let front: &mut [u8; plain::SHORTEST_IPV4] = frame.first_chunk_mut()?;
    let old: [u8; IPV4_BYTES] = at(front, NETWORK + ipv4::SOURCE);
    front[NETWORK + ipv4::SOURCE..BEHIND_IPV4 + 4].copy_from_slice(new);
    let addresses = |bytes: &[u8; IPV4_BYTES]| u64::from_ne_bytes(at(bytes, 0));
    let replaced = Replaced {
        addresses: halves(!addresses(&old)) + halves(addresses(new)),
        ports: u64::from(!ports(&old)) + u64::from(ports(new)),
    };
    let field = u16::from_ne_bytes(at(front, CHECKSUM));
    front[CHECKSUM..CHECKSUM + 2].copy_from_slice(&updated(field, replaced.addresses).to_ne_bytes());
    let number = front[NETWORK + ipv4::PROTOCOL];
    update_transport(frame.get_mut(BEHIND_IPV4..)?, number, &replaced)
}

#[inline]
fn translate_ipv6(frame: &mut [u8], new: &[u8; IPV6_BYTES]) -> Option<()> {
    let front: &mut [u8; plain::SHORTEST_IPV6] = frame.first_chunk_mut()?;
    let old: [u8; IPV6_BYTES] = at(front, NETWORK + ipv6::SOURCE);
    front[NETWORK + ipv6::SOURCE..BEHIND_IPV6 + 4].copy_from_slice(new);
    let word = |bytes: &[u8; IPV6_BYTES], number: usize| u64::from_ne_bytes(at(bytes, 8 * number));
    let replaced = Replaced {
        addresses: (0..4).map(|number| halves(!word(&old, number)) + halves(word(new, number))).sum(),
        ports: u64::from(!ports(&old)) + u64::from(ports(new)),
    };
    let number = front[NETWORK + ipv6::NEXT_HEADER];
    update_transport(frame.get_mut(BEHIND_IPV6..)?, number, &replaced)
}

/// Both ports, which stand last.
#[inline]
fn ports<const N: usize>(ends: &[u8; N]) -> u32 {
    u32::from_ne_bytes(at(ends, N - 4))
}

#[inline]
fn halves(word: u64) -> u64 {
    (word & 0xffff_ffff) + (word >> 32)
}

/// The checksum of TCP or UDP, which covers addresses and ports. A UDP field of zero is none, and stays none.
#[inline]
fn update_transport(segment: &mut [u8], number: u8, replaced: &Replaced) -> Option<()> {
    let is_udp = number == protocol::UDP;
    let field = segment.get_mut(if is_udp { udp::CHECKSUM } else { tcp::CHECKSUM }..)?.first_chunk_mut::<2>()?;
    let old = u16::from_ne_bytes(*field);
    if is_udp && old == 0 {
        return Some(());
    }
    let new = updated(old, replaced.addresses + replaced.ports);
    *field = if is_udp { udp::checksum_field(new) } else { new }.to_ne_bytes();
    Some(())
}

#[inline]
fn updated(field: u16, replaced: u64) -> u16 {
    !checksum::fold(u64::from(!field) + replaced)
}
