//! Tenants: which networks have a segment of their own, its number, and who exchanges routes with whom.
//!
//! All of it follows from the objects alone, so that every node says the same. A segment's number follows from its
//! network's name, so that adding one leaves the others' numbers and flows alone; only two names that hash alike are kept
//! apart by their order. Cost: one walk over the networks, and for those that connect one over the pools of each pair.

use std::collections::{BTreeMap, BTreeSet};

use millrace_engine::limits;
use millrace_engine::tables::{SegmentIndex, Vni};

use super::POD_SEGMENT;
use super::policy::ranges_of;
use crate::cluster::{Cidr, Cluster, NetworkKind, NetworkName, NetworkRecord, PODS};
use crate::observe::NETWORK;
use crate::problem::Problem;
use crate::stable_hash::hash_64;
use crate::store::ObjectKey;

/// Networks that have an identifier to themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tenants {
    routed: BTreeMap<NetworkName, SegmentIndex>,
    bridged: BTreeMap<NetworkName, Vni>,
}

impl Tenants {
    /// Finds them: of two networks with one identifier the first by name has it, behind the pods' segment.
    pub(crate) fn of(cluster: &Cluster, pods: Vni, problems: &mut Vec<Problem>) -> Self {
        let mut tenants = Self::default();
        let (mut owners, mut used) = (BTreeMap::from([(pods, "segment pods".to_owned())]), BTreeSet::new());
        for (name, network) in &cluster.networks {
            let Some(vni) = network.vni() else { continue };
            let key = || ObjectKey::cluster_scoped(NETWORK, name.as_str());
            if let Some(owner) = owners.get(&vni) {
                problems.push(Problem::new(format!("VNI {vni} belongs to {owner} already")).of(&key()).at("spec.vni"));
                continue;
            }
            owners.insert(vni, format!("network {name}"));
            match &network.kind {
                NetworkKind::Routed(_) if used.len() == MOST => {
                    let message = format!("there are more than {MOST} routed networks: this one has no segment");
                    problems.push(Problem::new(message).of(&key()));
                }
                NetworkKind::Routed(_) => {
                    let number = free_number(name.as_str(), &used);
                    used.insert(number);
                    tenants.routed.insert(name.clone(), number);
                }
                NetworkKind::Bridged(_) => drop(tenants.bridged.insert(name.clone(), vni)),
                NetworkKind::Wire(_) => {}
            }
        }
        tenants
    }

    /// The segment of a network that is routed; the pods' for `None`.
    pub(crate) fn segment(&self, network: Option<&NetworkName>) -> Option<SegmentIndex> {
        network.map_or(Some(POD_SEGMENT), |network| self.routed.get(network).copied())
    }

    /// The segment that policies know a member of this network in. A wire has none of its own: its members are known by the
    /// addresses they have to pods.
    pub(crate) fn segment_of_policies(&self, cluster: &Cluster, network: Option<&NetworkName>) -> Option<SegmentIndex> {
        let is_wire = |network| cluster.networks.get(network).is_some_and(|record| record.wire().is_some());
        match network {
            Some(network) if is_wire(network) => Some(POD_SEGMENT),
            network => self.segment(network),
        }
    }

    /// Routed networks with their segments, in order of names.
    pub(crate) fn routed(&self) -> impl Iterator<Item = (&NetworkName, SegmentIndex)> {
        self.routed.iter().map(|(name, segment)| (name, *segment))
    }

    /// Numbers that segments of other sorts keep off.
    pub(crate) fn numbers(&self) -> BTreeSet<SegmentIndex> {
        self.routed.values().copied().collect()
    }

    /// Bridged networks with their identifiers.
    pub(crate) fn bridged(&self) -> impl Iterator<Item = (&NetworkName, Vni)> {
        self.bridged.iter().map(|(name, vni)| (name, *vni))
    }
}

/// Routed networks there is room for: half of the numbers, so that bridges find some too.
const MOST: usize = limits::SEGMENTS / 2;

/// A number above the pods' segment's that is not used.
fn free_number(name: &str, used: &BTreeSet<SegmentIndex>) -> SegmentIndex {
    let last = limits::SEGMENTS as u64 - 1;
    let first = hash_64(&format!("network {name}")) % last;
    let numbers = (0..last).map(|step| SegmentIndex(((first + step) % last) as u16 + 1));
    let mut free = numbers.into_iter().filter(|number| !used.contains(number));
    free.next().unwrap_or_else(|| unreachable!("at most half of the numbers are in use"))
}

/// The networks, and the pods' segment as `None`, that a network exchanges routes with.
#[must_use]
pub fn connected_with(cluster: &Cluster, network: &NetworkName) -> Vec<Option<NetworkName>> {
    let of = |other: &NetworkName| Some(other.clone()).filter(|other| other.as_str() != PODS);
    let Some(routed) = cluster.routed_network(network) else { return Vec::new() };
    routed.connect.iter().filter(|other| connection(cluster, network, other).is_ok()).map(of).collect()
}

/// The networks that the pods' segment exchanges routes with.
pub(super) fn connected_with_pods(cluster: &Cluster) -> Vec<NetworkName> {
    let named = cluster.networks.values().filter(|network| names_pods(network)).map(|network| &network.name);
    named.filter(|network| connected_with(cluster, network).contains(&None)).cloned().collect()
}

/// Says of each network why it is not connected with one that it names.
pub(super) fn report(cluster: &Cluster, problems: &mut Vec<Problem>) {
    for (name, network) in &cluster.networks {
        for other in network.routed().into_iter().flat_map(|routed| &routed.connect) {
            if let Err(message) = connection(cluster, name, other) {
                let key = ObjectKey::cluster_scoped(NETWORK, name.as_str());
                problems.push(Problem::new(message).of(&key).at("spec.connect"));
            }
        }
    }
}

fn names_pods(network: &NetworkRecord) -> bool {
    network.routed().is_some_and(|routed| routed.connect.iter().any(|other| other.as_str() == PODS))
}

/// Whether two networks exchange routes; why not. What one says of the other, the other says of the one.
fn connection(cluster: &Cluster, own: &NetworkName, other: &NetworkName) -> Result<(), String> {
    if other.as_str() != PODS {
        let routed = cluster.networks.get(other).map(|network| network.routed());
        match routed {
            None => return Err(format!("there is no network {other}")),
            Some(None) => return Err(format!("network {other} is not routed")),
            Some(Some(routed)) if !routed.connect.contains(own) => {
                return Err(format!("network {other} does not name {own}: both must name each other"));
            }
            Some(Some(_)) => {}
        }
    }
    apart(cluster, own, other)?;
    // Neither may be hidden by an earlier one that the other is connected with as well.
    for (one, of) in [(own, other), (other, own)] {
        for earlier in partners(cluster, of).iter().take_while(|earlier| *earlier != one) {
            if let Err(message) = apart(cluster, one, earlier) {
                return Err(format!("{message}, and {of} is connected with {earlier} already"));
            }
        }
    }
    Ok(())
}

/// Whom a network names and is named by, in order.
fn partners(cluster: &Cluster, network: &NetworkName) -> Vec<NetworkName> {
    if network.as_str() == PODS {
        let named = cluster.networks.values().filter(|network| names_pods(network));
        return named.map(|network| network.name.clone()).collect();
    }
    let names_back = |other: &&NetworkName| {
        other.as_str() == PODS || cluster.routed_network(other).is_some_and(|routed| routed.connect.contains(network))
    };
    let own = cluster.routed_network(network).into_iter().flat_map(|routed| &routed.connect);
    own.filter(names_back).cloned().collect()
}

/// Whether two networks have no address in common.
fn apart(cluster: &Cluster, one: &NetworkName, other: &NetworkName) -> Result<(), String> {
    let ranges = |network: &NetworkName| ranges_of(cluster, Some(network).filter(|network| network.as_str() != PODS));
    let (of_one, of_other) = (ranges(one), ranges(other));
    let of_both = of_one.iter().flat_map(|own| of_other.iter().map(move |other| (own, other)));
    let mut overlapping = of_both.filter(|(own, other)| own.contains(*other) || other.contains(*own));
    match overlapping.next() {
        Some((own, foreign)) => Err(format!("{own} of {one} overlaps {foreign} of {other}")),
        None => Ok(()),
    }
}

/// The pools of one network that share addresses: those behind the first are problems.
pub(super) fn overlapping_pools(cluster: &Cluster, problems: &mut Vec<Problem>) {
    let pools: Vec<_> = cluster.pools.values().collect();
    for (at, pool) in pools.iter().enumerate() {
        let earlier = pools[..at].iter().filter(|first| first.network == pool.network);
        for first in earlier.filter(|first| first.cidr().overlaps(pool.cidr())) {
            let message = format!("{} overlaps {} of pool {}", pool.cidr(), first.cidr(), first.name());
            let key = ObjectKey::cluster_scoped(crate::observe::IP_POOL, pool.name().as_str());
            problems.push(Problem::new(message).of(&key).kind("address_contested"));
        }
        if let Some(network) = pool.network.as_ref().filter(|network| !cluster.networks.contains_key(*network)) {
            let key = ObjectKey::cluster_scoped(crate::observe::IP_POOL, pool.name().as_str());
            problems.push(Problem::new(format!("there is no network {network}")).of(&key).at("spec.network"));
        }
    }
}

/// The first address of the lowest block of each family: what the node has in a network.
pub(super) fn router_addresses(
    cluster: &Cluster,
    node: &crate::cluster::NodeName,
    network: &NetworkName,
) -> Vec<std::net::IpAddr> {
    let own = cluster.blocks_of(Some(network)).filter(|block| block.node == *node);
    let lowest = |ipv4: bool| {
        let of_family = own.clone().map(|block| block.cidr).filter(|cidr| cidr.is_ipv4() == ipv4);
        of_family.min().and_then(|cidr: Cidr| cidr.address(0))
    };
    [lowest(true), lowest(false)].into_iter().flatten().collect()
}
