//! The host as a member of the pods' segment: its addresses there, and what it routes to the pods.
//!
//! The node's address among pods is the first address of one of its blocks, which no pod gets. It is the source the
//! host's own sockets prefer towards pods, since other nodes route it back by the block, and the switch's source of
//! ICMP errors. Once given it stays as long as its block is ours, whatever blocks come beside it: live connections
//! carry it. That it stands on the interface is the memory of it, so nothing is stored.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use millrace_engine::tables::HostPort;

use super::POD_SEGMENT;
use super::local::{LocalHost, LocalView};
use super::tenants::connected_with_pods;
use crate::cluster::{Cluster, NodeName};

/// What the host's own interface shall have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPlan {
    /// Its addresses, at most one of each family, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Prefixes of pods anywhere, none inside another, which the host routes to it; of families with an address only.
    pub prefixes: BTreeSet<IpNet>,
    /// Whether a family has a pool and this node no block of it yet.
    pub lacks_block: bool,
}

impl HostPlan {
    pub(super) fn new(cluster: &Cluster, node: &NodeName, addresses: &[IpAddr]) -> Self {
        let of_family = |ipv4: bool| addresses.iter().any(|address| address.is_ipv4() == ipv4);
        let prefixes = pod_prefixes(cluster, node).into_iter().filter(|prefix| of_family(prefix.addr().is_ipv4()));
        let mut pools = cluster.pools_of(None);
        let lacks_block = pools.any(|pool| !of_family(pool.cidr().is_ipv4()));
        Self { addresses: addresses.to_vec(), prefixes: prefixes.collect(), lacks_block }
    }
}

/// The node's own addresses among pods: those its interface has already, as long as they are the first of a block of
/// this node, else the first of the first block by name.
pub(super) fn router_addresses(cluster: &Cluster, local: &LocalView) -> Vec<IpAddr> {
    let blocks = cluster.blocks_of(None).filter(|block| block.node == local.node);
    let mut candidates: Vec<IpAddr> = blocks.filter_map(|block| block.cidr.address(0)).collect();
    if candidates.is_empty() {
        // A node without blocks has addresses from its assigned prefixes, or none yet.
        let assigned = cluster.nodes.get(&local.node).into_iter().flat_map(|node| &node.pod_cidrs);
        candidates = assigned.filter_map(|cidr| cidr.address(0)).collect();
    }
    let held = local.host.as_ref().map(|host| host.own_addresses.as_slice()).unwrap_or_default();
    let pick = |ipv4: bool| {
        let mut known = held.iter().filter(|address| address.is_ipv4() == ipv4 && candidates.contains(address));
        known.next().or_else(|| candidates.iter().find(|address| address.is_ipv4() == ipv4)).copied()
    };
    [pick(true), pick(false)].into_iter().flatten().collect()
}

/// Everything the host's kernel takes for its own, or will once the plan is carried out.
pub(super) fn own_addresses(host: &LocalHost, router_addresses: &[IpAddr]) -> BTreeSet<IpAddr> {
    // What the interface has but the plan does not give it is about to be taken away.
    let kept = host.addresses.iter().filter(|address| !host.own_addresses.contains(address));
    kept.chain(router_addresses).copied().collect()
}

pub(super) fn role(host: &LocalHost, router_addresses: &[IpAddr]) -> HostPort {
    let addresses = own_addresses(host, router_addresses).into_iter().collect();
    HostPort { segment: POD_SEGMENT, mac: host.mac, addresses }
}

/// Pools, also of networks that are connected with the pods' segment, blocks outside of any pool, and prefixes that the
/// cluster assigned to nodes, to this one if it has its pods' addresses from there; the widest of each only.
fn pod_prefixes(cluster: &Cluster, node: &NodeName) -> BTreeSet<IpNet> {
    let connected = connected_with_pods(cluster);
    let of_networks = connected.iter().flat_map(|network| cluster.pools_of(Some(network)));
    let pools = cluster.pools_of(None).chain(of_networks).map(|pool| pool.cidr());
    let blocks = cluster.blocks_of(None).map(|block| block.cidr);
    let has_block = cluster.blocks_of(None).any(|block| block.node == *node);
    let used = cluster.nodes.values().filter(|other| other.name != *node || !has_block);
    let assigned = used.flat_map(|other| other.pod_cidrs.iter().copied());
    widest(pools.chain(blocks).chain(assigned).map(|cidr| cidr.net())).into_iter().collect()
}

/// Those of some prefixes that lie inside no other, by address.
pub(super) fn widest(prefixes: impl Iterator<Item = IpNet>) -> Vec<IpNet> {
    let mut sorted: Vec<IpNet> = prefixes.collect();
    // A prefix comes right before what lies inside it.
    sorted.sort_unstable_by_key(|prefix| (prefix.addr(), prefix.prefix_len()));
    let mut widest: Vec<IpNet> = Vec::new();
    for prefix in sorted {
        if !widest.last().is_some_and(|last| last.contains(&prefix)) {
            widest.push(prefix);
        }
    }
    widest
}
