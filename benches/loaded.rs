//! Question: what does a packet of a known flow cost on each way through the switch when the node's tables are full: 10,000
//! policies and 10,000 Services of ten endpoints?
//!
//! Shape: one worker of a switch built by the production constructor, with anti-spoofing and counters; UDP,
//! frames of 60 bytes (74 over IPv6) before encapsulation; 1k flows, 131k flows Zipf 1.0, 1M flows uniform, which differ in client port
//! and destination port. The cluster of `policy_cluster.rs`, and 10,000 Services. Both pods are selected by policies that
//! let these packets pass; every flow has a connection. `L3`: pod to pod. `DNAT`: pod to a ClusterIP whose endpoint
//! is the other pod. `encap`: pod to a pod of another node. `decap`: the other way, and routed to the pod. `whole`: pod
//! to a ClusterIP whose endpoint is on another node, so Service, policy, connection and tunnel.
//! Unit: cycles of the time-stamp counter for a packet, lowest and median of short runs of 4,096 packets, whole turns
//! counted. Ports are rings of descriptors, see `ring_queue.rs`; their cost is in every row.
//! Reference: `L3`; the rows of one size are run by turns, since the machine's speed drifts.
//! Expected: goals at 1k / 131k Zipf / 1M are L3 40 / 65 / 140; DNAT 45 / 70 / 150; encap 48 / 75 / 160; decap 45 / 70 /
//! 145; whole 60 / 90 / 190.
//! Checksum: packets sent are compared with packets that arrived, hits with the shape, picks with the Services' flows.

mod crossing;
#[allow(dead_code)]
mod cycles;
mod flows;
mod instructions;
#[allow(dead_code)]
mod policy_cluster;
mod ring_queue;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crossing::{Crossing, RUN};
use cycles::Runs;
use flows::Spread;
use millrace_control::observe::Touched;
use millrace_control::plan::policy::PolicyPlanner;
use millrace_engine::clock::{Clock, ManualClock};
use millrace_engine::counters::Event;
use millrace_engine::flow_cache::FlowCacheLayout;
use millrace_engine::packet::parse::protocol;
use millrace_engine::packet::{FrameMemoryLayout, Mac, PortIndex};
use millrace_engine::port::PortQueue;
use millrace_engine::port::memory::MemoryQueue;
use millrace_engine::switch::{Switch, SwitchOptions};
use millrace_engine::tables::policy::PolicyTable;
use millrace_engine::tables::services::{
    Balance, Endpoint, EndpointSet, EndpointState, Frontend, FrontendKind, Scope, SegmentServices, ServiceId,
    ServicePort,
};
use millrace_engine::tables::{SegmentIndex, Snapshot};
use millrace_engine::testing::frame;
use millrace_engine::testing::node::{GATEWAY_MAC, TestPeer, TestPod, pods_snapshot, uplink_mac};
use policy_cluster::{Size, address, address_v6, let_in};
use ring_queue::{FIRST_PORT, RingQueue, Traffic};
use serde_json::json;

const SEED: u64 = 20_261_126;
const UPLINK: u16 = 0;
const SENDER: u16 = 1;
const RECEIVER: u16 = 2;
/// Numbers of the pods in the cluster: the receiver, and two that its policy lets in, one of them on another node.
const RECEIVING: usize = 0;
const SENDING: usize = let_in(0);
const REMOTE: usize = let_in(2);
/// Numbers of the ClusterIPs whose endpoint is the receiver, and the pod on the other node.
const LOCAL_VIP: u32 = 0xff01;
const REMOTE_VIP: u32 = 0xff02;
/// Ports of either: enough for a million flows.
const PORTS: u16 = 17;
/// An endpoint's port less the Service's.
const PORT_SHIFT: u16 = 10_000;
const ENDPOINTS: usize = 10;
/// Head frames: those of a run that arrive and those of the run before that were sent, and some more.
const FRAMES: FrameMemoryLayout = FrameMemoryLayout { head_frames: 3 * RUN, big_buffers: 16 };

/// What fills the tables.
#[derive(Clone, Copy)]
struct Load {
    pods: Size,
    policies: usize,
    services: usize,
}

impl Load {
    fn asked(short: bool) -> Self {
        if short {
            Self { pods: Size { local: 400, remote: 20_100, dual_stack: true }, policies: 200, services: 100 }
        } else {
            Self { pods: Size { local: 1_000, remote: 100_000, dual_stack: true }, policies: 10_000, services: 10_000 }
        }
    }
}

/// What addresses are of.
#[derive(Clone, Copy, PartialEq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const ALL: [Family; 2] = [Family::V4, Family::V6];

    fn pod(self, number: usize) -> IpAddr {
        if self == Family::V4 { address(number) } else { address_v6(number) }
    }

    fn vip(self, number: u32) -> IpAddr {
        let [.., high, low] = number.to_be_bytes();
        match self {
            Family::V4 => Ipv4Addr::new(172, 30, high, low).into(),
            Family::V6 => Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, number as u16).into(),
        }
    }
}

/// The way of the packets.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Route,
    Service,
    Encapsulate,
    Decapsulate,
    Whole,
}

impl Way {
    const ALL: [Way; 5] = [Way::Route, Way::Service, Way::Encapsulate, Way::Decapsulate, Way::Whole];

    fn name(self) -> &'static str {
        ["L3", "DNAT", "encap", "decap", "whole"][self as usize]
    }

    /// Where packets come in and where they go.
    fn ports(self) -> (u16, u16) {
        match self {
            Way::Route | Way::Service => (SENDER, RECEIVER),
            Way::Encapsulate | Way::Whole => (SENDER, UPLINK),
            Way::Decapsulate => (UPLINK, RECEIVER),
        }
    }

    fn traffic(self, family: Family, order: Vec<u32>, again: usize) -> Traffic {
        let datagram = frame().udp().payload_of(if family == Family::V4 { 18 } else { 12 });
        let (address, vip) = (|number| family.pod(number), |number| family.vip(number));
        let sent = |to: IpAddr| datagram.clone().from(mac(SENDER), address(SENDING)).to(GATEWAY_MAC, to);
        let frame = match self {
            Way::Route => sent(address(RECEIVING)),
            Way::Service => sent(vip(LOCAL_VIP)),
            Way::Encapsulate => sent(address(REMOTE)),
            Way::Whole => sent(vip(REMOTE_VIP)),
            Way::Decapsulate => {
                let outer = frame().from("02:ff:00:00:00:01", "192.0.2.2").to(uplink_mac(UPLINK), "192.0.2.1");
                let inner = datagram.from(mac(202), address(REMOTE)).to(mac(201), address(RECEIVING));
                inner.inside_vxlan(1, outer.ports(50_000, 8_472))
            }
        };
        let inner = if self == Way::Decapsulate { 50 } else { 0 };
        let ports_offset = inner + if family == Family::V4 { 34 } else { 54 };
        Traffic { template: frame.build(), ports_offset, order, again, answers_from: None }
    }
}

fn mac(number: u16) -> Mac {
    Mac([2, 0, 0x5e, 0, 0x53, number as u8])
}

/// The policies of the cluster as they stand for the two pods, and one more that judges what the sender sends.
fn policies(load: Load) -> PolicyTable {
    let mut observed = policy_cluster::cluster(load.pods, load.policies);
    let egress = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "sends", "namespace": "n0"},
        "spec": {
            "podSelector": {"matchLabels": {"number": format!("x{SENDING}")}}, "policyTypes": ["Egress"],
            "egress": [{"ports": [{"protocol": "UDP", "port": 1024, "endPort": 65535}]}],
        },
    });
    policy_cluster::take(&mut observed, &egress);
    let local = policy_cluster::local(load.pods, [(PortIndex(SENDER), SENDING), (PortIndex(RECEIVER), RECEIVING)]);
    PolicyPlanner::default().update(observed.cluster(), &local, &Touched::everything(observed.cluster()))
}

/// Two pods, a node with a third one, policies and Services.
fn snapshot(load: Load, policy: &PolicyTable) -> Snapshot {
    let pod = |port, number| TestPod {
        port,
        mac: mac(port),
        addresses: Family::ALL.map(|family| family.pod(number)).to_vec(),
    };
    let peer = TestPeer {
        address: "192.0.2.2".parse().expect("address"),
        source: "192.0.2.1".parse().expect("address"),
        tunnel_mac: mac(202),
        prefixes: Family::ALL.map(|family| family.pod(REMOTE).into()).to_vec(),
    };
    let pods = [pod(SENDER, SENDING), pod(RECEIVER, RECEIVING)];
    let mut snapshot = Snapshot { policy: policy.clone(), ..pods_snapshot(&pods, UPLINK, mac(201), &[peer]) };
    snapshot.services.edit(SegmentIndex(0), |services| {
        for (place, family) in Family::ALL.into_iter().enumerate() {
            let kind = |of: u64| of << 1 | place as u64;
            for port in FIRST_PORT..FIRST_PORT + PORTS {
                insert(services, family.vip(LOCAL_VIP), port, (port, kind(1)), &[family.pod(RECEIVING)]);
                insert(services, family.vip(REMOTE_VIP), port, (port, kind(2)), &[family.pod(REMOTE)]);
            }
            for number in 0..load.services {
                let pod = |at: usize| family.pod((number * ENDPOINTS + at * 37) % load.pods.pods());
                let endpoints: Vec<_> = (0..ENDPOINTS).map(pod).collect();
                insert(services, family.vip(number as u32), 80, (number as u16, kind(3)), &endpoints);
            }
        }
    });
    snapshot
}

fn insert(services: &mut SegmentServices, vip: IpAddr, port: u16, number: (u16, u64), endpoints: &[IpAddr]) {
    let endpoint = |address: &IpAddr| Endpoint {
        name: format!("pod {address}").into(),
        address: *address,
        port: port.wrapping_add(PORT_SHIFT),
        weight: 1,
        local: true,
        state: EndpointState::Ready,
    };
    let endpoints: Vec<_> = endpoints.iter().map(endpoint).collect();
    let all = EndpointSet::new(&endpoints, 0..endpoints.len() as u16, Balance::Random);
    let scope = Scope { all, by_client: Arc::default(), hinted: false };
    let service = ServicePort {
        id: ServiceId(number.1 << 48 | u64::from(number.0) << 32),
        name: format!("bench/{vip} {port}").into(),
        protocol: protocol::UDP,
        endpoints: endpoints.into(),
        cluster: scope.clone(),
        local: scope,
        any_usable: true,
        internal_local: false,
        external_local: false,
        affinity: None,
        balance: Balance::Random,
    };
    let frontend = Frontend { kind: FrontendKind::ClusterIp, service: Arc::new(service), sources: None };
    services.insert(vip, protocol::UDP, port, frontend);
}

fn name(way: Way, family: Family, flows: Spread) -> String {
    format!("{} {} {}", way.name(), if family == Family::V4 { "IPv4" } else { "IPv6" }, flows.name())
}

/// A switch whose one worker forwards one kind of traffic.
struct Workload {
    name: String,
    crossing: Crossing,
}

impl Workload {
    fn new((way, family): (Way, Family), flows: Spread, tables: Snapshot, packets: usize) -> Self {
        let cached = flows.count().max(1 << 14) as usize;
        let [ipv4, ipv6] = Family::ALL.map(|other| if other == family { cached + cached / 4 } else { 1 << 12 });
        let options = SwitchOptions {
            frame_memory: FRAMES,
            flows: FlowCacheLayout { ipv4, ipv6 },
            connections: 2 * cached,
            // Stands still: filling tables of a million for several rows takes longer than one-way flows live.
            clock: Clock::Manual(ManualClock::new()),
            hash_seed: Some(SEED),
            ..SwitchOptions::default()
        };
        let mut switch = Switch::new(options).expect("switch");
        switch.publish(tables);
        let (ingress, egress) = way.ports();
        let controls = [UPLINK, SENDER, RECEIVER].map(|port| {
            let traffic =
                (port == ingress).then(|| way.traffic(family, flows.order(SEED, packets), flows.count() as usize));
            let capabilities = if port == UPLINK { MemoryQueue::LIKE_AF_XDP } else { MemoryQueue::LIKE_TAP };
            let (queue, control) = RingQueue::new(port, traffic, capabilities, RUN);
            switch.attach(queue.port(), vec![Some(Box::new(queue))]).expect("attach");
            control
        });
        let (source, target) = (Arc::clone(&controls[ingress as usize]), Arc::clone(&controls[egress as usize]));
        let name = name(way, family, flows);
        let mut workload = Self { name, crossing: Crossing { switch, source, target } };
        for _ in 0..flows.count().div_ceil(RUN as u32) + 1 {
            workload.crossing.prepare();
            workload.run();
        }
        let picked = if matches!(way, Way::Service | Way::Whole) { u64::from(flows.count()) } else { 0 };
        let seen = [Event::ConnectionsNew, Event::ServicePicked].map(|event| workload.crossing.event(event));
        assert_eq!(seen, [u64::from(flows.count()), picked], "{}: connections, picks", workload.name);
        workload
    }

    /// All packets that arrived cross the switch.
    fn run(&mut self) {
        assert_eq!(self.crossing.run(), RUN as u64, "{}: packets sent", self.name);
    }
}

/// All workloads of one size by turns; a line of result each. The first is what the others are divided by.
fn interleaved(workloads: &mut [Workload], passes: usize) {
    let mut runs: Vec<Runs> = workloads.iter().map(|_| Runs::default()).collect();
    let hits = |workload: &Workload| workload.crossing.event(Event::FlowCacheHit);
    let before: Vec<_> = workloads.iter().map(hits).collect();
    for _ in 0..passes {
        for (workload, runs) in workloads.iter_mut().zip(&mut runs) {
            workload.crossing.prepare();
            runs.time(RUN, || workload.run());
        }
    }
    let reference = runs.first_mut().map_or(1.0, |runs| runs.summary().0);
    for ((workload, runs), before) in workloads.iter().zip(&mut runs).zip(before) {
        let share = (hits(workload) - before) as f64 / (passes * RUN) as f64;
        assert!(share > 0.99, "{}: {share} hits", workload.name);
        println!("{:20} {} | lowest, of the first {:.2}", workload.name, runs.text(), runs.summary().0 / reference);
    }
}

/// Flows of the rows whose instructions are counted; with more they are the same.
const COUNTABLE: Spread = Spread::Uniform(1 << 10);

fn countable() -> impl Iterator<Item = (Way, Family)> {
    Family::ALL.into_iter().flat_map(|family| Way::ALL.map(|way| (way, family)))
}

/// One run of the row of this name, for callgrind. Tables are small: what they hold beside costs cache lines, not instructions.
fn count_row(row: &str) {
    let (way, family) = countable().find(|(way, family)| name(*way, *family, COUNTABLE) == row).expect("a row");
    let load = Load::asked(true);
    let mut workload = Workload::new((way, family), COUNTABLE, snapshot(load, &policies(load)), 1 << 12);
    workload.crossing.prepare();
    instructions::counted(&mut || workload.run());
}

fn main() {
    // Without `--bench` this is a test run: small tables, two passes.
    let short = !std::env::args().any(|argument| argument == "--bench");
    let asked = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let load = Load::asked(short);
    if let Some(row) = instructions::row() {
        return count_row(&row);
    }
    if instructions::are_asked_for() {
        return instructions::compare("loaded", countable().map(|(way, family)| name(way, family, COUNTABLE)), RUN);
    }
    let policy = policies(load);
    let (large, huge) = if short { (1 << 11, 1 << 12) } else { (1 << 17, 1 << 20) };
    for flows in [Spread::Uniform(1 << 10), Spread::Zipf(large), Spread::Uniform(huge)] {
        for family in Family::ALL {
            let ways = Way::ALL.into_iter().filter(|way| name(*way, family, flows).contains(&asked));
            let packets = if short { 1 << 12 } else { 1 << 18 };
            let workload = |way| Workload::new((way, family), flows, snapshot(load, &policy), packets);
            interleaved(&mut ways.map(workload).collect::<Vec<_>>(), if short { 2 } else { 100 });
        }
    }
}
