//! A port whose wire is a pair of queues in memory: for tests, benches, replay and simulation.
//!
//! The far end ([`MemoryWire`]) is held by the test. Frames carry the same metadata a TAP would give them, so GSO
//! units and partial checksums can be put in and come out. No root, no clock, no thread.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Capabilities, PortQueue, QueueDescription};
use crate::counters::WorkerCounters;
use crate::limits;
use crate::packet::{Checksum, FrameMemory, Gso, Packet, PortIndex};

/// A frame on the far end of a memory port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireFrame {
    /// All bytes, from the Ethernet header on.
    pub bytes: Vec<u8>,
    /// `Some((start, offset))` if the layer-4 checksum is partial; `start` counts from the frame's first byte.
    pub partial_checksum: Option<(u16, u16)>,
    /// GSO metadata, if it is a unit.
    pub gso: Option<Gso>,
}

impl WireFrame {
    /// A frame as it comes off a wire: complete checksum, no unit.
    #[must_use]
    pub fn plain(bytes: Vec<u8>) -> Self {
        Self { bytes, partial_checksum: None, gso: None }
    }
}

#[derive(Debug, Default)]
struct Shared {
    towards_switch: VecDeque<WireFrame>,
    from_switch: VecDeque<WireFrame>,
}

/// The far end of a memory port.
#[derive(Clone, Debug, Default)]
pub struct MemoryWire(Arc<Mutex<Shared>>);

impl MemoryWire {
    fn with<T>(&self, act: impl FnOnce(&mut Shared) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts a frame on the wire towards the switch.
    pub fn send(&self, frame: WireFrame) {
        self.with(|shared| shared.towards_switch.push_back(frame));
    }

    /// Takes the next frame the switch sent.
    #[must_use]
    pub fn receive(&self) -> Option<WireFrame> {
        self.with(|shared| shared.from_switch.pop_front())
    }

    /// Frames that wait for the switch.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.with(|shared| shared.towards_switch.len())
    }
}

/// The switch's end of a memory port.
#[derive(Debug)]
pub struct MemoryQueue {
    port: PortIndex,
    wire: MemoryWire,
    capabilities: Capabilities,
    room: usize,
}

impl MemoryQueue {
    /// A queue with the far end `wire`, behaving as a device with `capabilities`.
    #[must_use]
    pub fn new(port: PortIndex, wire: MemoryWire, capabilities: Capabilities) -> Self {
        Self { port, wire, capabilities, room: usize::MAX }
    }

    /// Capabilities of a TAP with all offloads.
    pub const LIKE_TAP: Capabilities = Capabilities {
        tcp_segmentation: true,
        udp_segmentation: true,
        partial_checksum: true,
        chained: true,
        joins: true,
        joins_datagrams: false,
        tunnels: false,
        frame_bytes: limits::PACKET_BYTES,
    };

    /// Capabilities of an AF_XDP queue at MTU 1500.
    pub const LIKE_AF_XDP: Capabilities = Capabilities {
        tcp_segmentation: false,
        udp_segmentation: false,
        partial_checksum: false,
        chained: false,
        joins: false,
        joins_datagrams: false,
        tunnels: false,
        frame_bytes: 1518,
    };

    /// Accepts at most `frames` that the far end has not taken: a slow receiver.
    #[must_use]
    pub fn with_room(mut self, frames: usize) -> Self {
        self.room = frames;
        self
    }
}

impl PortQueue for MemoryQueue {
    fn receive(&mut self, memory: &mut FrameMemory, vector: &mut Vec<Packet>) -> usize {
        let (before, mut bytes) = (vector.len(), 0);
        self.wire.with(|shared| {
            while vector.len() < limits::VECTOR_PACKETS && bytes < limits::VECTOR_BYTES {
                let Some(frame) = shared.towards_switch.front() else { break };
                let Some(mut packet) = memory.packet_from(&frame.bytes) else { break };
                let start = packet.start() as u16;
                packet.ingress = self.port;
                packet.set_gso(frame.gso);
                packet.set_checksum(frame.partial_checksum.map_or(Checksum::Complete, |(at, offset)| {
                    Checksum::Partial { start: start.saturating_add(at), offset }
                }));
                bytes += packet.length();
                vector.push(packet);
                shared.towards_switch.pop_front();
            }
        });
        vector.len() - before
    }

    fn transmit(&mut self, memory: &mut FrameMemory, packets: &mut Vec<Packet>, counters: &WorkerCounters) {
        let port = counters.port(self.port.0 as usize);
        self.wire.with(|shared| {
            let room = self.room.saturating_sub(shared.from_switch.len()).min(packets.len());
            for packet in packets.drain(..room) {
                let mut bytes = Vec::with_capacity(packet.length());
                memory.parts(&packet).for_each(|part| bytes.extend_from_slice(part));
                let partial_checksum = match packet.checksum() {
                    Checksum::Complete => None,
                    Checksum::Partial { start, offset } => Some((start - packet.start() as u16, offset)),
                };
                port.sent_frames.add(1);
                port.sent_bytes.add(bytes.len() as u64);
                shared.from_switch.push_back(WireFrame { bytes, partial_checksum, gso: packet.gso() });
                memory.release(packet);
            }
        });
    }

    fn flush(&mut self, _memory: &mut FrameMemory) -> bool {
        false
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn readable_descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn is_cheap_to_poll(&self) -> bool {
        true
    }

    fn prepare_to_sleep(&mut self) -> bool {
        self.wire.waiting() == 0
    }

    fn lent_frames(&self) -> usize {
        0
    }

    fn port(&self) -> PortIndex {
        self.port
    }

    fn describe(&self) -> QueueDescription {
        QueueDescription { kind: "memory", mode: "in memory".to_owned() }
    }

    fn kernel_drops(&self) -> u64 {
        0
    }

    fn close(&mut self, _memory: &mut FrameMemory) {}
}
