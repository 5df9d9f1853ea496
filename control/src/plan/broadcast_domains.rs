//! Tenants' broadcast domains: the bridge that a network is on this node, and the nodes that a flood is copied to.
//!
//! A flood goes to each node that has a member, by a copy for each (head-end replication, RFC 7348 section 4.2 without a
//! group): where pods are says their objects, and blocks that a node has claimed for the network. Cost: a walk over the pods of
//! the namespaces that are in it.

use std::collections::{BTreeMap, BTreeSet};

use super::LocalView;
use super::tenants::Tenants;
use super::tunnels::Reach;
use crate::cluster::{BridgeRecord, Cluster, NetworkName, NodeName, PodName, PodRecord};

/// The bridges of networks that pods of this node are plugged into.
pub(super) fn bridges(cluster: &Cluster, local: &LocalView, tenants: &Tenants, reach: &Reach<'_>) -> Vec<BridgeRecord> {
    let has_member = |network: &NetworkName| local.pods.values().any(|pod| pod.network.as_ref() == Some(network));
    let bridge = |(name, vni)| {
        let network = cluster.networks.get(name)?;
        let others = member_nodes(cluster, name).into_iter().filter(|node| **node != local.node);
        let remotes: BTreeSet<_> = others.filter_map(|node| reach.end(node, true)).map(|end| end.address).collect();
        let vnis = BTreeMap::from([(network.segment_vlan(), vni)]);
        Some(BridgeRecord { vnis, remotes: remotes.into_iter().collect(), ..network.bridge() })
    };
    tenants.bridged().filter(|(name, _)| has_member(name)).filter_map(bridge).collect()
}

/// Nodes with members of a network, as far as objects tell.
fn member_nodes<'a>(cluster: &'a Cluster, network: &'a NetworkName) -> BTreeSet<&'a NodeName> {
    let (namespaces, named) = cluster.memberships.naming(network);
    let of_namespaces = namespaces.flat_map(|namespace| {
        let first = PodName::before_all(namespace);
        let pods = cluster.pods.range(first..).map(|(_, pod)| pod);
        let pods = pods.take_while(move |pod| pod.name.namespace() == namespace);
        pods.filter(move |pod| cluster.memberships.of_pod(&pod.name) == Some(network))
    });
    let named = named.filter_map(|pod| cluster.pods.get(pod));
    let is_there = |pod: &&PodRecord| !pod.host_network && !pod.finished;
    let nodes = of_namespaces.chain(named).filter(is_there).filter_map(|pod| pod.node.as_ref());
    nodes.chain(cluster.blocks_of(Some(network)).map(|block| &block.node)).collect()
}
