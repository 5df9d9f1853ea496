//! A [`Rewrite`] made ready for packets: its outer headers as bytes to copy.
//!
//! What differs from packet to packet stays zero in the template: lengths, the IPv4 checksum, the UDP source port
//! (RFC 7348 section 5 asks for entropy from the inner flow) and the UDP checksum. The sum over what does not
//! differ is kept beside it. The outer IPv4 packet says "don't fragment" (RFC 7348 section 4.3: tunnel ends must
//! not fragment), so its identifier may stay zero (RFC 6864 section 4.1).

use std::net::IpAddr;

use super::{Encapsulation, Rewrite};
use crate::packet::parse::{Plain, ethertype, protocol};

/// Longest template: Ethernet 14, IPv6 40, UDP 8, VXLAN 8.
const LONGEST: usize = 70;
/// Hop limit of what this switch originates (RFC 1700).
const HOP_LIMIT: u8 = 64;
/// VXLAN flags with only the "VNI is valid" bit (RFC 7348 section 5).
const VXLAN_FLAGS: u8 = 0x08;

/// What a rewrite consists of, as bits: the name of the function that carries it out on a plain packet.
pub(super) mod step {
    /// Outer headers go.
    pub(in crate::edit) const DECAPSULATE: u8 = 1;
    /// New MAC addresses, TTL or hop limit one less.
    pub(in crate::edit) const ROUTE: u8 = 1 << 1;
    /// Outer headers of IPv4 come.
    pub(in crate::edit) const ENCAPSULATE: u8 = 1 << 2;
    /// Something else, too: tags, outer headers of IPv6, whose checksum covers the packet.
    pub(in crate::edit) const OTHER: u8 = 1 << 3;
}

/// A rewrite and the outer headers it puts on. What a plain packet needs stands first, in one line and a half.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct CompiledRewrite {
    /// Bits of [`step`].
    pub(super) steps: u8,
    /// 0 without encapsulation, 50 over IPv4, 70 over IPv6.
    pub template_length: u8,
    /// Ones' complement sum, not complemented, of what stays the same: over IPv4 the IP header with length,
    /// identifier, type of service and checksum zero; over IPv6 the UDP pseudo header with length zero (RFC 8200
    /// section 8.1).
    pub constant_sum: u16,
    /// [`Rewrite::mtu`].
    pub mtu: u32,
    /// New destination and source MAC address, where it routes.
    pub(super) macs: [u8; 12],
    /// Outer headers, in the first `template_length` bytes.
    pub template: [u8; 72],
    /// What it was made from.
    pub rewrite: Rewrite,
}

impl CompiledRewrite {
    /// Makes `rewrite` ready. An encapsulation whose two addresses are of different families, which no compiled
    /// table holds, yields no template.
    #[must_use]
    pub fn new(rewrite: &Rewrite) -> Self {
        let mut macs = [0; 12];
        if let Some(route) = &rewrite.route {
            macs[..6].copy_from_slice(&route.destination.0);
            macs[6..].copy_from_slice(&route.source.0);
        }
        let mut compiled = Self {
            steps: steps(rewrite),
            template_length: 0,
            constant_sum: 0,
            mtu: rewrite.mtu,
            macs,
            template: [0; 72],
            rewrite: *rewrite,
        };
        if let Some(outer) = &rewrite.encapsulate {
            compiled.write_template(outer);
        }
        compiled
    }

    /// Whether its packets are routed: hops are needed.
    #[inline]
    #[must_use]
    pub fn routes(&self) -> bool {
        self.steps & step::ROUTE != 0
    }

    /// Whether it may be applied to a plain packet: hops are left and the packet fits. Otherwise the slow path tells why.
    #[inline]
    #[must_use]
    pub fn fits(&self, plain: &Plain) -> bool {
        (!self.routes() || plain.ttl > 1) && plain.network_length <= self.mtu
    }

    /// The outer headers.
    #[inline]
    #[must_use]
    pub fn template(&self) -> &[u8] {
        &self.template[..(self.template_length as usize).min(LONGEST)]
    }

    /// The outer IPv4 header's checksum field for this type of service and total length.
    #[inline]
    #[must_use]
    pub fn ipv4_checksum(&self, type_of_service: u8, total_length: u16) -> u16 {
        !fold(u32::from(self.constant_sum) + u32::from(type_of_service) + u32::from(total_length))
    }

    fn write_template(&mut self, outer: &Encapsulation) {
        let mut writer = Writer { bytes: &mut self.template, at: 0 };
        writer.put(&outer.macs.destination.0);
        writer.put(&outer.macs.source.0);
        self.constant_sum = match (outer.source, outer.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                writer.put(&ethertype::IPV4.to_be_bytes());
                let start = writer.at;
                writer.put(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, HOP_LIMIT, protocol::UDP, 0, 0]);
                writer.put(&source.octets());
                writer.put(&destination.octets());
                sum(&writer.bytes[start..writer.at])
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                writer.put(&ethertype::IPV6.to_be_bytes());
                writer.put(&[0x60, 0, 0, 0, 0, 0, protocol::UDP, HOP_LIMIT]);
                let start = writer.at;
                writer.put(&source.octets());
                writer.put(&destination.octets());
                fold(u32::from(sum(&writer.bytes[start..writer.at])) + u32::from(protocol::UDP))
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return,
        };
        writer.put(&[0, 0]);
        writer.put(&outer.udp_port.to_be_bytes());
        writer.put(&[0, 0, 0, 0]);
        writer.put(&[VXLAN_FLAGS, 0, 0, 0]);
        writer.put(&(outer.vni.number() << 8).to_be_bytes());
        self.template_length = writer.at as u8;
    }
}

fn steps(rewrite: &Rewrite) -> u8 {
    let bit = |set, bit| if set { bit } else { 0 };
    let over_ipv4 = rewrite.encapsulate.is_some_and(|outer| outer.source.is_ipv4() && outer.destination.is_ipv4());
    let other = rewrite.pop_tags > 0 || rewrite.push_tag.is_some() || rewrite.encapsulate.is_some() != over_ipv4;
    bit(rewrite.decapsulate, step::DECAPSULATE)
        | bit(rewrite.route.is_some(), step::ROUTE)
        | bit(over_ipv4, step::ENCAPSULATE)
        | bit(other, step::OTHER)
}

struct Writer<'a> {
    bytes: &'a mut [u8; 72],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// Ones' complement sum of at most 72 bytes (RFC 1071): cannot overflow 32 bits.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    fold(words.sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::MacPair;
    use crate::packet::Mac;
    use crate::tables::Vni;
    use etherparse::{NetHeaders, PacketHeaders, TransportHeader};

    fn encapsulation(source: &str, destination: &str) -> Encapsulation {
        Encapsulation {
            macs: MacPair { destination: Mac([2, 0, 0, 0, 0, 9]), source: Mac([2, 0, 0, 0, 0, 8]) },
            source: source.parse().expect("address"),
            destination: destination.parse().expect("address"),
            udp_port: 8472,
            vni: Vni::new(0x12_3456).expect("vni"),
        }
    }

    fn rewrite(encapsulate: Option<Encapsulation>) -> Rewrite {
        Rewrite { decapsulate: false, pop_tags: 0, route: None, push_tag: None, encapsulate, mtu: 1500 }
    }

    fn compiled(outer: Encapsulation) -> CompiledRewrite {
        CompiledRewrite::new(&rewrite(Some(outer)))
    }

    #[test]
    fn ipv4_template_reads_back_and_its_checksum_is_right() {
        let outer = encapsulation("192.0.2.1", "198.51.100.254");
        let compiled = compiled(outer);
        assert_eq!((compiled.template().len(), outer.bytes()), (50, 50));
        for (tos, length) in [(0u8, 50u16), (0xb9, 1500), (3, 65_535), (0xff, 0xffff)] {
            let mut bytes = compiled.template().to_vec();
            bytes[15] = tos;
            bytes[16..18].copy_from_slice(&length.to_be_bytes());
            let (header, rest) = etherparse::Ipv4Header::from_slice(&bytes[14..]).expect("header");
            assert_eq!(header.calc_header_checksum(), compiled.ipv4_checksum(tos, length), "{tos} {length}");
            assert!(header.dont_fragment && header.time_to_live == 64 && header.protocol.0 == 17);
            assert_eq!(
                (IpAddr::from(header.source), IpAddr::from(header.destination)),
                (outer.source, outer.destination)
            );
            assert_eq!(rest, [0, 0, 0x21, 0x18, 0, 0, 0, 0, 8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        }
        assert_eq!(bytes_of_macs(&compiled), [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8, 8, 0]);
    }

    fn bytes_of_macs(compiled: &CompiledRewrite) -> &[u8] {
        &compiled.template()[..14]
    }

    #[test]
    fn ipv6_template_reads_back_and_its_sum_completes() {
        let outer = encapsulation("2001:db8::1", "2001:db8:ffff::fffe");
        let compiled = compiled(outer);
        assert_eq!((compiled.template().len(), outer.bytes()), (70, 70));
        let mut bytes = compiled.template().to_vec();
        bytes[18..20].copy_from_slice(&16u16.to_be_bytes());
        bytes[58..60].copy_from_slice(&16u16.to_be_bytes());
        let headers = PacketHeaders::from_ethernet_slice(&bytes).expect("packet");
        let (Some(NetHeaders::Ipv6(ip, _)), Some(TransportHeader::Udp(udp))) = (headers.net, headers.transport) else {
            panic!("not UDP over IPv6");
        };
        let whole = fold(u32::from(compiled.constant_sum) + 16 + u32::from(sum(&bytes[54..])));
        assert_eq!(udp.calc_checksum_ipv6(&ip, &bytes[62..]).expect("checksum"), !whole);
        assert_eq!((ip.hop_limit, udp.destination_port), (64, 8472));
    }

    #[test]
    fn no_encapsulation_no_template() {
        assert!(CompiledRewrite::new(&rewrite(None)).template().is_empty());
        assert!(compiled(encapsulation("192.0.2.1", "2001:db8::1")).template().is_empty());
    }
}
