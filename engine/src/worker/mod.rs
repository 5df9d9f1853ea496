//! START HERE: the whole life of a packet on one worker.
//!
//! ```text
//! port.receive -> read -> flow_cache.lookup -+-> edit -> transmit -> port.send
//!                                            |
//!                                       miss: slow_path::decide -> carry out -> entry
//! ```
//! A worker is one pinned thread with its own queues, frames, flow cache and counters; it shares published tables
//! (read only), learned state (slow path only) and lanes with other workers, and nothing else. [`Worker::turn`] is
//! called by the worker's thread, or by a test that drives time itself: there is no other loop.

/// The parts of a worker that transmit works with, borrowed apart from the rest.
macro_rules! outlet {
    ($worker:expr) => {
        crate::transmit::Outlet { ports: &mut $worker.ports, memory: &mut $worker.memory, counters: &$worker.counters }
    };
}

mod anticipate;
mod bandwidth;
mod carry_out;
mod commands;
mod housekeeping;
mod idle;
mod ingress;
mod late_fragments;
mod mirror;
mod originate;
mod parts;
mod placement;
mod ports;
mod time_slice;

use std::sync::Arc;

pub use commands::{AttachError, Command, FlowReport, QueueReport};
pub use idle::{IdlePolicy, Sleeper, Waker};
pub use ingress::explain;
pub use parts::Parts;
pub use ports::Ports;

use crate::clock::{Clock, Time};
use crate::counters::{Event, WorkerCounters};
use crate::cycles::{Stopwatch, Work};
use crate::edit;
use crate::flow_cache::{FlowCache, LookupBatch};
use crate::limits::VECTOR_PACKETS;
use crate::packet::parse::Plain;
use crate::packet::{FrameMemory, Packet};
use crate::port::af_xdp::Umem;
use crate::state::{Removed, State, Way};
use crate::tables::{Snapshot, Subscription};
use crate::transmit::{Fate, LaneReceiver, Layout, Outlet, Transmit};
use ingress::{FrameReading, IngressTable};
use late_fragments::LateFragments;

/// How many packets ahead of the one that is parsed a packet's memory is asked for.
const PREFETCH_PACKETS: usize = 12;

/// What a worker is made of.
pub struct Worker {
    number: usize,
    clock: Clock,
    now: Time,
    /// `now` as the flow cache keeps it.
    now_ms: u32,
    subscription: Subscription,
    tables: Arc<Snapshot>,
    state: Arc<State>,
    memory: FrameMemory,
    umem: Umem,
    ports: Ports,
    ingress: IngressTable,
    cache: FlowCache,
    batch: LookupBatch,
    vector: Vec<Packet>,
    /// What was read of each plain packet of the vector.
    plains: [Option<Plain>; VECTOR_PACKETS],
    /// What was read of each other packet of the vector: one slot for each, used again for the next vector.
    readings: Vec<FrameReading>,
    /// What becomes of each packet of the vector.
    fates: [Fate; VECTOR_PACKETS],
    /// Where the headers of each packet lie, where its fate asks for it.
    layouts: [Layout; VECTOR_PACKETS],
    misses: Vec<Packet>,
    /// The numbers of the misses in the vector.
    missed: Vec<u8>,
    /// Packets of the vector that the cache served.
    hits: u64,
    transmit: Transmit,
    lanes: Vec<LaneReceiver>,
    icmp_budget: originate::IcmpBudget,
    commands: crossbeam::channel::Receiver<Command>,
    others: Vec<Option<crossbeam::channel::Sender<Command>>>,
    /// Fragments that wait for their first one.
    late: LateFragments,
    /// Connections that one step of the scan ended.
    ended: Vec<Removed>,
    sleeper: Sleeper,
    counters: Arc<WorkerCounters>,
    stopwatch: Stopwatch,
    stopping: bool,
}

impl Worker {
    /// One turn: every port that may have packets once, then what time asks for. True if anything moved.
    pub fn turn(&mut self) -> bool {
        self.begin_turn();
        let mut busy = self.receive_lanes();
        self.ports.poll_ready();
        while let Some(port) = self.ports.next_ready() {
            let before = self.stopwatch.so_far();
            let received = self.ports.receive(port, &mut self.memory, &mut self.vector, &self.counters);
            self.stopwatch.lap(Work::Receive);
            busy |= received > 0;
            if self.ports.limits_bandwidth(port, Way::FromPort) {
                self.keep_to_rate(port);
            }
            self.forward_vector();
            if self.stopwatch.count_vector(received) {
                self.counters.measured(port.0 as usize, received, self.stopwatch.so_far() - before);
            }
        }
        self.transmit.flush(&mut outlet!(self));
        self.stopwatch.lap(Work::Transmit);
        self.housekeeping();
        self.stopwatch.lap(Work::Housekeeping);
        self.stopwatch.end_turn(&self.counters.cycles);
        busy
    }

    /// Forwards the packets of `vector`: hits at once, misses behind them as a batch.
    fn forward_vector(&mut self) {
        if self.vector.is_empty() {
            return;
        }
        self.counters.event(Event::Vectors).add(1);
        self.read_vector();
        self.stopwatch.lap(Work::Read);
        if !self.transmit.mirrors().is_empty() {
            self.mirror_vector();
        }
        self.cache.lookup(&mut self.batch);
        self.stopwatch.lap(Work::LookUp);
        self.edit_hits();
        self.stopwatch.lap(Work::Edit);
        self.send_hits();
        self.stopwatch.lap(Work::Send);
        self.decide_misses();
        self.stopwatch.lap(Work::Decide);
        self.counters.event(Event::FlowCacheHit).add(std::mem::take(&mut self.hits));
    }

    /// Reads every packet; those the cache may serve get a key, the others a reason.
    fn read_vector(&mut self) {
        self.batch.clear();
        self.vector.iter().take(PREFETCH_PACKETS).for_each(|packet| self.memory.prefetch(packet));
        for (number, packet) in self.vector.iter().enumerate() {
            if let Some(later) = self.vector.get(number + PREFETCH_PACKETS) {
                self.memory.prefetch(later);
            }
            if let Some((plain, front, ingress)) = self.ingress.read_plain(&self.tables, &self.memory, packet) {
                self.plains[number] = Some(plain);
                self.batch.push_plain(number, front, ingress);
                continue;
            }
            self.plains[number] = None;
            let frame = &mut self.readings[number];
            self.ingress.read(frame, &self.tables, &self.memory, packet);
            if let Some(macs) = frame.macs_of_cacheable(self.memory.head(packet)) {
                self.batch.push(number, &frame.headers, macs, frame.ingress);
            }
        }
    }

    /// Edits the packets whose flow the cache knows; says of each packet what becomes of it.
    fn edit_hits(&mut self) {
        let mut vector = std::mem::take(&mut self.vector);
        for (number, packet) in vector.iter_mut().enumerate() {
            self.fates[number] = self.edit_hit(number, packet);
        }
        self.vector = vector;
    }

    /// Edits one packet as its flow's entry says. It stays undecided if there is no entry, or if the slow path has to tell
    /// the sender why it cannot be sent on.
    #[inline(always)]
    fn edit_hit(&mut self, number: usize, packet: &mut Packet) -> Fate {
        let (plain, frame) = (&self.plains[number], &mut self.readings[number]);
        let offset = match plain {
            Some(plain) => usize::from(plain.offset),
            None if let Some(reason) = frame.refused => return Fate::Dropped(reason),
            None => frame.inner_offset.min(packet.length()),
        };
        let (batch, bytes) = (&self.batch, packet.length() - offset);
        let Some(action) = self.cache.take_hit(batch, number, bytes, self.now_ms) else { return Fate::Undecided };
        if let Some(plain) = plain {
            if !action.rewrite.fits(plain) {
                return Fate::Undecided;
            }
            let hash = || batch.hash(number);
            if let Some(edited) = edit::apply_plain(&self.memory, packet, plain, hash, action.rewrite, action.ends) {
                self.hits += 1;
                return edited.map_or_else(Fate::Dropped, |()| Fate::Leaves(action.egress));
            }
            self.ingress.read(frame, &self.tables, &self.memory, packet);
        }
        if !frame.fits(action.rewrite, packet.gso()) {
            return Fate::Undecided;
        }
        self.hits += 1;
        let (subject, layout) = (carry_out::subject(frame, batch.hash(number)), &mut self.layouts[number]);
        Fate::of_edit(&self.memory, packet, &subject, action.rewrite, &action.ends.translation(), action.egress, layout)
    }

    /// Hands the edited packets to their ports and drops what is refused; gathers the undecided.
    fn send_hits(&mut self) {
        let mut vector = std::mem::take(&mut self.vector);
        let mut numbers = 0..VECTOR_PACKETS;
        // Not `enumerate`: a packet in a tuple is moved three times more.
        for packet in vector.drain(..) {
            let number = numbers.next().unwrap_or_default();
            match self.fates[number] {
                Fate::Undecided => {
                    self.missed.push(number as u8);
                    self.misses.push(packet);
                }
                fate => self.transmit.settle(&mut outlet!(self), packet, fate, &self.layouts[number]),
            }
        }
        self.vector = vector;
    }

    /// Decides what the cache did not know, in order of arrival.
    fn decide_misses(&mut self) {
        let (mut misses, mut missed) = (std::mem::take(&mut self.misses), std::mem::take(&mut self.missed));
        if misses.len() > 1 {
            self.anticipate(&misses, &missed);
        }
        for (number, packet) in missed.drain(..).zip(misses.drain(..)) {
            self.decide_packet(usize::from(number), packet);
        }
        (self.misses, self.missed) = (misses, missed);
    }

    /// Takes time, tables and commands once a turn.
    fn begin_turn(&mut self) {
        self.stopwatch.begin_turn();
        self.now = self.clock.now();
        self.now_ms = self.now.milliseconds32();
        self.ports.set_time(self.now);
        self.counters.event(Event::Turns).add(1);
        self.take_commands();
        self.refresh_tables();
        self.stopwatch.lap(Work::Housekeeping);
    }

    /// At most a vector from each lane, so that a busy neighbour cannot hold this worker's own ports up.
    fn receive_lanes(&mut self) -> bool {
        let mut busy = false;
        for lane in &mut self.lanes {
            self.ports.begin_vector();
            for _ in 0..VECTOR_PACKETS {
                let Some((egress, packet)) = lane.receive(&mut self.memory) else { break };
                busy = true;
                self.counters.event(Event::LaneReceived).add(1);
                let mut outlet = Outlet { ports: &mut self.ports, memory: &mut self.memory, counters: &self.counters };
                self.transmit.append_received(&mut outlet, egress, packet);
            }
            lane.supply(&mut self.memory);
        }
        busy
    }
}
