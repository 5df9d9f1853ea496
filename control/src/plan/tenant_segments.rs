//! The segments of tenants that this node needs: those of pods that are plugged in here, and those connected with them.
//!
//! A tenant's segment is routed as the pods' is, through tunnels in any case, and by its own addresses: what leads nowhere in it
//! leads nowhere else. With `egress` it has the host's ways to the outside, but none of them to the cluster's own addresses.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use millrace_engine::limits;
use millrace_engine::packet::PortIndex;
use millrace_engine::tables::{Port, Route, RouteTarget, SegmentIndex};

use super::policy::ranges_of;
use super::routes::{self, Extent};
use super::tenants::{Tenants, connected_with, connected_with_pods, router_addresses};
use super::tunnels::{self, Reach};
use super::{GATEWAY_ADDRESSES, GATEWAY_MAC, LocalView, SegmentPlan};
use crate::cluster::{Cluster, NetworkName};
use crate::problem::Problem;

/// Routed networks whose segments this node has.
pub(super) fn present(cluster: &Cluster, local: &LocalView, tenants: &Tenants) -> BTreeSet<NetworkName> {
    if tenants.routed().next().is_none() {
        return BTreeSet::new();
    }
    let is_numbered = |network: &&NetworkName| tenants.segment(Some(*network)).is_some();
    let own = local.pods.values().filter_map(|pod| pod.network.as_ref()).filter(is_numbered).cloned();
    let mut present: BTreeSet<NetworkName> = own.collect();
    let beside: Vec<NetworkName> = present.iter().flat_map(|own| connected_with(cluster, own)).flatten().collect();
    // A packet travels under the identifier of its sender's network: whoever may send to pods here must be known here.
    present.extend(beside.into_iter().chain(connected_with_pods(cluster)).filter(|network| is_numbered(&network)));
    present
}

/// What the segments of all tenants share.
pub(super) struct Surroundings<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) local: &'a LocalView,
    pub(super) tenants: &'a Tenants,
    pub(super) ports: &'a BTreeMap<PortIndex, Port>,
    pub(super) reach: &'a Reach<'a>,
    /// The node's addresses among pods.
    pub(super) router_addresses: &'a [std::net::IpAddr],
}

impl Surroundings<'_> {
    /// The segment of a routed network.
    pub(super) fn segment(
        &self,
        network: &NetworkName,
        problems: &mut Vec<Problem>,
    ) -> Option<(SegmentIndex, SegmentPlan)> {
        let number = self.tenants.segment(Some(network))?;
        let record = self.cluster.routed_network(network)?;
        let connected = self.numbered(connected_with(self.cluster, network));
        let mut routes = self.routes(Some(network), &connected, problems);
        if record.egress {
            super::outside::add_routes(self.local, self.ports, &mut routes);
            self.close_cluster(network, &connected, &mut routes);
        }
        let plan = SegmentPlan {
            name: network.as_str().into(),
            vni: record.vni,
            gateway_mac: GATEWAY_MAC,
            gateway_addresses: GATEWAY_ADDRESSES.to_vec(),
            router_addresses: router_addresses(self.cluster, &self.local.node, network),
            masquerade_ports: self.local.masquerade_ports,
            known_outside: false,
            connected: self.prefixes(network.as_str(), &connected, problems),
            tunnel_mac: tunnels::own_mac(self.cluster.nodes.get(&self.local.node), &self.local.node),
            routes,
        };
        Some((number, plan))
    }

    /// Routes of a network, or of the pods' segment, and of those it is connected with.
    pub(super) fn routes(
        &self,
        network: Option<&NetworkName>,
        connected: &[Option<NetworkName>],
        problems: &mut Vec<Problem>,
    ) -> BTreeMap<IpNet, Route> {
        let extent = Extent { of: network, connected };
        routes::routes(self, &extent, problems)
    }

    /// Those of some networks that have a segment.
    pub(super) fn numbered(&self, networks: Vec<Option<NetworkName>>) -> Vec<Option<NetworkName>> {
        networks.into_iter().filter(|network| self.tenants.segment(network.as_ref()).is_some()).collect()
    }

    /// The prefixes of connected networks, with their segments. Of the pods' segment they are its pods': its node's other
    /// addresses are told by their routes alone.
    pub(super) fn prefixes(
        &self,
        segment: &str,
        connected: &[Option<NetworkName>],
        problems: &mut Vec<Problem>,
    ) -> BTreeMap<IpNet, SegmentIndex> {
        let of = |network: &Option<NetworkName>| {
            let segment = self.tenants.segment(network.as_ref());
            let mut ranges = ranges_of(self.cluster, network.as_ref());
            if network.is_none() {
                let host =
                    self.local.host.iter().flat_map(|host| super::host::own_addresses(host, self.router_addresses));
                ranges.extend(host.map(IpNet::from));
                ranges = super::host::widest(ranges.into_iter());
            }
            segment.into_iter().flat_map(move |segment| ranges.clone().into_iter().map(move |range| (range, segment)))
        };
        let all: BTreeMap<IpNet, SegmentIndex> = connected.iter().flat_map(of).collect();
        let most = limits::CONNECTED_PREFIXES;
        if all.len() > most {
            let message =
                format!("segment {segment} is connected with {} prefixes, of which {most} are known", all.len());
            problems.push(Problem::new(message));
        }
        all.into_iter().take(most).collect()
    }

    /// Addresses of the cluster's that are not the tenant's are not outside either: pods', and those of nodes.
    fn close_cluster(
        &self,
        network: &NetworkName,
        connected: &[Option<NetworkName>],
        routes: &mut BTreeMap<IpNet, Route>,
    ) {
        if connected.contains(&None) {
            return;
        }
        let networks = std::iter::once(Some(network)).chain(connected.iter().map(Option::as_ref));
        let own: Vec<IpNet> = networks.flat_map(|network| ranges_of(self.cluster, network)).collect();
        let pods = ranges_of(self.cluster, None).into_iter();
        let nodes = self.cluster.nodes.values().flat_map(|node| &node.addresses).map(|address| IpNet::from(*address));
        for (prefix, name) in pods.map(|prefix| (prefix, "pods")).chain(nodes.map(|prefix| (prefix, "a node"))) {
            if !own.iter().any(|own| own.contains(&prefix)) {
                let closed =
                    || Route { name: format!("{name}, not of {network}").into(), target: RouteTarget::Unreachable };
                routes.insert(prefix, closed());
            }
        }
    }
}
