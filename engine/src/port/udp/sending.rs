//! Tunnelled packets on their way into sockets.
//!
//! Packets to one peer by one source port, all of one length but the last, go with one call, and the kernel cuts them apart
//! again as late as it can (`UDP_SEGMENT`): the segments of a pod's unit, or small datagrams of some flows. What stands
//! between them in the list and goes elsewhere keeps its own order. Cost: reading each packet's outer headers, and for each
//! call a look at the next [`LOOK_AHEAD`] packets.

use std::io::{self, IoSlice};

use super::outer::Outer;
use super::sys::{self, Departure};
use super::{Family, UdpSockets};
use crate::drop_reason::DropReason;
use crate::limits;
use crate::packet::{FrameMemory, Packet};

/// Datagrams of one call: the kernel's limit before Linux 6.9 (`UDP_MAX_SEGMENTS`).
const SEGMENTS: usize = 64;
/// Bytes of one call: less than the longest datagram over IPv4.
const BYTES: usize = 65_000;
/// How far packets are looked for that may go with one.
const LOOK_AHEAD: usize = 128;
/// Parts of one call: a packet has one, or a chain.
const PARTS: usize = SEGMENTS + limits::CHAIN_SEGMENTS;

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// There is no room for it yet.
    Waits,
    /// The kernel has it.
    Sent,
    /// The kernel does not want it.
    Dropped(DropReason),
}

/// How one call ended.
enum Outcome {
    Sent,
    NoRoom,
    /// The datagrams are not to be sent together; perhaps one by one. True if none ever will be: the kernel does not cut
    /// on this way.
    NotTogether(bool),
    Refused(DropReason),
}

/// Room for one list, used again for the next.
#[derive(Debug)]
pub(super) struct Sending {
    outers: Vec<Option<Outer>>,
    fates: Vec<Fate>,
    group: Vec<usize>,
    /// Whether the kernel cuts; not on a route that encrypts, or before Linux 6.10 on a card without checksums.
    cuts: bool,
}

impl Sending {
    pub(super) fn new() -> Self {
        let packets = limits::TRANSMIT_QUEUE_PACKETS + limits::VECTOR_PACKETS;
        Self {
            outers: Vec::with_capacity(packets),
            fates: Vec::with_capacity(packets),
            group: Vec::with_capacity(SEGMENTS),
            cuts: true,
        }
    }

    pub(super) fn cuts(&self) -> bool {
        self.cuts
    }

    /// Sends what the sockets take; the fate of each packet, in order.
    pub(super) fn send(&mut self, sockets: &UdpSockets, memory: &FrameMemory, packets: &[Packet]) -> &[Fate] {
        self.outers.clear();
        self.outers.extend(packets.iter().map(|packet| Outer::read(memory.head(packet))));
        self.fates.clear();
        self.fates.resize(packets.len(), Fate::Waits);
        for first in 0..packets.len() {
            if self.fates[first] == Fate::Waits && !self.send_with(sockets, memory, packets, first) {
                break;
            }
        }
        &self.fates
    }

    /// Sends packet `first` and those that go with it. False if there was no room.
    fn send_with(&mut self, sockets: &UdpSockets, memory: &FrameMemory, packets: &[Packet], first: usize) -> bool {
        let outer = self.outers[first];
        let known = outer.and_then(|outer| Some((outer, sockets.family(outer.destination.is_ipv4())?)));
        let Some((outer, family)) = known else {
            self.fates[first] = Fate::Dropped(DropReason::PortRefused);
            return true;
        };
        self.gather(&outer, memory, packets, first);
        let way = Way { sockets, family, outer: &outer, memory, packets };
        match way.send(&self.group) {
            Outcome::NoRoom => return false,
            Outcome::Sent => self.settle(Fate::Sent),
            Outcome::Refused(reason) => self.settle(Fate::Dropped(reason)),
            Outcome::NotTogether(ever) => {
                self.cuts &= !ever;
                let group = std::mem::take(&mut self.group);
                let has_room = group.iter().all(|number| self.send_alone(&way, *number));
                self.group = group;
                return has_room;
            }
        }
        true
    }

    fn settle(&mut self, fate: Fate) {
        self.group.iter().for_each(|number| self.fates[*number] = fate);
    }

    /// False if there was no room.
    fn send_alone(&mut self, way: &Way<'_>, number: usize) -> bool {
        self.fates[number] = match way.send(&[number]) {
            Outcome::NoRoom => return false,
            Outcome::Sent => Fate::Sent,
            Outcome::Refused(reason) => Fate::Dropped(reason),
            Outcome::NotTogether(_) => Fate::Dropped(DropReason::Oversized),
        };
        true
    }

    /// Lists the packets that go with packet `first`, itself first.
    fn gather(&mut self, outer: &Outer, memory: &FrameMemory, packets: &[Packet], first: usize) {
        let size = packets[first].length() - outer.bytes;
        let (mut bytes, mut parts) = (size, parts(memory, &packets[first]));
        self.group.clear();
        self.group.push(first);
        if !self.cuts {
            return;
        }
        let end = packets.len().min(first + LOOK_AHEAD);
        for (number, packet) in packets.iter().enumerate().take(end).skip(first + 1) {
            let goes_along = self.outers[number].is_some_and(|other| other.goes_with(outer));
            if !goes_along || self.fates[number] != Fate::Waits {
                continue;
            }
            let length = packet.length() - outer.bytes;
            bytes += length;
            parts += self::parts(memory, packet);
            if length > size || bytes > BYTES || parts > PARTS {
                return;
            }
            self.group.push(number);
            if length < size || self.group.len() == SEGMENTS {
                return;
            }
        }
    }
}

fn parts(memory: &FrameMemory, packet: &Packet) -> usize {
    if packet.is_chained() { memory.parts(packet).count() } else { 1 }
}

/// Where packets go, and what they are.
struct Way<'a> {
    sockets: &'a UdpSockets,
    family: &'a Family,
    outer: &'a Outer,
    memory: &'a FrameMemory,
    packets: &'a [Packet],
}

impl Way<'_> {
    /// Sends these packets with one call.
    fn send(&self, group: &[usize]) -> Outcome {
        let mut parts = [IoSlice::new(&[]); PARTS];
        let mut slots = parts.iter_mut();
        for packet in group.iter().map(|number| &self.packets[*number]) {
            for (number, part) in self.memory.parts(packet).enumerate() {
                let Some(slot) = slots.next() else { return Outcome::Refused(DropReason::Oversized) };
                let part = if number == 0 { part.get(self.outer.bytes..).unwrap_or_default() } else { part };
                *slot = IoSlice::new(part);
            }
        }
        let count = PARTS - slots.len();
        let first = group.first().map_or(0, |number| self.packets[*number].length() - self.outer.bytes);
        let departure = Departure {
            source: self.outer.source,
            destination: self.outer.destination,
            interface: self.sockets.interface_index(),
            traffic_class: self.outer.traffic_class,
            segment: (group.len() > 1).then_some(first as u16),
        };
        let socket = self.family.source_port(self.outer.entropy);
        loop {
            match sys::send(socket, &departure, &parts[..count]) {
                Ok(()) => return Outcome::Sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return refusal(&error, group.len()),
            }
        }
    }
}

/// What an error means for so many packets.
fn refusal(error: &io::Error, packets: usize) -> Outcome {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => Outcome::NoRoom,
        // EMSGSIZE: the path's MTU is less; EINVAL: so it was said before Linux 6.15; EIO: nobody cuts.
        Some(libc::EMSGSIZE | libc::EINVAL) if packets > 1 => Outcome::NotTogether(false),
        Some(libc::EIO) if packets > 1 => Outcome::NotTogether(true),
        Some(libc::EMSGSIZE) => Outcome::Refused(DropReason::Oversized),
        // Interface down, no route, a filter.
        _ => Outcome::Refused(DropReason::PortRefused),
    }
}
