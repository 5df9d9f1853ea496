//! Packets through whole switches on memory ports: same node, across nodes, every answer the gateway owes.

use std::net::IpAddr;
use std::time::Duration;

use millrace_engine::counters::Event;
use millrace_engine::limits::{ICMP_ERRORS_BURST, ICMP_ERRORS_PER_SECOND};
use millrace_engine::packet::Mac;
use millrace_engine::port::memory::{MemoryQueue, WireFrame};
use millrace_engine::testing::node::{GATEWAY_MAC, Node, TestPeer, TestPod, pods_snapshot};
use millrace_engine::testing::{ACK, SYN, checksums_valid, describe, frame};

const UPLINK: u16 = 100;

fn mac(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, number])
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn pod(port: u16, node: u8) -> TestPod {
    let number = port as u8;
    let addresses = vec![ip(&format!("10.{node}.0.{number}")), ip(&format!("fd00:{node}::{number}"))];
    TestPod { port, mac: mac(number), addresses }
}

fn peer(node: u8, own: u8, underlay: &str) -> TestPeer {
    let address = |number: u8| ip(&format!("{underlay}{number}"));
    TestPeer {
        address: address(node),
        source: address(own),
        tunnel_mac: mac(200 + node),
        prefixes: vec![
            format!("10.{node}.0.0/24").parse().expect("net"),
            format!("fd00:{node}::/64").parse().expect("net"),
        ],
    }
}

/// A node with pods 1 and 2 and one peer.
fn node(number: u8, other: u8, workers: usize, underlay: &str) -> Node {
    let mut node = Node::new(workers);
    node.attach(1, MemoryQueue::LIKE_TAP, 0);
    node.attach(2, MemoryQueue::LIKE_TAP, workers - 1);
    node.attach(UPLINK, MemoryQueue::LIKE_AF_XDP, 0);
    let pods = [pod(1, number), pod(2, number)];
    node.switch.publish(pods_snapshot(&pods, UPLINK, mac(200 + number), &[peer(other, number, underlay)]));
    node.settle();
    node
}

#[test]
fn a_packet_crosses_the_node_and_its_followers_hit_the_cache() {
    let mut node = node(1, 2, 1, "192.0.2.");
    for _ in 0..3 {
        let sent = frame().from(mac(1), "10.1.0.1").to(GATEWAY_MAC, "10.1.0.2").udp().ports(1000, 53).payload(b"x");
        node.inject(1, sent.wire());
        let got = node.sent(2).expect("a frame");
        assert_eq!(describe(&got.bytes), describe(&sent.ttl(63).build()));
        checksums_valid(&got.bytes).expect("checksums");
        assert_eq!((Mac::read(&got.bytes), Mac::read(&got.bytes[6..])), (mac(2), GATEWAY_MAC));
    }
    assert_eq!((node.event(Event::FlowCacheMiss), node.event(Event::FlowCacheHit)), (1, 2));
    assert_eq!(node.switch.lost_frames(), 0);
}

#[test]
fn packets_cross_two_nodes_in_every_family_and_worker_count() {
    for underlay in ["192.0.2.", "2001:db8::"] {
        for workers in [1, 2] {
            let mut first = node(1, 2, workers, underlay);
            let mut second = node(2, 1, workers, underlay);
            for (from, to) in [("10.1.0.2", "10.2.0.2"), ("fd00:1::2", "fd00:2::2")] {
                for sequence in 0..3 {
                    let sent = frame().from(mac(2), from).to(GATEWAY_MAC, to).tcp(ACK).ports(4000, 80);
                    let sent = sent.sequence(sequence, 1).payload(b"hello").partial_checksum();
                    first.inject(2, sent.wire());
                    let tunnelled = first.sent(UPLINK).expect("a tunnelled frame");
                    checksums_valid(&tunnelled.bytes).unwrap_or_else(|error| panic!("{underlay} {from}: {error}"));
                    assert!(describe(&tunnelled.bytes).starts_with("vxlan vni 1"), "{}", describe(&tunnelled.bytes));
                    second.inject(UPLINK, tunnelled);
                    let got = second.sent(2).expect("delivered");
                    checksums_valid(&got.bytes).expect("checksums");
                    assert_eq!(got.bytes.len(), sent.build().len());
                }
            }
            assert_eq!(first.event(Event::FlowCacheHit), 4);
            assert_eq!((first.switch.lost_frames(), second.switch.lost_frames()), (0, 0), "workers {workers}");
        }
    }
}

#[test]
fn a_unit_is_cut_for_the_uplink_and_joined_for_the_pod() {
    for (from, to) in [("10.1.0.1", "10.2.0.1"), ("fd00:1::1", "fd00:2::1")] {
        let (mut first, mut second) = (node(1, 2, 1, "192.0.2."), node(2, 1, 1, "192.0.2."));
        let header = if from.contains('.') { 40 } else { 60 };
        let size = 1450 - header;
        let payload: Vec<u8> = (0..40_000u32).map(|number| (number * 7 % 253) as u8).collect();
        let unit = frame().from(mac(1), from).to(GATEWAY_MAC, to).tcp(ACK).ports(4000, 80).payload(&payload);
        first.inject(1, unit.gso(size).wire());
        let cut = first.all_sent(UPLINK);
        assert_eq!(cut.len(), payload.len().div_ceil(size as usize));
        for frame in &cut {
            checksums_valid(&frame.bytes).expect("checksums");
            assert!(frame.bytes.len() <= 1514);
        }
        let wire_frames = cut.len() as u64;
        for frame in cut {
            second.queue(UPLINK, frame);
        }
        second.settle();
        let got = second.all_sent(1);
        assert_eq!(got.len(), 1, "joined into one unit");
        assert_eq!(got[0].gso.map(|gso| gso.size), Some(size));
        assert_eq!(&got[0].bytes[got[0].bytes.len() - payload.len()..], &payload[..]);
        assert_eq!(second.event(Event::SegmentsJoined), wire_frames);
        assert_eq!((first.switch.lost_frames(), second.switch.lost_frames()), (0, 0));
    }
}

#[test]
fn the_gateway_answers_arp_nd_and_echo() {
    let mut node = node(1, 2, 1, "192.0.2.");
    node.inject(1, frame().from(mac(1), "10.1.0.1").to(Mac::BROADCAST, "10.1.0.1").arp_request("169.254.1.1").wire());
    let reply = node.sent(1).unwrap_or_else(|| panic!("no arp reply: {:?}", node.moved()));
    assert_eq!(Mac::read(&reply.bytes[6..]), GATEWAY_MAC, "{}", describe(&reply.bytes));
    node.inject(1, frame().from(mac(1), "fd00:1::1").to(Mac::ZERO, "fe80::1").nd_solicitation("fe80::1").wire());
    let reply = node.sent(1).expect("advertisement");
    checksums_valid(&reply.bytes).expect("checksums");
    assert_eq!(Mac::read(&reply.bytes[6..]), GATEWAY_MAC, "{}", describe(&reply.bytes));
    for (from, to) in [("10.1.0.1", "169.254.1.1"), ("fd00:1::1", "fe80::1")] {
        let request = frame().from(mac(1), from).to(GATEWAY_MAC, to).echo_request(7, 1).payload(b"ping");
        node.inject(1, request.wire());
        let reply = node.sent(1).expect("echo reply");
        checksums_valid(&reply.bytes).expect("checksums");
        let expected = frame().from(GATEWAY_MAC, to).to(mac(1), from).echo_reply(7, 1).payload(b"ping");
        assert_eq!(describe(&reply.bytes), describe(&expected.build()));
    }
}

#[test]
fn senders_are_told_once_of_what_cannot_be_forwarded() {
    for (from, near, far, nowhere) in
        [("10.1.0.1", "10.1.0.2", "10.2.0.1", "10.9.0.1"), ("fd00:1::1", "fd00:1::2", "fd00:2::1", "fd00:9::1")]
    {
        let mut node = node(1, 2, 1, "192.0.2.");
        let udp = |to: &str| frame().from(mac(1), from).to(GATEWAY_MAC, to).udp().ports(1, 2);
        // Warm the caches, so that the errors below come although the flow is known.
        node.inject(1, udp(near).payload(b"x").wire());
        node.inject(1, udp(far).payload(b"x").wire());
        assert!(node.sent(2).is_some() && node.sent(UPLINK).is_some());
        for (packet, words) in [
            (udp(near).ttl(1).payload(b"x"), "time exceeded"),
            (udp(far).payload(&[0; 1440]), "too big"),
            (udp(nowhere).payload(b"x"), "unreachable"),
        ] {
            node.inject(1, packet.wire());
            let told = node.all_sent(1);
            assert_eq!(told.len(), 1, "{words}");
            checksums_valid(&told[0].bytes).expect("checksums");
            println!("{}", describe(&told[0].bytes));
        }
        assert!(node.sent(2).is_none() && node.sent(UPLINK).is_none());
    }
}

/// RFC 1812 section 4.3.2.8 asks for a limit.
#[test]
fn errors_beyond_the_limit_are_held_back_and_counted() {
    let mut node = node(1, 2, 1, "192.0.2.");
    let nowhere = frame().from(mac(1), "10.1.0.1").to(GATEWAY_MAC, "10.9.0.1").udp().ports(1, 2).payload(b"x");
    let ask = |times: u32, node: &mut Node| {
        (0..times).for_each(|_| node.inject(1, nowhere.wire()));
        (node.all_sent(1).len() as u32, node.moved().get("icmp_error_limited").copied().unwrap_or(0))
    };
    assert_eq!(ask(ICMP_ERRORS_BURST + 50, &mut node), (ICMP_ERRORS_BURST, 50));
    node.clock.advance(Duration::from_millis(10));
    let refilled = ICMP_ERRORS_PER_SECOND / 100;
    assert_eq!(ask(refilled + 7, &mut node), (refilled, 57));
}

#[test]
fn spoofed_and_foreign_frames_are_dropped_by_name() {
    let mut node = node(1, 2, 1, "192.0.2.");
    let syn = |source_mac, source| frame().from(source_mac, source).to(GATEWAY_MAC, "10.1.0.2").tcp(SYN).ports(1, 2);
    node.inject(1, syn(mac(9), "10.1.0.1").wire());
    node.inject(1, syn(mac(1), "10.1.0.9").wire());
    node.inject(1, WireFrame::plain(vec![0; 9]));
    let inner = |source| frame().from(mac(202), source).to(mac(201), "10.1.0.1").udp().ports(5, 6).payload(b"x");
    let outer = |peer| frame().from(mac(50), peer).to(mac(51), "192.0.2.1").ports(50_000, 8472);
    node.inject(UPLINK, inner("10.2.0.1").inside_vxlan(1, outer("192.0.2.2")).wire());
    assert!(node.sent(1).is_some(), "{:?}", node.moved());
    node.inject(UPLINK, inner("10.2.0.1").inside_vxlan(1, outer("192.0.2.66")).wire());
    node.inject(UPLINK, inner("10.3.0.1").inside_vxlan(1, outer("192.0.2.2")).wire());
    node.inject(UPLINK, inner("10.2.0.1").inside_vxlan(9, outer("192.0.2.2")).wire());
    let moved = node.moved();
    for name in [
        "source_mac_spoofed",
        "source_address_spoofed",
        "ethernet_truncated",
        "vxlan_unknown_peer",
        "tunnel_source_spoofed",
        "vxlan_unknown_vni",
    ] {
        assert_eq!(moved.get(name), Some(&1), "{name} in {moved:?}");
    }
    assert!(node.sent(1).is_none() && node.sent(2).is_none());
}

/// A virtio-net header is the pod's to write: a checksum "field" that is an address would be written behind
/// anti-spoofing, one before the network header would lie outside the packet once a tag is taken off.
#[test]
fn a_pod_cannot_have_its_headers_rewritten_by_a_partial_checksum() {
    let mut node = node(1, 2, 1, "192.0.2.");
    let packet = frame().from(mac(1), "10.1.0.1").to(GATEWAY_MAC, "10.2.0.1").udp().ports(1, 2).payload(&[9; 40]);
    for (start, offset) in [(0, 6), (14, 12), (14, 16), (34, 2), (34, 16), (41, 6)] {
        let forged = WireFrame { partial_checksum: Some((start, offset)), ..packet.wire() };
        node.inject(1, forged);
        assert!(node.sent(UPLINK).is_none(), "sum from {start} written at {offset}");
    }
    assert_eq!(node.moved().get("gso_malformed"), Some(&6));
    // Its own sum, and that of a tunnel inside its datagram.
    for (start, offset) in [(34, 6), (42 + 8, 6)] {
        node.inject(1, WireFrame { partial_checksum: Some((start, offset)), ..packet.wire() });
        assert!(node.sent(UPLINK).is_some(), "sum from {start} written at {offset}");
    }
}
