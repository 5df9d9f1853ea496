//! Which tunnel end of ours meets which end of another node.
//!
//! Two nodes use IPv4 if both have it, else IPv6, so that both sides choose alike: frames are accepted only from the
//! address that the other side sends from. Nodes of flannel have an end for each family of pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use millrace_engine::limits;
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::tables::{NextHop, Peer, Vtep};

use super::bridges;
use super::local::LocalView;
use crate::cluster::{Cluster, NodeName, NodeRecord, StationMac, TunnelEnd};
use crate::observe::NODE;
use crate::problem::Problem;
use crate::store::ObjectKey;

/// Longest outer packet assumed where neither path nor uplink is known.
const MTU_UNKNOWN: u32 = 1500;

/// Our own ends: those addresses of this node's object that an uplink has. A node with bridges and without an object
/// has the first address of each family of its uplinks; where no node has an object, it is a switch that stands alone.
pub(super) fn own_ends(cluster: &Cluster, local: &LocalView, problems: &mut Vec<Problem>) -> Vec<Vtep> {
    let Some(own) = cluster.nodes.get(&local.node) else {
        let bridged = bridges::any(cluster, local);
        if !(bridged && cluster.nodes.is_empty()) {
            let key = ObjectKey::cluster_scoped(NODE, local.node.as_str());
            problems.push(
                Problem::new("this node has no object: other nodes cannot know where to send")
                    .of(&key)
                    .kind("not_reachable"),
            );
        }
        return if bridged { uplink_ends(local) } else { Vec::new() };
    };
    let planned = |port: &PortIndex| usize::from(port.0) < limits::PORTS;
    let uplinks = || local.uplinks.iter().filter(|(port, _)| planned(port));
    let holder = |address: IpAddr| uplinks().find(|(_, uplink)| uplink.addresses.contains(&address));
    let ends = [own.ipv4_end, own.ipv6_end].into_iter().flatten();
    let found = ends.filter_map(|end| holder(end.address).map(|(port, _)| Vtep { address: end.address, port: *port }));
    let found: Vec<_> = found.collect();
    if found.is_empty() && !local.uplinks.is_empty() {
        let key = ObjectKey::cluster_scoped(NODE, local.node.as_str());
        problems.push(
            Problem::new("none of its internal addresses is on an uplink of this node").of(&key).kind("not_reachable"),
        );
    }
    found
}

fn uplink_ends(local: &LocalView) -> Vec<Vtep> {
    let all = || {
        let uplinks = local.uplinks.iter();
        uplinks.flat_map(|(port, uplink)| uplink.addresses.iter().map(|address| (*port, *address)))
    };
    let first = |ipv4: bool| all().find(|(_, address)| address.is_ipv4() == ipv4);
    let ends = [first(true), first(false)].into_iter().flatten();
    ends.map(|(port, address)| Vtep { address, port }).collect()
}

/// MAC address of this node's end; known even before the node's object is.
pub(super) fn own_mac(own: Option<&NodeRecord>, name: &NodeName) -> Mac {
    own.map_or_else(|| StationMac::of_node(name), NodeRecord::tunnel_mac).mac()
}

/// How other nodes are reached.
pub(super) struct Reach<'a> {
    /// Of each node the ends for IPv4 pods and for IPv6 pods.
    ends: BTreeMap<&'a NodeName, [Option<TunnelEnd>; 2]>,
    owners: BTreeMap<IpAddr, &'a NodeName>,
}

impl Reach<'_> {
    /// Where to send packets for a prefix of this family of this node.
    pub(super) fn end(&self, node: &NodeName, ipv4: bool) -> Option<TunnelEnd> {
        self.ends.get(node)?[usize::from(!ipv4)]
    }

    /// All addresses in use.
    pub(super) fn destinations(&self) -> Vec<IpAddr> {
        self.owners.keys().copied().collect()
    }
}

/// Finds the ends to use; of two nodes with one address the first by name has it.
pub(super) fn reach<'a>(
    cluster: &'a Cluster,
    own: &NodeName,
    own_ends: &[Vtep],
    problems: &mut Vec<Problem>,
) -> Reach<'a> {
    let ipv4 = own_ends.iter().any(|end| end.address.is_ipv4());
    let ipv6 = own_ends.iter().any(|end| end.address.is_ipv6());
    let mut reach = Reach { ends: BTreeMap::new(), owners: BTreeMap::new() };
    for node in cluster.nodes.values().filter(|node| node.name != *own) {
        let key = || ObjectKey::cluster_scoped(NODE, node.name.as_str());
        let (over_ipv4, over_ipv6) = (node.ipv4_end.filter(|_| ipv4), node.ipv6_end.filter(|_| ipv6));
        let common = over_ipv4.or(over_ipv6);
        let mut ends = if node.ends_by_family { [over_ipv4, over_ipv6] } else { [common, common] };
        if common.is_none() && !own_ends.is_empty() {
            problems.push(
                Problem::new("has no address of a family that this node has on an uplink")
                    .of(&key())
                    .kind("not_reachable"),
            );
        }
        for end in &mut ends {
            let Some(address) = end.map(|end| end.address) else { continue };
            let owner = if own_ends.iter().any(|own| own.address == address) {
                own
            } else {
                reach.owners.entry(address).or_insert(&node.name)
            };
            if *owner != node.name {
                problems.push(
                    Problem::new(format!("has the address {address} of node {owner}"))
                        .of(&key())
                        .kind("address_contested"),
                );
                *end = None;
            }
        }
        reach.ends.insert(&node.name, ends);
    }
    reach
}

/// The peers, with what the host's kernel knows of the way to them.
pub(super) fn peers(
    local: &LocalView,
    own_ends: &[Vtep],
    reach: &Reach<'_>,
    remotes: &BTreeSet<IpAddr>,
) -> BTreeMap<IpAddr, Peer> {
    let peer = |address: &IpAddr, name: Arc<str>| {
        let same_family = |end: &&Vtep| end.address.is_ipv4() == address.is_ipv4();
        let own = own_ends.iter().find(same_family)?;
        let path = local.underlay.get(address);
        // The other side knows our tunnel ends only, whatever source the kernel would prefer.
        let preferred = path.and_then(|path| own_ends.iter().find(|end| end.address == path.source));
        let uplink = |port| local.uplinks.get(port);
        let next_hop = path.and_then(|path| {
            let destination_mac = path.next_hop.filter(|_| uplink(&path.port).is_some_and(|uplink| uplink.link_up))?;
            Some(NextHop { port: path.port, source_mac: path.source_mac, destination_mac })
        });
        let mtu = path.map(|path| path.mtu).or_else(|| uplink(&own.port).map(|uplink| uplink.mtu));
        let peer = Peer {
            name,
            address: *address,
            source: preferred.unwrap_or(own).address,
            next_hop,
            mtu: mtu.unwrap_or(MTU_UNKNOWN),
        };
        Some((*address, peer))
    };
    let nodes = reach.owners.iter().filter_map(|(address, name)| peer(address, name.as_str().into()));
    let others = remotes.iter().filter(|address| !reach.owners.contains_key(address));
    nodes.chain(others.filter_map(|address| peer(address, address.to_string().into()))).collect()
}
