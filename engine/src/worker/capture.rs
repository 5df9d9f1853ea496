//! What a worker does while packets are captured: finds those concerned, decides them by the stages, copies them.
//!
//! Nothing here is called for a vector while no capture runs. Packets of one flow are concerned alike, so that taking
//! some of a vector out of the flow cache's way does not let them change places with others of their flow.

use super::Worker;
use super::ingress::FrameReading;
use crate::capture::{CaptureWriter, Decided, Moment};
use crate::drop_reason::DropReason;
use crate::packet::{Packet, PortIndex};
use crate::slow_path::{Decision, Forward, Verdict};
use crate::transmit::Fate;

impl Worker {
    /// Begins or ends a capture; returns the one that ends, for whoever asked to free it.
    pub(super) fn set_capture(&mut self, capture: Option<Box<CaptureWriter>>) -> Option<Box<CaptureWriter>> {
        self.transmit.set_captured(capture.is_some());
        self.set_aside = 0;
        std::mem::replace(self.ports.capture_mut(), capture)
    }

    /// As for any vector, but the packets that the capture is of are not served by the flow cache.
    #[cold]
    pub(super) fn edit_hits_captured(&mut self) {
        if self.ports.capture_mut().as_ref().is_some_and(|capture| capture.is_abandoned()) {
            // Its reader ended without a word.
            drop(self.set_capture(None));
        }
        self.set_aside = 0;
        let mut vector = std::mem::take(&mut self.vector);
        for (number, packet) in vector.iter_mut().enumerate() {
            self.fates[number] = if self.is_concerned(number, packet) {
                self.set_aside |= 1 << number;
                Fate::Undecided
            } else {
                self.edit_hit(number, packet)
            };
        }
        self.vector = vector;
    }

    /// Whether the capture is of a packet that the flow cache could serve.
    fn is_concerned(&mut self, number: usize, packet: &Packet) -> bool {
        let cached = self.cache.egress(&self.batch, number);
        let Some(filter) = self.ports.capture_mut().as_ref().map(|capture| capture.filter()) else { return false };
        // What the cache serves does not drop by a decision.
        if filter.drops.is_some() || !filter.has_port(packet.ingress, cached.into_iter()) {
            return false;
        }
        if filter.flow.is_empty() {
            return true;
        }
        self.read_whole(number, packet);
        let frame = &self.readings[number];
        let filter = self.ports.capture_mut().as_ref().map(|capture| capture.filter());
        frame.refused.is_none() && filter.is_some_and(|filter| filter.flow.matches(&frame.headers))
    }

    /// Copies a packet that was just decided, if the capture is of it; what follows until [`Worker::end_captured`] is its.
    #[cold]
    pub(super) fn begin_captured(
        &mut self,
        frame: &FrameReading,
        decision: &Decision,
        refused: Option<DropReason>,
        packet: &Packet,
    ) {
        let (now, memory, tables) = (self.now, &self.memory, &self.tables);
        let Some(capture) = self.ports.capture_mut() else { return };
        let filter = capture.filter();
        let dropped = refused.or(match &decision.verdict {
            Verdict::Drop(reason) | Verdict::Reject(reason, _) => Some(*reason),
            _ => None,
        });
        let is_wanted = filter.has_port(packet.ingress, egress(&decision.verdict))
            && filter.has_fate(dropped)
            && filter.flow.matches(&frame.headers);
        if is_wanted {
            let decided = Decided { tables: tables.clone(), decision: decision.clone(), refused };
            capture.begin_packet();
            capture.copy(memory, packet, now, Moment::Arrived(Box::new(decided)));
        }
    }

    /// The packet has met its fate.
    #[cold]
    pub(super) fn end_captured(&mut self) {
        if let Some(capture) = self.ports.capture_mut() {
            capture.end_packet();
        }
    }
}

/// The ports a packet leaves by.
fn egress(verdict: &Verdict) -> impl Iterator<Item = PortIndex> {
    let (one, many): (Option<PortIndex>, &[Forward]) = match verdict {
        Verdict::Forward(forward) => (Some(forward.egress), &[]),
        Verdict::HandBack(target) | Verdict::Hold(_, Some(target)) => (Some(target.port), &[]),
        Verdict::Flood(_, copies) => (None, copies),
        Verdict::Reply(_) | Verdict::Hold(_, None) | Verdict::Drop(_) | Verdict::Reject(..) => (None, &[]),
    };
    one.into_iter().chain(many.iter().map(|forward| forward.egress))
}
