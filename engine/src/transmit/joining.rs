//! Joins consecutive TCP segments of one flow into a unit, for ports whose receiver takes units (GRO).
//!
//! The rules are those of the kernel's GRO (Linux `net/ipv4/tcp_offload.c`, `net/core/gro.c`), stricter in two points.
//! Two segments join if all of this holds: link headers, addresses, ports, acknowledgement, TOS, TTL, flow label,
//! "don't fragment" and TCP options are equal; there are no IP options, extensions or fragments; both carry data and no
//! flag but ACK, the later one also PSH and FIN; sequence numbers are contiguous; the later one is not longer; IPv4
//! identifiers advance by one, or stand still with "don't fragment" set; both checksums were complete and are right.
//! A shorter segment, PSH or FIN ends the unit. Stricter: windows must be equal, so that no update is lost, and a
//! segment with PSH never begins a unit.
//!
//! A segment with a wrong checksum goes on alone as it is: the receiver's kernel drops and counts it. In a unit it
//! would be lost with the others, and its checksum with it. Nothing is copied: the frames of the later segments hang
//! behind the first. The order within a flow stays; a segment that cannot join ends its flow's unit.
//!
//! UDP datagrams are not joined: a receiver without `UDP_GRO` would have to cut the unit again (most of them, DNS
//! servers among them), and a unit whose datagrams' boundaries are lost on the way would corrupt what they carry.
//!
//! Bounds: [`limits::OPEN_JOINS`] units open at once, each of [`limits::CHAIN_SEGMENTS`] parts and 65,535 IP bytes. A
//! call never holds a packet back: what it was given it returns. Cost: one pass over the payload, to verify it;
//! `benches/joining.rs`. Runs on workers.

use std::ops::Range;

use super::field::{self, read16, read32, write16};
use crate::limits;
use crate::packet::checksum::{self, Accumulator};
use crate::packet::copy_and_checksum::Kernel;
use crate::packet::parse::{ethertype, protocol};
use crate::packet::{Checksum, FrameMemory, Gso, GsoKind, Packet};

/// Longest IP packet a unit may become.
const UNIT_BYTES: usize = 65_535;
/// Packets a call looks at; a longer list passes unjoined.
const LIST_PACKETS: usize = limits::TRANSMIT_QUEUE_PACKETS + limits::VECTOR_PACKETS;
/// Flags that a segment of a unit may have.
const JOINABLE_FLAGS: u8 = field::ACK | ENDING_FLAGS;
/// Flags that end a unit.
const ENDING_FLAGS: u8 = field::PSH | field::FIN;

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
    /// of their first segment; all others keep their order.
    pub fn join(&mut self, memory: &mut FrameMemory, packets: &mut Vec<Packet>) -> Joined {
        let mut joined = Joined::default();
        if packets.len() > LIST_PACKETS || !any_may_join(memory, packets) {
            return joined;
        }
        for packet in packets.drain(..) {
            self.take(memory, packet, &mut joined);
        }
        for unit in self.open.drain(..) {
            unit.close(memory, &mut self.out, &mut joined);
        }
        packets.append(&mut self.out);
        joined
    }

    fn take(&mut self, memory: &mut FrameMemory, packet: Packet, joined: &mut Joined) {
        let segment = match Segment::read(memory.head(&packet), &packet) {
            Found::Segment(segment) => segment,
            Found::NotTcp => return self.out.push(packet),
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
                && unit.first.is_ipv6 == segment.is_ipv6
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

/// What a packet is to the joiner.
enum Found {
    /// A TCP segment whose flow is known, joinable or not.
    Segment(Segment),
    /// No TCP: no flow of ours.
    NotTcp,
    /// TCP perhaps, but its flow cannot be told: a fragment, options, extensions, cut short.
    Unreadable,
}

/// What a TCP segment's headers say.
#[derive(Clone, Copy, Debug)]
struct Segment {
    is_ipv6: bool,
    network: usize,
    transport: usize,
    payload: usize,
    /// Bytes of payload.
    length: usize,
    sequence: u32,
    /// Zero for IPv6.
    identification: u16,
    flags: u8,
    flow_hash: u32,
    /// Whether headers and metadata allow a join; the checksum was not looked at.
    may_join: bool,
}

impl Segment {
    fn read(head: &[u8], packet: &Packet) -> Found {
        let Some((kind, network)) = network_header(head) else { return Found::NotTcp };
        let is_ipv6 = match kind {
            ethertype::IPV4 => false,
            ethertype::IPV6 => true,
            _ => return Found::NotTcp,
        };
        let read = if is_ipv6 { Self::read_ipv6(head, network) } else { Self::read_ipv4(head, network) };
        match read {
            Some(Ip::Tcp { length }) => Self::read_tcp(head, packet, is_ipv6, network, length),
            Some(Ip::Other) => Found::NotTcp,
            None => Found::Unreadable,
        }
    }

    /// `None` if fragmented, with options, or cut short.
    fn read_ipv4(head: &[u8], network: usize) -> Option<Ip> {
        let header = head.get(network..network + field::IPV4_BYTES)?;
        if header[field::IPV4_PROTOCOL] != protocol::TCP {
            return Some(Ip::Other);
        }
        let unfragmented = read16(header, field::IPV4_FRAGMENT) & !(u16::from(field::DONT_FRAGMENT) << 8) == 0;
        let sound = header[0] == 0x45 && unfragmented && checksum::sum(header) == 0xffff;
        sound.then(|| Ip::Tcp { length: usize::from(read16(header, field::IPV4_LENGTH)) })
    }

    /// `None` if there are extension headers or it is cut short.
    fn read_ipv6(head: &[u8], network: usize) -> Option<Ip> {
        let header = head.get(network..network + field::IPV6_BYTES)?;
        match header[field::IPV6_NEXT_HEADER] {
            protocol::TCP if header[0] >> 4 == 6 => {
                Some(Ip::Tcp { length: usize::from(read16(header, field::IPV6_LENGTH)) + field::IPV6_BYTES })
            }
            protocol::UDP | protocol::ICMPV6 | protocol::SCTP => Some(Ip::Other),
            _ => None,
        }
    }

    /// `length` is what the IP header says, itself included.
    fn read_tcp(head: &[u8], packet: &Packet, is_ipv6: bool, network: usize, length: usize) -> Found {
        let transport = network + if is_ipv6 { field::IPV6_BYTES } else { field::IPV4_BYTES };
        let Some(header) = head.get(transport..transport + field::TCP_BYTES) else { return Found::Unreadable };
        let header_bytes = usize::from(header[field::TCP_DATA_OFFSET] >> 4) * 4;
        let payload = transport + header_bytes;
        let flags = header[field::TCP_FLAGS];
        let mut segment = Segment {
            is_ipv6,
            network,
            transport,
            payload,
            length: packet.length().saturating_sub(payload),
            sequence: read32(header, field::TCP_SEQUENCE),
            identification: if is_ipv6 { 0 } else { read16(head, network + field::IPV4_IDENTIFICATION) },
            flags,
            flow_hash: 0,
            may_join: false,
        };
        segment.flow_hash = head.get(segment.flow()).map_or(0, hash);
        segment.may_join = network + length == packet.length()
            && header_bytes >= field::TCP_BYTES
            && header[field::TCP_DATA_OFFSET] & 15 == 0
            && payload <= packet.head_length()
            && segment.length > 0
            && flags & field::ACK != 0
            && flags & !JOINABLE_FLAGS == 0
            && packet.gso().is_none()
            && packet.checksum() == Checksum::Complete;
        Found::Segment(segment)
    }

    /// Addresses and ports: contiguous, since there are no options.
    #[inline]
    fn flow(&self) -> Range<usize> {
        let addresses = if self.is_ipv6 { field::IPV6_ADDRESSES } else { field::IPV4_ADDRESSES };
        self.network + addresses..self.transport + 4
    }

    /// Sum of the pseudo header with a layer-4 length of `length`.
    fn pseudo(&self, head: &[u8], length: usize) -> u32 {
        let flow = self.flow();
        let addresses = head.get(flow.start..flow.end - 4).unwrap_or_default();
        checksum::sum(addresses) + u32::from(protocol::TCP) + length as u32
    }

    fn verifies(&self, kernel: Kernel, memory: &FrameMemory, packet: &Packet) -> bool {
        let head = memory.head(packet);
        let mut total = Accumulator::new(self.pseudo(head, self.payload - self.transport + self.length));
        let covered = head.get(self.transport..).unwrap_or_default();
        total.add(kernel.sum(covered), covered.len());
        for part in memory.parts(packet).skip(1) {
            total.add(kernel.sum(part), part.len());
        }
        total.sum() == 0xffff
    }
}

/// Whether two of the packets at least may be TCP segments: most lists towards most pods can be left as they are.
fn any_may_join(memory: &FrameMemory, packets: &[Packet]) -> bool {
    packets.iter().filter(|packet| may_be_tcp(memory.head(packet))).nth(1).is_some()
}

/// "Yes" also for tagged frames.
#[inline]
fn may_be_tcp(head: &[u8]) -> bool {
    let Some(front) = head.first_chunk::<24>() else { return false };
    match u16::from_be_bytes([front[12], front[13]]) {
        ethertype::IPV4 => front[23] == protocol::TCP,
        ethertype::IPV6 => front[20] == protocol::TCP,
        ethertype::VLAN | ethertype::QINQ => true,
        _ => false,
    }
}

enum Ip {
    Tcp { length: usize },
    Other,
}

/// EtherType and first byte of what lies behind the Ethernet header and up to two tags.
#[inline]
fn network_header(head: &[u8]) -> Option<(u16, usize)> {
    let mut at = 12;
    for _ in 0..3 {
        let kind = u16::from_be_bytes(*head.get(at..)?.first_chunk()?);
        at += 2;
        if kind != ethertype::VLAN && kind != ethertype::QINQ {
            return Some((kind, at));
        }
        at += 2;
    }
    None
}

/// Tells flows apart quickly; equality is decided by the bytes themselves.
#[inline]
fn hash(flow: &[u8]) -> u32 {
    let (words, _) = flow.as_chunks::<4>();
    words.iter().fold(0, |hash: u32, word| (hash.rotate_left(5) ^ u32::from_ne_bytes(*word)).wrapping_mul(0x9e37_79b9))
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
            next_sequence: first.sequence.wrapping_add(first.length as u32),
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
        self.next_sequence = self.next_sequence.wrapping_add(segment.length as u32);
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
        packet.set_checksum(Checksum::Partial { start, offset: field::TCP_CHECKSUM as u16 });
        let kind = if self.first.is_ipv6 { GsoKind::TcpIpv6 } else { GsoKind::TcpIpv4 };
        packet.set_gso(Some(Gso { kind, size: self.first.length as u16, ecn: false }));
    }

    fn write_headers(&self, head: &mut [u8], length: usize) {
        let Segment { network, transport, is_ipv6, .. } = self.first;
        let pseudo = self.first.pseudo(head, length - transport);
        let Some((before, tcp)) = head.split_at_mut_checked(transport) else { return };
        if let Some(flags) = tcp.get_mut(field::TCP_FLAGS) {
            *flags |= self.ending_flags;
        }
        write16(tcp, field::TCP_CHECKSUM, checksum::fold(u64::from(pseudo)));
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
    let same_tcp = same(transport + field::TCP_ACKNOWLEDGEMENT..transport + field::TCP_FLAGS)
        && same(transport + field::TCP_WINDOW..transport + field::TCP_CHECKSUM)
        && same(transport + field::TCP_BYTES..payload);
    same(0..network) && same_ip && same_tcp
}

#[cfg(test)]
#[path = "joining_tests.rs"]
mod tests;
