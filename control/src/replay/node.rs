//! A node made of objects alone: every pod that its objects bind here with an address is plugged in, every `Uplink`
//! is there, on memory ports.
//!
//! What objects do not say comes from the captures, or is made up the same way each time:
//!
//! | what | from |
//! |---|---|
//! | MAC address of a pod | the source of the first frame its port captured, else a hash of its name |
//! | MAC address of an uplink | the destination of the first frame to one station it captured, else a hash |
//! | MAC address of the next hop to a node | the source of frames from the node's address, else a hash |
//! | addresses of the first uplink | the node's internal addresses |
//! | MTU of uplinks | 1500 |
//!
//! Ports are numbered in order of their names, uplinks from 1, pods from 16 on. Port `n` has its queue on worker `n`
//! modulo their number; the others reach it by lanes, as on a live switch.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_engine::clock::{Clock, ManualClock, Time};
use millrace_engine::drop_reason::DropReason;
use millrace_engine::flow_cache::FlowCacheLayout;
use millrace_engine::packet::parse::parse;
use millrace_engine::packet::{FrameMemory, FrameMemoryLayout, Headers, Mac, PortIndex};
use millrace_engine::port::memory::{MemoryQueue, MemoryWire, WireFrame};
use millrace_engine::port::pcap::Capture;
use millrace_engine::port::{Capabilities, PortQueue};
use millrace_engine::slow_path::Decision;
use millrace_engine::state::{Connection, ConnectionReference};
use millrace_engine::switch::{Switch, SwitchOptions};
use millrace_engine::tables::Snapshot;
use millrace_engine::worker;

use crate::agent::SharedSwitch;
use crate::cluster::{Cluster, InterfaceName, NodeName, PodName};
use crate::compile::CompileError;
use crate::observe::KINDS;
use crate::plan::{self, AttachedPod, LocalUplink, LocalView, UnderlayPath, wanted_uplinks};
use crate::problem::Problem;
use crate::reconcile::{Input, Reconciler};
use crate::stable_hash::hash_64;
use crate::store::{DirectoryStore, Event, ObjectStore, StoreError};

/// Seed of the flow hash: any number, but always the same.
const SEED: u64 = 0x6d69_6c6c;
/// MTU of uplinks.
const UPLINK_MTU: u32 = 1500;
/// Number of the first pod's port.
const FIRST_POD: u16 = 16;
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
    switch: SharedSwitch,
    clock: ManualClock,
    ports: BTreeMap<PortIndex, (String, MemoryWire)>,
    problems: Vec<Problem>,
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
            flows: FlowCacheLayout { ipv4: 16_384, ipv6: 16_384 },
            hash_seed: Some(SEED),
            clock: Clock::Manual(clock.clone()),
            ..SwitchOptions::default()
        };
        let switch = SharedSwitch::new(Switch::new(options).map_err(ReplayNodeError::Switch)?);
        let imagined = FrameMemory::new(FrameMemoryLayout { head_frames: 64, big_buffers: 2 });
        let imagined = imagined.map_err(ReplayNodeError::Switch)?;
        let local = LocalView::new(name.clone());
        let mut reconciler = Reconciler::publishing_to(local, Box::new(switch.clone()));
        take_objects(&mut reconciler, objects)?;
        let (cluster, local) = (reconciler.cluster().clone(), reconciler.local().clone());
        let mut node = Self { switch, clock, ports: BTreeMap::new(), problems: Vec::new(), imagined, cluster, local };
        node.plug_uplinks(&mut reconciler, captures)?;
        // The pods' MTU follows from the uplinks.
        reconciler.settle(Instant::now());
        node.plug_pods(&mut reconciler, captures)?;
        let settled = reconciler.settle(Instant::now());
        if let Some(error) = settled.error {
            return Err(ReplayNodeError::Compile(error));
        }
        node.problems = settled.problems.to_vec();
        node.local = reconciler.local().clone();
        node.settle();
        Ok(node)
    }

    fn plug_uplinks(
        &mut self,
        reconciler: &mut Reconciler,
        captures: &BTreeMap<String, Capture>,
    ) -> Result<(), ReplayNodeError> {
        let (cluster, name) = (reconciler.cluster(), reconciler.node());
        let mut interfaces: Vec<InterfaceName> =
            wanted_uplinks(cluster, name).map(|uplink| uplink.interface.clone()).collect();
        interfaces.sort_unstable();
        interfaces.dedup();
        let mut addresses = cluster.nodes.get(name).map(|node| node.addresses.clone()).unwrap_or_default();
        let mut uplinks = BTreeMap::new();
        for (number, interface) in (1..FIRST_POD).zip(interfaces) {
            let port = PortIndex(number);
            let of_capture = captures.get(interface.as_str()).and_then(own_mac);
            let mac = of_capture.unwrap_or_else(|| made_up(&format!("uplink {name} {interface}")));
            self.attach(port, interface.as_str(), MemoryQueue::LIKE_AF_XDP)?;
            let addresses = std::mem::take(&mut addresses);
            uplinks.insert(port, LocalUplink { interface, mac, mtu: UPLINK_MTU, addresses, link_up: true });
        }
        reconciler.take(Input::Uplinks(uplinks));
        let paths = underlay(reconciler, captures);
        reconciler.take(Input::Underlay(paths));
        Ok(())
    }

    fn plug_pods(
        &mut self,
        reconciler: &mut Reconciler,
        captures: &BTreeMap<String, Capture>,
    ) -> Result<(), ReplayNodeError> {
        let mtu = reconciler.publish_state().plan().map_or(UPLINK_MTU, |plan| plan.pod_mtu);
        let here = reconciler.cluster().pods.values();
        let here = here.filter(|pod| pod.node.as_ref() == Some(reconciler.node()));
        let here: Vec<(PodName, Vec<IpAddr>)> = here
            .filter(|pod| !pod.host_network && !pod.addresses.is_empty())
            .map(|pod| (pod.name.clone(), pod.addresses.clone()))
            .collect();
        let interface = InterfaceName::new("eth0").unwrap_or_else(|_| unreachable!("the name is a valid one"));
        let mut pods = BTreeMap::new();
        for (number, (pod, addresses)) in (FIRST_POD..).zip(here) {
            let (port, name) = (PortIndex(number), pod.to_string());
            let mac = captures.get(&name).and_then(sender).unwrap_or_else(|| made_up(&format!("pod {name}")));
            self.attach(port, &name, MemoryQueue::LIKE_TAP)?;
            let container_id = pod.name().to_owned();
            pods.insert(
                port,
                AttachedPod {
                    pod,
                    uid: None,
                    container_id,
                    interface: interface.clone(),
                    mac,
                    addresses,
                    mtu,
                    network: None,
                },
            );
        }
        reconciler.take(Input::Pods(pods));
        Ok(())
    }

    fn attach(&mut self, port: PortIndex, name: &str, capabilities: Capabilities) -> Result<(), ReplayNodeError> {
        let wire = MemoryWire::default();
        let queue = MemoryQueue::new(port, wire.clone(), capabilities);
        let attached = self.switch.with(|switch| {
            let workers = switch.options().workers;
            let mut queues: Vec<Option<Box<dyn PortQueue>>> = Vec::new();
            queues.resize_with(workers, || None);
            queues[usize::from(port.0) % workers] = Some(Box::new(queue));
            switch.attach(port, queues)
        });
        attached.map_err(|error| ReplayNodeError::Port { port: name.to_owned(), reason: error.to_string() })?;
        self.ports.insert(port, (name.to_owned(), wire));
        Ok(())
    }

    fn settle(&self) {
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
        let mut packet = self.imagined.packet_from(frame)?;
        packet.ingress = port;
        let state = self.switch.with(|switch| switch.state().clone());
        let now = Clock::Manual(self.clock.clone()).now();
        let explained = worker::explain(tables, &state, &self.imagined, &packet, now);
        self.imagined.release(packet);
        Some(explained)
    }

    /// Sends a frame in and lets the switch come to rest.
    pub(super) fn inject(&self, port: PortIndex, frame: WireFrame) {
        if let Some((_, wire)) = self.ports.get(&port) {
            wire.send(frame);
            self.settle();
        }
    }

    /// Takes what the switch sent, in order of the ports.
    pub(super) fn take_sent(&self) -> Vec<(PortIndex, String, WireFrame)> {
        let frames = |(port, (name, wire)): (&PortIndex, &(String, MemoryWire))| {
            let (port, name, wire) = (*port, name.clone(), wire.clone());
            std::iter::from_fn(move || wire.receive()).map(move |frame| (port, name.clone(), frame))
        };
        self.ports.iter().flat_map(frames).collect()
    }

    /// Frames dropped so far, by reason.
    pub(super) fn drops(&self) -> Vec<u64> {
        let counters: Vec<_> = self.switch.with(|switch| switch.counters().cloned().collect());
        let sum = |reason: &DropReason| counters.iter().map(|counters| counters.drops(*reason).get()).sum();
        DropReason::ALL.iter().map(sum).collect()
    }

    /// Frames that no worker can account for.
    pub(super) fn lost_frames(&self) -> i64 {
        self.switch.with(|switch| switch.lost_frames())
    }
}

fn take_objects(reconciler: &mut Reconciler, objects: &Path) -> Result<(), ReplayNodeError> {
    let failed = |source| ReplayNodeError::Objects { path: objects.to_owned(), source };
    let watch = DirectoryStore::open(objects).map_err(failed)?.watch(&KINDS).map_err(failed)?;
    loop {
        let late = |_| ReplayNodeError::ObjectsLate(objects.to_owned());
        let event = watch.events.recv_timeout(OBJECTS).map_err(late)?;
        let synced = event == Event::Synced;
        reconciler.take(Input::Store(event));
        if synced {
            return Ok(());
        }
    }
}

/// A path to each other node: by the uplink that has an address of its family.
fn underlay(reconciler: &Reconciler, captures: &BTreeMap<String, Capture>) -> BTreeMap<IpAddr, UnderlayPath> {
    let (cluster, local) = (reconciler.cluster(), reconciler.local());
    let path = |destination: IpAddr| {
        let mut uplinks = local.uplinks.iter();
        let (port, uplink, source) = uplinks.find_map(|(port, uplink)| {
            let source = uplink.addresses.iter().find(|address| address.is_ipv4() == destination.is_ipv4())?;
            Some((*port, uplink, *source))
        })?;
        let capture = captures.get(uplink.interface.as_str());
        let next_hop = capture.and_then(|capture| sender_from(capture, destination));
        let path = UnderlayPath {
            on_link: false,
            port,
            source,
            source_mac: uplink.mac,
            next_hop: Some(next_hop.unwrap_or_else(|| made_up(&format!("node {destination}")))),
            mtu: uplink.mtu,
        };
        Some((destination, path))
    };
    plan::underlay_destinations(cluster, local).into_iter().filter_map(path).collect()
}

fn mac_at(frame: &[u8], at: usize) -> Option<Mac> {
    frame.get(at..at + 6).map(Mac::read).filter(|mac| !mac.is_group() && *mac != Mac::ZERO)
}

/// Source of the first frame.
fn sender(capture: &Capture) -> Option<Mac> {
    capture.frames().find_map(|frame| mac_at(frame.bytes, 6))
}

/// Destination of the first frame that is for one station.
fn own_mac(capture: &Capture) -> Option<Mac> {
    capture.frames().find_map(|frame| mac_at(frame.bytes, 0))
}

/// Source MAC address of the first frame from this address.
fn sender_from(capture: &Capture, address: IpAddr) -> Option<Mac> {
    let from = |bytes: &[u8]| parse(bytes, bytes.len()).is_ok_and(|headers| headers.source_address() == address);
    capture.frames().find(|frame| from(frame.bytes)).and_then(|frame| mac_at(frame.bytes, 6))
}

fn made_up(name: &str) -> Mac {
    let [.., a, b, c, d, e] = hash_64(name).to_be_bytes();
    Mac([0x02, a, b, c, d, e])
}
