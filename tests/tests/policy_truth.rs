//! The truth table: policies as people write them, and what the documents say of each packet. Both the engine, through
//! its slow path, and the oracle must agree with it, so that the table also is the oracle's test.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use millrace_control::observe::{CLUSTER_NETWORK_POLICY, NETWORK_POLICY};
use millrace_control::store::{DirectoryStore, ObjectStore};
use millrace_tests::policies::judge::Judge;
use millrace_tests::policies::random_cluster::ground;
use millrace_tests::policies::{Flow, NodeView, oracle};
use serde_json::{Value, json};

/// Groups that the oracle cannot judge: it knows nothing of peers that fail closed, and of Services.
const WITHOUT_ORACLE: [&str; 2] = ["fail closed", "Service"];

struct Row<'a> {
    line: usize,
    words: &'a str,
    flow: &'a str,
    allowed: bool,
}

#[derive(Default)]
struct Group<'a> {
    title: &'a str,
    policies: String,
    /// Namespaces without an object.
    gone: Vec<&'a str>,
    rows: Vec<Row<'a>>,
}

fn read(text: &str) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if let Some(title) = line.strip_prefix("## ") {
            groups.push(Group { title, ..Group::default() });
            continue;
        }
        let Some(group) = groups.last_mut().filter(|_| !line.is_empty()) else { continue };
        if let Some(name) = line.strip_prefix("no namespace ") {
            group.gone.push(name);
        } else if let Some((name, spec)) = line.strip_prefix("policy ").and_then(|rest| rest.split_once(' ')) {
            let (namespace, name) = name.split_once('/').expect("namespace/name");
            group.policies += &format!(
                "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
            );
        } else if let Some((name, spec)) = line.strip_prefix("cluster ").and_then(|rest| rest.split_once(' ')) {
            group.policies += &format!(
                "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
            );
        } else {
            let parts: Vec<&str> = line.split('|').map(str::trim).collect();
            let [words, flow, verdict] = parts[..] else { panic!("line {}: {line:?} is no row", number + 1) };
            let allowed = match verdict {
                "allow" => true,
                "deny" => false,
                other => panic!("line {}: {other:?} is no verdict", number + 1),
            };
            group.rows.push(Row { line: number + 1, words, flow, allowed });
        }
    }
    groups
}

/// The cluster of the table, and the addresses of its pods.
fn cluster() -> (Vec<Value>, BTreeMap<String, [IpAddr; 2]>) {
    let mut objects = ground();
    for node in &mut objects {
        if node["kind"] == "Node" && node["metadata"]["name"] == "d" {
            node["metadata"]["labels"] = json!({"role": "edge"});
        }
    }
    let mut addresses = BTreeMap::new();
    let mut add = |namespace: &str, name: &str, node: &str, ips: [String; 2]| {
        let port = |name: &str, number: u16, protocol: &str| json!({"name": name, "containerPort": number, "protocol": protocol});
        let named = [port("serve-81", 81, "TCP"), port("dns-80", 80, "UDP"), port("sctp-80", 80, "SCTP")];
        let ports = match (namespace, name) {
            ("z", "c") => json!([{"containerPort": 80}]),
            ("z", "b") => json!([port("twice", 80, "TCP"), port("twice", 81, "TCP"), port("twice", 80, "UDP")]),
            ("x", "c") => json!([[port("serve-80", 8080, "TCP")].as_slice(), &named].concat()),
            _ => json!([[port("serve-80", 80, "TCP")].as_slice(), &named].concat()),
        };
        let mut labels = json!({"pod": name});
        if (namespace, name) == ("x", "c") {
            labels["tier"] = "front".into();
        }
        addresses.insert(format!("{namespace}/{name}"), ips.clone().map(|ip| ip.parse().expect("address")));
        let beside = [
            json!({"name": "sidecar", "restartPolicy": "Always", "ports": [port("beside", 9000, "TCP")]}),
            json!({"name": "before", "ports": [port("before", 9001, "TCP")]}),
        ];
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"nodeName": node, "containers": [{"name": "c", "ports": ports}], "initContainers": beside},
            "status": {"phase": "Running", "podIPs": [{"ip": ips[0]}, {"ip": ips[1]}]},
        })
    };
    for (tens, namespace) in [(1, "x"), (2, "y"), (3, "z")] {
        for (ones, name) in [(1, "a"), (2, "b"), (3, "c")] {
            let ips = [format!("10.1.0.{tens}{ones}"), format!("fd00:1::{tens}{ones}")];
            objects.push(add(namespace, name, "a", ips));
        }
        let mut labels = json!({"ns": namespace});
        if namespace == "z" {
            labels["kind"] = "test".into();
        }
        objects
            .push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}));
    }
    objects.push(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "host", "namespace": "y", "labels": {"pod": "host"}},
        "spec": {"nodeName": "d", "hostNetwork": true}, "status": {"phase": "Running", "podIPs": [{"ip": "198.51.100.7"}]},
    }));
    objects.push(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "x"},
        "spec": {"clusterIPs": ["10.96.0.10"], "ports": [{"port": 80}]},
    }));
    objects.push(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "a-1", "namespace": "x", "labels": {"kubernetes.io/service-name": "a"}},
        "ports": [{"port": 80}], "endpoints": [{"addresses": ["10.1.0.11"], "nodeName": "a"}],
    }));
    objects.push(add("y", "far", "b", ["10.2.0.5".to_owned(), "fd00:2::5".to_owned()]));
    (objects, addresses)
}

fn flow(text: &str, addresses: &BTreeMap<String, [IpAddr; 2]>) -> Flow {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (source, destination, protocol, port) = match words[..] {
        [source, ">", destination, protocol] => (source, destination, protocol, "0"),
        [source, ">", destination, protocol, port] => (source, destination, protocol, port),
        _ => panic!("{text:?} is no packet"),
    };
    let family = usize::from(protocol.ends_with('6'));
    let address = |name: &str| match addresses.get(name) {
        Some(addresses) => addresses[family],
        None => name.parse().unwrap_or_else(|_| panic!("{name} is no pod and no address")),
    };
    let protocol = match protocol.trim_end_matches('6') {
        "tcp" => "TCP",
        "udp" => "UDP",
        "sctp" => "SCTP",
        "icmp" => "ICMP",
        other => panic!("protocol {other}"),
    };
    Flow { source: address(source), destination: address(destination), protocol, port: port.parse().expect("a port") }
}

/// A directory that goes with its value.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Policies in YAML as the directory store reads them.
fn policies(text: &str) -> Vec<Value> {
    let directory = Directory(std::env::temp_dir().join(format!("millrace-truth-{}", std::process::id())));
    std::fs::create_dir_all(&directory.0).expect("directory");
    std::fs::write(directory.0.join("policies.yaml"), text).expect("write");
    let store = DirectoryStore::open(&directory.0).expect("store");
    let kinds = [NETWORK_POLICY, CLUSTER_NETWORK_POLICY];
    kinds.iter().flat_map(|kind| store.list(kind).expect("list")).map(|object| object.to_json()).collect()
}

#[test]
fn the_documents_are_kept_to() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/truth_table.txt");
    let text = std::fs::read_to_string(path).expect("the table");
    let groups = read(&text);
    let (objects, addresses) = cluster();
    let (mut judge, mut rows, mut wrong) = (Judge::new(), 0, Vec::new());
    for group in &groups {
        let mut objects = objects.clone();
        let gone: Vec<Value> = group.gone.iter().map(|name| json!(name)).collect();
        objects.retain(|object| object["kind"] != "Namespace" || !gone.contains(&object["metadata"]["name"]));
        let written = group.policies.matches("---").count();
        let known = objects.len();
        objects.extend(policies(&group.policies));
        assert_eq!(objects.len(), known + written, "{}: a policy could not be read", group.title);
        judge.forget();
        objects.iter().for_each(|object| judge.apply(object));
        let view = NodeView::of(&objects);
        judge.settle(&view, false);
        for Row { line, words, flow: text, allowed } in &group.rows {
            rows += 1;
            let (text, answer) = text.strip_suffix(" answer").map_or((*text, false), |text| (text, true));
            let flow = flow(text, &addresses);
            let found = if answer { judge.answered(flow) } else { judge.allowed(flow) };
            if found.is_ok() != *allowed {
                wrong.push(format!("line {line} ({}): {words}: {text}: the engine says {found:?}", group.title));
            }
            let told = oracle::allowed(&objects, &view, flow);
            if !WITHOUT_ORACLE.iter().any(|word| group.title.contains(word)) && told.is_ok() != *allowed {
                wrong.push(format!("line {line} ({}): {words}: {text}: the oracle says {told:?}", group.title));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(rows >= 120, "{rows} rows");
}
