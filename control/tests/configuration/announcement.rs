//! Which node announces a load balancer's address: every node reckons alike, and little moves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use millrace_control::cluster::InterfaceName;
use millrace_control::plan::{LocalHost, LocalView, OutsidePath, plan};
use millrace_engine::limits;
use millrace_engine::packet::{Mac, PortIndex};

use crate::support::{address, cluster, local, node, node_name};

const ADDRESSES: u8 = 60;

/// Names, and addresses on one link but for the last node's.
const NODES: [(&str, &str); 4] =
    [("a", "192.0.2.1"), ("b", "192.0.2.2"), ("c", "192.0.2.3"), ("elsewhere", "198.51.100.4")];

fn services(external: &str, endpoint_on: &str) -> String {
    services_at(external, &format!("{{addresses: [10.1.0.1], nodeName: {endpoint_on}}}"))
}

fn services_at(external: &str, endpoints: &str) -> String {
    let mut text = String::new();
    for number in 1..=ADDRESSES {
        text += &format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s{number}}}, spec: {{type: LoadBalancer, clusterIPs: \
             [10.96.0.{number}], ports: [{{port: 80}}], externalTrafficPolicy: {external}}}, status: {{loadBalancer: {{ingress: \
             [{{ip: 192.0.2.{}}}, {{ip: 203.0.113.{number}}}]}}}}}}\n---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, \
             metadata: {{name: s{number}-1, labels: {{kubernetes.io/service-name: s{number}}}}}, addressType: IPv4, ports: [{{port: \
             80}}], endpoints: [{endpoints}]}}\n",
            100 + number
        );
    }
    text
}

/// What becomes of a node's object, by its name.
type Change<'a> = &'a dyn Fn(&str, String) -> Option<String>;

/// What a node of the cluster sees of itself.
fn view(name: &str, own: &str) -> LocalView {
    let mut view = LocalView { node: node_name(name), ..local(&[], &[own]) };
    let path = OutsidePath { port: PortIndex(0), gateway: None, source: address(own), mtu: 1500 };
    let router = OutsidePath { gateway: Some(address("192.0.2.254")), ..path.clone() };
    let prefix = |text: &str| text.parse().expect("prefix");
    view.outside.routes = BTreeMap::from([(prefix("192.0.2.0/24"), path), (prefix("0.0.0.0/0"), router)]);
    view.host = Some(LocalHost {
        port: PortIndex(9),
        interface: InterfaceName::new("millrace0").expect("interface"),
        mac: Mac([2, 0, 0, 0, 9, 9]),
        mtu: 1450,
        own_addresses: Vec::new(),
        addresses: vec![address(own)],
    });
    view
}

/// Who announces each address.
fn holders(text: &str) -> BTreeMap<IpAddr, Vec<&'static str>> {
    let objects = cluster(text);
    let mut holders: BTreeMap<IpAddr, Vec<&str>> = BTreeMap::new();
    for (name, own) in NODES {
        let planned = plan(&objects, &view(name, own)).plan;
        for announced in planned.outside.announced.into_keys() {
            holders.entry(announced).or_default().push(name);
        }
    }
    holders
}

fn nodes(change: impl Fn(&str, String) -> Option<String>) -> String {
    NODES.into_iter().filter_map(|(name, own)| change(name, node(name, &[own]))).collect()
}

fn count(holders: &BTreeMap<IpAddr, Vec<&'static str>>, name: &str) -> usize {
    holders.values().filter(|who| **who == [name]).count()
}

#[test]
fn each_address_on_the_link_has_one_node_and_moves_only_with_it() {
    let before = holders(&(nodes(|_, text| Some(text)) + &services("Cluster", "b")));
    let wanted: BTreeSet<IpAddr> = (1..=ADDRESSES).map(|number| IpAddr::from([192, 0, 2, 100 + number])).collect();
    assert_eq!(before.keys().copied().collect::<BTreeSet<_>>(), wanted, "those of the link, no others");
    assert!(before.values().all(|who| who.len() == 1), "{before:?}");
    for (name, _) in &NODES[..3] {
        assert!(count(&before, name) >= 8, "{name} has its share: {before:?}");
    }
    assert_eq!(count(&before, "elsewhere"), 0, "it has no address on the link");

    let unready = "status:\n  conditions: [{type: Ready, status: \"False\"}]\n";
    let lost: [(&str, Change<'_>); 3] = [
        ("deleted", &|name, text| (name != "b").then_some(text)),
        ("not ready", &|name, text| Some(if name == "b" { text.replace("status:\n", unready) } else { text })),
        ("excluded", &|name, text| {
            let labels = "{name: b, labels: {node.kubernetes.io/exclude-from-external-load-balancers: ''}}";
            Some(if name == "b" { text.replace("{name: b}", labels) } else { text })
        }),
    ];
    for (how, change) in lost {
        let after = holders(&(nodes(change) + &services("Cluster", "b")));
        assert_eq!(after.len(), before.len(), "{how}");
        for (address, who) in &after {
            assert!(who.len() == 1 && who != &["b"], "{how}: {address} {who:?}");
            assert!(before[address] == ["b"] || before[address] == *who, "{how}: {address} moved without need");
        }
    }
}

/// Who would keep clients' addresses but has no endpoint would only drop what comes.
#[test]
fn a_local_policy_leaves_nodes_without_endpoints_out() {
    let found = holders(&(nodes(|_, text| Some(text)) + &services("Local", "c")));
    assert_eq!(count(&found, "c"), usize::from(ADDRESSES), "{found:?}");
    assert_eq!(holders(&(nodes(|_, text| Some(text)) + &services("Local", "elsewhere"))).len(), 0);
}

/// A drained endpoint keeps its node in place only while no other node has one that is ready.
#[test]
fn the_last_endpoint_is_announced_up_to_its_end() {
    let states = |here: &str, there: &str| {
        let endpoint = |address: &str, node: &str, state: &str| {
            let (ready, serving, ending) = match state {
                "ready" => (true, true, false),
                "ending" => (false, true, true),
                _ => (false, false, true),
            };
            format!(
                "{{addresses: [{address}], nodeName: {node}, conditions: {{ready: {ready}, serving: {serving}, terminating: \
                 {ending}}}}}"
            )
        };
        let both = format!("{}, {}", endpoint("10.1.0.1", "a", here), endpoint("10.1.0.2", "b", there));
        let text = services_at("Local", &both);
        let found = holders(&(nodes(|_, text| Some(text)) + &text));
        (count(&found, "a"), count(&found, "b"))
    };
    let all = usize::from(ADDRESSES);
    assert_eq!(states("ending", "dead"), (all, 0));
    assert_eq!(states("ending", "ready"), (0, all));
    assert_eq!(states("ready", "ending"), (all, 0));
    let (a, b) = states("ending", "ending");
    assert!(a + b == all && a > 0 && b > 0, "{a} {b}");
    assert_eq!(states("dead", "dead"), (0, 0));
}

/// More than the node announces: which are left out is said.
#[test]
fn addresses_beyond_the_bound_are_a_problem() {
    let mut text = node("a", &["10.200.255.1"]);
    for number in 0..limits::ANNOUNCED_ADDRESSES + 2 {
        let (high, low) = (number / 200, number % 200 + 1);
        text += &format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s{number}}}, spec: {{type: LoadBalancer, clusterIPs: \
             [10.96.{high}.{low}], ports: [{{port: 80}}]}}, status: {{loadBalancer: {{ingress: [{{ip: 10.200.{high}.{low}}}]}}}}}}\n"
        );
    }
    let mut view = view("a", "10.200.255.1");
    let path = OutsidePath { port: PortIndex(0), gateway: None, source: address("10.200.255.1"), mtu: 1500 };
    view.outside.routes.insert("10.200.0.0/16".parse().expect("prefix"), path);
    let planned = plan(&cluster(&text), &view);
    assert_eq!(planned.plan.outside.announced.len(), limits::ANNOUNCED_ADDRESSES);
    let said: Vec<String> = planned.problems.iter().map(ToString::to_string).collect();
    let expected = "1026 addresses of load balancers fall to this node, which announces 1024: those from 10.200.5.25 on are \
                    reached by nobody on the link";
    assert!(said.iter().any(|problem| problem == expected), "{said:?}");
}
