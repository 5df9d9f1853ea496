//! Question: what does a packet to a Service cost, in either direction, known and new?
//!
//! Shape: one worker of a switch built by the production constructor; UDP over IPv4, frames of 60 bytes, between two pods of
//! one node; 1k connections uniform, 131k Zipf 1.0, 1M uniform, which differ in their ports. `routed` goes from pod to pod
//! without a Service: the reference. `DNAT` goes to a ClusterIP and is sent to its endpoint; `reverse` are the answers,
//! whose source becomes the ClusterIP again. Of `new` every packet opens a connection to a Service of ten endpoints in a
//! full table of so many; `affinity` is the same with a client that stays with its endpoint. Connections differ in client port
//! and Service port, so a table of one Service has 300 ports.
//! Unit: cycles of the time-stamp counter for a packet, lowest and median of short runs of 4,096 packets, whole turns
//! counted. Ports are rings of descriptors, see `ring_queue.rs`; their cost is in every row, that of reading the clock once a
//! turn is not.
//! Reference: the rows of one size are run by turns with `routed` (known) or with `new routed`, since the machine's speed drifts.
//! Expected: a translated hit within 1.3 of a routed one.
//! Checksum: packets sent are compared with packets that arrived; hits, opened connections and picks with the shape.

mod crossing;
mod cycles;
mod flows;
mod ring_queue;

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use crossing::{Crossing, RUN};
use cycles::Runs;
use flows::Spread;
use millrace_engine::clock::{Clock, ManualClock};
use millrace_engine::counters::Event;
use millrace_engine::flow_cache::FlowCacheLayout;
use millrace_engine::packet::parse::protocol;
use millrace_engine::packet::{FrameMemoryLayout, Mac};
use millrace_engine::port::PortQueue;
use millrace_engine::port::memory::MemoryQueue;
use millrace_engine::switch::{Switch, SwitchOptions};
use millrace_engine::tables::services::{
    Balance, Endpoint, EndpointSet, EndpointState, Frontend, FrontendKind, Scope, ServiceId, ServicePort,
};
use millrace_engine::tables::{SegmentIndex, Snapshot};
use millrace_engine::testing::frame;
use millrace_engine::testing::node::{GATEWAY_MAC, TestPod, pods_snapshot, uplink_mac};
use ring_queue::{FIRST_PORT, RingQueue, Traffic};

const SEED: u64 = 20_261_126;
const UPLINK: u16 = 0;
const CLIENT: u16 = 1;
const SERVER: u16 = 2;
const VIP: &str = "10.96.0.1";
/// Ports of the Service: enough for a million flows, and for all that are opened anew.
const PORTS: u16 = 320;
/// An endpoint's port less the Service's.
const PORT_SHIFT: u16 = 10_000;
const ENDPOINTS: u8 = 10;
const AFFINITY: Duration = Duration::from_secs(10_800);
/// Head frames: those of a run that arrive and those of the run before that were sent, and some more.
const FRAMES: FrameMemoryLayout = FrameMemoryLayout { head_frames: 3 * RUN, big_buffers: 16 };

/// What the packets are.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Routed,
    Dnat,
    Reverse,
    NewRouted,
    New,
    Affinity,
}

impl Kind {
    fn name(self) -> &'static str {
        ["routed", "DNAT", "reverse", "new routed", "new", "affinity"][self as usize]
    }

    /// Whether every packet opens a connection.
    fn opens(self) -> bool {
        matches!(self, Kind::NewRouted | Kind::New | Kind::Affinity)
    }

    fn endpoints(self) -> u8 {
        if self.opens() { ENDPOINTS } else { 1 }
    }
}

fn mac(number: u16) -> Mac {
    Mac([2, 0, 0x5e, 0, 0x53, number as u8])
}

/// Packets of the client (`answers` false) or of the server, one for each flow in this order.
fn traffic(kind: Kind, answers: bool, order: Vec<u32>) -> Traffic {
    let datagram = frame().udp().payload_of(18);
    let to = if matches!(kind, Kind::Routed | Kind::NewRouted) { "10.1.0.11" } else { VIP };
    let template = if answers {
        datagram.from(mac(SERVER), "10.1.0.11").to(GATEWAY_MAC, "10.1.0.1").build()
    } else {
        datagram.from(mac(CLIENT), "10.1.0.1").to(GATEWAY_MAC, to).build()
    };
    Traffic { template, ports_offset: 34, order, again: 0, answers_from: answers.then_some(PORT_SHIFT) }
}

/// A switch whose one worker forwards one kind of traffic.
struct Workload {
    kind: Kind,
    name: String,
    crossing: Crossing,
}

impl Workload {
    fn new(kind: Kind, size: Spread, short: bool) -> Self {
        let mut switch = switch(kind, size.count() as usize);
        let order = || size.order(SEED, if short { 1 << 12 } else { 1 << 18 });
        // Whatever is not opened in the measured runs is opened before, by the client's packets.
        let (opening, answering) = match kind {
            Kind::NewRouted | Kind::New | Kind::Affinity => (Vec::new(), Vec::new()),
            Kind::Reverse => ((0..size.count()).collect(), order()),
            Kind::Routed | Kind::Dnat => (order(), Vec::new()),
        };
        // What comes behind the opening is met again and again; without anything behind it, the whole.
        let again = |order: &[u32]| if order.len() > size.count() as usize { size.count() as usize } else { 0 };
        let client = Traffic { again: again(&opening), ..traffic(kind, false, opening) };
        let server =
            (kind == Kind::Reverse).then(|| Traffic { again: again(&answering), ..traffic(kind, true, answering) });
        let controls = [(UPLINK, None), (CLIENT, Some(client)), (SERVER, server)].map(|(port, traffic)| {
            let capabilities = if port == UPLINK { MemoryQueue::LIKE_AF_XDP } else { MemoryQueue::LIKE_TAP };
            let (queue, control) = RingQueue::new(port, traffic, capabilities, RUN);
            switch.attach(queue.port(), vec![Some(Box::new(queue))]).expect("attach");
            control
        });
        let [_, client, server] = controls;
        let mut workload = Self {
            kind,
            name: format!("{} {}", kind.name(), size.name()),
            crossing: Crossing { switch, source: Arc::clone(&client), target: Arc::clone(&server) },
        };
        let rounds = size.count().div_ceil(RUN as u32).max(2);
        workload.rounds(rounds);
        if kind == Kind::Reverse {
            (workload.crossing.source, workload.crossing.target) = (server, client);
            workload.rounds(rounds);
        }
        workload
    }

    fn rounds(&mut self, rounds: u32) {
        for _ in 0..rounds {
            self.crossing.prepare();
            self.run();
        }
    }

    /// All packets that arrived cross the switch.
    fn run(&mut self) {
        assert_eq!(self.crossing.run(), RUN as u64, "{}: packets sent", self.name);
    }

    /// Hits, connections opened, endpoints picked and given by affinity.
    fn events(&self) -> [u64; 4] {
        [Event::FlowCacheHit, Event::ConnectionsNew, Event::ServicePicked, Event::ServiceAffinity]
            .map(|event| self.crossing.event(event))
    }

    /// That the measured packets were what the row says.
    fn check(&self, before: [u64; 4], packets: u64) {
        let after = self.events();
        let moved: [u64; 4] = std::array::from_fn(|number| after[number] - before[number]);
        let [hits, opened, picked, affine] = moved;
        let held = match self.kind {
            Kind::Routed | Kind::Dnat | Kind::Reverse => hits > packets / 100 * 99,
            Kind::NewRouted => opened == packets && picked == 0,
            Kind::New => opened == packets && picked == packets,
            // The first of each of the Service's ports has no endpoint to stay with.
            Kind::Affinity => opened == packets && affine + u64::from(PORTS) >= packets,
        };
        assert!(held, "{}: of {packets} packets hits, opened, picked, affine {moved:?}", self.name);
    }
}

fn switch(kind: Kind, connections: usize) -> Switch {
    let flows = if kind.opens() { 1 << 16 } else { connections.max(1 << 14) * 5 / 2 };
    let options = SwitchOptions {
        frame_memory: FRAMES,
        flows: FlowCacheLayout { ipv4: flows, ipv6: 1 << 12 },
        connections: if kind.opens() { connections } else { 2 * connections },
        // Stands still: filling tables of a million for several rows takes longer than one-way flows live.
        clock: Clock::Manual(ManualClock::new()),
        hash_seed: Some(SEED),
        ..SwitchOptions::default()
    };
    let mut switch = Switch::new(options).expect("switch");
    switch.publish(snapshot(kind));
    switch
}

/// Two pods of one node, the second with an address for each endpoint, and the Service.
fn snapshot(kind: Kind) -> Snapshot {
    let pod = |port, lasts: std::ops::Range<u8>| TestPod {
        port,
        mac: mac(port),
        addresses: lasts.map(|last| format!("10.1.0.{last}").parse().expect("address")).collect(),
    };
    let pods = [pod(CLIENT, 1..2), pod(SERVER, 11..11 + ENDPOINTS)];
    let mut snapshot = pods_snapshot(&pods, UPLINK, uplink_mac(UPLINK), &[]);
    snapshot.services.edit(SegmentIndex(0), |services| {
        for port in FIRST_PORT..FIRST_PORT + PORTS {
            let service = Arc::new(service_port(kind, port));
            let frontend = Frontend { kind: FrontendKind::ClusterIp, service, sources: None };
            services.insert(VIP.parse().expect("address"), protocol::UDP, port, frontend);
        }
    });
    snapshot
}

fn service_port(kind: Kind, port: u16) -> ServicePort {
    let endpoint = |number: u8| Endpoint {
        name: format!("server {number}").into(),
        address: format!("10.1.0.{}", 11 + number).parse().expect("address"),
        port: port + PORT_SHIFT,
        weight: 1,
        local: true,
        state: EndpointState::Ready,
    };
    let endpoints: Vec<_> = (0..kind.endpoints()).map(endpoint).collect();
    let all = EndpointSet::new(&endpoints, 0..u16::from(kind.endpoints()), Balance::Random);
    let scope = Scope { all, by_client: Arc::default(), hinted: false };
    ServicePort {
        id: ServiceId(u64::from(port) << 32),
        name: format!("bench/web:{port}").into(),
        protocol: protocol::UDP,
        endpoints: endpoints.into(),
        cluster: scope.clone(),
        local: scope,
        any_usable: true,
        internal_local: false,
        external_local: false,
        affinity: (kind == Kind::Affinity).then_some(AFFINITY),
        balance: Balance::Random,
    }
}

/// All workloads of one size by turns; a line of result each. The first is what the others are divided by.
fn interleaved(workloads: &mut [Workload], passes: usize) {
    let mut runs: Vec<Runs> = workloads.iter().map(|_| Runs::default()).collect();
    let before: Vec<_> = workloads.iter().map(Workload::events).collect();
    for _ in 0..passes {
        for (workload, runs) in workloads.iter_mut().zip(&mut runs) {
            workload.crossing.prepare();
            runs.time(RUN, || workload.run());
        }
    }
    let reference = runs.first_mut().map_or(1.0, |runs| runs.summary().0);
    for ((workload, runs), before) in workloads.iter().zip(&mut runs).zip(before) {
        workload.check(before, (passes * RUN) as u64);
        println!("{:20} {} | lowest, of the reference {:.2}", workload.name, runs.text(), runs.summary().0 / reference);
    }
}

/// Criterion's own account, for comparison between builds.
fn measure(criterion: &mut Criterion, workload: &mut Workload) {
    let mut group = criterion.benchmark_group("services");
    group.sample_size(10).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(200));
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

fn main() {
    // Without `--bench` this is a test run: small tables, two passes. With `--brief` only the table is printed.
    let short = !std::env::args().any(|argument| argument == "--bench");
    let brief = std::env::args().any(|argument| argument == "--brief");
    let asked = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let mut criterion = Criterion::default();
    let (large, huge) = if short { (1 << 11, 1 << 12) } else { (1 << 17, 1 << 20) };
    for size in [Spread::Uniform(1 << 10), Spread::Zipf(large), Spread::Uniform(huge)] {
        for kinds in [[Kind::Routed, Kind::Dnat, Kind::Reverse], [Kind::NewRouted, Kind::New, Kind::Affinity]] {
            let asked = |kind: &&Kind| format!("{} {}", kind.name(), size.name()).contains(&asked);
            let mut workloads: Vec<_> =
                kinds.iter().filter(asked).map(|kind| Workload::new(*kind, size, short)).collect();
            interleaved(&mut workloads, if short { 2 } else { 100 });
            if !short && !brief {
                workloads.iter_mut().for_each(|workload| measure(&mut criterion, workload));
            }
        }
    }
}
