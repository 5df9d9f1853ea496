//! Pods that stand on the nodes' own wire: what macvlan does, with the host reachable too.

use std::net::IpAddr;

use ipnet::IpNet;
use millrace_control::kernel::{NamespaceHandle, Netlink};

use crate::agent_process::{Agent, AgentOptions};
use crate::cluster::{Cluster, NODES, UPLINK};
use crate::host;
use crate::pod::Pod;
use crate::traffic::{self, Endpoint};

/// The wire that joins the nodes, as a network, with some of its addresses for pods.
const NETWORK: &str = "\
apiVersion: millrace.dev/v1alpha1
kind: Network
metadata: {name: lan}
spec:
  interface: up0
  subnets:
  - {cidr: 192.0.2.0/24}
  - {cidr: '2001:db8::/64', gateway: '2001:db8::2'}
---
apiVersion: millrace.dev/v1alpha1
kind: IpPool
metadata: {name: lan-ipv4}
spec: {cidr: 192.0.2.64/26, blockSize: 29, network: lan}
---
apiVersion: millrace.dev/v1alpha1
kind: IpPool
metadata: {name: lan-ipv6}
spec: {cidr: '2001:db8::1:0/112', blockSize: 124, network: lan}
";

fn pod_object(name: &str, node: &str, network: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default, annotations: \
         {{millrace.dev/network: {network}}}}}\nspec: {{nodeName: {node}, containers: []}}\n"
    )
}

/// The MAC address that a kernel has for an address on its wire.
fn neighbour(namespace: &NamespaceHandle, address: IpAddr) -> Option<millrace_engine::packet::Mac> {
    let mut netlink = Netlink::open_in(namespace).expect("netlink");
    let link = netlink.existing_link(UPLINK).expect("the wire").index;
    let known = netlink.neighbours().expect("neighbours");
    known.iter().find(|neighbour| neighbour.link == link && neighbour.address == address)?.mac
}

fn routes_to_pods(namespace: &NamespaceHandle) -> Vec<IpNet> {
    let mut netlink = Netlink::open_in(namespace).expect("netlink");
    let link = netlink.existing_link("mr-lan").expect("the host's interface").index;
    let routes = netlink.own_routes().expect("routes");
    routes.iter().filter(|route| route.link == Some(link)).map(|route| route.destination).collect()
}

pub(crate) fn pods_stand_on_the_nodes_wire() {
    let Cluster { agents: [first, other], underlay } = Cluster::create(1, AgentOptions::default());
    let directory = &underlay.directory;
    let named = [("l1", "a"), ("l2", "a"), ("m1", "b")];
    let objects: String = named.iter().map(|(name, node)| pod_object(name, node, "lan")).collect();
    directory.write_objects("network.yaml", &[NETWORK.to_owned(), objects].concat());
    // The host's port, the uplink, and the network's two.
    let has_network = |agent: &Agent| drop(agent.wait_for_status(|status| status.ports >= 4));
    [&first, &other].into_iter().for_each(has_network);
    let pods = named.map(|(name, node)| Pod::create(name, node));
    let added = pods[0].call("ADD", directory);
    let l1 =
        Endpoint { name: "l1".into(), namespace: pods[0].namespace.handle().clone(), addresses: added.addresses() };
    let [l2, m1] = [1, 2].map(|number: usize| pods[number].add(directory));
    let is_as_added = || {
        let answer = pods[0].call_with("CHECK", directory, &serde_json::json!({"prevResult": added.document}));
        assert!(answer.success, "{}", answer.document);
    };
    for address in l1.addresses.iter().chain(&l2.addresses).chain(&m1.addresses) {
        let inside = ["192.0.2.64/26", "2001:db8::1:0/112"].map(|prefix| prefix.parse::<IpNet>().expect("prefix"));
        assert!(inside.iter().any(|prefix| prefix.contains(address)), "{address}");
    }
    let nodes = [host::node(&underlay, 0), host::node(&underlay, 1)];
    // Here, there, a machine on the wire that knows nothing of pods, and the own host.
    for end in [&l2, &m1, &nodes[1], &nodes[0]] {
        traffic::check(&l1, end);
    }
    traffic::check(&m1, &nodes[0]);
    for ipv4 in [true, false] {
        let seen = neighbour(&nodes[1].namespace, l1.address(ipv4));
        assert_eq!(seen, pods[0].interface().map(|link| link.mac), "the pod stands on the wire itself");
    }
    // The wire is the host's as before, and pods of the segment are as before.
    traffic::check(&nodes[0], &nodes[1]);
    let tunnelled = [("a1", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
    let [a1, b1] = [0, 1].map(|number: usize| tunnelled[number].add(directory));
    traffic::udp(&a1, &b1, true);
    is_as_added();
    let routes = routes_to_pods(&nodes[0].namespace);
    assert_eq!(routes.len(), 4, "to each address of a pod here: {routes:?}");

    first.kill();
    let first = underlay.start(0, AgentOptions::default());
    has_network(&first);
    traffic::check(&l1, &nodes[0]);
    traffic::check(&m1, &l1);
    is_as_added();

    pods[1].delete(directory);
    let mut tries = 0..500;
    while routes_to_pods(&nodes[0].namespace).len() > 2 {
        assert!(tries.next().is_some(), "the host still has routes to a pod that went");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    traffic::udp(&l1, &m1, false);
    [&first, &other].into_iter().for_each(Agent::assert_sound);
}

pub(crate) fn a_network_that_is_not_there_is_named() {
    let Cluster { agents: [first, _other], underlay } = Cluster::create(1, AgentOptions::default());
    let directory = &underlay.directory;
    let absent = NETWORK.replace("interface: up0", "interface: eth7");
    let objects = [absent, pod_object("lost", "a", "elsewhere"), pod_object("early", "a", "lan")].concat();
    directory.write_objects("network.yaml", &objects);
    let told = |status: &millrace_control::api::model::StatusReport| {
        status
            .problems
            .iter()
            .any(|problem| problem.message.contains("network-lan-wire") && problem.message.contains("eth7"))
    };
    first.wait_for_status(told);
    let (lost, early) = (Pod::create("lost", "a"), Pod::create("early", "a"));
    let answer = lost.call("ADD", directory);
    assert_eq!((answer.success, answer.code()), (false, Some(11)), "{}", answer.document);
    assert!(answer.document["msg"].as_str().is_some_and(|text| text.contains("elsewhere")), "{}", answer.document);
    let answer = early.call("ADD", directory);
    assert_eq!((answer.success, answer.code()), (false, Some(11)), "{}", answer.document);
    assert!(answer.document["msg"].as_str().is_some_and(|text| text.contains("network lan")), "{}", answer.document);
    assert!(early.interface().is_none(), "nothing is left behind");
    // The interface comes, and the pod can be plugged in.
    let mut netlink = Netlink::open_in(underlay.nodes[0].handle()).expect("netlink");
    netlink.create_veth(("eth7", None), ("eth8", None)).expect("veth");
    first.wait_for_status(|status| status.problems.is_empty());
    let end = early.add(directory);
    assert_eq!(end.addresses.len(), 2, "one of each family: {:?} on {}", end.addresses, NODES[0].0);
    early.delete(directory);
}
