//! What `describe` and `checksums_valid` need to know of an IP packet, taken from etherparse.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{Ipv4HeaderSlice, Ipv6ExtensionSlice, Ipv6ExtensionsSlice, LaxNetSlice, NetSlice};

/// UDP ports that carry VXLAN in tests: IANA's and the Linux kernel's.
pub(super) const VXLAN_PORTS: [u16; 2] = [4789, 8472];

/// An IP packet behind all extension headers.
pub(super) struct Ip<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) number: u8,
    /// Offset in bytes and "more", if it is a fragment.
    pub(super) fragment: Option<(usize, bool)>,
    pub(super) payload: &'a [u8],
}

impl<'a> Ip<'a> {
    pub(super) fn read(net: &NetSlice<'a>) -> Option<Self> {
        match net {
            NetSlice::Ipv4(ip) => {
                let payload = ip.payload();
                Some(Self::v4(&ip.header(), payload.ip_number.0, payload.payload))
            }
            NetSlice::Ipv6(ip) => {
                let (header, payload) = (ip.header(), ip.payload());
                let addresses = (header.source_addr(), header.destination_addr());
                Some(Self::v6(addresses, ip.extensions(), payload.ip_number.0, payload.payload))
            }
            NetSlice::Arp(_) => None,
        }
    }

    /// As `read`, for the packet quoted by an ICMP error, which may be cut.
    pub(super) fn read_cut(net: &LaxNetSlice<'a>) -> Option<Self> {
        match net {
            LaxNetSlice::Ipv4(ip) => {
                let payload = ip.payload();
                Some(Self::v4(&ip.header(), payload.ip_number.0, payload.payload))
            }
            LaxNetSlice::Ipv6(ip) => {
                let (header, payload) = (ip.header(), ip.payload());
                let addresses = (header.source_addr(), header.destination_addr());
                Some(Self::v6(addresses, ip.extensions(), payload.ip_number.0, payload.payload))
            }
            LaxNetSlice::Arp(_) => None,
        }
    }

    fn v4(header: &Ipv4HeaderSlice<'_>, number: u8, payload: &'a [u8]) -> Self {
        let (offset, more) = (usize::from(header.fragments_offset().value()) * 8, header.more_fragments());
        Ip {
            source: header.source_addr().into(),
            destination: header.destination_addr().into(),
            number,
            fragment: (offset != 0 || more).then_some((offset, more)),
            payload,
        }
    }

    fn v6(
        addresses: (Ipv6Addr, Ipv6Addr),
        extensions: &Ipv6ExtensionsSlice<'a>,
        number: u8,
        payload: &'a [u8],
    ) -> Self {
        let fragment = extensions.clone().into_iter().find_map(|extension| match extension {
            Ipv6ExtensionSlice::Fragment(header) => {
                Some((usize::from(header.fragment_offset().value()) * 8, header.more_fragments()))
            }
            _ => None,
        });
        Ip { source: addresses.0.into(), destination: addresses.1.into(), number, fragment, payload }
    }

    /// Whether the payload is a whole layer-4 packet.
    pub(super) fn is_whole(&self) -> bool {
        self.fragment.is_none_or(|fragment| fragment == (0, false))
    }

    pub(super) fn octets_v4(&self) -> Option<([u8; 4], [u8; 4])> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Some((source.octets(), destination.octets())),
            _ => None,
        }
    }

    pub(super) fn octets_v6(&self) -> ([u8; 16], [u8; 16]) {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => Ipv4Addr::to_ipv6_mapped(&address).octets(),
            IpAddr::V6(address) => address.octets(),
        };
        (octets(self.source), octets(self.destination))
    }
}
