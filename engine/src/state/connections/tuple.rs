//! Who speaks to whom: what makes two packets of one direction the same connection's.

use std::net::{IpAddr, Ipv6Addr};

use crate::flow_cache::{HashKey, HashWords};
use crate::packet::{Headers, Network};
use crate::tables::SegmentIndex;

/// Words of a tuple in an entry.
pub(super) const TUPLE_WORDS: usize = 5;
const IPV6: u64 = 1 << 56;

/// Which way a packet of a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// As the packet that opened the connection.
    Original,
    /// The other way.
    Reply,
}

impl Direction {
    /// The other one.
    #[must_use]
    pub const fn reversed(self) -> Direction {
        match self {
            Direction::Original => Direction::Reply,
            Direction::Reply => Direction::Original,
        }
    }

    /// The word that trace and CLI print.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Direction::Original => "original",
            Direction::Reply => "reply",
        }
    }
}

/// Addresses, ports, protocol and segment of the packets of one direction, as they come in. IPv4 addresses lie in the
/// first four bytes. An ICMP echo has its identifier in place of both ports; a protocol without ports has zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
    /// Source and destination port.
    pub ports: [u16; 2],
    /// Segment the packets come in by.
    pub segment: SegmentIndex,
    /// Layer-4 protocol.
    pub protocol: u8,
    /// Whether the addresses are IPv6.
    pub ipv6: bool,
}

impl Tuple {
    /// The tuple of a packet with these headers that belongs to `segment`.
    #[must_use]
    pub fn of(headers: &Headers, segment: SegmentIndex) -> Self {
        Self {
            source: headers.source,
            destination: headers.destination,
            ports: headers.ports,
            segment,
            protocol: headers.protocol,
            ipv6: headers.network == Network::Ipv6,
        }
    }

    /// The tuple of the packets that answer these, where nothing is translated.
    #[must_use]
    pub const fn mirrored(&self) -> Self {
        let [source, destination] = self.ports;
        Self { source: self.destination, destination: self.source, ports: [destination, source], ..*self }
    }

    /// The source address.
    #[must_use]
    pub fn source_address(&self) -> IpAddr {
        address(&self.source, self.ipv6)
    }

    /// The destination address.
    #[must_use]
    pub fn destination_address(&self) -> IpAddr {
        address(&self.destination, self.ipv6)
    }

    /// The keyed hash; the same for a tuple and its mirror image, so that both directions of a connection without
    /// translation lie in one shard.
    #[must_use]
    pub fn hash(&self, key: &HashKey) -> u64 {
        let [source_low, source_high, destination_low, destination_high, facts] = self.words();
        let source = (source_low.swap_bytes(), source_high.swap_bytes(), self.ports[0]);
        let destination = (destination_low.swap_bytes(), destination_high.swap_bytes(), self.ports[1]);
        let words = if source <= destination {
            [source_low, source_high, destination_low, destination_high, facts, 0]
        } else {
            let ports = (facts & 0xffff) << 16 | facts >> 16 & 0xffff;
            [destination_low, destination_high, source_low, source_high, facts >> 32 << 32 | ports, 0]
        };
        key.hash(&HashedTuple(words))
    }

    /// The tuple as an entry keeps it.
    pub(super) fn words(&self) -> [u64; TUPLE_WORDS] {
        let [source_low, source_high] = halves(&self.source);
        let [destination_low, destination_high] = halves(&self.destination);
        let facts = u64::from(self.ports[0])
            | u64::from(self.ports[1]) << 16
            | u64::from(self.segment.0) << 32
            | u64::from(self.protocol) << 48
            | if self.ipv6 { IPV6 } else { 0 };
        [source_low, source_high, destination_low, destination_high, facts]
    }

    /// The reverse of `words`.
    pub(super) fn from_words([source_low, source_high, destination_low, destination_high, facts]: [u64; 5]) -> Self {
        Self {
            source: whole(source_low, source_high),
            destination: whole(destination_low, destination_high),
            ports: [facts as u16, (facts >> 16) as u16],
            segment: SegmentIndex((facts >> 32) as u16),
            protocol: (facts >> 48) as u8,
            ipv6: facts & IPV6 != 0,
        }
    }
}

struct HashedTuple([u64; 6]);

impl HashWords for HashedTuple {
    #[inline]
    fn words(&self) -> &[u64] {
        &self.0
    }
}

fn address(bytes: &[u8; 16], ipv6: bool) -> IpAddr {
    let [a, b, c, d, ..] = *bytes;
    if ipv6 { IpAddr::V6(Ipv6Addr::from(*bytes)) } else { IpAddr::from([a, b, c, d]) }
}

fn halves(bytes: &[u8; 16]) -> [u64; 2] {
    let bits = u128::from_le_bytes(*bytes);
    [bits as u64, (bits >> 64) as u64]
}

fn whole(low: u64, high: u64) -> [u8; 16] {
    (u128::from(low) | u128::from(high) << 64).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_everything_and_the_mirror_hashes_alike() {
        let mut tuple = Tuple {
            source: *b"source address 1",
            destination: *b"another address.",
            ports: [1, 65_535],
            segment: SegmentIndex(0xfffe),
            protocol: 132,
            ipv6: true,
        };
        let key = HashKey::from_seed(1);
        for ipv6 in [true, false] {
            tuple.ipv6 = ipv6;
            assert_eq!(Tuple::from_words(tuple.words()), tuple);
            assert_eq!(tuple.mirrored().mirrored(), tuple);
            assert_eq!(tuple.hash(&key), tuple.mirrored().hash(&key));
            let to_itself = Tuple { destination: tuple.source, ..tuple };
            assert_eq!(to_itself.hash(&key), to_itself.mirrored().hash(&key));
            assert_ne!(to_itself.hash(&key), tuple.hash(&key));
        }
        let other = Tuple { segment: SegmentIndex(1), ..tuple };
        assert_ne!(tuple.hash(&key), other.hash(&key));
    }
}
