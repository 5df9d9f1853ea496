//! Which address leads where: pods here, blocks elsewhere.
//!
//! A pod here has a route of its own, and so has each address of the host. The blocks of this node lead nowhere, so that an address without a pod is
//! answered at once instead of travelling. Blocks of other nodes, and prefixes assigned to nodes that are not run by
//! this program, lead through the tunnel; blocks of a pool that says so lead directly to nodes on one link with this. An
//! address that a node borrowed out of another's block has a route of its own, longer than the block's. Tenants' segments have
//! the same, of their own pods and blocks, always through tunnels.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use millrace_engine::packet::PortIndex;
use millrace_engine::tables::{Port, PortRole, Route, RouteTarget};

use super::local::{LocalHost, LocalView};
use super::pod_key;
use super::tenant_segments::Surroundings;
use super::tunnels::Reach;
use crate::cluster::{BlockRecord, Cluster, NetworkName, NodeName, NodeRecord, TunnelUse};
use crate::observe::{IP_BLOCK, NODE};
use crate::problem::Problem;
use crate::store::ObjectKey;

/// Whose addresses a segment has routes to.
pub(super) struct Extent<'a> {
    /// Its own: a network's, or the pods' segment's.
    pub(super) of: Option<&'a NetworkName>,
    /// Those of segments it is connected with.
    pub(super) connected: &'a [Option<NetworkName>],
}

/// All routes of a segment to the cluster's own addresses. Of two for the same prefix the first counts: pods by port number,
/// then the host, then single addresses of blocks that nodes agreed upon, then blocks by name, then assigned prefixes by
/// node, last a network's pools.
pub(super) fn routes(
    around: &Surroundings<'_>,
    extent: &Extent<'_>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<IpNet, Route> {
    let Surroundings { cluster, local, ports, reach, router_addresses, .. } = around;
    let mut table = RouteList { routes: BTreeMap::new(), problems, of: extent.of };
    for network in std::iter::once(extent.of).chain(extent.connected.iter().map(Option::as_ref)) {
        pods(local, ports, network, &mut table);
        if network.is_none() {
            host(local, ports, router_addresses, &mut table);
        }
        lent(cluster, local, reach, network, &mut table);
        blocks(cluster, local, reach, network, &mut table);
        match network {
            None => assigned(cluster, local, reach, &mut table),
            Some(network) => pools(cluster, network, &mut table),
        }
    }
    let RouteList { routes, problems, .. } = table;
    overlapping_blocks(cluster, extent.of, problems);
    routes
}

struct RouteList<'a> {
    routes: BTreeMap<IpNet, Route>,
    problems: &'a mut Vec<Problem>,
    /// Whose segment it is.
    of: Option<&'a NetworkName>,
}

impl RouteList<'_> {
    fn add(&mut self, prefix: IpNet, name: String, target: RouteTarget, object: impl FnOnce() -> ObjectKey) {
        match self.routes.get(&prefix) {
            Some(first) => {
                let message = format!("{prefix} belongs to {} already", first.name);
                self.problems.push(Problem::new(message).of(&object()).kind("address_contested"));
            }
            None => drop(self.routes.insert(prefix, Route { name: name.into(), target })),
        }
    }

    /// Where a packet of a network meets the outside of tunnels, nobody could tell whose it is.
    fn tunnel_use(&self, cluster: &Cluster, block: &BlockRecord) -> TunnelUse {
        if self.of.is_some() || block.network.is_some() {
            return TunnelUse::Always;
        }
        cluster.pools.get(&block.pool).map(|pool| pool.tunnel).unwrap_or_default()
    }
}

/// Of those pods only that have a port in the plan.
fn pods(
    local: &LocalView,
    ports: &BTreeMap<PortIndex, Port>,
    network: Option<&NetworkName>,
    table: &mut RouteList<'_>,
) {
    let planned = |index: &PortIndex| ports.get(index).is_some_and(|port| matches!(port.role, PortRole::Pod(_)));
    let members = local.pods.iter().filter(|(_, pod)| pod.network.as_ref() == network);
    for (port, attached) in members.filter(|(index, _)| planned(index)) {
        for address in &attached.addresses {
            let target = RouteTarget::Port { port: *port, mac: attached.mac };
            let pod = &attached.pod;
            table.add(IpNet::from(*address), format!("pod {pod}"), target, || pod_key(pod));
        }
    }
}

/// The host's addresses, if its port is in the plan.
fn host(local: &LocalView, ports: &BTreeMap<PortIndex, Port>, router_addresses: &[IpAddr], table: &mut RouteList<'_>) {
    let planned =
        |host: &&LocalHost| matches!(ports.get(&host.port), Some(port) if matches!(port.role, PortRole::Host(_)));
    let Some(host) = local.host.as_ref().filter(planned) else { return };
    for address in super::host::own_addresses(host, router_addresses) {
        let target = RouteTarget::Port { port: host.port, mac: host.mac };
        let key = || ObjectKey::cluster_scoped(NODE, local.node.as_str());
        table.add(IpNet::from(address), "this node".to_owned(), target, key);
    }
}

/// Addresses that nodes agreed upon, out of whose block ever: they lead to the node that has them now. One of this
/// node's without a pod leads nowhere, or it would travel to the block's node and back.
fn lent(
    cluster: &Cluster,
    local: &LocalView,
    reach: &Reach<'_>,
    network: Option<&NetworkName>,
    table: &mut RouteList<'_>,
) {
    for block in cluster.blocks_of(network) {
        for (address, entry) in block.assigned.iter().filter(|(_, entry)| entry.node != block.node) {
            let prefix = IpNet::from(*address);
            let (name, target) = if entry.node == local.node {
                if table.routes.contains_key(&prefix) {
                    continue;
                }
                (format!("address of block {} borrowed by this node", block.name), RouteTarget::Unreachable)
            } else {
                let name = format!("address of block {} borrowed by node {}", block.name, entry.node);
                (name, towards(local, reach, &entry.node, address.is_ipv4(), table.tunnel_use(cluster, block)))
            };
            table.add(prefix, name, target, || ObjectKey::cluster_scoped(IP_BLOCK, block.name.as_str()));
        }
    }
}

fn blocks(
    cluster: &Cluster,
    local: &LocalView,
    reach: &Reach<'_>,
    network: Option<&NetworkName>,
    table: &mut RouteList<'_>,
) {
    for block in cluster.blocks_of(network) {
        let key = || ObjectKey::cluster_scoped(IP_BLOCK, block.name.as_str());
        if let Some(pool) = cluster.pools.get(&block.pool).filter(|pool| !pool.cidr().contains(block.cidr)) {
            let message = format!("{} lies outside its pool {} ({})", block.cidr, pool.name(), pool.cidr());
            table.problems.push(Problem::new(message).of(&key()));
        }
        let (name, target) = if block.node == local.node {
            (format!("block {} of this node", block.name), RouteTarget::Unreachable)
        } else {
            if !cluster.nodes.contains_key(&block.node) {
                table.problems.push(Problem::new(format!("its node {} does not exist", block.node)).of(&key()));
            }
            let target = towards(local, reach, &block.node, block.cidr.is_ipv4(), table.tunnel_use(cluster, block));
            if target == RouteTarget::Unreachable && reach.end(&block.node, block.cidr.is_ipv4()).is_some() {
                let message =
                    format!("node {} is not on a link of this node, and its pool allows no tunnel", block.node);
                table.problems.push(Problem::new(message).of(&key()));
            }
            (format!("block {} of node {}", block.name, block.node), target)
        };
        table.add(block.cidr.net(), name, target, key);
    }
}

/// Prefixes that the cluster assigned to nodes without a block: those that flannel runs, and those that have addresses
/// from there. This node's own lead nowhere, as its blocks do.
fn assigned(cluster: &Cluster, local: &LocalView, reach: &Reach<'_>, table: &mut RouteList<'_>) {
    let owners: BTreeSet<&NodeName> = cluster.blocks_of(None).map(|block| &block.node).collect();
    for node in cluster.nodes.values().filter(|node: &&NodeRecord| !owners.contains(&node.name)) {
        for prefix in &node.pod_cidrs {
            let key = || ObjectKey::cluster_scoped(NODE, node.name.as_str());
            if node.name == local.node {
                table.add(prefix.net(), format!("prefix {prefix} of this node"), RouteTarget::Unreachable, key);
                continue;
            }
            let name = format!("prefix of node {}", node.name);
            table.add(prefix.net(), name, towards(local, reach, &node.name, prefix.is_ipv4(), TunnelUse::Always), key);
        }
    }
}

/// Through the tunnel or, where the pool allows, directly to a node on the link; nowhere if the node has no end that we
/// can reach so. Without a port of the host nothing that comes directly would be known for ours.
fn towards(local: &LocalView, reach: &Reach<'_>, node: &NodeName, ipv4: bool, tunnel: TunnelUse) -> RouteTarget {
    let Some(end) = reach.end(node, ipv4) else { return RouteTarget::Unreachable };
    let on_link = || local.host.is_some() && local.underlay.get(&end.address).is_some_and(|path| path.on_link);
    match tunnel {
        TunnelUse::AcrossSubnets | TunnelUse::Never if on_link() => RouteTarget::Direct { peer: end.address },
        TunnelUse::Never => RouteTarget::Unreachable,
        TunnelUse::Always | TunnelUse::AcrossSubnets => RouteTarget::Tunnel { peer: end.address, mac: end.mac.mac() },
    }
}

/// What of a network's pools nobody has claimed is nobody's, and not outside either.
fn pools(cluster: &Cluster, network: &NetworkName, table: &mut RouteList<'_>) {
    for pool in cluster.pools_of(Some(network)) {
        let name = || format!("pool {} of network {network}", pool.name()).into();
        let nowhere = || Route { name: name(), target: RouteTarget::Unreachable };
        table.routes.entry(pool.cidr().net()).or_insert_with(nowhere);
    }
}

/// Blocks one inside the other: both are routed, but two nodes may hand out one address.
fn overlapping_blocks(cluster: &Cluster, network: Option<&NetworkName>, problems: &mut Vec<Problem>) {
    let mut sorted: Vec<&BlockRecord> = cluster.blocks_of(network).collect();
    sorted.sort_by_key(|block| (block.cidr, &block.name));
    let mut around: Option<&BlockRecord> = None;
    for block in sorted {
        match around {
            // The same prefix twice is reported where the routes are added.
            Some(outer) if outer.cidr == block.cidr => {}
            Some(outer) if outer.cidr.contains(block.cidr) => {
                let message = format!("{} lies inside {} of block {}", block.cidr, outer.cidr, outer.name);
                problems.push(Problem::new(message).of(&ObjectKey::cluster_scoped(IP_BLOCK, block.name.as_str())));
            }
            _ => around = Some(block),
        }
    }
}
