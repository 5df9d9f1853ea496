//! Question: what does it cost to cut a GSO unit into packets with complete checksums?
//!
//! Shape: TCP over IPv4 with timestamps, 44 segments of 1,398 bytes, alone and behind VXLAN over IPv4 and IPv6.
//! Unit: time for a unit; `elem/s` are segments, so 2,600 MHz of TSC divided by it gives cycles a segment.
//! Warm: the unit was just written and lies in L2. Ring: 96 units (6 MB) in turn, so each comes from beyond L2.
//! Reference: the plain kernel (copy, then sum), run in turn with the fused one inside one loop.
//! Expected: a prototype took 130 core cycles a segment from L2 fused, three times that in two passes.

mod tcp_unit;

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use millrace_engine::packet::copy_and_checksum::Kernel;
use millrace_engine::packet::{FrameMemory, Packet};
use millrace_engine::transmit::segmentation::Segmenter;
use tcp_unit::{SEGMENTS, Tunnel};

/// Units in turn, and what is cut from one.
struct Run {
    memory: FrameMemory,
    bytes: Vec<u8>,
    units: VecDeque<Packet>,
    segments: Vec<Packet>,
    tunnel: Tunnel,
}

impl Run {
    fn new(tunnel: Tunnel, units: usize) -> Self {
        let (mut memory, bytes) = (tcp_unit::memory(units), tcp_unit::bytes(tunnel));
        let units = (0..units).map(|_| tcp_unit::packet(&mut memory, &bytes)).collect();
        Self { memory, bytes, units, segments: Segmenter::segment_list(), tunnel }
    }

    /// Cuts the unit that waited longest; the time this took.
    fn cut(&mut self, kernel: Kernel) -> Duration {
        let Some(unit) = self.units.pop_front() else { return Duration::ZERO };
        let (segmenter, layout) = (Segmenter::new(kernel), self.tunnel.layout());
        let start = Instant::now();
        let cut = segmenter.cut(&mut self.memory, black_box(unit), &layout, 1514 + 70, &mut self.segments);
        let taken = start.elapsed();
        assert_eq!(cut, Ok(SEGMENTS));
        self.segments.drain(..).for_each(|segment| self.memory.release(segment));
        self.units.push_back(tcp_unit::packet(&mut self.memory, &self.bytes));
        taken
    }
}

fn segmentation(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("segmentation");
    group.throughput(Throughput::Elements(SEGMENTS as u64));
    for (place, units) in [("warm", 1), ("ring", 96)] {
        for tunnel in [Tunnel::None, Tunnel::Ipv4, Tunnel::Ipv6] {
            for timed in Kernel::available() {
                let mut run = Run::new(tunnel, units);
                let others: Vec<_> = Kernel::available().into_iter().filter(|kernel| *kernel != timed).collect();
                group.bench_function(format!("{place}/{tunnel:?}/{}", timed.name()), |bencher| {
                    bencher.iter_custom(|iterations| {
                        (0..iterations).fold(Duration::ZERO, |total, _| {
                            for other in &others {
                                run.cut(*other);
                            }
                            total + run.cut(timed)
                        })
                    });
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, segmentation);
criterion_main!(benches);
