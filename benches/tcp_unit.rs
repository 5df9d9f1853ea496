//! The GSO unit that the benches of segmentation and joining share.

use millrace_engine::limits;
use millrace_engine::packet::checksum;
use millrace_engine::packet::{FrameMemory, FrameMemoryLayout, Gso, GsoKind, Packet};
use millrace_engine::transmit::segmentation::{Layout, OuterLayout};

/// TCP payload of a segment: what fits a 1,500-byte underlay behind VXLAN over IPv4 with timestamps.
pub(crate) const SEGMENT_BYTES: usize = 1398;

/// Segments of a unit as long as a pod may build.
pub(crate) const SEGMENTS: usize = 44;

const TCP_BYTES: usize = 32;

/// The tunnel in front of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tunnel {
    /// None.
    None,
    /// VXLAN over IPv4.
    Ipv4,
    /// VXLAN over IPv6.
    Ipv6,
}

impl Tunnel {
    fn bytes(self) -> usize {
        match self {
            Tunnel::None => 0,
            Tunnel::Ipv4 => 14 + 20 + 16,
            Tunnel::Ipv6 => 14 + 40 + 16,
        }
    }

    /// Where the headers of a unit behind this tunnel lie.
    pub(crate) fn layout(self) -> Layout {
        let plain =
            Layout { outer: None, network_offset: 14, transport_offset: 34, payload_offset: 34 + TCP_BYTES as u16 };
        let udp_offset = self.bytes().saturating_sub(16) as u16;
        let is_ipv6 = self == Tunnel::Ipv6;
        match self {
            Tunnel::None => plain,
            _ => plain.behind(OuterLayout { network_offset: 14, udp_offset, is_ipv6 }, self.bytes() as u16),
        }
    }
}

/// Memory for `units` units and the segments of one.
pub(crate) fn memory(units: usize) -> FrameMemory {
    FrameMemory::new(FrameMemoryLayout { head_frames: units + 256, big_buffers: units + 1 }).expect("frame memory")
}

/// Bytes of a unit behind `tunnel`, from a fixed seed; all segments but the last are full.
pub(crate) fn bytes(tunnel: Tunnel) -> Vec<u8> {
    let payload = (SEGMENTS - 1) * SEGMENT_BYTES + SEGMENT_BYTES / 2;
    let inner = ethernet_ipv4(17, 20 + TCP_BYTES + payload, 6);
    let mut unit = match tunnel {
        Tunnel::None => Vec::new(),
        Tunnel::Ipv4 => ethernet_ipv4(64, 20 + 16 + inner.len() + TCP_BYTES + payload, 17),
        Tunnel::Ipv6 => ethernet_ipv6(16 + inner.len() + TCP_BYTES + payload),
    };
    if tunnel != Tunnel::None {
        unit.extend_from_slice(&[0xc3, 0x51, 0x12, 0xb5, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 7, 0]);
    }
    unit.extend_from_slice(&inner);
    unit.extend_from_slice(&[0x9c, 0x41, 0x01, 0xbb, 1, 2, 3, 4, 0, 0, 0, 99, 0x80, 0x10, 0x10, 0, 0, 0, 0, 0]);
    unit.extend_from_slice(&[1, 1, 8, 10, 0, 0, 1, 2, 0, 0, 3, 4]);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    unit.extend((0..payload).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    }));
    assert!(unit.len() <= limits::PACKET_BYTES);
    unit
}

/// The unit as a packet with its offload metadata.
pub(crate) fn packet(memory: &mut FrameMemory, bytes: &[u8]) -> Packet {
    let mut packet = memory.packet_from(bytes).expect("frames");
    packet.set_gso(Some(Gso { kind: GsoKind::TcpIpv4, size: SEGMENT_BYTES as u16, ecn: false }));
    packet
}

fn ethernet_ipv4(ttl: u8, length: usize, protocol: u8) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    bytes.extend_from_slice(&[0x45, 0, (length >> 8) as u8, length as u8, 0, 1, 0x40, 0, ttl, protocol, 0, 0]);
    bytes.extend_from_slice(&[192, 0, 2, 1, 198, 51, 100, 2]);
    let sum = checksum::finish(checksum::sum(&bytes[14..]));
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn ethernet_ipv6(length: usize) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
    bytes.extend_from_slice(&[0x60, 0, 0, 0, (length >> 8) as u8, length as u8, 17, 64]);
    bytes.extend_from_slice(&[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    bytes.extend_from_slice(&[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    bytes
}
