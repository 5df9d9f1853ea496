//! What load balancers ask a node: HTTP from the node's own namespace and from the other node, over both families.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use millrace_control::kernel::NamespaceHandle;

use crate::cluster::{Cluster, NODES, node_object};
use crate::pod::Pod;
use crate::services::{OPTIONS, service_at};
use crate::traffic::Endpoint;

const PATIENCE: Duration = Duration::from_secs(20);
/// kube-proxy's own port for the node as a whole.
const NODE_HEALTH: u16 = 10_256;
const SERVICE_HEALTH: u16 = 32_001;

/// Status and body of an answer; `None` where nobody answers.
pub(crate) fn get(from: &NamespaceHandle, to: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut socket = from.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(1))).expect("entered").ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
    write!(socket, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

fn wait_for(from: &NamespaceHandle, to: SocketAddr, path: &str, wanted: impl Fn(u16, &str) -> bool) {
    let end = Instant::now() + PATIENCE;
    loop {
        let seen = get(from, to, path);
        if seen.as_ref().is_some_and(|(status, body)| wanted(*status, body)) {
            return;
        }
        assert!(Instant::now() < end, "{to}{path} says {seen:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A Service under policy Local with these endpoints on node a.
fn local_service(endpoints: &[(&Endpoint, &str)]) -> String {
    let addresses = |ipv4: bool| {
        let texts = if ipv4 { ["10.96.0.1", "203.0.113.11"] } else { ["fd00:96::1", "2001:db8:9::11"] };
        texts.map(|text| text.parse::<IpAddr>().expect("address"))
    };
    let text = service_at(1, "Local", endpoints, addresses);
    text.replacen("  clusterIP: ", &format!("  healthCheckNodePort: {SERVICE_HEALTH}\n  clusterIP: "), 1)
}

/// The part of a set of documents that speaks of one family's slice.
fn without_slice(text: &str, family: &str) -> String {
    let documents = text.split_inclusive("---\n");
    documents.filter(|document| !document.contains(&format!("addressType: {family}"))).collect()
}

pub(crate) fn load_balancers_are_told_of_local_endpoints_and_of_the_node() {
    let cluster = Cluster::create(1, OPTIONS);
    let pod = Pod::create("a1", "a");
    let endpoint = pod.add(cluster.directory());
    let whole = local_service(&[(&endpoint, "a")]);
    cluster.directory().write_objects("service.yaml", &whole);
    let [near, far] = [0, 1].map(|number| cluster.underlay.nodes[number].handle().clone());
    let address = |number: usize, ipv4: bool| -> IpAddr {
        let (_, [four, six]) = NODES[number];
        if ipv4 { four } else { six }.parse().expect("address")
    };
    for ipv4 in [true, false] {
        for from in [&near, &far] {
            let at = |number| SocketAddr::new(address(number, ipv4), SERVICE_HEALTH);
            wait_for(from, at(0), "/", |status, body| status == 200 && body.contains("\"localEndpoints\": 1"));
            wait_for(from, at(1), "/", |status, body| status == 503 && body.contains("\"localEndpoints\": 0"));
        }
    }
    // Endpoints of one family alone serve that family.
    cluster.directory().write_objects("service.yaml", &without_slice(&whole, "IPv4"));
    let at = |ipv4| SocketAddr::new(address(0, ipv4), SERVICE_HEALTH);
    wait_for(&far, at(true), "/", |status, _| status == 503);
    wait_for(&far, at(false), "/", |status, _| status == 200);
    // The node as a whole: a node that will go is left by balancers, and lives on.
    let health = SocketAddr::new(address(0, true), NODE_HEALTH);
    for path in ["/healthz", "/livez", "/readyz"] {
        wait_for(&far, health, path, |status, _| status == 200);
    }
    let leaving = "spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}\nstatus:";
    let objects = std::fs::read_to_string(cluster.directory().file("objects").join("cluster.yaml")).expect("objects");
    let (own, tainted) = (node_object(0), node_object(0).replacen("status:", leaving, 1));
    assert!(objects.contains(&own) && own != tainted, "{own}");
    cluster.directory().write_objects("cluster.yaml", &objects.replace(&own, &tainted));
    wait_for(&far, health, "/healthz", |status, _| status == 503);
    wait_for(&far, health, "/livez", |status, _| status == 200);
    cluster.assert_sound();
}
