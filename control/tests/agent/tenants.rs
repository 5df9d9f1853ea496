//! Tenants on two real nodes: networks with the same addresses at once, a broadcast domain over both nodes, and pods with
//! interfaces in several networks.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use millrace_cni::spec::NetworkResult;
use millrace_control::kernel::Netlink;
use serde_json::{Value, json};

use crate::agent_process::{Agent, AgentOptions};
use crate::cluster::Cluster;
use crate::pod::{Answer, Pod};
use crate::traffic::{self, Endpoint};

const NETWORKS: &str = "\
apiVersion: millrace.dev/v1alpha1
kind: Network
metadata: {name: blue}
spec: {vni: 5001}
---
apiVersion: millrace.dev/v1alpha1
kind: Network
metadata: {name: red}
spec: {vni: 5002}
---
apiVersion: millrace.dev/v1alpha1
kind: Network
metadata: {name: lan}
spec:
  vni: 6001
  layer: 2
  subnets: [{cidr: 172.16.0.0/16}, {cidr: 'fd16::/64'}]
";

/// Pools of both families for each of the networks; those of blue and red are the pods' own prefixes.
fn pools() -> String {
    let pool = |network: &str, family: &str, cidr: &str| {
        format!(
            "---\napiVersion: millrace.dev/v1alpha1\nkind: IpPool\nmetadata: {{name: {network}-{family}}}\n\
             spec: {{cidr: '{cidr}', network: {network}}}\n"
        )
    };
    let tenants = ["blue", "red"].map(|name| pool(name, "ipv4", "10.1.0.0/16") + &pool(name, "ipv6", "fd00:1::/64"));
    tenants.concat() + &pool("lan", "ipv4", "172.16.0.0/16") + &pool("lan", "ipv6", "fd16::/112")
}

fn pod_object(name: &str, node: &str, annotations: &[(&str, &str)]) -> String {
    let annotations: Vec<String> =
        annotations.iter().map(|(key, value)| format!("millrace.dev/{key}: '{value}'")).collect();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, annotations: {{{}}}}}\n\
         spec: {{nodeName: {node}, containers: []}}\n",
        annotations.join(", ")
    )
}

/// Waits until both agents know the networks and their pools.
fn known(agents: [&Agent; 2]) {
    for agent in agents {
        let shown = || String::from_utf8_lossy(&agent.program(&["show", "ipam"]).stdout).into_owned();
        let mut tries = 0..500;
        while !["blue", "red", "lan"].iter().all(|name| shown().contains(&format!("pods of {name}"))) {
            assert!(tries.next().is_some(), "{}", shown());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// That nothing gets from one to an address that its own network does not have or has elsewhere.
fn never_arrives(from: &Endpoint, at: &Endpoint, ipv4: bool) {
    let (sender, receiver) = (from.udp(ipv4), at.udp(ipv4));
    receiver.set_read_timeout(Some(Duration::from_millis(300))).expect("timeout");
    let to = receiver.local_addr().expect("bound");
    for _ in 0..3 {
        // A refusal by an ICMP error comes with the next call.
        let _ = sender.send_to(b"lost", to);
    }
    let mut buffer = [0; 16];
    assert!(receiver.recv(&mut buffer).is_err(), "{} reaches {}", from.name, at.name);
}

pub(crate) fn tenants_share_addresses_and_never_meet() {
    let Cluster { agents: [first, other], underlay } = Cluster::create(1, AgentOptions::default());
    let directory = &underlay.directory;
    // The very addresses, so that the tenants' are the same.
    let named = [
        ("blue-a", "a", "blue", "10.1.0.5,fd00:1::5"),
        ("blue-b", "b", "blue", "10.1.9.5,fd00:1::9:5"),
        ("red-a", "a", "red", "10.1.0.5,fd00:1::5"),
        ("red-b", "b", "red", "10.1.9.5,fd00:1::9:5"),
        ("plain-a", "a", "pods", "10.1.77.5,fd00:1::77:5"),
    ];
    let object = |(name, node, network, addresses): (&str, &str, &str, &str)| {
        pod_object(name, node, &[("network", network), ("ip", addresses)])
    };
    let objects: String = named.map(object).concat();
    directory.write_objects("tenants.yaml", &[NETWORKS.to_owned(), pools(), objects].concat());
    known([&first, &other]);
    let pods = named.map(|(name, node, ..)| Pod::create(name, node));
    let [blue_a, blue_b, red_a, red_b, plain_a] = [0, 1, 2, 3, 4].map(|number: usize| pods[number].add(directory));
    for (one, twin) in [(&blue_a, &red_a), (&blue_b, &red_b)] {
        assert_eq!(one.addresses, twin.addresses, "two tenants hand out the same addresses");
    }
    traffic::check(&blue_a, &blue_b);
    traffic::check(&red_a, &red_b);
    for ipv4 in [true, false] {
        let before = |endpoint: &Endpoint| endpoint.address(ipv4);
        assert_ne!(before(&blue_a), before(&blue_b));
        // The very address is there in the other network, and a socket waits at it.
        never_arrives(&plain_a, &blue_b, ipv4);
        never_arrives(&blue_a, &plain_a, ipv4);
    }
    // Both at once, each to its own.
    let sockets = [(&blue_a, &blue_b), (&red_a, &red_b)].map(|(client, server)| (client.udp(true), server.udp(true)));
    for (number, (client, server)) in sockets.iter().enumerate() {
        server.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        client.send_to(&[number as u8], server.local_addr().expect("bound")).expect("sent");
    }
    for (number, (_, server)) in sockets.iter().enumerate() {
        let mut buffer = [0xff; 4];
        assert_eq!(server.recv(&mut buffer).expect("received"), 1);
        assert_eq!(buffer[0], number as u8, "what was sent in this network");
    }
    let shown = first
        .wait_for_routes(|routes| ["blue", "red"].iter().all(|name| routes.iter().any(|route| route.segment == *name)));
    assert!(shown.iter().any(|route| route.segment == "pods"));

    first.kill();
    let first = underlay.start(0, AgentOptions::default());
    traffic::udp(&blue_b, &blue_a, true);
    traffic::udp(&red_b, &red_a, false);
    never_arrives(&plain_a, &blue_b, true);
    let answer = pods[0].call("DEL", directory);
    assert!(answer.success, "{}", answer.document);
    traffic::udp(&red_a, &red_b, true);
    [&first, &other].into_iter().for_each(Agent::assert_sound);
}

/// The addresses of an interface of a result.
fn addresses_of(answer: &Answer, interface: &str) -> Vec<IpAddr> {
    assert!(answer.success, "{}", answer.document);
    let result: NetworkResult = serde_json::from_value(answer.document.clone()).expect("a result");
    let index = result.interfaces.iter().position(|known| known.name == interface);
    let index = index.unwrap_or_else(|| panic!("no interface {interface}: {}", answer.document)) as u64;
    let of_interface = result.ips.iter().filter(|ip| ip.interface == Some(index));
    of_interface.map(|ip| ip.address.parse::<IpNet>().expect("address").addr()).collect()
}

fn endpoint(pod: &Pod, answer: &Answer, interface: &str) -> Endpoint {
    let addresses = addresses_of(answer, interface);
    Endpoint { name: format!("{} {interface}", pod.name), namespace: pod.namespace.handle().clone(), addresses }
}

fn has_link(pod: &Pod, name: &str) -> bool {
    Netlink::open_in(pod.namespace.handle()).expect("netlink").link(name).expect("asked").is_some()
}

pub(crate) fn a_pod_has_interfaces_in_several_networks() {
    let Cluster { agents: [first, other], underlay } = Cluster::create(1, AgentOptions::default());
    let directory = &underlay.directory;
    // Blue has addresses of its own here, or the pods' would be reached by two ways.
    let pools = pools().replace("10.1.0.0/16', network: blue", "10.9.0.0/16', network: blue");
    let pools = pools.replace("fd00:1::/64', network: blue", "fd09::/64', network: blue");
    let annotations = [("networks", "blue, lan@lan0")];
    let objects = pod_object("many-a", "a", &annotations) + &pod_object("many-b", "b", &annotations);
    let wrong = pod_object("wrong", "a", &[("networks", "blue,nowhere")]);
    directory.write_objects("tenants.yaml", &[NETWORKS.to_owned(), pools, objects, wrong].concat());
    known([&first, &other]);
    let pods = [("many-a", "a"), ("many-b", "b")].map(|(name, node)| Pod::create(name, node));
    let answers = [0, 1].map(|number: usize| pods[number].call("ADD", directory));
    for interface in ["eth0", "net1", "lan0"] {
        let [one, two] = [0, 1].map(|number: usize| endpoint(&pods[number], &answers[number], interface));
        assert_eq!(one.addresses.len(), 2, "{interface}: {:?}", one.addresses);
        traffic::check(&one, &two);
    }
    // A trace begins at the interface that is named.
    let to = format!("{}/icmp", addresses_of(&answers[1], "net1")[0]);
    let traced = first.program(&["trace", "--from", "default/many-a net1", "--to", &to]).stdout;
    let traced = String::from_utf8_lossy(&traced);
    assert!(traced.contains("in segment blue") && traced.contains("vni 5001"), "{traced}");
    // The default route is the first interface's.
    let routes = Netlink::open_in(pods[0].namespace.handle()).expect("netlink").own_routes().expect("routes");
    let eth0 = pods[0].interface().expect("eth0").index;
    let defaults: Vec<_> = routes.iter().filter(|route| route.destination.prefix_len() == 0).collect();
    assert!(defaults.len() == 2 && defaults.iter().all(|route| route.link == Some(eth0)), "{defaults:?}");

    let check =
        |number: usize| pods[number].call_with("CHECK", directory, &json!({"prevResult": answers[number].document}));
    assert!(check(0).success, "{}", check(0).document);
    first.kill();
    let first = underlay.start(0, AgentOptions::default());
    first.wait_for_status(|status| status.pods == 3);
    for interface in ["eth0", "net1", "lan0"] {
        let [one, two] = [0, 1].map(|number: usize| endpoint(&pods[number], &answers[number], interface));
        traffic::udp(&one, &two, true);
    }
    assert!(check(0).success, "{}", check(0).document);
    Netlink::open_in(pods[0].namespace.handle()).expect("netlink").delete_link("net1").expect("deleted");
    let broken = check(0);
    assert_eq!((broken.success, broken.code()), (false, Some(101)), "{}", broken.document);
    assert!(broken.document["msg"].as_str().is_some_and(|text| text.contains("net1")), "{}", broken.document);

    // The runtime knows of the first interface, and by it of the others.
    let valid = json!({"cni.dev/valid-attachments": [{"containerID": "container-many-b", "ifname": "eth0"}]});
    let collected = pods[1].call_with("GC", directory, &valid);
    assert!(collected.success, "{}", collected.document);
    assert!(["eth0", "net1", "lan0"].iter().all(|name| has_link(&pods[1], name)));
    pods[0].delete(directory);
    pods[1].delete(directory);
    for pod in &pods {
        assert!(["eth0", "net1", "lan0"].iter().all(|name| !has_link(pod, name)), "{}", pod.name);
    }
    // All or none: what was made is taken away again when one cannot be.
    let wrong = Pod::create("wrong", "a");
    let refused = wrong.call("ADD", directory);
    assert_eq!((refused.success, refused.code()), (false, Some(11)), "{}", refused.document);
    assert!(refused.document["msg"].as_str().is_some_and(|text| text.contains("nowhere")), "{}", refused.document);
    assert!(["eth0", "net1", "net2"].iter().all(|name| !has_link(&wrong, name)));
    let held = |agent: &Agent| agent.status().pods;
    assert_eq!([held(&first), held(&other)], [0, 0]);
    let _: Value = refused.document;
    [&first, &other].into_iter().for_each(Agent::assert_sound);
}
