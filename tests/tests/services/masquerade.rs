//! Connections whose answers need a source of their own: which port they get, what happens when none is left, and that
//! what comes back to the node's address is told apart from what is the node's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use millrace_engine::counters::Event;
use millrace_engine::drop_reason::DropReason;
use millrace_engine::tables::PortRange;
use millrace_tests::objects;
use millrace_tests::service_world::{Delivered, Protocol, ServiceWorld, ends, pod_address};
use serde_json::{Value, json};

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

fn vip(number: u8) -> (IpAddr, u16) {
    ([10, 96, 0, number].into(), 80)
}

/// Services with one endpoint each, the same for all of them.
fn services(mut world: ServiceWorld, endpoint: (&str, &str), numbers: std::ops::RangeInclusive<u8>) -> ServiceWorld {
    let ports = |port: u16| {
        json!(["TCP", "UDP", "SCTP"].map(|name| json!({"name": name.to_lowercase(), "port": port, "protocol": name})))
    };
    for number in numbers {
        let name = format!("s{number}");
        world.apply(&objects::service(&name, &[&vip(number).0.to_string()], json!({"ports": ports(80)})));
        let address = pod_address(endpoint.0, true).to_string();
        let mut slice = objects::slice(&name, true, &[(&address, endpoint.1, Value::Null)]);
        slice["ports"] = ports(8080);
        world.apply(&slice);
    }
    world
}

fn ask(world: &mut ServiceWorld, from: &str, port: u16, to: (IpAddr, u16), protocol: Protocol) -> Option<Delivered> {
    let packet = world.opening(from, port, to, protocol);
    let mut out = world.send(from, packet);
    assert!(out.len() < 2, "{out:?}");
    out.pop()
}

/// One client port towards four Services with one endpoint, and towards the endpoint itself: five connections.
#[test]
fn one_client_port_towards_everything_with_one_endpoint_never_collides() {
    for endpoint in [("local", "a"), ("remote", "b")] {
        let mut world = services(ServiceWorld::new(), endpoint, 1..=4);
        for protocol in PROTOCOLS {
            let mut called: Vec<_> = (1..=4).map(vip).collect();
            called.push((pod_address(endpoint.0, true), 8080));
            let all: Vec<_> =
                called.iter().map(|to| ask(&mut world, "client", 7_000, *to, protocol).expect("delivered")).collect();
            let sources: BTreeSet<_> = all.iter().map(|got| ends(&got.text).0).collect();
            assert_eq!(sources.len(), 5, "{protocol:?}: {all:?}");
            assert!(sources.iter().all(|(address, _)| *address == pod_address("client", true)), "{sources:?}");
            assert_eq!(ends(&all[0].text).0.1, 7_000, "the first keeps its port");
            // All are open when they are answered, each from the address that was called.
            for (to, got) in called.iter().zip(&all) {
                let answer = world.answer(got, protocol);
                let back = world.send(&got.pod, answer);
                assert_eq!((back.len(), back[0].pod.as_str()), (1, "client"));
                assert_eq!(ends(&back[0].text), (*to, (pod_address("client", true), 7_000)));
            }
        }
    }
}

/// And the other order: the endpoint itself first.
#[test]
fn a_service_after_its_endpoint_gets_another_port_and_says_so() {
    let mut world = services(ServiceWorld::new(), ("local", "a"), 1..=1);
    assert_eq!(world.open("client", 7_000, (pod_address("local", true), 8080), Protocol::Tcp), "local kept");
    let packet = world.opening("client", 7_000, vip(1), Protocol::Tcp);
    let trail = world.explain("client", &packet);
    assert!(trail.contains("| masquerade port taken, as 10.1.0.5:"), "{trail}");
    let got = ask(&mut world, "client", 7_000, vip(1), Protocol::Tcp).expect("delivered");
    let (source, _) = ends(&got.text);
    assert!(trail.contains(&format!("as 10.1.0.5:{}", source.1)), "{trail} but {}", got.text);
    assert!(source.1 >= 32_768, "{}", got.text);
}

/// Later packets, of both directions, are served as the first was, from the cache as well.
#[test]
fn a_masqueraded_connection_is_cached_in_both_directions() {
    let mut world = services(ServiceWorld::new(), ("local", "a"), 1..=1);
    assert_eq!(world.open("local", 7_000, vip(1), Protocol::Udp), "local node");
    let first = ask(&mut world, "local", 7_000, vip(1), Protocol::Udp).expect("delivered");
    let answer = world.answer(&first, Protocol::Udp);
    let back = world.send("local", answer.clone()).remove(0);
    let missed = world.count(Event::FlowCacheMiss);
    for _ in 0..3 {
        let again = ask(&mut world, "local", 7_000, vip(1), Protocol::Udp).expect("delivered");
        assert_eq!(again.text, first.text);
        assert_eq!(world.send("local", answer.clone()).remove(0).text, back.text);
    }
    assert_eq!(world.count(Event::FlowCacheMiss), missed, "six packets from the cache");
    let trail = world.explain("local", &answer);
    assert!(trail.contains("| connection known, reply | route 10.1.0.7/32"), "{trail}");
}

/// What comes to the node's address and answers nothing that was masqueraded is the node's own.
#[test]
fn the_rest_at_the_nodes_address_is_the_hosts() {
    let mut world = services(ServiceWorld::new(), ("local", "a"), 1..=1);
    let first = ask(&mut world, "local", 7_000, vip(1), Protocol::Udp).expect("delivered");
    let (source, _) = ends(&first.text);
    for port in [source.1 ^ 1, 53] {
        let got = ask(&mut world, "local", 8080, (source.0, port), Protocol::Udp).expect("delivered");
        assert_eq!(got.pod, "host", "{}", got.text);
    }
    let elsewhere = ask(&mut world, "local", 8081, source, Protocol::Udp).expect("delivered");
    assert_eq!(elsewhere.pod, "host", "another port of the pod answers nothing");
}

/// A node whose host has no port of its own: the switch answers for the address, but not for what was masqueraded.
#[test]
fn answers_come_back_where_no_host_stands_behind_the_address() {
    let mut world = services(ServiceWorld::without_hosts(), ("local", "a"), 1..=1);
    for protocol in PROTOCOLS {
        assert_eq!(world.open("local", 7_000, vip(1), protocol), "local node");
    }
    let before = world.drops(DropReason::GatewayPort);
    assert!(ask(&mut world, "local", 8080, (pod_address("host", true), 53), Protocol::Udp).is_none());
    assert_eq!(world.drops(DropReason::GatewayPort), before + 1);
}

/// The host's own connection from a port that a masqueraded one has: it gets another.
#[test]
fn the_host_and_what_is_masqueraded_share_the_ports_of_one_address() {
    let mut world = services(ServiceWorld::new(), ("local", "a"), 1..=1);
    let first = ask(&mut world, "local", 7_000, vip(1), Protocol::Udp).expect("delivered");
    let (source, endpoint) = ends(&first.text);
    let hosts = ask(&mut world, "host", source.1, endpoint, Protocol::Udp).expect("delivered");
    assert_ne!(ends(&hosts.text).0, source);
    let answer = world.answer(&hosts, Protocol::Udp);
    let back = world.send("local", answer).remove(0);
    assert_eq!((back.pod.as_str(), ends(&back.text)), ("host", (endpoint, source)));
}

/// Four ports for connections to one endpoint: the fifth is dropped by name, another endpoint has ports of its own, and
/// a port whose connection has ended serves again.
#[test]
fn when_no_port_is_left_nothing_leaves_under_a_wrong_source() {
    let mut world = ServiceWorld::configured(&|local| {
        local.masquerade_ports = PortRange::new(40_000, 40_003).expect("ports");
        local.services.masquerade_all = true;
    });
    world = services(world, ("remote", "b"), 1..=1);
    let mut ports = BTreeSet::new();
    for port in 1..=4 {
        let got = ask(&mut world, "client", port, vip(1), Protocol::Udp).expect("delivered");
        let (source, _) = ends(&got.text);
        assert_eq!(source.0, pod_address("host", true));
        ports.insert(source.1);
    }
    assert_eq!(ports, (40_000..=40_003).collect());
    let before = world.drops(DropReason::MasqueradePortsExhausted);
    assert!(ask(&mut world, "client", 5, vip(1), Protocol::Udp).is_none());
    assert_eq!(world.drops(DropReason::MasqueradePortsExhausted), before + 1);
    let trail = world.explain("client", &world.opening("client", 5, vip(1), Protocol::Udp));
    assert!(trail.ends_with("| masquerade drop masquerade_ports_exhausted"), "{trail}");
    // Another protocol is another matter, and so is a connection that is known.
    assert_eq!(world.open("client", 6, vip(1), Protocol::Tcp), "remote node");
    assert_eq!(world.open("client", 1, vip(1), Protocol::Udp), "remote node");
    // Unanswered connections end after 30 s, once the scan comes by.
    (0..40).for_each(|_| world.wait(std::time::Duration::from_secs(1)));
    assert_eq!(world.open("client", 5, vip(1), Protocol::Udp), "remote node");
}

/// A pod and an endpoint that is the host itself: the answer returns through the switch in any case.
#[test]
fn towards_the_host_a_pod_keeps_its_address_and_the_host_meets_the_gateway() {
    let mut world = ServiceWorld::configured(&|local| local.services.masquerade_all = true);
    world.apply(&objects::service("api", &["10.96.0.9"], json!({"ports": [{"port": 443}]})));
    let mut slice = objects::slice("api", true, &[("192.0.2.1", "a", Value::Null)]);
    slice["ports"] = json!([{"port": 6443, "protocol": "TCP"}]);
    world.apply(&slice);
    let to: (IpAddr, u16) = ([10, 96, 0, 9].into(), 443);
    let got = ask(&mut world, "client", 50_000, to, Protocol::Tcp).expect("delivered");
    assert_eq!((got.pod.as_str(), got.text.as_str()), ("host", "tcp syn 10.1.0.5:50000 > 192.0.2.1:6443"));
    let got = ask(&mut world, "host", 50_000, to, Protocol::Tcp).expect("delivered");
    let (source, _) = ends(&got.text);
    assert_eq!((got.pod.as_str(), source.0), ("host", IpAddr::from([169, 254, 1, 1])));
    let answer = world.answer(&got, Protocol::Tcp);
    let back = world.send("host", answer).remove(0);
    assert_eq!((back.pod.as_str(), ends(&back.text)), ("host", (to, (pod_address("host", true), 50_000))));
}
