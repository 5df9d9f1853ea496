//! The matrix of kube-proxy: who calls which sort of address under which traffic policy, which endpoints may get it, and
//! whether its source stays (kube-proxy's TestInternalExternalMasquerade and TestNoEndpointsReject). Each cell is tried in
//! every protocol and family, with enough connections that every endpoint of two must get some.

use std::collections::BTreeSet;
use std::net::IpAddr;

use millrace_tests::objects;
use millrace_tests::service_world::{Protocol, ServiceWorld, node_address, pod_address};
use serde_json::{Value, json};

/// Connections for each cell: that one of two endpoints gets none happens once in 2^23.
pub(super) const CONNECTIONS: u16 = 24;

/// Services of the matrix: name, internal policy, external policy.
pub(super) const SERVICES: [(&str, &str, &str); 4] = [
    ("both-cluster", "Cluster", "Cluster"),
    ("external-local", "Cluster", "Local"),
    ("internal-local", "Local", "Cluster"),
    ("both-local", "Local", "Local"),
];

/// Caller, sort of address, Service, what becomes of connections.
type Cell = (&'static str, &'static str, &'static str, &'static str);

/// Endpoints are one here and one on the other node. `kept`: the endpoint sees the client's own address; `node`: one of the
/// node.
const CELLS: &[Cell] = &[
    ("pod", "ClusterIP", "both-cluster", "local kept, remote kept"),
    ("pod", "ClusterIP", "external-local", "local kept, remote kept"),
    ("pod", "ClusterIP", "internal-local", "local kept"),
    ("pod", "ClusterIP", "both-local", "local kept"),
    ("pod", "NodePort", "both-cluster", "local node, remote node"),
    ("pod", "NodePort", "external-local", "local kept, remote kept"),
    ("pod", "NodePort", "internal-local", "local node, remote node"),
    ("pod", "NodePort", "both-local", "local kept, remote kept"),
    ("pod", "LoadBalancer", "both-cluster", "local node, remote node"),
    ("pod", "LoadBalancer", "external-local", "local kept, remote kept"),
    ("pod", "LoadBalancer", "internal-local", "local node, remote node"),
    ("pod", "LoadBalancer", "both-local", "local kept, remote kept"),
    ("pod", "externalIP", "both-cluster", "local node, remote node"),
    ("pod", "externalIP", "external-local", "local kept, remote kept"),
    ("pod", "externalIP", "internal-local", "local node, remote node"),
    ("pod", "externalIP", "both-local", "local kept, remote kept"),
    ("host", "ClusterIP", "both-cluster", "local node, remote node"),
    ("host", "ClusterIP", "external-local", "local node, remote node"),
    ("host", "ClusterIP", "internal-local", "local node"),
    ("host", "ClusterIP", "both-local", "local node"),
    ("host", "NodePort", "both-cluster", "local node, remote node"),
    ("host", "NodePort", "external-local", "local node, remote node"),
    ("host", "NodePort", "internal-local", "local node, remote node"),
    ("host", "NodePort", "both-local", "local node, remote node"),
    ("host", "LoadBalancer", "both-cluster", "local node, remote node"),
    ("host", "LoadBalancer", "external-local", "local node, remote node"),
    ("host", "LoadBalancer", "internal-local", "local node, remote node"),
    ("host", "LoadBalancer", "both-local", "local node, remote node"),
    ("host", "externalIP", "both-cluster", "local node, remote node"),
    ("host", "externalIP", "external-local", "local node, remote node"),
    ("host", "externalIP", "internal-local", "local node, remote node"),
    ("host", "externalIP", "both-local", "local node, remote node"),
    ("outside", "ClusterIP", "both-cluster", "local node, remote node"),
    ("outside", "ClusterIP", "external-local", "local node, remote node"),
    ("outside", "ClusterIP", "internal-local", "local node"),
    ("outside", "ClusterIP", "both-local", "local node"),
    ("outside", "NodePort", "both-cluster", "local node, remote node"),
    ("outside", "NodePort", "external-local", "local kept"),
    ("outside", "NodePort", "internal-local", "local node, remote node"),
    ("outside", "NodePort", "both-local", "local kept"),
    ("outside", "LoadBalancer", "both-cluster", "local node, remote node"),
    ("outside", "LoadBalancer", "external-local", "local kept"),
    ("outside", "LoadBalancer", "internal-local", "local node, remote node"),
    ("outside", "LoadBalancer", "both-local", "local kept"),
    ("outside", "externalIP", "both-cluster", "local node, remote node"),
    ("outside", "externalIP", "external-local", "local kept"),
    ("outside", "externalIP", "internal-local", "local node, remote node"),
    ("outside", "externalIP", "both-local", "local kept"),
];

/// The same where no Service has an endpoint: everybody is told.
const EMPTY: &[Cell] = &[
    ("pod", "ClusterIP", "both-cluster", "told"),
    ("pod", "ClusterIP", "both-local", "told"),
    ("pod", "NodePort", "both-cluster", "told"),
    ("pod", "NodePort", "both-local", "told"),
    ("pod", "LoadBalancer", "both-cluster", "told"),
    ("pod", "LoadBalancer", "both-local", "told"),
    ("pod", "externalIP", "both-cluster", "told"),
    ("pod", "externalIP", "both-local", "told"),
    ("host", "ClusterIP", "both-cluster", "told"),
    ("host", "ClusterIP", "both-local", "told"),
    ("host", "NodePort", "both-cluster", "told"),
    ("host", "NodePort", "both-local", "told"),
    ("host", "LoadBalancer", "both-cluster", "told"),
    ("host", "LoadBalancer", "both-local", "told"),
    ("host", "externalIP", "both-cluster", "told"),
    ("host", "externalIP", "both-local", "told"),
    ("outside", "ClusterIP", "both-cluster", "told"),
    ("outside", "ClusterIP", "both-local", "told"),
    ("outside", "NodePort", "both-cluster", "told"),
    ("outside", "NodePort", "both-local", "told"),
    ("outside", "LoadBalancer", "both-cluster", "told"),
    ("outside", "LoadBalancer", "both-local", "told"),
    ("outside", "externalIP", "both-cluster", "told"),
    ("outside", "externalIP", "both-local", "told"),
];

/// And where the only endpoint is on the other node: a policy of `Local` is silence.
const REMOTE: &[Cell] = &[
    ("pod", "ClusterIP", "both-cluster", "remote kept"),
    ("pod", "ClusterIP", "internal-local", "nothing"),
    ("pod", "ClusterIP", "both-local", "nothing"),
    ("pod", "NodePort", "external-local", "remote kept"),
    ("pod", "LoadBalancer", "external-local", "remote kept"),
    ("pod", "externalIP", "external-local", "remote kept"),
    ("pod", "NodePort", "both-cluster", "remote node"),
    ("pod", "LoadBalancer", "both-cluster", "remote node"),
    ("pod", "externalIP", "both-cluster", "remote node"),
    ("host", "ClusterIP", "both-cluster", "remote node"),
    ("host", "ClusterIP", "internal-local", "nothing"),
    ("host", "NodePort", "both-cluster", "remote node"),
    ("host", "NodePort", "external-local", "remote node"),
    ("host", "NodePort", "both-local", "remote node"),
    ("host", "LoadBalancer", "both-cluster", "remote node"),
    ("host", "LoadBalancer", "external-local", "remote node"),
    ("host", "externalIP", "both-cluster", "remote node"),
    ("host", "externalIP", "external-local", "remote node"),
    ("outside", "ClusterIP", "both-cluster", "remote node"),
    ("outside", "ClusterIP", "internal-local", "nothing"),
    ("outside", "LoadBalancer", "both-cluster", "remote node"),
    ("outside", "externalIP", "both-cluster", "remote node"),
    ("outside", "NodePort", "both-cluster", "remote node"),
    ("outside", "NodePort", "external-local", "nothing"),
    ("outside", "LoadBalancer", "external-local", "nothing"),
    ("outside", "externalIP", "external-local", "nothing"),
];

/// And where the only endpoint is the caller itself: it gets its own question from the node, so that it answers the node.
const HAIRPIN: &[Cell] = &[
    ("local", "ClusterIP", "both-cluster", "local node"),
    ("local", "ClusterIP", "both-local", "local node"),
    ("local", "NodePort", "both-cluster", "local node"),
    ("local", "NodePort", "both-local", "local node"),
    ("local", "LoadBalancer", "both-cluster", "local node"),
    ("local", "LoadBalancer", "both-local", "local node"),
    ("local", "externalIP", "both-cluster", "local node"),
    ("local", "externalIP", "both-local", "local node"),
];

/// And where the configuration masquerades all that calls a ClusterIP.
const ALL: &[Cell] = &[
    ("pod", "ClusterIP", "both-cluster", "local node, remote node"),
    ("pod", "ClusterIP", "both-local", "local node"),
    ("pod", "NodePort", "external-local", "local kept, remote kept"),
    ("host", "ClusterIP", "both-cluster", "local node, remote node"),
];

pub(super) const PROTOCOLS: [(Protocol, &str); 3] =
    [(Protocol::Tcp, "TCP"), (Protocol::Udp, "UDP"), (Protocol::Sctp, "SCTP")];

pub(super) fn address(sort: &str, number: usize, ipv4: bool) -> IpAddr {
    let text = match (sort, ipv4) {
        ("ClusterIP", true) => format!("10.96.0.{number}"),
        ("ClusterIP", false) => format!("fd00:96::{number}"),
        ("LoadBalancer", true) => format!("203.0.113.{number}"),
        ("LoadBalancer", false) => format!("2001:db8:203::{number}"),
        ("externalIP", true) => format!("198.51.100.{number}"),
        ("externalIP", false) => format!("2001:db8:100::{number}"),
        _ => return node_address(0, ipv4),
    };
    text.parse().expect("address")
}

pub(super) fn node_port(number: usize, protocol: usize) -> u16 {
    30_000 + number as u16 * 10 + protocol as u16
}

/// A Service with every sort of address, in both families and all protocols.
pub(super) fn service(number: usize) -> Value {
    let (name, internal, external) = SERVICES[number];
    let both = |sort| [true, false].map(|ipv4| address(sort, number + 1, ipv4).to_string());
    let ports: Vec<Value> = PROTOCOLS
        .iter()
        .enumerate()
        .map(|(at, (_, protocol))| {
            let name = protocol.to_lowercase();
            json!({"name": name, "port": 80, "protocol": protocol, "nodePort": node_port(number, at)})
        })
        .collect();
    let ingress: Vec<Value> = both("LoadBalancer").iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {
            "type": "LoadBalancer", "clusterIPs": both("ClusterIP"), "externalIPs": both("externalIP"), "ports": ports,
            "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
        },
        "status": {"loadBalancer": {"ingress": ingress}},
    })
}

/// Slices of a Service whose endpoints are these pods, with fields more.
pub(super) fn slices(service: &str, pods: &[(&str, &str, Value)]) -> [Value; 2] {
    [true, false].map(|ipv4| {
        let addresses: Vec<String> = pods.iter().map(|(pod, ..)| pod_address(pod, ipv4).to_string()).collect();
        let listed: Vec<_> =
            pods.iter().zip(&addresses).map(|((_, node, more), at)| (at.as_str(), *node, more.clone())).collect();
        let mut slice = objects::slice(service, ipv4, &listed);
        let ports = PROTOCOLS.map(|(_, name)| json!({"name": name.to_lowercase(), "port": 8080, "protocol": name}));
        slice["ports"] = json!(ports);
        slice
    })
}

fn fill(mut world: ServiceWorld, pods: &[(&str, &str)]) -> ServiceWorld {
    let pods: Vec<_> = pods.iter().map(|(pod, node)| (*pod, *node, Value::Null)).collect();
    for (number, (name, ..)) in SERVICES.iter().enumerate() {
        world.apply(&service(number));
        slices(name, &pods).iter().for_each(|slice| world.apply(slice));
    }
    world
}

/// Tries every cell in every protocol and family; how many rows that were.
fn try_all(pods: &[(&str, &str)], cells: &[Cell]) -> usize {
    try_in(fill(ServiceWorld::new(), pods), cells)
}

fn try_in(mut world: ServiceWorld, cells: &[Cell]) -> usize {
    let mut rows = 0;
    let mut port = 10_000;
    for (caller, sort, name, expected) in cells {
        let number = SERVICES.iter().position(|(known, ..)| known == name).expect("a Service of the matrix");
        for (at, (protocol, protocol_name)) in PROTOCOLS.iter().enumerate() {
            for ipv4 in [true, false] {
                let called = if *sort == "NodePort" { node_port(number, at) } else { 80 };
                let to = (address(sort, number + 1, ipv4), called);
                let client = if *caller == "pod" { "client" } else { caller };
                let mut seen = BTreeSet::new();
                for _ in 0..CONNECTIONS {
                    port += 1;
                    seen.insert(world.open(client, port, to, *protocol));
                    // ICMP errors and resets have a budget a second.
                    world.wait(std::time::Duration::from_millis(20));
                }
                let told = if *protocol == Protocol::Tcp { "reset" } else { "unreachable" };
                let expected = if *expected == "told" { told } else { expected };
                let family = if ipv4 { "IPv4" } else { "IPv6" };
                let seen = seen.into_iter().collect::<Vec<_>>().join(", ");
                let trail = world.explain(client, &world.opening(client, 9, to, *protocol));
                assert_eq!(seen, expected, "{caller} to {sort} of {name}, {protocol_name} {family}: {trail}");
                rows += 1;
            }
        }
    }
    rows
}

#[test]
fn every_cell_of_the_matrix() {
    let rows = try_all(&[("local", "a"), ("remote", "b")], CELLS);
    println!("{rows} rows");
}

#[test]
fn without_any_endpoint_the_caller_is_told() {
    println!("{} rows", try_all(&[], EMPTY));
}

#[test]
fn with_endpoints_elsewhere_only_a_local_policy_is_silence() {
    println!("{} rows", try_all(&[("remote", "b")], REMOTE));
}

#[test]
fn a_pod_that_is_given_to_itself_answers_the_node() {
    println!("{} rows", try_all(&[("local", "a")], HAIRPIN));
}

#[test]
fn everything_to_a_cluster_ip_is_masqueraded_if_the_configuration_says_so() {
    let world = ServiceWorld::configured(&|local| local.services.masquerade_all = true);
    println!("{} rows", try_in(fill(world, &[("local", "a"), ("remote", "b")]), ALL));
}
