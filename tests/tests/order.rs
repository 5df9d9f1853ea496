//! The present state alone decides, end to end: whatever order, batches and repeats the objects of a cluster come in,
//! the tables read the same and the packets come out the same.

use std::net::IpAddr;

use millrace_control::cluster::NetworkName;
use millrace_control::observe::KINDS;
use millrace_control::plan::GATEWAY_MAC;
use millrace_control::store::{ObjectKey, ObjectStore};
use millrace_engine::port::memory::WireFrame;
use millrace_engine::testing::frame;
use millrace_tests::cluster::{ClusterNode, UPLINK, uplink_mac};
use millrace_tests::memory_store::MemoryStore;
use millrace_tests::objects;
use millrace_tests::random::{Random, Rerun, seeds};
use serde_json::{Value, json};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn all_objects() -> Vec<Value> {
    let mut all = vec![objects::pool("four", "10.0.0.0/8", 24), objects::pool("six", "fd00::/16", 112)];
    for number in 1..=5 {
        let name = format!("n{number}");
        all.push(objects::node(&name, &[ip(&format!("192.0.2.{number}")), ip(&format!("2001:db8::{number}"))]));
        all.push(objects::block(&format!("10.{number}.0.0/24"), "four", &name));
        all.push(objects::block(&format!("fd00:{number}::/112"), "six", &name));
    }
    for number in 0..4 {
        let name = format!("s{number}");
        let more = json!({"externalIPs": [format!("198.51.100.{}", number % 3)]});
        all.push(objects::service(&name, &[&format!("10.96.0.{number}"), &format!("fd00:96::{number}")], more));
        let local = format!("10.1.0.{}", 5 + number % 2 * 2);
        let endpoints = [(local.as_str(), "n1", Value::Null), ("10.2.0.1", "n2", Value::Null)];
        all.push(objects::slice(&name, true, &endpoints));
    }
    all.extend(pods_and_policies());
    all.extend(tenants());
    // Contradictions come out the same in any order too.
    all.push(objects::block("10.2.0.64/26", "four", "n4"));
    all.push(objects::node("twin", &[ip("192.0.2.3")]));
    all
}

/// Of three pods two want the same port of the node, and one of the policies denies what another allows.
fn pods_and_policies() -> Vec<Value> {
    let pod = |name: &str, node: &str, address: &str, port: u16| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [
                {"name": "main", "containerPort": 80, "protocol": "UDP", "hostPort": port},
            ]}]},
            "status": {"phase": "Running", "podIP": address},
        })
    };
    let policy = |name: &str, app: &str, ingress: Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name},
            "spec": {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"], "ingress": ingress},
        })
    };
    let from = |app: &str| json!([{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]);
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default", "labels": {"team": "x"}}}),
        pod("client", "n1", "10.1.0.5", 8000),
        pod("web", "n1", "10.1.0.7", 8000),
        pod("far", "n2", "10.2.0.1", 8001),
        policy("closed", "web", json!([])),
        policy("from-client", "web", from("client")),
        policy("from-nobody", "client", from("nobody")),
        json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": "first"},
            "spec": {"tier": "Admin", "priority": 7, "subject": {"namespaces": {"matchLabels": {"team": "x"}}}, "ingress": [
                {"name": "no", "action": "Deny", "from": [{"pods": {
                    "namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "far"}},
                }}]},
            ]},
        }),
    ]
}

/// Two networks with the addresses of pods, one connected with a third; a Service and a policy in one; a pod that says itself
/// where it is.
fn tenants() -> Vec<Value> {
    let ours = |kind: &str, name: &str, spec: Value| json!({"apiVersion": "millrace.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let mut all = vec![
        ours("Network", "blue", json!({"vni": 5001, "connect": ["green"], "egress": true})),
        ours("Network", "red", json!({"vni": 5002})),
        ours("Network", "green", json!({"vni": 5003, "connect": ["blue"]})),
        ours("Network", "twin", json!({"vni": 5002})),
    ];
    for (name, cidr, blocks) in [
        ("blue", "10.0.0.0/8", ["10.1.0.0/24", "10.2.0.0/24"]),
        ("red", "10.0.0.0/8", ["10.1.0.0/24", "10.2.0.0/24"]),
        ("green", "172.16.0.0/16", ["172.16.1.0/24", "172.16.2.0/24"]),
    ] {
        all.push(ours("IpPool", name, json!({"cidr": cidr, "network": name})));
        for (number, cidr) in (1..).zip(blocks) {
            let spec = json!({"cidr": cidr, "pool": name, "network": name, "node": format!("n{number}")});
            all.push(ours("IpBlock", &format!("{name}.{number}"), spec));
        }
    }
    let pod = |name: &str, address: &str, annotations: Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "blue", "labels": {"app": "web"}, "annotations": annotations},
            "spec": {"nodeName": "n2", "containers": [{"name": "c"}]}, "status": {"phase": "Running", "podIP": address},
        })
    };
    let mut service = objects::service("web", &["10.96.0.77"], json!({"selector": {"app": "web"}}));
    service["metadata"]["namespace"] = "blue".into();
    all.extend([
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "blue", "annotations": {
            "millrace.dev/network": "blue",
        }}}),
        pod("near", "10.2.0.1", json!({})),
        pod("stray", "10.2.0.1", json!({"millrace.dev/network": "red"})),
        service,
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "web", "namespace": "blue"},
            "spec": {"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"], "egress": [
                {"to": [{"podSelector": {"matchLabels": {"app": "web"}}}]},
            ]},
        }),
    ]);
    all
}

/// Text of the tables of node n1 (but for the generation), its problems, and what it makes of packets.
fn outcome(history: impl FnOnce(&MemoryStore, &mut ClusterNode)) -> (String, String, Vec<Vec<WireFrame>>) {
    let store = MemoryStore::default();
    let mut node = ClusterNode::new(1, "n1", &[ip("192.0.2.1"), ip("2001:db8::1")], 1, &store);
    node.tell_underlay((2..=5).map(|number| (ip(&format!("192.0.2.{number}")), uplink_mac(number))));
    let (port, mac) = node.plug_in("client", &[ip("10.1.0.5"), ip("fd00:1::5")]);
    let (web, web_mac) = node.plug_in("web", &[ip("10.1.0.7"), ip("fd00:1::7")]);
    let network = |name: &str| Some(NetworkName::new(name).expect("name"));
    let (blue, blue_mac) = node.plug_in_network("blue/client", &[ip("10.1.0.5")], network("blue"));
    let (red, _) = node.plug_in_network("red", &[ip("10.1.0.5")], network("red"));
    history(&store, &mut node);
    let settled = node.follow(usize::MAX);
    assert_eq!(settled.error, None);
    let mut tables = node.switch().switch.tables().as_ref().clone();
    tables.generation = 0;
    node.switch().finish_sweeps();
    let mut out = Vec::new();
    for to in ["10.2.0.1", "10.96.0.77", "172.16.2.9", "198.51.100.9", "10.1.0.7"] {
        node.inject(blue, frame().from(blue_mac, ip("10.1.0.5")).to(GATEWAY_MAC, ip(to)).udp().payload(b"x").wire());
        out.extend([port, web, blue, red, UPLINK].map(|port| node.switch().all_sent(port)));
    }
    for (from, to) in [
        ("10.1.0.5", "10.1.0.7"),
        ("10.1.0.7", "10.1.0.5"),
        ("10.1.0.5", "10.2.0.1"),
        ("10.1.0.5", "10.2.0.70"),
        ("10.1.0.5", "10.3.0.1"),
        ("10.1.0.5", "10.9.0.1"),
        ("fd00:1::5", "fd00:5::1"),
        ("fd00:1::5", "fd00:1::99"),
    ] {
        let (port, mac) = if from == "10.1.0.7" { (web, web_mac) } else { (port, mac) };
        node.inject(port, frame().from(mac, ip(from)).to(GATEWAY_MAC, ip(to)).udp().payload(b"x").wire());
        out.extend([port, web, UPLINK].map(|port| node.switch().all_sent(port)));
    }
    (format!("{tables:#?}"), format!("{:#?}", settled.problems), out)
}

#[test]
fn any_order_of_objects_gives_the_same_tables_and_packets() {
    let plain = outcome(|store, _| all_objects().iter().for_each(|object| drop(store.create(object).expect("object"))));
    assert!(plain.2.iter().flatten().count() >= 7, "packets come out: {:?}", plain.2);
    for seed in seeds(1..13) {
        let _rerun = Rerun { test: "order", seed };
        let mut random = Random::new(seed);
        let found = outcome(|store, node| {
            let mut waiting = all_objects();
            while !waiting.is_empty() {
                let object = waiting.swap_remove(random.below(waiting.len()));
                let created = store.create(&object).expect("object");
                match random.below(5) {
                    // Gone and back later.
                    0 => {
                        store.delete(&created.key, &created.resource_version).expect("delete");
                        if random.below(2) == 0 {
                            node.follow(usize::MAX);
                        }
                        waiting.push(object);
                    }
                    // Told again.
                    1 => drop(store.update(&object, &created.resource_version).expect("update")),
                    2 => drop(node.follow(random.below(4))),
                    3 => drop(node.follow(usize::MAX)),
                    _ => {}
                }
            }
        });
        assert_eq!(found.0, plain.0, "tables");
        assert_eq!(found.1, plain.1, "problems");
        assert!(found.2 == plain.2, "packets");
    }
}

#[test]
fn the_store_is_compare_and_swap() {
    let store = MemoryStore::default();
    let object = objects::node("n1", &[ip("192.0.2.1")]);
    let first = store.create(&object).expect("created");
    assert!(store.create(&object).expect_err("exists").is_race());
    let second = store.update(&object, &first.resource_version).expect("updated");
    assert!(store.update(&object, &first.resource_version).expect_err("stale").is_race());
    assert!(store.delete(&first.key, &first.resource_version).expect_err("stale").is_race());
    store.delete(&second.key, &second.resource_version).expect("deleted");
    assert!(store.get(&ObjectKey::cluster_scoped(KINDS[0].clone(), "n1")).expect("get").is_none());
}
