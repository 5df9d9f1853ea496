//! Services as this node must serve them: each on its own a pure function of its objects and of a few facts of the node.
//!
//! The function is remembered, not its history: [`Memory`] keeps the last result of each Service with the very inputs
//! it came from, and takes it again where the inputs are the same. So a change costs the planning of what changed and
//! a look at a pointer for every other Service. Where two claim one address and port the first in order has it:
//! Services by name, then the node port of that number where the address is the node's, then pods' host ports; the others
//! are problems.

mod announcement;
mod derive;
mod endpoints;
mod for_host;
mod frontends;
mod host_ports;
mod memory;
mod places;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use millrace_engine::tables::SegmentIndex;
use millrace_engine::tables::services::{Frontend, FrontendKind, ServicePort};

pub use for_host::HostServices;
pub(super) use memory::Memory;

use super::host::router_addresses;
use super::{LocalView, POD_SEGMENT, pod_key};
use crate::cluster::{Cluster, NodeName, PodName, ServiceName};
use crate::observe::SERVICE;
use crate::store::ObjectKey;

/// What the configuration says of Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceOptions {
    /// Ranges of ClusterIPs, beside those that ServiceCIDR objects name.
    pub ranges: Vec<IpNet>,
    /// Which of the node's addresses serve node ports; none given: the node's internal addresses.
    pub node_port_addresses: Vec<IpNet>,
    /// Whether pods' connections to ClusterIPs are masqueraded too.
    pub masquerade_all: bool,
}

/// All Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicesPlan {
    /// What each Service, and each pod with host ports, needs.
    pub owners: Arc<BTreeMap<Owner, Arc<ServicePlan>>>,
    /// Claims that lost to an earlier owner of the same address and port.
    pub contested: Arc<BTreeSet<(FrontendKey, Owner)>>,
    /// Segments that have Services: the pods', and those of tenants that this node has.
    pub segments: BTreeSet<SegmentIndex>,
    /// Addresses at which node ports are served.
    pub node_addresses: Vec<IpAddr>,
    /// Ranges of ClusterIPs.
    pub ranges: Vec<IpNet>,
    /// Whether pods' connections to ClusterIPs are masqueraded too.
    pub masquerade_all: bool,
}

/// Whose an address and port is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// A Service's.
    Service(ServiceName),
    /// A pod's, by a port of the host that its object or its runtime asks for.
    Pod(PodName),
}

impl Owner {
    /// Its object's key.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        match self {
            Owner::Service(service) => ObjectKey {
                kind: SERVICE,
                namespace: Some(service.namespace().to_string()),
                name: service.name().to_owned(),
            },
            Owner::Pod(pod) => pod_key(pod),
        }
    }
}

/// Where a Service is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrontendKey {
    /// At an address of its own.
    Address {
        /// The address.
        address: IpAddr,
        /// IP protocol number.
        protocol: u8,
        /// The port.
        port: u16,
    },
    /// At the node's addresses.
    NodePort {
        /// Of which family.
        ipv4: bool,
        /// IP protocol number.
        protocol: u8,
        /// The port.
        port: u16,
    },
}

/// What one Service needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// The segment that it is served in.
    pub segment: SegmentIndex,
    /// Its ports, each once for each family.
    pub ports: Vec<Arc<ServicePort>>,
    /// Where it is reached, each key once.
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// What a load balancer is told of this node, if it asks.
    pub health_check: Option<HealthCheck>,
    /// What is wrong with it.
    pub problems: Vec<String>,
}

/// A port at which a load balancer asks whether this node has endpoints of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port, at the addresses of node ports.
    pub port: u16,
    /// Ready endpoints on this node with IPv4 addresses; terminating ones do not count.
    pub local_ready_ipv4: usize,
    /// The same with IPv6 addresses: each family is balanced by itself.
    pub local_ready_ipv6: usize,
}

impl HealthCheck {
    /// Ready endpoints on this node of the family of `address`.
    #[must_use]
    pub const fn local_ready(&self, address: &IpAddr) -> usize {
        if address.is_ipv4() { self.local_ready_ipv4 } else { self.local_ready_ipv6 }
    }
}

/// A destination that the node's kernel must hand to the switch when it comes from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Steered {
    /// The address.
    pub address: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// The port.
    pub port: u16,
}

/// Services with endpoints, but none on this node, where only this node's may serve: their packets are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WithoutLocalEndpoints {
    /// Those whose `internalTrafficPolicy` is Local.
    pub internal: usize,
    /// Those whose `externalTrafficPolicy` is Local.
    pub external: usize,
}

impl ServicesPlan {
    /// Counts Services of which a port has endpoints but none here, by the policy that wants them here. A Service under both
    /// policies counts twice. A walk over all ports.
    #[must_use]
    pub fn without_local_endpoints(&self) -> WithoutLocalEndpoints {
        let services = self.owners.iter().filter(|(owner, _)| matches!(owner, Owner::Service(_)));
        let mut count = WithoutLocalEndpoints::default();
        for (_, plan) in services {
            let lacking = || plan.ports.iter().filter(|port| port.any_usable && port.local.all.is_empty());
            count.internal += usize::from(lacking().any(|port| port.internal_local));
            count.external += usize::from(lacking().any(|port| port.external_local));
        }
        count
    }

    /// Whether an owner's claim to a key holds.
    #[must_use]
    pub fn holds(&self, key: FrontendKey, owner: &Owner) -> bool {
        // Few claims are contested, mostly none: no key is built for the others.
        self.contested.is_empty() || !self.contested.contains(&(key, owner.clone()))
    }

    /// Every destination that must be steered from the uplinks to the switch, each once: first those that clients outside
    /// are meant to call, then ClusterIPs.
    #[must_use]
    pub fn steered(&self) -> Vec<Steered> {
        let ranged = |address: &IpAddr| self.ranges.iter().any(|range| range.contains(address));
        let (mut steered, mut inside) = (Vec::new(), Vec::new());
        let called = |plan: &&Arc<ServicePlan>, frontend: &Frontend| {
            plan.segment == POD_SEGMENT || frontend.kind != FrontendKind::ClusterIp
        };
        let plans = self.owners.values();
        let frontends =
            plans.flat_map(|plan| plan.frontends.iter().filter(move |(_, frontend)| called(&plan, frontend)));
        for (key, _) in frontends {
            match *key {
                FrontendKey::Address { address, protocol, port } => {
                    let list = if ranged(&address) { &mut inside } else { &mut steered };
                    list.push(Steered { address, protocol, port });
                }
                FrontendKey::NodePort { ipv4, protocol, port } => {
                    let addresses = self.node_addresses.iter().filter(|address| address.is_ipv4() == ipv4);
                    steered.extend(addresses.map(|address| Steered { address: *address, protocol, port }));
                }
            }
        }
        for list in [&mut steered, &mut inside] {
            list.sort_unstable();
            list.dedup();
        }
        steered.append(&mut inside);
        steered
    }
}

/// What planning a Service reads beside its own objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Facts {
    node: Option<NodeName>,
    zone: Option<String>,
    zones: BTreeMap<NodeName, String>,
    node_addresses: Vec<IpAddr>,
    /// Addresses of the node, and those under which its processes call Services.
    own_addresses: (Vec<IpAddr>, Vec<IpAddr>),
}

impl Facts {
    fn new(cluster: &Cluster, local: &LocalView) -> Self {
        let zone = |name: &NodeName| cluster.nodes.get(name).and_then(|node| node.zone.clone());
        let zones = cluster.nodes.keys().filter_map(|name| Some((name.clone(), zone(name)?)));
        Self {
            node: Some(local.node.clone()),
            zone: zone(&local.node),
            zones: zones.collect(),
            node_addresses: node_addresses(cluster, local),
            own_addresses: (internal_addresses(cluster, local).collect(), router_addresses(cluster, local)),
        }
    }

    fn is_here(&self, node: Option<&NodeName>) -> bool {
        node.is_some() && node == self.node.as_ref()
    }
}

fn internal_addresses<'a>(cluster: &'a Cluster, local: &LocalView) -> impl Iterator<Item = IpAddr> + use<'a> {
    cluster.nodes.get(&local.node).into_iter().flat_map(|node| node.addresses.iter().copied())
}

/// The node's internal addresses, or those of its addresses that the configuration chooses; sorted.
fn node_addresses(cluster: &Cluster, local: &LocalView) -> Vec<IpAddr> {
    let internal = internal_addresses(cluster, local);
    let chosen = &local.services.node_port_addresses;
    let mut addresses: Vec<IpAddr> = if chosen.is_empty() {
        internal.collect()
    } else {
        let on_uplinks = local.uplinks.values().flat_map(|uplink| uplink.addresses.iter().copied());
        internal.chain(on_uplinks).filter(|address| chosen.iter().any(|range| range.contains(address))).collect()
    };
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Ranges of ClusterIPs by configuration and by objects, sorted.
fn ranges(cluster: &Cluster, local: &LocalView) -> Vec<IpNet> {
    let objects = cluster.service_ranges.values().flat_map(|object| object.ranges.iter().map(|range| range.net()));
    let mut ranges: Vec<IpNet> = local.services.ranges.iter().copied().chain(objects).collect();
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}
