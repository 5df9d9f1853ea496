//! Carries a decision out: edits and sends, floods, answers or drops; writes what was learned; caches what may be.

use super::Worker;
use super::ingress::FrameReading;
use crate::counters::Event;
use crate::drop_reason::DropReason;
use crate::edit::{CompiledRewrite, Subject};
use crate::flow_cache::Inserted;
use crate::packet::Packet;
use crate::slow_path::{self, Decision, Forward, Lesson, Verdict};
use crate::state::Learned;
use crate::tables::Change;
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
        let arrival = frame.arrival(self.memory.head(&packet), &packet);
        let decision = slow_path::decide(&self.tables, &self.state, &arrival, self.now);
        self.learn(decision.lesson);
        match &decision.verdict {
            Verdict::Forward(forward) => {
                self.remember(number, &frame, forward, &decision);
                self.forward(number, &frame, forward, packet);
            }
            Verdict::Flood(copies) => self.flood(number, &frame, copies, packet),
            Verdict::Reply(reply) => self.reply(&frame, *reply, packet),
            Verdict::Drop(reason) => outlet!(self).drop(packet, *reason),
            Verdict::Reject(reason, rejection) => self.reject(&frame, *reason, *rejection, packet),
        }
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

    fn flood(&mut self, number: usize, frame: &FrameReading, copies: &[Forward], packet: Packet) {
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

    fn learn(&mut self, lesson: Option<Lesson>) {
        let Some(Lesson::Station { segment, mac, location }) = lesson else { return };
        match self.state.stations.learn(segment, mac, location, self.now) {
            Learned::New => self.counters.event(Event::MacLearned).add(1),
            Learned::Moved => {
                self.counters.event(Event::MacMoved).add(1);
                self.redecide(Change::Station(segment, mac));
            }
            Learned::Known | Learned::Full => {}
        }
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
