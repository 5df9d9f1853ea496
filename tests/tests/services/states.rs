//! The same matrix where endpoints are not ready, ending or hinted, clients are kept or shut out, and for ports of pods at
//! their node: who calls what, and what becomes of it. Every cell is tried in both families.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use millrace_engine::counters::Event;
use millrace_engine::drop_reason::DropReason;
use millrace_tests::service_world::{OUTSIDE, Protocol, ServiceWorld, ends, node_address, pod_address};
use serde_json::{Value, json};

use super::matrix::{CONNECTIONS, PROTOCOLS, SERVICES, address, node_port, service, slices};

const FAMILIES: [bool; 2] = [true, false];

/// Which of the two columns of a state holds.
#[derive(Clone, Copy)]
enum Scope {
    Cluster,
    Local,
}

/// Caller, sort of address, Service, the column, and as whom the endpoint sees the caller.
const WAYS: &[(&str, &str, &str, Scope, &str)] = &[
    ("client", "ClusterIP", "both-cluster", Scope::Cluster, "kept"),
    ("client", "ClusterIP", "internal-local", Scope::Local, "kept"),
    ("client", "NodePort", "both-cluster", Scope::Cluster, "node"),
    ("client", "NodePort", "both-local", Scope::Cluster, "kept"),
    ("client", "LoadBalancer", "external-local", Scope::Cluster, "kept"),
    ("host", "ClusterIP", "both-cluster", Scope::Cluster, "node"),
    ("host", "ClusterIP", "both-local", Scope::Local, "node"),
    ("host", "NodePort", "both-cluster", Scope::Cluster, "node"),
    ("host", "NodePort", "both-local", Scope::Cluster, "node"),
    ("host", "externalIP", "external-local", Scope::Cluster, "node"),
    (OUTSIDE, "ClusterIP", "both-cluster", Scope::Cluster, "node"),
    (OUTSIDE, "ClusterIP", "internal-local", Scope::Local, "node"),
    (OUTSIDE, "NodePort", "both-cluster", Scope::Cluster, "node"),
    (OUTSIDE, "NodePort", "both-local", Scope::Local, "kept"),
    (OUTSIDE, "LoadBalancer", "external-local", Scope::Local, "kept"),
    (OUTSIDE, "externalIP", "internal-local", Scope::Cluster, "node"),
];

/// A state: its name, the endpoint here, the one on the other node, who serves under `Cluster`, and who under `Local`.
type State = (&'static str, Value, Value, &'static str, &'static str);

fn states() -> Vec<State> {
    let conditions = |ready: bool, serving: bool, terminating: bool| json!({"conditions": {"ready": ready, "serving": serving, "terminating": terminating}});
    let ready = || Value::Null;
    let ending = || conditions(false, true, true);
    let dead = || conditions(false, false, true);
    let unready = || conditions(false, false, false);
    let zone = |zone: &str| json!({"hints": {"forZones": [{"name": zone}]}});
    let node = |node: &str| json!({"hints": {"forNodes": [{"name": node}]}});
    vec![
        ("both ready", ready(), ready(), "local, remote", "local"),
        ("here not ready", unready(), ready(), "remote", "nothing"),
        ("there not ready", ready(), unready(), "local", "local"),
        ("here ending", ending(), ready(), "remote", "local"),
        ("there ending", ready(), ending(), "local", "local"),
        ("both ending", ending(), ending(), "local, remote", "local"),
        ("here dead, there ending", dead(), ending(), "remote", "nothing"),
        ("here ending, there dead", ending(), dead(), "local", "local"),
        ("both dead", dead(), dead(), "reset", "reset"),
        ("none ready", unready(), unready(), "reset", "reset"),
        ("hinted by zone", zone("east"), zone("west"), "local", "local"),
        ("hinted away", zone("west"), zone("east"), "remote", "local"),
        ("one without a hint", zone("east"), ready(), "local, remote", "local"),
        ("hinted by node", node("b"), node("a"), "remote", "local"),
    ]
}

/// What many connections come to, each by another port.
fn seen(world: &mut ServiceWorld, port: &mut u16, client: &str, to: (IpAddr, u16), protocol: Protocol) -> String {
    let mut seen = BTreeSet::new();
    for _ in 0..CONNECTIONS {
        *port = if *port == u16::MAX { 1_024 } else { *port + 1 };
        seen.insert(world.open(client, *port, to, protocol));
        // Resets have a budget a second.
        world.wait(Duration::from_millis(20));
    }
    seen.into_iter().collect::<Vec<_>>().join(", ")
}

/// `local, remote` with `kept` becomes `local kept, remote kept`; what is no endpoint stays.
fn outcome(serving: &str, whose: &str) -> String {
    let is_pod = |word: &&str| ["local", "remote", "local-2"].contains(word);
    let words = serving.split(", ").map(|word| if is_pod(&word) { format!("{word} {whose}") } else { word.to_owned() });
    words.collect::<Vec<_>>().join(", ")
}

fn called(sort: &str, name: &str, ipv4: bool) -> (IpAddr, u16) {
    let number = SERVICES.iter().position(|(known, ..)| *known == name).expect("a Service of the matrix");
    (address(sort, number + 1, ipv4), if sort == "NodePort" { node_port(number, 0) } else { 80 })
}

fn with_services() -> ServiceWorld {
    let mut world = ServiceWorld::new();
    (0..SERVICES.len()).for_each(|number| world.apply(&service(number)));
    world
}

#[test]
fn readiness_termination_and_hints_for_everybody() {
    let (mut rows, mut port) = (0, 2_000);
    for (state, here, there, cluster, local) in states() {
        let mut world = with_services();
        for (name, ..) in SERVICES {
            let pods = [("local", "a", here.clone()), ("remote", "b", there.clone())];
            slices(name, &pods).iter().for_each(|slice| world.apply(slice));
        }
        for (caller, sort, name, scope, whose) in WAYS {
            for ipv4 in FAMILIES {
                let serving = if matches!(scope, Scope::Cluster) { cluster } else { local };
                let seen = seen(&mut world, &mut port, caller, called(sort, name, ipv4), Protocol::Tcp);
                assert_eq!(seen, outcome(serving, whose), "{state}: {caller} to {sort} of {name}, IPv4 {ipv4}");
                rows += 1;
            }
        }
    }
    println!("{rows} rows");
    assert!(rows >= 150, "{rows} rows");
}

/// A client stays with its endpoint whatever sort of address it calls, and others with theirs.
#[test]
fn affinity_for_everybody() {
    let (mut rows, mut port) = (0, 2_000);
    for (caller, sort, name, scope, _) in WAYS {
        for ipv4 in FAMILIES {
            let mut world = ServiceWorld::new();
            let number = SERVICES.iter().position(|(known, ..)| known == name).expect("a Service");
            let mut affine = service(number);
            affine["spec"]["sessionAffinity"] = json!("ClientIP");
            world.apply(&affine);
            let pods = [("local", "a", Value::Null), ("local-2", "a", Value::Null), ("remote", "b", Value::Null)];
            slices(name, &pods).iter().for_each(|slice| world.apply(slice));
            let to = called(sort, name, ipv4);
            let first = seen(&mut world, &mut port, caller, to, Protocol::Tcp);
            assert!(!first.contains(','), "{caller} to {sort} of {name}: {first}");
            let only_local = matches!(scope, Scope::Local);
            assert!(!only_local || first.starts_with("local"), "{caller} to {sort} of {name}: {first}");
            // Its endpoint ends: another is found, and kept.
            let gone = first.split(' ').next().expect("a pod").to_owned();
            let left: Vec<_> = pods.iter().filter(|(pod, ..)| *pod != gone).cloned().collect();
            slices(name, &left).iter().for_each(|slice| world.apply(slice));
            let second = seen(&mut world, &mut port, caller, to, Protocol::Tcp);
            assert!(!second.contains(',') && second != first, "{caller} to {sort} of {name}: {first}, then {second}");
            rows += 1;
        }
    }
    println!("{rows} rows");
}

/// A SYN that nobody answers is offered another endpoint of those that may serve, whatever sort of address it calls; what
/// the first one says late does not reach the caller as an answer.
#[test]
fn a_silent_endpoint_is_left_for_everybody() {
    let (mut rows, mut port) = (0, 2_000);
    for (caller, sort, name, scope, _) in WAYS {
        for ipv4 in FAMILIES {
            let mut world = with_services();
            let all = [("local", "a", Value::Null), ("remote", "b", Value::Null), ("local-2", "a", Value::Null)];
            slices(name, &all).iter().for_each(|slice| world.apply(slice));
            let to = called(sort, name, ipv4);
            port += 1;
            let case = format!("{caller} to {sort} of {name}, IPv4 {ipv4}");
            let syn = world.opening(caller, port, to, Protocol::Tcp);
            let first = world.send(caller, syn.clone()).remove(0);
            world.wait(Duration::from_secs(1));
            let second = world.send(caller, syn.clone()).remove(0);
            assert_ne!(first.pod, second.pod, "{case}");
            assert!(matches!(scope, Scope::Cluster) || second.pod.starts_with("local"), "{case}: {}", second.pod);
            assert_eq!(world.count(Event::ServiceRetried), 1, "{case}");
            let late = world.answer(&first, Protocol::Tcp);
            let late = world.send(&first.pod, late);
            assert!(late.iter().all(|got| ends(&got.text).0 != to), "{case}: {late:?}");
            let answer = world.answer(&second, Protocol::Tcp);
            let back = world.send(&second.pod, answer);
            assert!(back.len() == 1 && back[0].pod == *caller && ends(&back[0].text).0 == to, "{case}: {back:?}");
            assert_eq!(world.send(caller, syn)[0].pod, second.pod, "{case}: once answered it stays");
            rows += 1;
        }
    }
    println!("{rows} rows");
}

/// Who is let in at which sort of address, by the ranges of the Service.
#[test]
fn source_ranges_for_everybody() {
    let of = |name: &str| {
        FAMILIES.map(|ipv4| {
            let address = if name == "uplink" { node_address(0, ipv4) } else { pod_address(name, ipv4) };
            ipnet::IpNet::from(address).to_string()
        })
    };
    let zero = || ["0.0.0.0/0".to_owned(), "::/0".to_owned()];
    // Ranges, caller, sort of address, what becomes of it.
    let rows: Vec<(Vec<String>, &str, &str, &str)> = vec![
        (of("client").into(), "client", "LoadBalancer", "local kept"),
        (of("client").into(), "second", "LoadBalancer", "nothing"),
        (of("client").into(), "host", "LoadBalancer", "nothing"),
        (of("client").into(), OUTSIDE, "LoadBalancer", "nothing"),
        (of(OUTSIDE).into(), OUTSIDE, "LoadBalancer", "local kept"),
        (of(OUTSIDE).into(), "client", "LoadBalancer", "nothing"),
        (of(OUTSIDE).into(), "client", "ClusterIP", "local kept"),
        (of(OUTSIDE).into(), "client", "NodePort", "local kept"),
        (of(OUTSIDE).into(), "client", "externalIP", "local kept"),
        (of("host").into(), "host", "LoadBalancer", "local node"),
        (of("host").into(), OUTSIDE, "LoadBalancer", "nothing"),
        (of("host").into(), OUTSIDE, "NodePort", "local kept"),
        (of("host").into(), OUTSIDE, "externalIP", "local kept"),
        (of("uplink").into(), "host", "LoadBalancer", "local node"),
        (of("uplink").into(), "client", "LoadBalancer", "nothing"),
        (of("uplink").into(), OUTSIDE, "LoadBalancer", "nothing"),
        ([of("client"), zero()].concat(), OUTSIDE, "LoadBalancer", "local kept"),
        ([of("client"), zero()].concat(), "host", "LoadBalancer", "local node"),
        (of(OUTSIDE).map(|range| format!(" {range} ")).into(), OUTSIDE, "LoadBalancer", "local kept"),
    ];
    let (mut tried, mut port) = (0, 2_000);
    for (ranges, caller, sort, expected) in rows {
        let mut world = ServiceWorld::new();
        let mut guarded = service(1);
        guarded["spec"]["loadBalancerSourceRanges"] = json!(ranges);
        world.apply(&guarded);
        let pods = [("local", "a", Value::Null)];
        slices(SERVICES[1].0, &pods).iter().for_each(|slice| world.apply(slice));
        for ipv4 in FAMILIES {
            let seen = seen(&mut world, &mut port, caller, called(sort, SERVICES[1].0, ipv4), Protocol::Tcp);
            assert_eq!(seen, expected, "{caller} to {sort} guarded by {ranges:?}, IPv4 {ipv4}");
            tried += 1;
        }
    }
    println!("{tried} rows");
}

/// Ports of pods at their node: at every address of node ports or at one, each protocol for itself.
#[test]
fn host_ports_for_everybody() {
    let mut world = ServiceWorld::new();
    let pod = |name: &str, ports: Value| {
        let ips: Vec<Value> = FAMILIES.map(|ipv4| json!({"ip": pod_address(name, ipv4).to_string()})).into();
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"nodeName": "a", "containers": [{"name": "c", "ports": ports}]},
            "status": {"phase": "Running", "podIPs": ips},
        })
    };
    let port = |host: u16, protocol: &str| json!({"containerPort": 8080, "hostPort": host, "protocol": protocol});
    let at = |host: u16, address: IpAddr| json!({"containerPort": 8080, "hostPort": host, "protocol": "TCP", "hostIP": address.to_string()});
    world.apply(&pod("local", json!([port(9_000, "TCP"), at(9_001, node_address(0, true))])));
    world.apply(&pod("local-2", json!([port(9_000, "UDP"), port(9_000, "SCTP"), at(9_001, node_address(0, false))])));
    let whose = |caller: &str| if caller == "host" { "node" } else { "kept" };
    let (mut rows, mut client) = (0, 2_000);
    for caller in ["client", "host", OUTSIDE] {
        for ipv4 in FAMILIES {
            for (protocol, name) in PROTOCOLS {
                let server = if name == "TCP" { "local" } else { "local-2" };
                let to = (node_address(0, ipv4), 9_000);
                let got = seen(&mut world, &mut client, caller, to, protocol);
                assert_eq!(got, format!("{server} {}", whose(caller)), "{caller} to hostPort, {name}, IPv4 {ipv4}");
                rows += 1;
            }
            let server = if ipv4 { "local" } else { "local-2" };
            let to = (node_address(0, ipv4), 9_001);
            let got = seen(&mut world, &mut client, caller, to, Protocol::Tcp);
            assert_eq!(got, format!("{server} {}", whose(caller)), "{caller} to hostPort by hostIP, IPv4 {ipv4}");
            rows += 1;
        }
    }
    println!("{rows} rows");
}

/// A loopback address means the node itself, whoever else writes it into a packet.
#[test]
fn host_ports_at_loopback_are_the_hosts_alone() {
    let mut world = ServiceWorld::new();
    let loopback = (IpAddr::from([127, 0, 0, 1]), 9_000);
    world.apply(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "local"},
        "spec": {"nodeName": "a", "containers": [{"name": "c", "ports": [
            {"containerPort": 8080, "hostPort": 9_000, "protocol": "TCP", "hostIP": "127.0.0.1"},
        ]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": pod_address("local", true).to_string()}]},
    }));
    let refused = |world: &ServiceWorld| world.drops(DropReason::ServiceSourceRefused);
    assert_eq!(world.open("host", 1, loopback, Protocol::Tcp), "local node");
    assert_eq!((world.open("client", 2, loopback, Protocol::Tcp).as_str(), refused(&world)), ("nothing", 1));
    assert_eq!((world.open(OUTSIDE, 3, loopback, Protocol::Tcp).as_str(), refused(&world)), ("nothing", 2));
}

/// Node ports are served where the configuration says; elsewhere the port is the host's own.
#[test]
fn node_ports_at_chosen_addresses() {
    let chosen = |prefixes: &[&str]| {
        let prefixes: Vec<ipnet::IpNet> = prefixes.iter().map(|prefix| prefix.parse().expect("prefix")).collect();
        let mut world = ServiceWorld::configured(&|local| local.services.node_port_addresses.clone_from(&prefixes));
        world.apply(&service(0));
        slices(SERVICES[0].0, &[("local", "a", Value::Null)]).iter().for_each(|slice| world.apply(slice));
        world
    };
    let mut client = 2_000;
    for caller in ["client", OUTSIDE] {
        let cases: [(&[&str], bool, &str); 3] = [
            (&["192.0.2.0/24"], true, "local"),
            (&["192.0.2.0/24"], false, "host"),
            (&["192.0.2.0/24", "2001:db8::/64"], false, "local"),
        ];
        for (prefixes, ipv4, expected) in cases {
            let mut world = chosen(prefixes);
            client += 1;
            let sent = world.opening(caller, client, (node_address(0, ipv4), node_port(0, 0)), Protocol::Tcp);
            let out = world.send(caller, sent);
            assert_eq!((out.len(), out[0].pod.as_str()), (1, expected), "{caller}, {prefixes:?}, IPv4 {ipv4}: {out:?}");
        }
    }
}

/// An endpoint that is the node itself: its kernel would answer a client outside past the switch.
#[test]
fn an_endpoint_that_is_the_node_meets_the_gateway() {
    for (number, (name, ..)) in SERVICES.iter().enumerate() {
        let mut world = ServiceWorld::new();
        world.apply(&service(number));
        for ipv4 in FAMILIES {
            let mut slice = slices(name, &[("local", "a", Value::Null)])[usize::from(!ipv4)].clone();
            slice["endpoints"][0]["addresses"] = json!([node_address(0, ipv4).to_string()]);
            world.apply(&slice);
            let to = (node_address(0, ipv4), node_port(number, 0));
            let sent = world.opening(OUTSIDE, 5_000 + u16::from(ipv4), to, Protocol::Tcp);
            let out = world.send(OUTSIDE, sent);
            assert_eq!((out.len(), out[0].pod.as_str()), (1, "host"), "{name}: {out:?}");
            let gateway = if ipv4 { "169.254.1.1" } else { "fe80::1" };
            assert!(out[0].text.contains(gateway), "{name}: {}", out[0].text);
            let (source, destination) = millrace_tests::service_world::ends(&out[0].text);
            let answer = millrace_engine::testing::frame()
                .from(world.mac("host"), destination.0)
                .to(millrace_control::plan::GATEWAY_MAC, source.0)
                .tcp(millrace_engine::testing::SYN | millrace_engine::testing::ACK)
                .ports(destination.1, source.1);
            let back = world.send("host", answer.wire());
            assert_eq!((back.len(), back[0].pod.as_str()), (1, OUTSIDE), "{name}: {back:?}");
            assert_eq!(millrace_tests::service_world::ends(&back[0].text).0, to);
        }
    }
}
