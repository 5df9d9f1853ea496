//! Two nodes with pods and hosts, for tests of Services: a packet in at one of them, and where it comes out as what.
//!
//! A station outside is reached through a router on the link of the uplinks; it sends everything to the first node.
//!
//! Objects go the production way into production switches; frames that leave by an uplink go on at the other node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use millrace_control::cluster::NodeName;
use millrace_control::plan::{GATEWAY_MAC, LocalView, OutsidePath, OutsideView};
use millrace_control::store::{Object, ObjectStore};
use millrace_engine::counters::Event;
use millrace_engine::drop_reason::DropReason;
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::port::memory::{MemoryWire, WireFrame};
use millrace_engine::switch::SwitchOptions;
use millrace_engine::testing::node::Node;
use millrace_engine::testing::{ACK, SYN, checksums_valid, describe, frame};
use serde_json::{Value, json};

use crate::cluster::{ClusterNode, UNDERLAY_MTU, UPLINK, uplink_mac};
use crate::memory_store::MemoryStore;
use crate::objects;

/// Pods: name, number of the node, last part of the address.
const PODS: [(&str, usize, u8); 6] =
    [("client", 0, 5), ("second", 0, 6), ("local", 0, 7), ("local-2", 0, 8), ("remote", 1, 7), ("remote-2", 1, 8)];

/// A station outside of the cluster, behind a router on the link of all uplinks.
pub const OUTSIDE: &str = "outside";

/// MAC address of that router.
pub const ROUTER_MAC: Mac = Mac([2, 0xee, 0, 0, 0, 0xfe]);

/// The hosts themselves, by the number of their node.
const HOSTS: [&str; 2] = ["host", "host-b"];

/// A protocol of the transport layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A frame that came out at a pod.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// The pod, the host, or the station outside.
    pub pod: String,
    /// MAC address of the pod.
    pub receiver: Mac,
    /// The packet in words.
    pub text: String,
    /// The frame.
    pub frame: WireFrame,
}

#[derive(Debug)]
struct Pod {
    node: usize,
    port: u16,
    mac: Mac,
}

/// The two nodes.
#[derive(Debug)]
pub struct ServiceWorld {
    /// Where all objects are.
    pub store: MemoryStore,
    nodes: Vec<ClusterNode>,
    pods: BTreeMap<String, Pod>,
    /// What the first node's switch is built of.
    options: SwitchOptions,
}

impl Default for ServiceWorld {
    fn default() -> Self {
        Self::new()
    }
}

/// The address of a pod; of a host, its address among pods.
///
/// # Panics
/// If there is no such pod.
#[must_use]
pub fn pod_address(name: &str, ipv4: bool) -> IpAddr {
    if let Some(node) = HOSTS.iter().position(|known| *known == name) {
        let text = if ipv4 { format!("10.{}.0.0", node + 1) } else { format!("fd00:{}::", node + 1) };
        return text.parse().expect("address");
    }
    if name == OUTSIDE {
        return if ipv4 { "192.168.77.7" } else { "2001:db8:77::7" }.parse().expect("address");
    }
    let (_, node, last) = PODS.into_iter().find(|(known, ..)| *known == name).expect("a pod of this name");
    let text = if ipv4 { format!("10.{}.0.{last}", node + 1) } else { format!("fd00:{}::{last}", node + 1) };
    text.parse().expect("address")
}

/// The internal address of node `a` or `b`.
#[must_use]
pub fn node_address(node: usize, ipv4: bool) -> IpAddr {
    let text = if ipv4 { format!("192.0.2.{}", node + 1) } else { format!("2001:db8::{}", node + 1) };
    text.parse().expect("address")
}

/// The router's address on the link of the uplinks.
#[must_use]
pub fn router_address(ipv4: bool) -> IpAddr {
    if ipv4 { "192.0.2.254" } else { "2001:db8::fe" }.parse().expect("address")
}

/// What the kernel of node `a` or `b` knows of the ways by its uplink: the link's own networks and the router.
fn ways_out(node: usize) -> OutsideView {
    let mut view = OutsideView::default();
    for ipv4 in [true, false] {
        let (port, source, router) = (PortIndex(UPLINK), node_address(node, ipv4), router_address(ipv4));
        let [link, all] = if ipv4 { ["192.0.2.0/24", "0.0.0.0/0"] } else { ["2001:db8::/64", "::/0"] };
        for (prefix, gateway) in [(link, None), (all, Some(router))] {
            let path = OutsidePath { port, gateway, source, mtu: UNDERLAY_MTU };
            view.routes.insert(prefix.parse().expect("prefix"), path);
        }
        let other = node_address(1 - node, ipv4);
        view.neighbours.extend([((port, router), ROUTER_MAC), ((port, other), uplink_mac(2 - node as u8))]);
    }
    view
}

fn addresses(node: usize) -> [IpAddr; 2] {
    [node_address(node, true), node_address(node, false)]
}

/// Both nodes, their blocks and the range of the Services.
fn write_cluster(store: &MemoryStore) {
    let mut all = vec![objects::pool("four", "10.0.0.0/8", 24), objects::pool("six", "fd00::/16", 112)];
    for (number, name) in [(0, "a"), (1, "b")] {
        let mut node = objects::node(name, &addresses(number));
        node["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": if number == 0 { "east" } else { "west" }});
        all.push(node);
        all.push(objects::block(&format!("10.{}.0.0/24", number + 1), "four", name));
        all.push(objects::block(&format!("fd00:{}::/112", number + 1), "six", name));
    }
    all.push(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/112"]},
    }));
    all.iter().for_each(|object| drop(store.create(object).expect("object")));
}

/// Node `a` or `b`, with nothing plugged in.
fn made(
    number: usize,
    configure: &dyn Fn(&mut LocalView),
    options: &SwitchOptions,
    store: &MemoryStore,
) -> ClusterNode {
    let mut local = LocalView::new(NodeName::new(["a", "b"][number]).expect("node name"));
    local.outside = ways_out(number);
    configure(&mut local);
    ClusterNode::of_size(number as u8 + 1, local, &addresses(number), options.clone(), store)
}

fn without_kept(options: &SwitchOptions) -> SwitchOptions {
    SwitchOptions { kept_in: None, ..options.clone() }
}

fn at(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

impl ServiceWorld {
    /// Nodes `a` and `b` with all pods and no Service.
    ///
    /// # Panics
    /// If the machine gives no memory.
    #[must_use]
    pub fn new() -> Self {
        Self::built(&|_| {}, true, 1)
    }

    /// The same, but no host has a port of its own.
    ///
    /// # Panics
    /// If the machine gives no memory.
    #[must_use]
    pub fn without_hosts() -> Self {
        Self::built(&|_| {}, false, 1)
    }

    /// The same, with what an agent's configuration would say.
    ///
    /// # Panics
    /// If the machine gives no memory.
    #[must_use]
    pub fn configured(configure: &dyn Fn(&mut LocalView)) -> Self {
        Self::built(configure, true, 1)
    }

    /// The same with so many workers, which all receive from the uplink of the first node: its wires.
    ///
    /// # Panics
    /// If the machine gives no memory.
    #[must_use]
    pub fn with_workers(workers: usize) -> (Self, Vec<MemoryWire>) {
        let mut world = Self::built(&|_| {}, true, workers);
        let wires = world.nodes[0].receive_by_every_worker(UPLINK);
        (world, wires)
    }

    /// The same; connections of the first node outlive its switch in `directory`.
    ///
    /// # Panics
    /// If the machine gives no memory.
    #[must_use]
    pub fn kept_in(directory: &Path) -> Self {
        let options = SwitchOptions { kept_in: Some(directory.to_owned()), ..Node::options(1) };
        Self::with_switch(&|_| {}, true, options)
    }

    fn built(configure: &dyn Fn(&mut LocalView), with_hosts: bool, workers: usize) -> Self {
        Self::with_switch(configure, with_hosts, Node::options(workers))
    }

    fn with_switch(configure: &dyn Fn(&mut LocalView), with_hosts: bool, options: SwitchOptions) -> Self {
        let store = MemoryStore::default();
        write_cluster(&store);
        let nodes = vec![made(0, configure, &options, &store), made(1, configure, &without_kept(&options), &store)];
        let mut world = Self { store, nodes, pods: BTreeMap::new(), options };
        (0..HOSTS.len()).for_each(|node| world.populate(node, with_hosts));
        world.follow();
        world
    }

    /// Tells a new node what its kernel and its CNI server would.
    fn populate(&mut self, number: usize, with_host: bool) {
        let other = 1 - number;
        let next_hops = addresses(other).map(|address| (address, uplink_mac(other as u8 + 1)));
        self.nodes[number].tell_underlay(next_hops);
        if with_host {
            let (port, mac) = self.nodes[number].plug_host(&addresses(number));
            self.pods.insert(HOSTS[number].to_owned(), Pod { node: number, port, mac });
        }
        self.pods.insert(OUTSIDE.to_owned(), Pod { node: 0, port: UPLINK, mac: ROUTER_MAC });
        for (name, node, _) in PODS.into_iter().filter(|(_, node, _)| *node == number) {
            let own = [pod_address(name, true), pod_address(name, false)];
            let (port, mac) = self.nodes[node].plug_in(name, &own);
            self.pods.insert(name.to_owned(), Pod { node, port, mac });
        }
    }

    /// Ends the first node's switch and control plane and builds them anew, with another key for what is chosen by chance.
    ///
    /// # Panics
    /// If the machine gives no memory.
    pub fn restart(&mut self) {
        self.options.hash_seed = self.options.hash_seed.map(|seed| seed + 1);
        drop(self.nodes.remove(0));
        self.nodes.insert(0, made(0, &|_| {}, &self.options, &self.store));
        self.populate(0, true);
        self.follow();
    }

    /// Writes an object, in place of any of its name, and lets the nodes take it up.
    ///
    /// # Panics
    /// If the object is none, or a node finds it wrong.
    pub fn apply(&mut self, object: &Value) {
        let located = millrace_control::store::Located::from(object);
        let key = Object::read(located, None).expect("an object").key;
        match self.store.get(&key).expect("get") {
            Some(known) => drop(self.store.update(object, &known.resource_version).expect("update")),
            None => drop(self.store.create(object).expect("create")),
        }
        self.follow();
    }

    /// Has the kernel of the first node know the MAC address of a station on its uplink's link.
    pub fn tell_neighbour(&mut self, address: IpAddr, mac: Mac) {
        let mut view = ways_out(0);
        view.neighbours.insert((PortIndex(UPLINK), address), mac);
        self.nodes[0].tell_outside(view);
        self.follow();
    }

    /// Has the kernel of the first node prefer this address towards the outside.
    pub fn renumber(&mut self, source: IpAddr) {
        let mut view = ways_out(0);
        let paths = view.routes.values_mut().filter(|path| path.source.is_ipv4() == source.is_ipv4());
        paths.for_each(|path| path.source = source);
        self.nodes[0].tell_outside(view);
        self.follow();
    }

    /// Deletes an object of this kind and name in the namespace `default`.
    ///
    /// # Panics
    /// If there is none.
    pub fn delete(&mut self, kind: &str, name: &str) {
        let known = self.store.objects();
        let object = known.iter().find(|object| object.key.kind.kind == kind && object.key.name == name);
        let object = object.expect("an object of this name");
        self.store.delete(&object.key, &object.resource_version).expect("delete");
        self.follow();
    }

    fn follow(&mut self) {
        for node in &mut self.nodes {
            let settled = node.follow(usize::MAX);
            assert_eq!(settled.error, None);
            let own = settled.problems.iter().filter(|problem| {
                problem.object.as_ref().is_none_or(|key| matches!(key.kind.kind.as_ref(), "Service" | "EndpointSlice"))
            });
            assert_eq!(own.map(ToString::to_string).collect::<Vec<_>>(), Vec::<String>::new());
            node.switch().finish_sweeps();
        }
    }

    /// The first node.
    #[must_use]
    pub fn node(&self) -> &ClusterNode {
        &self.nodes[0]
    }

    /// Lets time pass at every node.
    pub fn wait(&self, time: std::time::Duration) {
        for node in &self.nodes {
            node.switch().clock.advance(time);
            node.switch().finish_sweeps();
        }
    }

    /// Where a pod sends everything to: its gateway; of the station outside, the first node.
    #[must_use]
    pub fn gateway(&self, pod: &str) -> Mac {
        if pod == OUTSIDE { uplink_mac(1) } else { GATEWAY_MAC }
    }

    /// The count of an event at the first node.
    #[must_use]
    pub fn count(&self, event: Event) -> u64 {
        self.nodes[0].switch().event(event)
    }

    /// Packets that the first node dropped for this reason.
    #[must_use]
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.nodes[0].switch().moved().get(reason.name()).copied().unwrap_or_default()
    }

    /// MAC address of a pod.
    #[must_use]
    pub fn mac(&self, pod: &str) -> Mac {
        self.pods[pod].mac
    }

    /// What a pod's opening packet to an address and port is: a SYN, a datagram, an INIT.
    #[must_use]
    pub fn opening(&self, pod: &str, port: u16, to: (IpAddr, u16), protocol: Protocol) -> WireFrame {
        let from = pod_address(pod, to.0.is_ipv4());
        let builder = frame().from(self.pods[pod].mac, from).to(self.gateway(pod), to.0).ports(port, to.1);
        match protocol {
            Protocol::Tcp => builder.tcp(SYN).sequence(u32::from(port) * 7, 0).ports(port, to.1).wire(),
            Protocol::Udp => builder.udp().ports(port, to.1).payload(b"ask").wire(),
            Protocol::Sctp => builder.sctp(0).ports(port, to.1).payload(&INIT).wire(),
        }
    }

    /// A pod's TCP packet in the middle of a connection.
    #[must_use]
    pub fn acknowledgement(&self, pod: &str, port: u16, to: (IpAddr, u16)) -> WireFrame {
        let from = pod_address(pod, to.0.is_ipv4());
        let builder = frame().from(self.pods[pod].mac, from).to(self.gateway(pod), to.0);
        builder.tcp(ACK).ports(port, to.1).payload(b"more").wire()
    }

    /// The answer of a pod to what it got: addresses and ports the other way round.
    ///
    /// # Panics
    /// If the packet has no ports.
    #[must_use]
    pub fn answer(&self, to: &Delivered, protocol: Protocol) -> WireFrame {
        let (source, destination) = ends(&to.text);
        let builder = frame().from(self.pods[&to.pod].mac, destination.0).to(self.gateway(&to.pod), source.0);
        let (from, to) = (destination.1, source.1);
        match protocol {
            Protocol::Tcp => builder.tcp(SYN | ACK).sequence(9, 10).ports(from, to).wire(),
            Protocol::Udp => builder.udp().ports(from, to).payload(b"answer").wire(),
            Protocol::Sctp => builder.sctp(5).ports(from, to).payload(&INIT_ACK).wire(),
        }
    }

    /// Sends a frame from a pod and follows it, and whatever comes of it, until nothing moves. Every frame that comes
    /// out must have right checksums.
    ///
    /// # Panics
    /// If one has not, or frames go round and round.
    pub fn send(&mut self, pod: &str, frame: WireFrame) -> Vec<Delivered> {
        let Pod { node, port, .. } = self.pods[pod];
        self.carry(node, port, frame)
    }

    /// The same for a frame of the station outside whose way leads to another node: that one must be its receiver.
    ///
    /// # Panics
    /// As `send`.
    pub fn send_outside_to(&mut self, node: usize, mut frame: WireFrame) -> Vec<Delivered> {
        frame.bytes[..6].copy_from_slice(&uplink_mac(node as u8 + 1).0);
        self.carry(node, UPLINK, frame)
    }

    fn carry(&mut self, node: usize, port: u16, frame: WireFrame) -> Vec<Delivered> {
        let (mut waiting, mut delivered, mut steps) = (vec![(node, port, frame)], Vec::new(), 0);
        while let Some((node, port, frame)) = waiting.pop() {
            steps += 1;
            assert!(steps < 100, "frames go round and round");
            self.nodes[node].inject(port, frame);
            for frame in self.nodes[node].switch().all_sent(UPLINK) {
                let next = self.nodes.iter().position(|node| node.uplink_mac == Mac::read(&frame.bytes));
                if Mac::read(&frame.bytes) == ROUTER_MAC {
                    assert_eq!(Mac::read(&frame.bytes[6..]), self.nodes[node].uplink_mac);
                    delivered.push(came_out(OUTSIDE, ROUTER_MAC, frame));
                } else {
                    waiting.extend(next.map(|next| (next, UPLINK, frame)));
                }
            }
            for (name, pod) in self.pods.iter().filter(|(_, pod)| pod.node == node && pod.port != UPLINK) {
                for frame in self.nodes[node].switch().all_sent(pod.port) {
                    delivered.push(came_out(name, pod.mac, frame));
                }
            }
        }
        delivered
    }

    /// What the first node's slow path would say of a frame of this pod.
    #[must_use]
    pub fn explain(&self, pod: &str, frame: &WireFrame) -> String {
        let Pod { node, port, .. } = self.pods[pod];
        self.nodes[node].switch().explain(port, frame)
    }

    /// Opens a connection and answers it; says what became of it: `local kept` (came out at pod `local` with the client's
    /// own source), `remote node` (with a source of the node), `reset`, `unreachable`, `nothing`.
    ///
    /// # Panics
    /// If the answer does not come back to the client from the address it called.
    pub fn open(&mut self, client: &str, port: u16, to: (IpAddr, u16), protocol: Protocol) -> String {
        let ipv4 = to.0.is_ipv4();
        let from = pod_address(client, ipv4);
        let sent = self.opening(client, port, to, protocol);
        let out = self.send(client, sent);
        let [got] = out.as_slice() else {
            assert!(out.is_empty(), "{out:?}");
            return "nothing".to_owned();
        };
        if got.text.starts_with("tcp rst") {
            assert_eq!(got.text, format!("tcp rst ack {} > {}", at(to.0, to.1), at(from, port)));
            assert_eq!(got.pod, client);
            let acknowledged = (u32::from(port) * 7 + 1).to_be_bytes();
            let header = if ipv4 { 34 } else { 54 };
            assert_eq!(got.frame.bytes[header + 4..header + 12], [&[0; 4], &acknowledged[..]].concat(), "{}", got.text);
            return "reset".to_owned();
        }
        if got.text.contains("port unreachable") {
            assert_eq!(got.pod, client);
            let about = format!("{} > {}", at(from, port), at(to.0, to.1));
            assert!(got.text.contains(&about), "{} is not about {about}", got.text);
            return "unreachable".to_owned();
        }
        let (source, destination) = ends(&got.text);
        assert_eq!(destination.0, pod_address(&got.pod, ipv4), "{}", got.text);
        // The host's own connections are the node's in any case.
        let whose = if source == (from, port) && client != "host" { "kept" } else { "node" };
        if whose == "node" {
            assert_eq!(source.0, pod_address("host", ipv4), "masqueraded as the node: {}", got.text);
        }
        let (pod, answer) = (got.pod.clone(), self.answer(got, protocol));
        let back = self.send(&pod, answer);
        let expected = format!("{} > {}", at(to.0, to.1), at(from, port));
        assert!(
            back.len() == 1 && back[0].pod == client && back[0].text.contains(&expected),
            "the answer of {pod} must come to {client} as {expected}: {:?}",
            back.iter().map(|delivered| &delivered.text).collect::<Vec<_>>()
        );
        format!("{pod} {whose}")
    }
}

fn came_out(pod: &str, receiver: Mac, frame: WireFrame) -> Delivered {
    let text = describe(&frame.bytes);
    if frame.partial_checksum.is_none() {
        checksums_valid(&frame.bytes).unwrap_or_else(|error| panic!("{text}: {error}"));
    }
    Delivered { pod: pod.to_owned(), receiver, text, frame }
}

/// First bytes of an INIT chunk and of an INIT ACK chunk (RFC 9260 sections 3.3.2 and 3.3.3).
const INIT: [u8; 20] = [1, 0, 0, 20, 0, 0, 0, 5, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
const INIT_ACK: [u8; 20] = [2, 0, 0, 20, 0, 0, 0, 6, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];

/// Source and destination of a packet in words.
///
/// # Panics
/// If it has no ports.
#[must_use]
pub fn ends(text: &str) -> ((IpAddr, u16), (IpAddr, u16)) {
    let words: Vec<&str> = text.split_whitespace().collect();
    let arrow = words.iter().position(|word| *word == ">").expect("source > destination");
    let end = |word: &str| {
        let end: std::net::SocketAddr = word.parse().unwrap_or_else(|_| panic!("{text}: {word} has no port"));
        (end.ip(), end.port())
    };
    (end(words[arrow - 1]), end(words[arrow + 1]))
}
