//! Frames for the tests of segmentation and joining, written by etherparse and so independent of the code under test.

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, SingleVlanHeader, TcpHeader,
    UdpHeader, VlanId,
};
use proptest::prelude::*;

use super::segmentation::{Layout, OuterLayout};
use crate::packet::{FrameMemory, Gso, GsoKind, Packet};

/// What kind of frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) ipv6: bool,
    pub(super) udp: bool,
    pub(super) vlan: bool,
    /// TCP timestamps, 12 bytes of options.
    pub(super) timestamps: bool,
    /// In VXLAN; true if the outer header is IPv6.
    pub(super) outer_ipv6: Option<bool>,
    /// Don't-fragment on the outer IPv4 header, with an identification of zero.
    pub(super) outer_dont_fragment: bool,
}

impl Shape {
    pub(super) const TCP_IPV4: Shape =
        Shape { ipv6: false, udp: false, vlan: false, timestamps: false, outer_ipv6: None, outer_dont_fragment: false };

    pub(super) fn any() -> impl Strategy<Value = Shape> {
        (any::<[bool; 5]>(), prop::option::of(any::<bool>())).prop_map(
            |([ipv6, udp, vlan, timestamps, outer_dont_fragment], outer_ipv6)| Shape {
                ipv6,
                udp,
                vlan,
                timestamps,
                outer_ipv6,
                outer_dont_fragment,
            },
        )
    }

    pub(super) fn kind(self) -> GsoKind {
        match (self.udp, self.ipv6) {
            (true, _) => GsoKind::Udp,
            (false, false) => GsoKind::TcpIpv4,
            (false, true) => GsoKind::TcpIpv6,
        }
    }

    pub(super) fn layout(self) -> Layout {
        let network_offset = if self.vlan { 18 } else { 14 };
        let transport_offset = network_offset + if self.ipv6 { 40 } else { 20 };
        let transport = if self.udp { 8 } else { 20 + if self.timestamps { 12 } else { 0 } };
        let payload_offset = transport_offset + transport;
        let plain = Layout { outer: None, network_offset, transport_offset, payload_offset };
        let Some(is_ipv6) = self.outer_ipv6 else { return plain };
        let udp_offset = 14 + if is_ipv6 { 40 } else { 20 };
        plain.behind(OuterLayout { network_offset: 14, udp_offset, is_ipv6 }, udp_offset + 16)
    }
}

/// What differs between the segments of a flow.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    /// Number of the flow: in the source port.
    pub(super) flow: u16,
    pub(super) sequence: u32,
    pub(super) identification: u16,
    pub(super) outer_identification: u16,
    pub(super) flags: u8,
    pub(super) payload: Vec<u8>,
}

/// The frame on a wire, every length and checksum right.
pub(super) fn frame(shape: Shape, segment: &Segment) -> Vec<u8> {
    let inner = ethernet(
        shape.vlan,
        shape.ipv6,
        &ip(shape.ipv6, shape.udp, 17, segment.identification, true, |ip| {
            if shape.udp { udp(ip, segment) } else { tcp(ip, shape.timestamps, segment) }
        }),
    );
    let Some(outer_ipv6) = shape.outer_ipv6 else { return inner };
    let mut vxlan = vec![8, 0, 0, 0, 0, 0, 7, 0];
    vxlan.extend_from_slice(&inner);
    let identification = if shape.outer_dont_fragment { 0 } else { segment.outer_identification };
    let packet = ip(outer_ipv6, true, 64, identification, shape.outer_dont_fragment, |ip| {
        let header = match ip {
            Ip::V4(_) => {
                UdpHeader { source_port: 50_001, destination_port: 4789, length: 8 + vxlan.len() as u16, checksum: 0 }
            }
            Ip::V6(ip) => UdpHeader::with_ipv6_checksum(50_001, 4789, ip, &vxlan).expect("udp"),
        };
        [&header.to_bytes()[..], &vxlan].concat()
    });
    ethernet(false, outer_ipv6, &packet)
}

/// The frame of a whole unit as a TAP hands it over: the layer-4 checksum is of no use to anybody.
pub(super) fn unit(shape: Shape, segment: &Segment) -> Vec<u8> {
    let mut bytes = frame(shape, segment);
    let at = usize::from(shape.layout().transport_offset) + if shape.udp { 6 } else { 16 };
    bytes[at..at + 2].copy_from_slice(&[0x12, 0x34]);
    bytes
}

/// `bytes` as a packet whose head holds `head` bytes and whose chain has parts of about `part` bytes each.
pub(super) fn packet(memory: &mut FrameMemory, bytes: &[u8], head: usize, part: usize, gso: Option<Gso>) -> Packet {
    let (first, rest) = bytes.split_at(head.min(bytes.len()));
    let mut packet = memory.packet_from(first).expect("head");
    for (number, piece) in rest.chunks(part).enumerate() {
        let mut frame = if part <= 1900 { memory.allocate_head() } else { memory.allocate_big() }.expect("part");
        let at = number % 5;
        memory.bytes_mut(&mut frame)[at..at + piece.len()].copy_from_slice(piece);
        memory.append(&mut packet, frame, at, piece.len());
    }
    packet.set_gso(gso);
    packet
}

/// All bytes of a packet.
pub(super) fn flat(memory: &FrameMemory, packet: &Packet) -> Vec<u8> {
    memory.parts(packet).flatten().copied().collect()
}

enum Ip {
    V4(Ipv4Header),
    V6(Ipv6Header),
}

fn ethernet(vlan: bool, ipv6: bool, packet: &[u8]) -> Vec<u8> {
    let ip = if ipv6 { EtherType::IPV6 } else { EtherType::IPV4 };
    let ether_type = if vlan { EtherType::VLAN_TAGGED_FRAME } else { ip };
    let header = Ethernet2Header { source: [2, 0, 0, 0, 0, 1], destination: [2, 0, 0, 0, 0, 2], ether_type };
    let mut bytes = header.to_bytes().to_vec();
    if vlan {
        let vlan_id = VlanId::try_new(42).expect("vlan");
        let tag = SingleVlanHeader { vlan_id, ether_type: ip, ..SingleVlanHeader::default() };
        bytes.extend_from_slice(&tag.to_bytes());
    }
    bytes.extend_from_slice(packet);
    bytes
}

fn ip(ipv6: bool, udp: bool, ttl: u8, id: u16, dont_fragment: bool, content: impl Fn(&Ip) -> Vec<u8>) -> Vec<u8> {
    let protocol = if udp { IpNumber::UDP } else { IpNumber::TCP };
    if ipv6 {
        let address = |last| [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        let mut header = Ipv6Header {
            traffic_class: 0,
            flow_label: Ipv6FlowLabel::try_new(0x1_2345).expect("label"),
            payload_length: 0,
            next_header: protocol,
            hop_limit: ttl,
            source: address(1),
            destination: address(2),
        };
        let content = content(&Ip::V6(header.clone()));
        header.set_payload_length(content.len()).expect("length");
        return [&header.to_bytes()[..], &content].concat();
    }
    let mut header = Ipv4Header::new(0, ttl, protocol, [192, 0, 2, 1], [198, 51, 100, 2]).expect("header");
    (header.identification, header.dont_fragment) = (id, dont_fragment);
    let content = content(&Ip::V4(header.clone()));
    header.set_payload_len(content.len()).expect("length");
    header.header_checksum = header.calc_header_checksum();
    [&header.to_bytes()[..], &content].concat()
}

fn udp(ip: &Ip, segment: &Segment) -> Vec<u8> {
    let header = match ip {
        Ip::V4(ip) => UdpHeader::with_ipv4_checksum(40_000 + segment.flow, 53, ip, &segment.payload),
        Ip::V6(ip) => UdpHeader::with_ipv6_checksum(40_000 + segment.flow, 53, ip, &segment.payload),
    };
    [&header.expect("udp").to_bytes()[..], &segment.payload].concat()
}

fn tcp(ip: &Ip, timestamps: bool, segment: &Segment) -> Vec<u8> {
    let mut header = TcpHeader::new(40_000 + segment.flow, 443, segment.sequence, 4711);
    if timestamps {
        header.set_options_raw(&[1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 3, 4]).expect("options");
    }
    header.acknowledgment_number = 99;
    let bit = |number: u8| segment.flags >> number & 1 == 1;
    (header.fin, header.syn, header.rst, header.psh) = (bit(0), bit(1), bit(2), bit(3));
    (header.ack, header.urg, header.ece, header.cwr) = (bit(4), bit(5), bit(6), bit(7));
    header.checksum = match ip {
        Ip::V4(ip) => header.calc_checksum_ipv4(ip, &segment.payload),
        Ip::V6(ip) => header.calc_checksum_ipv6(ip, &segment.payload),
    }
    .expect("tcp");
    [&header.to_bytes()[..], &segment.payload].concat()
}
