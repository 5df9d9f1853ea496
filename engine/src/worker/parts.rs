//! Putting a worker together from what the switch prepared.

use std::io;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};

use super::ingress::{FrameReading, IngressTable};
use super::late_fragments::LateFragments;
use super::originate::IcmpBudget;
use super::{Command, Ports, Sleeper, Worker};
use crate::clock::Clock;
use crate::counters::WorkerCounters;
use crate::cycles::Stopwatch;
use crate::flow_cache::{FlowCache, FlowCacheLayout, HashKey, LookupBatch};
use crate::limits::{CONNECTION_SCAN_STEP, VECTOR_PACKETS};
use crate::packet::FrameMemory;
use crate::port::af_xdp::Umem;
use crate::state::State;
use crate::tables::Subscription;
use crate::transmit::{Fate, LaneReceiver, LaneSender, Layout, Transmit};

/// What a worker is built from.
pub struct Parts {
    /// Its number among the workers.
    pub number: usize,
    /// Where it gets the time.
    pub clock: Clock,
    /// Where it gets its tables.
    pub subscription: Subscription,
    /// What all workers learn.
    pub state: Arc<State>,
    /// Its frames.
    pub memory: FrameMemory,
    /// Entries of its flow cache.
    pub flows: FlowCacheLayout,
    /// Key of the flow hash.
    pub hash_key: HashKey,
    /// Lanes to the other workers, by their number.
    pub lane_senders: Vec<Option<LaneSender>>,
    /// Lanes from the other workers.
    pub lane_receivers: Vec<LaneReceiver>,
    /// What the control plane asks of it.
    pub commands: Receiver<Command>,
    /// Where to tell the other workers, by their number, what packets taught this one; `None` at its own.
    pub others: Vec<Option<Sender<Command>>>,
    /// How it sleeps.
    pub sleeper: Sleeper,
    /// Where it counts.
    pub counters: Arc<WorkerCounters>,
}

impl Worker {
    /// Builds a worker; all its memory is there afterwards.
    ///
    /// # Errors
    /// The kernel refused epoll.
    pub fn new(parts: Parts) -> io::Result<Self> {
        let mut subscription = parts.subscription;
        let tables = Arc::clone(subscription.refresh());
        let ports = Ports::new(parts.lane_senders, parts.state.bandwidth.clone())?;
        ports.watch_wake_up(parts.sleeper.descriptor())?;
        let now = parts.clock.now();
        let mut worker = Self {
            number: parts.number,
            now,
            now_ms: now.milliseconds32(),
            clock: parts.clock,
            subscription,
            tables,
            cache: FlowCache::new(parts.flows, parts.hash_key).writing_back_to(&parts.state.connections),
            state: parts.state,
            umem: Umem::new(&parts.memory),
            memory: parts.memory,
            ports,
            ingress: IngressTable::new(),
            batch: LookupBatch::new(),
            vector: Vec::with_capacity(VECTOR_PACKETS),
            late: LateFragments::new(),
            ended: Vec::with_capacity(CONNECTION_SCAN_STEP),
            plains: [None; VECTOR_PACKETS],
            readings: vec![FrameReading::EMPTY; VECTOR_PACKETS],
            fates: [Fate::Undecided; VECTOR_PACKETS],
            layouts: [Layout::default(); VECTOR_PACKETS],
            misses: Vec::with_capacity(VECTOR_PACKETS),
            missed: Vec::with_capacity(VECTOR_PACKETS),
            hits: 0,
            transmit: Transmit::default(),
            lanes: parts.lane_receivers,
            icmp_budget: IcmpBudget::new(now),
            commands: parts.commands,
            others: parts.others,
            sleeper: parts.sleeper,
            counters: parts.counters,
            stopwatch: Stopwatch::default(),
            stopping: false,
            pausing: false,
            paused_at: now,
        };
        for lane in &mut worker.lanes {
            lane.supply(&mut worker.memory);
        }
        Ok(worker)
    }

    /// The UMEM on this worker's frames.
    pub(crate) fn umem(&self) -> &Umem {
        &self.umem
    }
}
