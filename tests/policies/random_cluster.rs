//! Clusters with every feature of the policy APIs, from a seed: small, so that selectors, ports and networks meet.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::Flow;
use crate::random::Random;

const NAMESPACES: [&str; 3] = ["default", "red", "blue"];
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
    /// Addresses to try: of pods, of a node, of nobody.
    pub addresses: Vec<IpAddr>,
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn labels(random: &mut Random) -> Value {
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

fn network_policy(random: &mut Random, number: usize) -> Value {
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

fn cluster_policy(random: &mut Random, number: usize) -> Value {
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

fn pod(random: &mut Random, number: usize) -> (Value, Vec<IpAddr>) {
    let node = if random.per_mille(600) { "a" } else { "b" };
    let side = if node == "a" { 1 } else { 2 };
    let last = number + 4;
    let mut ips = Vec::new();
    match random.below(4) {
        0 => ips.push(format!("10.{side}.0.{last}")),
        1 => ips.push(format!("fd00:{side}::{last}")),
        _ => ips.extend([format!("10.{side}.0.{last}"), format!("fd00:{side}::{last}")]),
    }
    let mut ports = Vec::new();
    for name in PORT_NAMES {
        if random.per_mille(400) {
            let mut port = json!({"name": name, "containerPort": random.pick(&PORTS)});
            if random.per_mille(500) {
                port["protocol"] = (*random.pick(&PROTOCOLS)).into();
            }
            ports.push(port);
        }
    }
    let phase = if random.per_mille(900) { "Running" } else { *random.pick(&["Succeeded", "Failed", "Pending"]) };
    let host = random.per_mille(60);
    let listed: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod{number}"), "namespace": random.pick(&NAMESPACES), "labels": labels(random)},
        "spec": {"nodeName": node, "hostNetwork": host, "containers": [{"name": "c", "ports": ports}]},
        "status": {"phase": phase, "podIPs": listed},
    });
    // What is plugged in nowhere cannot be sent to: on node `a` only pods that run there can.
    let reachable = node == "b" || (!host && !matches!(phase, "Succeeded" | "Failed"));
    (pod, if reachable { ips.iter().map(|ip| address(ip)).collect() } else { Vec::new() })
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
    vec![
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

impl RandomCluster {
    /// The cluster of these numbers.
    #[must_use]
    pub fn new(random: &mut Random) -> Self {
        let mut objects = ground();
        let mut addresses = vec![
            address("203.0.113.9"),
            address("203.0.113.200"),
            address("2001:db8:c::9"),
            address("198.51.100.7"),
            address("10.2.0.250"),
        ];
        for name in NAMESPACES {
            // A namespace without an object is still one.
            if random.per_mille(850) {
                objects.push(json!({
                    "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels(random)},
                }));
            }
        }
        for number in 0..2 + random.below(6) {
            let (pod, ips) = pod(random, number);
            objects.push(pod);
            addresses.extend(ips);
        }
        for number in 0..random.below(6) {
            objects.push(network_policy(random, number));
        }
        for number in 0..random.below(4) {
            objects.push(cluster_policy(random, number));
        }
        Self { objects, addresses }
    }

    /// A flow that this node sees one end of at least.
    pub fn flow(&self, random: &mut Random, here: impl Fn(IpAddr) -> bool) -> Option<Flow> {
        let (source, destination) = (*random.pick(&self.addresses), *random.pick(&self.addresses));
        let passes =
            source.is_ipv4() == destination.is_ipv4() && source != destination && (here(source) || here(destination));
        let protocol = if random.per_mille(100) { "ICMP" } else { *random.pick(&PROTOCOLS) };
        let port = if protocol == "ICMP" { 0 } else { *random.pick(&PORTS) };
        passes.then_some(Flow { source, destination, protocol, port })
    }

    /// Changes one object as people do: other labels, another policy, one less. What it was, and what it is now.
    pub fn change(&mut self, random: &mut Random) -> (Value, Option<Value>) {
        let first = ground().len();
        let at = first + random.below(self.objects.len() - first);
        let old = self.objects[at].clone();
        let number = old["metadata"]["name"].as_str().and_then(|name| name[1..].parse().ok()).unwrap_or(0);
        let mut new = match old["kind"].as_str() {
            Some("NetworkPolicy") => network_policy(random, number),
            Some("ClusterNetworkPolicy") => cluster_policy(random, number),
            _ => {
                let mut new = old.clone();
                new["metadata"]["labels"] = labels(random);
                new
            }
        };
        new["metadata"]["namespace"] = old["metadata"]["namespace"].clone();
        if new["metadata"]["namespace"].is_null() {
            new["metadata"].as_object_mut().expect("metadata").remove("namespace");
        }
        let is_policy = old["kind"].as_str().is_some_and(|kind| kind.ends_with("Policy"));
        if is_policy && random.per_mille(300) {
            self.objects.remove(at);
            return (old, None);
        }
        self.objects[at] = new.clone();
        (old, Some(new))
    }
}
