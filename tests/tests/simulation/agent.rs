//! One node: switch, control plane and allocators, and what a machine keeps when the agent ends: pods with their
//! interfaces and addresses, the clock, the memory of connections.
//!
//! Beside the agent stand the views by which it may lawfully judge: the newest one, and older ones while entries of its
//! flow cache may still rest on them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use millrace_control::cluster::{NetworkName, NodeName};
use millrace_control::ipam::{AddressAllocators, AddressRequest, AddressSource, IpamError};
use millrace_control::plan::{AttachedPod, LocalView, NodePlan, POD_SEGMENT};
use millrace_engine::clock::ManualClock;
use millrace_engine::flow_cache::FlowCacheLayout;
use millrace_engine::packet::{FrameMemoryLayout, Mac, PortIndex};
use millrace_engine::port::memory::WireFrame;
use millrace_engine::switch::SwitchOptions;
use millrace_engine::testing::node::Node;
use millrace_tests::cluster::{ClusterNode, uplink_mac};
use millrace_tests::policies::Plugged;

use crate::store::{Client, Store};
use crate::tenancy::NETWORKS;
use crate::view::View;

/// Turns in which a sweep of the small flow cache below is round, and one for its beginning.
const SWEEP_TICKS: usize = 4;

/// What is plugged in, as the machine has it.
#[derive(Clone, Debug)]
pub(crate) struct Attachment {
    pub(crate) port: u16,
    pub(crate) mac: Mac,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) network: usize,
    pub(crate) plugged: Plugged,
}

/// What happens at the same moment as a change of tables.
#[derive(Debug)]
pub(crate) struct Published {
    /// Why tables were refused.
    pub(crate) error: Option<String>,
    pub(crate) told: usize,
}

/// A node; `running` is its agent, if it has one.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) number: usize,
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    pub(crate) running: Option<ClusterNode>,
    /// Whether tables are in force.
    pub(crate) in_force: bool,
    pub(crate) attachments: BTreeMap<u32, Attachment>,
    /// Frames given to the ports of the present switch.
    pub(crate) injected: u64,
    pub(crate) restarts: usize,
    allocators: AddressAllocators,
    client: Client,
    clock: ManualClock,
    kept_in: Option<PathBuf>,
    workers: usize,
    /// What the agent has been told, whether in force or not.
    view: Rc<View>,
    lawful: Vec<(usize, Rc<View>)>,
    next_hops: Vec<(IpAddr, Mac)>,
}

fn network_name(network: usize) -> Option<NetworkName> {
    NETWORKS[network].object.map(|name| NetworkName::new(name).expect("a name"))
}

impl Agent {
    pub(crate) fn new(number: usize, address: IpAddr, workers: usize, store: &Store, kept_in: Option<PathBuf>) -> Self {
        let name = format!("n{number}");
        let node_name = NodeName::new(&name).expect("a name");
        Self {
            number,
            address,
            running: None,
            in_force: false,
            attachments: BTreeMap::new(),
            injected: 0,
            restarts: 0,
            allocators: AddressAllocators::new(node_name, AddressSource::Blocks),
            client: store.client(number),
            clock: ManualClock::new(),
            kept_in,
            workers,
            view: Rc::new(View::new(&name)),
            lawful: Vec::new(),
            next_hops: Vec::new(),
            name,
        }
    }

    fn options(&self) -> SwitchOptions {
        SwitchOptions {
            workers: self.workers,
            frame_memory: FrameMemoryLayout { head_frames: 1024, big_buffers: 4 },
            flows: FlowCacheLayout { ipv4: 1024, ipv6: 1024 },
            connections: 2048,
            hash_seed: Some(7 + self.restarts as u64),
            kept_in: self.kept_in.clone(),
            ..SwitchOptions::default()
        }
    }

    pub(crate) fn tell_underlay(&mut self, next_hops: Vec<(IpAddr, Mac)>) {
        self.next_hops = next_hops;
        if let Some(node) = &mut self.running {
            node.tell_underlay(self.next_hops.iter().copied());
        }
    }

    /// Starts the agent: what the machine kept is taken up again.
    pub(crate) fn start(&mut self) {
        let local = LocalView::new(NodeName::new(&self.name).expect("a name"));
        let switch = Node::on_clock(self.options(), self.clock.clone());
        let mut node = ClusterNode::around(self.number as u8 + 1, local, &[self.address], switch, &self.client);
        node.tell_underlay(self.next_hops.iter().copied());
        self.allocators = AddressAllocators::new(NodeName::new(&self.name).expect("a name"), AddressSource::Blocks);
        let mut view = View::new(&self.name);
        for (pod, attachment) in &self.attachments {
            for address in &attachment.addresses {
                let holder = format!("pod-{pod}");
                let network = network_name(attachment.network);
                self.allocators.restore(network.as_ref(), &holder, *address).expect("nobody has an address twice");
            }
            view.plug_in(*pod, attachment.network, attachment.plugged.clone());
            node.take_up(PortIndex(attachment.port), attached(*pod, attachment));
        }
        (self.injected, self.in_force) = (0, false);
        self.view = Rc::new(view);
        self.lawful.clear();
        self.running = Some(node);
    }

    /// Ends the agent as `kill -9` does.
    pub(crate) fn crash(&mut self, store: &Store, forget: bool) {
        self.running = None;
        self.in_force = false;
        self.lawful.clear();
        self.restarts += 1;
        store.end_watch(self.number);
        if let Some(directory) = self.kept_in.as_ref().filter(|_| forget) {
            std::fs::remove_dir_all(directory).expect("removed");
            std::fs::create_dir_all(directory).expect("a directory");
        }
    }

    /// Takes in what the store tells now and brings the tables into step; nothing if there is nothing to do.
    pub(crate) fn follow(&mut self, store: &Store, now: usize, changed: bool) -> Option<Published> {
        let node = self.running.as_mut()?;
        let told = store.deliver(self.number);
        self.in_force |= told.synced;
        let count = told.changes.len();
        if count == 0 && !told.synced && !changed {
            return None;
        }
        let view = Rc::make_mut(&mut self.view);
        told.changes.iter().for_each(|change| view.apply(change));
        let settled = node.publish(usize::MAX);
        if self.in_force && (settled.changes.is_some() || self.lawful.is_empty() || count > 0) {
            self.lawful.iter_mut().for_each(|(until, _)| *until = (*until).min(now + SWEEP_TICKS));
            self.lawful.push((usize::MAX, Rc::clone(&self.view)));
        }
        Some(Published { error: settled.error.map(|error| error.to_string()), told: count })
    }

    /// Forgets views that nothing can rest on any more.
    pub(crate) fn forget_views(&mut self, now: usize) {
        self.lawful.retain(|(until, _)| *until >= now);
    }

    /// The views by which the node may judge a packet now; none before tables are in force.
    pub(crate) fn views(&self) -> impl Iterator<Item = &View> {
        self.lawful.iter().map(|(_, view)| &**view)
    }

    /// Gives a pod addresses, as ADD does. It may fail; what was agreed upon in the store stays agreed upon.
    pub(crate) fn allocate(&mut self, pod: u32, network: usize) -> Result<Vec<IpAddr>, IpamError> {
        let Some(node) = self.running.as_ref().filter(|_| self.in_force) else { return Err(IpamError::NoPool) };
        let holder = format!("pod-{pod}");
        let cluster = node.control().cluster();
        let request = AddressRequest::any(&holder);
        self.allocators.allocate(network_name(network).as_ref(), &self.client, cluster, &request)
    }

    /// Plugs a pod in; the caller follows in the same tick.
    pub(crate) fn plug_in(&mut self, pod: u32, network: usize, plugged: Plugged) {
        let Some(node) = self.running.as_mut() else { return };
        let name = format!("{}/{}", plugged.namespace, plugged.name);
        let (port, mac) = node.plug_in_network(&name, &plugged.addresses, network_name(network));
        if let Some(uid) = &plugged.uid {
            node.tell_uid(port, uid);
        }
        Rc::make_mut(&mut self.view).plug_in(pod, network, plugged.clone());
        let addresses = plugged.addresses.clone();
        self.attachments.insert(pod, Attachment { port, mac, addresses, network, plugged });
    }

    /// Pulls a pod out and gives its addresses back, as DEL does; false if the agent is away.
    pub(crate) fn pull_out(&mut self, pod: u32) -> bool {
        let Some(node) = self.running.as_mut().filter(|_| self.in_force) else { return false };
        if let Some(attachment) = self.attachments.remove(&pod) {
            node.pull_out(attachment.port);
            Rc::make_mut(&mut self.view).pull_out(pod);
        }
        self.allocators.release(&format!("pod-{pod}"));
        true
    }

    /// Gives back what is not needed, as the agent does now and then; `now` runs faster than the ticks.
    pub(crate) fn maintain(&mut self, now: Instant) {
        let Some(node) = self.running.as_ref().filter(|_| self.in_force) else { return };
        let segment = |plan: &NodePlan| plan.segments.get(&POD_SEGMENT).map(|segment| segment.router_addresses.clone());
        let plan = node.control().publish_state().plan().cloned();
        let own = plan.as_deref().and_then(segment).unwrap_or_default();
        self.allocators.maintain(&self.client, node.control().cluster(), &own, now);
    }

    pub(crate) fn inject(&mut self, port: u16, frame: WireFrame) {
        if let Some(node) = &self.running {
            node.switch().queue(port, frame);
            self.injected += 1;
        }
    }

    pub(crate) fn advance(&self, time: Duration) {
        self.clock.advance(time);
    }

    pub(crate) fn uplink_mac(&self) -> Mac {
        uplink_mac(self.number as u8 + 1)
    }

    /// Frames that the switch says it received from its ports.
    pub(crate) fn received(&self) -> u64 {
        let Some(node) = &self.running else { return 0 };
        let switch = node.switch();
        let ports = |counters: &millrace_engine::counters::WorkerCounters| {
            (0..128).map(|port| counters.port(port).received_frames.get()).sum::<u64>()
        };
        switch.switch.counters().map(ports).sum()
    }
}

/// The pod as the agent's record of attachments has it.
fn attached(pod: u32, attachment: &Attachment) -> AttachedPod {
    let plugged = &attachment.plugged;
    AttachedPod {
        host_ports: Vec::new(),
        bandwidth: Default::default(),
        uid: plugged.uid.as_deref().map(Into::into),
        network: network_name(attachment.network),
        further: false,
        pod: millrace_control::cluster::PodName::new(&plugged.namespace, &plugged.name).expect("a name"),
        container_id: format!("pod-{pod}"),
        interface: millrace_control::cluster::InterfaceName::new("eth0").expect("a name"),
        mac: attachment.mac,
        addresses: attachment.addresses.clone(),
        mtu: millrace_tests::cluster::UNDERLAY_MTU - 50,
    }
}
