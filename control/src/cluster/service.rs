//! Services, the endpoints behind them, and the ranges their addresses are taken from.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use millrace_engine::tables::services::Balance;

use super::{Cidr, Cursor, NodeName, ServiceName, SliceName};

/// A Service that is to be proxied, or one that is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRecord {
    /// Its name.
    pub name: ServiceName,
    /// Whether this program serves it: not if it is headless, an ExternalName, or another proxy's by its label.
    pub proxied: bool,
    /// Its addresses, at most one of each family; it is served in those families only.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePortRecord>,
    /// Addresses its author chose.
    pub external_ips: Vec<IpAddr>,
    /// Addresses a load balancer gave it that the node must serve itself (`ipMode: VIP`).
    pub load_balancer_ips: Vec<IpAddr>,
    /// Networks whose clients may use the load balancer's addresses; empty for all.
    pub source_ranges: Vec<IpNet>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// How long a client stays with its endpoint, if it does.
    pub affinity: Option<Duration>,
    /// Whether pods that are not ready count as ready, where endpoints are derived.
    pub publish_not_ready: bool,
    /// What to prefer among endpoints, where they are derived.
    pub distribution: Distribution,
    /// Port at which a load balancer asks whether this node has endpoints.
    pub health_check_port: Option<u16>,
    /// Labels of its pods; empty for none.
    pub selector: BTreeMap<String, String>,
    /// How one endpoint of several is picked.
    pub balance: Balance,
    /// Shares of endpoints by pod name or address; 1 where nothing is said.
    pub weights: BTreeMap<String, u16>,
    /// Which clients get which endpoints first.
    pub client_subnets: Vec<ClientSubnet>,
}

/// `trafficDistribution`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distribution {
    /// None said.
    #[default]
    Even,
    /// `PreferSameZone`, and its older name `PreferClose`.
    SameZone,
    /// `PreferSameNode`.
    SameNode,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePortRecord {
    /// Its name; empty if it has none.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// The port at the Service's addresses.
    pub port: u16,
    /// The port at every node, if there is one.
    pub node_port: Option<u16>,
    /// The port at pods, where endpoints are derived.
    pub target: TargetPort,
}

/// A port at pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// The same everywhere.
    Number(u16),
    /// What each pod calls by this name.
    Name(String),
}

/// That clients of a network get certain endpoints first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSubnet {
    /// The clients.
    pub clients: IpNet,
    /// Groups of endpoints; the first with one that can serve is used.
    pub groups: Vec<EndpointGroup>,
}

/// Endpoints named by what they have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointGroup {
    /// Their addresses lie in a prefix.
    Prefix(IpNet),
    /// They are in a zone.
    Zone(String),
    /// They are on a node.
    Node(String),
}

/// Endpoints of one Service and family; several slices may belong to one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceRecord {
    /// Its name.
    pub name: SliceName,
    /// The Service it belongs to; `None` for one that is of no use here.
    pub service: Option<ServiceName>,
    /// Whether its addresses are IPv4.
    pub ipv4: bool,
    /// Ports, each at all endpoints of the slice.
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    pub endpoints: Vec<EndpointRecord>,
}

/// A port at the endpoints of a slice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlicePort {
    /// Name of the Service's port; empty if it has none.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// The port.
    pub port: u16,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointRecord {
    /// Its address.
    pub address: IpAddr,
    /// Gets new connections.
    pub ready: bool,
    /// Serves those it has.
    pub serving: bool,
    /// Is about to end.
    pub terminating: bool,
    /// The node it is on.
    pub node: Option<NodeName>,
    /// The zone it is in.
    pub zone: Option<String>,
    /// Zones that should use it.
    pub zone_hints: Vec<String>,
    /// Nodes that should use it.
    pub node_hints: Vec<String>,
    /// The pod it is.
    pub pod: Option<String>,
}

/// Ranges that addresses of Services are taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRangeRecord {
    /// At most one of each family.
    pub ranges: Vec<Cidr>,
}

/// All slices, found by the Service they belong to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slices {
    by_service: BTreeMap<ServiceName, BTreeMap<SliceName, Arc<SliceRecord>>>,
    owners: BTreeMap<SliceName, ServiceName>,
}

impl Slices {
    /// Adds or replaces a slice.
    pub fn insert(&mut self, slice: SliceRecord) {
        if self.owners.get(&slice.name) != slice.service.as_ref() {
            self.remove(&slice.name);
        }
        let Some(service) = slice.service.clone() else { return };
        self.owners.insert(slice.name.clone(), service.clone());
        let slices = self.by_service.entry(service).or_default();
        // One told again without a change stays the very same record.
        if slices.get(&slice.name).is_none_or(|known| **known != slice) {
            slices.insert(slice.name.clone(), Arc::new(slice));
        }
    }

    /// Removes a slice.
    pub fn remove(&mut self, name: &SliceName) {
        let Some(service) = self.owners.remove(name) else { return };
        if let Some(slices) = self.by_service.get_mut(&service) {
            slices.remove(name);
            if slices.is_empty() {
                self.by_service.remove(&service);
            }
        }
    }

    /// The slices of Services that are asked for in order of their names.
    #[must_use]
    pub fn walk(&self) -> Cursor<'_, ServiceName, BTreeMap<SliceName, Arc<SliceRecord>>> {
        Cursor::over(&self.by_service)
    }

    /// The slices of a Service, in order of their names.
    pub fn of(&self, service: &ServiceName) -> impl Iterator<Item = &Arc<SliceRecord>> {
        self.by_service.get(service).into_iter().flat_map(BTreeMap::values)
    }
}
