//! Addresses out of the prefixes that the cluster assigned to nodes: neither pool nor block.

use crate::agent_process::AgentOptions;
use crate::cluster::{AF_XDP, Underlay, node_object, uplink_object_of};
use crate::host::{host, pings};
use crate::pod::Pod;
use crate::traffic;

const OPTIONS: AgentOptions =
    AgentOptions { workers: 1, uplink: true, more: "[addresses]\nsource = 'pod-cidr'", under: &[] };
/// A pod that another program plugged in before.
const FORMER: &str = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: former, namespace: default}\n\
     spec: {nodeName: a, containers: []}\nstatus: {phase: Running, podIPs: [{ip: 10.8.0.1}]}\n";

pub(crate) fn nodes_reach_pods_of_assigned_prefixes() {
    let underlay = Underlay::create(1);
    let node = |number: usize| {
        let prefixes = format!("spec: {{podCIDRs: [10.8.{number}.0/24, 'fd08:{number}::/64']}}\nstatus:");
        node_object(number).replace("status:", &prefixes) + &uplink_object_of(number, "up0", AF_XDP)
    };
    underlay.directory.write_objects("cluster.yaml", &[node(0), node(1), FORMER.to_owned()].concat());
    let agents = [0, 1].map(|number| underlay.start(number, OPTIONS));
    let hosts = [0, 1].map(|number| host(&underlay, number));
    let pods = [("a1", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
    let [a1, b1] = [0, 1].map(|number: usize| pods[number].add(&underlay.directory));
    assert_eq!(a1.address(true).to_string(), "10.8.0.2", "the first is the former pod's");
    for (from, to) in [(&hosts[0], &a1), (&hosts[1], &a1), (&hosts[0], &b1), (&a1, &b1)] {
        traffic::check(from, to);
        pings(from, to);
        pings(to, from);
    }
    agents.iter().for_each(|agent| agent.assert_sound());
}
