//! One worker's queue of such an uplink: its sockets and its queue of the plain port, as one.
//!
//! Three sources deliver: the sockets of both families and the plain queue. Those that delivered last are asked again, the
//! others when an epoll set of the queue's own names them; whoever is first differs from turn to turn.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;

use super::UdpSockets;
use super::batch::{Batch, Target};
use super::sending::{Fate, Sending};
use super::sys::MESSAGES;
use crate::counters::WorkerCounters;
use crate::limits;
use crate::packet::{FrameMemory, Packet, PortIndex};
use crate::port::handover::{HandedKind, HandedQueue};
use crate::port::{Capabilities, PortQueue, QueueDescription};

const SOURCES: usize = 3;
const IPV4: usize = 0;
const IPV6: usize = 1;
const PLAIN: usize = 2;
/// Turns between two looks at sources that delivered nothing.
const LOOK_TURNS: usize = 16;

/// See the module.
pub struct UdpQueue {
    port: PortIndex,
    sockets: UdpSockets,
    plain: Box<dyn PortQueue>,
    batch: Batch,
    sending: Sending,
    /// Packets of one call, taken apart by where they go.
    tunnelled: Vec<Packet>,
    untunnelled: Vec<Packet>,
    sources: OwnedFd,
    /// Sources that delivered when they were asked last.
    hot: [bool; SOURCES],
    turns: usize,
}

impl UdpSockets {
    /// The worker's queue of `port`, whose frames outside of tunnels go by `plain`, a queue of the same port.
    ///
    /// # Errors
    /// What the kernel said to an epoll set.
    pub fn queue(self, port: PortIndex, plain: Box<dyn PortQueue>) -> std::io::Result<UdpQueue> {
        let sources = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        watch(&sources, self.ipv4.receiving.as_fd(), IPV4)?;
        if let Some(family) = &self.ipv6 {
            watch(&sources, family.receiving.as_fd(), IPV6)?;
        }
        if let Some(descriptor) = plain.readable_descriptor() {
            watch(&sources, descriptor, PLAIN)?;
        }
        let list = || Vec::with_capacity(limits::TRANSMIT_QUEUE_PACKETS + limits::VECTOR_PACKETS);
        Ok(UdpQueue {
            port,
            sockets: self,
            plain,
            batch: Batch::new(),
            sending: Sending::new(),
            tunnelled: list(),
            untunnelled: list(),
            sources,
            hot: [false; SOURCES],
            turns: 0,
        })
    }
}

fn watch(sources: &OwnedFd, descriptor: BorrowedFd<'_>, source: usize) -> rustix::io::Result<()> {
    epoll::add(sources, descriptor, epoll::EventData::new_u64(source as u64), epoll::EventFlags::IN)
}

impl std::fmt::Debug for UdpQueue {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("UdpQueue")
            .field("port", &self.port)
            .field("sockets", &self.sockets)
            .finish_non_exhaustive()
    }
}

impl UdpQueue {
    /// Which sources to ask: those that delivered, and now and then all that have something.
    fn due(&mut self) -> [bool; SOURCES] {
        let mut due = std::mem::take(&mut self.hot);
        if due == [false; SOURCES] || self.turns.is_multiple_of(LOOK_TURNS) {
            let mut room = [const { MaybeUninit::<epoll::Event>::uninit() }; SOURCES];
            let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            let (events, _) = epoll::wait(&self.sources, &mut room, Some(&at_once)).unwrap_or_default();
            for event in events {
                if let Some(due) = due.get_mut(event.data.u64() as usize) {
                    *due = true;
                }
            }
        }
        due[PLAIN] |= self.plain.is_cheap_to_poll();
        due
    }

    /// Asks one source; whether it delivered.
    fn ask(&mut self, source: usize, memory: &mut FrameMemory, vector: &mut Vec<Packet>) -> bool {
        if source == PLAIN {
            return self.plain.receive(memory, vector) > 0;
        }
        let target = self.target();
        let Some(family) = self.sockets.family(source == IPV4) else { return false };
        let mut delivered = false;
        while vector.len() < limits::VECTOR_PACKETS {
            let most = (limits::VECTOR_PACKETS - vector.len()).min(MESSAGES);
            if !self.batch.fill(memory, &family.receiving, most) {
                break;
            }
            delivered = true;
            let full = self.batch.is_full(most);
            self.batch.hand_over(memory, target, vector);
            if !full {
                break;
            }
        }
        delivered
    }

    fn target(&self) -> Target {
        Target { port: self.port, udp_port: self.sockets.udp_port, mtu: self.sockets.mtu }
    }

    /// Sends what is in `tunnelled`; what waits stays there.
    fn send_tunnelled(&mut self, memory: &mut FrameMemory, counters: &WorkerCounters) {
        let port = counters.port(self.port.0 as usize);
        let fates = self.sending.send(&self.sockets, memory, &self.tunnelled);
        let mut fates = fates.iter();
        // In order, so that what waits keeps its own; the spare list is empty at this moment.
        for packet in self.tunnelled.drain(..) {
            match fates.next().copied().unwrap_or(Fate::Waits) {
                Fate::Waits => {
                    self.untunnelled.push(packet);
                    continue;
                }
                Fate::Sent => {
                    port.sent_frames.add(1);
                    port.sent_bytes.add(packet.length() as u64);
                }
                Fate::Dropped(reason) => {
                    counters.drops(reason).add(1);
                    port.dropped_frames.add(1);
                }
            }
            memory.release(packet);
        }
        std::mem::swap(&mut self.tunnelled, &mut self.untunnelled);
    }
}

impl PortQueue for UdpQueue {
    fn receive(&mut self, memory: &mut FrameMemory, vector: &mut Vec<Packet>) -> usize {
        let before = vector.len();
        let target = self.target();
        self.batch.hand_over(memory, target, vector);
        if !self.batch.is_empty() {
            return vector.len() - before;
        }
        self.turns = self.turns.wrapping_add(1);
        let (due, first) = (self.due(), self.turns);
        for source in (0..SOURCES).map(|number| (number + first) % SOURCES) {
            let has_room = vector.len() < limits::VECTOR_PACKETS && self.batch.is_empty();
            // Who finds no room is asked in the next turn.
            self.hot[source] = due[source] && (!has_room || self.ask(source, memory, vector));
        }
        vector.len() - before
    }

    fn transmit(&mut self, memory: &mut FrameMemory, packets: &mut Vec<Packet>, counters: &WorkerCounters) {
        for packet in packets.drain(..) {
            if packet.is_tunnelled() { self.tunnelled.push(packet) } else { self.untunnelled.push(packet) }
        }
        if !self.untunnelled.is_empty() {
            self.plain.transmit(memory, &mut self.untunnelled, counters);
        }
        packets.append(&mut self.untunnelled);
        if !self.tunnelled.is_empty() {
            self.send_tunnelled(memory, counters);
        }
        packets.append(&mut self.tunnelled);
    }

    fn flush(&mut self, memory: &mut FrameMemory) -> bool {
        self.plain.flush(memory)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { tunnels: true, ..self.plain.capabilities() }
    }

    fn readable_descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.sources.as_fd())
    }

    /// The descriptor is readable as long as a packet waits in the kernel, and what waits here made this turn a busy one.
    fn prepare_to_sleep(&mut self) -> bool {
        self.batch.is_empty() && self.plain.prepare_to_sleep()
    }

    fn lent_frames(&self) -> usize {
        self.batch.held_frames() + self.plain.lent_frames()
    }

    fn port(&self) -> PortIndex {
        self.port
    }

    fn describe(&self) -> QueueDescription {
        let plain = self.plain.describe();
        let cuts = if self.sending.cuts() { " gso" } else { "" };
        let ipv6 = if self.sockets.ipv6.is_some() { " ipv6" } else { "" };
        let mode = format!(
            "tunnels by udp port {}{cuts} gro ipv4{ipv6}, else {}: {}",
            self.sockets.udp_port, plain.kind, plain.mode
        );
        QueueDescription { kind: "udp", mode }
    }

    fn kernel_drops(&self) -> u64 {
        self.sockets.dropped() + self.batch.lost() + self.plain.kernel_drops()
    }

    fn receive_held(&mut self, memory: &mut FrameMemory, vector: &mut Vec<Packet>) -> usize {
        let (before, target) = (vector.len(), self.target());
        self.batch.hand_over(memory, target, vector);
        vector.len() - before
    }

    fn hand_over(&self) -> std::io::Result<HandedQueue> {
        let HandedQueue { kind: HandedKind::Packet { interface, mtu, .. }, descriptors: plain } =
            self.plain.hand_over()?
        else {
            return Err(std::io::ErrorKind::Unsupported.into());
        };
        let mut descriptors = self.sockets.descriptors()?;
        descriptors.extend(plain);
        let (index, udp_port) = (self.sockets.interface_index(), self.sockets.udp_port);
        let kind = HandedKind::Udp { interface, mtu, index, udp_port, has_ipv6: self.sockets.ipv6.is_some() };
        Ok(HandedQueue { kind, descriptors })
    }

    fn close(&mut self, memory: &mut FrameMemory) {
        self.batch.close(memory);
        self.plain.close(memory);
    }
}
