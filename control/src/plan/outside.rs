//! The way out of the cluster: where the host's routes by uplinks lead, and what routes there share.
//!
//! The host's own routes decide, and its kernel resolves the neighbours. A prefix of the cluster's counts before one of the
//! host's. Without a port of the host nothing leads outside: answers come by the host's addresses, and what of them is not
//! ours could not be given back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use millrace_engine::limits;
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::tables::{Outside, Port, PortRange, PortRole, Route, RouteTarget, SegmentIndex};

use super::local::LocalView;

/// What routes to the outside share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutsidePlan {
    /// Source ports of connections that leave under an uplink's address; the host's own sockets keep off them.
    pub ports: PortRange,
    /// Networks that know the way to pods.
    pub exempt: BTreeSet<IpNet>,
    /// Addresses that connections leave under: their answers are ours.
    pub sources: BTreeSet<IpAddr>,
    /// MAC addresses of neighbours on the links of uplinks.
    pub neighbours: BTreeMap<(PortIndex, IpAddr), Mac>,
    /// Tenants' segments whose Services are called from outside.
    pub tenants: BTreeSet<SegmentIndex>,
    /// Addresses of load balancers that this node has on the link of an uplink.
    pub announced: BTreeMap<IpAddr, PortIndex>,
}

impl Default for OutsidePlan {
    fn default() -> Self {
        Self {
            ports: Outside::default().ports,
            exempt: BTreeSet::new(),
            sources: BTreeSet::new(),
            neighbours: BTreeMap::new(),
            tenants: BTreeSet::new(),
            announced: BTreeMap::new(),
        }
    }
}

impl OutsidePlan {
    pub(super) fn new(
        local: &LocalView,
        routes: &BTreeMap<IpNet, Route>,
        tenants: BTreeSet<SegmentIndex>,
        announced: BTreeMap<IpAddr, PortIndex>,
    ) -> Self {
        let source = |route: &Route| match route.target {
            RouteTarget::Outside { source, .. } => Some(source),
            _ => None,
        };
        let sources: BTreeSet<IpAddr> = routes.values().filter_map(source).collect();
        if sources.is_empty() {
            return Self { ports: local.outside_ports, ..Self::default() };
        }
        let exempt = local.exempt.iter().map(IpNet::trunc).take(limits::OUTSIDE_EXEMPT).collect();
        let neighbours = local.outside.neighbours.iter().take(limits::OUTSIDE_NEIGHBOURS);
        let neighbours = neighbours.map(|(at, mac)| (*at, *mac)).collect();
        Self { ports: local.outside_ports, exempt, sources, neighbours, tenants, announced }
    }
}

/// Adds the host's routes by uplinks that are in the plan, where no route of the cluster has the very prefix.
pub(super) fn add_routes(local: &LocalView, ports: &BTreeMap<PortIndex, Port>, routes: &mut BTreeMap<IpNet, Route>) {
    let gives_back = |port: &PortIndex| {
        let role = ports.get(port).map(|port| &port.role);
        matches!(role, Some(PortRole::Uplink(uplink)) if uplink.hand_back.is_some())
    };
    let usable = local.outside.routes.iter().filter(|(prefix, path)| !is_link_scoped(prefix) && gives_back(&path.port));
    for (prefix, path) in usable.take(limits::OUTSIDE_ROUTES) {
        let target =
            RouteTarget::Outside { port: path.port, gateway: path.gateway, source: path.source, mtu: path.mtu };
        let name = if path.gateway.is_some() { "outside, by a router" } else { "outside, on the link" };
        routes.entry(*prefix).or_insert_with(|| Route { name: name.into(), target });
    }
}

/// Addresses that never leave the link, and groups.
fn is_link_scoped(prefix: &IpNet) -> bool {
    let address = prefix.addr();
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    prefix.prefix_len() > 0 && (link_local || address.is_multicast())
}
