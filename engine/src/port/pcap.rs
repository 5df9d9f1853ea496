//! Replay and record: a port whose arrivals come from a capture file and whose departures go to another.
//!
//! Deterministic: a frame arrives when the replay's [`ManualClock`] has reached its time stamp, departures bear the
//! clock's time, and nothing else has a part in it, so the same files give the same bytes. No root, no thread.
//! ```text
//!  Capture::open -> Replay::new(clock, captures) -> Replay::queue -> Switch::attach
//!  while replay.advance() { switch.settle(..) }      recording.finish()
//! ```
//! Cost: a capture lies in memory whole (`limits::CAPTURE_BYTES` each); recording takes a lock a vector and writes
//! to its sink, which a packet path of a live switch would not want.

mod capture;
mod pcapng;
mod recording;
#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

pub use capture::{Capture, CaptureError, CaptureFault, CapturedFrame};
pub use recording::{RecordedFrame, Recording};

use super::{Capabilities, PortQueue, QueueDescription};
use crate::clock::{Clock, ManualClock, Time};
use crate::counters::WorkerCounters;
use crate::drop_reason::DropReason;
use crate::limits;
use crate::packet::{Checksum, FrameMemory, Packet, PortIndex};

/// Captures being replayed on one clock, whose origin is the earliest frame of all.
#[derive(Debug)]
pub struct Replay {
    clock: ManualClock,
    /// Nanoseconds since 1970 that the clock calls zero.
    origin: u64,
    /// When frames arrive, each time once, by the clock.
    arrivals: Vec<u64>,
    next: usize,
}

impl Replay {
    /// A replay of all these captures. Moves `clock` with [`Replay::advance`]; it should stand at zero.
    pub fn new<'a>(clock: ManualClock, captures: impl IntoIterator<Item = &'a Capture>) -> Self {
        let mut arrivals: Vec<u64> =
            captures.into_iter().flat_map(|capture| capture.frames().map(|frame| frame.time)).collect();
        arrivals.sort_unstable();
        arrivals.dedup();
        let origin = arrivals.first().copied().unwrap_or(0);
        arrivals.iter_mut().for_each(|time| *time -= origin);
        Self { clock, origin, arrivals, next: 0 }
    }

    /// A queue on which the frames of `capture` arrive and which behaves as a device with `capabilities`; what the
    /// switch sends goes to `recording`, or nowhere.
    #[must_use]
    pub fn queue(
        &self,
        port: PortIndex,
        capture: Arc<Capture>,
        recording: Option<Recording>,
        capabilities: Capabilities,
    ) -> PcapQueue {
        let clock = Clock::Manual(self.clock.clone());
        PcapQueue { port, capture, next: 0, recording, capabilities, clock, origin: self.origin }
    }

    /// Moves the clock to the next arrival. False, and the clock unchanged, when there is none.
    pub fn advance(&mut self) -> bool {
        let Some(time) = self.arrivals.get(self.next) else { return false };
        self.clock.set(Time::from_nanoseconds(*time));
        self.next += 1;
        true
    }
}

/// A port of a replay.
#[derive(Debug)]
pub struct PcapQueue {
    port: PortIndex,
    capture: Arc<Capture>,
    next: usize,
    recording: Option<Recording>,
    capabilities: Capabilities,
    clock: Clock,
    origin: u64,
}

impl PcapQueue {
    /// A wire at this MTU: frames are recorded as they would leave a NIC, cut and with complete checksums.
    #[must_use]
    pub const fn wire(mtu: usize) -> Capabilities {
        Capabilities {
            tcp_segmentation: false,
            udp_segmentation: false,
            partial_checksum: false,
            chained: true,
            joins: false,
            joins_datagrams: false,
            tunnels: false,
            frame_bytes: mtu + 18,
        }
    }

    fn is_due(&self) -> bool {
        let now = self.origin.saturating_add(self.clock.now().nanoseconds());
        self.capture.frame(self.next).is_some_and(|frame| frame.time <= now)
    }

    fn record(&self, memory: &FrameMemory, packet: &Packet, time: u64) -> bool {
        let comment = comment(packet);
        let write = |recording: &Recording| recording.write(time, memory.parts(packet), comment.as_deref());
        self.recording.as_ref().is_none_or(write)
    }
}

/// What the bytes alone do not tell; only ports that take units or partial checksums have any.
fn comment(packet: &Packet) -> Option<String> {
    let unit = packet.gso().map(|gso| format!("unit in segments of {} bytes", gso.size));
    let partial = matches!(packet.checksum(), Checksum::Partial { .. }).then(|| "partial checksum".to_owned());
    match (unit, partial) {
        (Some(unit), Some(partial)) => Some(format!("{unit}, {partial}")),
        (unit, partial) => unit.or(partial),
    }
}

impl PortQueue for PcapQueue {
    fn receive(&mut self, memory: &mut FrameMemory, vector: &mut Vec<Packet>) -> usize {
        let (before, mut bytes) = (vector.len(), 0);
        while vector.len() < limits::VECTOR_PACKETS && bytes < limits::VECTOR_BYTES && self.is_due() {
            let Some(frame) = self.capture.frame(self.next) else { break };
            let Some(mut packet) = memory.packet_from(frame.bytes) else { break };
            packet.ingress = self.port;
            bytes += packet.length();
            vector.push(packet);
            self.next += 1;
        }
        vector.len() - before
    }

    fn transmit(&mut self, memory: &mut FrameMemory, packets: &mut Vec<Packet>, counters: &WorkerCounters) {
        let port = counters.port(self.port.0 as usize);
        let time = self.origin.saturating_add(self.clock.now().nanoseconds());
        for packet in packets.drain(..) {
            if self.record(memory, &packet, time) {
                port.sent_frames.add(1);
                port.sent_bytes.add(packet.length() as u64);
            } else {
                counters.drops(DropReason::PortRefused).add(1);
                counters.port(packet.ingress.0 as usize).dropped_frames.add(1);
            }
            memory.release(packet);
        }
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
        !self.is_due()
    }

    fn lent_frames(&self) -> usize {
        0
    }

    fn port(&self) -> PortIndex {
        self.port
    }

    fn describe(&self) -> QueueDescription {
        let frames = self.capture.len();
        QueueDescription { kind: "pcap", mode: format!("replay of {frames} frames, {} to come", frames - self.next) }
    }

    fn kernel_drops(&self) -> u64 {
        0
    }

    fn close(&mut self, _memory: &mut FrameMemory) {}
}
