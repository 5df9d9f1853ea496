//! From a [`FrameBuilder`] to bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::{crc32c, internet_checksum};
use super::frame::{Extension, FrameBuilder, Transport};
use crate::packet::{Gso, GsoKind, Mac};

/// A built frame.
pub(super) struct Assembled {
    pub(super) bytes: Vec<u8>,
    pub(super) transport_offset: usize,
}

impl FrameBuilder {
    pub(super) fn assemble(&self) -> Assembled {
        let (ethertype, mut packet, transport_offset) = match &self.transport {
            Transport::Arp { operation, target } => (0x0806, self.arp(*operation, *target), 0),
            Transport::Ethernet { ethertype } => (*ethertype, self.payload.clone(), 0),
            _ => self.ip(),
        };
        let mut bytes = self.link(ethertype);
        let transport_offset = bytes.len() + transport_offset;
        bytes.append(&mut packet);
        bytes.resize(bytes.len().max(self.pad_to), 0);
        bytes.truncate(self.cut_at);
        Assembled { bytes, transport_offset }
    }

    fn link(&self, ethertype: u16) -> Vec<u8> {
        let broadcast = matches!(self.transport, Transport::Arp { operation: 1, .. });
        let default = if broadcast { Mac::BROADCAST } else { Mac([2, 0, 0x5e, 0, 0x53, 2]) };
        let mut bytes = self.destination_mac.unwrap_or(default).0.to_vec();
        bytes.extend_from_slice(&self.source_mac.0);
        for (protocol, control) in &self.tags {
            bytes.extend_from_slice(&protocol.to_be_bytes());
            bytes.extend_from_slice(&control.to_be_bytes());
        }
        bytes.extend_from_slice(&ethertype.to_be_bytes());
        bytes
    }

    fn arp(&self, operation: u16, target: Option<Ipv4Addr>) -> Vec<u8> {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (self.source, self.target_address()) else {
            panic!("ARP is for IPv4")
        };
        let mac = self.destination_mac.filter(|mac| operation == 2 && *mac != Mac::BROADCAST).unwrap_or_default();
        let mut bytes = vec![0, 1, 8, 0, 6, 4];
        bytes.extend_from_slice(&operation.to_be_bytes());
        bytes.extend_from_slice(&self.source_mac.0);
        bytes.extend_from_slice(&source.octets());
        bytes.extend_from_slice(&mac.0);
        bytes.extend_from_slice(&target.unwrap_or(destination).octets());
        bytes
    }

    fn target_address(&self) -> IpAddr {
        self.destination.unwrap_or(match self.source {
            IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 2).into(),
            IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2).into(),
        })
    }

    /// EtherType, packet, and where layer 4 begins in it.
    fn ip(&self) -> (u16, Vec<u8>, usize) {
        match (self.source, self.target_address()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.ipv4(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.ipv6(source, destination),
            (source, destination) => panic!("{source} and {destination} are of two families"),
        }
    }

    fn ipv4(&self, source: Ipv4Addr, destination: Ipv4Addr) -> (u16, Vec<u8>, usize) {
        assert!(self.extensions.is_empty(), "IPv4 has no extension headers here");
        let segment = self.segment();
        let header_length = 20 + self.options.len();
        let length = self.ip_length.unwrap_or((header_length + segment.len()) as u16);
        let (offset, more) = self.fragment.unwrap_or((0, false));
        let fragment = u16::from(self.dont_fragment) << 14 | u16::from(more) << 13 | (offset / 8);
        let mut header = vec![0x40 | (header_length / 4) as u8, self.traffic_class];
        header.extend_from_slice(&length.to_be_bytes());
        header.extend_from_slice(&(self.identification as u16).to_be_bytes());
        header.extend_from_slice(&fragment.to_be_bytes());
        header.extend_from_slice(&[self.ttl, self.protocol_number(), 0, 0]);
        header.extend_from_slice(&source.octets());
        header.extend_from_slice(&destination.octets());
        header.extend_from_slice(&self.options);
        let damage = if self.bad_ip_checksum { 0x5555 } else { 0 };
        let sum = internet_checksum(&[&header]) ^ damage;
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header.extend_from_slice(&segment);
        (0x0800, header, header_length)
    }

    fn ipv6(&self, source: Ipv6Addr, destination: Ipv6Addr) -> (u16, Vec<u8>, usize) {
        assert!(self.options.is_empty() && !self.dont_fragment, "IPv6 has neither options nor DF");
        let segment = self.segment();
        let mut next_header = self.protocol_number();
        let mut payload = Vec::new();
        for extension in self.extensions.iter().rev() {
            let (number, header) = self.extension_header(extension, next_header);
            payload.splice(..0, header);
            next_header = number;
        }
        let transport_offset = 40 + payload.len();
        payload.extend_from_slice(&segment);
        let length = self.ip_length.unwrap_or(payload.len() as u16);
        let mut header = (6u32 << 28 | u32::from(self.traffic_class) << 20).to_be_bytes().to_vec();
        header.extend_from_slice(&length.to_be_bytes());
        header.extend_from_slice(&[next_header, self.ttl]);
        header.extend_from_slice(&source.octets());
        header.extend_from_slice(&destination.octets());
        header.extend_from_slice(&payload);
        (0x86dd, header, transport_offset)
    }

    fn extension_header(&self, extension: &Extension, next_header: u8) -> (u8, Vec<u8>) {
        match extension {
            Extension::Options { number, body } => {
                let length = (2 + body.len()).next_multiple_of(8);
                let mut header = vec![next_header, (length / 8 - 1) as u8];
                header.extend_from_slice(body);
                header.resize(length, 0);
                (*number, header)
            }
            Extension::Authentication { words } => {
                let mut header = vec![next_header, words + 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1];
                header.resize(12 + usize::from(*words) * 4, 0xa5);
                (51, header)
            }
            Extension::Fragment { offset, more } => {
                let mut header = vec![next_header, 0];
                header.extend_from_slice(&(offset | u16::from(*more)).to_be_bytes());
                header.extend_from_slice(&self.identification.to_be_bytes());
                (44, header)
            }
        }
    }

    pub(super) fn protocol_number(&self) -> u8 {
        match &self.transport {
            Transport::Tcp { .. } => 6,
            Transport::Udp { .. } => 17,
            Transport::Sctp { .. } => 132,
            Transport::Icmp { .. } if self.source.is_ipv6() => 58,
            Transport::Icmp { .. } => 1,
            Transport::Raw { protocol } => *protocol,
            Transport::Arp { .. } | Transport::Ethernet { .. } => unreachable!("no IP packet"),
        }
    }

    /// Layer-4 header and payload.
    pub(super) fn segment(&self) -> Vec<u8> {
        if self.fragment.is_some_and(|(offset, _)| offset != 0) {
            return self.payload.clone();
        }
        let mut segment = self.transport_header();
        segment.extend_from_slice(&self.payload);
        self.write_checksum(&mut segment);
        segment
    }

    fn transport_header(&self) -> Vec<u8> {
        let mut ports = self.ports.0.to_be_bytes().to_vec();
        ports.extend_from_slice(&self.ports.1.to_be_bytes());
        match &self.transport {
            Transport::Tcp { flags, sequence, acknowledgement, options } => {
                ports.extend_from_slice(&sequence.to_be_bytes());
                ports.extend_from_slice(&acknowledgement.to_be_bytes());
                let words = (5 + options.len() / 4) as u8;
                ports.extend_from_slice(&[words << 4, *flags, 0xff, 0xff, 0, 0, 0, 0]);
                ports.extend_from_slice(options);
                ports
            }
            Transport::Udp { .. } => {
                let length = self.udp_length.unwrap_or((8 + self.payload.len()) as u16);
                ports.extend_from_slice(&length.to_be_bytes());
                ports.extend_from_slice(&[0, 0]);
                ports
            }
            Transport::Sctp { tag } => {
                ports.extend_from_slice(&tag.to_be_bytes());
                ports.extend_from_slice(&[0; 4]);
                ports
            }
            Transport::Icmp { kind, code, rest } => vec![*kind, *code, 0, 0, rest[0], rest[1], rest[2], rest[3]],
            Transport::Raw { .. } | Transport::Arp { .. } | Transport::Ethernet { .. } => Vec::new(),
        }
    }

    /// Where the checksum field lies in the layer-4 header.
    pub(super) fn checksum_offset(&self) -> usize {
        match &self.transport {
            Transport::Tcp { .. } => 16,
            Transport::Udp { .. } => 6,
            _ => panic!("only TCP and UDP have partial checksums"),
        }
    }

    fn write_checksum(&self, segment: &mut [u8]) {
        let damage = if self.bad_checksum { 0x5555 } else { 0 };
        match &self.transport {
            Transport::Udp { zero_checksum: true } | Transport::Raw { .. } => {}
            Transport::Tcp { .. } | Transport::Udp { .. } => {
                let at = self.checksum_offset();
                let pseudo = self.pseudo_header(segment.len());
                let sum = match (self.partial, internet_checksum(&[&pseudo, segment])) {
                    (true, _) => !internet_checksum(&[&pseudo]),
                    (false, 0) if at == 6 => 0xffff,
                    (false, sum) => sum,
                };
                segment[at..at + 2].copy_from_slice(&(sum ^ damage).to_be_bytes());
            }
            Transport::Icmp { .. } => {
                let pseudo = if self.source.is_ipv6() { self.pseudo_header(segment.len()) } else { Vec::new() };
                let sum = internet_checksum(&[&pseudo, segment]) ^ damage;
                segment[2..4].copy_from_slice(&sum.to_be_bytes());
            }
            Transport::Sctp { .. } => {
                let sum = crc32c(segment) ^ u32::from(damage);
                segment[8..12].copy_from_slice(&sum.to_le_bytes());
            }
            Transport::Arp { .. } | Transport::Ethernet { .. } => unreachable!("no IP packet"),
        }
    }

    fn pseudo_header(&self, length: usize) -> Vec<u8> {
        let protocol = self.protocol_number();
        match (self.source, self.target_address()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut bytes = [source.octets(), destination.octets()].concat();
                bytes.extend_from_slice(&[0, protocol]);
                bytes.extend_from_slice(&(length as u16).to_be_bytes());
                bytes
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut bytes = [source.octets(), destination.octets()].concat();
                bytes.extend_from_slice(&(length as u32).to_be_bytes());
                bytes.extend_from_slice(&[0, 0, 0, protocol]);
                bytes
            }
            _ => unreachable!("checked in ip()"),
        }
    }

    pub(super) fn gso_metadata(&self) -> Option<Gso> {
        let size = self.gso?;
        let kind = match (&self.transport, self.source) {
            (Transport::Tcp { .. }, IpAddr::V4(_)) => GsoKind::TcpIpv4,
            (Transport::Tcp { .. }, IpAddr::V6(_)) => GsoKind::TcpIpv6,
            (Transport::Udp { .. }, _) => GsoKind::Udp,
            _ => panic!("only TCP and UDP have GSO units"),
        };
        Some(Gso { kind, size, ecn: self.ecn })
    }
}
