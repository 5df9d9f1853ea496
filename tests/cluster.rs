//! Several nodes in one test: each a switch on memory ports with the real control plane, joined by their uplinks.
//!
//! Objects travel the production path (store, observe, plan, compile, publish) into the production switch. What the
//! CNI server and the host's kernel would tell (pods and ports plugged in, uplinks, next hops) is told by the test.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use millrace_control::cluster::{InterfaceName, NetworkName, NodeName, PodName, PortName};
use millrace_control::observe::KINDS;
use millrace_control::plan::{AttachedPod, LocalHost, LocalPort, LocalUplink, LocalView, OutsideView, UnderlayPath};
use millrace_control::publish::Tables;
use millrace_control::reconcile::{Input, Reconciler, Settled};
use millrace_control::store::{ObjectStore, Watch};
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::port::memory::{MemoryQueue, MemoryWire, WireFrame};
use millrace_engine::switch::SwitchOptions;
use millrace_engine::tables::{ChangeSet, Snapshot};
use millrace_engine::testing::node::Node;

/// The name of what is written `NAME`, of the namespace `default`, or `NAMESPACE/NAME`.
fn pod_name(text: &str) -> PodName {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    PodName::new(namespace, name).expect("pod name")
}

/// Port number of every node's uplink.
pub const UPLINK: u16 = 0;

/// Port number of every host's own port.
pub const HOST: u16 = 90;
/// First port number of bridges.
const FIRST_BRIDGE_PORT: u16 = 100;

/// MTU of the underlay and of uplinks.
pub const UNDERLAY_MTU: u32 = 1500;

/// The switch's end of a node's control plane.
struct SwitchTables {
    node: Arc<Mutex<Node>>,
}

impl Tables for SwitchTables {
    fn current(&self) -> Arc<Snapshot> {
        locked(&self.node).switch.tables()
    }

    fn publish(&mut self, snapshot: Snapshot) -> ChangeSet {
        locked(&self.node).switch.publish(snapshot)
    }

    fn collect(&mut self) {
        locked(&self.node).switch.collect_tables();
    }

    fn generation_in_use(&self) -> u64 {
        locked(&self.node).switch.generation_in_use()
    }

    fn retired(&self) -> usize {
        locked(&self.node).switch.retired_tables()
    }
}

fn locked<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One node.
pub struct ClusterNode {
    /// Its name.
    pub name: String,
    /// MAC address of its uplink.
    pub uplink_mac: Mac,
    number: u8,
    addresses: Vec<IpAddr>,
    node: Arc<Mutex<Node>>,
    reconciler: Reconciler,
    watch: Watch,
    pods: BTreeMap<PortIndex, AttachedPod>,
    bridge_ports: BTreeMap<PortIndex, LocalPort>,
}

impl std::fmt::Debug for ClusterNode {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ClusterNode").field("name", &self.name).finish_non_exhaustive()
    }
}

/// MAC address of the uplink of node `number`.
#[must_use]
pub fn uplink_mac(number: u8) -> Mac {
    Mac([2, 0xee, 0, 0, 0, number])
}

impl ClusterNode {
    /// Node `number` with its uplink plugged in, following `store`.
    ///
    /// # Panics
    /// If the name is none.
    #[must_use]
    pub fn new(number: u8, name: &str, addresses: &[IpAddr], workers: usize, store: &dyn ObjectStore) -> Self {
        let local = LocalView::new(NodeName::new(name).expect("node name"));
        Self::configured(number, local, addresses, workers, store)
    }

    /// The same with what an agent's configuration says in `local`.
    ///
    /// # Panics
    /// If the machine gives no memory.
    #[must_use]
    pub fn configured(
        number: u8,
        local: LocalView,
        addresses: &[IpAddr],
        workers: usize,
        store: &dyn ObjectStore,
    ) -> Self {
        Self::around(number, local, addresses, Node::new(workers), store)
    }

    /// The same with a switch of another size.
    ///
    /// # Panics
    /// If the machine gives no memory.
    #[must_use]
    pub fn of_size(
        number: u8,
        local: LocalView,
        addresses: &[IpAddr],
        options: SwitchOptions,
        store: &dyn ObjectStore,
    ) -> Self {
        Self::around(number, local, addresses, Node::with_options(options), store)
    }

    /// The same with this switch, of which nothing is plugged in yet.
    ///
    /// # Panics
    /// If the store gives no watch.
    #[must_use]
    pub fn around(number: u8, local: LocalView, addresses: &[IpAddr], mut node: Node, store: &dyn ObjectStore) -> Self {
        let name = local.node.as_str().to_owned();
        node.attach(UPLINK, MemoryQueue::LIKE_AF_XDP, 0);
        let node = Arc::new(Mutex::new(node));
        let tables = SwitchTables { node: Arc::clone(&node) };
        let mut reconciler = Reconciler::publishing_to(local, Box::new(tables));
        let uplink = LocalUplink {
            interface: InterfaceName::new("eth1").expect("interface"),
            mac: uplink_mac(number),
            mtu: UNDERLAY_MTU,
            addresses: addresses.to_vec(),
            link_up: true,
        };
        reconciler.take(Input::Uplinks(BTreeMap::from([(PortIndex(UPLINK), uplink)])));
        Self {
            name,
            uplink_mac: uplink_mac(number),
            number,
            addresses: addresses.to_vec(),
            node,
            reconciler,
            watch: store.watch(&KINDS).expect("watch"),
            pods: BTreeMap::new(),
            bridge_ports: BTreeMap::new(),
        }
    }

    /// The switch.
    pub fn switch(&self) -> MutexGuard<'_, Node> {
        locked(&self.node)
    }

    /// Its control plane.
    #[must_use]
    pub fn control(&self) -> &Reconciler {
        &self.reconciler
    }

    /// Tells the next hop towards each address that is given; others are unresolved. The underlay is made of subnets of
    /// /24 and /64.
    pub fn tell_underlay(&mut self, next_hops: impl IntoIterator<Item = (IpAddr, Mac)>) {
        let source = |address: IpAddr| self.addresses.iter().find(|own| own.is_ipv4() == address.is_ipv4()).copied();
        let on_link = |one: IpAddr, other: IpAddr| match (one, other) {
            (IpAddr::V4(one), IpAddr::V4(other)) => one.octets()[..3] == other.octets()[..3],
            (IpAddr::V6(one), IpAddr::V6(other)) => one.octets()[..8] == other.octets()[..8],
            _ => false,
        };
        let paths = next_hops.into_iter().filter_map(|(address, mac)| {
            let path = UnderlayPath {
                on_link: on_link(address, source(address)?),
                port: PortIndex(UPLINK),
                source: source(address)?,
                source_mac: self.uplink_mac,
                next_hop: Some(mac),
                mtu: UNDERLAY_MTU,
            };
            Some((address, path))
        });
        let paths = paths.collect();
        self.reconciler.take(Input::Underlay(paths));
    }

    /// Tells what the host's kernel knows of the ways to the outside.
    pub fn tell_outside(&mut self, outside: OutsideView) {
        self.reconciler.take(Input::Outside(outside));
    }

    /// Gives the host its own port, with these addresses beside those that the plan gives it; says which.
    pub fn plug_host(&mut self, addresses: &[IpAddr]) -> (u16, Mac) {
        let mac = Mac([2, 0, 0, 0, self.number, HOST as u8]);
        self.switch().attach(HOST, MemoryQueue::LIKE_TAP, 0);
        let host = LocalHost {
            port: PortIndex(HOST),
            interface: InterfaceName::new("millrace0").expect("interface"),
            mac,
            mtu: UNDERLAY_MTU - 50,
            own_addresses: Vec::new(),
            addresses: addresses.to_vec(),
        };
        self.reconciler.take(Input::Host(Some(host)));
        (HOST, mac)
    }

    /// Plugs a pod in, as the CNI server would, at the first free port; says which.
    ///
    /// # Panics
    /// If the name is none.
    pub fn plug_in(&mut self, name: &str, addresses: &[IpAddr]) -> (u16, Mac) {
        self.plug_in_network(name, addresses, None)
    }

    /// The same into a network instead of the pods' segment.
    ///
    /// # Panics
    /// If the name is none.
    pub fn plug_in_network(&mut self, name: &str, addresses: &[IpAddr], network: Option<NetworkName>) -> (u16, Mac) {
        let taken = |port: &u16| self.pods.contains_key(&PortIndex(*port));
        let port = (1..).find(|port| !taken(port)).unwrap_or_else(|| unreachable!("fewer pods than numbers"));
        let mac = Mac([2, 0, 0, 0, self.number, port as u8]);
        let workers = self.switch().switch.options().workers;
        self.switch().attach(port, MemoryQueue::LIKE_TAP, usize::from(port) % workers);
        let pod = AttachedPod {
            host_ports: Vec::new(),
            bandwidth: Default::default(),
            uid: None,
            network,
            further: false,
            pod: pod_name(name),
            container_id: name.replace('/', "-"),
            interface: InterfaceName::new("eth0").expect("interface"),
            mac,
            addresses: addresses.to_vec(),
            mtu: self.reconciler.publish_state().plan().map_or(UNDERLAY_MTU - 50, |plan| plan.pod_mtu),
        };
        self.pods.insert(PortIndex(port), pod);
        self.reconciler.take(Input::Pods(self.pods.clone()));
        (port, mac)
    }

    /// Takes a pod up again at its port, as an agent that starts does with those it has a record of.
    pub fn take_up(&mut self, port: PortIndex, pod: AttachedPod) {
        let workers = self.switch().switch.options().workers;
        self.switch().attach(port.0, MemoryQueue::LIKE_TAP, usize::from(port.0) % workers);
        self.pods.insert(port, pod);
        self.reconciler.take(Input::Pods(self.pods.clone()));
    }

    /// Says what uid the runtime told of the pod at a port.
    pub fn tell_uid(&mut self, port: u16, uid: &str) {
        if let Some(pod) = self.pods.get_mut(&PortIndex(port)) {
            pod.uid = Some(uid.into());
        }
        self.reconciler.take(Input::Pods(self.pods.clone()));
    }

    /// Has every worker receive from a port: one wire for each.
    pub fn receive_by_every_worker(&mut self, port: u16) -> Vec<MemoryWire> {
        let capabilities = if port == UPLINK { MemoryQueue::LIKE_AF_XDP } else { MemoryQueue::LIKE_TAP };
        self.switch().detach(port);
        self.switch().attach_to_every_worker(port, capabilities)
    }

    /// Pulls a pod out.
    pub fn pull_out(&mut self, port: u16) {
        self.pods.remove(&PortIndex(port));
        self.reconciler.take(Input::Pods(self.pods.clone()));
        self.switch().detach(port);
    }

    /// Plugs a port of a bridge in, as the agent does with the object's interface; says at which number.
    ///
    /// # Panics
    /// If the name is none.
    pub fn plug_bridge_port_in(&mut self, name: &str) -> u16 {
        let taken = |port: &u16| self.bridge_ports.contains_key(&PortIndex(*port));
        let port = (FIRST_BRIDGE_PORT..).find(|port| !taken(port)).unwrap_or_else(|| unreachable!("few ports"));
        let workers = self.switch().switch.options().workers;
        self.switch().attach(port, MemoryQueue::LIKE_TAP, usize::from(port) % workers);
        let local = LocalPort { name: PortName::new(name).expect("port name"), mtu: UNDERLAY_MTU };
        self.bridge_ports.insert(PortIndex(port), local);
        self.reconciler.take(Input::BridgePorts(self.bridge_ports.clone()));
        port
    }

    /// Pulls a port of a bridge out.
    pub fn pull_bridge_port_out(&mut self, port: u16) {
        self.bridge_ports.remove(&PortIndex(port));
        self.reconciler.take(Input::BridgePorts(self.bridge_ports.clone()));
        self.switch().detach(port);
    }

    /// Takes in at most `events` of the store's events and brings the tables into step.
    pub fn follow(&mut self, events: usize) -> Settled {
        let settled = self.publish(events);
        self.switch().settle();
        settled
    }

    /// The same without a turn of the switch: the workers have yet to take the tables up.
    pub fn publish(&mut self, events: usize) -> Settled {
        for event in self.watch.events.try_iter().take(events) {
            self.reconciler.take(Input::Store(event));
        }
        self.reconciler.settle(Instant::now())
    }

    /// Whether the store has told something that this node has not taken in.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        !self.watch.events.is_empty()
    }

    /// Sends a frame into a port and lets the switch come to rest.
    pub fn inject(&self, port: u16, frame: WireFrame) {
        self.switch().inject(port, frame);
    }

    /// All pods plugged in, with their ports.
    #[must_use]
    pub fn pods(&self) -> &BTreeMap<PortIndex, AttachedPod> {
        &self.pods
    }
}
