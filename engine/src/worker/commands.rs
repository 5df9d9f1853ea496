//! What the control plane asks of a worker, taken up between two turns.

use crossbeam::channel::Sender;

use super::Worker;
use crate::counters::Event;
use crate::flow_cache::{FlowView, SweepPlan};
use crate::packet::PortIndex;
use crate::port::handover::HandedQueue;
use crate::port::{Capabilities, PortQueue, QueueDescription};
use crate::state::{CachePlace, ConnectionReference, FragmentKey};
use crate::tables::{Change, ChangeSet};
use std::sync::Arc;

/// Why a port could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The queue could not be made.
    #[error("port {port}: {cause}")]
    Queue {
        /// Number of the port.
        port: u16,
        /// What the device said.
        cause: String,
    },
    /// The worker does not answer: it has stopped.
    #[error("worker {0} has stopped")]
    WorkerStopped(usize),
}

/// One flow of a worker's cache, for `show flows`.
pub type FlowReport = FlowView;

/// One queue of a worker, for `show ports`.
#[derive(Clone, Debug)]
pub struct QueueReport {
    /// Its port.
    pub port: PortIndex,
    /// How it moves packets.
    pub description: QueueDescription,
    /// Packets the kernel dropped before the queue took them.
    pub kernel_drops: u64,
    /// Frames the kernel holds.
    pub lent_frames: usize,
}

/// A request to a worker.
pub enum Command {
    /// Adds a queue that was made on the worker's own memory; answers with what it can.
    Attach(Box<dyn PortQueue>, Sender<Result<Capabilities, AttachError>>),
    /// Another worker owns the port's queue.
    AttachByLane(PortIndex, Capabilities, usize),
    /// Closes the port's queue; answers when its frames are back.
    Detach(PortIndex, Sender<()>),
    /// Decides again what rests on what this publish changed; sent after the tables were stored.
    Sweep(Arc<SweepPlan>),
    /// Removes the flow at this place of the cache, if it is this connection's: the connection ended or is closing.
    Forget(u32, ConnectionReference),
    /// The first fragment of this packet was decided: later ones that wait may go.
    FirstFragment(FragmentKey),
    /// Lists the flows in so many places of the cache from this place on; answers with where to go on.
    ListFlows(usize, usize, Sender<(Vec<FlowReport>, Option<usize>)>),
    /// Lists the queues.
    ListQueues(Sender<Vec<QueueReport>>),
    /// Sends a frame of the switch's own out of this port.
    Send(PortIndex, Box<[u8]>),
    /// Lists what another process needs to go on with the queues.
    HandOver(Sender<Vec<(PortIndex, std::io::Result<HandedQueue>)>>),
    /// Ends the thread with everything as it is: the worker goes on in another thread, or never.
    Pause,
    /// Closes everything and ends the thread.
    Stop,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Command::Attach(..) => "Attach",
            Command::AttachByLane(..) => "AttachByLane",
            Command::Detach(..) => "Detach",
            Command::Sweep(_) => "Sweep",
            Command::Forget(..) => "Forget",
            Command::FirstFragment(_) => "FirstFragment",
            Command::ListFlows(..) => "ListFlows",
            Command::ListQueues(_) => "ListQueues",
            Command::Send(..) => "Send",
            Command::HandOver(_) => "HandOver",
            Command::Pause => "Pause",
            Command::Stop => "Stop",
        })
    }
}

impl Worker {
    /// Takes up what was asked since the last turn.
    pub(super) fn take_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command);
        }
    }

    // An answer that nobody waits for any more may be lost.
    fn obey(&mut self, command: Command) {
        match command {
            Command::Attach(queue, answer) => {
                let _ = answer.send(self.attach(queue));
            }
            Command::AttachByLane(port, capabilities, worker) => {
                self.ports.attach_by_lane(port, capabilities, worker);
            }
            Command::Detach(port, answer) => {
                self.detach(port);
                let _ = answer.send(());
            }
            Command::Sweep(plan) => self.begin_sweep(plan),
            Command::Forget(place, connection) => {
                self.cache.forget(place, connection);
            }
            Command::FirstFragment(key) => self.release_held(&key),
            Command::ListFlows(from, places, answer) => {
                let mut flows = Vec::new();
                let next = self.cache.for_each(from, places, self.now_ms, |flow| flows.push(*flow));
                let _ = answer.send((flows, next));
            }
            Command::ListQueues(answer) => {
                let _ = answer.send(self.queue_reports());
            }
            Command::Send(port, frame) => self.send_own(port, &frame),
            Command::HandOver(answer) => {
                let handed = self.ports.queues().map(|queue| (queue.port(), queue.hand_over()));
                let _ = answer.send(handed.collect());
            }
            Command::Pause => self.pausing = true,
            Command::Stop => self.stopping = true,
        }
    }

    fn attach(&mut self, queue: Box<dyn PortQueue>) -> Result<Capabilities, AttachError> {
        let (port, capabilities) = (queue.port().0, queue.capabilities());
        self.ports.attach(queue).map_err(|(mut queue, error)| {
            queue.close(&mut self.memory);
            AttachError::Queue { port, cause: error.to_string() }
        })?;
        Ok(capabilities)
    }

    fn detach(&mut self, port: PortIndex) {
        let (queue, pending) = self.ports.detach(port);
        for packet in pending {
            outlet!(self).drop(packet, crate::drop_reason::DropReason::PortDown);
        }
        if let Some(mut queue) = queue {
            queue.close(&mut self.memory);
        }
    }

    /// Starts a sweep; should too many be under way, the older ones are finished at once.
    pub(super) fn begin_sweep(&mut self, plan: Arc<SweepPlan>) {
        let redecided = self.cache.begin_sweep(plan);
        self.counters.event(Event::FlowCacheRedecided).add(redecided as u64);
    }

    /// Decides again, on every worker, what rests on a change that a packet brought.
    pub(super) fn redecide(&mut self, change: Change) {
        let generation = self.tables.generation;
        let plan = Arc::new(SweepPlan::new(&ChangeSet { generation, changes: vec![change] }));
        for worker in self.others.iter().flatten() {
            // A full queue means that worker is overloaded; its entries age out within seconds instead.
            let _ = worker.try_send(Command::Sweep(Arc::clone(&plan)));
        }
        self.begin_sweep(plan);
    }

    /// Takes a connection out of the flow caches it is in, also those of other workers.
    pub(super) fn forget(&mut self, connection: ConnectionReference, places: [Option<CachePlace>; 2]) {
        for place in places.into_iter().flatten() {
            if place.worker() == self.number {
                self.cache.forget(place.slot(), connection);
            } else if let Some(Some(worker)) = self.others.get(place.worker()) {
                // A full queue means that worker is overloaded; its ageing hand finds out within a second instead.
                let _ = worker.try_send(Command::Forget(place.slot(), connection));
            }
        }
    }

    fn queue_reports(&self) -> Vec<QueueReport> {
        let report = |queue: &dyn PortQueue| QueueReport {
            port: queue.port(),
            description: queue.describe(),
            kernel_drops: queue.kernel_drops(),
            lent_frames: queue.lent_frames(),
        };
        self.ports.queues().map(report).collect()
    }

    /// Closes all ports and gives their frames back.
    pub fn close(&mut self) {
        self.expire_held(true);
        self.transmit.flush(&mut outlet!(self));
        let ports: Vec<PortIndex> = self.ports.numbers().collect();
        ports.into_iter().for_each(|port| self.detach(port));
        self.counters.event(Event::Turns).add(1);
        self.count_gauges();
    }
}
