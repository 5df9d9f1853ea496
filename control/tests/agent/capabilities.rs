//! What a runtime asks for by capabilities: ports of the host.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use millrace_cni::spec::code;
use millrace_control::api::model::{IpamReport, ServiceReport};
use serde_json::{Value, json};

use crate::agent_process::Agent;
use crate::cluster::{Cluster, Underlay};
use crate::directory::Directory;
use crate::host::node;
use crate::pod::{Answer, Pod};
use crate::services::{HOST_PORT, LOOPBACK_PORT, OPTIONS, PORT, Server, call, host_port_object};
use crate::traffic::Endpoint;

const PATIENCE: Duration = Duration::from_secs(10);

/// A mapping as containerd writes it.
fn mapping(host_port: u16, protocol: &str, host_address: &str) -> Value {
    json!({"HostPort": host_port, "ContainerPort": PORT, "Protocol": protocol, "HostIP": host_address})
}

fn with(mappings: &[Value]) -> Value {
    json!({"runtimeConfig": {"portMappings": mappings}})
}

/// Ports of the host in force, each with the number of addresses that it is reached at, sorted.
fn in_force(agent: &Agent) -> Vec<(String, String, usize)> {
    let services: Vec<ServiceReport> = agent.client().show("services").expect("report");
    let of_pods = services.into_iter().filter(|service| service.name.starts_with("pod "));
    let mut all: Vec<_> = of_pods.map(|service| (service.name, service.protocol, service.frontends.len())).collect();
    all.sort();
    all
}

fn assert_taken(answer: &Answer, place: &str, holder: &str) {
    assert_eq!(answer.code(), Some(u64::from(code::HOST_PORT_TAKEN)), "{}", answer.document);
    let text = answer.document["msg"].as_str().unwrap_or_default();
    assert!(text.contains(place) && text.contains(holder), "{text}");
}

/// Asks until the answer, or the lack of one, is as wanted.
fn wait_for_answer(from: &Endpoint, to: SocketAddr, tcp: bool, wanted: Option<&str>) {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = call(from, to, tcp);
        if answer.as_deref().ok() == wanted {
            return;
        }
        assert!(Instant::now() < end, "{to} (TCP: {tcp}) answers {answer:?}, not {wanted:?}");
    }
}

pub(crate) fn ports_of_the_host_lead_where_the_runtime_says() {
    let Cluster { agents: [first, other], underlay } = Cluster::on(Underlay::create(1), OPTIONS);
    let directory = &underlay.directory;
    let a1 = Pod::create("a1", "a");
    let (own, caller) = (node(&underlay, 0), node(&underlay, 1));
    let [ipv4, _] = crate::cluster::NODES[0].1;
    let asked = with(&[mapping(HOST_PORT, "tcp", ""), mapping(HOST_PORT, "UDP", ""), mapping(9000, "tcp", ipv4)]);
    let added = a1.call_with("ADD", directory, &asked);
    let end = Endpoint { name: "a1".into(), namespace: a1.namespace.handle().clone(), addresses: added.addresses() };
    let server = Server::start(&end);
    let at = |ipv4, port| SocketAddr::new(own.address(ipv4), port);
    let seen = |ipv4| format!("a1 {}", caller.address(ipv4));
    let served = || {
        for ipv4 in [true, false] {
            for tcp in [true, false] {
                wait_for_answer(&caller, at(ipv4, HOST_PORT), tcp, Some(&seen(ipv4)));
            }
        }
        wait_for_answer(&caller, at(true, 9000), true, Some(&seen(true)));
    };
    served();
    // Each port in each family, at one address of the family.
    let entry = |port: u16, protocol: &str| (format!("pod default/a1:{port}"), protocol.to_owned(), 1);
    let expected = || {
        [(HOST_PORT, "tcp"), (HOST_PORT, "tcp"), (HOST_PORT, "udp"), (HOST_PORT, "udp"), (9000, "tcp")]
            .map(|(port, protocol)| entry(port, protocol))
    };
    assert_eq!(in_force(&first), expected());

    // The pod's object says the same again, as where a kubelet runs: nothing is there twice, nobody lost a port, and what the
    // object has beyond is there too.
    directory.write_objects("pod.yaml", &host_port_object(&end, "a"));
    let mut both = [expected().as_slice(), &[entry(LOOPBACK_PORT, "tcp"), entry(LOOPBACK_PORT, "udp")]].concat();
    both.sort();
    let end_of_patience = Instant::now() + PATIENCE;
    while in_force(&first) != both {
        assert!(Instant::now() < end_of_patience, "{:?}", in_force(&first));
        std::thread::sleep(Duration::from_millis(20));
    }
    first.assert_sound();
    let check = || a1.call_with("CHECK", directory, &json!({"prevResult": added.document}));
    assert!(check().success, "{}", check().document);

    // The object goes, the agent dies: what the runtime said is in the record.
    std::fs::remove_file(directory.file("objects/pod.yaml")).expect("removed");
    first.kill();
    let first = underlay.start(0, OPTIONS);
    served();
    assert_eq!(in_force(&first), expected());
    assert!(check().success, "{}", check().document);
    first.assert_sound();

    a1.delete(directory);
    assert_eq!(in_force(&first), []);
    drop(server);
    // What listens at the node's own port is reached again.
    let node_itself = Endpoint { name: "a".into(), ..own.clone() };
    let listen = || std::net::TcpListener::bind(at(true, HOST_PORT));
    let listener = node_itself.namespace.enter(listen).expect("entered").expect("bound");
    let connect = || std::net::TcpStream::connect_timeout(&at(true, HOST_PORT), PATIENCE);
    caller.namespace.enter(connect).expect("entered").expect("connected");
    assert!(listener.accept().is_ok());
    first.assert_sound();
    other.assert_sound();
}

/// A Service at this node port, in force.
fn write_service(agent: &Agent, directory: &Directory, node_port: u16) {
    let service = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: default}}, spec: {{type: NodePort, \
         clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], ports: [{{port: 80, nodePort: {node_port}}}]}}}}\n"
    );
    directory.write_objects("service.yaml", &service);
    let end = Instant::now() + PATIENCE;
    loop {
        let services: Vec<ServiceReport> = agent.client().show("services").expect("report");
        let is_there = |service: &ServiceReport| {
            service.name.starts_with("default/web") && service.frontends.iter().any(|way| way.port == node_port)
        };
        if services.iter().any(is_there) {
            return;
        }
        assert!(Instant::now() < end, "the Service is not in force: {services:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn a_port_of_the_host_has_one_pod() {
    let Cluster { agents: [first, other], underlay } = Cluster::on(Underlay::create(1), OPTIONS);
    let directory = &underlay.directory;
    let [a1, a2, a3] = ["a1", "a2", "a3"].map(|name| Pod::create(name, "a"));
    let add = |pod: &Pod, mappings: &[Value]| pod.call_with("ADD", directory, &with(mappings));
    let added = add(&a1, &[mapping(HOST_PORT, "tcp", "")]);
    assert!(added.success, "{}", added.document);
    let taken = add(&a2, &[mapping(9000, "tcp", ""), mapping(HOST_PORT, "tcp", "192.0.2.1")]);
    assert_taken(&taken, "192.0.2.1:8090 TCP", "Pod default/a1");
    assert!(a2.interface().is_none());
    let held = || first.client().show::<IpamReport>("ipam").expect("report").addresses.len();
    let of_one = held();

    // Another protocol, and a node port of a Service.
    assert!(add(&a2, &[mapping(HOST_PORT, "udp", "")]).success);
    write_service(&first, directory, 30_090);
    assert_taken(&add(&a3, &[mapping(30_090, "tcp", "")]), "192.0.2.1:30090 TCP", "Service default/web");
    assert!(add(&a3, &[mapping(30_090, "sctp", "")]).success);
    [&a2, &a3].iter().for_each(|pod| pod.delete(directory));
    assert_eq!(held(), of_one);

    // Of two calls at once one gets the port, whoever is first.
    for _ in 0..5 {
        let asked = with(&[mapping(9001, "tcp", "")]);
        let answers = std::thread::scope(|scope| {
            let calls = [&a2, &a3].map(|pod| scope.spawn(|| pod.call_with("ADD", directory, &asked)));
            calls.map(|call| call.join().expect("a call"))
        });
        assert_eq!(answers.iter().filter(|answer| answer.success).count(), 1);
        let refused = answers.iter().find(|answer| !answer.success).expect("one is refused");
        assert_taken(refused, "9001", "");
        [&a2, &a3].iter().for_each(|pod| pod.delete(directory));
    }

    // A Service that comes later has its node port before any pod, and CHECK says so.
    let check = || a1.call_with("CHECK", directory, &json!({"prevResult": added.document}));
    assert!(check().success, "{}", check().document);
    write_service(&first, directory, HOST_PORT);
    let lost = check();
    assert_eq!(lost.code(), Some(u64::from(code::ATTACHMENT_BROKEN)), "{}", lost.document);
    let text = lost.document["msg"].as_str().unwrap_or_default();
    assert!(text.contains("192.0.2.1:8090 TCP of the host does not lead to the pod"), "{text}");
    std::fs::remove_file(directory.file("objects/service.yaml")).expect("removed");
    first.wait_for_status(|status| status.problems.is_empty());
    assert!(check().success, "{}", check().document);

    // What the runtime has forgotten leaves its port to the next.
    let collected = a1.call_with("GC", directory, &json!({"cni.dev/valid-attachments": []}));
    assert!(collected.success, "{}", collected.document);
    assert_eq!(in_force(&first), []);
    assert!(add(&a2, &[mapping(HOST_PORT, "tcp", "")]).success);
    a2.delete(directory);
    assert_eq!(held(), 0);
    first.assert_sound();
    other.assert_sound();
}
