//! The way of copies from a worker to whoever reads them: two rings of slots, one with full and one with free ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rtrb::{Consumer, Producer, RingBuffer};

use super::{CaptureFilter, Captured, Moment};
use crate::clock::Time;
use crate::limits::{CAPTURE_SLOT_BYTES, CAPTURE_SLOTS};
use crate::packet::{FrameMemory, Packet};

/// The worker's end.
#[derive(Debug)]
pub struct CaptureWriter {
    filter: Arc<CaptureFilter>,
    full: Producer<Captured>,
    /// Room for frames.
    free: Consumer<Vec<u8>>,
    lost: Arc<AtomicU64>,
    /// The packet whose moments are being copied.
    current: Option<u32>,
    last: u32,
}

/// The other end.
#[derive(Debug)]
pub struct CaptureReader {
    full: Consumer<Captured>,
    free: Producer<Vec<u8>>,
    lost: Arc<AtomicU64>,
}

/// A capture of one worker's packets: `limits::CAPTURE_SLOTS` slots of `limits::CAPTURE_SLOT_BYTES`.
#[must_use]
pub fn capture(filter: &Arc<CaptureFilter>) -> (CaptureWriter, CaptureReader) {
    let (full, filled) = RingBuffer::new(CAPTURE_SLOTS);
    let (mut free, emptied) = RingBuffer::new(CAPTURE_SLOTS);
    for _ in 0..CAPTURE_SLOTS {
        // As many as there is room for.
        let _ = free.push(Vec::with_capacity(CAPTURE_SLOT_BYTES));
    }
    let lost = Arc::new(AtomicU64::new(0));
    let (filter, its_lost) = (Arc::clone(filter), Arc::clone(&lost));
    let writer = CaptureWriter { filter, full, free: emptied, lost: its_lost, current: None, last: 0 };
    (writer, CaptureReader { full: filled, free, lost })
}

impl CaptureWriter {
    /// Which packets it is of.
    #[must_use]
    pub fn filter(&self) -> &CaptureFilter {
        &self.filter
    }

    /// Whether nobody reads any more.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.full.is_abandoned()
    }

    /// The packet whose moments are being copied, if there is one.
    #[must_use]
    pub fn current(&self) -> Option<u32> {
        self.current
    }

    /// From here on it is another packet's moments.
    pub fn begin_packet(&mut self) {
        self.last = self.last.checked_add(1).unwrap_or(1);
        self.current = Some(self.last);
    }

    /// The packet has met its fate.
    pub fn end_packet(&mut self) {
        self.current = None;
    }

    /// Copies a packet as it is at this moment.
    pub fn copy(&mut self, memory: &FrameMemory, packet: &Packet, time: Time, moment: Moment) {
        let Ok(mut bytes) = self.free.pop() else {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        };
        bytes.clear();
        for part in memory.parts(packet) {
            let room = CAPTURE_SLOT_BYTES - bytes.len();
            bytes.extend_from_slice(&part[..part.len().min(room)]);
        }
        let captured = Captured {
            packet: self.current.unwrap_or(0),
            time,
            ingress: packet.ingress,
            gso: packet.gso(),
            moment,
            length: packet.length(),
            bytes,
        };
        // There are as many places as slots.
        let _ = self.full.push(captured);
    }
}

impl CaptureReader {
    /// The oldest copy that was not read yet.
    pub fn next(&mut self) -> Option<Captured> {
        let mut captured = self.full.pop().ok()?;
        let told = captured.bytes.clone();
        // The slot goes back: there is room for all there are.
        let _ = self.free.push(std::mem::replace(&mut captured.bytes, told));
        Some(captured)
    }

    /// Copies that found no free slot since the last call.
    pub fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }
}
