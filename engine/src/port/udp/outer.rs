//! The outer headers before a tunnelled packet, read where the kernel is to make the real ones, and written where it has
//! taken them off.
//!
//! So everything behind the port is as with any other: who a packet came from, its VNI and what congestion it met are read
//! from headers, a mirror or capture shows them, and one function writes them. Cost: some twenty loads to read, 42 or 62
//! bytes to write.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::sys::Arrival;
use crate::limits;
use crate::packet::checksum;
use crate::packet::parse::{ethertype, protocol};
use crate::packet::wire::{ethernet, ipv4, ipv6, udp};

const NETWORK: usize = ethernet::HEADER_BYTES;
/// Outer headers without VXLAN: Ethernet, IP, UDP.
const IPV4_BYTES: usize = NETWORK + ipv4::HEADER_BYTES + udp::HEADER_BYTES;
/// The same over IPv6.
pub(super) const LONGEST: usize = NETWORK + ipv6::HEADER_BYTES + udp::HEADER_BYTES;
/// MAC addresses that are written: the real ones are not told.
const MACS: [u8; ethernet::ETHERTYPE] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
/// Hop limit that is written: what was left of the real one is not told.
const HOP_LIMIT: u8 = 64;
/// "Don't fragment".
const DONT_FRAGMENT: u8 = 0x40;

/// Where a tunnelled packet is to go, by its outer headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outer {
    pub(super) source: IpAddr,
    pub(super) destination: SocketAddr,
    /// The flow's place among the source ports.
    pub(super) entropy: u16,
    pub(super) traffic_class: u8,
    /// Bytes before the VXLAN header.
    pub(super) bytes: usize,
}

impl Outer {
    /// `None` if these are not the headers that the edit puts on.
    #[inline]
    pub(super) fn read(head: &[u8]) -> Option<Outer> {
        let (link, network) = head.split_first_chunk::<NETWORK>()?;
        let (source, destination, traffic_class, header_bytes) = match u16::from_be_bytes([link[12], link[13]]) {
            ethertype::IPV4 => {
                let header: &[u8; ipv4::HEADER_BYTES] = network.first_chunk()?;
                let address =
                    |at: usize| IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]));
                (address(12), address(16), header[1], ipv4::HEADER_BYTES)
            }
            ethertype::IPV6 => {
                let header: &[u8; ipv6::HEADER_BYTES] = network.first_chunk()?;
                let address = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(*header[at..].first_chunk::<16>()?)));
                (address(8)?, address(24)?, header[0] << 4 | header[1] >> 4, ipv6::HEADER_BYTES)
            }
            _ => return None,
        };
        let ports: &[u8; 4] = network.get(header_bytes..)?.first_chunk()?;
        let bytes = NETWORK + header_bytes + udp::HEADER_BYTES;
        (bytes < head.len()).then_some(Outer {
            source,
            destination: SocketAddr::new(destination, u16::from_be_bytes([ports[2], ports[3]])),
            entropy: u16::from_be_bytes([ports[0], ports[1]]),
            traffic_class,
            bytes,
        })
    }

    /// Whether both go to one peer by one source port, marked alike.
    #[inline]
    pub(super) fn goes_with(&self, other: &Outer) -> bool {
        let port = |outer: &Outer| usize::from(outer.entropy) % limits::UDP_SOURCE_PORTS;
        Outer { entropy: 0, ..*self } == Outer { entropy: 0, ..*other } && port(self) == port(other)
    }

    /// Bytes of what [`write`] writes for this sender.
    pub(super) fn bytes_for(arrival: &Arrival) -> usize {
        if arrival.source.is_ipv4() { IPV4_BYTES } else { LONGEST }
    }
}

/// Writes the outer headers of a datagram that the kernel took off: `headers` are its first [`Outer::bytes_for`] bytes,
/// `length` is what follows them. The UDP checksum is zero: the kernel has looked at the real one.
#[inline]
pub(super) fn write(headers: &mut [u8], arrival: &Arrival, udp_port: u16, length: usize) {
    let datagram = (length + udp::HEADER_BYTES).min(65_535) as u16;
    let behind_network = match arrival.source.ip() {
        IpAddr::V4(source) => headers.first_chunk_mut().and_then(|headers: &mut [u8; IPV4_BYTES]| {
            write_ipv4(headers, source, arrival, datagram);
            headers.last_chunk_mut()
        }),
        IpAddr::V6(source) => headers.first_chunk_mut().and_then(|headers: &mut [u8; LONGEST]| {
            write_ipv6(headers, source, arrival, datagram);
            headers.last_chunk_mut()
        }),
    };
    let Some(transport): Option<&mut [u8; udp::HEADER_BYTES]> = behind_network else { return };
    transport[..2].copy_from_slice(&arrival.source.port().to_be_bytes());
    transport[2..4].copy_from_slice(&udp_port.to_be_bytes());
    transport[4..6].copy_from_slice(&datagram.to_be_bytes());
    transport[6..].copy_from_slice(&[0, 0]);
}

/// Ethernet and IPv4; a sum that is right lets the packet go the short way.
#[inline]
fn write_ipv4(headers: &mut [u8; IPV4_BYTES], source: Ipv4Addr, arrival: &Arrival, datagram: u16) {
    let IpAddr::V4(destination) = arrival.destination else { return };
    headers[..ethernet::ETHERTYPE].copy_from_slice(&MACS);
    headers[ethernet::ETHERTYPE..NETWORK].copy_from_slice(&ethertype::IPV4.to_be_bytes());
    let header = &mut headers[NETWORK..NETWORK + ipv4::HEADER_BYTES];
    header[..2].copy_from_slice(&[0x45, arrival.traffic_class]);
    header[2..4].copy_from_slice(&datagram.saturating_add(ipv4::HEADER_BYTES as u16).to_be_bytes());
    header[4..12].copy_from_slice(&[0, 0, DONT_FRAGMENT, 0, HOP_LIMIT, protocol::UDP, 0, 0]);
    header[12..16].copy_from_slice(&source.octets());
    header[16..].copy_from_slice(&destination.octets());
    let sum = checksum::finish(checksum::sum(header));
    header[ipv4::CHECKSUM..ipv4::CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
}

#[inline]
fn write_ipv6(headers: &mut [u8; LONGEST], source: Ipv6Addr, arrival: &Arrival, datagram: u16) {
    let IpAddr::V6(destination) = arrival.destination else { return };
    headers[..ethernet::ETHERTYPE].copy_from_slice(&MACS);
    headers[ethernet::ETHERTYPE..NETWORK].copy_from_slice(&ethertype::IPV6.to_be_bytes());
    let header = &mut headers[NETWORK..NETWORK + ipv6::HEADER_BYTES];
    let class = arrival.traffic_class;
    header[..4].copy_from_slice(&[0x60 | class >> 4, class << 4, 0, 0]);
    header[4..6].copy_from_slice(&datagram.to_be_bytes());
    header[6..8].copy_from_slice(&[protocol::UDP, HOP_LIMIT]);
    header[8..24].copy_from_slice(&source.octets());
    header[24..].copy_from_slice(&destination.octets());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Headers;
    use crate::packet::parse::{parse_into, plain};

    fn arrival(source: &str, destination: &str) -> Arrival {
        let (source, destination) = (source.parse().expect("source"), destination.parse().expect("destination"));
        Arrival { length: 100, segment: 100, source, destination, traffic_class: 0xb9 }
    }

    #[test]
    fn what_is_written_parses_and_reads_back() {
        for (source, destination) in [("192.0.2.2:50001", "192.0.2.1"), ("[2001:db8::2]:50001", "2001:db8::1")] {
            let arrival = arrival(source, destination);
            let mut packet = vec![0xff; Outer::bytes_for(&arrival)];
            write(&mut packet, &arrival, 8472, 100);
            packet.resize(packet.len() + 100, 0);
            let mut headers = Headers::EMPTY;
            parse_into(&mut headers, &packet, packet.len()).expect("sound headers");
            assert_eq!(headers.source_address(), arrival.source.ip());
            assert_eq!(headers.destination_address(), arrival.destination);
            assert_eq!((headers.ports, headers.traffic_class), ([50_001, 8472], 0xb9));
            let read = Outer::read(&packet).expect("outer headers");
            assert_eq!(
                (read.source, read.destination),
                (arrival.source.ip(), SocketAddr::new(arrival.destination, 8472))
            );
            assert_eq!((read.entropy, read.traffic_class, read.bytes), (50_001, 0xb9, packet.len() - 100));
        }
    }

    #[test]
    fn a_datagram_over_ipv4_goes_the_short_way() {
        let arrival = arrival("192.0.2.2:50001", "192.0.2.1");
        let mut packet = vec![0; IPV4_BYTES];
        write(&mut packet, &arrival, 8472, 100);
        packet.extend_from_slice(&[8, 0, 0, 0, 0, 0, 7, 0]);
        packet.resize(IPV4_BYTES + 100, 0);
        let outer = plain::Outer::read(&packet, packet.len(), 8472).expect("plain outer headers");
        assert_eq!((outer.vni, outer.end, outer.traffic_class), (7, packet.len(), 0xb9));
    }

    #[test]
    fn what_is_no_tunnel_has_no_outer_headers() {
        let mut arp = vec![0xff; 60];
        arp[12..14].copy_from_slice(&[8, 6]);
        let mut cut = vec![0; IPV4_BYTES];
        cut[12..14].copy_from_slice(&[8, 0]);
        assert_eq!((Outer::read(&arp), Outer::read(&cut), Outer::read(&[0; 13])), (None, None, None));
    }
}
