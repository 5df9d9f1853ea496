//! Datagrams on their way from a socket into packets.
//!
//! One call takes up to 16 messages. Each goes into a head frame, at the place where it can stay: a lone datagram becomes a
//! packet without a copy. What does not fit, above all several datagrams that the kernel gathered (`UDP_GRO`, up to 64 KiB in
//! all), goes on in memory of the batch's own and is copied into frames piece by piece, as much at a time as the vector has
//! room for. So a message may be handed over in several turns, and nothing is read from the socket before it is done.
//!
//! Bounds: 16 head frames, which stay with the batch, and 1 MiB of memory ([`limits::UDP_MESSAGES`]). Without free frames
//! datagrams are lost and counted, as an AF_XDP socket loses them with an empty fill ring.

use std::io::IoSliceMut;
use std::os::fd::OwnedFd;

use super::inner;
use super::outer::{self, LONGEST, Outer};
use super::sys::{self, Arrival, MESSAGES};
use crate::limits;
use crate::packet::wire::vxlan;
use crate::packet::{Checksum, Frame, FrameMemory, FrameSet, Packet, PortIndex};

/// First byte of a datagram in its head frame: outer headers of either family are written before it.
const START: usize = limits::XDP_HEADROOM_BYTES + LONGEST;
/// Bytes of a datagram that its head frame holds.
const HEAD_BYTES: usize = limits::HEAD_FRAME_BYTES - START;
/// Bytes from one message's own memory to the next one's: not a power of two, so that they do not compete for the same
/// lines of the cache.
const STRIDE: usize = limits::BIG_BUFFER_BYTES + 192;

/// What becomes of the packets of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    pub(super) port: PortIndex,
    pub(super) udp_port: u16,
    /// The uplink's MTU.
    pub(super) mtu: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Batch {
    frames: [Option<Frame>; MESSAGES],
    rest: Box<[u8]>,
    arrivals: [Arrival; MESSAGES],
    received: usize,
    /// The message that is handed over, and how much of it was.
    next: usize,
    done: usize,
    lost: u64,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            frames: [const { None }; MESSAGES],
            rest: vec![0; STRIDE * MESSAGES].into_boxed_slice(),
            arrivals: [Arrival::NONE; MESSAGES],
            received: 0,
            next: 0,
            done: 0,
            lost: 0,
        }
    }

    /// Whether all that was received is handed over.
    pub(super) fn is_empty(&self) -> bool {
        self.next == self.received
    }

    /// Whether the last call brought all that was asked for, so that more may be there.
    pub(super) fn is_full(&self, most: usize) -> bool {
        self.received == most
    }

    /// Head frames that it holds.
    pub(super) fn held_frames(&self) -> usize {
        self.frames.iter().flatten().count()
    }

    /// Enters these frames into `held`.
    pub(super) fn mark_held(&self, held: &mut FrameSet) {
        self.frames.iter().flatten().for_each(|frame| held.insert(frame.index()));
    }

    /// Datagrams that found no free frame.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Takes at most `most` messages from a socket; all earlier ones must be handed over. Whether there were any.
    pub(super) fn fill(&mut self, memory: &mut FrameMemory, socket: &OwnedFd, most: usize) -> bool {
        let mut ready = 0;
        for frame in self.frames.iter_mut().take(most) {
            match frame.take().or_else(|| memory.allocate_head()) {
                Some(taken) => *frame = Some(taken),
                None => break,
            }
            ready += 1;
        }
        let memory: &FrameMemory = memory;
        let mut parts: [[IoSliceMut<'_>; 2]; MESSAGES] =
            std::array::from_fn(|_| [IoSliceMut::new(&mut []), IoSliceMut::new(&mut [])]);
        let room = self.frames.iter_mut().flatten().zip(self.rest.chunks_exact_mut(STRIDE));
        for (parts, (frame, rest)) in parts.iter_mut().zip(room) {
            let rest = &mut rest[..limits::BIG_BUFFER_BYTES];
            *parts = [IoSliceMut::new(&mut memory.bytes_mut(frame)[START..]), IoSliceMut::new(rest)];
        }
        if ready == 0 {
            (self.received, self.next, self.done) = (0, 0, 0);
            return false;
        }
        // Nothing there, or the interface went down, which is told once.
        self.received = sys::receive(socket, &mut parts[..ready], &mut self.arrivals).unwrap_or(0);
        (self.next, self.done) = (0, 0);
        self.received > 0
    }

    /// Hands over as many packets as `vector` has room for.
    pub(super) fn hand_over(&mut self, memory: &mut FrameMemory, target: Target, vector: &mut Vec<Packet>) {
        while vector.len() < limits::VECTOR_PACKETS && self.next < self.received {
            let arrival = self.arrivals[self.next];
            let bytes = arrival.segment.min(arrival.length - self.done);
            let whole = bytes == arrival.length && bytes <= HEAD_BYTES;
            let frame = if whole { self.frames[self.next].take() } else { None };
            let packet = match frame {
                Some(frame) => Some(wrapped(frame, &arrival, bytes)),
                None => self.copy(memory, &arrival, bytes),
            };
            match packet {
                Some(packet) => vector.push(finished(memory, packet, &arrival, target)),
                None => self.lost += 1,
            }
            self.done += bytes;
            if self.done >= arrival.length {
                (self.next, self.done) = (self.next + 1, 0);
            }
        }
    }

    /// Copies the next `bytes` bytes of a message into frames; `None` if there are none.
    fn copy(&self, memory: &mut FrameMemory, arrival: &Arrival, bytes: usize) -> Option<Packet> {
        let mut head = memory.allocate_head()?;
        let in_head = bytes.min(HEAD_BYTES);
        self.read(memory, self.done, &mut memory.bytes_mut(&mut head)[START..START + in_head]);
        let mut packet = wrapped(head, arrival, in_head);
        if bytes > in_head {
            let Some(mut big) = memory.allocate_big() else {
                memory.release(packet);
                return None;
            };
            let behind = bytes - in_head;
            self.read(memory, self.done + in_head, &mut memory.bytes_mut(&mut big)[..behind]);
            memory.append(&mut packet, big, 0, behind);
        }
        Some(packet)
    }

    /// Fills `target` with the bytes of the current message from `from` on.
    fn read(&self, memory: &FrameMemory, from: usize, target: &mut [u8]) {
        let Some(frame) = &self.frames[self.next] else { return };
        let front = memory.bytes(frame).get(START + from.min(HEAD_BYTES)..).unwrap_or_default();
        let (now, later) = target.split_at_mut(front.len().min(target.len()));
        now.copy_from_slice(&front[..now.len()]);
        let start = self.next * STRIDE + (from + now.len()).saturating_sub(HEAD_BYTES);
        if let Some(rest) = self.rest.get(start..start + later.len()) {
            later.copy_from_slice(rest);
        }
    }

    /// Gives its frames back; what was not handed over is lost.
    pub(super) fn close(&mut self, memory: &mut FrameMemory) {
        for frame in self.frames.iter_mut().filter_map(Option::take) {
            memory.release_frame(frame);
        }
        (self.received, self.next, self.done) = (0, 0, 0);
    }
}

/// A packet of a datagram's first `bytes` bytes, which lie at their place in `frame`, with room for its outer headers.
fn wrapped(frame: Frame, arrival: &Arrival, bytes: usize) -> Packet {
    let outer = Outer::bytes_for(arrival);
    Packet::new(frame, START - outer, outer + bytes)
}

/// Writes the outer headers and notes what the sender left undone.
#[inline]
fn finished(memory: &FrameMemory, mut packet: Packet, arrival: &Arrival, target: Target) -> Packet {
    let outer = Outer::bytes_for(arrival);
    let (length, start) = (packet.length() - outer, packet.start());
    packet.ingress = target.port;
    packet.set_tunnelled(true);
    let head = memory.head_mut(&mut packet);
    outer::write(&mut head[..outer], arrival, target.udp_port, length);
    let around = outer + vxlan::HEADER_BYTES;
    let longest = target.mtu.saturating_sub(around);
    if let Some(left) = head.get(around..).and_then(|frame| inner::unfinished(frame, longest)) {
        packet.set_checksum(Checksum::Partial { start: (start + around + left.transport) as u16, offset: left.offset });
        packet.set_gso(left.gso);
    }
    packet
}
