//! Objects through the control plane: text that need not be YAML, and valid objects with damage.
//!
//! Whatever a store holds, the control plane makes a plan of what it understands and problems of the rest; the plan
//! compiles; and a planner that followed every object has what one has that sees them all at once.

use std::net::IpAddr;
use std::sync::OnceLock;

use millrace_control::cluster::{InterfaceName, PodName};
use millrace_control::compile::compile;
use millrace_control::observe::Observed;
use millrace_control::plan::{AttachedPod, LocalView, Planner, plan};
use millrace_control::store::{Event, Located, Object, ObjectKey, read_text};
use millrace_engine::packet::{Mac, PortIndex};
use serde_json::{Value, json};

use crate::policies::judge::local_view;
use crate::policies::random_cluster::RandomCluster;
use crate::random::Random;

/// Files of valid objects, of nearly every kind.
const FILES: [&str; 2] =
    [include_str!("../captures/objects/cluster.yaml"), include_str!("../captures/switch-objects/lan.yaml")];
/// Places damaged by one input.
const DAMAGES: usize = 24;

/// The rest behind the first byte: text of a file if that is even, else what damages valid objects.
///
/// # Panics
/// If the control plane breaks a promise.
pub fn run(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else { return };
    if first % 2 == 0 {
        let (objects, problems) = read_text("fuzz.yaml", &String::from_utf8_lossy(rest));
        problems.iter().for_each(|problem| assert!(!problem.to_string().is_empty()));
        follow(&objects.into_iter().map(Told::Applied).collect::<Vec<_>>());
    } else {
        let mut random = Random::chosen_by(rest);
        follow(&damaged(&mut random));
    }
}

enum Told {
    Applied(Object),
    Deleted(ObjectKey),
}

/// Valid objects, some of them damaged, some of them told twice, before and after, some deleted at the end.
fn damaged(random: &mut Random) -> Vec<Told> {
    let mut values = valid().to_vec();
    if random.below(4) == 0 {
        values.extend(RandomCluster::new(&mut Random::new(random.below(256) as u64)).objects);
    }
    let twice = random.below(2) == 0;
    let mut before = Vec::new();
    for _ in 0..DAMAGES {
        if random.is_over() {
            break;
        }
        let at = random.below(values.len());
        let from = values[random.below(values.len())].clone();
        if twice {
            before.push(values[at].clone());
        }
        damage(&mut values[at], &from, random);
    }
    let read = |value: &Value| Object::read(Located::from(value), None).ok();
    let mut told: Vec<Told> = before.iter().chain(&values).filter_map(read).map(Told::Applied).collect();
    for _ in 0..random.below(8) {
        let at = random.below(values.len());
        told.extend(read(&values[at]).map(|object| Told::Deleted(object.key)));
    }
    told
}

fn valid() -> &'static [Value] {
    static VALID: OnceLock<Vec<Value>> = OnceLock::new();
    VALID.get_or_init(|| {
        let of = |text: &&str| {
            let (objects, problems) = read_text("valid.yaml", text);
            assert!(problems.is_empty(), "{problems:?}");
            objects
        };
        let mut values: Vec<Value> = FILES.iter().flat_map(of).map(|object| object.to_json()).collect();
        values.extend(further());
        values
    })
}

/// Kinds and fields that the files lack.
fn further() -> Vec<Value> {
    let network = |name: &str, spec: Value| json!({"apiVersion": "millrace.dev/v1alpha1", "kind": "Network", "metadata": {"name": name}, "spec": spec});
    vec![
        network("red", json!({"vni": 7001, "cidrs": ["10.77.0.0/16", "fd00:77::/64"], "connectedTo": ["blue"]})),
        network("blue", json!({"vni": 7002, "mode": "bridged"})),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": ["10.96.0.0/16"]}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "everything", "annotations":
            {"millrace.dev/balance": "maglev", "millrace.dev/client-subnets": "10.1.0.0/24"}},
            "spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.77"], "externalIPs": ["203.0.113.7"],
                "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster", "healthCheckNodePort": 30999,
                "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 100}},
                "loadBalancerSourceRanges": ["10.0.0.0/8"],
                "ports": [{"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080},
                    {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.80", "ipMode": "VIP"}]}}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "metadata":
            {"name": "everything-1", "labels": {"kubernetes.io/service-name": "everything"}},
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 5353, "protocol": "UDP"}],
            "endpoints": [{"addresses": ["10.1.0.5"], "nodeName": "a", "zone": "z", "conditions": {"ready": true},
                "hints": {"forZones": [{"name": "z"}]}},
                {"addresses": ["10.1.1.9"], "nodeName": "b", "conditions": {"ready": false, "serving": true, "terminating": true}}]}),
    ]
}

/// Changes one place of `object`; some damage comes out of `other`.
fn damage(object: &mut Value, other: &Value, random: &mut Random) {
    let other = other_place(other, random).clone();
    let place = some_place(object, random);
    *place = match (random.below(12), &*place) {
        (0, _) => other,
        (1, _) => Value::Null,
        (2, Value::Number(number)) => {
            let near = number.as_i64().unwrap_or(0).wrapping_add(random.below(7) as i64 - 3);
            json!(near)
        }
        (2 | 3, _) => {
            json!(*random.pick(&[0i64, 1, -1, 32, 33, 128, 255, 4096, 65_535, 65_536, 1 << 24, i64::MAX, i64::MIN]))
        }
        (4, Value::Array(items)) => {
            let mut items = items.clone();
            let again = items.first().cloned().unwrap_or(other);
            items.push(again);
            Value::Array(items)
        }
        (5, Value::Object(fields)) => {
            let mut fields = fields.clone();
            let name = fields.keys().nth(random.below(fields.len())).cloned().unwrap_or_default();
            fields.remove(&name);
            Value::Object(fields)
        }
        (6..=8, Value::String(text)) => Value::String(damaged_text(text, random)),
        (9, _) => json!([other]),
        (10, _) => json!({}),
        _ => Value::String((*random.pick(&WORDS)).to_owned()),
    };
}

/// Words that mean something somewhere.
const WORDS: [&str; 28] = [
    "",
    "0.0.0.0/0",
    "::/0",
    "10.1.0.0/16",
    "10.1.0.5",
    "fd00:10:1::5",
    "::ffff:10.1.0.5",
    "192.0.2.1",
    "192.0.2.2",
    "127.0.0.1",
    "255.255.255.255",
    "224.0.0.1",
    "fe80::1",
    "a",
    "b",
    "web",
    "default",
    "None",
    "UDP",
    "SCTP",
    "Local",
    "eth1",
    "Never",
    "NodePort",
    "ExternalName",
    "10.96.0.77",
    "trunk",
    "02:00:00:00:00:01",
];

fn damaged_text(text: &str, random: &mut Random) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let at = random.below(bytes.len() + 1);
    match random.below(4) {
        0 => bytes.truncate(at),
        1 => bytes.insert(at, b"0/.:-a9"[random.below(7)]),
        2 if at < bytes.len() => bytes[at] = random.below(128) as u8,
        _ => bytes.extend_from_slice(text.as_bytes()),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn some_place<'a>(value: &'a mut Value, random: &mut Random) -> &'a mut Value {
    let deeper = random.below(8) > 0;
    match value {
        Value::Object(fields) if deeper && !fields.is_empty() => {
            let at = random.below(fields.len());
            some_place(fields.values_mut().nth(at).expect("counted"), random)
        }
        Value::Array(items) if deeper && !items.is_empty() => {
            let at = random.below(items.len());
            some_place(&mut items[at], random)
        }
        place => place,
    }
}

fn other_place<'a>(value: &'a Value, random: &mut Random) -> &'a Value {
    let deeper = random.below(8) > 0;
    match value {
        Value::Object(fields) if deeper && !fields.is_empty() => {
            let at = random.below(fields.len());
            other_place(fields.values().nth(at).expect("counted"), random)
        }
        Value::Array(items) if deeper && !items.is_empty() => other_place(&items[random.below(items.len())], random),
        place => place,
    }
}

/// Node `a` with two pods plugged in.
fn node() -> LocalView {
    let mut local = local_view();
    let pod = |(number, name): (u16, &str)| {
        let attached = AttachedPod {
            host_ports: Vec::new(),
            bandwidth: Default::default(),
            network: None,
            further: false,
            pod: PodName::new("default", name).expect("name"),
            uid: None,
            container_id: name.to_owned(),
            interface: InterfaceName::new("eth0").expect("interface"),
            mac: Mac([2, 0, 0, 0, 1, number as u8]),
            addresses: vec![IpAddr::from([10, 1, 0, 4 + number as u8])],
            mtu: 1450,
        };
        (PortIndex(number), attached)
    };
    local.pods = [(1, "client"), (2, "web")].map(pod).into();
    local
}

fn follow(told: &[Told]) {
    let (local, mut observed, mut planner) = (node(), Observed::default(), Planner::default());
    let mut last = None;
    // Half way and at the end: what is planned rests on what was planned before.
    for part in [&told[..told.len() / 2], &told[told.len() / 2..]] {
        for event in part {
            observed.take(match event {
                Told::Applied(object) => Event::Applied(object.clone()),
                Told::Deleted(key) => Event::Deleted(key.clone()),
            });
        }
        let touched = observed.take_touched();
        let planned = planner.plan(observed.cluster(), &local, &touched);
        let tables = compile(&planned.plan, last.as_ref().map(|(plan, tables)| (plan, tables)));
        let tables = tables.expect("a plan never contradicts itself");
        last = Some((planned.plan.clone(), tables));
        let anew = plan(observed.cluster(), &local);
        assert!(
            anew.plan == planned.plan && anew.problems == planned.problems,
            "a planner that followed has another plan"
        );
    }
    observed.problems().iter().for_each(|problem| assert!(!problem.message.is_empty()));
}

/// The files, and bytes that damage.
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let text = |text: &str| std::iter::once(0).chain(text.bytes()).collect();
    let documents = FILES.iter().flat_map(|file| file.split("---\n")).filter(|document| document.len() > 20);
    let mut seeds: Vec<(String, Vec<u8>)> =
        documents.enumerate().map(|(number, document)| (format!("document-{number}"), text(document))).collect();
    for value in further() {
        let name = format!(
            "json-{}-{}",
            value["kind"].as_str().unwrap_or_default(),
            value["metadata"]["name"].as_str().unwrap_or_default()
        );
        seeds.push((name, text(&value.to_string())));
    }
    let random = |seed: u64| std::iter::once(1).chain(Random::new(seed).bytes(60 + 20 * seed as usize)).collect();
    seeds.extend((1..8).map(|seed| (format!("damage-{seed}"), random(seed))));
    seeds
}
