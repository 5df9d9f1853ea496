//! Question: what does each edit cost a packet?
//!
//! Shape: 64 packets of 64 bytes of payload, headers parsed before; each edit alone, and those that go together on a
//! node. Complete checksums unless the name says partial. Completion and cutting are not in it: see `checksum` and
//! `segmentation`.
//! Unit: nanoseconds and cycles of the time-stamp counter for a packet, lowest and median of short runs.
//! Warm: the packets were just written, as a port would have.
//! Reference: "nothing", an edit that changes nothing, which is what the call itself costs; by turns with each edit.
//! Expected: routing 3 to 5 ns, encapsulation 8 to 10 ns (a copy of 50 bytes), translation 10 ns.
//! Checksum: every edit must succeed, and the length of what comes out must be what the edit says.

mod cycles;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use cycles::Runs;
use millrace_engine::edit::{self, CompiledRewrite, Encapsulation, MacPair, Rewrite, Subject, Translation};
use millrace_engine::packet::{Checksum, FrameMemory, FrameMemoryLayout, Headers, Mac, Packet, parse};
use millrace_engine::tables::Vni;
use millrace_engine::testing::{ACK, FrameBuilder, frame};

const PACKETS: usize = 64;
const MACS: MacPair = MacPair { destination: Mac([2, 0, 0, 0, 0, 9]), source: Mac([2, 0, 0, 0, 0, 8]) };
const NOTHING: Rewrite =
    Rewrite { decapsulate: false, pop_tags: 0, route: None, push_tag: None, encapsulate: None, mtu: 1_500 };

/// One edit of one kind of packet.
struct Case {
    name: &'static str,
    memory: FrameMemory,
    bytes: Vec<u8>,
    partial: Option<(u16, u16)>,
    headers: Headers,
    inner_offset: usize,
    compiled: CompiledRewrite,
    translation: Translation,
    packets: Vec<Packet>,
}

impl Case {
    fn new(name: &'static str, builder: &FrameBuilder, rewrite: Rewrite, translation: Translation) -> Self {
        let wire = builder.wire();
        let bytes = wire.bytes;
        let inner_offset = if rewrite.decapsulate { 50 } else { 0 };
        let headers = parse::parse(&bytes[inner_offset..], bytes.len() - inner_offset).expect("valid");
        let memory = FrameMemory::new(FrameMemoryLayout { head_frames: 128, big_buffers: 0 }).expect("memory");
        let (compiled, partial) = (CompiledRewrite::new(&rewrite), wire.partial_checksum);
        let packets = Vec::with_capacity(PACKETS);
        Self { name, memory, bytes, partial, headers, inner_offset, compiled, translation, packets }
    }

    /// Fresh packets.
    fn prepare(&mut self) {
        for packet in self.packets.drain(..) {
            self.memory.release(packet);
        }
        for _ in 0..PACKETS {
            let mut packet = self.memory.packet_from(&self.bytes).expect("packet");
            if let Some((start, offset)) = self.partial {
                packet.set_checksum(Checksum::Partial { start: packet.start() as u16 + start, offset });
            }
            self.packets.push(packet);
        }
    }

    fn apply(&mut self) -> usize {
        let Self { memory, headers, inner_offset, compiled, translation, packets, .. } = self;
        let subject = Subject { headers, inner_offset: *inner_offset, outer_traffic_class: 0, flow_hash: 77 };
        let edited = packets.iter_mut().filter_map(|packet| {
            let layout = edit::apply(memory, packet, &subject, black_box(compiled), black_box(translation));
            black_box(layout).ok()
        });
        edited.count()
    }

    fn check(&self) {
        let rewrite = &self.compiled.rewrite;
        let added = rewrite.encapsulate.map_or(0, |outer| outer.bytes()) + rewrite.push_tag.map_or(0, |_| 4);
        let length = self.bytes.len() + added - self.inner_offset - 4 * usize::from(rewrite.pop_tags);
        assert!(self.packets.iter().all(|packet| packet.length() == length), "{}", self.name);
    }
}

fn encapsulation(source: &str, destination: &str) -> Option<Encapsulation> {
    let address = |text: &str| text.parse().expect("address");
    let (source, destination) = (address(source), address(destination));
    Some(Encapsulation { macs: MACS, source, destination, udp_port: 8_472, vni: Vni::new(1).expect("vni") })
}

fn cases() -> Vec<Case> {
    let mac = "02:00:5e:00:53:05";
    let ipv4 = || frame().from(mac, "10.1.0.5").to(mac, "10.2.0.7").payload_of(64);
    let ipv6 = || frame().from(mac, "fd00:1::5").to(mac, "fd00:2::7").payload_of(64);
    let outer = || frame().from(mac, "192.0.2.2").to(mac, "192.0.2.1").ports(50_000, 8_472);
    let side = |bytes: &[u8]| {
        let mut address = [0; 16];
        address[..bytes.len()].copy_from_slice(bytes);
        Some((address, 30_000))
    };
    let (none, route) = (Translation::NONE, Rewrite { route: Some(MACS), ..NOTHING });
    let destination4 = Translation { source: None, destination: side(&[10, 3, 0, 9]) };
    let both4 = Translation { source: side(&[10, 4, 0, 9]), ..destination4 };
    let destination6 = Translation { source: None, destination: side(&[0xfd; 16]) };
    let over4 = Rewrite { encapsulate: encapsulation("192.0.2.1", "192.0.2.2"), ..route };
    let over6 = Rewrite { encapsulate: encapsulation("2001:db8::1", "2001:db8::2"), ..route };
    let out = Rewrite { decapsulate: true, ..NOTHING };
    vec![
        Case::new("nothing", &ipv4().tcp(ACK), NOTHING, none),
        Case::new("route IPv4", &ipv4().tcp(ACK), route, none),
        Case::new("route IPv6", &ipv6().tcp(ACK), route, none),
        Case::new("translate destination IPv4 TCP", &ipv4().tcp(ACK), NOTHING, destination4),
        Case::new("translate both IPv4 TCP", &ipv4().tcp(ACK), NOTHING, both4),
        Case::new("translate both IPv4 TCP, partial", &ipv4().tcp(ACK).partial_checksum(), NOTHING, both4),
        Case::new("translate both IPv4 UDP", &ipv4().udp(), NOTHING, both4),
        Case::new("translate both IPv4 SCTP", &ipv4().sctp(1), NOTHING, both4),
        Case::new("translate destination IPv6 TCP", &ipv6().tcp(ACK), NOTHING, destination6),
        Case::new("pop a tag", &ipv4().vlan(10).tcp(ACK), Rewrite { pop_tags: 1, ..NOTHING }, none),
        Case::new(
            "push a tag",
            &ipv4().tcp(ACK),
            Rewrite { push_tag: Some(millrace_engine::tables::Tag::customer(10)), ..NOTHING },
            none,
        ),
        Case::new("route, encapsulate over IPv4", &ipv4().tcp(ACK), over4, none),
        Case::new("route, encapsulate over IPv6", &ipv4().tcp(ACK), over6, none),
        Case::new("translate, route, encapsulate", &ipv4().tcp(ACK), over4, destination4),
        Case::new("decapsulate", &ipv4().tcp(ACK).inside_vxlan(1, outer()), out, none),
        Case::new(
            "decapsulate, route",
            &ipv4().tcp(ACK).inside_vxlan(1, outer()),
            Rewrite { decapsulate: true, ..route },
            none,
        ),
    ]
}

fn main() {
    // Without `--bench` this is a test run.
    let short = !std::env::args().any(|argument| argument == "--bench");
    let mut cases = cases();
    let (nothing, edits) = cases.split_first_mut().expect("cases");
    for case in &mut *edits {
        let (mut runs, mut reference) = (Runs::default(), Runs::default());
        for _ in 0..if short { 3 } else { 3_000 } {
            for (case, runs) in [(&mut *nothing, &mut reference), (&mut *case, &mut runs)] {
                case.prepare();
                assert_eq!(runs.time(PACKETS, || case.apply()), PACKETS, "{}", case.name);
                case.check();
            }
        }
        println!("{:34} {} | nothing {}", case.name, runs.text(), reference.text());
    }
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("edit");
    group.sample_size(20).warm_up_time(Duration::from_millis(50)).measurement_time(Duration::from_millis(150));
    group.throughput(Throughput::Elements(PACKETS as u64));
    for case in &mut cases {
        group.bench_function(case.name, |bencher| {
            bencher.iter_custom(|iterations| {
                let once = |case: &mut Case| {
                    case.prepare();
                    let start = Instant::now();
                    black_box(case.apply());
                    start.elapsed()
                };
                (0..iterations).map(|_| once(case)).sum()
            });
        });
    }
    group.finish();
    criterion.final_summary();
}
