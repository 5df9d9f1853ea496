//! A port like a NIC queue in zero-copy mode: what was received lies ready in one ring of descriptors, what is sent
//! goes into another. What a NIC does by itself (write frames, take sent ones off) is done in turns that the bench asks
//! for beforehand and does not time, see [`Control`].

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use millrace_engine::counters::WorkerCounters;
use millrace_engine::limits::{VECTOR_PACKETS, XDP_HEADROOM_BYTES};
use millrace_engine::packet::{FrameMemory, Packet, PortIndex};
use millrace_engine::port::{Capabilities, PortQueue, QueueDescription};

/// Destination port of the first 65,536 flows; the next ones have the next port.
pub(crate) const FIRST_PORT: u16 = 1_024;

/// What arrives at a port.
pub(crate) struct Traffic {
    /// Every frame, but for the ports.
    pub(crate) template: Vec<u8>,
    /// Where the ports of the innermost layer-4 header lie.
    pub(crate) ports_offset: usize,
    /// Flows in order of arrival; empty for a new flow with every packet.
    pub(crate) order: Vec<u32>,
    /// Where `order` begins again when it is through: what lies before fills tables.
    pub(crate) again: usize,
    /// Of answers: their source port is the flow's destination port plus this.
    pub(crate) answers_from: Option<u16>,
}

/// The bench's hold on a port. Between two runs: [`Control::take_sent`] and a turn, [`Control::let_arrive`] and a turn.
#[derive(Default)]
pub(crate) struct Control {
    arriving: AtomicUsize,
    taking: AtomicUsize,
    sent: AtomicU64,
}

impl Control {
    /// The next turn writes so many frames and their descriptors.
    pub(crate) fn let_arrive(&self, packets: usize) {
        self.arriving.store(packets, Relaxed);
    }

    /// The next turn frees what was sent.
    pub(crate) fn take_sent(&self) {
        self.taking.store(1, Relaxed);
    }

    /// Packets sent to this port.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }
}

/// See the module.
pub(crate) struct RingQueue {
    port: PortIndex,
    traffic: Option<Traffic>,
    next: usize,
    control: Arc<Control>,
    capabilities: Capabilities,
    /// What was received, the first at the end.
    received: Vec<Packet>,
    sent: Vec<Packet>,
}

impl RingQueue {
    /// A queue with rings of `room` descriptors.
    pub(crate) fn new(
        port: u16,
        traffic: Option<Traffic>,
        capabilities: Capabilities,
        room: usize,
    ) -> (Self, Arc<Control>) {
        let control = Arc::new(Control::default());
        let (received, sent) = (Vec::with_capacity(room), Vec::with_capacity(room));
        let port = PortIndex(port);
        (Self { port, traffic, next: 0, control: Arc::clone(&control), capabilities, received, sent }, control)
    }

    /// Whether it is the NIC's turn.
    fn device_is_asked(&self) -> bool {
        self.control.arriving.load(Relaxed) + self.control.taking.load(Relaxed) > 0
    }

    /// What the NIC does.
    #[cold]
    fn device(&mut self, memory: &mut FrameMemory) {
        if self.control.taking.swap(0, Relaxed) > 0 {
            self.sent.drain(..).for_each(|packet| memory.release(packet));
        }
        for _ in 0..self.control.arriving.swap(0, Relaxed) {
            let Some(packet) = self.traffic.as_ref().and_then(|traffic| traffic.packet(memory, &mut self.next)) else {
                break;
            };
            self.received.push(packet);
        }
        self.received.reverse();
    }
}

impl Traffic {
    fn packet(&self, memory: &mut FrameMemory, next: &mut usize) -> Option<Packet> {
        let mut frame = memory.allocate_head()?;
        let (flow, length) = (self.flow(next), self.template.len());
        let bytes = &mut memory.bytes_mut(&mut frame)[XDP_HEADROOM_BYTES..XDP_HEADROOM_BYTES + length];
        bytes.copy_from_slice(&self.template);
        let service = u32::from(FIRST_PORT) + (flow >> 16);
        let ports = match self.answers_from {
            None => service | flow << 16,
            Some(shift) => (service + u32::from(shift)) << 16 | flow & 0xffff,
        };
        bytes[self.ports_offset..self.ports_offset + 4].copy_from_slice(&ports.to_be_bytes());
        Some(Packet::new(frame, XDP_HEADROOM_BYTES, length))
    }

    fn flow(&self, next: &mut usize) -> u32 {
        let at = *next;
        *next = at + 1;
        if self.order.is_empty() {
            // Beyond any flow of an order.
            return at as u32 | 1 << 24;
        }
        if *next == self.order.len() {
            *next = self.again;
        }
        self.order[at]
    }
}

impl PortQueue for RingQueue {
    fn receive(&mut self, memory: &mut FrameMemory, vector: &mut Vec<Packet>) -> usize {
        if self.device_is_asked() {
            self.device(memory);
            return 0;
        }
        let count = self.received.len().min(VECTOR_PACKETS - vector.len());
        for mut packet in self.received.drain(self.received.len() - count..).rev() {
            packet.ingress = self.port;
            vector.push(packet);
        }
        count
    }

    fn transmit(&mut self, _memory: &mut FrameMemory, packets: &mut Vec<Packet>, counters: &WorkerCounters) {
        let (count, mut bytes) = (packets.len() as u64, 0);
        for packet in packets.drain(..) {
            bytes += packet.length() as u64;
            self.sent.push(packet);
        }
        let port = counters.port(self.port.0 as usize);
        port.sent_frames.add(count);
        port.sent_bytes.add(bytes);
        self.control.sent.store(self.control.sent() + count, Relaxed);
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
        self.received.is_empty()
    }

    fn lent_frames(&self) -> usize {
        self.received.len() + self.sent.len()
    }

    fn port(&self) -> PortIndex {
        self.port
    }

    fn describe(&self) -> QueueDescription {
        QueueDescription { kind: "ring", mode: "bench".to_owned() }
    }

    fn kernel_drops(&self) -> u64 {
        0
    }

    fn close(&mut self, memory: &mut FrameMemory) {
        self.received.drain(..).chain(self.sent.drain(..)).for_each(|packet| memory.release(packet));
    }
}
