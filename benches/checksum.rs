//! Question: what does summing cost, and what does a copy cost that sums on the way?
//!
//! Shape: 64 bytes (a small packet), 1,398 (a segment), 16,384. Unit: bytes a second, 1 GiB/s being 8.6 Gbit/s.
//! Warm: source and target lie in L1 but for the longest, which lies in L2.
//! Reference: plain code, and a copy without any sum; run by one binary, so that they meet the same machine.
//! Expected for 1,398 bytes: a prototype took 143 TSC cycles in plain code, 72 with AVX2, 40 with AVX-512.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use millrace_engine::packet::copy_and_checksum::Kernel;

fn checksum(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    for length in [64usize, 1398, 16_384] {
        let source: Vec<u8> = (0..length).map(|byte| (byte * 167 + 13) as u8).collect();
        let mut target = vec![0u8; length];
        group.throughput(Throughput::Bytes(length as u64));
        for kernel in Kernel::available() {
            group.bench_function(BenchmarkId::new(format!("sum/{}", kernel.name()), length), |bencher| {
                bencher.iter(|| kernel.sum(black_box(&source)));
            });
            group.bench_function(BenchmarkId::new(format!("copy and sum/{}", kernel.name()), length), |bencher| {
                bencher.iter(|| kernel.copy_and_sum(black_box(&mut target), black_box(&source)));
            });
        }
        group.bench_function(BenchmarkId::new("copy alone", length), |bencher| {
            bencher.iter(|| black_box(&mut target).copy_from_slice(black_box(&source)));
        });
    }
    group.finish();
}

criterion_group!(benches, checksum);
criterion_main!(benches);
