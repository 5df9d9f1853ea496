//! Fragments of a packet go where its first one went, translated alike.

use std::net::IpAddr;

use millrace_control::plan::GATEWAY_MAC;
use millrace_engine::drop_reason::DropReason;
use millrace_engine::port::memory::WireFrame;
use millrace_engine::testing::{FrameBuilder, checksums_valid, fragments, frame};
use millrace_tests::objects;
use millrace_tests::service_world::{Delivered, ServiceWorld, pod_address};
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

/// What comes before the first fragment, or after one that went no further, goes nowhere.
#[test]
fn a_fragment_without_its_first_is_dropped_by_name() {
    let mut world = world(("local", "a"));
    let from = (pod_address("client", true), 7_000);
    let all = pieces(&datagram(&world, "client", from, (vip(true), 80)));
    assert_eq!(world.send("client", all[1].clone()).len(), 0);
    assert_eq!(world.drops(DropReason::FragmentWithoutFirst), 1);
    assert_eq!(world.send("client", all[0].clone()).len(), 1);
    assert_eq!(world.send("client", all[2].clone()).len(), 1);
    assert_eq!(world.send("client", all[1].clone()).len(), 1, "after the first in any order");
    let trail = world.explain("client", &all[1]);
    assert!(trail.contains("| connection known, original | route 10.1.0.7/32"), "{trail}");
    // The first fragment of another goes no further: nobody is at that address.
    let nobody = pieces(&datagram(&world, "client", from, ("10.96.0.99".parse().expect("address"), 80)));
    let delivered: usize = nobody.into_iter().map(|piece| world.send("client", piece).len()).sum();
    assert_eq!((delivered, world.drops(DropReason::FragmentWithoutFirst)), (0, 3));
    // In time the first is forgotten.
    world.wait(std::time::Duration::from_secs(31));
    assert_eq!(world.send("client", all[1].clone()).len(), 0);
}
