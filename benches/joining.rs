//! Question: what does it cost to join a vector of TCP segments, and what if nothing can be joined?
//!
//! Shape: 44 segments of 1,398 bytes of one flow, as they leave a tunnel; and the same segments in reverse, of which
//! none continues another. Unit: time for the vector; `elem/s` are segments. Warm: the segments were just written.
//! Reference: verification in plain code, run in turn with the vector kernel inside one loop.
//! Expected: a prototype took 71 TSC cycles a segment without and 78 with verification, from L2; in reverse nothing is
//! verified, so the cost must not depend on the payload.

#[allow(dead_code)] // each bench uses its part
mod tcp_unit;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use millrace_engine::packet::FrameMemory;
use millrace_engine::packet::copy_and_checksum::Kernel;
use millrace_engine::transmit::joining::Joiner;
use millrace_engine::transmit::segmentation::Segmenter;
use tcp_unit::{SEGMENTS, Tunnel};

/// Joins one vector, made anew; the time this took.
fn join(memory: &mut FrameMemory, joiner: &mut Joiner, bytes: &[u8], reverse: bool) -> Duration {
    let mut vector = Segmenter::segment_list();
    let unit = tcp_unit::packet(memory, bytes);
    let cut = Segmenter::new(Kernel::detect()).cut(memory, unit, &Tunnel::None.layout(), 1514, &mut vector);
    assert_eq!(cut, Ok(SEGMENTS));
    if reverse {
        vector.reverse();
    }
    let start = Instant::now();
    let joined = joiner.join(memory, black_box(&mut vector), true);
    let taken = start.elapsed();
    assert_eq!(joined.segments, if reverse { 0 } else { SEGMENTS });
    vector.drain(..).for_each(|packet| memory.release(packet));
    taken
}

fn joining(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("joining");
    group.throughput(Throughput::Elements(SEGMENTS as u64));
    let bytes = tcp_unit::bytes(Tunnel::None);
    for (order, reverse) in [("in order", false), ("reversed", true)] {
        for timed in Kernel::available() {
            let mut memory = tcp_unit::memory(1);
            let mut others: Vec<_> =
                Kernel::available().into_iter().filter(|kernel| *kernel != timed).map(Joiner::new).collect();
            let mut joiner = Joiner::new(timed);
            group.bench_function(format!("{order}/{}", timed.name()), |bencher| {
                bencher.iter_custom(|iterations| {
                    (0..iterations).fold(Duration::ZERO, |total, _| {
                        for other in &mut others {
                            join(&mut memory, other, &bytes, reverse);
                        }
                        total + join(&mut memory, &mut joiner, &bytes, reverse)
                    })
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, joining);
criterion_main!(benches);
