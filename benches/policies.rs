//! Questions: what do 10,000 policies cost the control plane, one label changed among 100,000 pods, and the judging of
//! a new flow?
//!
//! Shapes: the cluster of `policy_cluster.rs` with 10 or 10,000 policies. Flows go to the ten local pods that the first ten policies select, so that what
//! differs is the number of policies that do not concern a flow.
//! - `from_nothing`: identities and rules of the whole cluster. Memory is printed: what the process has grown by.
//! - `one_label`: one remote pod's label there and back; plan and comparison with the tables before.
//! - `judge`: the verdict on one packet out of scattered pairs of pods; to be compared between 10 and 10,000. What a whole
//!   new flow costs says `policy_flows`.

mod policy_cluster;

use std::hint::black_box;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use millrace_control::observe::Touched;
use millrace_control::plan::POD_SEGMENT;
use millrace_control::plan::policy::PolicyPlanner;
use millrace_engine::packet::PortIndex;
use millrace_engine::packet::parse::protocol;
use millrace_engine::tables::policy::{Direction, Judgement, Packet, PolicyTable, for_each_change};
use policy_cluster::{ALIKE, Size, address, app_of, cluster, let_in, pod, take};

const FLOWS: usize = 1_024;
/// Local pods that the first ten policies select.
const ISOLATED: usize = 10;

fn port(number: usize) -> PortIndex {
    PortIndex(number as u16 + 16)
}

/// Resident memory of this process, in KiB (`VmRSS` of proc(5)).
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|count| count.parse().ok()).expect("a number")
}

/// Pairs of a sender and one of the receivers that are isolated in both clusters, in an order that no prefetcher follows:
/// by turns a sender that is let in, and anybody.
fn flows(size: Size) -> Vec<(usize, usize)> {
    let mut state = 1_u64;
    let mut below = |count: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (((state >> 32) * count as u64) >> 32) as usize
    };
    let mut flow = |number: usize| {
        let receiver = below(ISOLATED);
        let sender = match number % 2 {
            0 => receiver + let_in(below(size.pods().div_ceil(ALIKE))),
            _ => below(size.pods()),
        };
        (sender % size.pods(), receiver)
    };
    (0..FLOWS).map(&mut flow).collect()
}

fn denied(table: &PolicyTable, flows: &[(usize, usize)]) -> usize {
    let verdict = |&(source, destination): &(usize, usize)| {
        let policy = table.pods.get(port(destination)).direction(Direction::Ingress);
        let packet = Packet { protocol: protocol::TCP, port: Some(80) };
        let peer = |number| table.peer(POD_SEGMENT, address(number));
        table.judge(policy, Direction::Ingress, packet, peer(source), peer(destination))
    };
    flows.iter().filter(|flow| matches!(verdict(flow), Judgement::Denied(_))).count()
}

fn bench(criterion: &mut Criterion) {
    let size = Size::asked();
    let local = policy_cluster::local(size, (0..size.local).map(|number| (port(number), number)));
    let mut group = criterion.benchmark_group("policies");
    let mut tables = Vec::new();
    for policies in [10, 10_000] {
        let mut observed = cluster(size, policies);
        let everything = Touched::everything(observed.cluster());
        let before = resident();
        let started = Instant::now();
        let mut planner = PolicyPlanner::default();
        let table = planner.update(observed.cluster(), &local, &everything);
        println!(
            "{policies} policies: {} ms from nothing, {} KiB more",
            started.elapsed().as_millis(),
            resident().saturating_sub(before)
        );
        drop(observed.take_touched());
        group.sample_size(10);
        group.bench_function(BenchmarkId::new("from_nothing", policies), |bencher| {
            bencher.iter(|| PolicyPlanner::default().update(black_box(observed.cluster()), &local, &everything));
        });
        let (number, mut last, mut there) = (size.local + size.remote / 2, table.clone(), false);
        group.bench_function(BenchmarkId::new("one_label", policies), |bencher| {
            bencher.iter_custom(|rounds| {
                let mut spent = std::time::Duration::ZERO;
                for _ in 0..rounds {
                    there = !there;
                    take(&mut observed, &pod(size, number, app_of(number) + usize::from(there)));
                    let started = Instant::now();
                    let touched = observed.take_touched();
                    let next = planner.update(observed.cluster(), &local, &touched);
                    let mut changes = 0;
                    for_each_change(&last, &next, |_| changes += 1);
                    spent += started.elapsed();
                    assert!(changes <= 1, "{changes} changes of one pod");
                    last = next;
                }
                spent
            });
        });
        tables.push((policies, table));
    }
    let flows = flows(size);
    group.sample_size(100).throughput(Throughput::Elements(FLOWS as u64));
    for (policies, table) in &tables {
        let denied_ones = denied(table, &flows);
        assert!(denied_ones > 0 && denied_ones < FLOWS, "{denied_ones} of {FLOWS} are denied");
        group.bench_function(BenchmarkId::new("judge", policies), |bencher| {
            bencher.iter(|| assert_eq!(denied(black_box(table), &flows), denied_ones));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
