//! Where pods and nodes have their addresses, as pools, blocks and assigned prefixes say.
//!
//! The ranges tell a pod that is not known yet from an address that is nobody's. Made anew when one of these objects
//! comes, goes or changes: one walk over all of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use millrace_engine::tables::SegmentIndex;

use crate::cluster::{BlockRecord, Cluster, NetworkName, NodeName};
use crate::plan::POD_SEGMENT;
use crate::plan::host::widest;
use crate::plan::tenants::Tenants;

/// Ranges of pods' addresses by segment, sorted, none of one inside another.
pub(super) fn pod_ranges(cluster: &Cluster, tenants: &Tenants) -> Vec<(SegmentIndex, IpNet)> {
    let networks = tenants.routed().map(|(network, segment)| (Some(network), segment));
    let segments = std::iter::once((None, POD_SEGMENT)).chain(networks);
    let of = |(network, segment)| ranges_of(cluster, network).into_iter().map(move |range| (segment, range));
    let mut ranges: Vec<(SegmentIndex, IpNet)> = segments.flat_map(of).collect();
    ranges.sort_unstable_by_key(|(segment, range)| (*segment, range.network()));
    ranges
}

/// Where members of a network, or of the pods' segment, have their addresses, none inside another: pools, blocks whose pool
/// is not there, for the pods' segment prefixes assigned to nodes.
pub(in crate::plan) fn ranges_of(cluster: &Cluster, network: Option<&NetworkName>) -> Vec<IpNet> {
    let pools = cluster.pools_of(network).map(|pool| pool.cidr());
    let of_pool =
        |block: &&BlockRecord| cluster.pools.get(&block.pool).is_some_and(|pool| pool.network == block.network);
    let blocks = cluster.blocks_of(network).filter(|block| !of_pool(block)).map(|block| block.cidr);
    let nodes = cluster.nodes.values().filter(|_| network.is_none());
    let assigned = nodes.flat_map(|node| node.pod_cidrs.iter().copied());
    widest(pools.chain(blocks).chain(assigned).map(|cidr| cidr.net()))
}

/// The addresses that nodes have in tenants' segments: the first of each block of theirs, by which they masquerade.
pub(super) fn router_addresses(
    cluster: &Cluster,
    tenants: &Tenants,
) -> BTreeMap<NodeName, BTreeMap<SegmentIndex, Vec<IpAddr>>> {
    let mut addresses: BTreeMap<NodeName, BTreeMap<SegmentIndex, Vec<IpAddr>>> = BTreeMap::new();
    for (network, segment) in tenants.routed() {
        for block in cluster.blocks_of(Some(network)) {
            let of_node = addresses.entry(block.node.clone()).or_default();
            of_node.entry(segment).or_default().extend(block.cidr.address(0));
        }
    }
    addresses
}

/// What the nodes' own processes use among pods: the first address of each block, which no pod gets, or of each assigned
/// prefix where there is no block. Which of several it is only that node knows.
pub(crate) fn node_addresses(cluster: &Cluster) -> BTreeMap<NodeName, Vec<IpAddr>> {
    let mut addresses: BTreeMap<NodeName, Vec<IpAddr>> = BTreeMap::new();
    for block in cluster.blocks_of(None) {
        addresses.entry(block.node.clone()).or_default().extend(block.cidr.address(0));
    }
    for node in cluster.nodes.values().filter(|node| !node.pod_cidrs.is_empty()) {
        let assigned = || node.pod_cidrs.iter().filter_map(|cidr| cidr.address(0)).collect();
        addresses.entry(node.name.clone()).or_insert_with(assigned);
    }
    addresses
}
