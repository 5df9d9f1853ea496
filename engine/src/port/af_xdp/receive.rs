//! Receiving on an AF_XDP queue: frames from the receive ring as packets, free frames into the fill ring.
//!
//! A frame longer than one buffer comes as several descriptors, all but the last marked as continued, and becomes a
//! chain; it may end in a later vector. Nothing the kernel writes into a descriptor is believed: an address that was
//! not lent, a range outside its frame or a chain longer than a packet is counted as malformed. No call into the
//! kernel in copy mode. Runs on the worker that owns the queue.

use std::os::fd::AsFd;

use super::{AfXdpQueue, sys};
use crate::limits;
use crate::packet::{Frame, FrameMemory, Packet};

/// Free fill slots that are worth a refill: one vector.
const REFILL_BATCH: u32 = limits::VECTOR_PACKETS as u32;

/// A frame that arrives in several buffers and is not complete yet.
pub(super) enum Partial {
    None,
    Building(Packet, usize),
    Discarding,
}

impl AfXdpQueue {
    /// Moves what was received behind the packets in `vector`, and lends free frames for what comes next.
    pub(super) fn take_vector(&mut self, memory: &mut FrameMemory, vector: &mut Vec<Packet>) -> usize {
        let (before, mut bytes) = (vector.len(), 0);
        let mut waiting = self.socket.as_mut().map_or(0, |socket| socket.receive.available());
        if waiting == 0
            && self.options.busy_poll_budget.is_some()
            && let Some(socket) = &mut self.socket
        {
            sys::kick_receive(socket.as_fd());
            waiting = socket.receive.available();
        }
        if waiting > 0 {
            while vector.len() < limits::VECTOR_PACKETS && bytes < limits::VECTOR_BYTES {
                let Some(descriptor) = self.socket.as_mut().and_then(|socket| socket.receive.pop()) else { break };
                if let Some(packet) = self.take(memory, descriptor) {
                    bytes += packet.length();
                    vector.push(packet);
                }
            }
            if let Some(socket) = &mut self.socket {
                socket.receive.release();
            }
        }
        if self.sending.count() > 0 {
            self.reap(memory);
        }
        self.refill(memory);
        vector.len() - before
    }

    /// Makes a packet of one received descriptor, or a part of one.
    #[inline]
    fn take(&mut self, memory: &mut FrameMemory, descriptor: libc::xdp_desc) -> Option<Packet> {
        let Some(frame) = self.receiving.reclaim(memory, descriptor.addr) else {
            self.malformed += 1;
            return None;
        };
        let offset = descriptor.addr as usize % limits::HEAD_FRAME_BYTES;
        let length = descriptor.len as usize;
        if offset + length > limits::HEAD_FRAME_BYTES {
            self.malformed += 1;
            memory.release_frame(frame);
            return None;
        }
        let continues = descriptor.options & libc::XDP_PKT_CONTD != 0;
        if !continues && matches!(self.partial, Partial::None) {
            let mut packet = Packet::new(frame, offset, length);
            packet.ingress = self.options.port;
            return Some(packet);
        }
        self.take_part(memory, frame, offset..offset + length, continues)
    }

    /// Adds a buffer to the frame that arrives in several; the frame if this was its last.
    fn take_part(
        &mut self,
        memory: &mut FrameMemory,
        frame: Frame,
        range: std::ops::Range<usize>,
        continues: bool,
    ) -> Option<Packet> {
        let (packet, parts) = match std::mem::replace(&mut self.partial, Partial::None) {
            Partial::None => {
                let mut packet = Packet::new(frame, range.start, range.len());
                packet.ingress = self.options.port;
                (packet, 1)
            }
            Partial::Building(mut packet, parts)
                if parts < limits::CHAIN_SEGMENTS && packet.length() + range.len() <= limits::PACKET_BYTES =>
            {
                memory.append(&mut packet, frame, range.start, range.len());
                (packet, parts + 1)
            }
            other => {
                if let Partial::Building(packet, _) = other {
                    self.malformed += 1;
                    memory.release(packet);
                }
                memory.release_frame(frame);
                self.partial = if continues { Partial::Discarding } else { Partial::None };
                return None;
            }
        };
        if continues {
            self.partial = Partial::Building(packet, parts);
            return None;
        }
        Some(packet)
    }

    /// Lends free frames to receive into, a batch at a time.
    fn refill(&mut self, memory: &mut FrameMemory) {
        let Some(socket) = &mut self.socket else { return };
        let room = socket.fill.room(REFILL_BATCH);
        if room >= REFILL_BATCH {
            for _ in 0..room {
                let Some(frame) = memory.allocate_head() else { break };
                let address = self.receiving.lend(memory, frame);
                if !socket.fill.push(address) {
                    if let Some(frame) = self.receiving.reclaim(memory, address) {
                        memory.release_frame(frame);
                    }
                    break;
                }
            }
            socket.fill.publish();
        }
        if !self.options.need_wakeup && self.zero_copy || socket.fill.needs_wakeup() {
            sys::kick_receive(socket.as_fd());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{FrameMemoryLayout, PortIndex};
    use crate::port::PortQueue;
    use crate::port::af_xdp::{AfXdpOptions, AttachMode, Umem};

    /// A queue without a socket: what the kernel would write is given to `take` by the test.
    struct Bench {
        memory: FrameMemory,
        queue: AfXdpQueue,
    }

    impl Bench {
        fn new() -> Self {
            let layout = FrameMemoryLayout { head_frames: 256, big_buffers: 0 };
            let memory = FrameMemory::new(layout).expect("memory");
            let options = AfXdpOptions::new(PortIndex(3), "none", 0, AttachMode::Native);
            let queue = AfXdpQueue::without_socket(options, &Umem::new(&memory));
            Self { memory, queue }
        }

        fn lend(&mut self) -> u64 {
            let frame = self.memory.allocate_head().expect("frame");
            self.queue.receiving.lend(&mut self.memory, frame)
        }

        fn take(&mut self, addr: u64, len: u32, continues: bool) -> Option<Packet> {
            let options = if continues { libc::XDP_PKT_CONTD } else { 0 };
            self.queue.take(&mut self.memory, libc::xdp_desc { addr, len, options })
        }

        fn end(mut self, malformed: u64) {
            assert_eq!(self.queue.kernel_drops(), malformed);
            self.queue.close(&mut self.memory);
            assert_eq!((self.queue.lent_frames(), self.memory.free_heads()), (0, 256));
        }
    }

    #[test]
    fn a_frame_in_one_buffer_is_a_packet() {
        let mut bench = Bench::new();
        let address = bench.lend();
        let packet = bench.take(address + 256, 60, false).expect("packet");
        assert_eq!((packet.start(), packet.length(), packet.ingress), (256, 60, PortIndex(3)));
        bench.memory.release(packet);
        bench.end(0);
    }

    #[test]
    fn a_frame_in_three_buffers_is_one_packet() {
        let mut bench = Bench::new();
        let addresses = [bench.lend(), bench.lend(), bench.lend()];
        assert!(bench.take(addresses[0] + 256, 1792, true).is_none());
        assert!(bench.take(addresses[1] + 256, 1792, true).is_none());
        let packet = bench.take(addresses[2] + 256, 10, false).expect("packet");
        let parts: Vec<usize> = bench.memory.parts(&packet).map(<[u8]>::len).collect();
        assert_eq!((packet.length(), packet.ingress, parts), (3594, PortIndex(3), vec![1792, 1792, 10]));
        bench.memory.release(packet);
        bench.end(0);
    }

    #[test]
    fn descriptors_that_make_no_sense_are_counted_and_lose_no_frame() {
        let mut bench = Bench::new();
        let address = bench.lend();
        assert!(bench.take(address + 2048, 60, false).is_none(), "a frame that was not lent");
        assert!(bench.take(u64::MAX, u32::MAX, false).is_none(), "outside the memory");
        assert!(bench.take(address + 2000, 60, false).is_none(), "a range outside its frame");
        assert!(bench.take(address + 256, 60, false).is_none(), "given twice");
        bench.end(4);
    }

    #[test]
    fn a_frame_longer_than_a_packet_is_dropped_whole_and_the_next_is_received() {
        let mut bench = Bench::new();
        for number in 0..100 {
            let address = bench.lend();
            assert!(bench.take(address + 256, 1792, number < 99).is_none());
        }
        let address = bench.lend();
        let packet = bench.take(address + 256, 60, false).expect("the next frame");
        bench.memory.release(packet);
        bench.end(1);
    }

    #[test]
    fn a_frame_that_never_ends_comes_back_at_close() {
        let mut bench = Bench::new();
        let address = bench.lend();
        assert!(bench.take(address + 256, 1792, true).is_none());
        assert_eq!((bench.queue.lent_frames(), bench.memory.free_heads()), (0, 255));
        bench.end(0);
    }
}
