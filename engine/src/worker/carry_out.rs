//! Carries a decision out: edits and sends, floods, answers or drops; writes what was learned; caches what may be.

use super::Worker;
use super::ingress::FrameReading;
use crate::counters::Event;
use crate::drop_reason::DropReason;
use crate::edit::{CompiledRewrite, Subject, Translation, renumber};
use crate::flow_cache::Inserted;
use crate::limits::CONNECTION_ATTEMPTS;
use crate::packet::parse::flag;
use crate::packet::{Mac, Packet, PortIndex};
use crate::slow_path::service::{By, Pick};
use crate::slow_path::{self, Decision, Forward, Lesson, Location, Reason, Verdict};
use crate::state::{
    Advanced, CachePlace, ConnectionFlags, ConnectionReference, Direction, FragmentKey, Learned, LearningRules,
    NewConnection, Opened, Removed,
};
use crate::tables::policy::Denial;
use crate::tables::{Change, FloodClass, HandBack, PortRole, SegmentIndex, SegmentKind};
use crate::transmit::{Fate, Layout};

/// The connection a packet belongs to, and its direction.
type OwnConnection = Option<(ConnectionReference, Direction)>;

/// A later fragment that has to wait: what its packet is known by, and where it goes if its first one does not come.
type Waiting = (FragmentKey, Option<HandBack>, Packet);

/// What became of a packet's lesson.
enum Learning {
    /// It is written.
    Done(OwnConnection),
    /// Something else was true meanwhile: decide again.
    Again,
    /// The packet must be dropped instead.
    Refused(DropReason),
}

impl Worker {
    /// Decides the packet that is number `number` of the vector.
    pub(super) fn decide_packet(&mut self, number: usize, mut packet: Packet) {
        // The flow's first packet may stand earlier in this very vector.
        if self.set_aside & (1 << number) == 0 {
            match self.edit_hit(number, &mut packet) {
                Fate::Undecided => {}
                fate => return self.transmit.settle(&mut outlet!(self), packet, fate, &self.layouts[number]),
            }
        }
        self.read_whole(number, &packet);
        let frame = self.readings[number];
        if let Some(reason) = frame.refused {
            return outlet!(self).drop(packet, reason);
        }
        self.counters.event(Event::FlowCacheMiss).add(1);
        if let Some((key, otherwise, packet)) = self.decide_read(number, &frame, packet) {
            self.hold(key, otherwise, packet);
        }
    }

    /// Decides a packet that was read, which is number `number` of the vector if the cache may serve it. Returns a later
    /// fragment that has to wait for its first one.
    pub(super) fn decide_read(&mut self, number: usize, frame: &FrameReading, packet: Packet) -> Option<Waiting> {
        let (decision, learned) = self.decide(frame, &packet);
        if !self.ports.is_captured() {
            return self.carry_out(number, frame, decision, learned, packet);
        }
        self.begin_captured(frame, &decision, learned.err(), &packet);
        let waiting = self.carry_out(number, frame, decision, learned, packet);
        self.end_captured();
        waiting
    }

    /// Carries a decision out. Returns a later fragment that has to wait for its first one.
    fn carry_out(
        &mut self,
        number: usize,
        frame: &FrameReading,
        decision: Decision,
        learned: Result<OwnConnection, DropReason>,
        packet: Packet,
    ) -> Option<Waiting> {
        let connection = match learned {
            Ok(connection) => connection,
            Err(reason) => {
                outlet!(self).drop(packet, reason);
                return None;
            }
        };
        if let Some(pick) = &decision.pick {
            self.picked(pick);
        }
        let awaited = decision.fragment.map(|(key, said)| (key, self.state.fragments.remember(key, said, self.now)));
        self.count_policies(frame, &decision);
        match &decision.verdict {
            Verdict::Forward(forward) => {
                self.remember(number, frame, forward, &decision, connection);
                self.forward(number, frame, forward, packet);
            }
            Verdict::Flood(class, copies) => self.flood(number, frame, *class, copies, packet),
            Verdict::Reply(reply) => self.reply(frame, *reply, packet),
            Verdict::HandBack(target) => self.hand_back(*target, packet),
            Verdict::Hold(key, otherwise) => return Some((*key, *otherwise, packet)),
            Verdict::Drop(reason) => outlet!(self).drop(packet, *reason),
            Verdict::Reject(reason, rejection) => self.reject(frame, *reason, *rejection, packet),
        }
        if let Some((key, remembered)) = awaited {
            self.counters.event(Event::FragmentsEvicted).add(u64::from(remembered.evicted));
            self.first_fragment_came(key, remembered.awaited_by);
        }
        None
    }

    /// Counts what policies did, each with the policy that did it, and notes denials that are to be logged.
    fn count_policies(&self, frame: &FrameReading, decision: &Decision) {
        for step in decision.trail.steps() {
            match &step.reason {
                Reason::Allowed(_, list, place) => list.counts.count_used(*place),
                Reason::Denied(direction, denial, _) => {
                    if !denial.is_unknown() {
                        denial.lists().iter().for_each(|list| list.counts.count_denied());
                    }
                    if let Denial::Rule(list, place) = denial {
                        list.counts.count_used(*place);
                    }
                    self.state.denials.note(*direction, denial, &frame.headers);
                }
                _ => {}
            }
        }
    }

    /// Decides, and writes what the packet taught; once more where another worker was faster.
    fn decide(&mut self, frame: &FrameReading, packet: &Packet) -> (Decision, Result<OwnConnection, DropReason>) {
        let mut attempt = 0;
        loop {
            let arrival = frame.arrival(self.memory.head(packet), packet);
            let decision = if self.ports.is_captured() {
                slow_path::decide(&self.tables, &self.state, &arrival, self.now)
            } else {
                slow_path::decide_untold(&self.tables, &self.state, &arrival, self.now)
            };
            match self.learn(decision.lesson, attempt) {
                Learning::Done(connection) => return (decision, Ok(connection)),
                Learning::Refused(reason) => return (decision, Err(reason)),
                Learning::Again if attempt + 1 == CONNECTION_ATTEMPTS => {
                    return (decision, Err(DropReason::ConnectionRaced));
                }
                Learning::Again => attempt += 1,
            }
        }
    }

    /// Reads all that can be read of the packet; of a plain one only so much was as the cache needs.
    pub(super) fn read_whole(&mut self, number: usize, packet: &Packet) {
        if self.plains[number].take().is_some() {
            self.ingress.read(&mut self.readings[number], &self.tables, &self.memory, packet);
        }
    }

    fn remember(
        &mut self,
        number: usize,
        frame: &FrameReading,
        forward: &Forward,
        decision: &Decision,
        connection: OwnConnection,
    ) {
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
        if let Some((reference, direction)) = connection {
            let slot = self.cache.bind(&self.batch, number, reference);
            let place = slot.and_then(|slot| CachePlace::new(self.number, slot));
            self.state.connections.set_place(reference, direction, place);
        }
    }

    fn forward(&mut self, number: usize, frame: &FrameReading, forward: &Forward, mut packet: Packet) {
        if frame.headers.has(flag::FRAGMENT) && forward.translation != Translation::NONE {
            let network = frame.inner_offset + usize::from(frame.headers.network_offset);
            let added = self.state.fragments.renumbering(&frame.headers);
            if let Err(reason) = renumber(self.memory.head_mut(&mut packet), network, frame.headers.network, added) {
                return outlet!(self).drop(packet, reason);
            }
        }
        let subject = subject(frame, self.flow_hash(number, frame));
        let compiled = CompiledRewrite::new(&forward.rewrite);
        let (translation, egress) = (&forward.translation, forward.egress);
        let mut layout = Layout::default();
        let fate = Fate::of_edit(&self.memory, &mut packet, &subject, &compiled, translation, egress, &mut layout);
        self.transmit.settle(&mut outlet!(self), packet, fate, &layout);
    }

    /// Gives a frame of an uplink to the host's kernel: what the kernel would have got, but for the interface it comes by
    /// and the MAC address, which is that interface's.
    pub(super) fn hand_back(&mut self, target: HandBack, mut packet: Packet) {
        match self.memory.head_mut(&mut packet).first_chunk_mut::<6>() {
            Some(destination) => *destination = target.mac.0,
            None => return outlet!(self).drop(packet, DropReason::EthernetTruncated),
        }
        self.counters.event(Event::HandedBack).add(1);
        self.transmit.settle(&mut outlet!(self), packet, Fate::Leaves(target.port), &Layout::default());
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

    /// Writes what a packet taught, at the attempt of this number.
    fn learn(&mut self, lesson: Option<Lesson>, attempt: usize) -> Learning {
        match lesson {
            None => Learning::Done(None),
            Some(Lesson::Station { segment, mac, location }) => {
                // What the packet would have taught may not hold: it moved too often, or others took the room. The state
                // says so now, so once more is enough.
                let learned = self.learn_station(segment, mac, location);
                if learned || attempt > 0 { Learning::Done(None) } else { Learning::Again }
            }
            Some(Lesson::Wants { port, neighbour }) => {
                self.state.wanted.ask(port, neighbour);
                Learning::Done(None)
            }
            Some(Lesson::Open(new)) => self.open(&new),
            Some(Lesson::Advance { connection, direction, signal }) => self.advance(connection, direction, signal),
        }
    }

    fn open(&mut self, new: &NewConnection) -> Learning {
        // Counted before it is there: it may end on another worker at once.
        let counted = new.service != 0 && self.state.endpoint_loads.opened(new.service, new.endpoint);
        let flags = if counted { new.flags.with(ConnectionFlags::COUNTED) } else { new.flags };
        let mut ended = std::mem::take(&mut self.ended);
        let opened =
            self.state.connections.open(&NewConnection { flags, ..*new }, self.now, |removed| ended.push(removed));
        for removed in ended.drain(..) {
            self.counters.event(Event::ConnectionsEvicted).add(u64::from(removed.evicted));
            self.connection_ended(&removed);
        }
        self.ended = ended;
        if counted && !matches!(opened, Opened::New(_)) {
            self.state.endpoint_loads.not_opened(new.service, new.endpoint);
        }
        match opened {
            Opened::New(reference) => {
                self.counters.event(Event::ConnectionsNew).add(1);
                Learning::Done(Some((reference, Direction::Original)))
            }
            Opened::Taken => Learning::Again,
            Opened::Full => {
                self.counters.event(Event::ConnectionsFull).add(1);
                Learning::Refused(DropReason::ConnectionsFull)
            }
        }
    }

    /// Counts an endpoint that was picked, and remembers it for its client.
    fn picked(&mut self, pick: &Pick) {
        self.counters.event(Event::ServicePicked).add(1);
        self.counters.event(Event::ServiceAffinity).add(u64::from(pick.by == By::Affinity));
        self.counters.event(Event::ServiceRetried).add(u64::from(pick.again));
        let Some(timeout) = pick.affinity else { return };
        let Pick { service, client, endpoint, .. } = *pick;
        let remembered = self.state.affinities.remember(service, client, endpoint, timeout, self.now);
        self.counters.event(Event::ServiceAffinityFull).add(u64::from(!remembered));
    }

    /// A connection is gone: nobody may serve it from a cache, and its endpoint has one less.
    pub(super) fn connection_ended(&mut self, ended: &Removed) {
        if let Some((service, endpoint)) = ended.counted {
            self.state.endpoint_loads.ended(service, endpoint);
        }
        self.forget(ended.reference, ended.places);
    }

    fn advance(&mut self, connection: ConnectionReference, direction: Direction, signal: u8) -> Learning {
        match self.state.connections.advance(connection, direction, signal, self.now) {
            Advanced::Goes => Learning::Done(Some((connection, direction))),
            Advanced::Unsettled(places) => {
                self.forget(connection, places);
                Learning::Done(Some((connection, direction)))
            }
            Advanced::Gone => Learning::Again,
        }
    }

    /// False if the packet must be decided again.
    fn learn_station(&mut self, segment: SegmentIndex, mac: Mac, location: Location) -> bool {
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
