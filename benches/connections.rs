//! Question: what does a connection cost the slow path: to find, to open, to advance, to write back?
//!
//! Shapes: tables of 1k, 131k and 1M UDP connections over IPv4, filled to 90 %, asked at random. `find` is hash, lock, chain and a copy of
//! the entry; `advance` is a lock and a step of the state; `touch` is the write-back of a cached flow; `open` replaces
//! the oldest unanswered connection of a full table, so it is an eviction and an opening.
//! Unit: nanoseconds a connection, one at a time. The lock is never contended here.
//! Checksum: every connection asked for is found.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use millrace_engine::clock::Time;
use millrace_engine::flow_cache::HashKey;
use millrace_engine::packet::parse::protocol;
use millrace_engine::state::{
    Advanced, ConnectionFlags, ConnectionReference, ConnectionState, Connections, Direction, NewConnection, Opened,
    Tuple,
};
use millrace_engine::tables::SegmentIndex;

const SIZES: [(&str, u32); 3] = [("1k", 1 << 10), ("131k", 1 << 17), ("1M", 1 << 20)];
/// Connections asked for in one round.
const ROUND: u32 = 1024;

fn tuple(number: u32) -> Tuple {
    let mut tuple = Tuple {
        source: [0; 16],
        destination: [0; 16],
        ports: [number as u16, 53],
        segment: SegmentIndex(0),
        protocol: protocol::UDP,
        ipv6: false,
    };
    tuple.source[..4].copy_from_slice(&(0x0a01_0000 | number >> 16).to_be_bytes());
    tuple.destination[..4].copy_from_slice(&[10, 2, 0, 1]);
    tuple
}

fn open(table: &Connections, number: u32, now: Time) -> ConnectionReference {
    let original = tuple(number);
    let (state, flags) = (ConnectionState::Unreplied, ConnectionFlags::NONE);
    let reply = original.mirrored();
    let new = NewConnection { original, reply, state, flags, service: 0, endpoint: 0, replaces: None };
    match table.open(&new, now, |_| {}) {
        Opened::New(reference) => reference,
        other => panic!("connection {number}: {other:?}"),
    }
}

/// Numbers below `count` in an order that no prefetcher follows.
fn scattered(count: u32) -> impl Iterator<Item = u32> {
    let mut state = 1u64;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (((state >> 32) * u64::from(count)) >> 32) as u32
    })
}

fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("connections");
    group.throughput(Throughput::Elements(u64::from(ROUND)));
    for (name, capacity) in SIZES {
        let table = Connections::new(capacity as usize, 1, HashKey::from_seed(1)).expect("memory");
        let count = capacity / 10 * 9;
        let references: Vec<_> = (0..count).map(|number| open(&table, number, Time::ZERO)).collect();
        let present: Vec<u32> = (0..count).filter(|number| table.get(references[*number as usize]).is_some()).collect();
        let mut asked = scattered(present.len() as u32);
        let mut pick = move || present[asked.next().unwrap_or(0) as usize];
        group.bench_function(BenchmarkId::new("find", name), |bencher| {
            bencher.iter(|| {
                for _ in 0..ROUND {
                    assert!(black_box(table.find(&tuple(pick()).mirrored())).is_some());
                }
            });
        });
        group.bench_function(BenchmarkId::new("touch", name), |bencher| {
            let mut now_ms = 0;
            bencher.iter(|| {
                now_ms += 1;
                for _ in 0..ROUND {
                    assert!(table.touch(references[pick() as usize], now_ms));
                }
            });
        });
        group.bench_function(BenchmarkId::new("advance", name), |bencher| {
            let now = Time::from_nanoseconds(1 << 40);
            bencher.iter(|| {
                for _ in 0..ROUND {
                    let reference = references[pick() as usize];
                    assert_eq!(table.advance(reference, Direction::Original, 0, now), Advanced::Goes);
                }
            });
        });
        // Twice the capacity: each shard is full, whatever falls into it.
        let mut number = 3 * capacity;
        (count..2 * capacity + count).for_each(|_| {
            number += 1;
            open(&table, number, Time::ZERO);
        });
        group.bench_function(BenchmarkId::new("open", name), |bencher| {
            bencher.iter(|| {
                for _ in 0..ROUND {
                    number += 1;
                    black_box(open(&table, number, Time::ZERO));
                }
            });
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    bench(&mut criterion);
    criterion.final_summary();
}
