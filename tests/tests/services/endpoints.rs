//! Which endpoints get new connections, and which connections get another endpoint.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use millrace_engine::counters::Event;
use millrace_engine::drop_reason::DropReason;
use millrace_engine::testing::{RST, SYN, frame};
use millrace_tests::objects;
use millrace_tests::service_world::{Protocol, ServiceWorld, ends, pod_address};
use serde_json::{Value, json};

const VIP: &str = "10.96.0.10";

fn vip() -> (IpAddr, u16) {
    (VIP.parse().expect("address"), 80)
}

fn slice(endpoints: &[(&str, &str, Value)]) -> Value {
    let addresses: Vec<String> = endpoints.iter().map(|(pod, ..)| pod_address(pod, true).to_string()).collect();
    let listed: Vec<_> =
        endpoints.iter().zip(&addresses).map(|((_, node, more), at)| (at.as_str(), *node, more.clone())).collect();
    objects::slice("web", true, &listed)
}

fn web(spec: Value, endpoints: &[(&str, &str, Value)]) -> ServiceWorld {
    let mut world = ServiceWorld::new();
    world.apply(&objects::service("web", &[VIP], spec));
    world.apply(&slice(endpoints));
    world
}

fn udp_port() -> Value {
    json!({"ports": [{"port": 80, "protocol": "UDP"}]})
}

fn udp(mut slice: Value) -> Value {
    slice["ports"] = json!([{"port": 8080, "protocol": "UDP"}]);
    slice
}

/// Where connections of many client ports come out.
fn seen(world: &mut ServiceWorld, ports: std::ops::Range<u16>) -> String {
    let all: BTreeSet<String> = ports.map(|port| world.open("client", port, vip(), Protocol::Tcp)).collect();
    all.into_iter().collect::<Vec<_>>().join(", ")
}

#[test]
fn readiness_termination_and_hints() {
    const CLIENT_PORTS: u16 = 24;
    let conditions = |ready: bool, serving: bool, terminating: bool| json!({"conditions": {"ready": ready, "serving": serving, "terminating": terminating}});
    let (ready, ending, dead, unready) = (
        || Value::Null,
        || conditions(false, true, true),
        || conditions(false, false, true),
        || conditions(false, false, false),
    );
    let zone = |zone: &str| json!({"hints": {"forZones": [{"name": zone}]}});
    let node = |node: &str| json!({"hints": {"forNodes": [{"name": node}], "forZones": [{"name": "west"}]}});
    let local = || json!({"internalTrafficPolicy": "Local"});
    let any = || json!({});
    let rows: Vec<(&str, Value, Value, Value, &str)> = vec![
        ("both ready", any(), ready(), ready(), "local kept, remote kept"),
        ("one not ready", any(), unready(), ready(), "remote kept"),
        ("one ending", any(), ending(), ready(), "remote kept"),
        ("all ending", any(), ending(), ending(), "local kept, remote kept"),
        ("ending before dead", any(), ending(), dead(), "local kept"),
        ("none serves", any(), dead(), unready(), "reset"),
        ("local ready", local(), ready(), ready(), "local kept"),
        ("local ending while others are ready", local(), ending(), ready(), "local kept"),
        ("local dead while others are ready", local(), dead(), ready(), "nothing"),
        ("local dead while others are ending", local(), dead(), ending(), "nothing"),
        ("local and none anywhere", local(), dead(), dead(), "reset"),
        ("hint by zone", any(), zone("east"), zone("west"), "local kept"),
        ("a hint for the other zone only", any(), zone("west"), zone("west"), "local kept, remote kept"),
        ("a hint that is missing", any(), zone("east"), ready(), "local kept, remote kept"),
        ("hint by node", any(), node("a"), node("b"), "local kept"),
        ("hints by node before those by zone", any(), node("b"), node("a"), "remote kept"),
        ("local does not care for hints", local(), zone("west"), zone("east"), "local kept"),
    ];
    let mut world = ServiceWorld::new();
    let mut port = 2_000;
    for (name, spec, here, there, expected) in rows {
        world.apply(&objects::service("web", &[VIP], spec));
        world.apply(&slice(&[("local", "a", here), ("remote", "b", there)]));
        let ports = port..port + CLIENT_PORTS;
        port += CLIENT_PORTS;
        let drops = |world: &ServiceWorld| {
            [DropReason::ServiceNoEndpoints, DropReason::ServiceNoLocalEndpoints].map(|reason| world.drops(reason))
        };
        let before = drops(&world);
        assert_eq!(seen(&mut world, ports), expected, "{name}");
        let counted = [expected == "reset", expected == "nothing"].map(|is| u64::from(is) * u64::from(CLIENT_PORTS));
        assert_eq!(drops(&world), [before[0] + counted[0], before[1] + counted[1]], "{name}");
        world.wait(Duration::from_secs(1));
    }
}

#[test]
fn wrong_ports_are_told_and_unallocated_addresses_are_not() {
    let mut world = web(json!({}), &[("local", "a", Value::Null)]);
    let at = |text: &str, port: u16| -> (IpAddr, u16) { (text.parse().expect("address"), port) };
    assert_eq!(world.open("client", 1, at(VIP, 81), Protocol::Tcp), "reset");
    assert_eq!(world.open("client", 2, at(VIP, 80), Protocol::Udp), "unreachable", "protocols are apart");
    assert_eq!(world.open("client", 3, at(VIP, 80), Protocol::Sctp), "unreachable");
    assert_eq!(world.drops(DropReason::ServiceWrongPort), 3);
    assert_eq!(world.open("client", 4, at("10.96.0.11", 80), Protocol::Tcp), "nothing");
    let packet = world.opening("client", 4, at("10.96.0.11", 80), Protocol::Tcp);
    assert!(world.explain("client", &packet).ends_with("service drop service_unallocated"));
    let packet = world.opening("client", 5, at(VIP, 80), Protocol::Tcp);
    let trail = world.explain("client", &packet);
    let expected = "| service default/web:80 ClusterIP to 10.1.0.7 10.1.0.7:8080 (only one) | route";
    assert!(trail.contains(expected), "{trail}");
}

#[test]
fn source_ranges_guard_the_load_balancers_address_only() {
    let mut world = ServiceWorld::new();
    let spec = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["10.1.0.6/32"],
        "externalIPs": ["198.51.100.1"], "ports": [{"port": 80, "nodePort": 30_080}],
    });
    let mut service = objects::service("web", &[VIP], spec);
    service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
    world.apply(&service);
    world.apply(&slice(&[("local", "a", Value::Null)]));
    let at = |text: &str, port: u16| -> (IpAddr, u16) { (text.parse().expect("address"), port) };
    let calls = [
        ("client", at("203.0.113.1", 80), "nothing"),
        ("second", at("203.0.113.1", 80), "local kept"),
        ("client", at("198.51.100.1", 80), "local kept"),
        ("client", at("192.0.2.1", 30_080), "local kept"),
        ("client", at(VIP, 80), "local kept"),
    ];
    for (port, (client, to, expected)) in (500..).zip(calls) {
        assert_eq!(world.open(client, port, to, Protocol::Tcp), expected, "{client} to {to:?}");
    }
    let mut open = service.clone();
    open["spec"]["loadBalancerSourceRanges"] = json!([" 10.9.0.0/16 ", "0.0.0.0/0"]);
    world.apply(&open);
    assert_eq!(
        world.open("client", 9, at("203.0.113.1", 80), Protocol::Tcp),
        "local kept",
        "a zero prefix guards nothing"
    );
}

#[test]
fn a_client_with_affinity_stays_until_it_has_been_silent() {
    let affinity =
        json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 100}}});
    let endpoints = [("local", "a", Value::Null), ("local-2", "a", Value::Null), ("remote", "b", Value::Null)];
    let mut world = web(affinity, &endpoints);
    let first = seen(&mut world, 100..101);
    assert_eq!(seen(&mut world, 101..140), first, "every port of one client");
    let before = world.count(Event::ServiceAffinity);
    assert_eq!(before, 39);
    for round in 0..4u16 {
        world.wait(Duration::from_secs(90));
        assert_eq!(seen(&mut world, 200 + round..201 + round), first, "refreshed by each new connection");
    }
    let packet = world.opening("client", 300, vip(), Protocol::Tcp);
    assert!(world.explain("client", &packet).contains("(affinity)"));
    // The endpoint goes: its affinity is void.
    let gone = first.split(' ').next().expect("a pod").to_owned();
    let left: Vec<_> = endpoints.iter().filter(|(pod, ..)| *pod != gone).cloned().collect();
    world.apply(&slice(&left));
    let second = seen(&mut world, 400..401);
    assert_ne!(second, first);
    assert_eq!(seen(&mut world, 401..420), second);
    // In time each of the others is met again.
    let mut met = BTreeSet::new();
    for port in 500..540 {
        world.wait(Duration::from_secs(101));
        met.insert(seen(&mut world, port..port + 1));
    }
    assert_eq!(met.len(), 2, "{met:?}");
}

#[test]
fn a_syn_that_nobody_answers_is_offered_another_endpoint() {
    let endpoints = [("local", "a", Value::Null), ("remote", "b", Value::Null)];
    let mut world = web(json!({}), &endpoints);
    let syn = world.opening("client", 77, vip(), Protocol::Tcp);
    let first = world.send("client", syn.clone()).remove(0);
    world.wait(Duration::from_secs(1));
    assert!(world.explain("client", &syn).contains("other was silent"));
    let second = world.send("client", syn.clone()).remove(0);
    assert_ne!(first.pod, second.pod);
    assert_eq!(world.count(Event::ServiceRetried), 1);
    // The first answers late: its connection is gone, and the client must not see two servers.
    let late = world.answer(&first, Protocol::Tcp);
    assert_eq!(world.send(&first.pod, late).len(), 0);
    let answer = world.answer(&second, Protocol::Tcp);
    let back = world.send(&second.pod, answer);
    assert_eq!((back.len(), back[0].pod.as_str()), (1, "client"));
    // Once answered, a repeated SYN stays with the endpoint.
    let third = world.send("client", syn).remove(0);
    assert_eq!(third.pod, second.pod);
    assert_eq!(world.count(Event::ServiceRetried), 1);
}

#[test]
fn a_syn_of_the_only_endpoint_stays_with_it() {
    let mut world = web(json!({}), &[("local", "a", Value::Null)]);
    let syn = world.opening("client", 77, vip(), Protocol::Tcp);
    for _ in 0..4 {
        assert_eq!(world.send("client", syn.clone()).remove(0).pod, "local");
        world.wait(Duration::from_secs(1));
    }
    assert_eq!((world.count(Event::ServiceRetried), world.count(Event::ServicePicked)), (0, 1));
}

/// UDP connections go to another endpoint when theirs no longer serves, and only then.
#[test]
fn stale_udp_connections_are_decided_again() {
    let mut world = ServiceWorld::new();
    world.apply(&objects::service("web", &[VIP], udp_port()));
    world.apply(&udp(slice(&[("local", "a", Value::Null)])));
    let ask = |world: &mut ServiceWorld| {
        let packet = world.opening("client", 53, vip(), Protocol::Udp);
        let out = world.send("client", packet);
        out.first().map_or_else(|| "nothing".to_owned(), |got| got.pod.clone())
    };
    assert_eq!(world.open("client", 53, vip(), Protocol::Udp), "local kept");
    // One more endpoint: the flow stays.
    world.apply(&udp(slice(&[("local", "a", Value::Null), ("remote", "b", Value::Null)])));
    (0..8).for_each(|_| assert_eq!(ask(&mut world), "local"));
    // It ends but serves: the flow stays, whatever new connections get.
    let ending = json!({"conditions": {"ready": false, "serving": true, "terminating": true}});
    world.apply(&udp(slice(&[("local", "a", ending), ("remote", "b", Value::Null)])));
    assert_eq!(ask(&mut world), "local");
    // No endpoint at all: nothing better is known.
    world.apply(&udp(slice(&[])));
    assert_eq!(ask(&mut world), "local");
    // Others serve: now it moves, and its answers come back.
    world.apply(&udp(slice(&[("remote", "b", Value::Null)])));
    assert_eq!(ask(&mut world), "remote");
    assert_eq!(world.open("client", 53, vip(), Protocol::Udp), "remote kept");
}

/// A flow whose endpoint went is opened anew, so it has to be let in anew: by ranges that became narrower meanwhile.
#[test]
fn a_stale_udp_connection_is_held_to_the_ranges_of_sources() {
    let mut world = ServiceWorld::new();
    let guarded = |ranges: Value| {
        let spec = json!({
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ranges,
            "ports": [{"port": 80, "protocol": "UDP"}],
        });
        let mut service = objects::service("web", &[VIP], spec);
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
        service
    };
    let called = ("203.0.113.1".parse().expect("address"), 80);
    world.apply(&guarded(json!(["10.1.0.0/16"])));
    world.apply(&udp(slice(&[("local", "a", Value::Null)])));
    assert_eq!(world.open("client", 53, called, Protocol::Udp), "local kept");
    world.apply(&guarded(json!(["10.9.0.0/16"])));
    let packet = world.opening("client", 53, called, Protocol::Udp);
    assert_eq!(world.send("client", packet.clone()).len(), 1, "what is open stays");
    world.apply(&udp(slice(&[("local-2", "a", Value::Null)])));
    let trail = world.explain("client", &packet);
    assert!(trail.ends_with("service drop service_source_refused"), "{trail}");
    assert_eq!(world.send("client", packet).len(), 0);
}

/// Whoever knows addresses and ports of a connection can send a reset under them. Its ends look at the sequence number
/// and speak on; so does the switch, to the same endpoint, also after a while and when a SYN was forged behind it.
#[test]
fn a_forged_reset_does_not_move_a_connection() {
    let mut world = web(json!({}), &[("local", "a", Value::Null), ("remote", "b", Value::Null)]);
    for port in 700..716 {
        let opened = world.open("client", port, vip(), Protocol::Tcp);
        let ack = world.acknowledgement("client", port, vip());
        assert_eq!(world.send("client", ack.clone()).len(), 1);
        let from = pod_address("client", true);
        let forged = |flags| frame().from(world.mac("client"), from).to(world.gateway("client"), vip().0).tcp(flags);
        let (reset, syn) = (forged(RST).ports(port, 80).wire(), forged(SYN).ports(port, 80).wire());
        assert_eq!(world.send("client", reset.clone()).len(), 1, "the end judges it");
        world.wait(Duration::from_secs(200));
        let again = world.send("client", syn).remove(0);
        let spoken = world.send("client", ack.clone()).remove(0);
        world.wait(Duration::from_secs(200));
        let later = world.send("client", ack).remove(0);
        let pods = [&again, &spoken, &later].map(|got| got.pod.clone());
        assert!(pods.iter().all(|pod| opened.starts_with(&format!("{pod} "))), "{opened}: {pods:?}");
    }
    assert_eq!(world.node().switch().switch.state().connections.live(), 16);
    // Nobody refutes these, so they are believed in the end.
    for port in 700..716 {
        let from = pod_address("client", true);
        let reset = frame().from(world.mac("client"), from).to(world.gateway("client"), vip().0).tcp(RST);
        world.send("client", reset.ports(port, 80).wire());
    }
    world.wait(Duration::from_secs(301));
    world.wait(Duration::from_secs(2));
    assert_eq!(world.node().switch().switch.state().connections.live(), 0);
}

/// TCP connections live on when their endpoint or Service is gone, as with kube-proxy.
#[test]
fn live_tcp_connections_keep_their_endpoint() {
    let mut world = web(json!({}), &[("local", "a", Value::Null)]);
    assert_eq!(world.open("client", 99, vip(), Protocol::Tcp), "local kept");
    let ack = |world: &mut ServiceWorld| {
        let frame = world.acknowledgement("client", 99, vip());
        world.send("client", frame)
    };
    world.apply(&slice(&[("remote", "b", Value::Null)]));
    world.delete("Service", "web");
    for _ in 0..2 {
        let out = ack(&mut world);
        assert_eq!(out.len(), 1, "the connection lives");
        let (_, to) = ends(&out[0].text);
        assert_eq!((out[0].pod.as_str(), to.1), ("local", 8080));
    }
    assert_eq!(world.open("client", 98, vip(), Protocol::Tcp), "nothing", "the address is nobody's now");
}
