//! Tenants never meet: random packets between networks that use the same addresses, under random changes of everything that
//! could let one into another, reach pods of the sender's network only, travel under its identifier only, and leave the
//! cluster only where it may. And after each change a switch that has cached flows says what one says that never saw a packet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use millrace_control::cluster::NetworkName;
use millrace_control::observe::{NETWORK, NETWORK_POLICY, SERVICE};
use millrace_control::plan::{GATEWAY_MAC, OutsidePath, OutsideView};
use millrace_control::store::{Kind, ObjectKey, ObjectStore};
use millrace_engine::limits;
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::port::memory::WireFrame;
use millrace_engine::testing::{describe, frame};
use millrace_tests::cluster::{ClusterNode, HOST, UNDERLAY_MTU, UPLINK, uplink_mac};
use millrace_tests::memory_store::MemoryStore;
use millrace_tests::objects;
use millrace_tests::random::{Random, Rerun, seeds};
use serde_json::{Value, json};

/// The pods' segment, two networks that have its very addresses, and one with others; each is a namespace, too.
const NETWORKS: [(&str, u32, &str); 4] = [
    ("pods", 1, "10.0.0.0/12"),
    ("blue", 5001, "10.0.0.0/12"),
    ("red", 5002, "10.0.0.0/12"),
    ("green", 5003, "10.200.0.0/16"),
];
/// Where packets go: pods here and there, Services, a neighbour outside, the world, nodes.
const DESTINATIONS: [(&str, u16); 13] = [
    ("10.1.0.5", 2000),
    ("10.1.0.6", 2000),
    ("10.1.0.9", 2000),
    ("10.2.0.7", 2000),
    ("10.200.1.5", 2000),
    ("10.200.1.6", 2000),
    ("10.200.2.7", 2000),
    ("10.96.0.1", 80),
    ("10.96.0.2", 80),
    ("10.96.0.3", 80),
    ("198.51.100.7", 53),
    ("192.0.2.1", 53),
    ("192.0.2.2", 53),
];
const NODE: &str = "192.0.2.1";
const PEER: &str = "192.0.2.2";
const ROUTER: &str = "192.0.2.254";
const CHANGES: usize = 40;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn blocks_of(network: &str) -> [&'static str; 2] {
    if network == "green" { ["10.200.1.0/24", "10.200.2.0/24"] } else { ["10.1.0.0/24", "10.2.0.0/24"] }
}

fn addresses_of(network: &str) -> [&'static str; 3] {
    if network == "green" { ["10.200.1.5", "10.200.1.6", "10.200.2.7"] } else { ["10.1.0.5", "10.1.0.6", "10.2.0.7"] }
}

/// What may change of the cluster.
#[derive(Clone, Debug, Default)]
struct Wanted {
    absent: BTreeSet<&'static str>,
    egress: BTreeSet<&'static str>,
    /// Which of red and green name each other.
    connect: BTreeSet<&'static str>,
    /// Policies by namespace: who may send to the pods with the last but one address.
    policies: BTreeMap<&'static str, Value>,
    services: BTreeSet<&'static str>,
}

impl Wanted {
    fn change(&mut self, random: &mut Random) {
        let network = NETWORKS[1 + random.below(3)].0;
        let toggle = |set: &mut BTreeSet<&'static str>| {
            if !set.remove(network) {
                set.insert(network);
            }
        };
        match random.below(6) {
            0 => toggle(&mut self.absent),
            1 => toggle(&mut self.egress),
            2 if network == "blue" => self.connect = ["red", "green"].into(),
            2 => toggle(&mut self.connect),
            3 => toggle(&mut self.services),
            _ => {
                let namespace = NETWORKS[random.below(4)].0;
                let from = match random.below(4) {
                    0 => json!([]),
                    1 => json!([{"from": [{"podSelector": {"matchLabels": {"place": "here"}}}]}]),
                    2 => {
                        json!([{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"place": "there"}}}]}])
                    }
                    _ => json!([{"from": [{"ipBlock": {"cidr": "10.2.0.0/16"}}]}]),
                };
                if self.policies.remove(namespace).is_none() || random.per_mille(500) {
                    self.policies.insert(namespace, from);
                }
            }
        }
    }

    fn connected(&self) -> bool {
        self.connect.len() == 2 && !self.absent.contains("red") && !self.absent.contains("green")
    }

    fn network(&self, name: &'static str, vni: u32) -> Option<Value> {
        let partner = if name == "red" { "green" } else { "red" };
        let connect: Vec<&str> = self.connect.contains(name).then_some(partner).into_iter().collect();
        let spec = json!({"vni": vni, "egress": self.egress.contains(name), "connect": connect});
        let object = json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "Network", "metadata": {"name": name}, "spec": spec,
        });
        (!self.absent.contains(name)).then_some(object)
    }

    fn write(&self, store: &MemoryStore) {
        for (number, (name, vni, _)) in NETWORKS.into_iter().enumerate() {
            if number > 0 {
                put(store, &NETWORK, None, name, self.network(name, vni));
            }
            let policy = self.policies.get(name).map(|ingress| {
                json!({
                    "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                    "metadata": {"name": "some", "namespace": name},
                    "spec": {"podSelector": {"matchLabels": {"number": "1"}}, "ingress": ingress},
                })
            });
            put(store, &NETWORK_POLICY, Some(name), "some", policy);
            let mut service = objects::service(
                "web",
                &[&format!("10.96.0.{number}")],
                json!({
                    "selector": {"number": "1"}, "ports": [{"port": 80, "protocol": "UDP", "targetPort": 2000}],
                }),
            );
            service["metadata"]["namespace"] = name.into();
            put(store, &SERVICE, Some(name), "web", self.services.contains(name).then_some(service));
        }
    }
}

/// Sees to it that the object is there, or is not.
fn put(store: &MemoryStore, kind: &Kind, namespace: Option<&str>, name: &str, wanted: Option<Value>) {
    let key = ObjectKey { kind: kind.clone(), namespace: namespace.map(str::to_owned), name: name.to_owned() };
    match (store.get(&key).expect("get"), wanted) {
        (None, Some(wanted)) => drop(store.create(&wanted).expect("create")),
        (Some(known), Some(wanted)) => drop(store.update(&wanted, &known.resource_version).expect("update")),
        (Some(known), None) => store.delete(&key, &known.resource_version).expect("delete"),
        (None, None) => {}
    }
}

fn lasting_objects() -> Vec<Value> {
    let mut all = vec![objects::node("n1", &[ip(NODE)]), objects::node("n2", &[ip(PEER)])];
    for (name, _, cidr) in NETWORKS {
        let is_tenant = name != "pods";
        let mut pool = objects::pool(name, cidr, 24);
        let annotations = if is_tenant { json!({"millrace.dev/network": name}) } else { json!({}) };
        if is_tenant {
            pool["spec"]["network"] = name.into();
        }
        all.push(pool);
        all.push(json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "annotations": annotations},
        }));
        for (cidr, node) in blocks_of(name).into_iter().zip(["n1", "n2"]) {
            let mut block = objects::block(cidr, name, node);
            if is_tenant {
                block["spec"]["network"] = name.into();
                block["metadata"]["name"] =
                    format!("{name}.{}", block["metadata"]["name"].as_str().expect("name")).into();
            }
            all.push(block);
        }
        for (number, address) in addresses_of(name).into_iter().enumerate() {
            let (node, place) = if number == 2 { ("n2", "there") } else { ("n1", "here") };
            all.push(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": format!("p{number}"), "namespace": name,
                    "labels": {"number": number.to_string(), "place": place},
                },
                "spec": {"nodeName": node, "containers": [{"name": "c"}]},
                "status": {"phase": "Running", "podIP": address},
            }));
        }
    }
    all
}

/// A pod of this node.
struct Member {
    port: u16,
    mac: Mac,
    network: &'static str,
    address: &'static str,
}

/// Node n1 with all its pods.
fn node(store: &MemoryStore) -> (ClusterNode, Vec<Member>) {
    let mut node = ClusterNode::new(1, "n1", &[ip(NODE)], 1, store);
    node.tell_underlay([(ip(PEER), uplink_mac(2))]);
    node.plug_host(&[ip(NODE)]);
    let port = PortIndex(UPLINK);
    let path = OutsidePath { port, gateway: Some(ip(ROUTER)), source: ip(NODE), mtu: UNDERLAY_MTU };
    node.tell_outside(OutsideView {
        routes: BTreeMap::from([("0.0.0.0/0".parse().expect("prefix"), path)]),
        neighbours: BTreeMap::from([((port, ip(ROUTER)), uplink_mac(9))]),
    });
    let mut members = Vec::new();
    for (network, ..) in NETWORKS {
        for (number, address) in addresses_of(network).into_iter().take(2).enumerate() {
            let of = (network != "pods").then(|| NetworkName::new(network).expect("name"));
            let (port, mac) = node.plug_in_network(&format!("{network}/p{number}"), &[ip(address)], of);
            members.push(Member { port, mac, network, address });
        }
    }
    let settled = node.follow(usize::MAX);
    assert_eq!(settled.error, None);
    node.switch().finish_sweeps();
    (node, members)
}

/// Sends a packet after a pause, in which as many may be told of errors as are here.
fn inject(node: &ClusterNode, port: u16, frame: WireFrame) {
    node.switch().clock.advance(Duration::from_millis(2));
    node.inject(port, frame);
}

/// What comes out of the node for one packet: by port, described.
fn sent(node: &ClusterNode, members: &[Member]) -> Vec<(u16, String)> {
    let ports = members.iter().map(|member| member.port).chain([HOST, UPLINK]);
    let of = |port: u16| {
        let frames = node.switch().all_sent(port);
        frames.into_iter().map(move |frame| (port, without_chosen_ports(&describe(&frame.bytes))))
    };
    ports.flat_map(of).collect()
}

/// Which of the ports for masquerading is free depends on what came before.
fn without_chosen_ports(text: &str) -> String {
    let chosen = |word: &str| {
        let (address, port) = word.rsplit_once(':')?;
        (port.parse::<u16>().ok()? >= limits::MASQUERADE_PORTS.0).then(|| format!("{address}:*"))
    };
    text.split(' ').map(|word| chosen(word).unwrap_or_else(|| word.to_owned())).collect::<Vec<_>>().join(" ")
}

/// Sends every packet there is; what came of each, by who sent it and to whom.
fn run(node: &ClusterNode, members: &[Member], round: u16) -> BTreeMap<String, Vec<(u16, String)>> {
    let mut outcomes = BTreeMap::new();
    for (number, member) in (0..).zip(members) {
        for (place, (destination, port)) in (0..).zip(DESTINATIONS) {
            // What is translated is a connection that may outlive what it came of: it is opened anew in each round.
            let source =
                if port == 2000 { 3000 + number * 16 + place } else { 10_000 + round * 256 + number * 16 + place };
            let packet = frame().from(member.mac, ip(member.address)).to(GATEWAY_MAC, ip(destination));
            inject(node, member.port, packet.udp().ports(source, port).payload(b"x").wire());
            let name = format!("{}/{} to {destination}", member.network, member.address);
            outcomes.insert(name, sent(node, members));
        }
    }
    let tunnel_mac = {
        let tables = node.switch().switch.tables();
        let segment = tables.segments.get(millrace_control::plan::POD_SEGMENT).expect("the pods' segment");
        match &segment.kind {
            millrace_engine::tables::SegmentKind::Routed(routed) => routed.tunnel_mac,
            millrace_engine::tables::SegmentKind::Bridged(_) => unreachable!("it is routed"),
        }
    };
    for (number, (network, vni, _)) in (0..).zip(NETWORKS) {
        for (place, (destination, port)) in (0..).zip(DESTINATIONS) {
            let source = addresses_of(network)[2];
            let inner = frame().from(uplink_mac(2), ip(source)).to(tunnel_mac, ip(destination));
            let base = if port == 2000 { 5000 } else { 30_000 + round * 64 };
            let inner = inner.udp().ports(base + number * 16 + place, port).payload(b"x");
            let outer = frame().from(uplink_mac(2), ip(PEER)).to(uplink_mac(1), ip(NODE)).udp().ports(50_000, 8472);
            inject(node, UPLINK, inner.inside_vxlan(vni, outer).wire());
            outcomes.insert(format!("{network} by tunnel to {destination}"), sent(node, members));
        }
    }
    outcomes
}

/// That nothing came where it must not.
fn check(wanted: &Wanted, members: &[Member], outcomes: &BTreeMap<String, Vec<(u16, String)>>) -> usize {
    let mut delivered = 0;
    for (name, frames) in outcomes {
        let sender = name.split(['/', ' ']).next().expect("a network");
        let vni = NETWORKS.iter().find(|(network, ..)| *network == sender).expect("known").1;
        for (port, text) in frames {
            if *port == UPLINK {
                if text.starts_with("vxlan ") {
                    assert!(text.starts_with(&format!("vxlan vni {vni} ")), "{name}: {text}");
                } else {
                    assert!(sender == "pods" || wanted.egress.contains(sender), "{name}: {text}");
                }
                continue;
            }
            // The host is a member of the pods' segment.
            let receiver = members.iter().find(|member| member.port == *port).map_or("pods", |member| member.network);
            let pair = BTreeSet::from([sender, receiver]);
            let may = sender == receiver || (wanted.connected() && pair == BTreeSet::from(["red", "green"]));
            assert!(may, "{name} came to {receiver}: {text}");
            assert!(!wanted.absent.contains(receiver), "{name} came to {receiver}, which is no network: {text}");
            delivered += usize::from(!text.contains("icmp"));
        }
    }
    delivered
}

#[test]
fn random_packets_never_cross_and_cached_equals_fresh() {
    let (mut delivered, mut crossed) = (0, 0);
    for seed in seeds(1..5) {
        let _rerun = Rerun { test: "tenants", seed };
        let (mut random, store, mut wanted) = (Random::new(seed), MemoryStore::default(), Wanted::default());
        lasting_objects().iter().for_each(|object| drop(store.create(object).expect("object")));
        wanted.write(&store);
        let (mut cached, members) = node(&store);
        for round in 0..CHANGES {
            wanted.change(&mut random);
            wanted.write(&store);
            assert_eq!(cached.follow(usize::MAX).error, None);
            cached.switch().finish_sweeps();
            let found = run(&cached, &members, round as u16);
            delivered += check(&wanted, &members, &found);
            let (fresh, same) = node(&store);
            let expected = run(&fresh, &same, round as u16);
            for (name, frames) in &found {
                assert_eq!(frames, &expected[name], "round {round}, {name}, {wanted:?}");
            }
            let reached = |frames: &Vec<(u16, String)>, network: &str| {
                let ports = frames.iter().filter_map(|(port, _)| members.iter().find(|member| member.port == *port));
                ports.into_iter().any(|member| member.network == network)
            };
            crossed +=
                found.iter().filter(|(name, frames)| name.starts_with("red") && reached(frames, "green")).count();
        }
    }
    assert!(
        delivered > 1000 && crossed > 20,
        "packets arrive at all: {delivered}, between connected networks {crossed}"
    );
}
