//! What one pod, one node or one station can do to another by flooding: a table of floods, each beside a pod that speaks
//! quietly on the same worker.
//!
//! Of each flood: whether the quiet pod's packets all arrive, what becomes of the flood's, how long the turns are that the
//! quiet pod waits for, and that memory stays where it was. Turns without and with the flood alternate, so that the
//! machine's other work meets both alike. The small version asserts what does not depend on time;
//! `MILLRACE_HOSTILE_TURNS=20000 cargo test --release -p millrace-engine --test hostile -- --nocapture` prints the table
//! that `docs/testing.md` has.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use millrace_engine::limits::VECTOR_PACKETS;
use millrace_engine::packet::Mac;
use millrace_engine::port::memory::{MemoryQueue, MemoryWire, WireFrame};
use millrace_engine::testing::node::{GATEWAY_MAC, Node, TestPeer, TestPod, pods_snapshot};
use millrace_engine::testing::{ACK, FrameBuilder, SYN, frame};

const QUIET: u16 = 1;
const SERVER: u16 = 2;
const HOSTILE: u16 = 3;
const UPLINK: u16 = 100;
/// Turns of each kind unless the environment says otherwise.
const TURNS: usize = 200;
/// Packets of the quiet pod in each turn: half a vector.
const QUIET_PACKETS: usize = VECTOR_PACKETS / 2;
/// Of a table that grew without bound thousands of turns would add far more.
const GROWTH_BYTES: usize = 16 << 20;

fn mac(port: u16) -> Mac {
    Mac([2, 0, 0, 0, 0, port as u8])
}

fn pod_of(port: u16) -> FrameBuilder {
    frame().from(mac(port), &*format!("10.1.0.{port}")).to(GATEWAY_MAC, &*format!("10.1.0.{SERVER}"))
}

fn bytes4(number: u32) -> String {
    let [_, second, third, fourth] = number.to_be_bytes();
    format!("11.{second}.{third}.{fourth}")
}

/// Frame number N of a flood, and the port it comes in by.
type Make = fn(u32) -> WireFrame;

const FLOODS: &[(&str, u16, Make)] = &[
    ("SYNs to ever other ports", HOSTILE, |n| {
        pod_of(HOSTILE).tcp(SYN).ports(1_024 + (n % 60_000) as u16, (n >> 4) as u16 | 1).wire()
    }),
    ("65,535 UDP flows of one pod", HOSTILE, |n| {
        pod_of(HOSTILE).udp().ports((n % 65_535) as u16 + 1, 53).payload(b"x").wire()
    }),
    ("a scan of ports", HOSTILE, |n| pod_of(HOSTILE).tcp(SYN).ports(40_000, (n % 65_535) as u16 + 1).wire()),
    ("unknown destinations", HOSTILE, |n| {
        frame().from(mac(HOSTILE), "10.1.0.3").to(GATEWAY_MAC, &*bytes4(n)).udp().ports(1, 2).payload(b"x").wire()
    }),
    ("TTL 1", HOSTILE, |n| pod_of(HOSTILE).udp().ports((n % 60_000) as u16 + 1, 2).ttl(1).payload(b"x").wire()),
    ("spoofed source addresses", HOSTILE, |n| {
        frame().from(mac(HOSTILE), &*bytes4(n)).to(GATEWAY_MAC, "10.1.0.2").udp().ports(1, 2).payload(b"x").wire()
    }),
    ("spoofed MAC addresses", HOSTILE, |n| {
        let [_, second, third, fourth] = n.to_be_bytes();
        let spoofed = Mac([2, 9, 9, second, third, fourth]);
        frame().from(spoofed, "10.1.0.3").to(GATEWAY_MAC, "10.1.0.2").udp().ports(1, 2).payload(b"x").wire()
    }),
    ("ARP for the gateway", HOSTILE, |_| {
        frame().from(mac(HOSTILE), "10.1.0.3").to(Mac::BROADCAST, "10.1.0.3").arp_request("169.254.1.1").wire()
    }),
    ("ARP for anybody", HOSTILE, |n| {
        frame().from(mac(HOSTILE), "10.1.0.3").to(Mac::BROADCAST, "10.1.0.3").arp_request(&*bytes4(n)).wire()
    }),
    ("ND for the gateway", HOSTILE, |_| {
        frame().from(mac(HOSTILE), "fd00:1::3").to(Mac::ZERO, "fe80::1").nd_solicitation("fe80::1").wire()
    }),
    ("broadcasts", HOSTILE, |n| {
        let to = frame().from(mac(HOSTILE), "10.1.0.3").to(Mac::BROADCAST, "255.255.255.255");
        to.udp().ports(68, (n % 60_000) as u16 + 1).payload(b"x").wire()
    }),
    ("undersized frames", HOSTILE, |n| WireFrame::plain(vec![0xff; (n % 14) as usize + 1])),
    ("headers cut short", HOSTILE, |n| {
        let mut whole = pod_of(HOSTILE).tcp(ACK).ports(1, 2).wire();
        whole.bytes.truncate(15 + (n % 38) as usize);
        whole
    }),
    ("oversized frames", HOSTILE, |_| {
        let to = frame().from(mac(HOSTILE), "10.1.0.3").to(GATEWAY_MAC, "10.2.0.9");
        to.udp().ports(1, 2).payload(&[0; 8_000]).wire()
    }),
    ("first fragments", HOSTILE, |n| fragment(n, 0x2000)),
    ("later fragments without a first", HOSTILE, |n| fragment(n, 100)),
    ("VXLAN of unknown peers", UPLINK, |n| {
        let inner = frame().from(mac(202), "10.2.0.1").to(mac(201), "10.1.0.2").udp().ports(5, 6).payload(b"x");
        inner.inside_vxlan(1, frame().from(mac(50), &*bytes4(n)).to(mac(51), "192.0.2.1").ports(50_000, 8472)).wire()
    }),
    ("VXLAN of an unknown network", UPLINK, |n| {
        let inner = frame().from(mac(202), "10.2.0.1").to(mac(201), "10.1.0.2").udp().ports(5, 6).payload(b"x");
        let outer = frame().from(mac(50), "192.0.2.2").to(mac(51), "192.0.2.1").ports(50_000, 8472);
        inner.inside_vxlan(2 + (n % 1_000), outer).wire()
    }),
    ("a node that spoofs other nodes' pods", UPLINK, |n| {
        let inner = frame().from(mac(202), &*bytes4(n)).to(mac(201), "10.1.0.2").udp().ports(5, 6).payload(b"x");
        inner.inside_vxlan(1, frame().from(mac(50), "192.0.2.2").to(mac(51), "192.0.2.1").ports(50_000, 8472)).wire()
    }),
];

/// A fragment of a packet of its own; `offset` holds the flags too (RFC 791 section 3.1).
fn fragment(number: u32, offset: u16) -> WireFrame {
    let mut whole = pod_of(HOSTILE).udp().ports(7, 53).payload(&[0; 64]).wire();
    whole.bytes[18..20].copy_from_slice(&(number as u16).to_be_bytes());
    whole.bytes[20..22].copy_from_slice(&offset.to_be_bytes());
    whole.bytes[24..26].fill(0);
    let sum = millrace_engine::testing::internet_checksum(&[&whole.bytes[14..34]]);
    whole.bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    whole
}

struct World {
    node: Node,
    wires: BTreeMap<u16, MemoryWire>,
    quiet: Vec<WireFrame>,
}

impl World {
    fn new() -> Self {
        let mut node = Node::new(1);
        let mut wires = BTreeMap::new();
        for port in [QUIET, SERVER, HOSTILE] {
            wires.insert(port, node.attach(port, MemoryQueue::LIKE_TAP, 0));
        }
        wires.insert(UPLINK, node.attach(UPLINK, MemoryQueue::LIKE_AF_XDP, 0));
        let pod = |port: u16| {
            let addresses = [format!("10.1.0.{port}"), format!("fd00:1::{port}")];
            TestPod { port, mac: mac(port), addresses: addresses.map(|text| text.parse().expect("address")).to_vec() }
        };
        let peer = TestPeer {
            address: "192.0.2.2".parse().expect("address"),
            source: "192.0.2.1".parse().expect("address"),
            tunnel_mac: mac(202),
            prefixes: vec!["10.2.0.0/24".parse().expect("net")],
        };
        node.switch.publish(pods_snapshot(&[QUIET, SERVER, HOSTILE].map(pod), UPLINK, mac(201), &[peer]));
        node.settle();
        let quiet = |number| pod_of(QUIET).udp().ports(1_000 + number as u16, 7).payload(b"quiet").wire();
        Self { node, wires, quiet: (0..QUIET_PACKETS).map(quiet).collect() }
    }

    /// One turn with the quiet pod's packets and these; how long it was, and how many of the quiet pod's arrived.
    fn turn(&mut self, flood: impl Iterator<Item = WireFrame>, by: u16) -> (Duration, usize) {
        flood.for_each(|frame| self.wires[&by].send(frame));
        self.quiet.iter().for_each(|frame| self.wires[&QUIET].send(frame.clone()));
        let start = Instant::now();
        self.node.switch.turn();
        let took = start.elapsed();
        let arrived = self.node.all_sent(SERVER);
        let is_quiet = |frame: &&WireFrame| frame.bytes.ends_with(b"quiet");
        [QUIET, HOSTILE, UPLINK].into_iter().for_each(|port| drop(self.node.all_sent(port)));
        (took, arrived.iter().filter(is_quiet).count())
    }
}

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("statm");
    text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("a number") * 4_096
}

/// Of a hundred values sorted the last but one, in microseconds.
fn percentile(times: &mut [Duration], hundredths: usize) -> f64 {
    times.sort_unstable();
    times[(times.len() * hundredths / 100).min(times.len() - 1)].as_secs_f64() * 1e6
}

#[test]
fn a_quiet_pod_beside_a_flood_gets_all_its_packets_and_memory_stays() {
    let turns = std::env::var("MILLRACE_HOSTILE_TURNS").map_or(TURNS, |text| text.parse().expect("a number"));
    println!(
        "| flood | of the quiet pod's packets | turn, median: alone, flooded | turn, p99: alone, flooded | mostly |"
    );
    println!("|---|---|---|---|---|");
    for (name, by, make) in FLOODS {
        let mut world = World::new();
        let (mut alone, mut flooded, mut arrived, mut number) = (Vec::new(), Vec::new(), 0, 0);
        // Every table full of the flood, and the quiet pod's flows known.
        for _ in 0..200 {
            world.turn((0..VECTOR_PACKETS as u32).map(|more| make(number + more)), *by);
            number += VECTOR_PACKETS as u32;
        }
        let (free, resident) = (world.node.switch.counters().next().expect("one").free_frames.get(), resident_bytes());
        for _ in 0..turns {
            alone.push(world.turn(std::iter::empty(), *by).0);
            let (took, got) = world.turn((0..VECTOR_PACKETS as u32).map(|more| make(number + more)), *by);
            number += VECTOR_PACKETS as u32;
            flooded.push(took);
            arrived += got;
            world.node.clock.advance(Duration::from_micros(100));
        }
        world.node.settle();
        let offered = turns * QUIET_PACKETS;
        let grown = resident_bytes().saturating_sub(resident);
        assert!(arrived >= offered, "{name}: {arrived} of {offered} of the quiet pod's packets arrived");
        assert!(grown < GROWTH_BYTES, "{name}: {grown} bytes grown");
        let now_free = world.node.switch.counters().next().expect("one").free_frames.get();
        assert!(now_free + 512 >= free, "{name}: {free} frames were free, now {now_free}");
        assert_eq!(world.node.switch.lost_frames(), 0, "{name}");
        let state = world.node.switch.options().connections;
        let moved = world.node.moved();
        let opened = moved.get("connections.new").copied().unwrap_or(0);
        let gone: u64 = ["connections.expired", "connections.evicted"].iter().filter_map(|name| moved.get(name)).sum();
        assert!(opened - gone <= state as u64, "{name}: {opened} opened, {gone} gone, room for {state}");
        let mostly =
            moved.iter().filter(|(key, _)| !key.starts_with("flow_cache.hit")).max_by_key(|(_, count)| **count);
        println!(
            "| {name} | all | {:.0} µs, {:.0} µs | {:.0} µs, {:.0} µs | {} |",
            percentile(&mut alone, 50),
            percentile(&mut flooded, 50),
            percentile(&mut alone, 99),
            percentile(&mut flooded, 99),
            mostly.map_or("", |(key, _)| key),
        );
    }
}
