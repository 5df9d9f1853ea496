//! The virtio-net header that precedes each frame on a TAP, both ways.
//!
//! `struct virtio_net_hdr_v1` (include/uapi/linux/virtio_net.h), 12 bytes, in host byte order as TAPs use it unless
//! told otherwise; meaning after VIRTIO 1.2 sections 5.1.6.2 and 5.1.6.4. A pod can inject any header with a raw
//! socket, so nothing in it is believed before it was checked against the frame.

use crate::limits;
use crate::packet::{Checksum, Gso, GsoKind, Packet};

/// Bytes of the header (`TUNSETVNETHDRSZ`).
pub const VNET_HEADER_BYTES: usize = 12;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP_IPV4: u8 = 1;
const GSO_TCP_IPV6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

const ETHERNET_BYTES: usize = 14;
const TCP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;

/// That header and frame contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VnetHeaderError {
    /// A segmentation kind we did not offer.
    #[error("unknown segmentation kind {0}")]
    Kind(u8),
    /// A unit without a segment size, or without a partial checksum, which section 5.1.6.2 demands.
    #[error("a unit of segments without segment size or partial checksum")]
    Incomplete,
    /// The checksum, or the layer-4 header of a unit, lies outside the frame's contiguous head.
    #[error("the checksum field or the layer-4 header lies outside the frame")]
    Outside,
    /// The checksum field of a unit is not where its protocol has it.
    #[error("the checksum field is not where the unit's protocol has it")]
    Offset,
    /// The frame is longer than [`limits::PACKET_BYTES`].
    #[error("the frame is longer than any legal packet")]
    Length,
}

/// What a header says, relative to the frame's first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// Start and offset of a partial checksum.
    pub partial_checksum: Option<(u16, u16)>,
    /// Whether the frame is a unit of segments.
    pub gso: Option<Gso>,
    /// Bytes of all headers of a unit: a hint of how much the receiver should keep contiguous.
    pub header_bytes: u16,
}

impl VnetHeader {
    /// Reads the header of a frame of `length` bytes, of which `head_length` lie in its head.
    ///
    /// # Errors
    /// What in the header does not fit the frame.
    #[inline]
    pub fn parse(
        bytes: &[u8; VNET_HEADER_BYTES],
        head_length: usize,
        length: usize,
    ) -> Result<VnetHeader, VnetHeaderError> {
        let [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1, _, _] = *bytes;
        if length > limits::PACKET_BYTES {
            return Err(VnetHeaderError::Length);
        }
        let field = |first, second| u16::from_ne_bytes([first, second]);
        let partial_checksum = (flags & NEEDS_CHECKSUM != 0).then(|| (field(c0, c1), field(o0, o1)));
        if let Some((start, offset)) = partial_checksum
            && ((start as usize) < ETHERNET_BYTES || start as usize + offset as usize + 2 > head_length)
        {
            return Err(VnetHeaderError::Outside);
        }
        let gso = match kind {
            GSO_NONE => None,
            _ => Some(unit(kind, field(s0, s1), partial_checksum, head_length)?),
        };
        Ok(VnetHeader { partial_checksum, gso, header_bytes: field(h0, h1) })
    }

    /// The same for a frame that has grown by `bytes` before what the header speaks of.
    #[must_use]
    pub fn moved(self, bytes: u16) -> VnetHeader {
        let partial_checksum = self.partial_checksum.map(|(start, offset)| (start.saturating_add(bytes), offset));
        VnetHeader { partial_checksum, header_bytes: self.header_bytes.saturating_add(bytes), ..self }
    }

    /// The bytes that tell the kernel the same.
    #[inline]
    #[must_use]
    pub fn bytes(self) -> [u8; VNET_HEADER_BYTES] {
        let mut bytes = [0; VNET_HEADER_BYTES];
        if let Some((start, offset)) = self.partial_checksum {
            bytes[0] = NEEDS_CHECKSUM;
            bytes[6..8].copy_from_slice(&start.to_ne_bytes());
            bytes[8..10].copy_from_slice(&offset.to_ne_bytes());
        }
        if let Some(gso) = self.gso {
            let kind = match gso.kind {
                GsoKind::TcpIpv4 => GSO_TCP_IPV4,
                GsoKind::TcpIpv6 => GSO_TCP_IPV6,
                GsoKind::Udp => GSO_UDP,
            };
            bytes[1] = kind | if gso.ecn { GSO_ECN } else { 0 };
            bytes[2..4].copy_from_slice(&self.header_bytes.to_ne_bytes());
            bytes[4..6].copy_from_slice(&gso.size.to_ne_bytes());
        }
        bytes
    }

    /// The header for `packet`, whose head is `head`. `None` if the packet's metadata points outside its head.
    #[inline]
    #[must_use]
    pub fn of(packet: &Packet, head: &[u8]) -> Option<VnetHeader> {
        let partial_checksum = match packet.checksum() {
            Checksum::Complete => None,
            Checksum::Partial { start, offset } => {
                let start = usize::from(start).checked_sub(packet.start())?;
                head.get(start + usize::from(offset)..start + usize::from(offset) + 2)?;
                Some((start as u16, offset))
            }
        };
        let header_bytes = match (packet.gso(), partial_checksum) {
            (Some(gso), Some((start, _))) => header_bytes(gso.kind, start as usize, head)?,
            _ => 0,
        };
        Some(VnetHeader { partial_checksum, gso: packet.gso(), header_bytes })
    }

    /// Writes what the header says into `packet`.
    #[inline]
    pub fn apply(self, packet: &mut Packet) {
        packet.set_gso(self.gso);
        packet.set_checksum(match self.partial_checksum {
            None => Checksum::Complete,
            Some((start, offset)) => Checksum::Partial { start: start + packet.start() as u16, offset },
        });
    }
}

fn unit(kind: u8, size: u16, checksum: Option<(u16, u16)>, head_length: usize) -> Result<Gso, VnetHeaderError> {
    let (gso_kind, header, field) = match kind & !GSO_ECN {
        GSO_TCP_IPV4 => (GsoKind::TcpIpv4, TCP_BYTES, 16),
        GSO_TCP_IPV6 => (GsoKind::TcpIpv6, TCP_BYTES, 16),
        GSO_UDP => (GsoKind::Udp, UDP_BYTES, 6),
        _ => return Err(VnetHeaderError::Kind(kind)),
    };
    let Some((start, offset)) = checksum.filter(|_| size != 0) else { return Err(VnetHeaderError::Incomplete) };
    if offset != field {
        return Err(VnetHeaderError::Offset);
    }
    if start as usize + header > head_length {
        return Err(VnetHeaderError::Outside);
    }
    Ok(Gso { kind: gso_kind, size, ecn: kind & GSO_ECN != 0 })
}

fn header_bytes(kind: GsoKind, start: usize, head: &[u8]) -> Option<u16> {
    let transport = match kind {
        GsoKind::TcpIpv4 | GsoKind::TcpIpv6 => usize::from(head.get(start + 12)? >> 4) * 4,
        GsoKind::Udp => UDP_BYTES,
    };
    u16::try_from((start + transport).min(head.len())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{FrameMemory, FrameMemoryLayout};

    const TCP: VnetHeader = VnetHeader {
        partial_checksum: Some((34, 16)),
        gso: Some(Gso { kind: GsoKind::TcpIpv4, size: 1448, ecn: true }),
        header_bytes: 66,
    };

    #[test]
    fn every_meaning_survives_both_ways() {
        let unit = |kind, size, ecn| Some(Gso { kind, size, ecn });
        for header in [
            VnetHeader::default(),
            VnetHeader { partial_checksum: Some((34, 6)), ..VnetHeader::default() },
            TCP,
            VnetHeader { partial_checksum: Some((54, 16)), gso: unit(GsoKind::TcpIpv6, 1, false), header_bytes: 74 },
            VnetHeader { partial_checksum: Some((34, 6)), gso: unit(GsoKind::Udp, 65_000, false), header_bytes: 42 },
        ] {
            assert_eq!(VnetHeader::parse(&header.bytes(), 1792, 60_000), Ok(header));
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let parse = |header: VnetHeader, head, length| VnetHeader::parse(&header.bytes(), head, length);
        assert_eq!(parse(TCP, 53, 53), Err(VnetHeaderError::Outside));
        assert_eq!(parse(TCP, 1792, limits::PACKET_BYTES + 1), Err(VnetHeaderError::Length));
        let with = |start, offset| VnetHeader { partial_checksum: Some((start, offset)), ..TCP };
        for outside in [(0, 16), (13, 16), (u16::MAX, 16), (34, u16::MAX), (1776, 16)] {
            assert_eq!(parse(with(outside.0, outside.1), 1792, 2000), Err(VnetHeaderError::Outside), "{outside:?}");
        }
        assert_eq!(parse(with(34, 6), 1792, 2000), Err(VnetHeaderError::Offset));
        assert_eq!(parse(VnetHeader { partial_checksum: None, ..TCP }, 1792, 2000), Err(VnetHeaderError::Incomplete));
        let no_size = VnetHeader { gso: TCP.gso.map(|gso| Gso { size: 0, ..gso }), ..TCP };
        assert_eq!(parse(no_size, 1792, 2000), Err(VnetHeaderError::Incomplete));
        for kind in [2, 3, 6, 0x20, 0x40, 0x7f, GSO_ECN] {
            let mut bytes = TCP.bytes();
            bytes[1] = kind;
            assert_eq!(VnetHeader::parse(&bytes, 1792, 2000), Err(VnetHeaderError::Kind(kind)));
        }
    }

    #[test]
    fn offsets_follow_an_encapsulation_and_never_leave_the_head() {
        let mut memory = FrameMemory::new(FrameMemoryLayout { head_frames: 64, big_buffers: 0 }).expect("memory");
        let mut frame = vec![0u8; 100];
        frame[34 + 12] = 8 << 4;
        let mut packet = memory.packet_from(&frame).expect("packet");
        TCP.apply(&mut packet);
        assert_eq!(VnetHeader::of(&packet, memory.head(&packet)), Some(TCP));
        assert!(packet.prepend(50));
        let moved = VnetHeader::of(&packet, memory.head(&packet)).expect("header");
        assert_eq!(moved.partial_checksum, Some((84, 16)));
        assert!(packet.strip(100));
        assert_eq!(VnetHeader::of(&packet, memory.head(&packet)), None);
        memory.release(packet);
    }
}
