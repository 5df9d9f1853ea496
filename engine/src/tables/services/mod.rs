//! Services: which addresses stand for which endpoints.
//!
//! By segment, address, protocol and port; node ports by protocol and port alone, at the node's own addresses. Trees
//! share what did not change, so one Service's change costs a few copied nodes and is found again by comparing trees.
//! What a lookup means is decided by the stage `service`; here is only what was planned.

mod changes;
mod endpoints;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub use endpoints::{Balance, Endpoint, EndpointSet, EndpointState, Scope, ServiceId, ServicePort};

use super::SegmentIndex;
use super::lookup::PrefixTree;
use super::segments::address_bits;

/// An address and port under which a Service is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// What sort of address it is.
    pub kind: FrontendKind,
    /// What stands behind it.
    pub service: Arc<ServicePort>,
    /// Networks whose clients are let in; `None` for all.
    pub sources: Option<Arc<[IpNet]>>,
}

/// Sorts of addresses of Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FrontendKind {
    /// Of the cluster's own range; under the internal traffic policy. All others are under the external one.
    ClusterIp,
    /// Given by a load balancer.
    LoadBalancer,
    /// Chosen by the Service's author.
    ExternalIp,
    /// Any address of the node.
    NodePort,
    /// A container's port at the node of its pod.
    HostPort,
}

impl FrontendKind {
    /// Its name, as `trace` and `show services` write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalIp => "externalIP",
            Self::NodePort => "NodePort",
            Self::HostPort => "hostPort",
        }
    }
}

/// The ports of one address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Vip {
    /// In order of protocol and port, each once.
    ports: Vec<((u8, u16), Frontend)>,
}

impl Vip {
    fn get(&self, protocol: u8, port: u16) -> Option<&Frontend> {
        let at = self.ports.binary_search_by_key(&(protocol, port), |(key, _)| *key).ok()?;
        self.ports.get(at).map(|(_, frontend)| frontend)
    }

    fn is_cluster_ip(&self) -> bool {
        self.ports.iter().any(|(_, frontend)| frontend.kind == FrontendKind::ClusterIp)
    }
}

/// What an address and port are to Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A Service is reached here.
    Frontend(&'a Frontend),
    /// The address is a ClusterIP, but no port of its Service.
    WrongPort,
    /// The address lies in a range of ClusterIPs and belongs to no Service.
    Unallocated(IpNet),
    /// Nothing to Services.
    Nothing,
}

/// The Services of one segment.
#[derive(Clone, Debug, Default)]
pub struct SegmentServices {
    /// By address, IPv4 and IPv6.
    vips: [PrefixTree<Arc<Vip>>; 2],
    /// By protocol and port, IPv4 and IPv6.
    node_ports: [PrefixTree<Arc<Frontend>>; 2],
    /// Addresses at which node ports are served.
    node_addresses: Arc<[IpAddr]>,
    /// Ranges of ClusterIPs.
    ranges: Arc<[IpNet]>,
    /// Whether pods' connections to ClusterIPs are masqueraded too.
    pub masquerade_all: bool,
}

/// Bits that name a node port in its tree: protocol, then port.
const NODE_PORT_BITS: u8 = 24;

fn node_port_bits(protocol: u8, port: u16) -> u128 {
    u128::from(u32::from(protocol) << 16 | u32::from(port)) << 104
}

fn family(ipv4: bool) -> usize {
    usize::from(!ipv4)
}

fn length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl SegmentServices {
    /// What this destination is.
    #[must_use]
    pub fn find(&self, address: IpAddr, protocol: u8, port: u16) -> Found<'_> {
        let ipv4 = address.is_ipv4();
        let vip = self.vips[family(ipv4)].get(address_bits(address), length(address));
        if let Some(frontend) = vip.and_then(|vip| vip.get(protocol, port)) {
            return Found::Frontend(frontend);
        }
        if vip.is_some_and(|vip| vip.is_cluster_ip()) {
            return Found::WrongPort;
        }
        if self.node_addresses.contains(&address)
            && let Some(frontend) = self.node_ports[family(ipv4)].get(node_port_bits(protocol, port), NODE_PORT_BITS)
        {
            return Found::Frontend(frontend);
        }
        let range = self.ranges.iter().find(|range| range.contains(&address));
        range.map_or(Found::Nothing, |range| Found::Unallocated(*range))
    }

    /// Puts a frontend at an address and port, in place of any that is there.
    pub fn insert(&mut self, address: IpAddr, protocol: u8, port: u16, frontend: Frontend) {
        let tree = &mut self.vips[family(address.is_ipv4())];
        let mut vip = tree.get(address_bits(address), length(address)).map_or_else(Vip::default, |vip| (**vip).clone());
        match vip.ports.binary_search_by_key(&(protocol, port), |(key, _)| *key) {
            Ok(at) => vip.ports[at].1 = frontend,
            Err(at) => vip.ports.insert(at, ((protocol, port), frontend)),
        }
        tree.insert(address_bits(address), length(address), Arc::new(vip));
    }

    /// Takes the frontend at an address and port away.
    pub fn remove(&mut self, address: IpAddr, protocol: u8, port: u16) {
        let tree = &mut self.vips[family(address.is_ipv4())];
        let Some(vip) = tree.get(address_bits(address), length(address)) else { return };
        let mut vip = (**vip).clone();
        vip.ports.retain(|(key, _)| *key != (protocol, port));
        if vip.ports.is_empty() {
            tree.remove(address_bits(address), length(address));
        } else {
            tree.insert(address_bits(address), length(address), Arc::new(vip));
        }
    }

    /// Serves a node port, in place of any with this protocol and port in its family.
    pub fn insert_node_port(&mut self, ipv4: bool, protocol: u8, port: u16, frontend: Frontend) {
        let tree = &mut self.node_ports[family(ipv4)];
        tree.insert(node_port_bits(protocol, port), NODE_PORT_BITS, Arc::new(frontend));
    }

    /// Serves a node port no longer.
    pub fn remove_node_port(&mut self, ipv4: bool, protocol: u8, port: u16) {
        self.node_ports[family(ipv4)].remove(node_port_bits(protocol, port), NODE_PORT_BITS);
    }

    /// Sets the addresses at which node ports are served.
    pub fn set_node_addresses(&mut self, addresses: &[IpAddr]) {
        if *self.node_addresses != *addresses {
            self.node_addresses = addresses.into();
        }
    }

    /// Sets the ranges of ClusterIPs.
    pub fn set_ranges(&mut self, ranges: &[IpNet]) {
        if *self.ranges != *ranges {
            self.ranges = ranges.into();
        }
    }

    /// Addresses at which node ports are served.
    #[must_use]
    pub fn node_addresses(&self) -> &[IpAddr] {
        &self.node_addresses
    }

    /// Calls `visit` with each frontend: its address (`None` for a node port), port and content.
    pub fn for_each(&self, mut visit: impl FnMut(Option<IpAddr>, u16, &Frontend)) {
        for (at, tree) in self.vips.iter().enumerate() {
            tree.for_each(|bits, _, vip| {
                let address = address_of(at == 0, bits);
                vip.ports.iter().for_each(|((_, port), frontend)| visit(Some(address), *port, frontend));
            });
        }
        for tree in &self.node_ports {
            tree.for_each(|bits, _, frontend| visit(None, (bits >> 104) as u16, frontend));
        }
    }

    fn is_empty(&self) -> bool {
        self.vips.iter().all(PrefixTree::is_empty)
            && self.node_ports.iter().all(PrefixTree::is_empty)
            && self.node_addresses.is_empty()
            && self.ranges.is_empty()
            && !self.masquerade_all
    }
}

fn address_of(ipv4: bool, bits: u128) -> IpAddr {
    if ipv4 { IpAddr::V4(((bits >> 96) as u32).into()) } else { IpAddr::V6(bits.into()) }
}

/// The Services of all segments that have some, in order of the segments' numbers.
#[derive(Clone, Debug, Default)]
pub struct ServiceTable {
    segments: Arc<Vec<(SegmentIndex, SegmentServices)>>,
}

impl ServiceTable {
    /// The Services of a segment.
    #[must_use]
    pub fn get(&self, segment: SegmentIndex) -> Option<&SegmentServices> {
        self.segments.iter().find(|(index, _)| *index == segment).map(|(_, services)| services)
    }

    /// Changes the Services of a segment. Costs a copy of a few pointers, and what `edit` does.
    pub fn edit(&mut self, segment: SegmentIndex, edit: impl FnOnce(&mut SegmentServices)) {
        let segments = Arc::make_mut(&mut self.segments);
        let at = segments.partition_point(|(index, _)| *index < segment);
        if segments.get(at).is_none_or(|(index, _)| *index != segment) {
            segments.insert(at, (segment, SegmentServices::default()));
        }
        edit(&mut segments[at].1);
        if segments[at].1.is_empty() {
            segments.remove(at);
        }
    }

    /// All segments that have Services.
    pub fn iter(&self) -> impl Iterator<Item = (SegmentIndex, &SegmentServices)> {
        self.segments.iter().map(|(index, services)| (*index, services))
    }

    /// Whether this is the very table `other` is, without looking inside.
    #[must_use]
    pub fn is_same(&self, other: &ServiceTable) -> bool {
        Arc::ptr_eq(&self.segments, &other.segments)
    }
}
