//! A port that costs as little as possible: frames are copied from one template with the flow's ports written in, and
//! what is sent is dropped. It delivers as many packets as it is told, so that a bench decides how long a run is.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use millrace_engine::counters::WorkerCounters;
use millrace_engine::limits::{VECTOR_PACKETS, XDP_HEADROOM_BYTES};
use millrace_engine::packet::{FrameMemory, Packet, PortIndex};
use millrace_engine::port::{Capabilities, PortQueue, QueueDescription};

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
}

/// The bench's hold on a port.
#[derive(Default)]
pub(crate) struct Control {
    remaining: AtomicUsize,
    sent: AtomicU64,
}

impl Control {
    /// Lets so many packets arrive.
    pub(crate) fn let_arrive(&self, packets: usize) {
        self.remaining.store(packets, Relaxed);
    }

    /// Packets sent to this port.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }
}

/// See the module.
pub(crate) struct LoopQueue {
    port: PortIndex,
    traffic: Option<Traffic>,
    next: usize,
    control: Arc<Control>,
    capabilities: Capabilities,
}

impl LoopQueue {
    pub(crate) fn new(port: u16, traffic: Option<Traffic>, capabilities: Capabilities) -> (Self, Arc<Control>) {
        let control = Arc::new(Control::default());
        (Self { port: PortIndex(port), traffic, next: 0, control: Arc::clone(&control), capabilities }, control)
    }
}

impl Traffic {
    #[inline]
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

impl PortQueue for LoopQueue {
    fn receive(&mut self, memory: &mut FrameMemory, vector: &mut Vec<Packet>) -> usize {
        let Some(traffic) = &self.traffic else { return 0 };
        let remaining = self.control.remaining.load(Relaxed);
        let count = remaining.min(VECTOR_PACKETS - vector.len());
        let length = traffic.template.len();
        for _ in 0..count {
            let Some(mut frame) = memory.allocate_head() else { return 0 };
            let flow = traffic.flow(&mut self.next);
            let bytes = &mut memory.bytes_mut(&mut frame)[XDP_HEADROOM_BYTES..XDP_HEADROOM_BYTES + length];
            bytes.copy_from_slice(&traffic.template);
            let ports = (1_024 + (flow >> 16)) | flow << 16;
            bytes[traffic.ports_offset..traffic.ports_offset + 4].copy_from_slice(&ports.to_be_bytes());
            let mut packet = Packet::new(frame, XDP_HEADROOM_BYTES, length);
            packet.ingress = self.port;
            vector.push(packet);
        }
        if count > 0 {
            self.control.remaining.store(remaining - count, Relaxed);
        }
        count
    }

    fn transmit(&mut self, memory: &mut FrameMemory, packets: &mut Vec<Packet>, counters: &WorkerCounters) {
        let (count, mut bytes) = (packets.len() as u64, 0);
        for packet in packets.drain(..) {
            bytes += packet.length() as u64;
            memory.release(packet);
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
        true
    }

    fn lent_frames(&self) -> usize {
        0
    }

    fn port(&self) -> PortIndex {
        self.port
    }

    fn describe(&self) -> QueueDescription {
        QueueDescription { kind: "loop", mode: "bench".to_owned() }
    }

    fn kernel_drops(&self) -> u64 {
        0
    }

    fn close(&mut self, _memory: &mut FrameMemory) {}
}
