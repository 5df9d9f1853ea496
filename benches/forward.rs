//! Question: what does a packet cost from receive descriptor to transmit descriptor: read, parse, look up, count, edit,
//! hand over?
//!
//! Shape: one worker of a switch built by the production constructor; UDP frames of 60 bytes (74 over IPv6), before
//! encapsulation; 1 flow, 1k flows and 1M flows uniform, 131k flows Zipf 1.0, which differ in their ports. `L2` is from
//! port to port of a bridged segment, `L3` from pod to pod (routed), `encap` from pod to uplink (routed, VXLAN over IPv4
//! put on), `decap` from uplink to pod (VXLAN taken off, routed); and misses: every packet a new flow, which is decided
//! and cached in place of another.
//! Unit: cycles of the time-stamp counter for a packet, lowest and median of short runs of 4,096 packets, whole turns
//! counted. Ports are `RingQueue`s: rings of descriptors, as a NIC's queue is to a driver. What the NIC does is not timed.
//! Their own cost is the row "ports alone" and is in all others.
//! Warm: all flows are in the cache before the first run; frames were written just before, so they lie where a NIC that
//! writes to the processor's cache would leave them; tables lie where their size allows.
//! Reference: parse, a `hashbrown` table asked one packet at a time, and the same edit, on the same port; run by turns
//! with the worker, since the machine's speed drifts.
//! Expected: goals for L3 are 40 cycles at 1k flows, 65 at 131k Zipf, 140 at 1M uniform; encap 48, 75, 160; decap 45, 70,
//! 145, all on a quiet machine.
//! Checksum: packets sent and hits are compared with the packets that arrived.

mod crossing;
mod cycles;
mod flows;
mod instructions;
mod ring_queue;

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use crossing::{Crossing, RUN};
use cycles::Runs;
use flows::Spread;
use millrace_engine::clock::Clock;
use millrace_engine::counters::{Event, WorkerCounters};
use millrace_engine::cycles::Work;
use millrace_engine::edit::{self, CompiledRewrite, MacPair, Rewrite, Subject, Translation};
use millrace_engine::flow_cache::FlowCacheLayout;
use millrace_engine::packet::{FrameMemory, FrameMemoryLayout, Headers, Mac, Packet, PortIndex, parse};
use millrace_engine::port::PortQueue;
use millrace_engine::port::memory::MemoryQueue;
use millrace_engine::slow_path::Location;
use millrace_engine::state::LearningRules;
use millrace_engine::switch::{Switch, SwitchOptions};
use millrace_engine::tables::{
    BridgedPort, BridgedSegment, Member, Port, PortRole, Segment, SegmentIndex, SegmentKind, Snapshot, Vni,
};
use millrace_engine::testing::node::{GATEWAY_MAC, TestPeer, TestPod, pods_snapshot, uplink_mac};
use millrace_engine::testing::{FrameBuilder, frame};
use ring_queue::{Control, RingQueue, Traffic};

const SEED: u64 = 20_261_122;
const UPLINK: u16 = 0;
const POD: u16 = 1;
const OTHER_POD: u16 = 2;
const BRIDGED: u16 = 3;
const OTHER_BRIDGED: u16 = 4;
/// Head frames: those of a run that arrive and those of the run before that were sent, and some more.
const FRAMES: FrameMemoryLayout = FrameMemoryLayout { head_frames: 3 * RUN, big_buffers: 16 };

fn mac(number: u16) -> Mac {
    Mac([2, 0, 0x5e, 0, 0x53, number as u8])
}

/// What is done to the packets.
#[derive(Clone, Copy, PartialEq)]
enum Path {
    Bridge,
    Route,
    Encapsulate,
    Decapsulate,
}

impl Path {
    const ALL: [Path; 4] = [Path::Bridge, Path::Route, Path::Encapsulate, Path::Decapsulate];

    fn name(self) -> &'static str {
        ["L2", "L3", "encap", "decap"][self as usize]
    }

    /// Where packets come in and where they go.
    fn ports(self) -> (u16, u16) {
        match self {
            Path::Bridge => (BRIDGED, OTHER_BRIDGED),
            Path::Route => (POD, OTHER_POD),
            Path::Encapsulate => (POD, UPLINK),
            Path::Decapsulate => (UPLINK, POD),
        }
    }

    fn frame(self, ipv6: bool) -> FrameBuilder {
        let address = |node: u8, pod: u16| {
            if ipv6 { format!("fd00:{node}::{pod}") } else { format!("10.{node}.0.{pod}") }
        };
        let datagram = frame().udp().payload_of(if ipv6 { 12 } else { 18 });
        let own = address(1, POD);
        match self {
            Path::Bridge => datagram.from(mac(BRIDGED), &*own).to(mac(OTHER_BRIDGED), &*address(1, OTHER_POD)),
            Path::Route => datagram.from(mac(POD), &*own).to(GATEWAY_MAC, &*address(1, OTHER_POD)),
            Path::Encapsulate => datagram.from(mac(POD), &*own).to(GATEWAY_MAC, &*address(2, 7)),
            Path::Decapsulate => {
                let outer = frame().from("02:ff:00:00:00:01", "192.0.2.2").to(uplink_mac(UPLINK), "192.0.2.1");
                let inner = datagram.from(mac(202), &*address(2, 7)).to(mac(201), &*own);
                inner.inside_vxlan(1, outer.ports(50_000, 8_472))
            }
        }
    }

    fn traffic(self, ipv6: bool, order: Vec<u32>, again: usize) -> Traffic {
        let template = self.frame(ipv6).build();
        let inner = if self == Path::Decapsulate { 50 } else { 0 };
        Traffic { template, ports_offset: inner + if ipv6 { 54 } else { 34 }, order, again, answers_from: None }
    }
}

/// How many known flows there are, met how often; none if every packet is a new one.
type Flows = Option<Spread>;

fn count(flows: Flows) -> u32 {
    flows.map_or(0, Spread::count)
}

/// A switch whose one worker forwards one kind of traffic.
struct Workload {
    name: String,
    crossing: Crossing,
    hits: bool,
    alone: PortsAlone,
    reference: Option<Reference>,
}

impl Workload {
    fn new(path: Path, ipv6: bool, flows: Flows, short: bool) -> Self {
        let packets = if short { 1 << 12 } else { 1 << 18 };
        let traffic = || {
            let order = flows.map_or(Vec::new(), |flows| flows.order(SEED, packets));
            path.traffic(ipv6, order, count(flows) as usize)
        };
        let (ingress, egress) = path.ports();
        let mut switch = switch(ipv6, count(flows).max(1 << 16) as usize);
        let mut controls = Vec::new();
        for port in [UPLINK, POD, OTHER_POD, BRIDGED, OTHER_BRIDGED] {
            let capabilities = if port == UPLINK { MemoryQueue::LIKE_AF_XDP } else { MemoryQueue::LIKE_TAP };
            let (queue, control) = RingQueue::new(port, (port == ingress).then(traffic), capabilities, RUN);
            switch.attach(queue.port(), vec![Some(Box::new(queue))]).expect("attach");
            controls.push(control);
        }
        let station = Location::Port(PortIndex(OTHER_BRIDGED));
        let rules = LearningRules::of(&BridgedSegment::default(), u32::MAX);
        switch.state().stations.learn(SegmentIndex(1), mac(OTHER_BRIDGED), station, &rules, Clock::Monotonic.now());
        let (source, target) = (Arc::clone(&controls[ingress as usize]), Arc::clone(&controls[egress as usize]));
        let (name, hits) = (name(path, ipv6, flows), flows.is_some());
        let reference = (path == Path::Route && !ipv6 && hits).then(|| Reference::new(traffic(), count(flows)));
        let alone = PortsAlone::new(traffic());
        let mut workload = Self { name, crossing: Crossing { switch, source, target }, hits, alone, reference };
        for _ in 0..count(flows).max(1 << 16).div_ceil(RUN as u32) {
            workload.crossing.prepare();
            workload.run();
        }
        workload
    }

    /// All packets that arrived cross the switch.
    fn run(&mut self) {
        assert_eq!(self.crossing.run(), RUN as u64, "{}: packets sent", self.name);
    }

    /// Packets that the worker measured, and their cycles by kind of work.
    fn work(&self) -> [u64; 1 + Work::ALL.len()] {
        let sum = |pick: &dyn Fn(&WorkerCounters) -> u64| {
            self.crossing.switch.counters().map(|counters| pick(counters)).sum()
        };
        let mut all = [sum(&|counters| counters.cycles.packets.get()); 1 + Work::ALL.len()];
        for (place, work) in all[1..].iter_mut().zip(Work::ALL) {
            *place = sum(&|counters| counters.cycles.of(work).get());
        }
        all
    }
}

fn switch(ipv6: bool, flows: usize) -> Switch {
    let (ipv4, ipv6) = if ipv6 { (1 << 12, flows + flows / 4) } else { (flows + flows / 4, 1 << 12) };
    let options = SwitchOptions {
        frame_memory: FRAMES,
        flows: FlowCacheLayout { ipv4, ipv6 },
        connections: 2 * flows,
        hash_seed: Some(SEED),
        ..SwitchOptions::default()
    };
    let mut switch = Switch::new(options).expect("switch");
    switch.publish(snapshot());
    switch
}

/// Two pods and a peer in a routed segment, two ports in a bridged one.
fn snapshot() -> Snapshot {
    let pod = |port: u16| TestPod {
        port,
        mac: mac(port),
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
    let mut snapshot = pods_snapshot(&[pod(POD), pod(OTHER_POD)], UPLINK, mac(201), &[peer]);
    let members = [BRIDGED, OTHER_BRIDGED];
    for port in members {
        let role = PortRole::Bridged(BridgedPort::access(SegmentIndex(1)));
        snapshot.ports.insert(Port { index: PortIndex(port), name: format!("port {port}").into(), mtu: 1_500, role });
    }
    let members = members.map(|port| Member::new(PortIndex(port), None)).to_vec();
    snapshot.segments.insert(Segment {
        index: SegmentIndex(1),
        name: "bridge".into(),
        vni: Vni::new(2),
        kind: SegmentKind::Bridged(BridgedSegment { members, ..BridgedSegment::default() }),
    });
    snapshot
}

/// Descriptors from one ring to the other: what is left of a row when the worker does nothing.
struct PortsAlone {
    queue: RingQueue,
    control: Arc<Control>,
    memory: FrameMemory,
    counters: Arc<WorkerCounters>,
    vector: Vec<Packet>,
}

impl PortsAlone {
    fn new(traffic: Traffic) -> Self {
        let (queue, control) = RingQueue::new(POD, Some(traffic), MemoryQueue::LIKE_TAP, RUN);
        let memory = FrameMemory::new(FRAMES).expect("memory");
        Self { queue, control, memory, counters: Arc::new(WorkerCounters::default()), vector: Vec::with_capacity(64) }
    }

    fn prepare(&mut self) {
        self.control.take_sent();
        self.control.let_arrive(RUN);
        self.queue.receive(&mut self.memory, &mut self.vector);
    }

    fn run(&mut self, mut each: impl FnMut(&FrameMemory, &mut Packet)) {
        while self.queue.receive(&mut self.memory, &mut self.vector) > 0 {
            self.vector.iter_mut().for_each(|packet| each(&self.memory, packet));
            self.queue.transmit(&mut self.memory, &mut self.vector, &self.counters);
        }
    }
}

type Key = [u64; 3];

/// The obvious forwarder: one packet at a time through a good hash table.
struct Reference {
    port: PortsAlone,
    table: hashbrown::HashMap<Key, [u32; 4]>,
    rewrite: CompiledRewrite,
}

impl Reference {
    fn new(traffic: Traffic, flows: u32) -> Self {
        let route = Some(MacPair { destination: mac(OTHER_POD), source: GATEWAY_MAC });
        let rewrite = Rewrite { decapsulate: false, pop_tags: 0, route, push_tag: None, encapsulate: None, mtu: 1_500 };
        let table = hashbrown::HashMap::with_capacity(flows as usize);
        let mut reference = Self { port: PortsAlone::new(traffic), table, rewrite: CompiledRewrite::new(&rewrite) };
        let table = &mut reference.table;
        for _ in 0..flows.div_ceil(RUN as u32) {
            reference.port.prepare();
            reference.port.run(|memory, packet| {
                let headers = parse::parse(memory.head(packet), packet.length()).expect("valid");
                table.insert(key(&headers), [0; 4]);
            });
        }
        assert_eq!(reference.table.len(), flows as usize);
        reference
    }

    fn run(&mut self) {
        let Self { port, table, rewrite } = self;
        let mut hits = 0;
        port.run(|memory, packet| {
            let Ok(headers) = parse::parse(memory.head(packet), packet.length()) else { return };
            let Some(value) = table.get_mut(&key(&headers)) else { return };
            (value[0], value[1]) = (value[0].wrapping_add(1), value[1].wrapping_add(packet.length() as u32));
            let subject = Subject { headers: &headers, inner_offset: 0, outer_traffic_class: 0, flow_hash: 0 };
            hits += usize::from(edit::apply(memory, packet, &subject, rewrite, &Translation::NONE).is_ok());
        });
        assert_eq!(hits, RUN, "reference hits");
    }
}

fn key(headers: &Headers) -> Key {
    let word = |bytes: [u8; 4]| u64::from(u32::from_le_bytes(bytes));
    let ports = u64::from(headers.ports[0]) | u64::from(headers.ports[1]) << 16 | u64::from(headers.protocol) << 32;
    [word(headers.source_ipv4()) | word(headers.destination_ipv4()) << 32, ports, 1]
}

fn name(path: Path, ipv6: bool, flows: Flows) -> String {
    format!(
        "{} {} {}",
        path.name(),
        if ipv6 { "IPv6" } else { "IPv4" },
        flows.map_or_else(|| "new".to_owned(), Spread::name)
    )
}

/// Every kind of workload whose name contains what was asked for on the command line, if anything was.
fn kinds(short: bool) -> Vec<(Path, bool, Flows)> {
    let asked = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let (large, huge) = if short { (1 << 11, 1 << 12) } else { (1 << 17, 1 << 20) };
    let mut kinds = Vec::new();
    for flows in [
        Some(Spread::Uniform(1)),
        Some(Spread::Uniform(1 << 10)),
        Some(Spread::Zipf(large)),
        Some(Spread::Uniform(huge)),
        None,
    ] {
        for ipv6 in [false, true] {
            kinds.extend(Path::ALL.map(|path| (path, ipv6, flows)));
        }
    }
    kinds.retain(|(path, ipv6, flows)| name(*path, *ipv6, *flows).contains(&asked));
    kinds
}

/// Worker, reference and ports alone by turns; one line of result.
fn interleaved(workload: &mut Workload, passes: usize) {
    let (mut worker, mut reference, mut alone) = (Runs::default(), Runs::default(), Runs::default());
    let hits_before = workload.crossing.event(Event::FlowCacheHit);
    let mut work: [Runs; Work::ALL.len()] = Default::default();
    for _ in 0..passes {
        workload.crossing.prepare();
        let before = workload.work();
        worker.time(RUN, || workload.run());
        let after = workload.work();
        for (number, runs) in work.iter_mut().enumerate().filter(|_| after[0] > before[0]) {
            runs.add(after[number + 1] - before[number + 1], (after[0] - before[0]) as usize);
        }
        if let Some(loop_) = &mut workload.reference {
            loop_.port.prepare();
            reference.time(RUN, || loop_.run());
        }
        workload.alone.prepare();
        alone.time(RUN, || workload.alone.run(|_, _| {}));
    }
    let hits = workload.crossing.event(Event::FlowCacheHit) - hits_before;
    let share = hits as f64 / (passes * RUN) as f64;
    assert!(if workload.hits { share > 0.99 } else { share == 0.0 }, "{}: {share} hits", workload.name);
    print!("{:20} {} | ports alone {}", workload.name, worker.text(), alone.text());
    if workload.reference.is_some() {
        print!(" | one at a time {} | ratio {:.2}", reference.text(), reference.summary().1 / worker.summary().1);
    }
    println!();
    if std::env::args().any(|argument| argument == "--work") {
        let each = Work::ALL.iter().zip(&mut work);
        let words: Vec<String> = each.map(|(work, runs)| format!("{} {:.1}", work.name(), runs.summary().1)).collect();
        println!("    of this {}", words.join(", "));
    }
}

/// Criterion's own account, for comparison between builds.
fn measure(criterion: &mut Criterion, workload: &mut Workload) {
    let mut group = criterion.benchmark_group("forward");
    group.sample_size(20).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(400));
    group.throughput(Throughput::Elements(RUN as u64));
    group.bench_function(workload.name.clone(), |bencher| {
        bencher.iter_custom(|iterations| {
            let timed = |workload: &mut Workload| {
                workload.crossing.prepare();
                let start = std::time::Instant::now();
                workload.run();
                start.elapsed()
            };
            (0..iterations).map(|_| timed(workload)).sum()
        });
    });
    group.finish();
}

/// Rows whose instructions are counted; with more flows they are the same.
fn countable() -> impl Iterator<Item = (Path, bool, Flows)> {
    let flows = [Some(Spread::Uniform(1 << 10)), None];
    let both = flows.into_iter().flat_map(|flows| [false, true].map(|ipv6| (ipv6, flows)));
    both.flat_map(|(ipv6, flows)| Path::ALL.map(|path| (path, ipv6, flows)))
}

/// One run of the row of this name, for callgrind.
fn count_row(row: &str) {
    let is_asked = |(path, ipv6, flows): &(Path, bool, Flows)| name(*path, *ipv6, *flows) == row;
    let (path, ipv6, flows) = countable().find(is_asked).expect("a row");
    let mut workload = Workload::new(path, ipv6, flows, true);
    workload.crossing.prepare();
    instructions::counted(&mut || workload.run());
}

fn main() {
    // Without `--bench` this is a test run: small tables, two passes.
    let short = !std::env::args().any(|argument| argument == "--bench");
    // With `--brief` only the table is printed, with `--work` also what the worker counts by kind of work.
    let brief = std::env::args().any(|argument| argument == "--brief");
    if let Some(row) = instructions::row() {
        return count_row(&row);
    }
    if instructions::are_asked_for() {
        return instructions::compare("forward", countable().map(|(path, ipv6, flows)| name(path, ipv6, flows)), RUN);
    }
    let mut criterion = Criterion::default();
    for (path, ipv6, flows) in kinds(short) {
        let mut workload = Workload::new(path, ipv6, flows, short);
        interleaved(&mut workload, if short { 2 } else { 200 });
        if !short && !brief {
            measure(&mut criterion, &mut workload);
        }
    }
}
