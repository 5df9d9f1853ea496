//! Where pods and nodes have their addresses, as pools, blocks and assigned prefixes say.
//!
//! The ranges tell a pod that is not known yet from an address that is nobody's. Made anew when one of these objects
//! comes, goes or changes: one walk over all of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::cluster::{BlockRecord, Cluster, NodeName};
use crate::plan::host::widest;

/// Ranges of pods' addresses, sorted, none inside another: pools, blocks whose pool is not there, prefixes assigned to nodes.
pub(super) fn pod_ranges(cluster: &Cluster) -> Vec<IpNet> {
    let pools = cluster.pools.values().filter(|pool| pool.network.is_none()).map(|pool| pool.cidr());
    let without_pool = |block: &&BlockRecord| !cluster.pools.contains_key(&block.pool);
    let blocks = cluster.blocks.values().filter(without_pool).map(|block| block.cidr);
    let assigned = cluster.nodes.values().flat_map(|node| node.pod_cidrs.iter().copied());
    widest(pools.chain(blocks).chain(assigned).map(|cidr| cidr.net()))
}

/// What the nodes' own processes use among pods: the first address of each block, which no pod gets, or of each assigned
/// prefix where there is no block. Which of several it is only that node knows.
pub(crate) fn node_addresses(cluster: &Cluster) -> BTreeMap<NodeName, Vec<IpAddr>> {
    let mut addresses: BTreeMap<NodeName, Vec<IpAddr>> = BTreeMap::new();
    for block in cluster.blocks.values().filter(|block| !cluster.is_of_network(block)) {
        addresses.entry(block.node.clone()).or_default().extend(block.cidr.address(0));
    }
    for node in cluster.nodes.values().filter(|node| !node.pod_cidrs.is_empty()) {
        let assigned = || node.pod_cidrs.iter().filter_map(|cidr| cidr.address(0)).collect();
        addresses.entry(node.name.clone()).or_insert_with(assigned);
    }
    addresses
}
