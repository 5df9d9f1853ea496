//! Out of the cluster and back: pods call a server outside under the uplink's address, and nothing else comes in or leaks.

use std::net::IpAddr;

use millrace_control::plan::GATEWAY_MAC;
use millrace_engine::counters::Event;
use millrace_engine::drop_reason::DropReason;
use millrace_engine::packet::PortIndex;
use millrace_engine::port::memory::WireFrame;
use millrace_engine::tables::PortRange;
use millrace_engine::testing::{FrameBuilder, SYN, describe, fragments, frame};
use millrace_tests::cluster::uplink_mac;
use millrace_tests::objects;
use millrace_tests::service_world::{
    Delivered, OUTSIDE, Protocol, ROUTER_MAC, ServiceWorld, ends, node_address, pod_address,
};
use serde_json::{Value, json};

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const FAMILIES: [bool; 2] = [true, false];

fn server(ipv4: bool) -> (IpAddr, u16) {
    (pod_address(OUTSIDE, ipv4), 443)
}

fn one(mut out: Vec<Delivered>) -> Delivered {
    assert_eq!(out.len(), 1, "{out:?}");
    out.remove(0)
}

/// A packet that reaches the uplink of the first node from outside.
fn from_outside(source: IpAddr, destination: IpAddr) -> FrameBuilder {
    frame().from(ROUTER_MAC, source).to(uplink_mac(1), destination)
}

#[test]
fn a_pod_calls_out_under_the_uplinks_address_and_gets_its_answer() {
    let mut world = ServiceWorld::new();
    for (client, node) in [("client", 0), ("remote", 1)] {
        for protocol in PROTOCOLS {
            for ipv4 in FAMILIES {
                let sent = world.opening(client, 7_000, server(ipv4), protocol);
                let got = one(world.send(client, sent));
                let (source, destination) = ends(&got.text);
                assert_eq!((got.pod.as_str(), destination), (OUTSIDE, server(ipv4)));
                assert_eq!(source.0, node_address(node, ipv4), "{}", got.text);
                assert!(source.1 >= 49_152, "{}", got.text);
                if node == 0 {
                    let answer = world.answer(&got, protocol);
                    let back = one(world.send(OUTSIDE, answer));
                    assert_eq!(back.pod, client);
                    assert_eq!(ends(&back.text), (server(ipv4), (pod_address(client, ipv4), 7_000)));
                }
            }
        }
    }
}

/// And later packets go by the cache, with the same port.
#[test]
fn a_flow_to_the_outside_is_cached_both_ways() {
    let mut world = ServiceWorld::new();
    for ipv4 in FAMILIES {
        let sent = world.opening("client", 7_000, server(ipv4), Protocol::Udp);
        let first = one(world.send("client", sent.clone()));
        let answer = world.answer(&first, Protocol::Udp);
        let before = world.count(Event::FlowCacheMiss);
        for _ in 0..5 {
            assert_eq!(one(world.send("client", sent.clone())).text, first.text);
            assert_eq!(one(world.send(OUTSIDE, answer.clone())).pod, "client");
        }
        assert!(world.count(Event::FlowCacheMiss) <= before + 2, "one miss for each direction at most");
    }
}

#[test]
fn two_pods_with_one_port_do_not_collide() {
    let mut world = ServiceWorld::new();
    let sources = ["client", "second"].map(|pod| {
        let sent = world.opening(pod, 7_000, server(true), Protocol::Tcp);
        ends(&one(world.send(pod, sent)).text).0
    });
    assert_ne!(sources[0], sources[1]);
}

#[test]
fn a_ping_leaves_with_another_identifier_and_comes_back_with_its_own() {
    let mut world = ServiceWorld::new();
    for ipv4 in FAMILIES {
        let own = pod_address("client", ipv4);
        let ping = frame().from(world.mac("client"), own).to(GATEWAY_MAC, server(ipv4).0).echo_request(9, 1);
        let out = one(world.send("client", ping.wire()));
        let offset = if ipv4 { 38 } else { 58 };
        let identifier = u16::from_be_bytes([out.frame.bytes[offset], out.frame.bytes[offset + 1]]);
        assert!(out.pod == OUTSIDE && identifier >= 49_152, "{}", out.text);
        let pong = from_outside(server(ipv4).0, node_address(0, ipv4)).echo_reply(identifier, 1);
        let back = one(world.send(OUTSIDE, pong.wire()));
        assert_eq!(back.pod, "client");
        assert_eq!(back.frame.bytes[offset..offset + 2], 9_u16.to_be_bytes(), "{}", back.text);
    }
}

#[test]
fn what_no_connection_asked_for_is_the_hosts() {
    let mut world = ServiceWorld::new();
    for ipv4 in FAMILIES {
        let stray = from_outside(server(ipv4).0, node_address(0, ipv4)).tcp(SYN).ports(443, 50_000).wire();
        let got = one(world.send(OUTSIDE, stray.clone()));
        assert_eq!((got.pod.as_str(), got.text), ("host", describe(&stray.bytes)));
    }
    assert_eq!(world.count(Event::HandedBack), 2);
}

#[test]
fn nobody_outside_speaks_with_an_address_of_the_cluster() {
    let mut world = ServiceWorld::new();
    let victims = ["client", "local", "remote", "host", "host-b"];
    for ipv4 in FAMILIES {
        for source in victims {
            let forged = from_outside(pod_address(source, ipv4), node_address(0, ipv4)).echo_request(1, 1).wire();
            assert!(world.send(OUTSIDE, forged).is_empty());
        }
    }
    assert_eq!(world.drops(DropReason::OutsideSourceSpoofed), 2 * victims.len() as u64);
}

/// Nothing of the pod's own address may be seen outside.
#[test]
fn what_cannot_be_masqueraded_stays_in() {
    let mut world = ServiceWorld::new();
    for ipv4 in FAMILIES {
        let sender = || frame().from(world.mac("client"), pod_address("client", ipv4)).to(GATEWAY_MAC, server(ipv4).0);
        let never_sent = from_outside(server(ipv4).0, pod_address("client", ipv4)).udp().ports(53, 9).build();
        let packets = [
            sender().protocol(47).wire(),
            sender().icmp(if ipv4 { 13 } else { 150 }, 0, [0; 4]).wire(),
            sender().unreachable(if ipv4 { 3 } else { 4 }, &never_sent).wire(),
        ];
        for packet in packets {
            let trail = world.explain("client", &packet);
            assert!(trail.ends_with("masquerade drop outside_untracked"), "{trail}");
            assert!(world.send("client", packet).is_empty());
        }
    }
}

/// A router on the way has a smaller MTU: the pod is told, about the packet that it sent itself.
#[test]
fn an_error_of_a_router_outside_reaches_the_pod() {
    let mut world = ServiceWorld::new();
    for ipv4 in FAMILIES {
        let sent = world.opening("client", 7_000, server(ipv4), Protocol::Tcp);
        let out = one(world.send("client", sent));
        let router: IpAddr = if ipv4 { "203.0.113.200" } else { "2001:db8:99::1" }.parse().expect("address");
        let error = from_outside(router, node_address(0, ipv4)).too_big(1_280, &out.frame.bytes).wire();
        let told = one(world.send(OUTSIDE, error));
        assert_eq!(told.pod, "client");
        let (_, quote) = told.text.split_once(" | ").expect("a quote");
        assert_eq!(ends(quote), ((pod_address("client", ipv4), 7_000), server(ipv4)), "{}", told.text);
    }
}

/// A route with a smaller MTU than the pods have: the pod is told by the node.
#[test]
fn a_packet_that_the_way_out_does_not_carry_is_told() {
    let mut world = ServiceWorld::configured(&|local| {
        local.outside.routes.values_mut().for_each(|path| path.mtu = 1_300);
    });
    for ipv4 in FAMILIES {
        let builder = frame().from(world.mac("client"), pod_address("client", ipv4)).to(GATEWAY_MAC, server(ipv4).0);
        let long = builder.udp().ports(7_000, 53).payload_of(1_350);
        let long = if ipv4 { long.dont_fragment() } else { long };
        let told = one(world.send("client", long.wire()));
        assert!(told.pod == "client" && told.text.contains("1300"), "{}", told.text);
        assert!(told.text.contains(&pod_address("host", ipv4).to_string()), "{}", told.text);
    }
}

#[test]
fn fragments_leave_and_come_back_alike() {
    let mut world = ServiceWorld::new();
    for ipv4 in FAMILIES {
        let sender = frame().from(world.mac("client"), pod_address("client", ipv4)).to(GATEWAY_MAC, server(ipv4).0);
        let whole = sender.udp().ports(7_000, 443).payload_of(3_000).identification(77);
        let pieces: Vec<WireFrame> = fragments(&whole, 1_200).into_iter().map(WireFrame::plain).collect();
        let count = pieces.len();
        let out: Vec<Delivered> = pieces.into_iter().flat_map(|piece| world.send("client", piece)).collect();
        assert!(out.len() == count && out.iter().all(|piece| piece.pod == OUTSIDE), "{out:?}");
        let source = ends(&out[0].text).0;
        let answer = from_outside(server(ipv4).0, node_address(0, ipv4)).udp().ports(443, source.1).payload_of(3_000);
        let pieces = fragments(&answer.identification(78), 1_200).into_iter().map(WireFrame::plain);
        let back: Vec<Delivered> = pieces.flat_map(|piece| world.send(OUTSIDE, piece)).collect();
        assert!(back.len() == count && back.iter().all(|piece| piece.pod == "client"), "{back:?}");
    }
}

/// Stations on the link itself are asked for when a packet needs them.
#[test]
fn a_station_on_the_link_is_wanted_until_its_address_is_known() {
    let mut world = ServiceWorld::new();
    let station: IpAddr = "192.0.2.77".parse().expect("address");
    let sent = world.opening("client", 7_000, (station, 80), Protocol::Tcp);
    assert!(world.send("client", sent.clone()).is_empty());
    assert_eq!(world.drops(DropReason::NeighbourUnresolved), 1);
    let wanted = |world: &ServiceWorld| world.node().switch().switch.state().wanted.take();
    assert_eq!(wanted(&world), [(PortIndex(0), station)]);
    world.tell_neighbour(station, ROUTER_MAC);
    assert_eq!(one(world.send("client", sent)).pod, OUTSIDE);
    assert_eq!(wanted(&world), []);
}

/// Another node's own address is reached like any other outside; its address among pods is reached through the tunnel.
#[test]
fn a_pod_reaches_another_nodes_own_address() {
    let mut world = ServiceWorld::new();
    for ipv4 in FAMILIES {
        let sent = world.opening("client", 7_000, (node_address(1, ipv4), 22), Protocol::Tcp);
        let got = one(world.send("client", sent));
        assert_eq!((got.pod.as_str(), ends(&got.text).0.0), ("host-b", node_address(0, ipv4)));
    }
}

#[test]
fn no_port_left_is_a_drop_and_nothing_leaves_as_it_is() {
    let mut world = ServiceWorld::configured(&|local| {
        local.outside_ports = PortRange::new(50_000, 50_001).expect("a range");
    });
    for ipv4 in FAMILIES {
        let open = |world: &mut ServiceWorld, port, to| {
            let sent = world.opening("client", port, to, Protocol::Udp);
            world.send("client", sent)
        };
        let mut ports = [7_000, 7_001].map(|port| ends(&one(open(&mut world, port, server(ipv4))).text).0.1);
        ports.sort_unstable();
        assert_eq!(ports, [50_000, 50_001]);
        let before = world.drops(DropReason::MasqueradePortsExhausted);
        assert!(open(&mut world, 7_002, server(ipv4)).is_empty());
        assert_eq!(world.drops(DropReason::MasqueradePortsExhausted), before + 1);
        // Towards another server both are free.
        assert_eq!(one(open(&mut world, 7_002, (server(ipv4).0, 444))).pod, OUTSIDE);
    }
}

/// A node port leads to an endpoint of another node, and answers have to come back by this one, which has no address of the family
/// to be called by: its block is gone.
#[test]
fn without_an_address_of_the_family_a_node_port_leads_nowhere_else() {
    for ipv4 in FAMILIES {
        let mut world = ServiceWorld::new();
        let vip = if ipv4 { "10.96.0.10" } else { "fd00:96::a" };
        let spec = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_080}]});
        world.apply(&objects::service("web", &[vip], spec));
        let endpoint = pod_address("remote", ipv4).to_string();
        world.apply(&objects::slice("web", ipv4, &[(&endpoint, "b", Value::Null)]));
        let call = |world: &mut ServiceWorld, port| {
            let syn = world.opening(OUTSIDE, port, (node_address(0, ipv4), 30_080), Protocol::Tcp);
            world.send(OUTSIDE, syn)
        };
        assert_eq!(one(call(&mut world, 7_000)).pod, "remote");
        world.delete("IpBlock", if ipv4 { "10-1-0-0-24" } else { "fd00-1--112" });
        assert!(call(&mut world, 7_001).is_empty());
        assert_eq!(world.drops(DropReason::MasqueradeUnavailable), 1, "{:?}", world.node().switch().moved());
    }
}

/// The uplink got another address: what was masqueraded as the old one would never hear an answer.
#[test]
fn connections_follow_the_uplinks_address() {
    let mut world = ServiceWorld::new();
    let renumbered: IpAddr = "192.0.2.99".parse().expect("address");
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let sent = world.opening("client", 7_000, server(true), protocol);
        assert_eq!(ends(&one(world.send("client", sent.clone())).text).0.0, node_address(0, true));
        world.renumber(renumbered);
        let more = if protocol == Protocol::Tcp { world.acknowledgement("client", 7_000, server(true)) } else { sent };
        for _ in 0..2 {
            let out = one(world.send("client", more.clone()));
            assert_eq!(ends(&out.text).0.0, renumbered, "{}", out.text);
        }
        world.renumber(node_address(0, true));
    }
}
