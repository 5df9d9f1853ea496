//! A flood of SYNs with forged senders at a node port: who speaks already loses nothing, memory stays where it is, and a new
//! connection opens at once, during and after.
//!
//! A program of its own, since resident memory is that of all tests of a program.
//!
//! The full measure is `MILLRACE_FLOOD_SYNS=5000000 cargo test --release -p millrace-tests --test flood -- --nocapture`.

use std::net::IpAddr;
use std::time::Instant;

use millrace_engine::counters::Event;
use millrace_engine::port::memory::MemoryWire;
use millrace_engine::testing::{SYN, frame};
use millrace_tests::cluster::uplink_mac;
use millrace_tests::objects;
use millrace_tests::random::Random;
use millrace_tests::service_world::{
    Delivered, OUTSIDE, Protocol, ROUTER_MAC, ServiceWorld, ends, node_address, pod_address,
};
use serde_json::{Value, json};

/// SYNs unless the environment says otherwise.
const SYNS: usize = 60_000;
const VECTOR: usize = 64;
/// Between two looks at the established flows.
const BETWEEN_LOOKS: usize = 320 * VECTOR;
const FLOWS: u16 = 32;
const NODE_PORT: u16 = 30_080;
/// A connection table that grew, or a list that forgets nothing, would show in millions of SYNs.
const GROWTH_BYTES: usize = 8 << 20;

/// One established connection: what its client sends, and what its server sends.
struct Flow {
    client: &'static str,
    port: u16,
    to: (IpAddr, u16),
    server: String,
    seen_client: (IpAddr, u16),
}

/// Which family the flood is of, and how many workers it meets.
#[derive(Clone, Copy, Debug)]
struct Flood {
    ipv4: bool,
    workers: usize,
}

fn vip(ipv4: bool) -> IpAddr {
    if ipv4 { "10.96.0.10" } else { "fd00:96::a" }.parse().expect("address")
}

fn world(flood: Flood) -> (ServiceWorld, Vec<MemoryWire>) {
    let (mut world, wires) = ServiceWorld::with_workers(flood.workers);
    let ports = json!([{"port": 80, "targetPort": 8080, "nodePort": NODE_PORT}]);
    let both = [true, false].map(|ipv4| vip(ipv4).to_string());
    world.apply(&objects::service("web", &[&both[0], &both[1]], json!({"type": "NodePort", "ports": ports})));
    for ipv4 in [true, false] {
        let [here, there] = ["local", "remote"].map(|pod| pod_address(pod, ipv4).to_string());
        world.apply(&objects::slice("web", ipv4, &[(&here, "a", Value::Null), (&there, "b", Value::Null)]));
    }
    (world, wires)
}

fn one(mut out: Vec<Delivered>) -> Delivered {
    assert_eq!(out.len(), 1, "{out:?}");
    out.remove(0)
}

impl Flow {
    fn open(world: &mut ServiceWorld, client: &'static str, port: u16, to: (IpAddr, u16)) -> Self {
        let syn = world.opening(client, port, to, Protocol::Tcp);
        let got = one(world.send(client, syn));
        let answer = world.answer(&got, Protocol::Tcp);
        assert_eq!(one(world.send(&got.pod, answer)).pod, client);
        let flow = Self { client, port, to, server: got.pod, seen_client: ends(&got.text).0 };
        flow.speak(world);
        flow
    }

    /// Data in both directions, all of which must arrive.
    fn speak(&self, world: &mut ServiceWorld) {
        let asked = world.acknowledgement(self.client, self.port, self.to);
        let got = one(world.send(self.client, asked));
        assert_eq!((&got.pod, ends(&got.text).0), (&self.server, self.seen_client), "{}", got.text);
        let told = world.acknowledgement(&self.server, 8080, self.seen_client);
        let back = one(world.send(&self.server, told));
        assert_eq!((back.pod.as_str(), ends(&back.text).0), (self.client, self.to), "{}", back.text);
    }
}

/// A vector of SYNs from anywhere, dealt to all workers; returns how many frames the node sent on.
fn flood(world: &ServiceWorld, wires: &[MemoryWire], ipv4: bool, random: &mut Random) -> usize {
    let mut node = world.node().switch();
    for number in 0..VECTOR {
        // Of 11.0.0.0/8 or 2001:db8:11::/48: neither ours nor a group.
        let bits = random.below(1 << 24) as u32;
        let source = if ipv4 {
            IpAddr::from((0x0b00_0000 | bits).to_be_bytes())
        } else {
            IpAddr::from((0x2001_0db8_0011_u128 << 80 | u128::from(bits)).to_be_bytes())
        };
        let syn = frame().from(ROUTER_MAC, source).to(uplink_mac(1), node_address(0, ipv4)).tcp(SYN);
        let syn = syn.ports(1_024 + random.below(60_000) as u16, NODE_PORT).wire();
        wires[number % wires.len()].send(syn);
    }
    node.settle();
    let to_pods: usize = node.switch.tables().ports.iter().map(|port| node.all_sent(port.index.0).len()).sum();
    to_pods
}

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("statm");
    text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("a number") * 4_096
}

fn free_frames(world: &ServiceWorld) -> u64 {
    world.node().switch().switch.counters().map(|counters| counters.free_frames.get()).sum()
}

/// One after the other, since they look at the memory of the whole program.
#[test]
fn a_flood_of_syns_harms_nobody_who_speaks_already() {
    for (ipv4, workers) in [(true, 1), (false, 1), (true, 3)] {
        withstand(Flood { ipv4, workers });
    }
}

fn withstand(kind: Flood) {
    let syns = std::env::var("MILLRACE_FLOOD_SYNS").map_or(SYNS, |text| text.parse().expect("a number"));
    let (mut world, wires) = world(kind);
    let (called, node_port) = ((vip(kind.ipv4), 80), (node_address(0, kind.ipv4), NODE_PORT));
    let mut flows = Vec::new();
    for number in 0..FLOWS {
        flows.push(Flow::open(&mut world, "client", 10_000 + number, called));
        flows.push(Flow::open(&mut world, OUTSIDE, 20_000 + number, node_port));
    }
    let (mut random, start, frames) = (Random::new(26), Instant::now(), free_frames(&world));
    let (mut sent, mut forwarded, mut resident) = (0, 0, None);
    while sent < syns {
        forwarded += flood(&world, &wires, kind.ipv4, &mut random);
        sent += VECTOR;
        if sent % BETWEEN_LOOKS == 0 {
            flows.iter().for_each(|flow| flow.speak(&mut world));
            // By now every table is full.
            resident.get_or_insert_with(resident_bytes);
            let number = (sent / BETWEEN_LOOKS % 10_000) as u16;
            Flow::open(&mut world, "second", 30_000 + number, called);
        }
    }
    let elapsed = start.elapsed();
    flows.iter().for_each(|flow| flow.speak(&mut world));
    Flow::open(&mut world, OUTSIDE, 40_000, node_port);
    let grown = resident_bytes().saturating_sub(resident.expect("at least one look"));
    assert!(grown < GROWTH_BYTES, "{grown} bytes more than in the first part of the flood");
    assert_eq!(free_frames(&world), frames, "frames are free again");
    assert_eq!(forwarded, sent, "every SYN was a connection of its own and was sent on");
    let (opened, evicted) = (world.count(Event::ConnectionsNew), world.count(Event::ConnectionsEvicted));
    assert!(opened >= sent as u64 && evicted > 0, "{opened} opened, {evicted} gave way");
    assert_eq!(world.count(Event::ConnectionsFull), 0, "half-open ones gave way");
    println!(
        "{kind:?}: {sent} SYNs in {:.1} s, {} flows spoke on, {evicted} half-open connections gave way, {grown} bytes grown",
        elapsed.as_secs_f64(),
        flows.len()
    );
}
