//! What makes two packets the same flow: every header field a decision may look at, packed for one comparison.
//!
//! ```text
//!  IPv4, 32 B   source 4, destination 4 | ports 4, protocol 1, ICMP type 1, VLAN 2 | MACs 12, ingress 4
//!  IPv6, 64 B   source 16 | destination 16 | ports 4, protocol 1, ICMP type 1, VLAN 2, MACs 8 | MACs 4, ingress 4, 0
//! ```
//! MAC addresses are part of the key because a bridge decides by them and anti-spoofing tests them; the ingress
//! number stands for port or tunnel, and so for the segment. The VLAN field is the outer tag's 12-bit identifier with
//! bits that say whether there is a tag, so that an untagged frame differs from a priority-tagged one, of which
//! protocol, and whether there is a second one. Priorities and the second identifier are left out: no decision looks
//! at them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::hash::HashWords;
use crate::edit::new_ends;
use crate::packet::parse::{flag, plain, protocol};
use crate::packet::{Headers, Mac};

const TAGGED: u16 = 0x1000;
const SERVICE_TAGGED: u16 = 0x2000;
const DOUBLE_TAGGED: u16 = 0x4000;
const VLAN_IDENTIFIER: u16 = 0x0fff;

/// A flow's key as 64-bit words, in memory order of the picture above.
pub(super) trait FlowKey: HashWords + Copy + PartialEq {
    /// Both addresses and both ports, as they stand in a frame.
    type Ends: Copy + AsRef<[u8]> + AsMut<[u8]>;
    /// A key no packet has: the filling of unused places.
    const EMPTY: Self;
    /// The filling of unused ends.
    const NO_ENDS: Self::Ends;

    /// The key of the packet with these headers, whose frame starts with these MAC addresses.
    fn new(headers: &Headers, macs: &[u8; 12], ingress: u32) -> Self;
    /// The fields, for people.
    fn fields(&self) -> KeyFields;
    /// The flow's addresses and ports; an echo identifier stands twice for ports.
    fn ends(&self) -> Self::Ends;
    /// The layer-4 protocol.
    fn protocol(&self) -> u8;
}

/// The key of an IPv4 flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
pub(super) struct Ipv4Key([u64; 4]);

/// The key of an IPv6 flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
pub(super) struct Ipv6Key([u64; 8]);

const _: () = assert!(size_of::<Ipv4Key>() == 32 && size_of::<Ipv6Key>() == 64);

/// A key taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyFields {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source and destination port, or the echo identifier twice.
    pub ports: [u16; 2],
    /// Layer-4 protocol.
    pub protocol: u8,
    /// ICMP or ICMPv6 type; 0 for other protocols.
    pub icmp_type: u8,
    /// Identifier of the outer VLAN tag, if tagged.
    pub vlan: Option<u16>,
    /// Destination MAC address.
    pub destination_mac: Mac,
    /// Source MAC address.
    pub source_mac: Mac,
    /// Ingress number as the worker gave it.
    pub ingress: u32,
}

/// Whether packets with these headers may be served from the cache at all; the rest only get a hash.
#[inline]
pub(super) fn cacheable(headers: &Headers) -> bool {
    !headers.has(flag::UNCACHEABLE)
}

#[inline]
fn vlan(headers: &Headers) -> u16 {
    if headers.vlan_tags == 0 {
        return 0;
    }
    let service = u16::from(headers.has(flag::SERVICE_TAG)) * SERVICE_TAGGED;
    let double = u16::from(headers.vlan_tags > 1) * DOUBLE_TAGGED;
    headers.vlan[0] & VLAN_IDENTIFIER | TAGGED | service | double
}

#[inline]
fn icmp_type(headers: &Headers) -> u8 {
    match headers.protocol {
        protocol::ICMP | protocol::ICMPV6 => headers.tcp_flags_or_icmp_type,
        _ => 0,
    }
}

/// Ports, protocol, ICMP type and VLAN in one word.
#[inline]
fn transport_word(headers: &Headers) -> u64 {
    u64::from(headers.ports[0])
        | u64::from(headers.ports[1]) << 16
        | u64::from(headers.protocol) << 32
        | u64::from(icmp_type(headers)) << 40
        | u64::from(vlan(headers)) << 48
}

/// MAC addresses and ingress in two words.
#[inline]
fn link_words(macs: &[u8; 12], ingress: u32) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *macs;
    let last = u32::from_le_bytes([i, j, k, l]);
    [u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from(last) | u64::from(ingress) << 32]
}

/// The first four bytes of an address field: an IPv4 address.
#[inline]
fn first(address: &[u8; 16]) -> [u8; 4] {
    [address[0], address[1], address[2], address[3]]
}

/// The ports of a transport word, as they stand in a frame.
fn ports_in_frame(transport: u64) -> [u8; 4] {
    // The reverse of `plain_transport`.
    (transport as u32).rotate_left(16).to_be_bytes()
}

#[inline]
fn address_words(address: &[u8; 16]) -> [u64; 2] {
    let bits = u128::from_le_bytes(*address);
    [bits as u64, (bits >> 64) as u64]
}

fn fields(addresses: [IpAddr; 2], transport: u64, link: [u64; 2]) -> KeyFields {
    let [a, b, c, d, e, f, g, h] = link[0].to_le_bytes();
    let [i, j, k, l, ..] = link[1].to_le_bytes();
    let vlan = (transport >> 48) as u16;
    KeyFields {
        source: addresses[0],
        destination: addresses[1],
        ports: [transport as u16, (transport >> 16) as u16],
        protocol: (transport >> 32) as u8,
        icmp_type: (transport >> 40) as u8,
        vlan: (vlan & TAGGED != 0).then_some(vlan & VLAN_IDENTIFIER),
        destination_mac: Mac([a, b, c, d, e, f]),
        source_mac: Mac([g, h, i, j, k, l]),
        ingress: (link[1] >> 32) as u32,
    }
}

impl HashWords for Ipv4Key {
    #[inline]
    fn words(&self) -> &[u64] {
        &self.0
    }
}

impl HashWords for Ipv6Key {
    #[inline]
    fn words(&self) -> &[u64] {
        &self.0
    }
}

impl Ipv4Key {
    /// The key of a plain frame, from the fixed places of its fields; the same that its headers give.
    #[inline]
    pub(super) fn of_plain(front: &[u8; plain::SHORTEST_IPV4], ingress: u32) -> Self {
        let transport = plain_transport(plain::at(front, 34), front[23]);
        let link = link_words(&plain::at(front, 0), ingress);
        Ipv4Key([u64::from_le_bytes(plain::at(front, 26)), transport, link[0], link[1]])
    }
}

impl Ipv6Key {
    /// As [`Ipv4Key::of_plain`].
    #[inline]
    pub(super) fn of_plain(front: &[u8; plain::SHORTEST_IPV6], ingress: u32) -> Self {
        let transport = plain_transport(plain::at(front, 54), front[20]);
        let link = link_words(&plain::at(front, 0), ingress);
        let word = |offset| u64::from_le_bytes(plain::at(front, offset));
        Ipv6Key([word(22), word(30), word(38), word(46), transport, link[0], link[1], 0])
    }
}

/// The transport word of TCP or UDP without a tag; the ports are as on the wire.
#[inline]
fn plain_transport(ports: [u8; 4], protocol: u8) -> u64 {
    // Each port's own bytes change places, the ports do not.
    u64::from(u32::from_be_bytes(ports).rotate_left(16)) | u64::from(protocol) << 32
}

impl FlowKey for Ipv4Key {
    type Ends = [u8; new_ends::IPV4_BYTES];
    const EMPTY: Self = Ipv4Key([0; 4]);
    const NO_ENDS: Self::Ends = [0; new_ends::IPV4_BYTES];

    #[inline]
    fn new(headers: &Headers, macs: &[u8; 12], ingress: u32) -> Self {
        let source = u32::from_le_bytes(first(&headers.source));
        let destination = u32::from_le_bytes(first(&headers.destination));
        let link = link_words(macs, ingress);
        Ipv4Key([u64::from(source) | u64::from(destination) << 32, transport_word(headers), link[0], link[1]])
    }

    fn fields(&self) -> KeyFields {
        let address = |bits: u64| IpAddr::V4(Ipv4Addr::from((bits as u32).to_le_bytes()));
        let [addresses, transport, link0, link1] = self.0;
        fields([address(addresses), address(addresses >> 32)], transport, [link0, link1])
    }

    fn ends(&self) -> Self::Ends {
        let mut ends = Self::NO_ENDS;
        ends[..8].copy_from_slice(&self.0[0].to_le_bytes());
        ends[8..].copy_from_slice(&ports_in_frame(self.0[1]));
        ends
    }

    #[inline]
    fn protocol(&self) -> u8 {
        (self.0[1] >> 32) as u8
    }
}

impl FlowKey for Ipv6Key {
    type Ends = [u8; new_ends::IPV6_BYTES];
    const EMPTY: Self = Ipv6Key([0; 8]);
    const NO_ENDS: Self::Ends = [0; new_ends::IPV6_BYTES];

    #[inline]
    fn new(headers: &Headers, macs: &[u8; 12], ingress: u32) -> Self {
        let source = address_words(&headers.source);
        let destination = address_words(&headers.destination);
        let link = link_words(macs, ingress);
        let transport = transport_word(headers);
        Ipv6Key([source[0], source[1], destination[0], destination[1], transport, link[0], link[1], 0])
    }

    fn fields(&self) -> KeyFields {
        let address =
            |low: u64, high: u64| IpAddr::V6(Ipv6Addr::from((u128::from(low) | u128::from(high) << 64).to_le_bytes()));
        let words = &self.0;
        let addresses = [address(words[0], words[1]), address(words[2], words[3])];
        fields(addresses, words[4], [words[5], words[6]])
    }

    fn ends(&self) -> Self::Ends {
        let mut ends = Self::NO_ENDS;
        for (place, word) in ends.chunks_exact_mut(8).zip(&self.0[..4]) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        ends[32..].copy_from_slice(&ports_in_frame(self.0[4]));
        ends
    }

    #[inline]
    fn protocol(&self) -> u8 {
        (self.0[4] >> 32) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse::Network;

    const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

    fn widened([a, b, c, d]: [u8; 4]) -> [u8; 16] {
        [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    }

    /// As they stand in the frame that the key is of.
    #[test]
    fn ends_are_those_of_the_frame() {
        let front: [u8; plain::SHORTEST_IPV4] = std::array::from_fn(|at| at as u8 ^ 0xa5);
        assert_eq!(Ipv4Key::of_plain(&front, 1).ends()[..], front[26..38]);
        let front: [u8; plain::SHORTEST_IPV6] = std::array::from_fn(|at| at as u8 ^ 0x5a);
        assert_eq!(Ipv6Key::of_plain(&front, 1).ends()[..], front[22..58]);
    }

    fn headers() -> Headers {
        Headers {
            network: Network::Ipv4,
            protocol: protocol::TCP,
            ports: [40_000, 80],
            source: widened([192, 0, 2, 1]),
            destination: widened([192, 0, 2, 2]),
            ..Headers::EMPTY
        }
    }

    /// One variant for each field a decision may look at.
    fn variants() -> Vec<Headers> {
        let base = headers();
        let icmp = Headers { protocol: protocol::ICMP, tcp_flags_or_icmp_type: 8, ..base };
        vec![
            base,
            Headers { protocol: protocol::UDP, ..base },
            Headers { ports: [40_001, 80], ..base },
            Headers { ports: [40_000, 81], ..base },
            Headers { source: widened([192, 0, 2, 3]), ..base },
            Headers { destination: widened([192, 0, 2, 3]), ..base },
            Headers { vlan_tags: 1, vlan: [0, 0], ..base },
            Headers { vlan_tags: 1, vlan: [7, 0], ..base },
            Headers { vlan_tags: 1, vlan: [7, 0], flags: flag::SERVICE_TAG, ..base },
            Headers { vlan_tags: 2, vlan: [7, 9], ..base },
            icmp,
            Headers { tcp_flags_or_icmp_type: 0, ..icmp },
        ]
    }

    fn all_differ<K: FlowKey>() {
        let mut keys: Vec<K> = variants().iter().map(|headers| K::new(headers, &MACS, 1)).collect();
        keys.push(K::new(&headers(), &MACS, 2));
        keys.push(K::new(&headers(), &MACS, 0x8000_0001));
        for at in 0..12 {
            let mut macs = MACS;
            macs[at] ^= 0x40;
            keys.push(K::new(&headers(), &macs, 1));
        }
        for (at, key) in keys.iter().enumerate() {
            assert!(keys[..at].iter().all(|other| other != key), "key {at} equals an earlier one");
        }
    }

    #[test]
    fn every_field_counts_in_both_families() {
        all_differ::<Ipv4Key>();
        all_differ::<Ipv6Key>();
        for at in 0..16 {
            let mut other = headers();
            other.source[at] ^= 1;
            assert!(Ipv6Key::new(&headers(), &MACS, 1) != Ipv6Key::new(&other, &MACS, 1));
            let mut other = headers();
            other.destination[at] ^= 1;
            assert!(Ipv6Key::new(&headers(), &MACS, 1) != Ipv6Key::new(&other, &MACS, 1));
        }
    }

    #[test]
    fn fields_that_no_decision_looks_at_do_not_count() {
        let base = headers();
        for same in [
            Headers { ttl: 3, traffic_class: 9, flags: flag::DONT_FRAGMENT, network_length: 1400, ..base },
            Headers { tcp_flags_or_icmp_type: 0x18, ..base },
            Headers { network_offset: 18, transport_offset: 38, payload_offset: 58, ..base },
        ] {
            assert_eq!(Ipv4Key::new(&same, &MACS, 1), Ipv4Key::new(&base, &MACS, 1));
        }
        let tagged = |tci| Ipv4Key::new(&Headers { vlan_tags: 1, vlan: [tci, 0], ..base }, &MACS, 1);
        assert_eq!(tagged(0x0007), tagged(0xe007));
    }

    #[test]
    fn fields_read_back() {
        let tagged = Headers { vlan_tags: 1, vlan: [0x2007, 0], ..headers() };
        let read = Ipv4Key::new(&tagged, &MACS, 0x8000_0005).fields();
        assert_eq!((read.source, read.destination), (tagged.source_address(), tagged.destination_address()));
        assert_eq!((read.ports, read.protocol, read.icmp_type, read.vlan), ([40_000, 80], 6, 0, Some(7)));
        assert_eq!((read.destination_mac, read.source_mac), (Mac::read(&MACS), Mac::read(&MACS[6..])));
        assert_eq!(read.ingress, 0x8000_0005);
        let address: Ipv6Addr = "2001:db8::1".parse().expect("address");
        let wide = Headers { network: Network::Ipv6, source: address.octets(), ..headers() };
        assert_eq!(Ipv6Key::new(&wide, &MACS, 1).fields().source, IpAddr::V6(address));
    }

    #[test]
    fn what_only_the_slow_path_serves_has_no_entry() {
        assert!(cacheable(&headers()));
        assert!(cacheable(&Headers { vlan_tags: 2, ..headers() }));
        assert!(!cacheable(&Headers { flags: flag::CONNECTION_CONTROL, ..headers() }));
        assert!(cacheable(&Headers { flags: flag::DONT_FRAGMENT, ..headers() }));
    }
}
