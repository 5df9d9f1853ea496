//! A packet: a head and a chain.
//!
//! ```text
//!  head frame   [ headroom >= 128 | Ethernet .. L4 header, payload so far ]
//!                                   ^ start        head_length
//!  chain          -> [ next part ] -> [ next part ]      chained_length in all
//! ```
//! All headers lie contiguous in the head; a GSO unit from a TAP goes on in one big buffer, a unit joined from an
//! uplink in the frames of its segments. A [`Packet`] is the right to all of these frames: it moves, it is never
//! copied, and it ends by being sent or by [`FrameMemory::release`].
//!
//! `checksum` and `gso` say what a virtio-net header says (Linux `include/uapi/linux/virtio_net.h`).

mod address;
pub mod checksum;
pub mod copy_and_checksum;
pub mod crc32c;
mod frame_memory;
mod frame_set;
pub mod parse;
pub mod quoted;
pub mod wire;

pub use address::Mac;
pub(crate) use frame_memory::Link;
pub use frame_memory::{Frame, FrameMemory, FrameMemoryLayout, Region};
pub use frame_set::FrameSet;
pub use parse::{Headers, Network};

use crate::limits;

/// A port's number: an index into the port table, stable while the port lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortIndex(pub u16);

/// What the packet's layer-4 checksum field holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// The final checksum (correct or not), as on a wire.
    #[default]
    Complete,
    /// The uncomplemented sum of the pseudo header; whoever sends the packet on a wire completes it over the bytes
    /// from `start` to the packet's end and writes it at `start + offset`.
    Partial {
        /// First summed byte, counted from the start of the head *frame*, so that it survives encapsulation.
        start: u16,
        /// Where the checksum field lies behind `start`.
        offset: u16,
    },
}

/// Which protocol a GSO unit is cut by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GsoKind {
    /// TCP over IPv4: segments get sequence numbers, IPv4 identifiers and the flags rule of TSO.
    TcpIpv4,
    /// TCP over IPv6.
    TcpIpv6,
    /// UDP over IPv4 or IPv6 (`UDP_SEGMENT`, virtio `GSO_UDP_L4`): datagrams of equal size.
    Udp,
}

/// That the packet is a unit of several segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// How to cut it.
    pub kind: GsoKind,
    /// Layer-4 payload bytes of each segment but the last; never zero.
    pub size: u16,
    /// Whether the unit carries CWR on its first segment only (`VIRTIO_NET_HDR_GSO_ECN`).
    pub ecn: bool,
}

/// One packet and the right to its frames: half a cache line, moved by two instructions each way. Checksum and GSO are
/// kept as numbers: an enum's tag would be tested, and so loaded apart, wherever a packet is moved.
#[derive(Debug)]
#[repr(C, align(16))]
#[must_use = "a packet that is dropped leaks its frames; send it or release it"]
pub struct Packet {
    head: Frame,
    next: u32,
    last: u32,
    chained_length: u32,
    start: u16,
    head_length: u16,
    /// Port the packet came in by.
    pub ingress: PortIndex,
    checksum_start: u16,
    gso_size: u16,
    checksum_offset: u8,
    /// Bits of [`state`].
    state: u8,
}

const _: () = assert!(size_of::<Packet>() == 32);

/// What is left to do to a packet's bytes; nothing if no bit is set.
mod state {
    /// The checksum is partial.
    pub(super) const PARTIAL: u8 = 1;
    /// A unit, with ...
    pub(super) const GSO: u8 = 1 << 1;
    /// ... CWR on its first segment only.
    pub(super) const ECN: u8 = 1 << 2;
    /// The kind of unit, in two bits.
    pub(super) const KIND_SHIFT: u8 = 3;
    pub(super) const KIND: u8 = 3;
    /// A tunnel's outer headers before it are this switch's own.
    pub(super) const TUNNELLED: u8 = 1 << 5;
}

impl Packet {
    /// A packet whose bytes are those of `head` from `start`, `length` of them.
    ///
    /// # Panics
    /// If the bytes lie outside a head frame: a programmer's mistake in a port.
    pub fn new(head: Frame, start: usize, length: usize) -> Self {
        assert!(start + length <= limits::HEAD_FRAME_BYTES, "packet outside its head frame");
        Self {
            head,
            next: Link::END,
            last: Link::END,
            chained_length: 0,
            start: start as u16,
            head_length: length as u16,
            ingress: PortIndex::default(),
            checksum_start: 0,
            gso_size: 0,
            checksum_offset: 0,
            state: 0,
        }
    }

    /// State of its layer-4 checksum.
    #[inline]
    #[must_use]
    pub fn checksum(&self) -> Checksum {
        if self.state & state::PARTIAL == 0 {
            return Checksum::Complete;
        }
        Checksum::Partial { start: self.checksum_start, offset: u16::from(self.checksum_offset) }
    }

    /// Replaces the state of its checksum. An offset of more than 255 is kept as 255: no protocol's checksum lies so far
    /// in its header.
    #[inline]
    pub fn set_checksum(&mut self, checksum: Checksum) {
        self.state &= !state::PARTIAL;
        if let Checksum::Partial { start, offset } = checksum {
            self.state |= state::PARTIAL;
            self.checksum_start = start;
            self.checksum_offset = offset.min(255) as u8;
        }
    }

    /// Whether it is a unit of several segments.
    #[inline]
    #[must_use]
    pub fn gso(&self) -> Option<Gso> {
        if self.state & state::GSO == 0 {
            return None;
        }
        let kind = match self.state >> state::KIND_SHIFT & state::KIND {
            0 => GsoKind::TcpIpv4,
            1 => GsoKind::TcpIpv6,
            _ => GsoKind::Udp,
        };
        Some(Gso { kind, size: self.gso_size, ecn: self.state & state::ECN != 0 })
    }

    /// Says whether it is a unit.
    #[inline]
    pub fn set_gso(&mut self, gso: Option<Gso>) {
        self.state &= state::PARTIAL | state::TUNNELLED;
        if let Some(gso) = gso {
            let ecn = if gso.ecn { state::ECN } else { 0 };
            self.state |= state::GSO | ecn | (gso.kind as u8) << state::KIND_SHIFT;
            self.gso_size = gso.size;
        }
    }

    /// Whether this switch wrote the tunnel's outer headers before it: its edit, towards the uplink, or a port whose kernel
    /// took the real ones off and found them right ([`crate::port::udp`]).
    #[inline]
    #[must_use]
    pub fn is_tunnelled(&self) -> bool {
        self.state & state::TUNNELLED != 0
    }

    /// Says whether outer headers of this switch's own stand before it.
    #[inline]
    pub fn set_tunnelled(&mut self, tunnelled: bool) {
        self.state = (self.state & !state::TUNNELLED) | (u8::from(tunnelled) * state::TUNNELLED);
    }

    /// Takes ingress, checksum state, GSO and the mark of a tunnel over from `other`.
    fn copy_metadata(&mut self, other: &Packet) {
        self.ingress = other.ingress;
        self.set_tunnelled(other.is_tunnelled());
        self.set_checksum(other.checksum());
        self.set_gso(other.gso());
    }

    /// Bytes in all.
    #[inline]
    #[must_use]
    pub fn length(&self) -> usize {
        self.head_length as usize + self.chained_length as usize
    }

    /// Bytes in the head.
    #[inline]
    #[must_use]
    pub fn head_length(&self) -> usize {
        self.head_length as usize
    }

    /// Free bytes before the packet.
    #[inline]
    #[must_use]
    pub fn headroom(&self) -> usize {
        self.start as usize
    }

    /// Whether the packet goes on behind its head.
    #[inline]
    #[must_use]
    pub fn is_chained(&self) -> bool {
        self.next != Link::END
    }

    /// Whether nothing is left to do to its bytes: no unit, no partial checksum.
    #[inline]
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.state & !state::TUNNELLED == 0
    }

    /// Where the packet's first byte lies in its head frame; [`Checksum::Partial`] counts from the same zero.
    #[inline]
    #[must_use]
    pub fn start(&self) -> usize {
        self.start as usize
    }

    /// Makes room for `bytes` before the packet. False, and nothing changed, if the headroom is too small.
    #[inline]
    #[must_use]
    pub fn prepend(&mut self, bytes: usize) -> bool {
        if bytes > self.start as usize {
            return false;
        }
        self.start -= bytes as u16;
        self.head_length += bytes as u16;
        true
    }

    /// Takes `bytes` off the front. False, and nothing changed, if the head is shorter.
    #[inline]
    #[must_use]
    pub fn strip(&mut self, bytes: usize) -> bool {
        if bytes > self.head_length as usize {
            return false;
        }
        self.start += bytes as u16;
        self.head_length -= bytes as u16;
        true
    }
}

impl FrameMemory {
    /// The bytes of the packet's head.
    #[inline]
    #[must_use]
    pub fn head<'a>(&'a self, packet: &'a Packet) -> &'a [u8] {
        self.head_bytes(&packet.head, packet.start, packet.head_length)
    }

    /// The bytes of the packet's head, to write.
    #[inline]
    pub fn head_mut<'a>(&'a self, packet: &'a mut Packet) -> &'a mut [u8] {
        let (start, length) = (packet.start, packet.head_length);
        self.head_bytes_mut(&mut packet.head, start, length)
    }

    /// Asks the processor for the first line of the packet's head.
    #[inline]
    pub fn prefetch(&self, packet: &Packet) {
        self.prefetch_head(&packet.head, packet.start);
    }

    /// The packet's parts in order: its head, then its chain.
    pub fn parts<'a>(&'a self, packet: &'a Packet) -> Parts<'a> {
        Parts { memory: self, packet, at: Part::Head }
    }

    /// Hangs `frame`'s bytes `offset..offset + length` behind the packet.
    ///
    /// # Panics
    /// If the bytes lie outside the frame: a programmer's mistake in a port.
    pub fn append(&mut self, packet: &mut Packet, frame: Frame, offset: usize, length: usize) {
        assert!(offset + length <= self.bytes(&frame).len(), "segment outside its frame");
        self.set_link(&frame, Link { next: Link::END, offset: offset as u32, length: length as u32 });
        let index = frame.index();
        if packet.next == Link::END {
            packet.next = index;
        } else {
            self.set_next(packet.last, index);
        }
        packet.last = index;
        packet.chained_length += length as u32;
    }

    /// Hangs all of `other` but its first `skip` head bytes behind `packet`: the join of two segments. The head
    /// frame of `other` becomes a part of the chain; nothing is copied.
    ///
    /// # Panics
    /// If `skip` is more than the head of `other`.
    pub fn append_packet(&mut self, packet: &mut Packet, other: Packet, skip: usize) {
        assert!(skip <= other.head_length as usize, "skip beyond the head");
        let (next, last, chained) = (other.next, other.last, other.chained_length);
        let (offset, length) = (other.start as usize + skip, other.head_length as usize - skip);
        self.append(packet, other.head, offset, length);
        if next != Link::END {
            self.set_next(packet.last, next);
            packet.last = last;
            packet.chained_length += chained;
        }
    }

    /// Frees the packet's frames.
    #[inline]
    pub fn release(&mut self, packet: Packet) {
        if packet.next != Link::END {
            self.release_chain(packet.next);
        }
        self.release_frame(packet.head);
    }

    fn release_chain(&mut self, first: u32) {
        let mut index = first;
        while index != Link::END {
            let next = self.link(index).next;
            let frame = self.linked(index);
            self.release_frame(frame);
            index = next;
        }
    }

    /// Enters the packet's frames into `held`. A frame of another memory, and what hangs on it, is left out.
    pub(crate) fn mark(&self, packet: &Packet, held: &mut FrameSet) {
        if !self.is_own(&packet.head) {
            return;
        }
        held.insert(packet.head.index());
        let (mut index, mut left) = (packet.next, limits::CHAIN_SEGMENTS);
        while index != Link::END && left > 0 {
            held.insert(index);
            (index, left) = (self.link(index).next, left - 1);
        }
    }

    /// Splits the packet into its head frame and, for a chain, the frames behind it with their ranges, handing
    /// each to `take`: for a port that lends frames to the kernel one by one.
    pub fn dismantle(&mut self, packet: Packet, mut take: impl FnMut(&mut Self, Frame, usize, usize)) {
        let mut index = packet.next;
        take(self, packet.head, packet.start as usize, packet.head_length as usize);
        while index != Link::END {
            let link = self.link(index);
            let frame = self.linked(index);
            take(self, frame, link.offset as usize, link.length as usize);
            index = link.next;
        }
    }

    /// A packet with a copy of `bytes`, laid out as a port would: head first, the rest in big buffers.
    /// `None`, and nothing taken, if frames ran out or `bytes` is longer than [`limits::PACKET_BYTES`].
    pub fn packet_from(&mut self, bytes: &[u8]) -> Option<Packet> {
        if bytes.len() > limits::PACKET_BYTES {
            return None;
        }
        let start = limits::XDP_HEADROOM_BYTES;
        let (head_bytes, rest) = bytes.split_at(bytes.len().min(limits::HEAD_FRAME_BYTES - start));
        let mut head = self.allocate_head()?;
        self.bytes_mut(&mut head)[start..start + head_bytes.len()].copy_from_slice(head_bytes);
        let mut packet = Packet::new(head, start, head_bytes.len());
        for part in rest.chunks(limits::BIG_BUFFER_BYTES) {
            let Some(mut big) = self.allocate_big() else {
                self.release(packet);
                return None;
            };
            self.bytes_mut(&mut big)[..part.len()].copy_from_slice(part);
            self.append(&mut packet, big, 0, part.len());
        }
        Some(packet)
    }

    /// A second packet with the same bytes and metadata: for floods and mirrors.
    /// `None`, and nothing taken, if frames ran out.
    pub fn duplicate(&mut self, packet: &Packet) -> Option<Packet> {
        let mut head = self.allocate_head()?;
        let start = packet.start as usize;
        let range = start..start + packet.head_length as usize;
        self.bytes_mut(&mut head)[range.clone()].copy_from_slice(&self.bytes(&packet.head)[range.clone()]);
        let mut copy = Packet::new(head, start, range.len());
        copy.copy_metadata(packet);
        let mut index = packet.next;
        while index != Link::END {
            let link = self.link(index);
            let length = link.length as usize;
            let fits_head = length <= limits::HEAD_FRAME_BYTES;
            let taken = if fits_head { self.allocate_head() } else { self.allocate_big() };
            let Some(mut target) = taken else {
                self.release(copy);
                return None;
            };
            let source = self.linked(index);
            let from = link.offset as usize;
            self.bytes_mut(&mut target)[..length].copy_from_slice(&self.bytes(&source)[from..from + length]);
            self.append(&mut copy, target, 0, length);
            index = link.next;
        }
        Some(copy)
    }
}

enum Part {
    Head,
    Chain(u32),
}

/// Iterator over a packet's parts, see [`FrameMemory::parts`].
pub struct Parts<'a> {
    memory: &'a FrameMemory,
    packet: &'a Packet,
    at: Part,
}

impl<'a> Iterator for Parts<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        match self.at {
            Part::Head => {
                self.at = Part::Chain(self.packet.next);
                Some(self.memory.head(self.packet))
            }
            Part::Chain(Link::END) => None,
            Part::Chain(index) => {
                let link = self.memory.link(index);
                self.at = Part::Chain(link.next);
                Some(self.memory.region().linked_bytes(self.packet, index, link))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> FrameMemory {
        FrameMemory::new(FrameMemoryLayout { head_frames: 64, big_buffers: 4 }).expect("memory")
    }

    fn flat(memory: &FrameMemory, packet: &Packet) -> Vec<u8> {
        memory.parts(packet).flatten().copied().collect()
    }

    #[test]
    fn a_long_packet_keeps_its_bytes_through_copy_and_release() {
        let mut memory = memory();
        let bytes: Vec<u8> = (0..60_000u32).map(|number| (number % 251) as u8).collect();
        let packet = memory.packet_from(&bytes).expect("packet");
        let copy = memory.duplicate(&packet).expect("copy");
        assert!(packet.is_chained() && flat(&memory, &packet) == bytes && flat(&memory, &copy) == bytes);
        memory.release(packet);
        assert!(flat(&memory, &copy) == bytes);
        memory.release(copy);
        assert_eq!((memory.free_heads(), memory.free_bigs()), (64, 4));
    }

    #[test]
    fn joined_packets_read_as_one_and_free_all() {
        let mut memory = memory();
        let mut first = memory.packet_from(b"header-one").expect("packet");
        for text in ["header-two", "header-three"] {
            let other = memory.packet_from(text.as_bytes()).expect("packet");
            memory.append_packet(&mut first, other, 7);
        }
        assert_eq!(flat(&memory, &first), b"header-onetwothree");
        assert_eq!(first.length(), 18);
        memory.release(first);
        assert_eq!(memory.free_heads(), 64);
    }

    #[test]
    fn checksum_and_gso_are_kept_as_they_were_set() {
        let mut memory = memory();
        let mut packet = memory.packet_from(b"bytes").expect("packet");
        assert!(packet.is_finished());
        let partial = Checksum::Partial { start: u16::MAX, offset: 16 };
        for kind in [GsoKind::TcpIpv4, GsoKind::TcpIpv6, GsoKind::Udp] {
            for (ecn, size) in [(false, 0), (true, u16::MAX)] {
                for checksum in [partial, Checksum::Complete] {
                    let unit = Some(Gso { kind, size, ecn });
                    packet.set_gso(unit);
                    packet.set_checksum(checksum);
                    assert_eq!((packet.gso(), packet.checksum(), packet.is_finished()), (unit, checksum, false));
                }
            }
        }
        packet.set_gso(None);
        assert_eq!((packet.gso(), packet.is_finished()), (None, true));
        packet.set_checksum(partial);
        assert_eq!((packet.checksum(), packet.is_finished()), (partial, false));
        memory.release(packet);
    }

    #[test]
    fn exhaustion_takes_nothing() {
        let mut memory = memory();
        let held: Vec<_> = std::iter::from_fn(|| memory.packet_from(&[0; 3000])).collect();
        assert_eq!((held.len(), memory.free_heads()), (4, 60));
        for packet in held {
            memory.release(packet);
        }
    }
}
