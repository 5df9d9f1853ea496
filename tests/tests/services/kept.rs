//! A switch ends and the next one is built: connections go on with their endpoints and their ports, and clients that stay
//! with an endpoint still do.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use millrace_tests::objects;
use millrace_tests::service_world::{Delivered, OUTSIDE, Protocol, ServiceWorld, ends, pod_address};
use serde_json::{Value, json};

const PODS: [(&str, &str); 4] = [("local", "a"), ("local-2", "a"), ("remote", "b"), ("remote-2", "b")];
const FLOWS: u16 = 40;

/// A directory on a tmpfs that goes with it.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(format!("/dev/shm/millrace-kept-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory on /dev/shm");
        Self(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn vip(ipv4: bool) -> (IpAddr, u16) {
    (if ipv4 { "10.96.0.1" } else { "fd00:96::1" }.parse().expect("address"), 80)
}

/// A Service whose clients stay with their endpoint.
fn loyal() -> (IpAddr, u16) {
    ([10, 96, 0, 2].into(), 80)
}

fn with_services(mut world: ServiceWorld) -> ServiceWorld {
    let ports = |port: u16| {
        json!(["TCP", "UDP"].map(|name| json!({"name": name.to_lowercase(), "port": port, "protocol": name})))
    };
    let families = [vip(true).0.to_string(), vip(false).0.to_string()];
    let families: Vec<&str> = families.iter().map(String::as_str).collect();
    let both = json!({"ports": ports(80), "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack"});
    world.apply(&objects::service("both", &families, both));
    let stays = json!({"ports": ports(80), "sessionAffinity": "ClientIP"});
    world.apply(&objects::service("loyal", &[&loyal().0.to_string()], stays));
    for (name, ipv4) in [("both", true), ("both", false), ("loyal", true)] {
        let addresses = PODS.map(|(pod, node)| (pod_address(pod, ipv4).to_string(), node));
        let listed: Vec<_> = addresses.iter().map(|(at, node)| (at.as_str(), *node, Value::Null)).collect();
        let mut slice = objects::slice(name, ipv4, &listed);
        slice["ports"] = ports(8080);
        world.apply(&slice);
    }
    world
}

/// What one connection looks like: who got the opener's packet and as what, and how the answer came back.
type Seen = (String, String, String);

/// Opens a connection, answers it, and says what was seen; `None` if nothing came out.
fn open(world: &mut ServiceWorld, from: &str, port: u16, to: (IpAddr, u16), protocol: Protocol) -> Delivered {
    let packet = world.opening(from, port, to, protocol);
    let got = world.send(from, packet).pop().expect("delivered");
    let answer = world.answer(&got, protocol);
    world.send(&got.pod, answer).pop().expect("answered");
    if protocol == Protocol::Tcp {
        let third = world.acknowledgement(from, port, to);
        world.send(from, third).pop().expect("acknowledged");
    }
    got
}

/// A packet in the middle of a connection that was opened as `first`, and what answers it.
fn go_on(
    world: &mut ServiceWorld,
    from: &str,
    port: u16,
    to: (IpAddr, u16),
    first: &Delivered,
    protocol: Protocol,
) -> Option<Seen> {
    let packet = match protocol {
        Protocol::Tcp => world.acknowledgement(from, port, to),
        _ => world.opening(from, port, to, protocol),
    };
    let got = world.send(from, packet).pop()?;
    let (source, destination) = ends(&first.text);
    let answered = match protocol {
        Protocol::Tcp => world.acknowledgement(&first.pod, destination.1, source),
        _ => world.answer(first, protocol),
    };
    let back = world.send(&first.pod, answered).pop()?;
    let words = |text: &str| format!("{:?}", ends(text));
    Some((format!("{} {}", got.pod, got.receiver), words(&got.text), format!("{} {}", back.pod, words(&back.text))))
}

/// Clients that call the Services, and stations outside that pods call, by a port masqueraded.
fn conversations() -> Vec<(&'static str, u16, (IpAddr, u16), Protocol)> {
    let mut all = Vec::new();
    for flow in 0..FLOWS {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            all.push(("client", 4_000 + flow, vip(true), protocol));
            all.push(("client", 4_000 + flow, vip(false), protocol));
            // Some of these lead back to the caller, masqueraded as the node.
            all.push(("local", 5_000 + flow, vip(true), protocol));
            all.push(("second", 6_000 + flow, (pod_address(OUTSIDE, true), 53), protocol));
            // The same port at two pods: the second needs another one outside.
            all.push(("client", 6_000 + flow, (pod_address(OUTSIDE, true), 53), protocol));
        }
    }
    all
}

fn every_conversation_goes_on(place: Option<&Place>) -> (usize, usize) {
    let world = place.map_or_else(ServiceWorld::new, |place| ServiceWorld::kept_in(&place.0));
    let mut world = with_services(world);
    let opened: Vec<_> = conversations()
        .into_iter()
        .map(|(from, port, to, protocol)| (from, port, to, protocol, open(&mut world, from, port, to, protocol)))
        .collect();
    let all = |world: &mut ServiceWorld| -> Vec<Option<Seen>> {
        opened
            .iter()
            .map(|(from, port, to, protocol, first)| go_on(world, from, *port, *to, first, *protocol))
            .collect()
    };
    let before = all(&mut world);
    assert!(before.iter().all(Option::is_some), "all go on without a restart");
    world.restart();
    let after = all(&mut world);
    let same = before.iter().zip(&after).filter(|(before, after)| before == after).count();
    (same, before.len())
}

#[test]
fn conversations_outlive_the_switch() {
    let place = Place::new("conversations");
    let (same, all) = every_conversation_goes_on(Some(&place));
    assert_eq!(same, all, "of {all} conversations");
}

/// The measure measures: without a place to keep them, most are lost.
#[test]
fn without_a_place_to_keep_them_conversations_are_lost() {
    let (same, all) = every_conversation_goes_on(None);
    assert!(same < all / 2, "{same} of {all}");
}

#[test]
fn clients_stay_with_their_endpoint_over_a_restart() {
    let place = Place::new("affinity");
    let mut world = with_services(ServiceWorld::kept_in(&place.0));
    let clients = ["client", "second", "host", "local-2"];
    let pick = |world: &mut ServiceWorld, from: &str, port: u16| {
        let packet = world.opening(from, port, loyal(), Protocol::Tcp);
        world.send(from, packet).pop().expect("delivered").pod
    };
    let chosen: BTreeMap<&str, String> =
        clients.into_iter().map(|client| (client, pick(&mut world, client, 7_000))).collect();
    for restart in 1..=4 {
        world.restart();
        for (client, endpoint) in &chosen {
            assert_eq!(&pick(&mut world, client, 7_000 + restart), endpoint, "restart {restart}: {client}");
        }
    }
}

/// What is counted for endpoints goes on too, and ends when the connection does.
#[test]
fn what_was_left_is_told_and_counted() {
    let place = Place::new("counted");
    let mut world = with_services(ServiceWorld::kept_in(&place.0));
    for flow in 0..FLOWS {
        open(&mut world, "client", 4_000 + flow, vip(true), Protocol::Tcp);
    }
    open(&mut world, "client", 4_000, loyal(), Protocol::Tcp);
    world.restart();
    let node = world.node().switch();
    let kept = node.switch.kept();
    assert_eq!((kept.connections.taken, kept.connections.refused), (usize::from(FLOWS) + 1, 0));
    assert_eq!((kept.affinities, kept.problem.as_deref()), (1, None));
    assert_eq!(node.switch.state().connections.live(), usize::from(FLOWS) + 1);
}

/// A policy that came meanwhile counts, and an endpoint that went is not asked any more.
#[test]
fn what_changed_meanwhile_counts() {
    let place = Place::new("changed");
    let mut world = with_services(ServiceWorld::kept_in(&place.0));
    let first = open(&mut world, "client", 4_000, vip(true), Protocol::Tcp);
    world.restart();
    let on = (vip(true), Protocol::Tcp);
    assert!(go_on(&mut world, "client", 4_000, on.0, &first, on.1).is_some());
    world.apply(&json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "closed"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"]},
    }));
    world.restart();
    assert_eq!(go_on(&mut world, "client", 4_000, on.0, &first, on.1), None);
}
