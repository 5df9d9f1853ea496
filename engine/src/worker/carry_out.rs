//! Carries a decision out: edits and sends, floods, answers or drops; writes what was learned; caches what may be.

use super::Worker;
use super::ingress::FrameReading;
use crate::counters::Event;
use crate::drop_reason::DropReason;
use crate::edit::{CompiledRewrite, Subject};
use crate::flow_cache::Inserted;
use crate::packet::{Packet, PortIndex};
use crate::slow_path::{self, Decision, Forward, Lesson, Location, Verdict};
use crate::state::{Learned, LearningRules};
use crate::tables::{Change, FloodClass, PortRole, SegmentIndex, SegmentKind};
use crate::transmit::{Fate, Layout};

impl Worker {
    /// Decides the packet that is number `number` of the vector.
    pub(super) fn decide_packet(&mut self, number: usize, mut packet: Packet) {
        let Some(frame) = self.readings.get(number).copied() else {
            return outlet!(self).drop(packet, DropReason::PortUnknown);
        };
        // The flow's first packet may stand earlier in this very vector.
        match self.edit_hit(number, &mut packet) {
            Fate::Undecided => {}
            fate => return self.transmit.settle(&mut outlet!(self), packet, fate, &self.layouts[number]),
        }
        self.counters.event(Event::FlowCacheMiss).add(1);
        let mut decision = self.decide(&frame, &packet);
        if !self.learn(decision.lesson) {
            // What the packet would have taught does not hold: it moved too often, or others took the room. The state
            // says so now, so once more is enough.
            decision = self.decide(&frame, &packet);
        }
        match &decision.verdict {
            Verdict::Forward(forward) => {
                self.remember(number, &frame, forward, &decision);
                self.forward(number, &frame, forward, packet);
            }
            Verdict::Flood(class, copies) => self.flood(number, &frame, *class, copies, packet),
            Verdict::Reply(reply) => self.reply(&frame, *reply, packet),
            Verdict::Drop(reason) => outlet!(self).drop(packet, *reason),
            Verdict::Reject(reason, rejection) => self.reject(&frame, *reason, *rejection, packet),
        }
    }

    fn decide(&self, frame: &FrameReading, packet: &Packet) -> Decision {
        let arrival = frame.arrival(self.memory.head(packet), packet);
        slow_path::decide(&self.tables, &self.state, &arrival, self.now)
    }

    fn remember(&mut self, number: usize, frame: &FrameReading, forward: &Forward, decision: &Decision) {
        if !decision.cacheable || !frame.cacheable() {
            return;
        }
        let inserted = self.cache.insert(&self.batch, number, forward, &decision.dependencies, self.now_ms);
        match inserted {
            Inserted::New => self.counters.event(Event::FlowCacheInserted).add(1),
            Inserted::Replaced | Inserted::Uncacheable => {}
            Inserted::Evicting => {
                self.counters.event(Event::FlowCacheInserted).add(1);
                self.counters.event(Event::FlowCacheEvicted).add(1);
            }
            Inserted::Full => self.counters.event(Event::FlowCacheFull).add(1),
        }
    }

    fn forward(&mut self, number: usize, frame: &FrameReading, forward: &Forward, mut packet: Packet) {
        let subject = subject(frame, self.flow_hash(number, frame));
        let compiled = CompiledRewrite::new(&forward.rewrite);
        let (translation, egress) = (&forward.translation, forward.egress);
        let mut layout = Layout::default();
        let fate = Fate::of_edit(&self.memory, &mut packet, &subject, &compiled, translation, egress, &mut layout);
        self.transmit.settle(&mut outlet!(self), packet, fate, &layout);
    }

    fn flood(&mut self, number: usize, frame: &FrameReading, class: FloodClass, copies: &[Forward], packet: Packet) {
        if !self.take_from_storm_budget(frame, class, packet.ingress) {
            return outlet!(self).drop(packet, DropReason::StormControl);
        }
        self.counters.event(Event::Flooded).add(1);
        let Some((last, others)) = copies.split_last() else {
            return outlet!(self).drop(packet, DropReason::NoFloodTarget);
        };
        for forward in others {
            match self.memory.duplicate(&packet) {
                Some(copy) => {
                    self.counters.event(Event::FramesMade).add(1);
                    self.forward(number, frame, forward, copy);
                }
                None => {
                    self.counters.event(Event::FramesMade).add(1);
                    self.counters.drops(DropReason::FramesExhausted).add(1);
                }
            }
        }
        self.forward(number, frame, last, packet);
    }

    /// False if other packets have spent the port's budget since the frame was decided.
    fn take_from_storm_budget(&self, frame: &FrameReading, class: FloodClass, port: PortIndex) -> bool {
        let limit = match self.tables.ports.get(port).map(|port| &port.role) {
            Some(PortRole::Bridged(bridged)) if frame.tunnel.is_none() => bridged.storm.of(class),
            _ => None,
        };
        limit.is_none_or(|limit| self.state.storms.take(port, class, limit, self.now))
    }

    /// Writes what the packet taught; false if the packet must be decided again.
    fn learn(&mut self, lesson: Option<Lesson>) -> bool {
        let Some(Lesson::Station { segment, mac, location }) = lesson else { return true };
        let Some(rules) = self.learning_rules(segment, location) else { return true };
        match self.state.stations.learn(segment, mac, location, &rules, self.now) {
            Learned::New => self.counters.event(Event::MacLearned).add(1),
            Learned::Moved => {
                self.counters.event(Event::MacMoved).add(1);
                self.redecide(Change::Station(segment, mac));
            }
            Learned::Held => {
                self.counters.event(Event::MacHeld).add(1);
                return false;
            }
            Learned::PortFull => return false,
            Learned::Known | Learned::Full => {}
        }
        true
    }

    fn learning_rules(&self, segment: SegmentIndex, location: Location) -> Option<LearningRules> {
        let SegmentKind::Bridged(bridged) = &self.tables.segments.get(segment)?.kind else { return None };
        let limit = match location {
            Location::Port(port) => match &self.tables.ports.get(port)?.role {
                PortRole::Bridged(port) => port.station_limit,
                PortRole::Pod(_) | PortRole::Host(_) | PortRole::Uplink(_) | PortRole::Mirror => u32::MAX,
            },
            Location::Peer(_) => u32::MAX,
        };
        Some(LearningRules::of(bridged, limit))
    }

    /// The hash that spreads the flow over tunnel source ports: the cache's where there is a key, else of the
    /// addresses alone, so that all fragments of a packet take one path.
    pub(super) fn flow_hash(&self, number: usize, frame: &FrameReading) -> u64 {
        if frame.cacheable() { self.batch.hash(number) } else { address_hash(frame) }
    }
}

#[inline]
pub(super) fn subject(frame: &FrameReading, flow_hash: u64) -> Subject<'_> {
    Subject {
        headers: &frame.headers,
        inner_offset: frame.inner_offset,
        outer_traffic_class: frame.outer_traffic_class,
        flow_hash,
    }
}

fn address_hash(frame: &FrameReading) -> u64 {
    let word = |bytes: &[u8; 16]| u128::from_ne_bytes(*bytes);
    let mixed = word(&frame.headers.source).rotate_left(17) ^ word(&frame.headers.destination);
    ((mixed >> 64) as u64 ^ mixed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
