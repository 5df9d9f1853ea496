//! Question: what do start and memory of a node's control plane cost in a large cluster behind an API server, and how long
//! does a written change take to become tables?
//!
//! Shape: the emulator, in a process of its own, with generated objects of the size real ones have (a node of 9 KB with
//! its images and conditions, a pod of 4 KB with its managed fields): 20 pods a node, 2 Services a node with a slice of ten
//! endpoints each, one block a node, a policy for every hundredth Service. The agent's side, again in a process of its own
//! for each size: the store with a watch of all kinds, and the reconciler that observes, plans and compiles, without a
//! switch. HTTP on loopback; no TLS.
//! Unit: seconds from nothing to all objects known and to the first tables; MiB resident behind it (and at most); milliseconds
//! from before a PUT to the tables that have it, median and highest. `copy`: the cluster copied and compared once, as the
//! agent's other threads get it after each change.
//! Bound: decoding, about 100 MB/s of JSON a core; memory by what is kept of a pod, about 1 KB.
//! Checksum: the numbers of pods, Services and routes in the cluster that was observed.
//! Goal: 5,000 nodes, 100,000 pods, 10,000 Services start within a minute.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use millrace_control::cluster::NodeName;
use millrace_control::observe::{ENDPOINT_SLICE, KINDS, custom_resource_definitions};
use millrace_control::plan::LocalView;
use millrace_control::reconcile::{Input, Reconciler};
use millrace_control::store::api_server::Connection;
use millrace_control::store::{ApiServerStore, Event, ObjectKey, ObjectStore, Watch};
use millrace_emulator::{Emulator, Options};
use serde_json::{Value, json};

/// What the processes of the bench are told by.
const SERVE: &str = "MILLRACE_SCALE_SERVE";
const MEASURE: &str = "MILLRACE_SCALE_MEASURE";

const PODS_PER_NODE: usize = 20;
const SERVICES_PER_NODE: usize = 2;
const ENDPOINTS: usize = 10;
const CHANGES: usize = 40;

fn main() {
    if let Ok(nodes) = std::env::var(SERVE) {
        serve(nodes.parse().expect("a number"));
    } else if let Ok(nodes) = std::env::var(MEASURE) {
        measure(nodes.parse().expect("a number"));
    } else {
        let whole = std::env::args().any(|argument| argument == "--bench");
        let sizes: &[usize] = if whole { &[500, 5_000] } else { &[20] };
        println!("nodes    pods  services  known s  tables s  MiB  most MiB  change ms (median, highest)  copy ms");
        for nodes in sizes {
            let mut server = child(SERVE, *nodes, Stdio::null());
            let mut lines = BufReader::new(server.stdout.take().expect("piped"));
            let mut kubeconfig = String::new();
            lines.read_line(&mut kubeconfig).expect("a line");
            let mut measuring = child(MEASURE, *nodes, Stdio::piped());
            std::io::Write::write_all(&mut measuring.stdin.take().expect("piped"), kubeconfig.as_bytes())
                .expect("told");
            let mut row = String::new();
            measuring.stdout.take().expect("piped").read_to_string(&mut row).expect("a row");
            let done = measuring.wait().expect("waited");
            server.kill().expect("killed");
            server.wait().expect("waited");
            assert!(done.success(), "{row}");
            print!("{row}");
        }
    }
}

fn child(role: &str, nodes: usize, stdin: Stdio) -> Child {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command.env(role, nodes.to_string()).stdin(stdin).stdout(Stdio::piped()).spawn().expect("a process")
}

fn serve(nodes: usize) {
    let options = Options { definitions: custom_resource_definitions(), ..Options::default() };
    let emulator = Emulator::start(options).expect("emulator");
    for namespace in 0..100 {
        emulator.put("/api/v1/namespaces", json!({"metadata": {"name": format!("ns{namespace}")}}));
    }
    emulator.put("/apis/millrace.dev/v1alpha1/ippools", pool());
    for number in 0..nodes {
        emulator.put("/api/v1/nodes", node(number));
        emulator.put("/apis/millrace.dev/v1alpha1/ipblocks", block(number));
        for at in 0..PODS_PER_NODE {
            let number = number * PODS_PER_NODE + at;
            emulator.put(&format!("/api/v1/namespaces/ns{}/pods", number % 100), pod(number));
        }
        for at in 0..SERVICES_PER_NODE {
            let number = number * SERVICES_PER_NODE + at;
            let namespace = number % 100;
            emulator.put(&format!("/api/v1/namespaces/ns{namespace}/services"), service(number));
            let slices = format!("/apis/discovery.k8s.io/v1/namespaces/ns{namespace}/endpointslices");
            emulator.put(&slices, slice(number, nodes, ENDPOINTS));
            if number.is_multiple_of(100) {
                let policies = format!("/apis/networking.k8s.io/v1/namespaces/ns{namespace}/networkpolicies");
                emulator.put(&policies, policy(number));
            }
        }
    }
    emulator.forget();
    println!("{}", emulator.url());
    loop {
        std::thread::park();
    }
}

/// The address of a pod: the `at`th of its node's block, 64 addresses each.
fn pod_address(number: usize) -> String {
    let address = (number / PODS_PER_NODE) * 64 + number % PODS_PER_NODE + 1;
    format!("10.{}.{}.{}", 64 + (address >> 16), address >> 8 & 255, address & 255)
}

fn pool() -> Value {
    json!({"apiVersion": "millrace.dev/v1alpha1", "kind": "IpPool", "metadata": {"name": "pods"}, "spec": {"cidr": "10.64.0.0/10", "blockSize": 26}})
}

fn block(number: usize) -> Value {
    let address = number * 64;
    let cidr = format!("10.{}.{}.{}", 64 + (address >> 16), address >> 8 & 255, address & 255);
    json!({
        "apiVersion": "millrace.dev/v1alpha1", "kind": "IpBlock", "metadata": {"name": format!("{}-26", cidr.replace('.', "-"))},
        "spec": {"cidr": format!("{cidr}/26"), "pool": "pods", "node": format!("node-{number}"), "lendable": "16-62"},
    })
}

fn node(number: usize) -> Value {
    let image = |at: usize| json!({"names": [format!("registry.example/team/image-{at}@sha256:{at:064x}"), format!("registry.example/team/image-{at}:v1.{at}")], "sizeBytes": 123_456_789 + at});
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "KubeletHas", "message": "kubelet has what it needs", "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let (high, low) = (number >> 8, number & 255);
    json!({
        "metadata": {"name": format!("node-{number}"), "labels": {"kubernetes.io/hostname": format!("node-{number}"), "topology.kubernetes.io/zone": format!("zone-{}", number % 3)}},
        "spec": {"providerID": format!("provider://{number}")},
        "status": {
            "addresses": [{"type": "InternalIP", "address": format!("172.16.{high}.{low}")}, {"type": "Hostname", "address": format!("node-{number}")}],
            "conditions": [condition("MemoryPressure", "False"), condition("DiskPressure", "False"), condition("PIDPressure", "False"), condition("Ready", "True")],
            "images": (0..50).map(image).collect::<Vec<_>>(),
        },
    })
}

fn pod(number: usize) -> Value {
    let app = format!("app-{}", number % 1000);
    let container = json!({
        "name": "main", "image": format!("registry.example/team/{app}:v1"), "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
        "env": (0..20).map(|at| json!({"name": format!("SETTING_{at}"), "value": format!("value of setting {at}")})).collect::<Vec<_>>(),
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
        "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}],
        "livenessProbe": {"httpGet": {"path": "/livez", "port": "http"}, "periodSeconds": 10},
    });
    let address = pod_address(number);
    json!({
        "metadata": {
            "name": format!("{app}-7d9f8c6b5d-{number:05}"), "labels": {"app": app, "pod-template-hash": "7d9f8c6b5d", "team": format!("team-{}", number % 20)},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-7d9f8c6b5d"), "uid": "11111111-1111-4111-8111-111111111111", "controller": true}],
        },
        "spec": {"nodeName": format!("node-{}", number / PODS_PER_NODE), "containers": [container], "volumes": [{"name": "token", "projected": {"sources": []}}]},
        "status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            "containerStatuses": [{"name": "main", "ready": true, "containerID": format!("containerd://{number:064x}"), "imageID": format!("registry.example/team/{app}@sha256:{number:064x}")}],
        },
    })
}

fn service(number: usize) -> Value {
    json!({
        "metadata": {"name": format!("s{number}")},
        "spec": {"clusterIP": format!("10.32.{}.{}", number >> 8, number & 255), "selector": {"app": format!("app-{}", number % 1000)}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    })
}

fn slice(number: usize, nodes: usize, endpoints: usize) -> Value {
    let endpoint = |at: usize| {
        let pod = (number * ENDPOINTS + at * 37) % (nodes * PODS_PER_NODE);
        json!({
            "addresses": [pod_address(pod)], "conditions": {"ready": true, "serving": true, "terminating": false}, "nodeName": format!("node-{}", pod / PODS_PER_NODE),
            "zone": format!("zone-{}", pod / PODS_PER_NODE % 3), "targetRef": {"kind": "Pod", "name": format!("pod-{pod}"), "namespace": format!("ns{}", number % 100)},
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("s{number}-1"), "namespace": format!("ns{}", number % 100), "labels": {"kubernetes.io/service-name": format!("s{number}")}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    })
}

fn policy(number: usize) -> Value {
    json!({
        "metadata": {"name": format!("p{number}")},
        "spec": {"podSelector": {"matchLabels": {"app": format!("app-{}", number % 1000)}}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"team": "team-3"}}}], "ports": [{"port": 8080}]}]},
    })
}

/// Resident memory now and at most, in MiB.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim().split(' ').next().and_then(|number| number.parse::<u64>().ok()).unwrap_or_default() / 1024
    };
    (value("VmRSS:"), value("VmHWM:"))
}

fn connect() -> ApiServerStore {
    let mut url = String::new();
    std::io::stdin().read_line(&mut url).expect("told");
    let file: PathBuf = std::env::temp_dir().join(format!("millrace-scale-{}", std::process::id()));
    let kubeconfig = format!(
        "{{apiVersion: v1, kind: Config, current-context: x, clusters: [{{name: x, cluster: {{server: {:?}}}}}], \
         users: [{{name: x, user: {{}}}}], contexts: [{{name: x, context: {{cluster: x, user: x}}}}]}}",
        url.trim()
    );
    std::fs::write(&file, kubeconfig).expect("written");
    let connection = Connection::from_kubeconfig(&file).expect("kubeconfig");
    std::fs::remove_file(&file).expect("removed");
    ApiServerStore::open(connection).expect("open")
}

/// Takes events until `enough`.
fn take(reconciler: &mut Reconciler, watch: &Watch, mut enough: impl FnMut(&Event) -> bool) {
    loop {
        let event = watch.events.recv_timeout(Duration::from_secs(600)).expect("an event");
        let last = enough(&event);
        reconciler.take(Input::Store(event));
        if last {
            return;
        }
    }
}

fn measure(nodes: usize) {
    let store = connect();
    let mut reconciler = Reconciler::new(LocalView::new(NodeName::new("node-0").expect("name")));
    let start = Instant::now();
    let watch = store.watch(&KINDS).expect("watch");
    take(&mut reconciler, &watch, |event| matches!(event, Event::Synced));
    let known = start.elapsed();
    let settled = reconciler.settle(Instant::now());
    let tables = start.elapsed();
    assert!(settled.error.is_none(), "{:?}", settled.error);
    let cluster = reconciler.cluster();
    let (pods, services) = (cluster.pods.len(), cluster.services.len());
    assert_eq!((pods, services, cluster.blocks.len()), (nodes * PODS_PER_NODE, nodes * SERVICES_PER_NODE, nodes));
    let mut changes: Vec<Duration> =
        (0..CHANGES).map(|run| change(&mut reconciler, &watch, &store, run, nodes)).collect();
    changes.sort();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let (now, most) = memory();
    let copying = Instant::now();
    let copy = reconciler.cluster().clone();
    assert_eq!(&copy, reconciler.cluster());
    let copying = copying.elapsed();
    println!(
        "{nodes:>5} {pods:>7} {services:>9} {:>8.1} {:>9.1} {now:>4} {most:>9}  {:.1}, {:.1}  {:.1}",
        known.as_secs_f64(),
        tables.as_secs_f64(),
        milliseconds(changes[changes.len() / 2]),
        milliseconds(changes[changes.len() - 1]),
        milliseconds(copying)
    );
}

/// One endpoint goes or comes, by a PUT, until the tables have it.
fn change(reconciler: &mut Reconciler, watch: &Watch, store: &ApiServerStore, run: usize, nodes: usize) -> Duration {
    let number = run / 2 * 7 % (nodes * SERVICES_PER_NODE);
    let key = ObjectKey {
        kind: ENDPOINT_SLICE,
        namespace: Some(format!("ns{}", number % 100)),
        name: format!("s{number}-1"),
    };
    let present = store.get(&key).expect("get").expect("there");
    let changed = slice(number, nodes, ENDPOINTS - 1 + run % 2);
    let start = Instant::now();
    store.update(&changed, &present.resource_version).expect("update");
    take(reconciler, watch, |event| matches!(event, Event::Applied(object) if object.key == key));
    let settled = reconciler.settle(Instant::now());
    assert!(settled.changes.is_some(), "the change is published");
    start.elapsed()
}
