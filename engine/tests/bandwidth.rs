//! Limits of bandwidth on a whole switch: rates hold in both ways, for cached and uncached packets, for units, and for
//! several workers together; ports without limits lose nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_engine::drop_reason::DropReason;
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::port::memory::{MemoryQueue, MemoryWire, WireFrame};
use millrace_engine::tables::{Bandwidth, RateLimit};
use millrace_engine::testing::node::{GATEWAY_MAC, Node, TestPod, pods_snapshot};
use millrace_engine::testing::{ACK, FrameBuilder, SYN, frame};

const SENDER: u16 = 1;
const OTHER: u16 = 2;
const RECEIVER: u16 = 3;
const UPLINK: u16 = 100;

const RATE: u64 = 50_000_000;
const BURST: u64 = 1_000_000;
/// Time between two rounds of packets, and how many rounds there are: two seconds.
const STEP: Duration = Duration::from_millis(1);
const STEPS: usize = 2_000;

fn mac(port: u16) -> Mac {
    Mac([2, 0, 0, 0, 0, port as u8])
}

fn between(from: u16, to: u16) -> FrameBuilder {
    frame().from(mac(from), &*format!("10.1.0.{from}")).to(GATEWAY_MAC, &*format!("10.1.0.{to}"))
}

fn datagram(from: u16, source_port: u16) -> WireFrame {
    between(from, RECEIVER).udp().ports(source_port, 53).payload_of(1_400).wire()
}

fn limited(from_port: Option<u64>, to_port: Option<u64>) -> Bandwidth {
    let limit = |rate: u64| RateLimit { bits_per_second: rate, burst_bits: BURST };
    Bandwidth { from_port: from_port.map(limit), to_port: to_port.map(limit) }
}

struct World {
    node: Node,
    wires: BTreeMap<u16, Vec<MemoryWire>>,
}

impl World {
    fn new(workers: usize, limits: &[(u16, Bandwidth)]) -> Self {
        let mut node = Node::new(workers);
        let ports = [SENDER, OTHER, RECEIVER];
        let wires = ports.map(|port| (port, node.attach_to_every_worker(port, MemoryQueue::LIKE_TAP)));
        let mut world = Self { node, wires: BTreeMap::from(wires) };
        world.publish(limits);
        world
    }

    fn publish(&mut self, limits: &[(u16, Bandwidth)]) {
        let pod = |port: u16| {
            let addresses = vec![format!("10.1.0.{port}").parse().expect("address")];
            TestPod { port, mac: mac(port), addresses }
        };
        let mut snapshot = pods_snapshot(&[SENDER, OTHER, RECEIVER].map(pod), UPLINK, mac(200), &[]);
        snapshot.bandwidth = Arc::new(limits.iter().map(|(port, limit)| (PortIndex(*port), *limit)).collect());
        self.node.switch.publish(snapshot);
        self.node.settle();
    }

    /// Bits that reached the receiver from each of the pods, when each round brings `frames`, as (port, worker, frame).
    fn run(&mut self, frames: &[(u16, usize, WireFrame)]) -> [u64; 2] {
        let mut arrived = [0; 2];
        for _ in 0..STEPS {
            self.node.clock.advance(STEP);
            for (port, worker, frame) in frames {
                self.wires[port][*worker].send(frame.clone());
            }
            self.node.settle();
            for frame in self.node.all_sent(RECEIVER) {
                arrived[usize::from(frame.bytes[29] == OTHER as u8)] += wire_bits(&frame);
            }
        }
        assert_eq!(self.node.switch.lost_frames(), 0);
        arrived
    }

    fn over(&self) -> u64 {
        self.node.switch.counters().map(|counters| counters.drops(DropReason::OverBandwidth).get()).sum()
    }
}

/// Of a frame, or of all the frames that a unit of TCP without options is cut into.
fn wire_bits(frame: &WireFrame) -> u64 {
    const HEADERS: usize = 14 + 20 + 20;
    let more = frame.gso.map_or(0, |gso| (frame.bytes.len() - HEADERS).div_ceil(usize::from(gso.size)) - 1);
    8 * (frame.bytes.len() + more * HEADERS) as u64
}

/// What two seconds of the rate and the burst let through, within a hundredth and a packet.
fn assert_rate(bits: u64, rate: u64, packet_bits: u64) {
    let expected = 2 * rate + BURST;
    let off = bits.abs_diff(expected);
    assert!(off <= expected / 100 + packet_bits, "{bits} bits in 2 s, expected {expected}");
}

#[test]
fn a_pod_sends_and_receives_at_its_rate() {
    // 20 datagrams a millisecond are 231 Mbit/s.
    let offered: Vec<_> = (0..20).map(|flow| (SENDER, 0, datagram(SENDER, 1_000 + flow))).collect();
    for limit in [(SENDER, limited(Some(RATE), None)), (RECEIVER, limited(None, Some(RATE)))] {
        let mut world = World::new(1, &[limit]);
        let [bits, _] = world.run(&offered);
        assert_rate(bits, RATE, 8 * 1_442);
        let sent = (STEPS * offered.len()) as u64;
        assert_eq!(world.over(), sent - bits / (8 * 1_442), "all else is over the rate");
    }
    // The other direction of either, and no limits at all.
    for limits in [&[(SENDER, limited(None, Some(RATE))), (RECEIVER, limited(Some(RATE), None))][..], &[]] {
        let mut world = World::new(1, limits);
        let [bits, _] = world.run(&offered);
        assert_eq!((bits, world.over()), ((STEPS * offered.len()) as u64 * 8 * 1_442, 0));
    }
}

#[test]
fn a_unit_counts_as_its_segments() {
    let unit = |flags| between(SENDER, RECEIVER).tcp(flags).ports(1_000, 80);
    let units = [(SENDER, 0, unit(ACK).sequence(2, 1).payload_of(56_000).partial_checksum().gso(1_400).wire())];
    for limit in [(SENDER, limited(Some(RATE), None)), (RECEIVER, limited(None, Some(RATE)))] {
        let mut world = World::new(1, &[limit]);
        world.node.inject(SENDER, unit(SYN).wire());
        let back = between(RECEIVER, SENDER).tcp(SYN | ACK).ports(80, 1_000);
        world.node.inject(RECEIVER, back.wire());
        world.node.inject(SENDER, unit(ACK).sequence(1, 1).wire());
        while world.node.sent(RECEIVER).is_some() {}
        let [bits, _] = world.run(&units);
        assert_rate(bits, RATE, wire_bits(&units[0].2));
        assert!(world.over() > 1_000, "{} units are over the rate", world.over());
    }
}

#[test]
fn workers_share_the_rate_of_a_port() {
    // The same offer by either worker, from two pods to one, and from one pod to another.
    let from_both = |port: u16, other: u16| -> Vec<_> {
        let pair = |flow: u16| [(port, 0, datagram(port, 1_000 + flow)), (other, 1, datagram(other, 2_000 + flow))];
        (0..10).flat_map(pair).collect()
    };
    let mut world = World::new(2, &[(RECEIVER, limited(None, Some(RATE)))]);
    let shares = world.run(&from_both(SENDER, OTHER));
    assert_rate(shares.iter().sum(), RATE, 8 * 1_442);
    let mut world = World::new(2, &[(SENDER, limited(Some(RATE), None))]);
    let [bits, _] = world.run(&from_both(SENDER, SENDER));
    assert_rate(bits, RATE, 8 * 1_442);
    // A pod beside a limited one has all of its own.
    let mut world = World::new(2, &[(SENDER, limited(Some(RATE), None))]);
    let [limited, free] = world.run(&from_both(SENDER, OTHER));
    assert_rate(limited, RATE, 8 * 1_442);
    assert_eq!(free, STEPS as u64 * 10 * 8 * 1_442);
}

#[test]
fn a_limit_may_change_and_go_and_decides_no_flow_again() {
    use millrace_engine::counters::Event;
    let offered: Vec<_> = (0..20).map(|flow| (SENDER, 0, datagram(SENDER, 1_000 + flow))).collect();
    let mut world = World::new(1, &[(SENDER, limited(Some(RATE), Some(RATE)))]);
    assert_rate(world.run(&offered)[0], RATE, 8 * 1_442);
    let misses = world.node.event(Event::FlowCacheMiss);
    world.publish(&[(SENDER, limited(Some(2 * RATE), None)), (RECEIVER, limited(None, Some(4 * RATE)))]);
    assert_rate(world.run(&offered)[0], 2 * RATE, 8 * 1_442);
    world.publish(&[]);
    let over = world.over();
    assert_eq!(world.run(&offered)[0], (STEPS * offered.len()) as u64 * 8 * 1_442);
    assert_eq!(world.over(), over);
    assert_eq!(world.node.event(Event::FlowCacheMiss), misses, "flows stay cached");
    // A port that is taken out and put in again keeps its limit.
    world.publish(&[(RECEIVER, limited(None, Some(RATE)))]);
    world.node.detach(RECEIVER);
    let wires = world.node.attach_to_every_worker(RECEIVER, MemoryQueue::LIKE_TAP);
    world.wires.insert(RECEIVER, wires);
    assert_rate(world.run(&offered)[0], RATE, 8 * 1_442);
}
