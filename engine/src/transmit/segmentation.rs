//! Cuts a GSO unit into packets, for ports that cannot take the unit whole.
//!
//! Does what a NIC's TSO does (Linux `net/ipv4/tcp_offload.c`, `udp_offload.c`): the headers are repeated, sequence
//! numbers and IPv4 identifiers advance, FIN and PSH stay on the last segment and CWR on the first, lengths and
//! checksums are made anew. The unit may already carry the headers of a tunnel; they are repeated the same way.
//! Payload is copied once, summed in the same pass. The outer UDP checksum is zero over IPv4 and real over IPv6, where
//! it needs no second pass: a segment with a right checksum sums to the complement of its pseudo header.
//!
//! Bounds: [`limits::SEGMENTS_PER_UNIT`] segments, each within one head frame. All frames of a unit are taken before a
//! byte is written, so a unit is cut whole or dropped whole. Cost: `benches/segmentation.rs`. Runs on workers.

use super::field::{self, read16, read32, write16, write32};
use crate::drop_reason::DropReason;
use crate::limits;
use crate::packet::checksum::{self, Accumulator};
use crate::packet::copy_and_checksum::Kernel;
use crate::packet::parse::protocol;
use crate::packet::{FrameMemory, GsoKind, Headers, Packet};

/// Bytes of a frame that its interface's MTU does not count: its own Ethernet header, and those of the longest tunnel (outer
/// Ethernet 14, IPv6 40, UDP 8, VXLAN 8).
const BESIDE_MTU_BYTES: usize = 14 + 70;

/// Most segments of a unit that an interface with this MTU may build, its `gso_max_segs`: one, which makes no unit, where a
/// segment in a tunnel would be longer than a head frame.
#[must_use]
pub const fn segments_of_unit(mtu: u32) -> u32 {
    let room = limits::HEAD_FRAME_BYTES - limits::HEADROOM_BYTES;
    if mtu as usize + BESIDE_MTU_BYTES <= room { limits::SEGMENTS_PER_UNIT as u32 } else { 1 }
}

/// Where the headers of a tunnel lie that stand before the unit's own. Offsets count from the packet's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterLayout {
    /// First byte of the outer IP header.
    pub network_offset: u16,
    /// First byte of the outer UDP header.
    pub udp_offset: u16,
    /// Whether the outer IP header is IPv6.
    pub is_ipv6: bool,
}

/// Where the headers of a unit lie. Offsets count from the packet's first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The tunnel's headers, if it is in one.
    pub outer: Option<OuterLayout>,
    /// First byte of the IP header that is segmented.
    pub network_offset: u16,
    /// First byte of the TCP or UDP header that is segmented.
    pub transport_offset: u16,
    /// First byte behind that header.
    pub payload_offset: u16,
}

impl Layout {
    /// The layout of a packet that was parsed and stands in no tunnel.
    #[must_use]
    pub fn plain(headers: &Headers) -> Self {
        Self {
            outer: None,
            network_offset: headers.network_offset,
            transport_offset: headers.transport_offset,
            payload_offset: headers.payload_offset,
        }
    }

    /// The same packet after `bytes` of tunnel headers were put before it.
    #[must_use]
    pub fn behind(self, outer: OuterLayout, bytes: u16) -> Self {
        Self {
            outer: Some(outer),
            network_offset: self.network_offset.saturating_add(bytes),
            transport_offset: self.transport_offset.saturating_add(bytes),
            payload_offset: self.payload_offset.saturating_add(bytes),
        }
    }
}

/// Cuts units with the kernel chosen at start.
#[derive(Clone, Copy, Debug)]
pub struct Segmenter {
    kernel: Kernel,
}

impl Segmenter {
    /// A segmenter that copies and sums with `kernel`.
    #[must_use]
    pub fn new(kernel: Kernel) -> Self {
        Self { kernel }
    }

    /// An empty list with room for the segments of any unit.
    #[must_use]
    pub fn segment_list() -> Vec<Packet> {
        Vec::with_capacity(limits::SEGMENTS_PER_UNIT)
    }

    /// Cuts `packet` into segments with complete checksums, appended to `out`; returns how many. The unit's frames are
    /// free afterwards, also after an error, when nothing was appended.
    ///
    /// Segments are as long as the sender's kernel chose. `frame_limit` is the longest frame the port takes, Ethernet
    /// header included; that segments fit it is decided where the packet is routed (and answered with Too Big there),
    /// here it is only made sure of. `out` never grows beyond its capacity, see [`Segmenter::segment_list`].
    ///
    /// # Errors
    /// `GsoMalformed` if metadata, layout and headers disagree; `Oversized` if segments are longer than `frame_limit`
    /// or a head frame, or more than [`limits::SEGMENTS_PER_UNIT`]; `TransmitQueueFull` if `out` has no room for them;
    /// `FramesExhausted` if frames ran out.
    pub fn cut(
        &self,
        memory: &mut FrameMemory,
        packet: Packet,
        layout: &Layout,
        frame_limit: usize,
        out: &mut Vec<Packet>,
    ) -> Result<usize, DropReason> {
        let result = self.cut_borrowed(memory, &packet, layout, frame_limit, out);
        memory.release(packet);
        result
    }

    fn cut_borrowed(
        &self,
        memory: &mut FrameMemory,
        packet: &Packet,
        layout: &Layout,
        frame_limit: usize,
        out: &mut Vec<Packet>,
    ) -> Result<usize, DropReason> {
        let unit = Unit::read(memory.head(packet), packet, layout).ok_or(DropReason::GsoMalformed)?;
        let count = unit.payload.div_ceil(unit.size).max(1);
        let longest = unit.payload_offset + unit.size.min(unit.payload);
        let room = limits::HEAD_FRAME_BYTES - limits::HEADROOM_BYTES;
        if count > limits::SEGMENTS_PER_UNIT || longest > frame_limit.min(room) {
            return Err(DropReason::Oversized);
        }
        if out.capacity() - out.len() < count {
            return Err(DropReason::TransmitQueueFull);
        }
        let first = out.len();
        if !unit.take_frames(memory, packet, count, out) {
            out.drain(first..).for_each(|segment| memory.release(segment));
            return Err(DropReason::FramesExhausted);
        }
        self.fill(memory, packet, &unit, &mut out[first..]);
        Ok(count)
    }

    /// Writes all segments, one pass over the unit's bytes.
    fn fill(&self, memory: &FrameMemory, packet: &Packet, unit: &Unit, segments: &mut [Packet]) {
        let mut parts = memory.parts(packet);
        let Some((headers, rest)) = parts.next().and_then(|head| head.split_at_checked(unit.payload_offset)) else {
            return;
        };
        let mut payload = Payload { parts, rest };
        let last = segments.len().saturating_sub(1);
        for (number, segment) in segments.iter_mut().enumerate() {
            let bytes = memory.head_mut(segment);
            let Some((own_headers, own_payload)) = bytes.split_at_mut_checked(unit.payload_offset) else { return };
            own_headers.copy_from_slice(headers);
            let sum = payload.copy(self.kernel, own_payload);
            unit.write_headers(own_headers, own_payload.len(), number, number == last, sum);
        }
    }
}

/// The payload of a unit that is still to be copied.
struct Payload<'a> {
    parts: crate::packet::Parts<'a>,
    rest: &'a [u8],
}

impl Payload<'_> {
    /// Fills `target` with the next bytes and returns their sum.
    #[inline]
    fn copy(&mut self, kernel: Kernel, target: &mut [u8]) -> u32 {
        if let Some((now, later)) = self.rest.split_at_checked(target.len()) {
            self.rest = later;
            return kernel.copy_and_sum(target, now);
        }
        self.copy_across_parts(kernel, target)
    }

    fn copy_across_parts(&mut self, kernel: Kernel, mut target: &mut [u8]) -> u32 {
        let mut total = Accumulator::default();
        while !target.is_empty() {
            if self.rest.is_empty() {
                let Some(part) = self.parts.next() else { break };
                self.rest = part;
                continue;
            }
            let length = target.len().min(self.rest.len());
            let (now, later) = self.rest.split_at(length);
            let (front, back) = target.split_at_mut(length);
            total.add(kernel.copy_and_sum(front, now), length);
            (self.rest, target) = (later, back);
        }
        total.sum()
    }
}

/// The layer-4 header that is repeated. `constant` is the sum of its words that all segments have in common: what was
/// just written is never read again, since a wide load behind narrow stores would wait for them.
#[derive(Clone, Copy, Debug)]
enum Transport {
    Tcp { sequence: u32, offset_and_flags: u16, constant: u32 },
    Udp { constant: u32 },
}

/// An IP header that is repeated: where it lies and what its segments have in common.
#[derive(Clone, Copy, Debug)]
struct Network {
    offset: usize,
    /// First byte behind the IP header, its extensions included.
    end: usize,
    is_ipv6: bool,
    /// The first segment's identification; `None` where all segments keep what the header says.
    identification: Option<u16>,
    /// Sum of the header's words that all segments have in common.
    constant: u32,
    /// Sum of the pseudo header with a length of zero.
    pseudo: u32,
}

impl Network {
    /// `None` if the header is not the IP version it should be, or not all there.
    fn read(head: &[u8], offset: usize, end: usize, is_ipv6: bool, protocol: u8, may_advance: bool) -> Option<Self> {
        let header = head.get(offset..end)?;
        let first = *header.first()?;
        if is_ipv6 {
            let (source, destination) = header.get(field::IPV6_ADDRESSES..field::IPV6_BYTES)?.split_at(16);
            let pseudo = checksum::pseudo_header_v6(source.first_chunk()?, destination.first_chunk()?, protocol, 0);
            let constant = sum_without(header, &[field::IPV6_LENGTH]);
            return (first >> 4 == 6).then_some(Self { offset, end, is_ipv6, identification: None, constant, pseudo });
        }
        let (source, destination) = header.get(field::IPV4_ADDRESSES..field::IPV4_BYTES)?.split_at(4);
        let pseudo = checksum::pseudo_header_v4(*source.first_chunk()?, *destination.first_chunk()?, protocol, 0);
        let identification = may_advance.then(|| read16(header, field::IPV4_IDENTIFICATION));
        let changing = [field::IPV4_LENGTH, field::IPV4_CHECKSUM, field::IPV4_IDENTIFICATION];
        let constant = sum_without(header, if may_advance { &changing } else { &changing[..2] });
        let sound = first >> 4 == 4 && usize::from(first & 15) * 4 == header.len();
        sound.then_some(Self { offset, end, is_ipv6, identification, constant, pseudo })
    }

    /// Writes length, identification and header checksum of segment `number`, which ends at `packet_end`; returns the
    /// sum of the header.
    #[inline]
    fn write(&self, headers: &mut [u8], packet_end: usize, number: usize) -> u32 {
        let length = packet_end - self.offset;
        let Some(header) = headers.get_mut(self.offset..self.end) else { return 0 };
        if self.is_ipv6 {
            let payload = (length - field::IPV6_BYTES) as u16;
            write16(header, field::IPV6_LENGTH, payload);
            return self.constant + u32::from(payload);
        }
        write16(header, field::IPV4_LENGTH, length as u16);
        let mut sum = self.constant + length as u32;
        if let Some(first) = self.identification {
            let identification = first.wrapping_add(number as u16);
            write16(header, field::IPV4_IDENTIFICATION, identification);
            sum += u32::from(identification);
        }
        write16(header, field::IPV4_CHECKSUM, checksum::finish(sum));
        0xffff
    }

    /// Sum of the pseudo header of a layer-4 packet of `length` bytes, which is below 64 KiB.
    #[inline]
    fn pseudo(&self, length: usize) -> u32 {
        self.pseudo + length as u32
    }
}

/// The sum of `header` without the 16-bit words at `places`.
fn sum_without(header: &[u8], places: &[usize]) -> u32 {
    places.iter().fold(checksum::sum(header), |sum, at| sum + u32::from(!read16(header, *at)))
}

/// A validated unit: every offset lies inside the head, in order.
struct Unit {
    outer: Option<Network>,
    /// Sum of what lies between the outer UDP header's first byte and the inner IP header and is the same in all segments.
    tunnel: u32,
    network: Network,
    transport: Transport,
    payload_offset: usize,
    payload: usize,
    size: usize,
}

impl Unit {
    /// `None` if metadata, layout and headers disagree.
    fn read(head: &[u8], packet: &Packet, layout: &Layout) -> Option<Self> {
        let gso = packet.gso().filter(|gso| gso.size != 0)?;
        let (start, end) = (usize::from(layout.transport_offset), usize::from(layout.payload_offset));
        let transport_header = head.get(start..end)?;
        let (transport, number) = Self::read_transport(transport_header, gso.kind)?;
        let offset = usize::from(layout.network_offset);
        let is_ipv6 = match gso.kind {
            GsoKind::TcpIpv4 => false,
            GsoKind::TcpIpv6 => true,
            GsoKind::Udp => head.get(offset)? >> 4 == 6,
        };
        let network = Network::read(head, offset, start, is_ipv6, number, true)?;
        let said = match is_ipv6 {
            true => usize::from(read16(head, offset + field::IPV6_LENGTH)) + field::IPV6_BYTES,
            false => usize::from(read16(head, offset + field::IPV4_LENGTH)),
        };
        let payload = packet.length().checked_sub(end)?;
        let (outer, tunnel) = match layout.outer {
            None => (None, 0),
            Some(outer) => Self::read_outer(head, outer, offset, start).map(|(outer, tunnel)| (Some(outer), tunnel))?,
        };
        let sound = said == packet.length() - offset;
        let size = usize::from(gso.size);
        sound.then_some(Self { outer, tunnel, network, transport, payload_offset: end, payload, size })
    }

    fn read_transport(header: &[u8], kind: GsoKind) -> Option<(Transport, u8)> {
        match kind {
            GsoKind::TcpIpv4 | GsoKind::TcpIpv6 => {
                let length = usize::from(header.get(field::TCP_DATA_OFFSET)? >> 4) * 4;
                let sound = length >= field::TCP_BYTES && length == header.len();
                let changing =
                    [field::TCP_SEQUENCE, field::TCP_SEQUENCE + 2, field::TCP_DATA_OFFSET, field::TCP_CHECKSUM];
                let transport = Transport::Tcp {
                    sequence: read32(header, field::TCP_SEQUENCE),
                    offset_and_flags: read16(header, field::TCP_DATA_OFFSET),
                    constant: sum_without(header, &changing),
                };
                sound.then_some((transport, protocol::TCP))
            }
            GsoKind::Udp => {
                let constant = sum_without(header, &[field::UDP_LENGTH, field::UDP_CHECKSUM]);
                (header.len() == field::UDP_BYTES).then_some((Transport::Udp { constant }, protocol::UDP))
            }
        }
    }

    /// The tunnel's headers and the sum of what all segments have in common in them; `next` and `transport` are where
    /// the inner network and layer-4 headers begin.
    fn read_outer(head: &[u8], outer: OuterLayout, next: usize, transport: usize) -> Option<(Network, u32)> {
        let (offset, udp) = (usize::from(outer.network_offset), usize::from(outer.udp_offset));
        // The checksum is derived from the inner ones, whose words must lie as those of the outer one do.
        let even = (next - udp.min(next)).is_multiple_of(2) && (transport - next).is_multiple_of(2);
        if udp + field::UDP_BYTES > next || !even {
            return None;
        }
        let may_fragment = head.get(offset + field::IPV4_FRAGMENT)? & field::DONT_FRAGMENT == 0;
        let network = Network::read(head, offset, udp, outer.is_ipv6, protocol::UDP, may_fragment)?;
        let tunnel = sum_without(head.get(udp..next)?, &[field::UDP_LENGTH, field::UDP_CHECKSUM]);
        Some((network, tunnel))
    }

    /// Appends `count` packets of the right lengths, not yet filled. False if frames ran out.
    fn take_frames(&self, memory: &mut FrameMemory, packet: &Packet, count: usize, out: &mut Vec<Packet>) -> bool {
        for number in 0..count {
            let Some(frame) = memory.allocate_head() else { return false };
            let payload = self.payload.saturating_sub(number * self.size).min(self.size);
            let mut segment = Packet::new(frame, limits::HEADROOM_BYTES, self.payload_offset + payload);
            segment.ingress = packet.ingress;
            segment.set_tunnelled(packet.is_tunnelled());
            out.push(segment);
        }
        true
    }

    /// Turns the unit's headers into those of segment `number`, whose payload is `payload` bytes with the sum `sum`.
    #[inline]
    fn write_headers(&self, headers: &mut [u8], payload: usize, number: usize, is_last: bool, sum: u32) {
        let end = self.payload_offset + payload;
        let length = end - self.network.end;
        let pseudo = self.network.pseudo(length);
        let network_sum = self.network.write(headers, end, number);
        if let Some(header) = headers.get_mut(self.network.end..) {
            match self.transport {
                Transport::Tcp { sequence, offset_and_flags, constant } => {
                    let sequence = sequence.wrapping_add((number * self.size) as u32);
                    let word = offset_and_flags & !flags_left_out(number == 0, is_last);
                    write_tcp(header, sequence, word, pseudo + sum + constant);
                }
                Transport::Udp { constant } => write_udp(header, length as u16, pseudo + sum + constant),
            }
        }
        if let Some(outer) = &self.outer {
            // The inner layer-4 packet, its checksum being right, sums to the complement of its pseudo header.
            let inner = u32::from(checksum::finish(pseudo)) + network_sum;
            self.write_outer(outer, headers, end, number, inner);
        }
    }

    /// `inner` is the sum of the inner IP packet.
    #[inline]
    fn write_outer(&self, outer: &Network, headers: &mut [u8], end: usize, number: usize, inner: u32) {
        outer.write(headers, end, number);
        let Some(udp) = headers.get_mut(outer.end..) else { return };
        let length = end - outer.end;
        write16(udp, field::UDP_LENGTH, length as u16);
        let sum = outer.pseudo(length) + self.tunnel + length as u32 + inner;
        write16(udp, field::UDP_CHECKSUM, if outer.is_ipv6 { checksum::finish_udp(sum) } else { 0 });
    }
}

/// TCP flags that a segment does not have: CWR is on the first only, PSH and FIN on the last.
#[inline]
fn flags_left_out(is_first: bool, is_last: bool) -> u16 {
    u16::from(if is_first { 0 } else { field::CWR }) | u16::from(if is_last { 0 } else { field::PSH | field::FIN })
}

/// `sum` is that of pseudo header, payload and the words that do not change.
#[inline]
fn write_tcp(header: &mut [u8], sequence: u32, offset_and_flags: u16, sum: u32) {
    write32(header, field::TCP_SEQUENCE, sequence);
    write16(header, field::TCP_DATA_OFFSET, offset_and_flags);
    let sum = sum + (sequence >> 16) + (sequence & 0xffff) + u32::from(offset_and_flags);
    write16(header, field::TCP_CHECKSUM, checksum::finish(sum));
}

/// `sum` is that of pseudo header, payload and the words that do not change.
#[inline]
fn write_udp(header: &mut [u8], length: u16, sum: u32) {
    write16(header, field::UDP_LENGTH, length);
    write16(header, field::UDP_CHECKSUM, checksum::finish_udp(sum + u32::from(length)));
}

#[cfg(test)]
#[path = "segmentation_tests.rs"]
mod tests;
