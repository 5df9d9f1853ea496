//! What of Services the host's own kernel must send to the switch: processes of the node call them too.
//!
//! Addresses of Services are routed by `millrace0`. Ports at addresses that are the host's own never meet a route, so they are
//! told apart. An address of a node is never routed so, or the way to that node would lead into the switch.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use millrace_engine::limits;

use super::{FrontendKey, ServicesPlan};
use crate::cluster::Cluster;
use crate::plan::POD_SEGMENT;

/// What the host sends to the switch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostServices {
    /// Ranges of ClusterIPs, and addresses of Services outside of these.
    pub prefixes: BTreeSet<IpNet>,
    /// Own addresses that serve ports of Services.
    pub addresses: BTreeSet<IpAddr>,
    /// What these serve: address, protocol, port; without the loopback addresses.
    pub served: BTreeSet<(IpAddr, u8, u16)>,
    /// Ports there: family, protocol, port.
    pub ports: BTreeSet<(bool, u8, u16)>,
    /// Ports at the loopback addresses among them: address, protocol, port.
    pub loopback_ports: BTreeSet<(Ipv4Addr, u8, u16)>,
    /// Addresses that found no room among the routes.
    pub left_out: usize,
}

impl ServicesPlan {
    /// What a host with these addresses of its own sends to the switch. A walk over all frontends.
    #[must_use]
    pub fn for_host(&self, cluster: &Cluster, own: &[IpAddr]) -> HostServices {
        let nodes: BTreeSet<IpAddr> = cluster.nodes.values().flat_map(|node| node.addresses.iter().copied()).collect();
        let own: BTreeSet<IpAddr> = own.iter().copied().collect();
        let mut host = HostServices { prefixes: self.ranges.iter().copied().collect(), ..HostServices::default() };
        let ranged = |address: IpAddr| self.ranges.iter().any(|range| range.contains(&address));
        let mut addresses = BTreeSet::new();
        // The host is no member of a tenant's segment.
        let plans = self.owners.values().filter(|plan| plan.segment == POD_SEGMENT);
        for (key, _) in plans.flat_map(|plan| &plan.frontends) {
            match *key {
                FrontendKey::NodePort { ipv4, protocol, port } => {
                    let is_here = |address: &&IpAddr| address.is_ipv4() == ipv4 && own.contains(address);
                    for address in self.node_addresses.iter().filter(is_here) {
                        host.addresses.insert(*address);
                        host.ports.insert((ipv4, protocol, port));
                        host.served.insert((*address, protocol, port));
                    }
                }
                FrontendKey::Address { address: IpAddr::V4(address), protocol, port } if address.is_loopback() => {
                    host.addresses.insert(address.into());
                    host.loopback_ports.insert((address, protocol, port));
                }
                FrontendKey::Address { address, protocol, port } if own.contains(&address) => {
                    host.addresses.insert(address);
                    host.ports.insert((address.is_ipv4(), protocol, port));
                    host.served.insert((address, protocol, port));
                }
                FrontendKey::Address { address, .. } if ranged(address) || nodes.contains(&address) => {}
                FrontendKey::Address { address, .. } => drop(addresses.insert(address)),
            }
        }
        host.left_out = addresses.len().saturating_sub(limits::HOST_SERVICE_ROUTES);
        host.prefixes.extend(addresses.into_iter().take(limits::HOST_SERVICE_ROUTES).map(IpNet::from));
        host
    }
}
