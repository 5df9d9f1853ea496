//! Question: what does the flow cache cost a packet, and what does looking up a vector in stages gain over a good
//! hash table asked one packet at a time?
//!
//! Shapes: hits in 1, 1k, 131k flows (Zipf 1.0) and 1M flows (uniform), one table each, sized for its flows; misses
//! in the same tables; inserts into an empty and into a full cache; a sweep of 131,072 flows by 1 and by 1,000
//! changes that touch nothing, and by 1,000 that touch all. A "hit" is key, hash, lookup, counts and action, from
//! parsed headers in an array that is read in order: parsing and edits are not in it.
//! Unit: nanoseconds a packet, lowest and median of short runs. Headers are read once before each run, so that all
//! sides find them in the cache as parsing would leave them; tables are as warm as their size allows, each side's
//! after the other sides' runs.
//! Expected: about 20 TSC cycles at 1k flows, 42 at 131k Zipf and 80 at 1M uniform were measured for a table of the
//! same shape with 16-byte keys and parsing; goals for a whole L3 forward are 50, 80 and 170 core cycles.
//! Gate: at 131k Zipf, at least 2.2 times as fast as `hashbrown::HashMap` one at a time with a key of the same size,
//! interleaved in this process (the ratio is printed; absolute times drift by 1.4 on a shared machine).
//! Checksum: the hits of every run are compared with the packets it asked for.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use ipnet::IpNet;
use millrace_engine::edit::{MacPair, Rewrite, Translation};
use millrace_engine::flow_cache::{FlowCache, FlowCacheLayout, HashKey, LookupBatch, SweepPlan};
use millrace_engine::limits::{FLOWS_IPV4, VECTOR_PACKETS};
use millrace_engine::packet::parse::{Network, protocol};
use millrace_engine::packet::{Headers, Mac, PortIndex};
use millrace_engine::slow_path::decision::{Dependencies, Forward};
use millrace_engine::tables::{Change, ChangeSet, SegmentIndex};

const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
const SEED: u64 = 20_261_122;

/// SplitMix64: the same packets in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn headers(flow: u32, wide: bool) -> Headers {
    let mut headers = Headers {
        network: if wide { Network::Ipv6 } else { Network::Ipv4 },
        protocol: protocol::TCP,
        ports: [(flow >> 8) as u16 ^ 40_000, 80],
        ..Headers::EMPTY
    };
    headers.source[..4].copy_from_slice(&(0x0a01_0000 | flow & 0xffff).to_be_bytes());
    headers.destination[..4].copy_from_slice(&(0x0a02_0000 | flow >> 4).to_be_bytes());
    headers
}

fn forward(flow: u32) -> Forward {
    let destination = Mac([2, 0, 0, 0, 1, flow as u8 & 0x3f]);
    let route = Some(MacPair { destination, source: Mac([2, 0, 0, 0, 2, 0]) });
    let rewrite = Rewrite { decapsulate: false, pop_tags: 0, route, push_tag: None, encapsulate: None, mtu: 1500 };
    Forward { egress: PortIndex(flow as u16 & 0x3f), rewrite, translation: Translation::NONE }
}

fn dependencies(flow: u32) -> Dependencies {
    let headers = headers(flow, false);
    Dependencies {
        ingress: PortIndex(1),
        egress: PortIndex(flow as u16 & 0x3f),
        segment: SegmentIndex(1),
        source: headers.source_address(),
        destination: headers.destination_address(),
        ingress_peer: None,
        egress_peer: flow.is_multiple_of(2).then_some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
        source_mac: Mac::ZERO,
        destination_mac: Mac::ZERO,
        service: 0,
    }
}

/// How often each flow is met.
#[derive(Clone, Copy)]
enum Spread {
    Uniform,
    Zipf,
}

/// The flows of `packets` packets.
fn draw(flows: u32, spread: Spread, packets: usize) -> Vec<u32> {
    let mut random = Random(SEED);
    let mut sums = Vec::new();
    if matches!(spread, Spread::Zipf) {
        let mut sum = 0.0;
        sums.extend((1..=flows).map(|rank| {
            sum += 1.0 / f64::from(rank);
            sum
        }));
    }
    let mut pick = || match spread {
        Spread::Uniform => (random.next() % u64::from(flows)) as u32,
        Spread::Zipf => {
            let at = random.unit() * sums.last().copied().unwrap_or(0.0);
            // Ranks are scattered over the flows, so that popular flows are no neighbours.
            (sums.partition_point(|sum| *sum < at) as u64 * 40_503 % u64::from(flows)) as u32
        }
    };
    (0..packets).map(|_| pick()).collect()
}

/// Puts flows `range` into the cache, a vector at a time; returns how many are in.
fn fill(cache: &mut FlowCache, range: std::ops::Range<u32>, wide: bool, now_ms: u32) -> usize {
    let mut batch = LookupBatch::new();
    let mut flow = range.start;
    while flow < range.end {
        batch.clear();
        let vector = VECTOR_PACKETS.min((range.end - flow) as usize);
        for packet in 0..vector {
            batch.push(packet, &headers(flow + packet as u32, wide), &MACS, 1);
        }
        cache.lookup(&mut batch);
        for packet in 0..vector {
            let flow = flow + packet as u32;
            cache.insert(&batch, packet, &forward(flow), &dependencies(flow), now_ms);
        }
        flow += vector as u32;
    }
    cache.len()
}

/// All packets through the cache, 64 at a time; returns the hits.
fn staged(cache: &mut FlowCache, batch: &mut LookupBatch, packets: &[Headers], now_ms: u32) -> u64 {
    let mut hits = 0;
    for vector in packets.chunks(VECTOR_PACKETS) {
        batch.clear();
        for (packet, headers) in vector.iter().enumerate() {
            batch.push(packet, headers, &MACS, 1);
        }
        cache.lookup(batch);
        for packet in 0..vector.len() {
            if let Some(action) = cache.take_hit(batch, packet, 64, now_ms) {
                hits += u64::from(action.egress.0 < 64) + u64::from(black_box(action.rewrite.template_length) > 72);
            }
        }
    }
    hits
}

/// The reference: one 64-byte value a flow, looked up one packet at a time under a key of the same fields.
type Reference = hashbrown::HashMap<[u64; 4], [u32; 8]>;

fn reference_key(headers: &Headers) -> [u64; 4] {
    let word = |bytes: &[u8; 16]| u64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    let ports = u64::from(headers.ports[0]) | u64::from(headers.ports[1]) << 16 | u64::from(headers.protocol) << 32;
    [word(&headers.source) | word(&headers.destination) << 32, ports, 0x0100_0000_0002, 0x0200_0000_0002]
}

fn one_at_a_time(table: &mut Reference, packets: &[Headers], now_ms: u32) -> u64 {
    let mut hits = 0;
    for headers in packets {
        if let Some(value) = table.get_mut(&reference_key(headers)) {
            (value[0], value[1], value[2]) = (now_ms, value[1].wrapping_add(1), value[2].wrapping_add(64));
            hits += u64::from(black_box(value[3]) < 64);
        }
    }
    hits
}

/// One workload: a table with flows, and packets for them.
struct Workload {
    name: &'static str,
    cache: FlowCache,
    reference: Option<Reference>,
    packets: Vec<Headers>,
    misses: Vec<Headers>,
}

impl Workload {
    fn new(name: &'static str, flows: u32, spread: Spread, wide: bool, packets: usize) -> Self {
        let capacity = flows.max(1024) as usize;
        let (ipv4, ipv6) = if wide { (8, capacity) } else { (capacity, 8) };
        let mut cache = FlowCache::new(FlowCacheLayout { ipv4, ipv6 }, HashKey::from_seed(SEED));
        let filled = fill(&mut cache, 0..flows, wide, 0);
        println!("{name}: {filled} of {flows} flows in the cache");
        let reference = (!wide).then(|| {
            let value = |flow: u32| (reference_key(&headers(flow, false)), [0, 0, 0, flow & 0x3f, 0, 0, 0, 0]);
            let mut table = Reference::with_capacity(capacity);
            table.extend((0..flows).map(value));
            table
        });
        // A table filled to its capacity has lost one flow in a thousand to its buckets: those are not asked for.
        let mut drawn = draw(flows, spread, packets);
        drawn.retain(|flow| staged(&mut cache, &mut LookupBatch::new(), &[headers(*flow, wide)], 0) == 1);
        let misses = drawn.iter().map(|flow| headers(flow + (1 << 24), wide)).collect();
        Self { name, cache, reference, packets: drawn.iter().map(|flow| headers(*flow, wide)).collect(), misses }
    }
}

fn workloads(short: bool) -> Vec<Workload> {
    let packets = if short { 1 << 10 } else { 1 << 17 };
    let size = |flows: u32| if short { flows.min(2_048) } else { flows };
    vec![
        Workload::new("1 flow", 1, Spread::Uniform, false, packets),
        Workload::new("1k uniform", size(1 << 10), Spread::Uniform, false, packets),
        Workload::new("131k Zipf 1.0", size(1 << 17), Spread::Zipf, false, packets),
        Workload::new("1M uniform", size(1 << 20), Spread::Uniform, false, packets),
        Workload::new("IPv6 1k uniform", size(1 << 10), Spread::Uniform, true, packets),
        Workload::new("IPv6 131k Zipf 1.0", size(1 << 17), Spread::Zipf, true, packets),
    ]
}

/// Nanoseconds a packet of each run, sorted.
#[derive(Default)]
struct Runs(Vec<f64>);

impl Runs {
    fn time(&mut self, packets: usize, run: impl FnOnce() -> u64, expected: u64) {
        let start = Instant::now();
        let hits = run();
        self.0.push(start.elapsed().as_nanos() as f64 / packets as f64);
        assert_eq!(hits, expected, "hits");
    }

    /// Lowest and median.
    fn summary(&mut self) -> (f64, f64) {
        self.0.sort_by(f64::total_cmp);
        (self.0.first().copied().unwrap_or(0.0), self.0.get(self.0.len() / 2).copied().unwrap_or(0.0))
    }
}

/// Staged, reference and misses by turns over short slices; one line of result for each workload.
fn interleaved(workload: &mut Workload, passes: usize, batch: &mut LookupBatch) {
    const SLICE: usize = 1024;
    let (mut stages, mut reference, mut miss) = (Runs::default(), Runs::default(), Runs::default());
    for pass in 0..passes {
        for (packets, misses) in workload.packets.chunks(SLICE).zip(workload.misses.chunks(SLICE)) {
            let (cache, now, all) = (&mut workload.cache, pass as u32, packets.len() as u64);
            if let Some(table) = &mut workload.reference {
                read(packets);
                reference.time(packets.len(), || one_at_a_time(table, packets, now), all);
            }
            read(packets);
            stages.time(packets.len(), || staged(cache, batch, packets, now), all);
            read(misses);
            miss.time(misses.len(), || staged(cache, batch, misses, now), 0);
        }
    }
    report(workload.name, stages.summary(), reference.summary(), miss.summary());
}

/// Brings headers into the processor's cache.
fn read(packets: &[Headers]) {
    black_box(packets.iter().map(|headers| u64::from(headers.ports[0])).sum::<u64>());
}

fn report(name: &str, stages: (f64, f64), reference: (f64, f64), miss: (f64, f64)) {
    let pair = |(low, median): (f64, f64)| format!("{low:6.1} {median:6.1} ns");
    let ratio = (reference.0 / stages.0, reference.1 / stages.1);
    print!("{name:20} hit {} | miss {}", pair(stages), pair(miss));
    if reference.0 > 0.0 {
        print!(" | one at a time {} | ratio {:.2} {:.2}", pair(reference), ratio.0, ratio.1);
    }
    println!();
}

/// Plans of 1 and 1,000 changes that touch no flow of `fill`, and of 1,000 that touch all.
fn plans() -> [(&'static str, Arc<SweepPlan>); 4] {
    let plan = |changes| Arc::new(SweepPlan::new(&ChangeSet { generation: 1, changes }));
    let prefix = |number: u32| {
        let network = IpNet::new_assert(IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + 2 * number)), 32);
        Change::Prefix(SegmentIndex(1), network)
    };
    let ports = (2_000..3_000).map(|port| Change::Port(PortIndex(port)));
    [
        ("1 prefix, none affected", plan(vec![prefix(0)])),
        ("1,000 prefixes, none affected", plan((0..1_000).map(prefix).collect())),
        ("1,000 ports, none affected", plan(ports.collect())),
        (
            "1,000 prefixes, all affected",
            plan((0..999).map(prefix).chain([Change::Segment(SegmentIndex(1))]).collect()),
        ),
    ]
}

/// Criterion's own account of each operation, for comparison between builds.
fn operations(criterion: &mut Criterion, workloads: &mut [Workload], short: bool) {
    let mut batch = LookupBatch::new();
    let mut group = criterion.benchmark_group("flow_cache");
    group.sample_size(20).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(400));
    for workload in workloads {
        let Workload { name, cache, packets, misses, .. } = workload;
        group.throughput(Throughput::Elements(packets.len() as u64));
        group.bench_function(format!("hit, {name}"), |bencher| bencher.iter(|| staged(cache, &mut batch, packets, 1)));
        group.bench_function(format!("miss, {name}"), |bencher| bencher.iter(|| staged(cache, &mut batch, misses, 1)));
    }
    let flows = if short { 2_048 } else { FLOWS_IPV4 };
    let layout = FlowCacheLayout { ipv4: flows, ipv6: 8 };
    let mut cache = FlowCache::new(layout, HashKey::from_seed(SEED));
    let [.., (_, all)] = plans();
    group.throughput(Throughput::Elements(flows as u64));
    group.bench_function("insert into an empty cache", |bencher| {
        bencher.iter_custom(|iterations| {
            let once = |cache: &mut FlowCache| {
                cache.begin_sweep(Arc::clone(&all));
                cache.sweep_step(usize::MAX);
                let start = Instant::now();
                fill(cache, 0..flows as u32, false, 0);
                start.elapsed()
            };
            (0..iterations).map(|_| once(&mut cache)).sum()
        });
    });
    let mut next = 1 << 25;
    group.bench_function("insert into a full cache", |bencher| {
        bencher.iter(|| {
            next += flows as u32;
            fill(&mut cache, next - flows as u32..next, false, 0)
        });
    });
    for (name, plan) in plans() {
        group.bench_function(format!("sweep, {name}"), |bencher| {
            bencher.iter_custom(|iterations| {
                let once = |cache: &mut FlowCache| {
                    fill(cache, 0..flows as u32, false, 0);
                    cache.begin_sweep(Arc::clone(&plan));
                    let start = Instant::now();
                    black_box(cache.sweep_step(usize::MAX));
                    start.elapsed()
                };
                (0..iterations).map(|_| once(&mut cache)).sum()
            });
        });
    }
    group.finish();
}

fn main() {
    // Without `--bench` this is a test run: tiny tables, one pass.
    let short = !std::env::args().any(|argument| argument == "--bench");
    let mut workloads = workloads(short);
    let mut batch = LookupBatch::new();
    for workload in &mut workloads {
        interleaved(workload, if short { 1 } else { 4 }, &mut batch);
    }
    let mut criterion = Criterion::default().configure_from_args();
    operations(&mut criterion, &mut workloads, short);
    criterion.final_summary();
}
