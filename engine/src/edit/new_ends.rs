//! New addresses and ports of a flow as they stand in a frame, so that a packet gets them by one copy.
//!
//! In an IP header without options the source address, the destination address and, behind them, the ports of TCP and UDP lie
//! in a row. A side that is not translated has its old values here, so both sides are always written, and what a packet pays
//! does not depend on which it is. Lives in the flow's entry; nothing is made of it for a packet.

use super::Translation;

/// Bytes of both addresses and both ports.
pub(crate) const IPV4_BYTES: usize = 12;
pub(crate) const IPV6_BYTES: usize = 36;
const PORTS_BYTES: usize = 4;

/// Which sides are translated, as bits.
pub(crate) mod side {
    pub(crate) const SOURCE: u8 = 1;
    pub(crate) const DESTINATION: u8 = 1 << 1;
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewEnds<'a> {
    /// [`IPV4_BYTES`] or [`IPV6_BYTES`].
    bytes: &'a [u8],
    /// Bits of [`side`].
    sides: u8,
}

impl<'a> NewEnds<'a> {
    /// Nothing is translated.
    pub const NONE: NewEnds<'static> = NewEnds { bytes: &[], sides: 0 };

    #[inline]
    pub(crate) fn new(bytes: &'a [u8], sides: u8) -> Self {
        Self { bytes, sides }
    }

    /// Whether nothing is translated.
    #[inline]
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.sides == 0
    }

    #[inline]
    pub(super) fn ipv4(&self) -> Option<&'a [u8; IPV4_BYTES]> {
        self.bytes.first_chunk()
    }

    #[inline]
    pub(super) fn ipv6(&self) -> Option<&'a [u8; IPV6_BYTES]> {
        self.bytes.first_chunk()
    }

    /// The same for packets that are not plain.
    #[must_use]
    pub fn translation(&self) -> Translation {
        let address_bytes = self.bytes.len().saturating_sub(PORTS_BYTES) / 2;
        let part = |bit, number: usize| {
            let mut address = [0; 16];
            let from = self.bytes.get(number * address_bytes..(number + 1) * address_bytes)?;
            address.get_mut(..address_bytes)?.copy_from_slice(from);
            let port = self.bytes.get(2 * (address_bytes + number)..)?.first_chunk()?;
            (self.sides & bit != 0).then_some((address, u16::from_be_bytes(*port)))
        };
        Translation { source: part(side::SOURCE, 0), destination: part(side::DESTINATION, 1) }
    }
}

/// Writes a translation over the addresses and ports in `bytes`; which sides that are.
pub(crate) fn write(bytes: &mut [u8], translation: &Translation) -> u8 {
    let address_bytes = bytes.len().saturating_sub(PORTS_BYTES) / 2;
    let ends = [(side::SOURCE, translation.source, 0), (side::DESTINATION, translation.destination, 1)];
    let mut sides = 0;
    for (bit, end, number) in ends {
        let Some((address, port)) = end else { continue };
        sides |= bit;
        bytes[number * address_bytes..(number + 1) * address_bytes].copy_from_slice(&address[..address_bytes]);
        let at = 2 * (address_bytes + number);
        bytes[at..at + 2].copy_from_slice(&port.to_be_bytes());
    }
    sides
}
