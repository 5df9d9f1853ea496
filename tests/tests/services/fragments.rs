//! Fragments of a packet go where its first one went, translated alike.

use std::net::IpAddr;
use std::time::Duration;

use millrace_control::plan::GATEWAY_MAC;
use millrace_engine::counters::Event;
use millrace_engine::drop_reason::DropReason;
use millrace_engine::limits::{LATE_FRAGMENT_TIMEOUT, LATE_FRAGMENTS};
use millrace_engine::port::memory::WireFrame;
use millrace_engine::testing::{FrameBuilder, checksums_valid, fragments, frame};
use millrace_tests::cluster::uplink_mac;
use millrace_tests::objects;
use millrace_tests::service_world::{
    Delivered, OUTSIDE, Protocol, ROUTER_MAC, ServiceWorld, node_address, pod_address,
};
use serde_json::{Value, json};

const PAYLOAD: usize = 3_000;

fn vip(ipv4: bool) -> IpAddr {
    if ipv4 { "10.96.0.1" } else { "fd00:96::1" }.parse().expect("address")
}

fn world(endpoint: (&str, &str)) -> ServiceWorld {
    let mut world = ServiceWorld::new();
    let both = [true, false].map(|ipv4| vip(ipv4).to_string());
    let port = |port: u16| json!([{"name": "ask", "port": port, "protocol": "UDP"}]);
    world.apply(&objects::service("web", &[&both[0], &both[1]], json!({"ports": port(80)})));
    for ipv4 in [true, false] {
        let address = pod_address(endpoint.0, ipv4).to_string();
        let mut slice = objects::slice("web", ipv4, &[(&address, endpoint.1, Value::Null)]);
        slice["ports"] = port(8080);
        world.apply(&slice);
    }
    world
}

fn datagram(world: &ServiceWorld, from: &str, source: (IpAddr, u16), to: (IpAddr, u16)) -> FrameBuilder {
    let payload: Vec<u8> = (0..PAYLOAD).map(|number| number as u8).collect();
    frame().from(world.mac(from), source.0).to(GATEWAY_MAC, to.0).udp().ports(source.1, to.1).payload(&payload)
}

fn pieces(whole: &FrameBuilder) -> Vec<WireFrame> {
    fragments(whole, 1_200).into_iter().map(WireFrame::plain).collect()
}

/// The datagram that fragments make, which must all have come to one pod: as one frame without fragment fields, so that
/// its addresses and its checksum can be looked at.
fn put_together(got: &[Delivered], ipv4: bool) -> Vec<u8> {
    let header = 14 + if ipv4 { 20 } else { 40 };
    let skipped = if ipv4 { header } else { header + 8 };
    let mut whole = got[0].frame.bytes[..header].to_vec();
    got.iter().for_each(|piece| whole.extend(&piece.frame.bytes[skipped..]));
    let length = whole.len() - 14;
    if ipv4 {
        whole[16..18].copy_from_slice(&(length as u16).to_be_bytes());
        whole[20..22].fill(0);
        whole[24..26].fill(0);
        let sum = millrace_engine::packet::checksum::finish(millrace_engine::packet::checksum::sum(&whole[14..34]));
        whole[24..26].copy_from_slice(&sum.to_be_bytes());
    } else {
        whole[18..20].copy_from_slice(&((length - 40) as u16).to_be_bytes());
        whole[20] = 17;
    }
    whole
}

fn ends(whole: &[u8], ipv4: bool) -> ((IpAddr, u16), (IpAddr, u16)) {
    let text = millrace_engine::testing::describe(whole);
    let ends = millrace_tests::service_world::ends(&text);
    assert_eq!(ends.0.0.is_ipv4(), ipv4);
    ends
}

#[test]
fn datagrams_in_fragments_reach_the_endpoint_and_come_back() {
    for (client, endpoint) in [("client", ("local", "a")), ("client", ("remote", "b")), ("local", ("local", "a"))] {
        let mut world = world(endpoint);
        for ipv4 in [true, false] {
            let (from, called) = ((pod_address(client, ipv4), 7_000), (vip(ipv4), 80));
            let question = datagram(&world, client, from, called);
            let got: Vec<_> = pieces(&question).into_iter().flat_map(|piece| world.send(client, piece)).collect();
            assert_eq!(got.len(), 3, "{client} {endpoint:?}");
            assert!(got.iter().all(|piece| piece.pod == endpoint.0), "{got:?}");
            let whole = put_together(&got, ipv4);
            checksums_valid(&whole).expect("the datagram's own checksum");
            let (seen, own) = ends(&whole, ipv4);
            assert_eq!(own, (pod_address(endpoint.0, ipv4), 8080));
            let answer = datagram(&world, endpoint.0, own, seen);
            let back: Vec<_> = pieces(&answer).into_iter().flat_map(|piece| world.send(endpoint.0, piece)).collect();
            assert_eq!(back.len(), 3);
            assert!(back.iter().all(|piece| piece.pod == client), "{back:?}");
            let whole = put_together(&back, ipv4);
            checksums_valid(&whole).expect("the answer's own checksum");
            assert_eq!(ends(&whole, ipv4), (called, from));
        }
    }
}

/// Fragments may overtake each other. Those that come before the first one wait for it, and go the same way.
#[test]
fn later_fragments_that_come_first_follow_the_first_one() {
    for (client, endpoint) in [("client", ("local", "a")), ("client", ("remote", "b")), ("local", ("local", "a"))] {
        let mut world = world(endpoint);
        for ipv4 in [true, false] {
            let (from, called) = ((pod_address(client, ipv4), 7_000), (vip(ipv4), 80));
            let question = pieces(&datagram(&world, client, from, called));
            let held = world.count(Event::FragmentsHeld);
            let got = first_last(&mut world, client, question);
            assert!(got.len() == 3 && got.iter().all(|piece| piece.pod == endpoint.0), "{got:?}");
            assert_eq!(world.count(Event::FragmentsHeld), held + 2);
            let whole = put_together(&got, ipv4);
            checksums_valid(&whole).expect("the datagram's own checksum");
            let (seen, own) = ends(&whole, ipv4);
            assert_eq!(own, (pod_address(endpoint.0, ipv4), 8080));
            let answer = pieces(&datagram(&world, endpoint.0, own, seen));
            let back = first_last(&mut world, endpoint.0, answer);
            assert!(back.len() == 3 && back.iter().all(|piece| piece.pod == client), "{back:?}");
            let whole = put_together(&back, ipv4);
            checksums_valid(&whole).expect("the answer's own checksum");
            assert_eq!(ends(&whole, ipv4), (called, from));
        }
    }
}

/// Sends the second, the third and then the first of three pieces; what came out, which is nothing before the last of it.
fn first_last(world: &mut ServiceWorld, sender: &str, pieces: Vec<WireFrame>) -> Vec<Delivered> {
    let [first, second, third] = <[WireFrame; 3]>::try_from(pieces).expect("three pieces");
    for early in [second, third] {
        assert!(world.send(sender, early).is_empty(), "nobody knows yet whose it is");
    }
    let mut got = world.send(sender, first);
    got.sort_by_key(|piece| offset(&piece.frame.bytes));
    got
}

/// A fragment's offset in its datagram, as its header has it.
fn offset(frame: &[u8]) -> u16 {
    let at = if frame[12] == 8 { 20 } else { 14 + 42 };
    let mask = if frame[12] == 8 { 0x1fff } else { 0xfff8 };
    u16::from_be_bytes([frame[at], frame[at + 1]]) & mask
}

/// What the fragments of a datagram share.
fn number(frame: &[u8]) -> u32 {
    match frame[12] {
        8 => u32::from(u16::from_be_bytes([frame[18], frame[19]])),
        _ => u32::from_be_bytes([frame[58], frame[59], frame[60], frame[61]]),
    }
}

/// The same out of the cluster and back under another address, and for what is the host's own.
#[test]
fn early_fragments_pass_the_uplink_both_ways() {
    let mut world = world(("local", "a"));
    for ipv4 in [true, false] {
        let (from, server) = ((pod_address("client", ipv4), 7_000), (pod_address(OUTSIDE, ipv4), 53));
        let question = pieces(&datagram(&world, "client", from, server));
        let got = first_last(&mut world, "client", question);
        assert!(got.len() == 3 && got.iter().all(|piece| piece.pod == OUTSIDE), "{got:?}");
        let whole = put_together(&got, ipv4);
        checksums_valid(&whole).expect("the datagram's own checksum");
        let (seen, own) = ends(&whole, ipv4);
        assert_eq!((seen.0, own), (node_address(0, ipv4), server));
        let outside = |source: (IpAddr, u16), to: (IpAddr, u16), number: u32| {
            let builder = frame().from(ROUTER_MAC, source.0).to(uplink_mac(1), to.0).udp().ports(source.1, to.1);
            pieces(&builder.payload(&[7; PAYLOAD]).identification(number))
        };
        let back = first_last(&mut world, OUTSIDE, outside(server, seen, 1));
        assert!(back.len() == 3 && back.iter().all(|piece| piece.pod == "client"), "{back:?}");
        assert_eq!(ends(&put_together(&back, ipv4), ipv4), (server, from));
        let hosts = first_last(&mut world, OUTSIDE, outside(server, (node_address(0, ipv4), 9), 2));
        assert!(hosts.len() == 3 && hosts.iter().all(|piece| piece.pod == "host"), "{hosts:?}");
        // Behind the first one they go on at once.
        let in_order = outside((server.0, 54), (node_address(0, ipv4), 9), 3).into_iter();
        let in_order: Vec<_> = in_order.map(|piece| world.send(OUTSIDE, piece).len()).collect();
        assert_eq!(in_order, [1, 1, 1]);
    }
}

/// What comes after a first fragment that went no further goes nowhere, nor what waits in vain; of what came by the uplink
/// the host's kernel is the judge.
#[test]
fn a_fragment_without_its_first_is_dropped_by_name() {
    let mut world = world(("local", "a"));
    let from = (pod_address("client", true), 7_000);
    let all = pieces(&datagram(&world, "client", from, (vip(true), 80)));
    assert_eq!(world.send("client", all[1].clone()).len(), 0);
    assert!(world.explain("client", &all[1]).ends_with("connection waits for its first fragment"));
    world.wait(LATE_FRAGMENT_TIMEOUT);
    assert_eq!(world.drops(DropReason::FragmentWithoutFirst), 1);
    assert_eq!(world.send("client", all[0].clone()).len(), 1, "it waits no more");
    assert_eq!(world.send("client", all[2].clone()).len(), 1);
    assert_eq!(world.send("client", all[1].clone()).len(), 1, "after the first in any order");
    let trail = world.explain("client", &all[1]);
    assert!(trail.contains("| connection known, original | route 10.1.0.7/32"), "{trail}");
    // The first fragment of another goes no further: nobody is at that address.
    let nobody = pieces(&datagram(&world, "client", from, ("10.96.0.99".parse().expect("address"), 80)));
    let delivered: usize = nobody.into_iter().map(|piece| world.send("client", piece).len()).sum();
    world.wait(LATE_FRAGMENT_TIMEOUT);
    assert_eq!((delivered, world.drops(DropReason::FragmentWithoutFirst)), (0, 3));
    // In time the first is forgotten.
    world.wait(Duration::from_secs(31));
    assert_eq!(world.send("client", all[1].clone()).len(), 0);
    let orphan = frame().from(ROUTER_MAC, pod_address(OUTSIDE, true)).to(uplink_mac(1), node_address(0, true));
    let orphan = fragments(&orphan.udp().payload(&[1; PAYLOAD]), 1_200).remove(1);
    assert!(world.send(OUTSIDE, WireFrame::plain(orphan)).is_empty());
    let before = world.count(Event::HandedBack);
    world.wait(LATE_FRAGMENT_TIMEOUT);
    assert_eq!(world.count(Event::HandedBack), before + 1);
}

/// Memory for fragments that wait is bounded; who waits loses, and nobody else: neither connections nor datagrams whose
/// first fragment comes soon, nor the next one once the flood is over.
#[test]
fn a_flood_of_orphans_is_bounded() {
    const ORPHANS: u32 = 20_000;
    let mut world = world(("local", "a"));
    for ipv4 in [true, false] {
        let (from, called) = ((pod_address("client", ipv4), 7_000), (vip(ipv4), 80));
        let free = free_frames(&world);
        let forged = datagram(&world, "second", (pod_address("second", ipv4), 1), called);
        let dropped = world.drops(DropReason::FragmentsHeldFull);
        for number in 0..ORPHANS {
            let orphan = fragments(&forged.clone().identification(number), 1_200).remove(1 + number as usize % 2);
            assert!(world.send("second", WireFrame::plain(orphan)).is_empty());
            if number % 5_000 == 4_999 {
                let builder = datagram(&world, "client", from, called).identification(1_000_000 + number);
                let got = first_last(&mut world, "client", pieces(&builder));
                assert!(got.len() == 3 && got.iter().all(|piece| piece.pod == "local"), "{got:?}");
                let question = world.opening("client", 9_000, called, Protocol::Udp);
                assert_eq!(world.send("client", question).len(), 1);
            }
        }
        let held: u64 = world.node().switch().switch.counters().map(|counters| counters.held.get()).sum();
        assert!(held <= LATE_FRAGMENTS as u64 && free - free_frames(&world) <= LATE_FRAGMENTS as u64, "{held} held");
        let gave_way = world.drops(DropReason::FragmentsHeldFull) - dropped;
        assert!(gave_way >= u64::from(ORPHANS) - LATE_FRAGMENTS as u64, "{gave_way} gave way");
        world.wait(LATE_FRAGMENT_TIMEOUT);
        assert_eq!((free_frames(&world), world.node().switch().switch.lost_frames()), (free, 0));
    }
}

fn free_frames(world: &ServiceWorld) -> u64 {
    world.node().switch().switch.counters().map(|counters| counters.free_frames.get()).sum()
}

/// Two pods may number their datagrams alike; under one source a receiver would mix their pieces up.
#[test]
fn datagrams_of_two_pods_keep_apart_under_one_address() {
    let mut world = world(("local", "a"));
    for ipv4 in [true, false] {
        let server = (pod_address(OUTSIDE, ipv4), 53);
        let mut seen = std::collections::BTreeSet::new();
        for own in 0..50 {
            for client in ["client", "second"] {
                let builder = datagram(&world, client, (pod_address(client, ipv4), 7_000), server).identification(own);
                let out: Vec<_> = pieces(&builder).into_iter().flat_map(|piece| world.send(client, piece)).collect();
                let numbers: Vec<u32> = out.iter().map(|piece| number(&piece.frame.bytes)).collect();
                assert!(numbers.len() == 3 && numbers.iter().all(|number| *number == numbers[0]), "{numbers:?}");
                assert!(seen.insert(numbers[0]), "{client}'s {own} has the number of another datagram");
            }
        }
    }
    // Between pods nothing is replaced, and the number is the sender's own.
    let direct = datagram(&world, "client", (pod_address("client", true), 1), (pod_address("local", true), 9));
    let out = pieces(&direct.identification(77)).into_iter().flat_map(|piece| world.send("client", piece));
    assert_eq!(out.map(|piece| number(&piece.frame.bytes)).collect::<Vec<_>>(), [77; 3]);
}
