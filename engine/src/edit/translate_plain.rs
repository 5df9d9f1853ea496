//! Replaces addresses and ports of plain packets (`packet/parse/plain.rs`): TCP or UDP, whole, checksums complete.
//!
//! What [`super::translate`] does to any packet, for those of which everything stands at a fixed place. The words that go
//! and those that come are summed as the machine reads them, since one's-complement sums do not mind the order of bytes
//! (RFC 1071 section 2 B), and each field is updated once for all of them (RFC 1624 equation 3). About eight cycles for one
//! side over IPv4.

use super::Translation;
use crate::packet::checksum;
use crate::packet::parse::protocol;
use crate::packet::wire::{ethernet, ipv4, ipv6, tcp, udp};

const NETWORK: usize = ethernet::HEADER_BYTES;
const BEHIND_IPV4: usize = NETWORK + ipv4::HEADER_BYTES;
const BEHIND_IPV6: usize = NETWORK + ipv6::HEADER_BYTES;
const PORTS_BYTES: usize = 4;

/// What was replaced: sums of the complements of the old words and of the new words.
#[derive(Default)]
struct Replaced {
    addresses: u64,
    ports: u64,
}

/// Replaces what `translation` names in a plain frame. `None` if it is shorter than its headers, which no plain frame is.
#[inline]
pub(super) fn translate_plain(frame: &mut [u8], is_ipv6: bool, translation: &Translation) -> Option<()> {
    if is_ipv6 { translate_ipv6(frame, translation) } else { translate_ipv4(frame, translation) }
}

#[inline]
fn translate_ipv4(frame: &mut [u8], translation: &Translation) -> Option<()> {
    const CHECKSUM: usize = NETWORK + ipv4::CHECKSUM;
    let header: &mut [u8; BEHIND_IPV4 + PORTS_BYTES] = frame.first_chunk_mut()?;
    let mut replaced = Replaced::default();
    let sides = [(translation.source, ipv4::SOURCE, 0), (translation.destination, ipv4::DESTINATION, 2)];
    for (new, address_at, port_at) in sides {
        let Some((address, port)) = new else { continue };
        replaced.addresses += replace::<4>(header, NETWORK + address_at, first(&address));
        replaced.ports += replace::<2>(header, BEHIND_IPV4 + port_at, port.to_be_bytes());
    }
    let field = u16::from_ne_bytes([header[CHECKSUM], header[CHECKSUM + 1]]);
    header[CHECKSUM..CHECKSUM + 2].copy_from_slice(&updated(field, replaced.addresses).to_ne_bytes());
    let number = header[NETWORK + ipv4::PROTOCOL];
    update_transport(frame.get_mut(BEHIND_IPV4..)?, number, &replaced)
}

#[inline]
fn translate_ipv6(frame: &mut [u8], translation: &Translation) -> Option<()> {
    let header: &mut [u8; BEHIND_IPV6 + PORTS_BYTES] = frame.first_chunk_mut()?;
    let mut replaced = Replaced::default();
    let sides = [(translation.source, ipv6::SOURCE, 0), (translation.destination, ipv6::DESTINATION, 2)];
    for (new, address_at, port_at) in sides {
        let Some((address, port)) = new else { continue };
        replaced.addresses += replace::<16>(header, NETWORK + address_at, address);
        replaced.ports += replace::<2>(header, BEHIND_IPV6 + port_at, port.to_be_bytes());
    }
    let number = header[NETWORK + ipv6::NEXT_HEADER];
    update_transport(frame.get_mut(BEHIND_IPV6..)?, number, &replaced)
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

/// Writes `new` at `offset`; returns the sum of the complemented old words and the new ones, in the machine's order.
#[inline]
fn replace<const N: usize>(header: &mut [u8], offset: usize, new: [u8; N]) -> u64 {
    let Some(place) = header.get_mut(offset..).and_then(|rest| rest.first_chunk_mut::<N>()) else { return 0 };
    let words = |bytes: &[u8; N], flip: u16| -> u64 {
        bytes.chunks_exact(2).map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair[1]]) ^ flip)).sum()
    };
    let sum = words(place, u16::MAX) + words(&new, 0);
    *place = new;
    sum
}

#[inline]
fn first(address: &[u8; 16]) -> [u8; 4] {
    [address[0], address[1], address[2], address[3]]
}
