//! A queue that fails on demand: the fault of a worker, as a test sets it, without a hook in the worker itself.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::counters::WorkerCounters;
use crate::limits::VECTOR_PACKETS;
use crate::packet::{FrameMemory, FrameMemoryLayout, FrameSet, Packet, PortIndex};
use crate::port::{Capabilities, PortQueue, QueueDescription};

/// What goes wrong, each a number of times from now on.
#[derive(Debug, Default)]
pub struct Faults {
    /// Panics after frames were taken off the wire and before they are counted.
    pub receive: AtomicU32,
    /// Panics in the middle of sending: half of the packets are out.
    pub transmit: AtomicU32,
    /// Delivers a packet of another worker's memory behind the others, so that the first stage that reads it panics, with
    /// the vector in its hands. The frame is the test's own and is lost with the packet.
    pub foreign: AtomicU32,
    /// Stands still in `receive` for as long as this holds.
    pub stall: AtomicBool,
}

fn falls_due(fault: &AtomicU32) -> bool {
    fault.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

/// Another queue with faults.
pub struct FailingQueue {
    inner: Box<dyn PortQueue>,
    faults: Arc<Faults>,
    elsewhere: FrameMemory,
}

impl FailingQueue {
    /// `inner`, with faults.
    ///
    /// # Panics
    /// If the machine gives no memory.
    #[must_use]
    pub fn new(inner: Box<dyn PortQueue>, faults: Arc<Faults>) -> Self {
        let elsewhere = FrameMemory::new(FrameMemoryLayout { head_frames: 64, big_buffers: 0 }).expect("memory");
        Self { inner, faults, elsewhere }
    }
}

impl PortQueue for FailingQueue {
    fn receive(&mut self, memory: &mut FrameMemory, vector: &mut Vec<Packet>) -> usize {
        while self.faults.stall.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let received = self.inner.receive(memory, vector);
        if received == 0 {
            return 0;
        }
        assert!(!falls_due(&self.faults.receive), "a fault that the test set in receive");
        if vector.len() < VECTOR_PACKETS && falls_due(&self.faults.foreign) {
            let mut packet = self.elsewhere.packet_from(&[0; 60]).expect("a frame");
            packet.ingress = self.port();
            vector.push(packet);
            return received + 1;
        }
        received
    }

    fn transmit(&mut self, memory: &mut FrameMemory, packets: &mut Vec<Packet>, counters: &WorkerCounters) {
        if !packets.is_empty() && falls_due(&self.faults.transmit) {
            let mut half: Vec<Packet> = packets.drain(..packets.len() / 2).collect();
            self.inner.transmit(memory, &mut half, counters);
            panic!("a fault that the test set in transmit");
        }
        self.inner.transmit(memory, packets, counters);
    }

    fn flush(&mut self, memory: &mut FrameMemory) -> bool {
        self.inner.flush(memory)
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn readable_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inner.readable_descriptor()
    }

    fn is_cheap_to_poll(&self) -> bool {
        self.inner.is_cheap_to_poll()
    }

    fn prepare_to_sleep(&mut self) -> bool {
        self.inner.prepare_to_sleep()
    }

    fn lent_frames(&self) -> usize {
        self.inner.lent_frames()
    }

    fn recover(&mut self, memory: &FrameMemory, held: &mut FrameSet) {
        self.inner.recover(memory, held);
    }

    fn port(&self) -> PortIndex {
        self.inner.port()
    }

    fn describe(&self) -> QueueDescription {
        self.inner.describe()
    }

    fn kernel_drops(&self) -> u64 {
        self.inner.kernel_drops()
    }

    fn close(&mut self, memory: &mut FrameMemory) {
        self.inner.close(memory);
    }
}
