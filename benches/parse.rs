//! Question: what does it cost to read the headers of a packet?
//!
//! Shape: one frame of every kind that the engine tells apart (`testing::valid_packets`), 64 copies of it read in turn.
//! Unit: nanoseconds and cycles of the time-stamp counter for a packet, lowest and median of short runs.
//! Warm: frames and branch history lie in the processor; real traffic mixes kinds and pays for it.
//! Reference: `etherparse::SlicedPacket`, which checks lengths as we do but neither checksums nor fragments, and keeps
//! slices; run by turns with ours, since the machine's speed drifts.
//! Expected: about 15 ns for TCP over IPv4, of which the IPv4 header checksum is two.
//! Checksum: the sum of what was read is printed to nobody but kept from the optimiser, and every frame must be valid.

mod cycles;

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use cycles::Runs;
use etherparse::SlicedPacket;
use millrace_engine::packet::Headers;
use millrace_engine::packet::parse::parse_into;
use millrace_engine::testing::valid_packets;

const COPIES: usize = 64;

/// One kind of frame, each copy at an address of its own.
struct Kind {
    name: &'static str,
    frames: Vec<Vec<u8>>,
    slots: Vec<Headers>,
}

impl Kind {
    fn all() -> Vec<Self> {
        let kind = |(name, frame): (&'static str, Vec<u8>)| Self {
            name,
            frames: vec![frame; COPIES],
            slots: vec![Headers::EMPTY; COPIES],
        };
        valid_packets().into_iter().map(kind).collect()
    }

    fn ours(&mut self) -> usize {
        let pairs = self.frames.iter().zip(&mut self.slots);
        pairs.map(|(frame, slot)| usize::from(parse_into(slot, black_box(frame), frame.len()).is_ok())).sum()
    }

    fn reference(&self) -> usize {
        self.frames.iter().filter(|frame| black_box(SlicedPacket::from_ethernet(black_box(frame))).is_ok()).count()
    }
}

fn interleaved(kind: &mut Kind, passes: usize) {
    let (mut ours, mut reference) = (Runs::default(), Runs::default());
    for _ in 0..passes {
        assert_eq!(ours.time(COPIES, || kind.ours()), COPIES, "{}", kind.name);
        assert_eq!(reference.time(COPIES, || kind.reference()), COPIES, "{}", kind.name);
        black_box(&kind.slots);
    }
    println!("{:28} {} | etherparse {}", kind.name, ours.text(), reference.text());
}

fn main() {
    // Without `--bench` this is a test run.
    let short = !std::env::args().any(|argument| argument == "--bench");
    let mut kinds = Kind::all();
    for kind in &mut kinds {
        interleaved(kind, if short { 3 } else { 2_000 });
    }
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("parse");
    group.sample_size(20).warm_up_time(Duration::from_millis(50)).measurement_time(Duration::from_millis(150));
    group.throughput(Throughput::Elements(COPIES as u64));
    for kind in &mut kinds {
        group.bench_function(kind.name, |bencher| bencher.iter(|| kind.ours()));
    }
    group.finish();
    criterion.final_summary();
}
