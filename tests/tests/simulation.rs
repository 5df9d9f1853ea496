//! A cluster in one thread: nodes with their control planes on one store, pods that come and go, a bad underlay.
//!
//! Addresses come from the production allocator, which claims blocks by compare-and-swap; objects reach each node
//! late and in parts; packets are lost, delayed and overtaken between nodes. Each packet carries who sent it to whom
//! and when. Held at every tick: every frame is accounted for, and no pod gets what was sent to another. Held at the
//! end, when nothing changes any more: every pod reaches every other, once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use millrace_control::cluster::NodeName;
use millrace_control::ipam::{AddressAllocator, AddressRequest};
use millrace_control::plan::GATEWAY_MAC;
use millrace_control::store::ObjectStore;
use millrace_engine::packet::Mac;
use millrace_engine::port::memory::WireFrame;
use millrace_engine::testing::{checksums_valid, describe, frame};
use millrace_tests::cluster::{ClusterNode, UPLINK};
use millrace_tests::memory_store::MemoryStore;
use millrace_tests::objects;
use millrace_tests::random::{Random, Rerun, seeds};

/// Length of a tick.
const TICK: Duration = Duration::from_millis(1);
/// Ticks of one seed.
const TICKS: usize = 250;
/// Pods of the whole cluster, at most.
const PODS: usize = 16;

#[derive(Clone, Debug)]
struct Pod {
    node: usize,
    port: u16,
    mac: Mac,
    addresses: Vec<IpAddr>,
}

struct Simulation {
    random: Random,
    store: Arc<MemoryStore>,
    nodes: Vec<ClusterNode>,
    allocators: Vec<AddressAllocator>,
    pods: BTreeMap<u32, Pod>,
    born: u32,
    tick: usize,
    /// Frames between nodes: tick of arrival, node, frame.
    under_way: Vec<(usize, usize, WireFrame)>,
    calm: bool,
    delivered: BTreeSet<(u32, u32)>,
    deliveries: usize,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let store = Arc::new(MemoryStore::default());
        let count = 3 + random.below(3);
        let create = |object| drop(store.create(&object).expect("object"));
        create(objects::pool("four", "10.0.0.0/16", 29));
        create(objects::pool("six", "fd00::/112", 125));
        let ipv6 = random.below(3) == 0;
        let address = |node: usize| -> IpAddr {
            let text = if ipv6 { format!("2001:db8::{}", node + 1) } else { format!("192.0.2.{}", node + 1) };
            text.parse().expect("address")
        };
        let mut nodes: Vec<ClusterNode> = (0..count)
            .map(|number| {
                let name = format!("n{number}");
                create(objects::node(&name, &[address(number)]));
                let workers = 1 + random.below(2);
                ClusterNode::new(number as u8 + 1, &name, &[address(number)], workers, store.as_ref())
            })
            .collect();
        let next_hops: Vec<_> = nodes.iter().enumerate().map(|(at, node)| (address(at), node.uplink_mac)).collect();
        for node in &mut nodes {
            let own = node.uplink_mac;
            node.tell_underlay(next_hops.iter().copied().filter(|(_, mac)| *mac != own));
        }
        let names = nodes.iter().map(|node| NodeName::new(&node.name).expect("node name"));
        let allocators = names.map(AddressAllocator::new).collect();
        let (pods, delivered) = (BTreeMap::new(), BTreeSet::new());
        let under_way = Vec::new();
        let (born, tick, deliveries, calm) = (0, 0, 0, false);
        Self { random, store, nodes, allocators, pods, born, tick, under_way, calm, delivered, deliveries }
    }

    fn run(&mut self) {
        for _ in 0..TICKS {
            match self.random.below(10) {
                0 | 1 if self.pods.len() < PODS => self.add_pod(),
                2 => self.remove_pod(),
                _ => {}
            }
            (0..self.random.below(8)).for_each(|_| self.send_something());
            self.advance();
        }
        self.converge();
    }

    /// Nothing changes any more: after every node has heard all, every pair can talk.
    fn converge(&mut self) {
        while self.pods.len() < 4 {
            self.add_pod();
        }
        self.calm = true;
        while self.nodes.iter().any(ClusterNode::is_behind) || !self.under_way.is_empty() {
            self.advance();
        }
        self.advance();
        self.delivered.clear();
        let names: Vec<u32> = self.pods.keys().copied().collect();
        let mut expected = BTreeSet::new();
        for from in &names {
            for to in names.iter().filter(|to| *to != from) {
                (0..2).for_each(|family| self.send(*from, *to, family));
                expected.insert((*from, *to));
            }
            (0..10).for_each(|_| self.advance());
        }
        let missing: Vec<_> = expected.difference(&self.delivered).collect();
        assert!(missing.is_empty(), "pods that cannot talk: {missing:?}");
        for node in &self.nodes {
            assert_eq!(node.switch().switch.lost_frames(), 0, "node {}", node.name);
            let problems = node.control().publish_state().status(std::time::Instant::now());
            assert_eq!(problems.last_error, None);
        }
    }

    fn add_pod(&mut self) {
        let node = self.random.below(self.nodes.len());
        // A node that has not heard of the pools yet has no addresses to give.
        if self.nodes[node].control().cluster().pools.len() < 2 {
            self.nodes[node].follow(usize::MAX);
        }
        let name = self.born;
        self.born += 1;
        let holder = format!("pod-{name}");
        let cluster = self.nodes[node].control().cluster().clone();
        let addresses = self.allocators[node]
            .allocate(self.store.as_ref(), &cluster, &AddressRequest::any(&holder))
            .expect("addresses");
        for pod in self.pods.values() {
            assert!(!pod.addresses.iter().any(|address| addresses.contains(address)), "{addresses:?} given twice");
        }
        let (port, mac) = self.nodes[node].plug_in(&holder, &addresses);
        self.pods.insert(name, Pod { node, port, mac, addresses });
        // The CNI server answers when the pod's tables are in force.
        self.nodes[node].follow(usize::MAX);
    }

    fn remove_pod(&mut self) {
        let names: Vec<u32> = self.pods.keys().copied().collect();
        if names.is_empty() {
            return;
        }
        let name = *self.random.pick(&names);
        let pod = self.pods.remove(&name).expect("a pod");
        self.nodes[pod.node].pull_out(pod.port);
        self.nodes[pod.node].follow(usize::MAX);
        self.allocators[pod.node].release(&format!("pod-{name}"));
    }

    fn send_something(&mut self) {
        let names: Vec<u32> = self.pods.keys().copied().collect();
        if names.len() < 2 {
            return;
        }
        let (from, to, family) = (*self.random.pick(&names), *self.random.pick(&names), self.random.below(2));
        self.send(from, to, family);
    }

    fn send(&mut self, from: u32, to: u32, family: usize) {
        let (source, target) = (&self.pods[&from], &self.pods[&to]);
        let label = [from.to_be_bytes(), to.to_be_bytes()].concat();
        let packet = frame().from(source.mac, source.addresses[family]).to(GATEWAY_MAC, target.addresses[family]);
        let packet = packet.udp().ports(from as u16, to as u16).payload(&label).wire();
        self.nodes[source.node].switch().queue(source.port, packet);
    }

    /// One tick: configuration trickles in, frames arrive, switches turn.
    fn advance(&mut self) {
        self.tick += 1;
        for node in &mut self.nodes {
            let events = if self.calm { usize::MAX } else { self.random.below(4) };
            if self.calm || self.random.below(3) == 0 {
                node.follow(events);
            }
            node.switch().clock.advance(TICK);
        }
        let (arrived, later): (Vec<_>, Vec<_>) = self.under_way.drain(..).partition(|(at, ..)| *at <= self.tick);
        self.under_way = later;
        for (_, node, frame) in arrived {
            self.nodes[node].switch().queue(UPLINK, frame);
        }
        for number in 0..self.nodes.len() {
            self.nodes[number].switch().settle();
            self.collect(number);
        }
    }

    fn collect(&mut self, number: usize) {
        let sent = self.nodes[number].switch().all_sent(UPLINK);
        for frame in sent {
            checksums_valid(&frame.bytes).expect("checksums on the underlay");
            let to = self.nodes.iter().position(|node| node.uplink_mac == Mac::read(&frame.bytes));
            let to = to.expect("a frame to a node");
            assert_ne!(to, number, "a node sends to itself");
            if self.calm {
                self.under_way.push((self.tick + 1, to, frame));
            } else if !self.random.per_mille(50) {
                let delay = 1 + self.random.below(5);
                self.under_way.push((self.tick + delay, to, frame));
            }
        }
        for (name, pod) in self.pods.iter().filter(|(_, pod)| pod.node == number) {
            for frame in self.nodes[number].switch().all_sent(pod.port) {
                let text = describe(&frame.bytes);
                assert_eq!(Mac::read(&frame.bytes), pod.mac, "pod {name} at {pod:?} got {text}");
                if !text.starts_with("udp ") {
                    // An ICMP error comes back to the sender it is about: its address is the pod's.
                    let own = pod.addresses.iter().any(|address| text.contains(&address.to_string()));
                    let error = text.trim_start_matches("class 48.not-ect ").starts_with("icmp");
                    assert!(own && error, "pod {name} got {text}");
                    continue;
                }
                let label = frame.bytes.last_chunk::<8>().expect("a label");
                let from = u32::from_be_bytes([label[0], label[1], label[2], label[3]]);
                let to = u32::from_be_bytes([label[4], label[5], label[6], label[7]]);
                // An address may have been given to a new pod while a packet to the old one was under way.
                let gone = !self.pods.contains_key(&to);
                assert!(to == *name || gone, "pod {name} got a packet from {from} to {to}: {text}");
                self.deliveries += 1;
                if to == *name {
                    self.delivered.insert((from, to));
                }
            }
        }
    }
}

#[test]
fn pods_of_a_changing_cluster_reach_each_other_and_nobody_else() {
    let mut deliveries = 0;
    for seed in seeds(1..21) {
        let _rerun = Rerun { test: "simulation", seed };
        let mut simulation = Simulation::new(seed);
        simulation.run();
        deliveries += simulation.deliveries;
    }
    println!("{deliveries} packets delivered");
    assert!(deliveries > 1000 || std::env::var_os("MILLRACE_SEED").is_some());
}
