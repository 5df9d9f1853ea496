//! A node made of objects alone, on memory ports: every pod that they bind here with an address is plugged in, every
//! `Uplink` and `Port` is there, and the host's own port.
//!
//! What objects do not say is in [`surroundings`]. Ports have the numbers that an agent gives them: the host's is 0,
//! uplinks are counted from 1, pods from 16, ports of bridges and of networks from 768, each in order of their names. Port
//! `n` has its queue on worker `n` modulo their number; the others reach it by lanes, as on a live switch. [`plugging`] does it.
//!
//! [`surroundings`]: super::surroundings
//! [`plugging`]: super::plugging

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_engine::clock::{Clock, ManualClock, Time};
use millrace_engine::drop_reason::DropReason;
use millrace_engine::flow_cache::FlowCacheLayout;
use millrace_engine::packet::{FrameMemory, FrameMemoryLayout, Headers, PortIndex};
use millrace_engine::port::memory::{MemoryWire, WireFrame};
use millrace_engine::port::pcap::Capture;
use millrace_engine::slow_path::Decision;
use millrace_engine::state::{Connection, ConnectionReference};
use millrace_engine::switch::{Switch, SwitchOptions};
use millrace_engine::tables::Snapshot;
use millrace_engine::worker;

use super::offloads;
use crate::agent::SharedSwitch;
use crate::cluster::{Cluster, NodeName};
use crate::compile::CompileError;
use crate::observe::KINDS;
use crate::plan::LocalView;
use crate::problem::Problem;
use crate::reconcile::{Input, Reconciler};
use crate::store::{DirectoryStore, Event, Object, ObjectKey, ObjectStore, StoreError};

/// Seed of the flow hash: any number, but always the same.
const SEED: u64 = 0x6d69_6c6c;
/// Flows of each family in the cache of a worker.
pub(super) const FLOWS: usize = 16_384;
/// Turns after which a frame that still moves is in a loop.
const TURNS: usize = 10_000;
/// How long the store may take to tell all objects.
const OBJECTS: Duration = Duration::from_secs(30);

/// Why a node cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayNodeError {
    /// The objects cannot be read.
    #[error("cannot read the objects in {}", path.display())]
    Objects {
        /// The directory.
        path: PathBuf,
        /// What the store said.
        source: StoreError,
    },
    /// The store did not tell all objects in time.
    #[error("the objects in {} were not all told within {} s", .0.display(), OBJECTS.as_secs())]
    ObjectsLate(PathBuf),
    /// The plan contradicts itself.
    #[error("the objects cannot be compiled")]
    Compile(#[source] CompileError),
    /// No switch with so many workers, or no memory for it.
    #[error("could not build the switch")]
    Switch(#[source] std::io::Error),
    /// The switch refused a port.
    #[error("port {port} could not be attached: {reason}")]
    Port {
        /// Its name.
        port: String,
        /// Why.
        reason: String,
    },
}

/// The node.
pub(super) struct ReplayNode {
    pub(super) switch: SharedSwitch,
    clock: ManualClock,
    pub(super) reconciler: Reconciler,
    pub(super) ports: BTreeMap<PortIndex, (String, MemoryWire)>,
    /// By the first number of a kind of ports the next that none of it has had.
    pub(super) next_numbers: BTreeMap<u16, u16>,
    pub(super) objects: BTreeMap<ObjectKey, Object>,
    problems: Vec<Problem>,
    /// Frames dropped until they were told, by reason.
    told_drops: Vec<u64>,
    /// Frames for packets that are only explained.
    imagined: FrameMemory,
    /// The objects, and what is plugged in.
    pub(super) cluster: Cluster,
    pub(super) local: LocalView,
}

impl ReplayNode {
    /// Builds it; `captures` by port name are only looked at for MAC addresses.
    pub(super) fn build(
        objects: &Path,
        name: &NodeName,
        workers: usize,
        captures: &BTreeMap<String, Capture>,
    ) -> Result<Self, ReplayNodeError> {
        let clock = ManualClock::new();
        let options = SwitchOptions {
            workers,
            frame_memory: FrameMemoryLayout { head_frames: 4_096, big_buffers: 64 },
            flows: FlowCacheLayout { ipv4: FLOWS, ipv6: FLOWS },
            hash_seed: Some(SEED),
            portable_hash: true,
            clock: Clock::Manual(clock.clone()),
            ..SwitchOptions::default()
        };
        let switch = SharedSwitch::new(Switch::new(options).map_err(ReplayNodeError::Switch)?);
        let imagined = FrameMemory::new(FrameMemoryLayout { head_frames: 64, big_buffers: 2 });
        let imagined = imagined.map_err(ReplayNodeError::Switch)?;
        let local = LocalView::new(name.clone());
        let mut reconciler = Reconciler::publishing_to(local, Box::new(switch.clone()));
        let (objects, unreadable) = objects_in(objects)?;
        reconciler.take(Input::Store(unreadable));
        for object in objects.values() {
            reconciler.take(Input::Store(Event::Applied(object.clone())));
        }
        reconciler.take(Input::Store(Event::Synced));
        let mut node = Self {
            switch,
            clock,
            ports: BTreeMap::new(),
            next_numbers: BTreeMap::new(),
            problems: Vec::new(),
            told_drops: Vec::new(),
            imagined,
            cluster: Cluster::default(),
            local: reconciler.local().clone(),
            reconciler,
            objects,
        };
        node.plug(captures)?;
        node.publish()?;
        Ok(node)
    }

    /// Puts the tables of the present objects in force.
    pub(super) fn publish(&mut self) -> Result<(), ReplayNodeError> {
        let settled = self.reconciler.settle(Instant::now());
        if let Some(error) = settled.error {
            return Err(ReplayNodeError::Compile(error));
        }
        self.problems = settled.problems.to_vec();
        self.cluster = self.reconciler.cluster().clone();
        self.local = self.reconciler.local().clone();
        self.settle();
        Ok(())
    }

    pub(super) fn settle(&self) {
        self.switch.with(|switch| switch.settle(TURNS));
    }

    /// The port of this name.
    pub(super) fn port(&self, name: &str) -> Option<PortIndex> {
        self.ports.iter().find(|(_, (known, _))| known == name).map(|(port, _)| *port)
    }

    /// All ports with their names.
    pub(super) fn ports(&self) -> impl Iterator<Item = (PortIndex, &str)> {
        self.ports.iter().map(|(port, (name, _))| (*port, name.as_str()))
    }

    /// Names of all ports.
    pub(super) fn port_names(&self) -> Vec<&str> {
        self.ports().map(|(_, name)| name).collect()
    }

    /// What is wrong with the objects.
    pub(super) fn problems(&self) -> Vec<Problem> {
        self.problems.clone()
    }

    /// Generation of the tables in force.
    pub(super) fn generation(&self) -> u64 {
        self.switch.with(|switch| switch.tables().generation)
    }

    /// Moves the clock and lets the workers do what is due.
    pub(super) fn set_time(&self, time: Time) {
        self.clock.set(time);
        self.settle();
    }

    /// The tables in force.
    pub(super) fn tables(&self) -> Arc<Snapshot> {
        self.switch.with(|switch| switch.tables())
    }

    /// The connection of this name.
    pub(super) fn connection(&self, reference: ConnectionReference) -> Option<Connection> {
        self.switch.with(|switch| switch.state().connections.get(reference))
    }

    /// A captured frame with the metadata that its sender gave with it.
    pub(super) fn read_back(&self, port: PortIndex, frame: &[u8]) -> WireFrame {
        let of_pod = || self.local.pods.get(&port).map(|pod| pod.mtu);
        let of_host = || self.local.host.as_ref().filter(|host| host.port == port).map(|host| host.mtu);
        offloads::read_back(frame, of_pod().or_else(of_host))
    }

    /// What each stage says of a frame that comes in by `port` now, as one line.
    pub(super) fn explain(&mut self, port: PortIndex, frame: &[u8]) -> String {
        match self.decide(&self.tables(), port, frame) {
            None => "longer than any packet".to_owned(),
            Some(Ok((_, decision))) => decision.trail.to_string(),
            Some(Err(reason)) => format!("read drop {reason}"),
        }
    }

    /// What would be decided now, by these tables, of a frame that comes in by `port`; nothing is changed by it.
    pub(super) fn decide(
        &mut self,
        tables: &Snapshot,
        port: PortIndex,
        frame: &[u8],
    ) -> Option<Result<(Headers, Decision), DropReason>> {
        let frame = self.read_back(port, frame);
        let mut packet = self.imagined.packet_from(&frame.bytes)?;
        packet.ingress = port;
        packet.set_gso(frame.gso);
        let state = self.switch.with(|switch| switch.state().clone());
        let now = Clock::Manual(self.clock.clone()).now();
        let explained = worker::explain(tables, &state, &self.imagined, &packet, now);
        self.imagined.release(packet);
        Some(explained)
    }

    /// Puts a captured frame before its port, without a turn.
    pub(super) fn queue(&self, port: PortIndex, frame: &[u8]) {
        if let Some((_, wire)) = self.ports.get(&port) {
            wire.send(self.read_back(port, frame));
        }
    }

    /// Takes what the switch sent, in order of the ports.
    pub(super) fn take_sent(&self) -> Vec<(String, WireFrame)> {
        let frames = |(name, wire): &(String, MemoryWire)| {
            let (name, wire) = (name.clone(), wire.clone());
            std::iter::from_fn(move || wire.receive()).map(move |frame| (name.clone(), frame))
        };
        self.ports.values().flat_map(frames).collect()
    }

    /// Reasons for which frames were dropped since this was asked last.
    pub(super) fn take_drops(&mut self) -> Vec<DropReason> {
        let counters: Vec<_> = self.switch.with(|switch| switch.counters().cloned().collect());
        let sum = |reason: &DropReason| counters.iter().map(|counters| counters.drops(*reason).get()).sum();
        let drops: Vec<u64> = DropReason::ALL.iter().map(sum).collect();
        let told = std::mem::replace(&mut self.told_drops, drops);
        let now = self.told_drops.iter().zip(told.into_iter().chain(std::iter::repeat(0)));
        DropReason::ALL.iter().zip(now).filter(|(_, (now, told))| *now > told).map(|(reason, _)| *reason).collect()
    }

    /// Frames that no worker can account for.
    pub(super) fn lost_frames(&self) -> i64 {
        self.switch.with(|switch| switch.lost_frames())
    }
}

/// All objects of a directory, and what could not be read.
pub(super) fn objects_in(path: &Path) -> Result<(BTreeMap<ObjectKey, Object>, Event), ReplayNodeError> {
    let failed = |source| ReplayNodeError::Objects { path: path.to_owned(), source };
    let watch = DirectoryStore::open(path).map_err(failed)?.watch(&KINDS).map_err(failed)?;
    let (mut objects, mut unreadable) = (BTreeMap::new(), Vec::new());
    loop {
        let late = |_| ReplayNodeError::ObjectsLate(path.to_owned());
        match watch.events.recv_timeout(OBJECTS).map_err(late)? {
            Event::Applied(object) => drop(objects.insert(object.key.clone(), object)),
            Event::Deleted(key) => drop(objects.remove(&key)),
            Event::Synced => return Ok((objects, Event::Problems(unreadable))),
            Event::Problems(problems) => unreadable = problems,
        }
    }
}
