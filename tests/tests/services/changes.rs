//! A change of one Service touches its flows and no others, whatever the change.

use std::net::IpAddr;

use millrace_engine::counters::Event;
use millrace_tests::objects;
use millrace_tests::service_world::{Protocol, ServiceWorld, pod_address};
use serde_json::{Value, json};

fn vip(number: u16) -> (IpAddr, u16) {
    (IpAddr::from([10, 96, 0, number as u8]), 80)
}

fn slice(number: u16, pods: &[(&str, &str)]) -> Value {
    let addresses: Vec<String> = pods.iter().map(|(pod, _)| pod_address(pod, true).to_string()).collect();
    let listed: Vec<_> = pods.iter().zip(&addresses).map(|((_, node), at)| (at.as_str(), *node, Value::Null)).collect();
    let mut slice = objects::slice(&format!("s{number}"), true, &listed);
    slice["ports"] = json!([{"port": 8080, "protocol": "UDP"}]);
    slice
}

fn service(number: u16, spec: Value) -> Value {
    let mut service = objects::service(&format!("s{number}"), &[&vip(number).0.to_string()], spec);
    service["spec"]["ports"] = json!([{"port": 80, "protocol": "UDP"}]);
    service
}

const SERVICES: u16 = 8;
const FLOWS: u16 = 20;

fn ask(world: &mut ServiceWorld, number: u16, flow: u16) -> Vec<String> {
    let packet = world.opening("client", 1_000 + number * 100 + flow, vip(number), Protocol::Udp);
    world.send("client", packet).into_iter().map(|got| format!("{} {}", got.pod, got.text)).collect()
}

/// Every flow of every Service, answered and cached.
fn warm() -> ServiceWorld {
    let mut world = ServiceWorld::new();
    for number in 1..=SERVICES {
        world.apply(&service(number, Value::Null));
        world.apply(&slice(number, &[("local", "a"), ("local-2", "a")]));
        for flow in 0..FLOWS {
            assert_eq!(
                world.open("client", 1_000 + number * 100 + flow, vip(number), Protocol::Udp).split(' ').nth(1),
                Some("kept")
            );
            ask(&mut world, number, flow);
        }
    }
    world
}

#[test]
fn only_the_flows_of_the_changed_service_are_decided_again() {
    let mut world = warm();
    let cached = world.node().switch().switch.counters().map(|counters| counters.flows.get()).sum::<u64>();
    assert!(cached >= u64::from(SERVICES * FLOWS), "{cached} flows are cached");
    let redecided = |world: &mut ServiceWorld, change: &dyn Fn(&mut ServiceWorld)| {
        let before = world.count(Event::FlowCacheRedecided);
        change(world);
        let redecided = world.count(Event::FlowCacheRedecided) - before;
        for number in 1..=SERVICES {
            for flow in 0..FLOWS {
                assert_eq!(ask(world, number, flow).len(), 1);
            }
        }
        redecided
    };
    let flows = u64::from(FLOWS);
    let one =
        redecided(&mut world, &|world| world.apply(&slice(3, &[("local", "a"), ("local-2", "a"), ("remote", "b")])));
    assert!(one <= 2 * flows && one >= flows, "an endpoint more: {one}");
    let same =
        redecided(&mut world, &|world| world.apply(&slice(3, &[("local", "a"), ("local-2", "a"), ("remote", "b")])));
    assert_eq!(same, 0, "told again");
    let other = redecided(&mut world, &|world| {
        world.apply(&objects::service("other", &["10.96.0.200"], Value::Null));
    });
    assert_eq!(other, 0, "a Service that nobody called");
    let affinity = redecided(&mut world, &|world| world.apply(&service(5, json!({"sessionAffinity": "ClientIP"}))));
    assert!(affinity <= 2 * flows && affinity >= flows, "a setting of one: {affinity}");
}

/// After every sort of change the cache serves what a fresh decision says.
#[test]
fn cached_equals_uncached_after_every_sort_of_change() {
    let mut world = warm();
    let local = [("local", "a")];
    let changes: Vec<(&str, Value)> = vec![
        ("an endpoint less", slice(1, &local)),
        ("another endpoint", slice(2, &[("remote", "b")])),
        ("none", slice(3, &[])),
        ("policy", service(4, json!({"internalTrafficPolicy": "Local"}))),
        ("external address", service(5, json!({"externalIPs": ["198.51.100.5"]}))),
        ("headless", service(6, json!({"clusterIPs": ["None"]}))),
        ("another address", service(7, json!({"clusterIPs": ["10.96.0.77"]}))),
        ("back", slice(3, &[("remote-2", "b")])),
    ];
    for (what, object) in changes {
        world.apply(&object);
        for number in 1..=SERVICES {
            for flow in 0..FLOWS {
                let packet = world.opening("client", 1_000 + number * 100 + flow, vip(number), Protocol::Udp);
                let trail = world.explain("client", &packet);
                let (first, second) = (ask(&mut world, number, flow), ask(&mut world, number, flow));
                assert_eq!(first, second, "{what}: s{number} flow {flow}");
                let forwarded = trail.contains("| encap to ") || trail.contains("| encap vni");
                assert_eq!(forwarded, !first.is_empty(), "{what}: s{number} flow {flow}: {trail} but {first:?}");
                if let Some(pod) =
                    trail.rsplit("encap to default/").next().filter(|_| trail.contains("encap to default/"))
                {
                    assert!(first[0].starts_with(&format!("{pod} ")), "{what}: {trail} but {first:?}");
                }
            }
        }
    }
}

/// An address that was routed becomes a Service's: additions count.
#[test]
fn a_service_on_an_address_that_was_routed_takes_its_flows() {
    let mut world = ServiceWorld::new();
    let routed = (pod_address("second", true), 80);
    let ask = |world: &mut ServiceWorld| {
        let packet = world.opening("client", 4_000, routed, Protocol::Udp);
        world.send("client", packet).remove(0).pod
    };
    (0..3).for_each(|_| assert_eq!(ask(&mut world), "second"));
    world.apply(&service(9, json!({"externalIPs": [routed.0.to_string()], "externalTrafficPolicy": "Local"})));
    world.apply(&slice(9, &[("local", "a")]));
    (0..3).for_each(|_| assert_eq!(ask(&mut world), "local"));
    world.delete("Service", "s9");
    assert_eq!(world.open("client", 4_001, routed, Protocol::Udp), "second kept");
}

/// A Service goes, its flows live on with their endpoint, and another Service with the same address takes them over.
#[test]
fn another_service_on_the_address_of_one_that_went_takes_its_flows() {
    let mut world = warm();
    let name = |object: Value, name: &str| {
        let mut object = object;
        object["metadata"]["name"] = name.into();
        object
    };
    world.delete("Service", "s1");
    world.delete("EndpointSlice", "s1-four");
    for _ in 0..3 {
        let got = ask(&mut world, 1, 0);
        assert!(got.len() == 1 && got[0].starts_with("local"), "{got:?}");
    }
    world.apply(&name(service(1, Value::Null), "green"));
    let mut green = name(slice(1, &[("remote", "b")]), "green-four");
    green["metadata"]["labels"]["kubernetes.io/service-name"] = "green".into();
    world.apply(&green);
    for flow in 0..FLOWS {
        for _ in 0..3 {
            let got = ask(&mut world, 1, flow);
            assert!(got.len() == 1 && got[0].starts_with("remote "), "flow {flow}: {got:?}");
        }
    }
}
