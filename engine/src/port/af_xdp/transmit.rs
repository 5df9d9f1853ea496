//! Sending on an AF_XDP queue: packets into the transmit ring, the kernel kicked until it has taken them, sent
//! frames back from the completion ring.
//!
//! A sent packet's head frame is lent to the kernel as it is. Parts of a chain that lie in head frames are lent too;
//! parts in big buffers are outside the UMEM and are copied into head frames. In copy mode one call sends at most the
//! budget set in `socket.rs`, so [`AfXdpQueue::push_out`] goes on until the ring is empty, the kernel makes no
//! progress, or [`KICKS`] calls were made. Runs on the worker that owns the queue.

use std::os::fd::AsFd;

use super::{AfXdpQueue, COPY_SEGMENTS, ETHERNET_BYTES, ZERO_COPY_SEGMENTS, sys};
use crate::counters::WorkerCounters;
use crate::drop_reason::DropReason;
use crate::limits::HEAD_FRAME_BYTES;
use crate::packet::{Checksum, Frame, FrameMemory, Packet};

/// Calls of one flush: enough for a full ring at the budget of 256.
const KICKS: usize = 16;

/// How a packet goes into the transmit ring.
enum Form {
    /// This many descriptors.
    Slots(usize),
    /// Not at all.
    Refused(DropReason),
}

impl AfXdpQueue {
    /// Takes packets off the front as far as the ring has room.
    pub(super) fn send(&mut self, memory: &mut FrameMemory, packets: &mut Vec<Packet>, counters: &WorkerCounters) {
        if packets.is_empty() {
            return;
        }
        if self.sending.count() > 0 {
            self.reap(memory);
        }
        let wanted = packets.len() as u32;
        let Some(mut room) = self.socket.as_mut().map(|socket| socket.transmit.room(wanted) as usize) else { return };
        let mut taken = 0;
        for packet in packets.iter() {
            if let Form::Slots(slots) = self.form(memory, packet) {
                if slots > room {
                    break;
                }
                room -= slots;
            }
            taken += 1;
        }
        for packet in packets.drain(..taken) {
            self.place(memory, packet, counters);
        }
        if let Some(socket) = &mut self.socket {
            socket.transmit.publish();
        }
    }

    /// How `packet` can go into the ring; the same answer each time it is asked for a packet.
    #[inline]
    fn form(&self, memory: &FrameMemory, packet: &Packet) -> Form {
        let plain = packet.checksum() == Checksum::Complete && packet.gso().is_none();
        if !plain || packet.length() > self.frame_bytes || packet.head_length() < ETHERNET_BYTES {
            return Form::Refused(DropReason::PortRefused);
        }
        if !packet.is_chained() {
            return Form::Slots(1);
        }
        let slots = memory.parts(packet).map(|part| part.len().div_ceil(HEAD_FRAME_BYTES)).sum();
        let most = if self.zero_copy { ZERO_COPY_SEGMENTS } else { COPY_SEGMENTS };
        if !self.multi_buffer || slots > most { Form::Refused(DropReason::PortRefused) } else { Form::Slots(slots) }
    }

    /// Lends a packet's frames and writes its descriptors; `send` has seen that there is room.
    fn place(&mut self, memory: &mut FrameMemory, packet: Packet, counters: &WorkerCounters) {
        let port = counters.port(self.options.port.0 as usize);
        let refused = match self.form(memory, &packet) {
            Form::Refused(reason) => Some(reason),
            // Every part might have to be copied.
            Form::Slots(slots) if slots > 1 && slots > memory.free_heads() => Some(DropReason::FramesExhausted),
            Form::Slots(_) => None,
        };
        if let Some(reason) = refused {
            counters.drops(reason).add(1);
            port.dropped_frames.add(1);
            memory.release(packet);
            return;
        }
        port.sent_frames.add(1);
        port.sent_bytes.add(packet.length() as u64);
        let mut parts = std::mem::take(&mut self.scratch);
        memory.dismantle(packet, |memory, frame, offset, length| {
            self.lend_part(memory, &mut parts, frame, offset, length);
        });
        let last = parts.len().saturating_sub(1);
        for (number, mut descriptor) in parts.drain(..).enumerate() {
            descriptor.options = if number < last { libc::XDP_PKT_CONTD } else { 0 };
            let pushed = self.socket.as_mut().is_some_and(|socket| socket.transmit.push(descriptor));
            debug_assert!(pushed, "room was counted before");
        }
        self.scratch = parts;
    }

    /// Lends one part of a packet: as it lies if it is in the UMEM, copied into it otherwise.
    fn lend_part(
        &mut self,
        memory: &mut FrameMemory,
        parts: &mut Vec<libc::xdp_desc>,
        frame: Frame,
        offset: usize,
        length: usize,
    ) {
        if length == 0 {
            memory.release_frame(frame);
            return;
        }
        if (frame.index() as usize) < self.umem.frames() {
            let addr = self.sending.lend(memory, frame) + offset as u64;
            parts.push(libc::xdp_desc { addr, len: length as u32, options: 0 });
            return;
        }
        let end = offset + length;
        for from in (offset..end).step_by(HEAD_FRAME_BYTES) {
            let Some(mut head) = memory.allocate_head() else { break };
            let count = (end - from).min(HEAD_FRAME_BYTES);
            memory.bytes_mut(&mut head)[..count].copy_from_slice(&memory.bytes(&frame)[from..from + count]);
            let addr = self.sending.lend(memory, head);
            parts.push(libc::xdp_desc { addr, len: count as u32, options: 0 });
        }
        memory.release_frame(frame);
    }

    /// Takes back frames the kernel has sent.
    pub(super) fn reap(&mut self, memory: &mut FrameMemory) {
        let Some(socket) = &mut self.socket else { return };
        if socket.completion.available() == 0 {
            return;
        }
        while let Some(address) = socket.completion.pop() {
            match self.sending.reclaim(memory, address) {
                Some(frame) => memory.release_frame(frame),
                None => self.malformed += 1,
            }
        }
        socket.completion.release();
    }

    /// Reaps, and kicks until the kernel has consumed the transmit ring. True if it has not and another call may help.
    pub(super) fn push_out(&mut self, memory: &mut FrameMemory) -> bool {
        for _ in 0..KICKS {
            self.reap(memory);
            let Some(socket) = &mut self.socket else { return false };
            let waiting = socket.transmit.waiting();
            if waiting == 0 {
                return false;
            }
            // Copy mode sends in our call only; a driver works by itself unless it asks.
            if self.zero_copy && self.options.need_wakeup && !socket.transmit.needs_wakeup() {
                return true;
            }
            if let Err(error) = sys::kick_transmit(socket.as_fd()) {
                let passing = [libc::EAGAIN, libc::EBUSY, libc::ENOBUFS, libc::EINTR];
                if !error.raw_os_error().is_some_and(|number| passing.contains(&number)) {
                    // The link is down or the device gone: packets stay in the ring, the caller's queue fills.
                    return false;
                }
            }
            if socket.transmit.waiting() == waiting {
                self.reap(memory);
                return true;
            }
        }
        true
    }
}
