//! Question: what does a packet cost from port to port: receive, parse, look up, edit, transmit?
//!
//! Shape: one worker of a switch built by the production constructor, with its default flow cache but for twice the
//! room; UDP frames of 60 bytes (74 over IPv6), before encapsulation; 1, 1k and 131k flows (Zipf 1.0), which differ in
//! their ports. Pod to pod (routed), pod to uplink (routed, VXLAN over IPv4 put on), uplink to pod (VXLAN taken off,
//! routed); and misses: every packet a new flow, which is decided and cached in place of another.
//! Unit: nanoseconds and cycles of the time-stamp counter for a packet, lowest and median of short runs, whole turns
//! counted. Ports are `LoopQueue`s, whose own cost is the row "port alone" and is in all others.
//! Warm: all flows are in the cache before the first run; frames lie in the processor's cache as a NIC would leave
//! them, tables as their size allows.
//! Reference: parse, a `hashbrown` table asked one packet at a time, and the same edit, on the same port; run by turns
//! with the worker, since the machine's speed drifts.
//! Expected: goals for a routed packet are 50 core cycles with one flow, 80 at 131k Zipf, without the ports.
//! Checksum: packets sent and hits are compared with the packets that arrived.

mod cycles;
mod flows;
mod loop_queue;

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use cycles::Runs;
use flows::Random;
use loop_queue::{Control, LoopQueue, Traffic};
use millrace_engine::counters::{Event, WorkerCounters};
use millrace_engine::edit::{self, CompiledRewrite, MacPair, Rewrite, Subject, Translation};
use millrace_engine::flow_cache::FlowCacheLayout;
use millrace_engine::packet::{FrameMemory, FrameMemoryLayout, Headers, Mac, Packet, parse};
use millrace_engine::port::PortQueue;
use millrace_engine::port::memory::MemoryQueue;
use millrace_engine::switch::{Switch, SwitchOptions};
use millrace_engine::testing::node::{GATEWAY_MAC, TestPeer, TestPod, pods_snapshot, uplink_mac};
use millrace_engine::testing::{FrameBuilder, frame};

const SEED: u64 = 20_261_122;
const UPLINK: u16 = 0;
const POD: u16 = 1;
const OTHER_POD: u16 = 2;
/// Packets of one run.
const RUN: usize = 64 * 64;

fn mac(number: u8) -> Mac {
    Mac([2, 0, 0x5e, 0, 0x53, number])
}

/// Where packets come in and where they go.
#[derive(Clone, Copy, PartialEq)]
enum Path {
    PodToPod,
    PodToUplink,
    UplinkToPod,
}

impl Path {
    fn ports(self) -> (u16, u16) {
        match self {
            Path::PodToPod => (POD, OTHER_POD),
            Path::PodToUplink => (POD, UPLINK),
            Path::UplinkToPod => (UPLINK, POD),
        }
    }

    fn frame(self, ipv6: bool) -> FrameBuilder {
        let address = |node: u8, pod: u16| {
            if ipv6 { format!("fd00:{node}::{pod}") } else { format!("10.{node}.0.{pod}") }
        };
        let datagram = frame().udp().payload_of(if ipv6 { 12 } else { 18 });
        let own = address(1, POD);
        match self {
            Path::PodToPod => datagram.from(mac(1), &*own).to(GATEWAY_MAC, &*address(1, OTHER_POD)),
            Path::PodToUplink => datagram.from(mac(1), &*own).to(GATEWAY_MAC, &*address(2, 7)),
            Path::UplinkToPod => {
                let outer = frame().from("02:ff:00:00:00:01", "192.0.2.2").to(uplink_mac(UPLINK), "192.0.2.1");
                let inner = datagram.from(mac(202), &*address(2, 7)).to(mac(201), &*own);
                inner.inside_vxlan(1, outer.ports(50_000, 8_472))
            }
        }
    }

    fn traffic(self, ipv6: bool, order: Vec<u32>, again: usize) -> Traffic {
        let template = self.frame(ipv6).build();
        let inner = if self == Path::UplinkToPod { 50 } else { 0 };
        Traffic { template, ports_offset: inner + if ipv6 { 54 } else { 34 }, order, again }
    }
}

/// A switch whose one worker forwards one kind of traffic.
struct Workload {
    name: String,
    switch: Switch,
    source: Arc<Control>,
    target: Arc<Control>,
    hits: bool,
    alone: PortAlone,
    reference: Option<Reference>,
}

impl Workload {
    fn new(path: Path, ipv6: bool, flows: u32, short: bool) -> Self {
        let (packets, hits) = (if short { 1 << 12 } else { 1 << 18 }, flows > 0);
        let order = || {
            let mut order: Vec<u32> = (0..flows).collect();
            if hits {
                order.extend(flows::zipf(flows, packets, &mut Random::new(SEED)));
            }
            order
        };
        let traffic = || path.traffic(ipv6, order(), flows as usize);
        let (ingress, egress) = path.ports();
        let mut switch = switch(flows.max(1 << 16) as usize);
        let mut controls = Vec::new();
        for port in [UPLINK, POD, OTHER_POD] {
            let capabilities = if port == UPLINK { MemoryQueue::LIKE_AF_XDP } else { MemoryQueue::LIKE_TAP };
            let (queue, control) = LoopQueue::new(port, (port == ingress).then(traffic), capabilities);
            switch.attach(queue.port(), vec![Some(Box::new(queue))]).expect("attach");
            controls.push(control);
        }
        let (source, target) = (Arc::clone(&controls[ingress as usize]), Arc::clone(&controls[egress as usize]));
        let reference = (path == Path::PodToPod && !ipv6 && hits).then(|| Reference::new(traffic(), flows));
        let alone = PortAlone::new(traffic());
        let mut workload = Self { name: name(path, ipv6, flows), switch, source, target, hits, alone, reference };
        workload.run(if hits { flows as usize } else { 1 << 16 });
        workload
    }

    /// Turns until `packets` packets have crossed the switch.
    fn run(&mut self, packets: usize) {
        let before = self.target.sent();
        self.source.let_arrive(packets);
        for _ in 0..packets.div_ceil(64) {
            self.switch.turn();
        }
        assert_eq!(self.target.sent() - before, packets as u64, "{}: packets sent", self.name);
    }

    fn event(&self, event: Event) -> u64 {
        self.switch.counters().map(|counters| counters.event(event).get()).sum()
    }
}

fn switch(flows: usize) -> Switch {
    let options = SwitchOptions {
        frame_memory: FrameMemoryLayout { head_frames: 4_096, big_buffers: 16 },
        flows: FlowCacheLayout { ipv4: 2 * flows, ipv6: 2 * flows },
        hash_seed: Some(SEED),
        ..SwitchOptions::default()
    };
    let mut switch = Switch::new(options).expect("switch");
    let pod = |port: u16| TestPod {
        port,
        mac: mac(port as u8),
        addresses: [format!("10.1.0.{port}"), format!("fd00:1::{port}")]
            .map(|text| text.parse().expect("address"))
            .to_vec(),
    };
    let peer = TestPeer {
        address: "192.0.2.2".parse().expect("address"),
        source: "192.0.2.1".parse().expect("address"),
        tunnel_mac: mac(202),
        prefixes: ["10.2.0.0/24", "fd00:2::/64"].map(|text| text.parse().expect("prefix")).to_vec(),
    };
    switch.publish(pods_snapshot(&[pod(POD), pod(OTHER_POD)], UPLINK, mac(201), &[peer]));
    switch
}

/// A port that receives and drops: what is left of a row when the worker does nothing.
struct PortAlone {
    queue: LoopQueue,
    control: Arc<Control>,
    memory: FrameMemory,
    counters: Arc<WorkerCounters>,
    vector: Vec<Packet>,
}

impl PortAlone {
    fn new(traffic: Traffic) -> Self {
        let (queue, control) = LoopQueue::new(POD, Some(traffic), MemoryQueue::LIKE_TAP);
        let memory = FrameMemory::new(FrameMemoryLayout { head_frames: 4_096, big_buffers: 16 }).expect("memory");
        Self { queue, control, memory, counters: Arc::new(WorkerCounters::default()), vector: Vec::with_capacity(64) }
    }

    fn run(&mut self, packets: usize, mut each: impl FnMut(&FrameMemory, &mut Packet)) {
        self.control.let_arrive(packets);
        while self.queue.receive(&mut self.memory, &mut self.vector) > 0 {
            self.vector.iter_mut().for_each(|packet| each(&self.memory, packet));
            self.queue.transmit(&mut self.memory, &mut self.vector, &self.counters);
        }
    }
}

type Key = [u64; 3];

/// The obvious forwarder: one packet at a time through a good hash table.
struct Reference {
    port: PortAlone,
    table: hashbrown::HashMap<Key, [u32; 4]>,
    rewrite: CompiledRewrite,
}

impl Reference {
    fn new(traffic: Traffic, flows: u32) -> Self {
        let route = Some(MacPair { destination: mac(2), source: GATEWAY_MAC });
        let rewrite = Rewrite { decapsulate: false, pop_tags: 0, route, push_tag: None, encapsulate: None, mtu: 1_500 };
        let table = hashbrown::HashMap::with_capacity(flows as usize);
        let mut reference = Self { port: PortAlone::new(traffic), table, rewrite: CompiledRewrite::new(&rewrite) };
        let table = &mut reference.table;
        reference.port.run(flows as usize, |memory, packet| {
            let headers = parse::parse(memory.head(packet), packet.length()).expect("valid");
            table.insert(key(&headers), [0; 4]);
        });
        assert_eq!(reference.table.len(), flows as usize);
        reference
    }

    fn run(&mut self, packets: usize) {
        let Self { port, table, rewrite } = self;
        let mut hits = 0;
        port.run(packets, |memory, packet| {
            let Ok(headers) = parse::parse(memory.head(packet), packet.length()) else { return };
            let Some(value) = table.get_mut(&key(&headers)) else { return };
            (value[0], value[1]) = (value[0].wrapping_add(1), value[1].wrapping_add(packet.length() as u32));
            let subject = Subject { headers: &headers, inner_offset: 0, outer_traffic_class: 0, flow_hash: 0 };
            hits += usize::from(edit::apply(memory, packet, &subject, rewrite, &Translation::NONE).is_ok());
        });
        assert_eq!(hits, packets, "reference hits");
    }
}

fn key(headers: &Headers) -> Key {
    let word = |bytes: [u8; 4]| u64::from(u32::from_le_bytes(bytes));
    let ports = u64::from(headers.ports[0]) | u64::from(headers.ports[1]) << 16 | u64::from(headers.protocol) << 32;
    [word(headers.source_ipv4()) | word(headers.destination_ipv4()) << 32, ports, 1]
}

/// Every workload whose name contains what was asked for on the command line, if anything was.
fn workloads(short: bool) -> Vec<Workload> {
    let asked = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let large = if short { 1 << 11 } else { 1 << 17 };
    let mut kinds = Vec::new();
    for flows in [1, 1 << 10, large, 0] {
        for ipv6 in [false, true] {
            kinds.extend([Path::PodToPod, Path::PodToUplink, Path::UplinkToPod].map(|path| (path, ipv6, flows)));
        }
    }
    kinds.retain(|(path, ipv6, flows)| name(*path, *ipv6, *flows).contains(&asked));
    kinds.into_iter().map(|(path, ipv6, flows)| Workload::new(path, ipv6, flows, short)).collect()
}

/// In words; no flows means that every packet is a new one.
fn name(path: Path, ipv6: bool, flows: u32) -> String {
    let words = ["pod to pod", "pod to uplink", "uplink to pod"][path as usize];
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    match flows {
        0 => format!("{words}, {family}, miss"),
        1 => format!("{words}, {family}, 1 flow"),
        _ => format!("{words}, {family}, {}k flows", flows >> 10),
    }
}

/// Worker, reference and port by turns; one line of result.
fn interleaved(workload: &mut Workload, passes: usize) {
    let (mut worker, mut reference, mut alone) = (Runs::default(), Runs::default(), Runs::default());
    let hits_before = workload.event(Event::FlowCacheHit);
    for _ in 0..passes {
        worker.time(RUN, || workload.run(RUN));
        if let Some(loop_) = &mut workload.reference {
            reference.time(RUN, || loop_.run(RUN));
        }
        alone.time(RUN, || workload.alone.run(RUN, |_, _| {}));
    }
    let hits = workload.event(Event::FlowCacheHit) - hits_before;
    let share = hits as f64 / (passes * RUN) as f64;
    assert!(if workload.hits { share > 0.99 } else { share == 0.0 }, "{}: {share} hits", workload.name);
    print!("{:32} {} | port alone {}", workload.name, worker.text(), alone.text());
    if workload.reference.is_some() {
        print!(" | one at a time {} | ratio {:.2}", reference.text(), reference.summary().1 / worker.summary().1);
    }
    println!();
}

fn main() {
    // Without `--bench` this is a test run: small tables, two passes.
    let short = !std::env::args().any(|argument| argument == "--bench");
    let mut workloads = workloads(short);
    for workload in &mut workloads {
        interleaved(workload, if short { 2 } else { 150 });
    }
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("forward");
    group.sample_size(20).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(400));
    group.throughput(Throughput::Elements(RUN as u64));
    for workload in &mut workloads {
        group.bench_function(workload.name.clone(), |bencher| {
            bencher.iter_custom(|iterations| {
                let start = Instant::now();
                (0..iterations).for_each(|_| workload.run(RUN));
                start.elapsed()
            });
        });
    }
    group.finish();
    criterion.final_summary();
}
