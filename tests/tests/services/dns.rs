//! A resolver asks for A and AAAA from one socket at the same instant: both questions belong to one connection, and both
//! are answered. Linux dropped the second one for years, since each found no connection and opened its own.

use std::net::IpAddr;

use millrace_control::cluster::NodeName;
use millrace_control::plan::{GATEWAY_MAC, LocalView};
use millrace_control::store::ObjectStore;
use millrace_engine::counters::Event;
use millrace_engine::drop_reason::DropReason;
use millrace_engine::port::memory::{MemoryWire, WireFrame};
use millrace_engine::switch::SwitchOptions;
use millrace_engine::testing::{checksums_valid, describe, frame};
use millrace_engine::worker::IdlePolicy;
use millrace_tests::cluster::ClusterNode;
use millrace_tests::memory_store::MemoryStore;
use millrace_tests::objects;
use millrace_tests::service_world::ends;
use serde_json::{Value, json};

const SERVERS: u8 = 4;

struct Resolver {
    node: ClusterNode,
    mac: millrace_engine::packet::Mac,
    port: u16,
    /// One for each worker.
    wires: Vec<MemoryWire>,
    /// Port numbers of the servers.
    servers: Vec<(u16, millrace_engine::packet::Mac)>,
}

fn vip(ipv4: bool) -> IpAddr {
    if ipv4 { "10.96.0.10" } else { "fd00:96::a" }.parse().expect("address")
}

fn own(last: u8, ipv4: bool) -> IpAddr {
    if ipv4 { format!("10.1.0.{last}") } else { format!("fd00:1::{last}") }.parse().expect("address")
}

impl Resolver {
    /// A node of two workers with a client, whose port both receive from, and several servers behind one ClusterIP.
    fn new(idle: IdlePolicy) -> Self {
        let store = MemoryStore::default();
        let node_address: IpAddr = "192.0.2.1".parse().expect("address");
        let both = [true, false].map(|ipv4| vip(ipv4).to_string());
        let ports = json!([{"name": "dns", "port": 53, "protocol": "UDP"}]);
        let mut all = vec![
            objects::pool("four", "10.0.0.0/8", 24),
            objects::pool("six", "fd00::/16", 112),
            objects::node("a", &[node_address]),
            objects::block("10.1.0.0/24", "four", "a"),
            objects::block("fd00:1::/112", "six", "a"),
            objects::service("dns", &[&both[0], &both[1]], json!({"ports": ports})),
        ];
        for ipv4 in [true, false] {
            let addresses: Vec<String> = (0..SERVERS).map(|number| own(20 + number, ipv4).to_string()).collect();
            let listed: Vec<_> = addresses.iter().map(|address| (address.as_str(), "a", Value::Null)).collect();
            let mut slice = objects::slice("dns", ipv4, &listed);
            slice["ports"] = json!([{"name": "dns", "port": 5353, "protocol": "UDP"}]);
            all.push(slice);
        }
        all.iter().for_each(|object| drop(store.create(object).expect("object")));
        let options = SwitchOptions { workers: 2, idle, hash_seed: Some(7), ..small() };
        let local = LocalView::new(NodeName::new("a").expect("node name"));
        let mut node = ClusterNode::of_size(1, local, &[node_address], options, &store);
        let addresses = |last| [own(last, true), own(last, false)];
        let (port, mac) = node.plug_in("client", &addresses(5));
        let servers =
            (0..SERVERS).map(|number| node.plug_in(&format!("dns-{number}"), &addresses(20 + number))).collect();
        let wires = node.receive_by_every_worker(port);
        assert_eq!(node.follow(usize::MAX).error, None);
        node.switch().finish_sweeps();
        Self { node, mac, port, wires, servers }
    }

    fn question(&self, from: u16, kind: &[u8], ipv4: bool) -> WireFrame {
        frame().from(self.mac, own(5, ipv4)).to(GATEWAY_MAC, vip(ipv4)).udp().ports(from, 53).payload(kind).wire()
    }

    /// What came out at the servers, once that are two frames: number of the server and frame.
    fn asked(&self, mut wait: impl FnMut()) -> Vec<(usize, WireFrame)> {
        let mut asked = Vec::new();
        while asked.len() < 2 {
            wait();
            let node = self.node.switch();
            let numbers = self.servers.iter().enumerate();
            asked
                .extend(numbers.flat_map(|(server, (port, _))| {
                    node.all_sent(*port).into_iter().map(move |frame| (server, frame))
                }));
        }
        asked
    }

    /// Both questions went to one server under one source, and both answers come back from the address that was called.
    fn both_are_answered(&self, from: u16, ipv4: bool, mut wait: impl FnMut()) {
        let asked = self.asked(&mut wait);
        let seen: Vec<_> = asked.iter().map(|(server, frame)| (*server, ends(&describe(&frame.bytes)))).collect();
        assert!(seen.len() == 2 && seen[0] == seen[1], "{seen:?}");
        assert_eq!(seen[0].1.0, (own(5, ipv4), from), "the client keeps its address and port");
        let (port, mac) = self.servers[seen[0].0];
        let (source, destination) = seen[0].1;
        for (_, question) in &asked {
            checksums_valid(&question.bytes).expect("checksums");
            let answer = frame().from(mac, destination.0).to(GATEWAY_MAC, source.0).udp();
            let payload = &question.bytes[question.bytes.len() - 4..];
            self.node.switch().queue(port, answer.ports(destination.1, source.1).payload(payload).wire());
        }
        let mut answers = Vec::new();
        while answers.len() < 2 {
            wait();
            answers.extend(self.node.switch().all_sent(self.port));
        }
        for answer in &answers {
            assert_eq!(ends(&describe(&answer.bytes)), ((vip(ipv4), 53), (own(5, ipv4), from)));
        }
        let mut kinds: Vec<_> = answers.iter().map(|answer| &answer.bytes[answer.bytes.len() - 4..]).collect();
        kinds.sort_unstable();
        assert_eq!(kinds, [b"A   ", b"AAAA"]);
    }

    fn nothing_was_lost(&self, connections: u64) {
        let node = self.node.switch();
        assert_eq!(node.event(Event::ConnectionsNew), connections);
        let moved = node.moved();
        let dropped: Vec<_> = DropReason::ALL.iter().filter(|reason| moved.contains_key(reason.name())).collect();
        assert_eq!(dropped, Vec::<&DropReason>::new());
    }
}

fn small() -> SwitchOptions {
    SwitchOptions {
        frame_memory: millrace_engine::packet::FrameMemoryLayout { head_frames: 4096, big_buffers: 16 },
        flows: millrace_engine::flow_cache::FlowCacheLayout { ipv4: 4096, ipv6: 4096 },
        connections: 4096,
        ..SwitchOptions::default()
    }
}

#[test]
fn two_questions_in_one_vector_are_both_answered() {
    let world = Resolver::new(IdlePolicy::default());
    for (number, ipv4) in (0..200).flat_map(|number| [(number, true), (number, false)]) {
        for kind in [b"A   ", b"AAAA"] {
            world.wires[0].send(world.question(2_000 + number, kind, ipv4));
        }
        world.both_are_answered(2_000 + number, ipv4, || world.node.switch().settle());
    }
    world.nothing_was_lost(400);
}

/// The workers are threads, and each gets one of the two questions while it looks for packets all the time.
#[test]
fn two_questions_on_two_workers_are_both_answered() {
    let world = Resolver::new(IdlePolicy::BusyPoll);
    world.node.switch().switch.start().expect("threads");
    for (number, ipv4) in (0..500).flat_map(|number| [(number, true), (number, false)]) {
        let questions = [b"A   ", b"AAAA"].map(|kind| world.question(2_000 + number, kind, ipv4));
        for (wire, question) in world.wires.iter().zip(questions) {
            wire.send(question);
        }
        world.both_are_answered(2_000 + number, ipv4, std::thread::yield_now);
    }
    world.nothing_was_lost(1_000);
}
