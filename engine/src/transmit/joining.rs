//! Joins consecutive TCP segments or UDP datagrams of one flow into a unit, for ports whose receiver takes units (GRO).
//!
//! The rules are those of the kernel's GRO (Linux `net/ipv4/tcp_offload.c`, `udp_offload.c`, `net/core/gro.c`), for TCP
//! stricter in two points. Two segments join if all of this holds: link headers, addresses, ports, acknowledgement, TOS,
//! TTL, flow label, "don't fragment" and TCP options are equal; there are no IP options, extensions or fragments; both
//! carry data and no flag but ACK, the later one also PSH and FIN; sequence numbers are contiguous; the later one is not
//! longer; IPv4 identifiers advance by one, or stand still with "don't fragment" set; both checksums were complete and are
//! right. A shorter segment, PSH or FIN ends the unit. Stricter: windows must be equal, so that no update is lost, and a
//! segment with PSH never begins a unit.
//!
//! A segment with a wrong checksum goes on alone as it is: the receiver's kernel drops and counts it. In a unit it
//! would be lost with the others, and its checksum with it. Nothing is copied: the frames of the later segments hang
//! behind the first. The order within a flow stays; a segment that cannot join ends its flow's unit.
//!
//! Two UDP datagrams join if the same holds of their link and IP headers, both have a checksum and data, and the later one
//! is not longer; a shorter one ends the unit, which tells the boundaries by the length of the first. A checksum that the
//! sender has left open (a pod of this node) stays open. The receiving kernel hands a unit whole to sockets with
//! `UDP_GRO` and cuts it for all others (`udp_queue_rcv_skb`), so nobody sees another datagram than was sent; for both it
//! is cheaper than a write for each. Only ports that take such units (`udp_segmentation`, Linux 6.2) get them.
//!
//! Bounds: [`limits::OPEN_JOINS`] units open at once, each of [`limits::CHAIN_SEGMENTS`] parts and 65,535 IP bytes. A
//! call never holds a packet back: what it was given it returns. Cost: one pass over the payload, to verify it;
//! `benches/joining.rs`. Runs on workers.

use std::ops::Range;

use super::field::{self, write16};
use super::joinable::{ENDING_FLAGS, Found, Segment, any_may_join};
use crate::limits;
use crate::packet::checksum;
use crate::packet::copy_and_checksum::Kernel;
use crate::packet::{Checksum, FrameMemory, Gso, GsoKind, Packet};

/// Longest IP packet a unit may become.
const UNIT_BYTES: usize = 65_535;
/// Packets a call looks at; a longer list passes unjoined.
const LIST_PACKETS: usize = limits::TRANSMIT_QUEUE_PACKETS + limits::VECTOR_PACKETS;
/// What one call did: for the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// Units made.
    pub units: usize,
    /// Segments in these units (`transmit.segments_joined`).
    pub segments: usize,
}

impl Joined {
    /// Frames that are no longer there by themselves (`frames.merged`).
    #[must_use]
    pub fn merged_frames(self) -> usize {
        self.segments - self.units
    }
}

/// Joins the packets towards one port. Holds scratch memory only, so one serves all ports of a worker.
#[derive(Debug)]
pub struct Joiner {
    kernel: Kernel,
    open: Vec<Unit>,
    out: Vec<Packet>,
}

impl Joiner {
    /// A joiner that verifies checksums with `kernel`.
    #[must_use]
    pub fn new(kernel: Kernel) -> Self {
        Self { kernel, open: Vec::with_capacity(limits::OPEN_JOINS), out: Vec::with_capacity(LIST_PACKETS) }
    }

    /// Joins what can be joined among `packets`, which are about to go to one port, in this order. Units take the place
    /// of their first segment; all others keep their order. `datagrams`: whether the port takes units of UDP datagrams.
    pub fn join(&mut self, memory: &mut FrameMemory, packets: &mut Vec<Packet>, datagrams: bool) -> Joined {
        let mut joined = Joined::default();
        if packets.len() > LIST_PACKETS || !any_may_join(memory, packets, datagrams) {
            return joined;
        }
        for packet in packets.drain(..) {
            self.take(memory, packet, datagrams, &mut joined);
        }
        for unit in self.open.drain(..) {
            unit.close(memory, &mut self.out, &mut joined);
        }
        packets.append(&mut self.out);
        joined
    }

    fn take(&mut self, memory: &mut FrameMemory, packet: Packet, datagrams: bool, joined: &mut Joined) {
        let segment = match Segment::read(memory.head(&packet), &packet, datagrams) {
            Found::Segment(segment) => segment,
            Found::Other => return self.out.push(packet),
            Found::Unreadable => {
                // It may belong to any flow, so nothing behind it may join what stands before it.
                self.open.drain(..).for_each(|unit| unit.close(memory, &mut self.out, joined));
                return self.out.push(packet);
            }
        };
        if let Some(position) = self.find(memory, &packet, &segment) {
            let unit = &mut self.open[position];
            let joins = unit.accepts(memory, &self.out, &packet, &segment)
                && unit.first_verifies(self.kernel, memory, &self.out)
                && segment.verifies(self.kernel, memory, &packet);
            if joins {
                unit.append(memory, &mut self.out, packet, &segment);
                if unit.ended {
                    self.close(memory, position, joined);
                }
                return;
            }
            self.close(memory, position, joined);
        }
        if segment.may_join && segment.flags & ENDING_FLAGS == 0 {
            if self.open.len() == limits::OPEN_JOINS {
                self.close(memory, 0, joined);
            }
            self.open.push(Unit::new(self.out.len(), memory, &packet, segment));
        }
        self.out.push(packet);
    }

    /// The open unit of the segment's flow.
    fn find(&self, memory: &FrameMemory, packet: &Packet, segment: &Segment) -> Option<usize> {
        let head = memory.head(packet);
        self.open.iter().position(|unit| {
            unit.first.flow_hash == segment.flow_hash
                && (unit.first.is_ipv6, unit.first.is_udp) == (segment.is_ipv6, segment.is_udp)
                && self
                    .out
                    .get(unit.position)
                    .is_some_and(|first| memory.head(first).get(unit.first.flow()) == head.get(segment.flow()))
        })
    }

    fn close(&mut self, memory: &FrameMemory, position: usize, joined: &mut Joined) {
        self.open.remove(position).close(memory, &mut self.out, joined);
    }
}

/// How the IPv4 identifiers of a unit run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identifiers {
    Unknown,
    Advance,
    StandStill,
}

/// A unit that the next segment of its flow may join.
#[derive(Clone, Copy, Debug)]
struct Unit {
    /// Where its first segment lies in the list.
    position: usize,
    first: Segment,
    segments: usize,
    parts: usize,
    next_sequence: u32,
    last_identification: u16,
    identifiers: Identifiers,
    ending_flags: u8,
    ended: bool,
}

impl Unit {
    fn new(position: usize, memory: &FrameMemory, packet: &Packet, first: Segment) -> Self {
        Self {
            position,
            first,
            segments: 1,
            parts: parts(memory, packet),
            next_sequence: first.next_sequence(),
            last_identification: first.identification,
            identifiers: if first.is_ipv6 { Identifiers::StandStill } else { Identifiers::Unknown },
            ending_flags: 0,
            ended: false,
        }
    }

    /// Whether the segment, which is of this flow, may join if its checksum is right.
    fn accepts(&self, memory: &FrameMemory, out: &[Packet], packet: &Packet, segment: &Segment) -> bool {
        let Some(unit) = out.get(self.position) else { return false };
        segment.may_join
            && segment.sequence == self.next_sequence
            && segment.length <= self.first.length
            && self.parts + parts(memory, packet) <= limits::CHAIN_SEGMENTS
            && unit.length() - self.first.network + segment.length <= UNIT_BYTES
            && (segment.network, segment.payload) == (self.first.network, self.first.payload)
            && self.next_identifiers(memory.head(unit), segment).is_some()
            && same_headers(memory.head(unit), memory.head(packet), segment)
    }

    /// Whether the checksum of the first segment is right: looked at only when a second one is there to join it, so
    /// that packets which stay alone cost nothing.
    fn first_verifies(&self, kernel: Kernel, memory: &FrameMemory, out: &[Packet]) -> bool {
        self.segments > 1 || out.get(self.position).is_some_and(|first| self.first.verifies(kernel, memory, first))
    }

    /// How identifiers run with this segment; `None` if it does not continue them.
    fn next_identifiers(&self, head: &[u8], segment: &Segment) -> Option<Identifiers> {
        if segment.is_ipv6 {
            return Some(Identifiers::StandStill);
        }
        let fragment = head.get(segment.network + field::IPV4_FRAGMENT)?;
        match segment.identification.wrapping_sub(self.last_identification) {
            1 if self.identifiers != Identifiers::StandStill => Some(Identifiers::Advance),
            0 if self.identifiers != Identifiers::Advance && fragment & field::DONT_FRAGMENT != 0 => {
                Some(Identifiers::StandStill)
            }
            _ => None,
        }
    }

    fn append(&mut self, memory: &mut FrameMemory, out: &mut [Packet], packet: Packet, segment: &Segment) {
        let Some(unit) = out.get_mut(self.position) else { return memory.release(packet) };
        if let Some(identifiers) = self.next_identifiers(memory.head(unit), segment) {
            self.identifiers = identifiers;
        }
        self.segments += 1;
        self.parts += parts(memory, &packet);
        self.next_sequence = segment.next_sequence();
        self.last_identification = segment.identification;
        self.ending_flags |= segment.flags & ENDING_FLAGS;
        self.ended = segment.length < self.first.length || segment.flags & ENDING_FLAGS != 0;
        memory.append_packet(unit, packet, segment.payload);
    }

    /// Makes the first segment's headers those of the unit; a unit of one segment stays what it was.
    fn close(self, memory: &FrameMemory, out: &mut [Packet], joined: &mut Joined) {
        let Some(packet) = out.get_mut(self.position).filter(|_| self.segments > 1) else { return };
        joined.units += 1;
        joined.segments += self.segments;
        let length = packet.length();
        self.write_headers(memory.head_mut(packet), length);
        let start = (packet.start() + self.first.transport) as u16;
        packet.set_checksum(Checksum::Partial { start, offset: self.first.checksum_offset() as u16 });
        let kind = match (self.first.is_udp, self.first.is_ipv6) {
            (true, _) => GsoKind::Udp,
            (false, true) => GsoKind::TcpIpv6,
            (false, false) => GsoKind::TcpIpv4,
        };
        packet.set_gso(Some(Gso { kind, size: self.first.length as u16, ecn: false }));
    }

    fn write_headers(&self, head: &mut [u8], length: usize) {
        let Segment { network, transport, is_ipv6, .. } = self.first;
        let pseudo = self.first.pseudo(head, length - transport);
        let Some((before, header)) = head.split_at_mut_checked(transport) else { return };
        if self.first.is_udp {
            write16(header, field::UDP_LENGTH, (length - transport) as u16);
        } else if let Some(flags) = header.get_mut(field::TCP_FLAGS) {
            *flags |= self.ending_flags;
        }
        write16(header, self.first.checksum_offset(), checksum::fold(u64::from(pseudo)));
        let Some(ip) = before.get_mut(network..) else { return };
        if is_ipv6 {
            return write16(ip, field::IPV6_LENGTH, (length - transport) as u16);
        }
        write16(ip, field::IPV4_LENGTH, (length - network) as u16);
        write16(ip, field::IPV4_CHECKSUM, 0);
        let sum = checksum::sum(ip);
        write16(ip, field::IPV4_CHECKSUM, checksum::finish(sum));
    }
}

/// Parts of a packet from a port: a frame longer than a head frame comes in a chain.
fn parts(memory: &FrameMemory, packet: &Packet) -> usize {
    if packet.is_chained() { memory.parts(packet).count() } else { 1 }
}

/// Whether two segments of one flow, with the same header lengths, agree in all that a unit has once.
fn same_headers(unit: &[u8], other: &[u8], segment: &Segment) -> bool {
    let Segment { network, transport, payload, .. } = *segment;
    let same = |range: Range<usize>| {
        let ours = unit.get(range.clone());
        ours.is_some() && ours == other.get(range)
    };
    let same_ip = if segment.is_ipv6 {
        // Version, traffic class and flow label; next header and hop limit.
        same(network..network + field::IPV6_LENGTH) && same(network + field::IPV6_NEXT_HEADER..network + 8)
    } else {
        // Version and TOS; flags, TTL and protocol.
        same(network..network + field::IPV4_LENGTH)
            && same(network + field::IPV4_FRAGMENT..network + field::IPV4_CHECKSUM)
    };
    // Acknowledgement and data offset; window; options.
    let same_tcp = || {
        same(transport + field::TCP_ACKNOWLEDGEMENT..transport + field::TCP_FLAGS)
            && same(transport + field::TCP_WINDOW..transport + field::TCP_CHECKSUM)
            && same(transport + field::TCP_BYTES..payload)
    };
    same(0..network) && same_ip && (segment.is_udp || same_tcp())
}

#[cfg(test)]
#[path = "joining_tests.rs"]
mod tests;
