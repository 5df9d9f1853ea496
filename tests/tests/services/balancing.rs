//! How connections spread over endpoints.

use std::collections::BTreeMap;
use std::net::IpAddr;

use millrace_engine::testing::describe;
use millrace_tests::cluster::UPLINK;
use millrace_tests::objects;
use millrace_tests::service_world::{OUTSIDE, Protocol, ServiceWorld, ends, pod_address};
use serde_json::{Value, json};

const VIP: &str = "10.96.0.10";

/// A Service whose endpoints are this many addresses of the other node.
fn service(annotations: Value, endpoints: impl Iterator<Item = u8>) -> ServiceWorld {
    let mut world = ServiceWorld::new();
    let mut service = objects::service("web", &[VIP], Value::Null);
    service["metadata"]["annotations"] = annotations;
    world.apply(&service);
    world.apply(&slice(endpoints));
    world
}

fn slice(endpoints: impl Iterator<Item = u8>) -> Value {
    let addresses: Vec<String> = endpoints.map(|last| format!("10.2.0.{last}")).collect();
    let listed: Vec<_> = addresses.iter().map(|address| (address.as_str(), "b", Value::Null)).collect();
    objects::slice("web", true, &listed)
}

/// Opens a connection from a pod and says to which endpoint it goes; the frame is taken off the uplink.
fn endpoint(world: &ServiceWorld, pod: &str, port: u16) -> IpAddr {
    let to = (VIP.parse().expect("address"), 80);
    let frame = world.opening(pod, port, to, Protocol::Tcp);
    let pods = world.node().pods();
    let (number, _) = pods.iter().find(|(_, known)| known.pod.name() == pod).expect("a pod of the first node");
    world.node().inject(number.0, frame);
    let sent = world.node().switch().all_sent(UPLINK);
    let text = describe(&sent.first().expect("a frame on the uplink").bytes);
    let (_, inner) = text.split_once(" | ").expect("a tunnelled frame");
    ends(inner).1.0
}

fn counts(world: &ServiceWorld, connections: impl Iterator<Item = (&'static str, u16)>) -> BTreeMap<IpAddr, u64> {
    let mut counts = BTreeMap::new();
    connections.for_each(|(pod, port)| *counts.entry(endpoint(world, pod, port)).or_default() += 1);
    counts
}

fn many(count: u32) -> impl Iterator<Item = (&'static str, u16)> {
    (0..count).map(|number| (if number % 2 == 0 { "client" } else { "second" }, (number / 2 + 1_000) as u16))
}

/// Each of ten endpoints has 10,000 of 100,000 connections, give or take three standard deviations (of 94.9).
#[test]
fn a_hundred_thousand_connections_are_uniform() {
    let world = service(Value::Null, 11..21);
    let counts = counts(&world, many(100_000));
    println!("{counts:?}");
    assert_eq!(counts.len(), 10);
    for (endpoint, count) in &counts {
        assert!(count.abs_diff(10_000) <= 285, "{endpoint} has {count}");
    }
}

#[test]
fn round_robin_takes_turns() {
    let world = service(json!({"millrace.dev/balance": "round-robin"}), 11..14);
    let order: Vec<IpAddr> = many(9).map(|(pod, port)| endpoint(&world, pod, port)).collect();
    assert_eq!(order[..3], order[3..6]);
    assert_eq!(order[..3], order[6..]);
    assert!(order[0] != order[1] && order[1] != order[2] && order[0] != order[2]);
}

#[test]
fn weights_are_shares() {
    let annotations = json!({"millrace.dev/weights": "10.2.0.11=3, 10.2.0.13=0"});
    let counts = counts(&service(annotations, 11..14), many(8_000));
    let of = |last: u8| counts.get(&IpAddr::from([10, 2, 0, last])).copied().unwrap_or(0);
    assert!(of(11).abs_diff(6_000) < 200 && of(12).abs_diff(2_000) < 200 && of(13) == 0, "{counts:?}");
}

#[test]
fn least_connections_fills_the_gaps() {
    let mut world = service(json!({"millrace.dev/balance": "least-connections"}), 11..13);
    assert_eq!(counts(&world, many(10)).into_values().collect::<Vec<_>>(), [5, 5]);
    // A third endpoint has none yet: it gets all until it has as many.
    world.apply(&slice(11..14));
    let next = counts(&world, many(20).skip(10).take(5));
    assert_eq!(next.into_iter().collect::<Vec<_>>(), [(IpAddr::from([10, 2, 0, 13]), 5)]);
    // Connections that were never answered are forgotten in time, and counted no more.
    world.wait(std::time::Duration::from_secs(125));
    world.wait(std::time::Duration::from_secs(5));
    let even = counts(&world, many(60).skip(30));
    assert!(even.values().all(|count| *count == 10), "{even:?}");
}

/// Of the flows that other endpoints have, below 2 % move when one of a hundred goes.
#[test]
fn maglev_hardly_moves_flows() {
    let mut world = service(json!({"millrace.dev/balance": "maglev"}), 11..111);
    let before: Vec<IpAddr> = many(6_000).map(|(pod, port)| endpoint(&world, pod, port)).collect();
    world.wait(std::time::Duration::from_secs(125));
    world.wait(std::time::Duration::from_secs(5));
    world.apply(&slice((11..111).filter(|last| *last != 60)));
    let after: Vec<IpAddr> = many(6_000).map(|(pod, port)| endpoint(&world, pod, port)).collect();
    let gone = IpAddr::from([10, 2, 0, 60]);
    let others = before.iter().zip(&after).filter(|(before, _)| **before != gone);
    let (moved, all) =
        others.fold((0, 0), |(moved, all), (before, after)| (moved + usize::from(before != after), all + 1));
    println!("{moved} of {all} flows moved");
    assert!(moved * 50 < all, "{moved} of {all}");
    assert!(after.iter().all(|endpoint| *endpoint != gone));
}

/// A client whose packets reach the one or the other node, as behind a router with two ways, gets the same endpoint.
#[test]
fn maglev_picks_alike_on_every_node() {
    let mut world = ServiceWorld::new();
    let spec = json!({"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30_080}]});
    let mut service = objects::service("web", &[VIP], spec);
    service["metadata"]["annotations"] = json!({"millrace.dev/balance": "maglev"});
    service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
    world.apply(&service);
    let pods = [("local", "a"), ("local-2", "a"), ("remote", "b"), ("remote-2", "b")];
    let addresses = pods.map(|(pod, _)| pod_address(pod, true).to_string());
    let listed: Vec<_> =
        pods.iter().zip(&addresses).map(|((_, node), address)| (address.as_str(), *node, Value::Null)).collect();
    world.apply(&objects::slice("web", true, &listed));
    let mut met = BTreeMap::new();
    for port in 1_000..1_100 {
        let mut calls = Vec::new();
        for (called, number) in [(VIP, 80), ("203.0.113.1", 80), ("192.0.2.", 30_080)] {
            for node in 0..2 {
                let called = if number == 80 { called.to_owned() } else { format!("{called}{}", node + 1) };
                let to = (called.parse().expect("address"), number);
                let frame = world.opening(OUTSIDE, port, to, Protocol::Tcp);
                let got = world.send_outside_to(node, frame).remove(0);
                calls.push(got.pod);
            }
        }
        assert!(calls.iter().all(|pod| *pod == calls[0]), "port {port}: {calls:?}");
        *met.entry(calls[0].clone()).or_insert(0) += 1;
    }
    assert!(met.len() == 4 && met.values().all(|count| *count > 10), "{met:?}");
}

#[test]
fn clients_of_a_subnet_get_its_endpoints_first() {
    let annotations =
        json!({"millrace.dev/client-subnets": "10.1.0.5/32 => 10.2.0.12/32; 10.1.0.6/32 => zone=nowhere, node=b"});
    let mut world = service(annotations, 11..14);
    let of = |world: &ServiceWorld, pod| counts(world, (2_000..2_100).map(move |port| (pod, port)));
    assert_eq!(of(&world, "client").into_keys().collect::<Vec<_>>(), [IpAddr::from([10, 2, 0, 12])]);
    assert_eq!(of(&world, "second").len(), 3);
    let packet = world.opening("client", 9, (VIP.parse().expect("address"), 80), Protocol::Tcp);
    assert!(
        world.explain("client", &packet).contains("(random, client in 10.1.0.5/32)")
            || world.explain("client", &packet).contains("(only one, client in 10.1.0.5/32)")
    );
    world.apply(&slice([11, 13].into_iter()));
    world.wait(std::time::Duration::from_secs(130));
    assert_eq!(of(&world, "client").len(), 2, "without an endpoint of their own they get any");
    assert_eq!(pod_address("client", true), IpAddr::from([10, 1, 0, 5]));
}
