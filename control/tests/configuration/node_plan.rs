//! What a node needs, as one line for each route, peer and port.

use std::collections::BTreeMap;

use millrace_control::cluster::{Cluster, InterfaceName, NetworkName};
use millrace_control::plan::{
    AttachedPod, LocalHost, LocalView, OutsidePath, POD_SEGMENT, Planned, UnderlayPath, plan, underlay_destinations,
    wanted_uplinks,
};
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::tables::{Bandwidth, PortRole, RateLimit, RouteTarget};

use crate::support::{address, attached, block, cluster, local, node, node_name, observe, path, pool};

fn routes(planned: &Planned) -> Vec<String> {
    let routes = &planned.plan.segments[&POD_SEGMENT].routes;
    let line = |(prefix, route): (&ipnet::IpNet, &millrace_engine::tables::Route)| {
        let target = match &route.target {
            RouteTarget::Direct { peer } => format!("directly {peer}"),
            RouteTarget::Port { port, mac } => format!("port {} {mac}", port.0),
            RouteTarget::Tunnel { peer, mac } => format!("tunnel {peer} {mac}"),
            RouteTarget::Outside { port, gateway, source, mtu } => {
                let by = gateway.map_or("the link".to_owned(), |gateway| gateway.to_string());
                format!("port {} by {by} as {source} mtu {mtu}", port.0)
            }
            RouteTarget::Unreachable => "unreachable".to_owned(),
        };
        format!("{prefix} {target} ({})", route.name)
    };
    routes.iter().map(line).collect()
}

fn peers(planned: &Planned) -> Vec<String> {
    let line = |peer: &millrace_engine::tables::Peer| {
        let hop = peer.next_hop.map_or("unresolved".to_owned(), |hop| hop.destination_mac.to_string());
        format!("{} {} from {} via {hop} mtu {}", peer.name, peer.address, peer.source, peer.mtu)
    };
    planned.plan.tunnels.peers.values().map(line).collect()
}

fn problems(planned: &Planned) -> Vec<String> {
    planned.problems.iter().map(ToString::to_string).collect()
}

fn two_nodes() -> Cluster {
    cluster(
        &(node("a", &["192.0.2.1", "2001:db8::1"])
            + &node("b", &["192.0.2.2", "2001:db8::2"])
            + &pool("four", "10.1.0.0/16")
            + &block("10-1-0-0-26", "10.1.0.0/26", "four", "a")
            + &block("10-1-0-64-26", "10.1.0.64/26", "four", "b")
            + &block("six", "fd00::40/122", "four-six", "b")),
    )
}

fn host(own: &[&str], others: &[&str]) -> LocalHost {
    LocalHost {
        port: PortIndex(9),
        interface: InterfaceName::new("millrace0").expect("interface"),
        mac: Mac([2, 0, 0, 0, 9, 9]),
        mtu: 1450,
        own_addresses: own.iter().map(|text| address(text)).collect(),
        addresses: own.iter().chain(others).map(|text| address(text)).collect(),
    }
}

#[test]
fn the_host_has_an_address_of_its_own_and_routes_pods_to_it() {
    let objects = two_nodes();
    let mut view = local(&[attached(3, "web", &["10.1.0.1"])], &["192.0.2.1"]);
    assert_eq!(plan(&objects, &view).plan.host.addresses, [address("10.1.0.0")]);
    view.host = Some(host(&["10.7.7.7"], &["192.0.2.1", "10.1.0.1"]));
    let planned = plan(&objects, &view);
    let of_host: Vec<_> = routes(&planned).into_iter().filter(|line| line.ends_with("(this node)")).collect();
    let mac = "port 9 02:00:00:00:09:09 (this node)";
    assert_eq!(of_host, [format!("10.1.0.0/32 {mac}"), format!("192.0.2.1/32 {mac}")], "what it loses is not routed");
    assert!(problems(&planned)[0].contains("10.1.0.1/32 belongs to pod default/web already"), "{planned:?}");
    let prefixes: Vec<_> = planned.plan.host.prefixes.iter().map(ToString::to_string).collect();
    assert_eq!(prefixes, ["10.1.0.0/16"], "the widest, and no IPv6 without an address");
    assert!(!planned.plan.host.lacks_block);
    let PortRole::Host(role) = &planned.plan.ports[&PortIndex(9)].role else { panic!("{planned:?}") };
    assert_eq!(role.addresses, ["10.1.0.0", "10.1.0.1", "192.0.2.1"].map(address));
}

/// Routes of the host by its uplinks lead outside, behind everything that the cluster says; without a port of the host none
/// does, since answers could not be told from what is the host's.
#[test]
fn the_hosts_routes_lead_outside() {
    let mut view = local(&[attached(3, "web", &["10.1.0.1"])], &["192.0.2.1", "2001:db8::1"]);
    let path = |gateway: Option<&str>, source| OutsidePath {
        port: PortIndex(0),
        gateway: gateway.map(address),
        source: address(source),
        mtu: 1400,
    };
    let elsewhere = OutsidePath { port: PortIndex(7), ..path(None, "192.0.2.1") };
    let routes_of_host = [
        ("0.0.0.0/0", path(Some("192.0.2.254"), "192.0.2.1")),
        ("192.0.2.0/24", path(None, "192.0.2.1")),
        ("10.1.0.64/26", path(Some("192.0.2.9"), "192.0.2.1")),
        ("198.51.100.0/24", elsewhere),
        ("fe80::/64", path(None, "2001:db8::1")),
        ("2001:db8::/64", path(None, "2001:db8::1")),
    ];
    view.outside.routes = routes_of_host.map(|(prefix, path)| (prefix.parse().expect("prefix"), path)).into();
    view.outside.neighbours = BTreeMap::from([((PortIndex(0), address("192.0.2.254")), Mac([2, 0, 0, 0, 0, 9]))]);
    view.exempt = vec!["198.51.100.9/24".parse().expect("prefix")];
    let without = plan(&two_nodes(), &view).plan;
    assert_eq!((without.outside.sources.len(), without.outside.neighbours.len()), (0, 0));
    view.host = Some(host(&["10.1.0.0"], &["192.0.2.1"]));
    let planned = plan(&two_nodes(), &view);
    let outside: Vec<_> = routes(&planned).into_iter().filter(|line| line.contains("(outside")).collect();
    assert_eq!(
        outside,
        [
            "0.0.0.0/0 port 0 by 192.0.2.254 as 192.0.2.1 mtu 1400 (outside, by a router)",
            "192.0.2.0/24 port 0 by the link as 192.0.2.1 mtu 1400 (outside, on the link)",
            "2001:db8::/64 port 0 by the link as 2001:db8::1 mtu 1400 (outside, on the link)",
        ]
    );
    let sources: Vec<_> = planned.plan.outside.sources.iter().map(ToString::to_string).collect();
    assert_eq!(sources, ["192.0.2.1", "2001:db8::1"]);
    let exempt: Vec<_> = planned.plan.outside.exempt.iter().map(ToString::to_string).collect();
    assert_eq!((exempt, planned.plan.outside.neighbours.len()), (vec!["198.51.100.0/24".to_owned()], 1));
}

/// A block whose name sorts first comes beside the one that the host's address is of; then that one goes.
#[test]
fn the_hosts_address_stays_as_long_as_its_block() {
    let blocks = |names: &[(&str, &str)]| {
        let text: String = names.iter().map(|(name, cidr)| block(name, cidr, "four", "a")).collect();
        cluster(&(node("a", &["192.0.2.1"]) + &pool("four", "10.1.0.0/16") + &pool("six", "fd00::/64") + &text))
    };
    let mut view = local(&[], &["192.0.2.1"]);
    view.host = Some(host(&["10.1.0.64"], &["192.0.2.1"]));
    let (first, second) = (("10-1-0-0-26", "10.1.0.0/26"), ("10-1-0-64-26", "10.1.0.64/26"));
    let both = plan(&blocks(&[first, second]), &view);
    assert_eq!(both.plan.host.addresses, [address("10.1.0.64")]);
    assert_eq!(both.plan.segments[&POD_SEGMENT].router_addresses, both.plan.host.addresses);
    assert!(both.plan.host.lacks_block, "there is a pool of IPv6");
    assert_eq!(plan(&blocks(&[first]), &view).plan.host.addresses, [address("10.1.0.0")]);
    assert!(plan(&blocks(&[]), &view).plan.host.addresses.is_empty());
}

#[test]
fn two_nodes_with_a_pod() {
    let mut view = local(&[attached(3, "web", &["10.1.0.1", "fd00::1"])], &["192.0.2.1", "2001:db8::1"]);
    view.underlay = BTreeMap::from([(address("192.0.2.2"), path(0, "192.0.2.1"))]);
    let planned = plan(&two_nodes(), &view);
    assert_eq!(problems(&planned), Vec::<String>::new());
    let b = two_nodes().nodes[&node_name("b")].tunnel_mac();
    assert_eq!(
        routes(&planned),
        [
            "10.1.0.0/26 unreachable (block 10-1-0-0-26 of this node)".to_owned(),
            "10.1.0.1/32 port 3 02:00:00:00:01:03 (pod default/web)".to_owned(),
            format!("10.1.0.64/26 tunnel 192.0.2.2 {b} (block 10-1-0-64-26 of node b)"),
            "fd00::1/128 port 3 02:00:00:00:01:03 (pod default/web)".to_owned(),
            format!("fd00::40/122 tunnel 192.0.2.2 {b} (block six of node b)"),
        ]
    );
    assert_eq!(peers(&planned), ["b 192.0.2.2 from 192.0.2.1 via 02:00:00:00:00:fe mtu 1500"]);
    assert_eq!(planned.plan.pod_mtu, 1450);
    let ports: Vec<_> = planned.plan.ports.values().map(|port| (port.index.0, port.name.as_ref(), port.mtu)).collect();
    assert_eq!(ports, [(0, "eth1", 1500), (3, "default/web", 1450)]);
    assert_eq!(underlay_destinations(&two_nodes(), &view), [address("192.0.2.2")]);
    let ends: Vec<_> = planned.plan.tunnels.local.iter().map(|end| end.address.to_string()).collect();
    assert_eq!(ends, ["192.0.2.1", "2001:db8::1"]);
}

/// A pod keeps the MTU that it was plugged in with; nobody else would say that its long packets go astray.
#[test]
fn a_pod_with_more_than_is_carried_is_named() {
    let mut view = local(&[attached(3, "web", &["10.1.0.1", "fd00::1"])], &["192.0.2.1", "2001:db8::1"]);
    view.uplinks.values_mut().for_each(|uplink| uplink.mtu = 1400);
    let planned = plan(&two_nodes(), &view);
    let found: Vec<_> = planned.problems.iter().filter(|problem| problem.kind == Some("pod_mtu")).collect();
    assert_eq!(found.len(), 1, "{:?}", planned.problems);
    assert_eq!(
        found[0].to_string(),
        "Pod default/web: eth0 has the MTU 1450, and 1350 is carried by now: make the pod anew to lower it"
    );
    view.pods.values_mut().for_each(|pod| pod.mtu = 1350);
    assert!(plan(&two_nodes(), &view).problems.iter().all(|problem| problem.kind != Some("pod_mtu")));
}

/// Node b is on the link of this node, node c is behind a router.
#[test]
fn a_pool_says_when_its_addresses_go_through_tunnels() {
    let objects = |tunnel: &str| {
        let pool = pool("four", "10.1.0.0/16").replace("\"}", &format!("\", tunnel: {tunnel}}}"));
        let nodes = [("a", "192.0.2.1"), ("b", "192.0.2.2"), ("c", "198.51.100.3")];
        let nodes: String = nodes.iter().map(|(name, address)| node(name, &[address])).collect();
        let blocks = block("b", "10.1.0.64/26", "four", "b") + &block("c", "10.1.0.128/26", "four", "c");
        cluster(&(nodes + &pool + &blocks))
    };
    let mut view = local(&[], &["192.0.2.1"]);
    view.host = Some(host(&[], &["192.0.2.1"]));
    let near = UnderlayPath { on_link: true, ..path(0, "192.0.2.1") };
    view.underlay = BTreeMap::from([(address("192.0.2.2"), near), (address("198.51.100.3"), path(0, "192.0.2.1"))]);
    let planned = |tunnel: &str, view: &LocalView| {
        let planned = plan(&objects(tunnel), view);
        let blocks = routes(&planned).into_iter().filter(|line| line.contains("(block"));
        let ways: Vec<String> = blocks.map(|line| line.split(' ').take(3).collect::<Vec<_>>().join(" ")).collect();
        (ways, planned.plan.pod_mtu, problems(&planned))
    };
    let tunnels = ["10.1.0.64/26 tunnel 192.0.2.2", "10.1.0.128/26 tunnel 198.51.100.3"].map(str::to_owned);
    let direct = "10.1.0.64/26 directly 192.0.2.2".to_owned();
    assert_eq!(planned("always", &view), (tunnels.to_vec(), 1450, vec![]));
    let (ways, mtu, found) = planned("acrossSubnets", &view);
    assert_eq!((ways, mtu, found), (vec![direct.clone(), tunnels[1].clone()], 1450, vec![]));
    let (ways, mtu, found) = planned("never", &view);
    assert_eq!((&ways[0], mtu), (&direct, 1500), "no tunnel takes any room");
    assert!(ways[1].starts_with("10.1.0.128/26 unreachable"), "{ways:?}");
    assert_eq!(found, ["IpBlock c: node c is not on a link of this node, and its pool allows no tunnel"]);
    view.host = None;
    assert_eq!(planned("acrossSubnets", &view).0, tunnels, "what comes directly would be the kernel's");
}

#[test]
fn ipv6_is_used_where_one_side_has_nothing_else() {
    let cluster = cluster(
        &(node("a", &["192.0.2.1", "2001:db8::1"])
            + &node("b", &["2001:db8::2"])
            + &block("x", "10.1.0.64/26", "four", "b")),
    );
    let planned = plan(&cluster, &local(&[], &["192.0.2.1", "2001:db8::1"]));
    assert_eq!(peers(&planned), ["b 2001:db8::2 from 2001:db8::1 via unresolved mtu 1500"]);
    assert_eq!(planned.plan.pod_mtu, 1430);
    let only_ipv4 = plan(&cluster, &local(&[], &["192.0.2.1"]));
    assert_eq!(routes(&only_ipv4), ["10.1.0.64/26 unreachable (block x of node b)"]);
    assert_eq!(problems(&only_ipv4), ["Node b: has no address of a family that this node has on an uplink"]);
}

/// A node as flannel annotates it, with an end for each family.
const FLANNEL: &str = r#"---
apiVersion: v1
kind: Node
metadata:
  name: f
  annotations:
    flannel.alpha.coreos.com/backend-type: vxlan
    flannel.alpha.coreos.com/backend-data: '{"VNI":1,"VtepMAC":"0a:00:00:00:00:04"}'
    flannel.alpha.coreos.com/backend-v6-data: '{"VNI":1,"VtepMAC":"0a:00:00:00:00:06"}'
    flannel.alpha.coreos.com/public-ip: 192.0.2.77
spec:
  podCIDR: 10.244.1.0/24
  podCIDRs: [10.244.1.0/24, "fd00:244:1::/64"]
status:
  addresses:
  - {type: Hostname, address: f}
  - {type: InternalIP, address: 192.0.2.7}
  - {type: InternalIP, address: "2001:db8::7"}
"#;

#[test]
fn a_flannel_node_is_reached_as_flannel_has_it() {
    let cluster = cluster(&(node("a", &["192.0.2.1", "2001:db8::1"]) + FLANNEL));
    let planned = plan(&cluster, &local(&[], &["192.0.2.1", "2001:db8::1"]));
    assert_eq!(problems(&planned), Vec::<String>::new());
    assert_eq!(
        routes(&planned),
        [
            "10.244.1.0/24 tunnel 192.0.2.77 0a:00:00:00:00:04 (prefix of node f)",
            "fd00:244:1::/64 tunnel 2001:db8::7 0a:00:00:00:00:06 (prefix of node f)",
        ]
    );
    assert_eq!(planned.plan.tunnels.peers.len(), 2);
}

#[test]
fn a_node_with_blocks_needs_no_assigned_prefix() {
    let with_prefix = node("b", &["192.0.2.2"]) + "spec: {podCIDRs: [10.244.2.0/24]}\n";
    let objects = node("a", &["192.0.2.1"]) + &with_prefix;
    let view = local(&[], &["192.0.2.1"]);
    assert!(routes(&plan(&cluster(&objects), &view))[0].starts_with("10.244.2.0/24 tunnel 192.0.2.2 "));
    let claimed = objects + &block("x", "10.1.0.0/26", "four", "b");
    assert!(routes(&plan(&cluster(&claimed), &view))[0].starts_with("10.1.0.0/26 tunnel 192.0.2.2 "));
}

#[test]
fn contradictions_are_told_and_the_first_counts() {
    let cluster = cluster(
        &(node("a", &["192.0.2.1"])
            + &node("b", &["192.0.2.2"])
            + &node("c", &["192.0.2.2"])
            + &node("d", &["192.0.2.1"])
            + &pool("four", "10.1.0.0/16")
            + &pool("half", "10.1.128.0/17")
            + &block("one", "10.1.0.0/26", "four", "b")
            + &block("two", "10.1.0.0/26", "four", "c")
            + &block("wide", "10.1.4.0/24", "four", "b")
            + &block("inner", "10.1.4.64/26", "four", "c")
            + &block("far", "10.9.0.0/26", "four", "gone")),
    );
    let pods = [attached(3, "web", &["10.1.0.7"]), attached(4, "web-copy", &["10.1.0.7"])];
    let planned = plan(&cluster, &local(&pods, &["192.0.2.1"]));
    assert_eq!(
        problems(&planned),
        [
            "IpBlock far: 10.9.0.0/26 lies outside its pool four (10.1.0.0/16)",
            "IpBlock far: its node gone does not exist",
            "IpBlock inner: 10.1.4.64/26 lies inside 10.1.4.0/24 of block wide",
            "IpBlock two: 10.1.0.0/26 belongs to block one of node b already",
            "IpPool half: 10.1.128.0/17 overlaps 10.1.0.0/16 of pool four",
            "Node c: has the address 192.0.2.2 of node b",
            "Node d: has the address 192.0.2.1 of node a",
            "Pod default/web-copy: 10.1.0.7/32 belongs to pod default/web already",
        ]
    );
    let routes = routes(&planned);
    assert!(routes.contains(&"10.1.0.7/32 port 3 02:00:00:00:01:03 (pod default/web)".to_owned()), "{routes:?}");
    assert!(routes.contains(&"10.1.4.64/26 unreachable (block inner of node c)".to_owned()), "{routes:?}");
}

#[test]
fn an_uplink_without_carrier_resolves_nothing() {
    let mut view = local(&[], &["192.0.2.1"]);
    view.underlay = BTreeMap::from([(address("192.0.2.2"), path(0, "198.51.100.1"))]);
    let resolved = plan(&two_nodes(), &view);
    // The kernel would prefer another source, but the other side accepts our tunnel end only.
    assert_eq!(peers(&resolved), ["b 192.0.2.2 from 192.0.2.1 via 02:00:00:00:00:fe mtu 1500"]);
    view.uplinks.values_mut().for_each(|uplink| uplink.link_up = false);
    assert_eq!(peers(&plan(&two_nodes(), &view)), ["b 192.0.2.2 from 192.0.2.1 via unresolved mtu 1500"]);
}

#[test]
fn a_node_alone_and_a_node_unknown() {
    let alone = plan(&Cluster::default(), &LocalView::new(node_name("a")));
    assert_eq!(problems(&alone), ["Node a: this node has no object: other nodes cannot know where to send"]);
    assert_eq!(alone.plan.pod_mtu, 1500);
    let elsewhere = plan(&two_nodes(), &local(&[], &["203.0.113.1"]));
    assert_eq!(problems(&elsewhere), ["Node a: none of its internal addresses is on an uplink of this node"]);
    assert_eq!(peers(&elsewhere), Vec::<String>::new());
}

#[test]
fn a_switch_that_stands_alone_needs_no_node_object() {
    let bridge = "---\napiVersion: millrace.dev/v1alpha1\nkind: Bridge\nmetadata: {name: lan}\nspec: {}\n";
    assert_eq!(problems(&plan(&cluster(bridge), &local(&[], &[]))), Vec::<String>::new());
    let among_others = cluster(&(bridge.to_owned() + &node("b", &["192.0.2.2"])));
    let told = problems(&plan(&among_others, &local(&[], &[])));
    assert_eq!(told, ["Node a: this node has no object: other nodes cannot know where to send"]);
}

#[test]
fn ports_beyond_the_limit_are_refused() {
    let planned = plan(&Cluster::default(), &local(&[attached(2000, "far", &["10.1.0.1"])], &[]));
    assert!(problems(&planned).contains(&"port default/far is beyond the 1024 ports of a switch".to_owned()));
    assert!(!planned.plan.ports.contains_key(&PortIndex(2000)));
    millrace_control::compile::compile(&planned.plan, None).expect("a plan that compiles");
}

#[test]
fn uplinks_are_for_one_node_or_for_all() {
    let uplink = |name: &str, node: &str| {
        format!(
            "---\napiVersion: millrace.dev/v1alpha1\nkind: Uplink\nmetadata: {{name: {name}}}\nspec: {{interface: eth1{node}}}\n"
        )
    };
    let cluster = cluster(&(uplink("all", "") + &uplink("for-a", ", node: a") + &uplink("for-b", ", node: b")));
    let node = node_name("a");
    let names: Vec<_> = wanted_uplinks(&cluster, &node).map(|uplink| uplink.name.as_str()).collect();
    assert_eq!(names, ["all", "for-a"]);
}

#[test]
fn limits_of_bandwidth_are_the_runtimes_and_for_the_rest_the_objects() {
    let object = |uid: &str, ingress: &str, egress: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: web, uid: {uid}, annotations: {{kubernetes.io/ingress-bandwidth: \
             '{ingress}', kubernetes.io/egress-bandwidth: '{egress}'}}}}, spec: {{nodeName: a}}}}\n"
        )
    };
    let limit = |bits_per_second, burst_bits| Some(RateLimit { bits_per_second, burst_bits });
    let limits = |text: &str, by_runtime: Bandwidth| {
        let (port, mut pod) = attached(20, "web", &["10.1.0.1"]);
        (pod.uid, pod.bandwidth) = (Some("u1".into()), by_runtime);
        let view = local(&[(port, pod), attached(21, "other", &["10.1.0.2"])], &["192.0.2.1"]);
        let planned = plan(&cluster(text), &view).plan.bandwidth;
        assert!(planned.keys().all(|port| port.0 == 20));
        planned.get(&port).map(|bandwidth| (bandwidth.to_port, bandwidth.from_port))
    };
    let nothing = Bandwidth::default();
    let by_runtime = Bandwidth { from_port: None, to_port: limit(7_000, 9) };
    assert_eq!(limits("", nothing), None);
    // Half a second, and not less than two units of 64 KiB.
    assert_eq!(
        limits(&object("u1", "1G", "1.5k"), nothing),
        Some((limit(1_000_000_000, 500_000_000), limit(1_500, 1 << 20)))
    );
    assert_eq!(limits(&object("u1", "1G", "1.5k"), by_runtime), Some((limit(7_000, 9), limit(1_500, 1 << 20))));
    assert_eq!(limits(&object("u0", "1G", "1.5k"), by_runtime), Some((limit(7_000, 9), None)), "of another pod");
    for wrong in ["999", "2P", "fast", "-5M"] {
        let text = object("u1", "1G", wrong);
        let problems = observe(&text).problems().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(problems.contains("kubernetes.io/egress-bandwidth") && problems.contains(wrong), "{problems}");
    }
}

/// A pod on a wire meets no policy: whoever writes one that selects it is told.
#[test]
fn a_policy_that_selects_a_pod_on_a_wire_is_a_problem() {
    let policy = "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: closed}, spec: {podSelector: {}}}\n";
    let pod =
        "---\n{apiVersion: v1, kind: Pod, metadata: {name: wired}, spec: {nodeName: a, containers: [{name: c}]}}\n";
    let told = |network: Option<&str>, objects: &str| -> Vec<String> {
        let (port, pod) = attached(1, "wired", &["192.168.7.5"]);
        let network = network.map(|name| NetworkName::new(name).expect("name"));
        let local = local(&[(port, AttachedPod { network, ..pod })], &[]);
        let planned = plan(&cluster(&(node("a", &["192.0.2.1"]) + objects)), &local);
        planned.problems.iter().map(ToString::to_string).filter(|problem| problem.contains("no policy holds")).collect()
    };
    let both = policy.to_owned() + pod;
    let expected =
        "Pod default/wired: is on the network office, where no policy holds, and is selected by default/closed";
    assert_eq!(told(Some("office"), &both), [expected]);
    assert_eq!(told(None, &both), Vec::<String>::new());
    assert_eq!(told(Some("office"), pod), Vec::<String>::new());
}
