//! Clusters with every feature of the policy APIs, from a seed: small, so that selectors, ports and networks meet.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::{Flow, NodeView};
use crate::random::Random;

pub(super) const NAMESPACES: [&str; 3] = ["default", "red", "blue"];
const KEYS: [&str; 3] = ["app", "tier", "x.example/stage"];
const VALUES: [&str; 3] = ["web", "db", "one"];
const PORTS: [u16; 5] = [80, 81, 443, 8080, 30_000];
const PORT_NAMES: [&str; 3] = ["http", "dns", "metrics"];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
const NETWORKS: [&str; 13] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/24",
    "10.2.0.0/24",
    "10.1.0.4/30",
    "203.0.113.0/24",
    "203.0.113.9/32",
    "203.0.113.8/29",
    "::/0",
    "fd00::/16",
    "fd00:1::/64",
    "fd00:2::/64",
    "2001:db8:c::/48",
];

/// A cluster.
#[derive(Clone, Debug)]
pub struct RandomCluster {
    /// Its objects.
    pub objects: Vec<Value>,
    /// What the node that judges knows beside them.
    pub view: NodeView,
    /// Number of the next pod or policy.
    pub(super) next: usize,
}

pub(super) fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(super) fn labels(random: &mut Random) -> Value {
    let mut labels = Map::new();
    for key in KEYS {
        if random.per_mille(500) {
            labels.insert(key.to_owned(), (*random.pick(&VALUES)).into());
        }
    }
    Value::Object(labels)
}

fn selector(random: &mut Random, name_label: bool) -> Value {
    let mut selector = Map::new();
    if random.per_mille(450) {
        let mut wanted = Map::new();
        if name_label && random.per_mille(400) {
            wanted.insert("kubernetes.io/metadata.name".to_owned(), (*random.pick(&NAMESPACES)).into());
        } else {
            wanted.insert((*random.pick(&KEYS)).to_owned(), (*random.pick(&VALUES)).into());
        }
        selector.insert("matchLabels".to_owned(), Value::Object(wanted));
    }
    if random.per_mille(350) {
        let count = 1 + random.below(2);
        let expressions: Vec<Value> = (0..count).map(|_| expression(random)).collect();
        selector.insert("matchExpressions".to_owned(), expressions.into());
    }
    Value::Object(selector)
}

fn expression(random: &mut Random) -> Value {
    let key = *random.pick(&KEYS);
    let values: Vec<&str> = (0..=random.below(2)).map(|_| *random.pick(&VALUES)).collect();
    match random.below(4) {
        0 => json!({"key": key, "operator": "In", "values": values}),
        1 => json!({"key": key, "operator": "NotIn", "values": values}),
        2 => json!({"key": key, "operator": "Exists"}),
        _ => json!({"key": key, "operator": "DoesNotExist"}),
    }
}

/// A list that may also be empty or missing.
fn put_list(random: &mut Random, into: &mut Map<String, Value>, name: &str, make: impl Fn(&mut Random) -> Value) {
    match random.below(6) {
        0 => {}
        1 => drop(into.insert(name.to_owned(), json!([]))),
        more => {
            let items: Vec<Value> = (0..=more % 3).map(|_| make(random)).collect();
            into.insert(name.to_owned(), items.into());
        }
    }
}

fn peer(random: &mut Random) -> Value {
    match random.below(4) {
        0 => json!({"podSelector": selector(random, false)}),
        1 => json!({"namespaceSelector": selector(random, true)}),
        2 => json!({"namespaceSelector": selector(random, true), "podSelector": selector(random, false)}),
        _ => json!({"ipBlock": block(random)}),
    }
}

fn block(random: &mut Random) -> Value {
    let cidr = *random.pick(&NETWORKS);
    let outer: ipnet::IpNet = cidr.parse().expect("a prefix");
    let inside = |text: &&&str| {
        let inner: ipnet::IpNet = text.parse().expect("a prefix");
        outer.contains(&inner) && inner.prefix_len() > outer.prefix_len()
    };
    let inner: Vec<&str> = NETWORKS.iter().filter(inside).copied().collect();
    if inner.is_empty() || random.per_mille(500) {
        return json!({"cidr": cidr});
    }
    let except: Vec<&str> = (0..=random.below(2)).map(|_| *random.pick(&inner)).collect();
    json!({"cidr": cidr, "except": except})
}

fn port(random: &mut Random) -> Value {
    let mut port = Map::new();
    if random.per_mille(700) {
        port.insert("protocol".to_owned(), (*random.pick(&PROTOCOLS)).into());
    }
    match random.below(5) {
        0 => {}
        1 => drop(port.insert("port".to_owned(), (*random.pick(&PORT_NAMES)).into())),
        2 => {
            port.insert("port".to_owned(), (*random.pick(&[1_u16, 80, 443])).into());
            port.insert("endPort".to_owned(), (*random.pick(&[443_u16, 8080, 65_535])).into());
        }
        _ => drop(port.insert("port".to_owned(), (*random.pick(&PORTS)).into())),
    }
    Value::Object(port)
}

pub(super) fn network_policy(random: &mut Random, number: usize) -> Value {
    let mut spec = Map::new();
    if random.per_mille(900) {
        spec.insert("podSelector".to_owned(), selector(random, false));
    }
    match random.below(5) {
        0 => {}
        1 => drop(spec.insert("policyTypes".to_owned(), json!(["Ingress"]))),
        2 => drop(spec.insert("policyTypes".to_owned(), json!(["Egress"]))),
        3 => drop(spec.insert("policyTypes".to_owned(), json!(["Egress", "Ingress"]))),
        _ => drop(spec.insert("policyTypes".to_owned(), json!([]))),
    }
    let rule = |peers: &'static str| {
        move |random: &mut Random| {
            let mut rule = Map::new();
            put_list(random, &mut rule, peers, peer);
            put_list(random, &mut rule, "ports", port);
            Value::Object(rule)
        }
    };
    put_list(random, &mut spec, "ingress", rule("from"));
    put_list(random, &mut spec, "egress", rule("to"));
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": format!("p{number}"), "namespace": random.pick(&NAMESPACES)}, "spec": spec,
    })
}

fn cluster_pods(random: &mut Random) -> Value {
    if random.per_mille(500) {
        return json!({"namespaces": selector(random, true)});
    }
    json!({"pods": {"namespaceSelector": selector(random, true), "podSelector": selector(random, false)}})
}

fn cluster_protocol(random: &mut Random, named: bool) -> Value {
    if named && random.per_mille(300) {
        return json!({"destinationNamedPort": random.pick(&PORT_NAMES)});
    }
    let name = *random.pick(&["tcp", "udp", "sctp"]);
    let port = match random.below(2) {
        0 => json!({"number": random.pick(&PORTS)}),
        _ => json!({"range": {"start": random.pick(&[1_u16, 80, 300]), "end": random.pick(&[443_u16, 8080])}}),
    };
    json!({name: {"destinationPort": port}})
}

fn cluster_rule(random: &mut Random, egress: bool) -> Value {
    let mut named = true;
    let mut peers = Vec::new();
    for _ in 0..=random.below(2) {
        peers.push(match random.below(6) {
            0 if egress => {
                named = false;
                json!({"networks": [random.pick(&NETWORKS), random.pick(&NETWORKS)]})
            }
            1 if egress => {
                named = false;
                json!({"nodes": selector(random, false)})
            }
            _ => cluster_pods(random),
        });
    }
    let mut rule = Map::new();
    rule.insert("action".to_owned(), (*random.pick(&["Accept", "Deny", "Pass"])).into());
    rule.insert(if egress { "to" } else { "from" }.to_owned(), peers.into());
    if random.per_mille(600) {
        let protocols: Vec<Value> = (0..=random.below(2)).map(|_| cluster_protocol(random, named)).collect();
        rule.insert("protocols".to_owned(), protocols.into());
    }
    Value::Object(rule)
}

pub(super) fn cluster_policy(random: &mut Random, number: usize) -> Value {
    let rules = |random: &mut Random, egress| -> Vec<Value> {
        (0..random.below(3)).map(|_| cluster_rule(random, egress)).collect()
    };
    let (ingress, egress) = (rules(random, false), rules(random, true));
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": format!("c{number}")},
        "spec": {
            "tier": random.pick(&["Admin", "Baseline"]), "priority": random.below(3),
            "subject": cluster_pods(random), "ingress": ingress, "egress": egress,
        },
    })
}

/// Named ports of a container; a name may be given twice, for two protocols or two numbers.
pub(super) fn ports(random: &mut Random) -> Vec<Value> {
    let mut ports = Vec::new();
    for name in PORT_NAMES {
        for _ in 0..(random.below(10) / 3).saturating_sub(1) {
            let mut port = json!({"name": name, "containerPort": random.pick(&PORTS)});
            if random.per_mille(500) {
                port["protocol"] = (*random.pick(&PROTOCOLS)).into();
            }
            ports.push(port);
        }
    }
    ports
}

pub(super) fn pod(random: &mut Random, number: usize) -> Value {
    let node = if random.per_mille(600) { "a" } else { "b" };
    let side = if node == "a" { 1 } else { 2 };
    let last = number + 4;
    let mut ips = Vec::new();
    match random.below(4) {
        0 => ips.push(format!("10.{side}.0.{last}")),
        1 => ips.push(format!("fd00:{side}::{last}")),
        _ => ips.extend([format!("10.{side}.0.{last}"), format!("fd00:{side}::{last}")]),
    }
    let phase = if random.per_mille(900) { "Running" } else { *random.pick(&["Succeeded", "Failed", "Pending"]) };
    let listed: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("pod{number}"), "namespace": random.pick(&NAMESPACES), "labels": labels(random),
            "creationTimestamp": format!("2026-01-01T00:00:{:02}Z", random.below(4)),
        },
        "spec": {
            "nodeName": node, "hostNetwork": random.per_mille(60),
            "containers": [{"name": "c", "ports": ports(random)}],
        },
        "status": {"phase": phase, "podIPs": listed},
    });
    if random.per_mille(150) {
        let policy = if random.per_mille(700) { json!("Always") } else { Value::Null };
        pod["spec"]["initContainers"] = json!([{"name": "i", "restartPolicy": policy, "ports": ports(random)}]);
    }
    if random.per_mille(600) {
        pod["metadata"]["uid"] = format!("u{number}").into();
    }
    pod
}

/// What every cluster has: nodes, and who has which addresses.
#[must_use]
pub fn ground() -> Vec<Value> {
    let node = |name: &str, ip: &str, labels: Value| {
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
            "status": {"addresses": [{"type": "InternalIP", "address": ip}]},
        })
    };
    let block = |name: &str, cidr: &str, node: &str| {
        json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "IpBlock", "metadata": {"name": name},
            "spec": {"cidr": cidr, "pool": "pods", "node": node},
        })
    };
    let pool = |name: &str, cidr: &str| {
        json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "IpPool", "metadata": {"name": name}, "spec": {"cidr": cidr},
        })
    };
    // The blocks of node c lie outside of all pools: what lives there is reached by c and is nobody's.
    vec![
        pool("pods", "10.0.0.0/8"),
        pool("six", "fd00::/16"),
        node("a", "192.0.2.1", json!({"app": "web"})),
        node("b", "192.0.2.2", json!({"app": "db"})),
        node("c", "192.0.2.3", json!({})),
        node("d", "198.51.100.7", json!({"app": "one", "tier": "web"})),
        block("a4", "10.1.0.0/24", "a"),
        block("a6", "fd00:1::/64", "a"),
        block("b4", "10.2.0.0/24", "b"),
        block("b6", "fd00:2::/64", "b"),
        block("c4", "203.0.113.0/24", "c"),
        block("c6", "2001:db8:c::/48", "c"),
        block("nodes", "198.51.100.0/24", "c"),
    ]
}

/// Addresses of nobody, of nodes, and of pods that no object tells of.
const OTHERS: [&str; 8] = [
    "203.0.113.9",
    "203.0.113.200",
    "2001:db8:c::9",
    "198.51.100.7",
    "192.0.2.1",
    "10.2.0.0",
    "10.2.0.250",
    "fd00:2::fa",
];

impl RandomCluster {
    /// The cluster of these numbers.
    #[must_use]
    pub fn new(random: &mut Random) -> Self {
        let mut objects = ground();
        for name in NAMESPACES {
            // A namespace without an object is still one.
            if random.per_mille(850) {
                objects.push(json!({
                    "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels(random)},
                }));
            }
        }
        let pods = 2 + random.below(6);
        objects.extend((0..pods).map(|number| pod(random, number)));
        for number in 0..random.below(6) {
            objects.push(network_policy(random, number));
        }
        for number in 0..random.below(4) {
            objects.push(cluster_policy(random, number));
        }
        let view = NodeView { open: random.per_mille(200), ..NodeView::of(&objects) };
        Self { objects, view, next: pods }
    }

    /// Addresses to try: of pods, of nodes, of nobody. What is plugged in nowhere cannot be sent to: on the node that
    /// judges only pods that are.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let listed = self.objects.iter().filter(|object| object["kind"] == "Pod");
        let listed = listed.filter_map(|pod| pod["status"]["podIPs"].as_array()).flatten();
        let listed = listed.filter_map(|entry| entry["ip"].as_str());
        let remote = listed.filter(|ip| ip.starts_with("10.2.") || ip.starts_with("fd00:2:")).map(address);
        let plugged = self.view.plugged.iter().flat_map(|plugged| plugged.addresses.iter().copied());
        OTHERS.into_iter().map(address).chain(remote).chain(plugged).collect()
    }

    /// A flow that this node sees one end of at least.
    pub fn flow(&self, random: &mut Random) -> Option<Flow> {
        let addresses = self.addresses();
        let (source, destination) = (*random.pick(&addresses), *random.pick(&addresses));
        let here = self.view.has(source) || self.view.has(destination);
        let passes = source.is_ipv4() == destination.is_ipv4() && source != destination && here;
        let protocol = if random.per_mille(100) { "ICMP" } else { *random.pick(&PROTOCOLS) };
        let port = if protocol == "ICMP" { 0 } else { *random.pick(&PORTS) };
        passes.then_some(Flow { source, destination, protocol, port })
    }
}
