//! Tenants' networks: what their objects mean, what of them is refused, and addresses that two of them have at once.

use std::net::IpAddr;
use std::time::Instant;

use millrace_control::cluster::{NetworkName, PodName, PoolName};
use millrace_control::ipam::{AddressAllocators, AddressRequest, AddressSource, EMPTY_BEFORE_RETURN, IpamError};
use millrace_control::observe::IP_BLOCK;
use millrace_control::plan::{AttachedPod, NodePlan, POD_SEGMENT, plan};
use millrace_control::policy_preview::reach::{Question, Selection, reach};
use millrace_control::store::ObjectStore;
use millrace_engine::packet::PortIndex;
use millrace_engine::tables::{PortRole, RouteTarget};

use crate::address_crowd::observed;
use crate::support::{TestDirectory, address, attached, cluster, local, node, node_name, observe, pool};

fn network(name: &str, spec: &str) -> String {
    format!("---\napiVersion: millrace.dev/v1alpha1\nkind: Network\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
}

fn pool_of(name: &str, cidr: &str, network: &str) -> String {
    pool(name, cidr).replace("spec: {", &format!("spec: {{network: {network}, "))
}

fn block_of(network: &str, cidr: &str, node: &str) -> String {
    let name = cidr.replace(['.', '/'], "-");
    format!(
        "---\napiVersion: millrace.dev/v1alpha1\nkind: IpBlock\nmetadata: {{name: {network}.{name}}}\n\
         spec: {{cidr: {cidr}, pool: {network}, network: {network}, node: {node}}}\n"
    )
}

fn name(text: &str) -> NetworkName {
    NetworkName::new(text).expect("name")
}

fn member(port: u16, pod: &str, address: &str, network: &str) -> (PortIndex, AttachedPod) {
    let (port, plugged) = attached(port, pod, &[address]);
    (port, AttachedPod { network: Some(name(network)), ..plugged })
}

fn planned(text: &str, pods: &[(PortIndex, AttachedPod)]) -> (NodePlan, Vec<String>) {
    let planned = plan(&cluster(text), &local(pods, &["192.0.2.1"]));
    let problems = planned.problems.iter().map(ToString::to_string).collect();
    (planned.plan, problems)
}

fn segment_named<'a>(plan: &'a NodePlan, name: &str) -> Option<&'a millrace_control::plan::SegmentPlan> {
    plan.segments.values().find(|segment| &*segment.name == name)
}

#[test]
fn a_network_is_a_wire_or_a_tenants_and_never_both() {
    let wrong = [
        ("n", "interface: eth1, vni: 7", "not both"),
        ("n", "egress: true", "has an interface"),
        ("n", "vni: 0", "from 1 to 16777215"),
        ("n", "vni: 16777216", "from 1 to 16777215"),
        ("n", "vni: 7, vlan: 3", "only a network with an interface"),
        ("n", "vni: 7, layer: 4", "layer 2, bridged, or 3, routed"),
        ("n", "vni: 7, layer: 2, egress: true", "only a routed network"),
        ("n", "vni: 7, layer: 2, connect: [m]", "only a routed network"),
        ("n", "vni: 7, connect: [n]", "not connected with itself"),
        ("n", "vni: 7, subnets: [{cidr: 10.0.0.0/8}]", "IpPools"),
        ("n", "interface: eth1, egress: true", "only a network with a vni"),
        ("pods", "vni: 7", "stands for the pods' segment"),
    ];
    for (name, spec, expected) in wrong {
        let problems = observe(&network(name, spec)).problems().iter().map(ToString::to_string).collect::<String>();
        assert!(problems.contains(expected), "{spec}: {problems}");
    }
    for right in ["interface: eth1, vlan: 3", "vni: 7", "vni: 7, egress: true, connect: [m, pods]", "vni: 7, layer: 2"]
    {
        assert_eq!(observe(&network("n", right)).problems(), [], "{right}");
    }
}

#[test]
fn further_interfaces_are_read_and_refused() {
    let pod = |annotation: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: p, annotations: {{millrace.dev/networks: '{annotation}'}}}}, \
             spec: {{nodeName: a}}}}\n"
        )
    };
    let read = cluster(&pod("office@net7, blue"));
    let further = &read.pods[&PodName::new("default", "p").expect("name")].address_wishes.further;
    let found: Vec<String> =
        further.iter().map(|further| format!("{}@{}", further.network, further.interface)).collect();
    assert_eq!(found, ["office@net7", "blue@net2"]);
    let too_many: Vec<String> = (0..9).map(|number| format!("n{number}")).collect();
    for wrong in ["a@net1,b@net1", "a@net1,a@net2", "a@way-too-long-a-name", "A", &too_many.join(",")] {
        let problems = observe(&pod(wrong)).problems().iter().map(ToString::to_string).collect::<String>();
        assert!(problems.contains("millrace.dev/networks"), "{wrong}: {problems}");
    }
}

#[test]
fn two_networks_have_the_same_addresses_and_routes_of_their_own() {
    let text = node("a", &["192.0.2.1"])
        + &node("b", &["192.0.2.2"])
        + &network("blue", "vni: 5001")
        + &network("red", "vni: 5002")
        + &network("idle", "vni: 5003")
        + &pool_of("blue", "10.9.0.0/16", "blue")
        + &pool_of("red", "10.9.0.0/16", "red")
        + &block_of("blue", "10.9.0.0/26", "a")
        + &block_of("red", "10.9.0.0/26", "b")
        + &block_of("blue", "10.9.0.64/26", "b");
    let pods = [member(20, "one", "10.9.0.1", "blue"), member(21, "two", "10.9.0.1", "red")];
    let (plan, problems) = planned(&text, &pods);
    assert_eq!(problems, Vec::<String>::new());
    let [blue, red] = ["blue", "red"].map(|name| segment_named(&plan, name).expect("a segment"));
    assert!(segment_named(&plan, "idle").is_none(), "nobody here is in it");
    let target = |segment: &millrace_control::plan::SegmentPlan, prefix: &str| {
        segment.routes.get(&prefix.parse().expect("prefix")).map(|route| route.target.clone())
    };
    let leads_to = |target: Option<RouteTarget>, port: u16| matches!(target, Some(RouteTarget::Port { port: found, .. }) if found == PortIndex(port));
    assert!(leads_to(target(blue, "10.9.0.1/32"), 20) && leads_to(target(red, "10.9.0.1/32"), 21));
    assert_eq!(target(blue, "10.9.0.0/26"), Some(RouteTarget::Unreachable), "its own block");
    assert!(matches!(target(red, "10.9.0.0/26"), Some(RouteTarget::Tunnel { .. })), "another node's");
    assert!(target(red, "10.9.0.64/26").is_none(), "blue's");
    assert_eq!(blue.router_addresses, [address("10.9.0.0")]);
    assert!(red.router_addresses.is_empty(), "the node has no block of it");
    assert!(plan.segments[&POD_SEGMENT].routes.keys().all(|prefix| prefix.addr() != address("10.9.0.1")));
    for (port, pod) in &pods {
        let PortRole::Pod(role) = &plan.ports[port].role else { panic!("{port:?} is a pod's") };
        assert_eq!(&*plan.segments[&role.segment].name, pod.network.as_ref().expect("network").as_str());
    }
}

#[test]
fn contradictions_are_named() {
    let two = |more: &str| {
        node("a", &["192.0.2.1"])
            + &network("blue", &format!("vni: 5001{more}"))
            + &network("red", "vni: 5002, connect: [blue]")
            + &pool_of("blue", "10.9.0.0/16", "blue")
            + &pool_of("red", "10.8.0.0/16", "red")
    };
    let problems = |text: &str| planned(text, &[member(20, "one", "10.9.0.1", "blue")]).1.join("\n");
    let cases = [
        (two(", connect: [red]"), ""),
        (two(""), "Network red: spec.connect: network blue does not name red"),
        (two(", connect: [green]"), "Network blue: spec.connect: there is no network green"),
        (two("") + &network("twin", "vni: 5001"), "Network twin: spec.vni: VNI 5001 belongs to network blue already"),
        (two("") + &network("first", "vni: 1"), "Network first: spec.vni: VNI 1 belongs to segment pods already"),
        (
            two("") + &pool_of("more", "10.9.4.0/24", "blue"),
            "IpPool more: 10.9.4.0/24 overlaps 10.9.0.0/16 of pool blue",
        ),
        (
            two("") + &pool_of("lost", "10.9.4.0/24", "nowhere"),
            "IpPool lost: spec.network: there is no network nowhere",
        ),
        (
            two(", connect: [red]") + &pool_of("red-too", "10.9.0.0/24", "red"),
            "10.9.0.0/16 of blue overlaps 10.9.0.0/24 of red",
        ),
        (
            two(", connect: [pods]") + &pool("pods", "10.0.0.0/8"),
            "Network blue: spec.connect: 10.9.0.0/16 of blue overlaps 10.0.0.0/8 of pods",
        ),
    ];
    for (text, expected) in cases {
        let found = problems(&text);
        assert!(found.contains(expected) && (!expected.is_empty() || found.is_empty()), "{expected}: {found}");
    }
    let both = problems(&(two(", connect: [red]") + &pool_of("red-too", "10.9.0.0/24", "red")));
    assert!(both.contains("Network blue:") && both.contains("Network red:"), "both objects are named: {both}");
}

/// Two networks with the same addresses may not both be connected with a third: nobody could tell them apart there.
#[test]
fn of_two_networks_that_overlap_one_is_connected_with_a_third() {
    let text = node("a", &["192.0.2.1"])
        + &network("hub", "vni: 5000, connect: [one, two]")
        + &network("one", "vni: 5001, connect: [hub]")
        + &network("two", "vni: 5002, connect: [hub]")
        + &pool_of("hub", "10.7.0.0/16", "hub")
        + &pool_of("one", "10.9.0.0/16", "one")
        + &pool_of("two", "10.9.0.0/16", "two");
    let (plan, problems) = planned(&text, &[member(20, "p", "10.7.0.1", "hub"), member(21, "q", "10.9.0.1", "two")]);
    let problems = problems.join("\n");
    assert!(problems.contains("Network hub:") && problems.contains("Network two:"), "{problems}");
    assert!(!problems.contains("Network one:"), "{problems}");
    let connected = |name: &str| segment_named(&plan, name).expect("segment").connected.len();
    assert_eq!(["hub", "two"].map(connected), [1, 0]);
    assert!(segment_named(&plan, "one").is_some(), "who may send to the hub's pods is known");
}

#[test]
fn ports_of_the_host_and_services_say_what_they_do_not_do() {
    let text = node("a", &["192.0.2.1"])
        + &network("blue", "vni: 5001")
        + &network("lan", "vni: 5002, layer: 2")
        + &pool_of("blue", "10.9.0.0/16", "blue")
        + "---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: {millrace.dev/network: blue}}}\n\
           ---\n{apiVersion: v1, kind: Namespace, metadata: {name: flat, annotations: {millrace.dev/network: lan}}}\n\
           ---\n{apiVersion: v1, kind: Namespace, metadata: {name: lost, annotations: {millrace.dev/network: gone}}}\n\
           ---\n{apiVersion: v1, kind: Pod, metadata: {name: one, annotations: {millrace.dev/network: blue}}, spec: {nodeName: a, \
           containers: [{name: c, ports: [{containerPort: 80, hostPort: 8080}]}]}}\n\
           ---\n{apiVersion: v1, kind: Service, metadata: {name: outer, namespace: shop}, spec: {clusterIPs: [10.96.0.1], \
           ports: [{port: 80, nodePort: 30080}]}}\n\
           ---\n{apiVersion: v1, kind: Service, metadata: {name: inner, namespace: shop}, spec: {clusterIPs: [10.96.0.2], \
           ports: [{port: 80}]}}\n\
           ---\n{apiVersion: v1, kind: Service, metadata: {name: s, namespace: flat}, spec: {clusterIPs: [10.96.0.3], \
           ports: [{port: 80}]}}\n\
           ---\n{apiVersion: v1, kind: Service, metadata: {name: s, namespace: lost}, spec: {clusterIPs: [10.96.0.4], \
           ports: [{port: 80}]}}\n";
    let (plan, problems) = planned(&text, &[member(20, "one", "10.9.0.1", "blue")]);
    let expected = [
        "Pod default/one: its ports of the host are not served: it is in network blue",
        "Service flat/s: its namespace is in network lan, which is not routed and has no Services",
        "Service lost/s: its namespace is in network gone, which does not exist",
        "Service shop/outer: is called from inside only: its network blue has no egress",
    ];
    assert_eq!(problems, expected);
    let blue = plan.segments.iter().find(|(_, segment)| &*segment.name == "blue").expect("segment").0;
    let served: Vec<_> = plan.services.owners.values().filter(|plan| !plan.frontends.is_empty()).collect();
    assert_eq!(served.len(), 2);
    assert!(served.iter().all(|plan| plan.segment == *blue && plan.frontends.len() == 1), "their ClusterIPs, in blue");
    assert!(plan.services.steered().is_empty(), "nothing comes from outside");
}

fn holder(number: usize) -> String {
    format!("pod{number}/eth0")
}

#[test]
fn networks_have_blocks_and_addresses_of_their_own() {
    let text = node("a", &["192.0.2.1"])
        + &node("b", &["192.0.2.2"])
        + &network("blue", "vni: 5001")
        + &network("red", "vni: 5002")
        + &pool("pods", "10.9.0.0/26")
        + &pool_of("blue", "10.9.0.0/26", "blue")
        + &pool_of("red", "10.9.0.0/26", "red");
    let directory = TestDirectory::new();
    directory.write("objects.yaml", &text);
    let store = directory.store();
    let networks = [None, Some(name("blue")), Some(name("red"))];
    let mut a = AddressAllocators::new(node_name("a"), AddressSource::Blocks);
    let allocate = |of: &mut AddressAllocators, network: usize, number: usize| {
        let (holder, network) = (holder(number * 10 + network), networks[network].as_ref());
        of.allocate(network, &store, &observed(&store), &AddressRequest::any(&holder))
    };
    let given: Vec<Vec<IpAddr>> = (0..3).map(|network| allocate(&mut a, network, 0).expect("an address")).collect();
    assert_eq!(given, vec![vec![address("10.9.0.1")]; 3], "the same in each");
    let names: Vec<String> =
        store.list(&IP_BLOCK).expect("blocks").iter().map(|block| block.key.name.clone()).collect();
    assert_eq!(names, ["10-9-0-0-26", "blue.10-9-0-0-26", "red.10-9-0-0-26"]);
    // Another node borrows in the network that it asks for: each pool is one block, which a has.
    let mut b = AddressAllocators::new(node_name("b"), AddressSource::Blocks);
    let borrowed = allocate(&mut b, 1, 1).expect("an address");
    assert_eq!(borrowed, [address("10.9.0.63")]);
    let block = |name: &str| {
        let key = millrace_control::store::ObjectKey::cluster_scoped(IP_BLOCK, name);
        store.get(&key).expect("get").expect("there").to_json()
    };
    assert_eq!(block("blue.10-9-0-0-26")["spec"]["assigned"][0]["address"], "10.9.0.63");
    assert!(block("red.10-9-0-0-26")["spec"]["assigned"].is_null());
    // A pool of another network is refused, whoever names it.
    let pools = [PoolName::new("red").expect("name")];
    let wrong = AddressRequest { pools: &pools, ..AddressRequest::any("x/eth0") };
    let refused = a.allocate(networks[1].as_ref(), &store, &observed(&store), &wrong).expect_err("red's");
    assert!(matches!(&refused, IpamError::OfAnotherNetwork { .. }) && refused.is_of_the_request(), "{refused}");
    // What one gives back is still held in the other.
    assert_eq!(a.release(&holder(1)), [address("10.9.0.1")]);
    assert_eq!(allocate(&mut a, 1, 3).expect("free again"), [address("10.9.0.1")]);
    assert_eq!(allocate(&mut a, 2, 3).expect("the next"), [address("10.9.0.2")]);
}

/// A block that an agent claimed for a network before it was restarted, of which no pod is left, goes back: also the last.
#[test]
fn a_network_without_pods_keeps_no_block() {
    let text = node("a", &["192.0.2.1"]) + &network("blue", "vni: 5001") + &pool_of("blue", "10.9.0.0/24", "blue");
    let directory = TestDirectory::new();
    directory.write("objects.yaml", &text);
    let store = directory.store();
    let mut first = AddressAllocators::new(node_name("a"), AddressSource::Blocks);
    let request = AddressRequest::any("x/eth0");
    first.allocate(Some(&name("blue")), &store, &observed(&store), &request).expect("an address");
    let observed = observed(&store);
    let (mut next, start) = (AddressAllocators::new(node_name("a"), AddressSource::Blocks), Instant::now());
    assert!(next.maintain(&store, &observed, &[], start).returned.is_empty());
    let done = next.maintain(&store, &observed, &[], start + EMPTY_BEFORE_RETURN);
    assert_eq!(done.returned.len(), 1, "{:?}", done.errors);
    assert!(store.list(&IP_BLOCK).expect("blocks").is_empty());
}

/// Who may reach whom is asked inside of networks, and between those that are connected.
#[test]
fn reach_is_told_of_pods_that_can_meet() {
    let pod = |pod: &str, network: &str, address: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {pod}, labels: {{app: {pod}}}, annotations: \
             {{millrace.dev/network: {network}}}}}, spec: {{nodeName: b}}, status: {{podIP: {address}}}}}\n"
        )
    };
    let text = node("a", &["192.0.2.1"])
        + &node("b", &["192.0.2.2"])
        + &network("blue", "vni: 5001, connect: [red]")
        + &network("red", "vni: 5002, connect: [blue]")
        + &network("twin", "vni: 5003")
        + &pool("pods", "10.9.0.0/16")
        + &pool_of("blue", "10.9.0.0/16", "blue")
        + &pool_of("red", "10.8.0.0/16", "red")
        + &pool_of("twin", "10.9.0.0/16", "twin")
        + &pod("b1", "blue", "10.9.0.1")
        + &pod("b2", "blue", "10.9.0.2")
        + &pod("r1", "red", "10.8.0.1")
        + &pod("t1", "twin", "10.9.0.1")
        + &pod("p1", "pods", "10.9.0.1")
        + "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: r1}, spec: {podSelector: {matchLabels: {app: r1}}, \
           ingress: [{from: [{podSelector: {matchLabels: {app: b2}}}]}]}}\n";
    let question = Question { from: Selection::All, to: Selection::All, limit: 100 };
    let report = reach(&cluster(&text), &local(&[], &["192.0.2.1"]), &question).expect("told");
    let pairs: Vec<String> = report.reach.iter().map(|pair| format!("{} {}", pair.source, pair.target)).collect();
    let expected = ["b1 b2", "b2 b1", "b2 r1", "r1 b1", "r1 b2"];
    assert_eq!(
        pairs,
        expected.map(|pair| pair.split(' ').map(|pod| format!("default/{pod}")).collect::<Vec<_>>().join(" "))
    );
}
