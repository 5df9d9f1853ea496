//! A switch: its workers, what they share, and the one constructor that tests, benches and the agent use.
//!
//! [`Switch::new`] builds everything; [`Switch::start`] moves the workers to their threads. A switch that is not
//! started is driven by hand with [`Switch::turn`]: the same workers, one after another, on the caller's thread and
//! by the caller's clock, which makes tests, replay and simulation deterministic.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};

use crate::clock::Clock;
use crate::counters::WorkerCounters;
use crate::flow_cache::{FlowCacheLayout, HashKey, SweepPlan};
use crate::limits::{CONNECTIONS, WORKER_COMMANDS};
use crate::packet::{FrameMemory, FrameMemoryLayout, PortIndex};
use crate::port::af_xdp::Umem;
use crate::port::{Capabilities, PortQueue};
use crate::state::{ConnectionTimeouts, Kept, State, StateOptions};
use crate::tables::{ChangeSet, Publisher, Snapshot};
use crate::transmit::{LaneReceiver, LaneSender, lane};
use crate::worker::health::Watch;
use crate::worker::{AttachError, Command, FlowReport, IdlePolicy, QueueReport, Sleeper, Waker, Worker};

/// How to build a switch.
#[derive(Clone, Debug)]
pub struct SwitchOptions {
    /// Worker threads, 1 to `limits::WORKERS`.
    pub workers: usize,
    /// CPU cores to pin workers to, in order; a worker beyond the list is not pinned.
    pub cores: Vec<usize>,
    /// Frames of each worker.
    pub frame_memory: FrameMemoryLayout,
    /// Flow-cache entries of each worker.
    pub flows: FlowCacheLayout,
    /// Connections the switch tracks.
    pub connections: usize,
    /// How long connections may be silent.
    pub timeouts: ConnectionTimeouts,
    /// What workers do without work.
    pub idle: IdlePolicy,
    /// Where they get the time.
    pub clock: Clock,
    /// Directory on a tmpfs where connections and affinities outlive the process, however it ends, for the next one with the
    /// same clock; `None` if they end with the switch.
    pub kept_in: Option<PathBuf>,
    /// Seed of the flow hash's key, for tests and replay; without one the key is random, so that nobody can forge
    /// flows that collide.
    pub hash_seed: Option<u64>,
}

impl Default for SwitchOptions {
    fn default() -> Self {
        Self {
            workers: 1,
            cores: Vec::new(),
            frame_memory: FrameMemoryLayout::default(),
            flows: FlowCacheLayout::default(),
            connections: CONNECTIONS,
            timeouts: ConnectionTimeouts::default(),
            idle: IdlePolicy::default(),
            clock: Clock::Monotonic,
            kept_in: None,
            hash_seed: None,
        }
    }
}

/// Places of a flow cache listed in one command.
const FLOW_LIST_STEP: usize = 4096;

/// How long the control plane waits for a worker's answer: who stands still must not hold up publishing for long.
const ANSWER_TIME: Duration = Duration::from_secs(5);

enum Body {
    Parked(Box<Worker>),
    Running(JoinHandle<()>),
    Gone,
}

struct WorkerSlot {
    body: Body,
    umem: Umem,
    commands: Sender<Command>,
    waker: Waker,
    counters: Arc<WorkerCounters>,
}

impl WorkerSlot {
    /// Has the worker take up what waits for it.
    fn attend(&mut self) {
        match &mut self.body {
            Body::Parked(worker) => worker.obey_waiting(),
            Body::Running(_) => self.waker.wake(),
            Body::Gone => {}
        }
    }
}

/// A switch.
pub struct Switch {
    workers: Vec<WorkerSlot>,
    publisher: Publisher,
    state: Arc<State>,
    kept: Kept,
    options: SwitchOptions,
}

impl std::fmt::Debug for Switch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Switch").field("options", &self.options).finish_non_exhaustive()
    }
}

/// One worker's parts that the others must know before it can be built.
struct Foundation {
    memory: FrameMemory,
    sleeper: Sleeper,
    waker: Waker,
    commands: (Sender<Command>, Receiver<Command>),
}

/// What the workers of a switch share: what a former process left, or nothing yet.
fn learned(options: &SwitchOptions, hash_key: HashKey) -> io::Result<(Arc<State>, Kept)> {
    let size = StateOptions {
        connections: options.connections,
        timeouts: options.timeouts,
        workers: options.workers,
        hash_key,
    };
    let (state, kept) = match &options.kept_in {
        Some(directory) => State::kept_in(directory, &size, options.clock.now())?,
        None => (State::with(&size)?, Kept::default()),
    };
    Ok((Arc::new(state), kept))
}

impl Switch {
    /// Builds the workers and all they need; nothing grows afterwards.
    ///
    /// # Errors
    /// The kernel refused memory or descriptors, or the number of workers is out of range.
    pub fn new(options: SwitchOptions) -> io::Result<Self> {
        if options.workers == 0 || options.workers > crate::limits::WORKERS {
            return Err(io::Error::other(format!(
                "{} workers: 1 to {} are possible",
                options.workers,
                crate::limits::WORKERS
            )));
        }
        let hash_key = options.hash_seed.map_or_else(HashKey::random, |seed| Ok(HashKey::from_seed(seed)))?;
        let mut publisher = Publisher::new();
        let (state, kept) = learned(&options, hash_key)?;
        let foundations: Vec<Foundation> =
            (0..options.workers).map(|_| Foundation::new(&options)).collect::<io::Result<_>>()?;
        let (mut senders, mut receivers) = lanes(&foundations);
        let command_senders: Vec<Sender<Command>> =
            foundations.iter().map(|foundation| foundation.commands.0.clone()).collect();
        let mut workers = Vec::with_capacity(options.workers);
        for (number, foundation) in foundations.into_iter().enumerate() {
            let counters = Arc::new(WorkerCounters::default());
            let others = command_senders.iter().enumerate();
            let others = others.map(|(other, sender)| (other != number).then(|| sender.clone()));
            let parts = crate::worker::Parts {
                number,
                clock: options.clock.clone(),
                subscription: publisher.subscribe(),
                state: Arc::clone(&state),
                memory: foundation.memory,
                flows: options.flows,
                hash_key,
                lane_senders: std::mem::take(&mut senders[number]),
                lane_receivers: std::mem::take(&mut receivers[number]),
                commands: foundation.commands.1,
                others: others.collect(),
                sleeper: foundation.sleeper,
                counters: Arc::clone(&counters),
            };
            let worker = Worker::new(parts)?;
            let umem = worker.umem().clone();
            let body = Body::Parked(Box::new(worker));
            workers.push(WorkerSlot { body, umem, commands: foundation.commands.0, waker: foundation.waker, counters });
        }
        Ok(Self { workers, publisher, state, kept, options })
    }

    /// What a former process left to this switch, and whether the next one will find something.
    #[must_use]
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Moves every worker to a thread of its own.
    ///
    /// # Errors
    /// The kernel refused a thread.
    pub fn start(&mut self) -> io::Result<()> {
        for (number, slot) in self.workers.iter_mut().enumerate() {
            let Body::Parked(mut worker) = std::mem::replace(&mut slot.body, Body::Gone) else { continue };
            let core = self.options.cores.get(number).copied();
            let thread = std::thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || worker.run_and_recover(core))?;
            slot.body = Body::Running(thread);
        }
        Ok(())
    }

    /// One turn of every worker that has no thread, in order. True if anything moved.
    pub fn turn(&mut self) -> bool {
        let mut moved = false;
        for slot in &mut self.workers {
            if let Body::Parked(worker) = &mut slot.body {
                moved |= worker.turn();
            }
        }
        moved
    }

    /// Turns until nothing moves, at most `turns` times; for switches without threads.
    pub fn settle(&mut self, turns: usize) {
        for _ in 0..turns {
            if !self.turn() {
                return;
            }
        }
    }

    /// The UMEM of one worker, to open AF_XDP queues on, off the packet threads.
    #[must_use]
    pub fn umem(&self, worker: usize) -> Option<&Umem> {
        self.workers.get(worker).map(|slot| &slot.umem)
    }

    /// Attaches a port: a queue for each worker that gets one of its own, in the order of the workers, and `None` for
    /// workers that reach the port through the lane of the first worker that has one.
    ///
    /// # Errors
    /// The first queue that a worker refused; those it took before are closed again.
    pub fn attach(&mut self, port: PortIndex, queues: Vec<Option<Box<dyn PortQueue>>>) -> Result<(), AttachError> {
        let mut owner = None;
        let mut without = Vec::new();
        let mut queues = queues.into_iter();
        for number in 0..self.workers.len() {
            let Some(queue) = queues.next().flatten() else {
                without.push(number);
                continue;
            };
            match self.attach_queue(number, queue) {
                Ok(capabilities) => owner = owner.or(Some((number, capabilities))),
                Err(error) => {
                    self.detach(port);
                    return Err(error);
                }
            }
        }
        if let Some((owner, capabilities)) = owner {
            for number in without {
                self.command(number, Command::AttachByLane(port, capabilities, owner));
            }
        }
        Ok(())
    }

    fn attach_queue(&mut self, number: usize, queue: Box<dyn PortQueue>) -> Result<Capabilities, AttachError> {
        let (answer, answered) = bounded(1);
        self.command(number, Command::Attach(queue, answer));
        answered.recv_timeout(ANSWER_TIME).map_err(|error| match error {
            RecvTimeoutError::Disconnected => AttachError::WorkerStopped(number),
            RecvTimeoutError::Timeout => AttachError::WorkerSilent(number),
        })?
    }

    /// Closes the port's queues on every worker and forgets the stations behind it; its frames are back when this
    /// returns.
    pub fn detach(&mut self, port: PortIndex) {
        for number in 0..self.workers.len() {
            let (answer, answered) = bounded(1);
            self.command(number, Command::Detach(port, answer));
            // A worker that has stopped has closed its queues; one that stands still closes them when it moves.
            let _ = answered.recv_timeout(ANSWER_TIME);
        }
        self.state.stations.forget_port(port);
    }

    /// Puts a command before a worker; one without a thread obeys at once.
    fn command(&mut self, number: usize, command: Command) {
        let Some(slot) = self.workers.get_mut(number) else { return };
        if matches!(slot.body, Body::Gone) || slot.commands.send(command).is_err() {
            return;
        }
        slot.attend();
    }

    /// Publishes new tables and says what they change; every worker takes them up with its next turn.
    pub fn publish(&mut self, snapshot: Snapshot) -> ChangeSet {
        let changes = self.publisher.publish(snapshot);
        let plan = Arc::new(SweepPlan::new(&changes));
        (0..self.workers.len()).for_each(|number| self.sweep(number, &plan));
        changes
    }

    /// Tells a worker what a publish changed. One that has stood still for so long that it takes no more must not hold up
    /// the others: it gives up its whole flow cache when it moves.
    fn sweep(&mut self, number: usize, plan: &Arc<SweepPlan>) {
        let Some(slot) = self.workers.get_mut(number) else { return };
        match slot.commands.try_send(Command::Sweep(Arc::clone(plan))) {
            Ok(()) => slot.attend(),
            Err(TrySendError::Full(_)) => slot.counters.health.miss_sweep(),
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    /// Sends a frame of the switch's own out of a port, as it stands; at most a head frame's bytes.
    pub fn send(&mut self, port: PortIndex, frame: &[u8]) {
        self.command(0, Command::Send(port, frame.into()));
    }

    /// Frees tables that no worker uses any more.
    pub fn collect_tables(&mut self) {
        self.publisher.collect();
    }

    /// The tables in force.
    #[must_use]
    pub fn tables(&self) -> Arc<Snapshot> {
        self.publisher.current()
    }

    /// The lowest generation any worker uses.
    #[must_use]
    pub fn generation_in_use(&self) -> u64 {
        self.publisher.generation_in_use()
    }

    /// Tables kept because a worker may still read them.
    #[must_use]
    pub fn retired_tables(&self) -> usize {
        self.publisher.retired()
    }

    /// What packets have taught.
    #[must_use]
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Each worker's counters.
    pub fn counters(&self) -> impl Iterator<Item = &Arc<WorkerCounters>> {
        self.workers.iter().map(|slot| &slot.counters)
    }

    /// Who watches the workers from another thread.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch::new(self.workers.iter().map(|slot| (Arc::clone(&slot.counters), slot.waker.clone())))
    }

    /// How it was built.
    #[must_use]
    pub fn options(&self) -> &SwitchOptions {
        &self.options
    }

    /// The flows of one worker's cache, at most `limit`; the worker is asked in steps and never held up.
    pub fn flows(&mut self, worker: usize, limit: usize) -> Vec<FlowReport> {
        let mut flows = Vec::new();
        let mut from = Some(0);
        while let Some(place) = from.filter(|_| flows.len() < limit) {
            let (answer, answered) = bounded(1);
            self.command(worker, Command::ListFlows(place, FLOW_LIST_STEP, answer));
            let (mut some, next) = answered.recv_timeout(ANSWER_TIME).unwrap_or_default();
            flows.append(&mut some);
            from = next;
        }
        flows.truncate(limit);
        flows
    }

    /// Each worker's queues.
    pub fn queues(&mut self) -> Vec<Vec<QueueReport>> {
        let mut reports = Vec::with_capacity(self.workers.len());
        for number in 0..self.workers.len() {
            let (answer, answered) = bounded(1);
            self.command(number, Command::ListQueues(answer));
            reports.push(answered.recv_timeout(ANSWER_TIME).unwrap_or_default());
        }
        reports
    }

    /// Frames that no worker can account for, over all workers; only for switches without threads.
    #[must_use]
    pub fn lost_frames(&self) -> i64 {
        let lost = |slot: &WorkerSlot| match &slot.body {
            Body::Parked(worker) => worker.lost_frames(),
            Body::Running(_) | Body::Gone => 0,
        };
        self.workers.iter().map(lost).sum()
    }

    /// Stops the workers and waits for them; all queues are closed afterwards.
    pub fn stop(&mut self) {
        for number in 0..self.workers.len() {
            self.command(number, Command::Stop);
        }
        for slot in &mut self.workers {
            match std::mem::replace(&mut slot.body, Body::Gone) {
                Body::Parked(mut worker) => worker.close(),
                Body::Running(thread) => {
                    // A worker that panicked has nothing left to close.
                    let _ = thread.join();
                }
                Body::Gone => {}
            }
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Foundation {
    fn new(options: &SwitchOptions) -> io::Result<Self> {
        let memory = FrameMemory::new(options.frame_memory)?;
        let (sleeper, waker) = Sleeper::new(options.idle)?;
        Ok(Self { memory, sleeper, waker, commands: bounded(WORKER_COMMANDS) })
    }
}

/// A lane for each ordered pair of workers: `senders[from][to]`, `receivers[to]`.
fn lanes(foundations: &[Foundation]) -> (Vec<Vec<Option<LaneSender>>>, Vec<Vec<LaneReceiver>>) {
    let count = foundations.len();
    let mut senders: Vec<Vec<Option<LaneSender>>> = (0..count).map(|_| Vec::with_capacity(count)).collect();
    let mut receivers: Vec<Vec<LaneReceiver>> = (0..count).map(|_| Vec::with_capacity(count)).collect();
    for (from, row) in senders.iter_mut().enumerate() {
        for (to, foundation) in foundations.iter().enumerate() {
            if from == to {
                row.push(None);
                continue;
            }
            let (sender, receiver) = lane(&foundation.memory, foundation.waker.clone());
            row.push(Some(sender));
            receivers[to].push(receiver);
        }
    }
    (senders, receivers)
}
