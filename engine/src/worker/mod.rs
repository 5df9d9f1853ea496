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

mod carry_out;
mod commands;
mod housekeeping;
mod idle;
mod ingress;
mod originate;
mod parts;
mod ports;

use std::sync::Arc;

pub use commands::{AttachError, Command, FlowReport, QueueReport};
pub use idle::{IdlePolicy, Sleeper, Waker};
pub use ingress::explain;
pub use parts::Parts;
pub use ports::Ports;

use crate::clock::{Clock, Time};
use crate::counters::{Event, WorkerCounters};
use crate::edit;
use crate::flow_cache::{FlowCache, LookupBatch};
use crate::limits::VECTOR_PACKETS;
use crate::packet::{FrameMemory, Packet};
use crate::port::af_xdp::Umem;
use crate::state::State;
use crate::tables::{Snapshot, Subscription};
use crate::transmit::{LaneReceiver, Outlet, Transmit};
use ingress::{FrameReading, IngressTable};

/// What a worker is made of.
pub struct Worker {
    clock: Clock,
    now: Time,
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
    /// What was read of each packet of the vector: one slot for each, used again for the next vector.
    readings: Vec<FrameReading>,
    misses: Vec<(u8, Packet)>,
    transmit: Transmit,
    lanes: Vec<LaneReceiver>,
    icmp_budget: originate::IcmpBudget,
    commands: crossbeam::channel::Receiver<Command>,
    others: Vec<crossbeam::channel::Sender<Command>>,
    sleeper: Sleeper,
    counters: Arc<WorkerCounters>,
    stopping: bool,
}

impl Worker {
    /// One turn: every port that may have packets once, then what time asks for. True if anything moved.
    pub fn turn(&mut self) -> bool {
        self.begin_turn();
        let mut busy = self.receive_lanes();
        self.ports.poll_ready();
        while let Some(port) = self.ports.next_ready() {
            let received = self.ports.receive(port, &mut self.memory, &mut self.vector, &self.counters);
            busy |= received > 0;
            self.forward_vector();
        }
        self.transmit.flush(&mut outlet!(self));
        self.housekeeping();
        busy
    }

    /// Forwards the packets of `vector`: hits at once, misses behind them as a batch.
    fn forward_vector(&mut self) {
        if self.vector.is_empty() {
            return;
        }
        self.counters.event(Event::Vectors).add(1);
        self.read_vector();
        self.cache.lookup(&mut self.batch);
        self.serve_hits();
        self.decide_misses();
    }

    /// Parses every packet; those the cache may serve get a key, the others a reason.
    fn read_vector(&mut self) {
        self.batch.clear();
        for (number, (packet, frame)) in self.vector.iter().zip(&mut self.readings).enumerate() {
            self.ingress.read(frame, &self.tables, &self.memory, packet);
            if frame.refused.is_some() || !frame.cacheable() {
                continue;
            }
            let inner = self.memory.head(packet).get(frame.inner_offset..);
            if let Some(macs) = inner.and_then(|inner| inner.first_chunk::<12>()) {
                self.batch.push(number, &frame.headers, macs, frame.ingress);
            }
        }
    }

    /// Edits and sends what the cache knows; gathers the rest.
    fn serve_hits(&mut self) {
        let (mut vector, readings) = (std::mem::take(&mut self.vector), std::mem::take(&mut self.readings));
        for (number, (packet, frame)) in vector.drain(..).zip(&readings).enumerate() {
            if let Some(reason) = frame.refused {
                outlet!(self).drop(packet, reason);
            } else if !self.batch.found(number) {
                self.misses.push((number as u8, packet));
            } else if let Some(packet) = self.serve_cached(number, frame, packet) {
                self.misses.push((number as u8, packet));
            }
        }
        (self.vector, self.readings) = (vector, readings);
    }

    /// Edits and sends one packet as its flow's entry says. Gives it back if there is no entry, or if the slow path
    /// has to tell the sender why it cannot be sent on.
    #[inline]
    fn serve_cached(&mut self, number: usize, frame: &FrameReading, mut packet: Packet) -> Option<Packet> {
        if !frame.cacheable() {
            return Some(packet);
        }
        let bytes = packet.length() - frame.inner_offset.min(packet.length());
        let Some(action) = self.cache.take_hit(&self.batch, number, bytes, self.now.milliseconds32()) else {
            return Some(packet);
        };
        if !frame.fits(&action.rewrite.rewrite, packet.gso) {
            return Some(packet);
        }
        self.counters.event(Event::FlowCacheHit).add(1);
        let subject = carry_out::subject(frame, self.batch.hash(number));
        let outlet = &mut outlet!(self);
        match edit::apply(outlet.memory, &mut packet, &subject, action.rewrite, &action.translation) {
            Ok(layout) => self.transmit.enqueue(outlet, action.egress, packet, &layout),
            Err(reason) => outlet.drop(packet, reason),
        }
        None
    }

    /// Decides what the cache did not know, in order of arrival.
    fn decide_misses(&mut self) {
        let mut misses = std::mem::take(&mut self.misses);
        for (number, packet) in misses.drain(..) {
            self.decide_packet(usize::from(number), packet);
        }
        self.misses = misses;
    }

    /// Takes time, tables and commands once a turn.
    fn begin_turn(&mut self) {
        self.now = self.clock.now();
        self.counters.event(Event::Turns).add(1);
        self.take_commands();
        self.refresh_tables();
    }

    /// At most a vector from each lane, so that a busy neighbour cannot hold this worker's own ports up.
    fn receive_lanes(&mut self) -> bool {
        let mut busy = false;
        for lane in &mut self.lanes {
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
