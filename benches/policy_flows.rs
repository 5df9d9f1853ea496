//! Question: what do policies cost the packets: of known flows, of new ones, and when they change under a full cache?
//!
//! Shape: one worker of a switch built by the production constructor, from pod to pod, UDP over IPv4, 60 bytes; the
//! cluster of `policy_cluster.rs`. The receiving pod is selected by one policy, whose rule lets the sender in. Three
//! switches by turns: without policies, with 10, with 10,000.
//! - `hit`: 1,024 flows in the cache. Cycles a packet, lowest and median of runs of 4,096 packets. Expected: no difference.
//! - `new`: every packet opens a flow: read, decided, connection opened, cached. Expected: 10,000 within 1.5 of 10.
//! - `cut`: a cache of the default size is full of IPv4 flows, a publish isolates the receiver: milliseconds from the publish
//!   until no cached flow passes any more, in turns with full vectors of the same traffic. Expected: under 10.
//!
//! Ports are rings of descriptors (`ring_queue.rs`), as in `forward`.
//! Checksum: packets sent, hits, entries that were decided again.

mod crossing;
#[allow(dead_code)]
mod cycles;
#[allow(dead_code)]
mod policy_cluster;
mod ring_queue;

use std::time::Instant;

use crossing::{Crossing, RUN};
use cycles::Runs;
use millrace_control::observe::Touched;
use millrace_control::plan::policy::PolicyPlanner;
use millrace_engine::counters::Event;
use millrace_engine::drop_reason::DropReason;
use millrace_engine::flow_cache::FlowCacheLayout;
use millrace_engine::packet::{FrameMemoryLayout, Mac, PortIndex};
use millrace_engine::port::PortQueue;
use millrace_engine::port::memory::MemoryQueue;
use millrace_engine::switch::{Switch, SwitchOptions};
use millrace_engine::tables::Snapshot;
use millrace_engine::tables::policy::PolicyTable;
use millrace_engine::testing::frame;
use millrace_engine::testing::node::{GATEWAY_MAC, TestPod, pods_snapshot};
use policy_cluster::{Size, address, cluster, local};
use ring_queue::{RingQueue, Traffic};

const SEED: u64 = 20_261_125;
const UPLINK: u16 = 0;
const SENDER: u16 = 1;
const RECEIVER: u16 = 2;
/// Number of the receiving pod, which the first policy selects, and of one that it lets in.
const RECEIVING: usize = 0;
const SENDING: usize = 100;

fn mac(port: u16) -> Mac {
    Mac([2, 0, 0x5e, 0, 0x53, port as u8])
}

/// What so many policies of the cluster say of the two pods.
fn policies(size: Size, count: usize) -> PolicyTable {
    let observed = cluster(size, count);
    let local = local(size, [(PortIndex(SENDER), SENDING), (PortIndex(RECEIVER), RECEIVING)]);
    PolicyPlanner::default().update(observed.cluster(), &local, &Touched::everything(observed.cluster()))
}

fn tables(policy: PolicyTable) -> Snapshot {
    let pod = |port, number| TestPod { port, mac: mac(port), addresses: vec![address(number)] };
    let pods = [pod(SENDER, SENDING), pod(RECEIVER, RECEIVING)];
    Snapshot { policy, ..pods_snapshot(&pods, UPLINK, mac(201), &[]) }
}

/// A switch that forwards one kind of traffic. `flows`: how many, met one after another; 0 if every packet is a new one.
fn workload(policy: PolicyTable, flows: u32, layout: FlowCacheLayout) -> Crossing {
    let options = SwitchOptions {
        frame_memory: FrameMemoryLayout { head_frames: 3 * RUN, big_buffers: 16 },
        connections: 2 * layout.ipv4,
        flows: layout,
        hash_seed: Some(SEED),
        ..SwitchOptions::default()
    };
    let mut switch = Switch::new(options).expect("switch");
    switch.publish(tables(policy));
    let packet = frame().from(mac(SENDER), address(SENDING)).to(GATEWAY_MAC, address(RECEIVING));
    let template = packet.udp().payload_of(18).build();
    let mut traffic =
        Some(Traffic { template, ports_offset: 34, order: (0..flows).collect(), again: 0, answers_from: None });
    let mut attach = |port: u16, traffic| {
        let (queue, control) = RingQueue::new(port, traffic, MemoryQueue::LIKE_TAP, RUN);
        switch.attach(queue.port(), vec![Some(Box::new(queue))]).expect("attach");
        control
    };
    attach(UPLINK, None);
    let source = attach(SENDER, traffic.take());
    let target = attach(RECEIVER, None);
    let mut workload = Crossing { switch, source, target };
    for _ in 0..flows.max(1 << 16).div_ceil(RUN as u32) {
        workload.prepare();
        workload.run();
    }
    workload
}

/// Runs of all three by turns; a line each, and how the last compares with each.
fn interleaved(name: &str, tables: &[(usize, PolicyTable)], flows: u32, passes: usize) {
    let layout = FlowCacheLayout { ipv4: flows.max(1 << 16) as usize * 5 / 4, ipv6: 1 << 12 };
    let mut workloads: Vec<(usize, Crossing, Runs)> =
        tables.iter().map(|(count, table)| (*count, workload(table.clone(), flows, layout), Runs::default())).collect();
    for _ in 0..passes {
        for (count, workload, runs) in &mut workloads {
            workload.prepare();
            let hits = workload.event(Event::FlowCacheHit);
            let sent = runs.time(RUN, || workload.run());
            let hits = workload.event(Event::FlowCacheHit) - hits;
            assert_eq!((sent, hits), (RUN as u64, if flows > 0 { RUN as u64 } else { 0 }), "{count} policies");
        }
    }
    let (least, middle) = workloads.last_mut().map(|(_, _, runs)| runs.summary()).unwrap_or_default();
    for (count, _, runs) in &mut workloads {
        let (low, median) = runs.summary();
        let ratios = format!("most policies to this {:.3} {:.3}", least / low, middle / median);
        println!("{name} {count:6} policies {} | {ratios}", runs.text());
    }
}

/// Times from a publish that isolates the receiver, to the last packet of a cached flow.
fn cut(flows: u32, passes: usize) {
    let closed = {
        let mut observed = millrace_control::observe::Observed::default();
        let size = Size { local: SENDING + 1, remote: 0, dual_stack: false };
        for number in [RECEIVING, SENDING] {
            policy_cluster::take(&mut observed, &policy_cluster::pod(size, number, policy_cluster::app_of(number)));
        }
        let mut policy = policy_cluster::policy(0);
        policy["spec"]["ingress"] = serde_json::json!([]);
        policy_cluster::take(&mut observed, &policy);
        let local = local(size, [(PortIndex(SENDER), SENDING), (PortIndex(RECEIVER), RECEIVING)]);
        PolicyPlanner::default().update(observed.cluster(), &local, &Touched::everything(observed.cluster()))
    };
    let (mut times, mut most) = (Vec::new(), 0);
    for _ in 0..passes {
        let mut workload = workload(PolicyTable::default(), flows, FlowCacheLayout::default());
        let cached = workload.switch.counters().map(|counters| counters.flows.get()).sum::<u64>();
        most = most.max(cached);
        workload.prepare();
        let (start, before) = (Instant::now(), workload.target.sent());
        workload.switch.publish(tables(closed.clone()));
        for turn in 1.. {
            workload.switch.turn();
            if workload.event(Event::FlowCacheRedecided) == cached {
                break;
            }
            if turn % (RUN / 64) == 0 {
                workload.prepare();
            }
        }
        times.push(start.elapsed().as_secs_f64() * 1000.0);
        let passed = workload.target.sent() - before;
        workload.prepare();
        assert_eq!(workload.run(), 0, "a flow passes that is denied; {passed} did before");
        let denied: u64 =
            workload.switch.counters().map(|counters| counters.drops(DropReason::PolicyIngress).get()).sum();
        assert!(denied >= RUN as u64);
    }
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    println!(
        "cut    {most:6} flows cached: lowest {:.2} ms, median {median:.2} ms",
        times.first().copied().unwrap_or_default()
    );
}

fn main() {
    // Without `--bench` this is a test run: few pods, two passes.
    let measured = std::env::args().any(|argument| argument == "--bench");
    let size = Size::asked();
    let (passes, counts) = if measured { (200, [10, 10_000]) } else { (2, [10, 100]) };
    let mut tables = vec![(0, PolicyTable::default())];
    tables.extend(counts.map(|count| (count, policies(size, count))));
    interleaved("hit", &tables, 1 << 10, passes);
    interleaved("new", &tables, 0, passes);
    cut(if measured { 1 << 17 } else { 1 << 10 }, if measured { 9 } else { 1 });
}
