//! Segments: who shares a network. The segment is part of every key, so tenants may use the same addresses.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::BridgedSegment;
use super::lookup::PrefixTree;
use crate::limits;
use crate::packet::{Mac, PortIndex};

/// A segment's number on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentIndex(pub u16);

impl SegmentIndex {
    /// Where packets are that an uplink carries outside of any tunnel: no tenant's, so that a connection between a tenant
    /// and the outside is found by its packets of either side.
    pub const OUTSIDE: SegmentIndex = SegmentIndex(u16::MAX);
}

/// A VXLAN network identifier: 24 bits (RFC 7348 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vni(u32);

impl Vni {
    /// The identifier with this number; `None` beyond 24 bits.
    #[must_use]
    pub const fn new(number: u32) -> Option<Vni> {
        if number < 1 << 24 { Some(Vni(number)) } else { None }
    }

    /// The number, below 2^24.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// One network.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Its number on this node.
    pub index: SegmentIndex,
    /// Its name for people.
    pub name: Arc<str>,
    /// The identifier its packets carry between nodes; `None` if it has no members elsewhere.
    pub vni: Option<Vni>,
    /// Routed or bridged.
    pub kind: SegmentKind,
}

impl Segment {
    /// The segment that `address` is of, as this one sees it.
    #[must_use]
    pub fn home_of(&self, address: IpAddr) -> SegmentIndex {
        let connected = match &self.kind {
            SegmentKind::Routed(routed) => routed.other_home_of(address),
            SegmentKind::Bridged(_) => None,
        };
        connected.unwrap_or(self.index)
    }
}

/// How packets find their way in a segment.
#[derive(Clone, Debug)]
pub enum SegmentKind {
    /// By address: every member sees only the gateway.
    Routed(RoutedSegment),
    /// By MAC address, learned.
    Bridged(BridgedSegment),
}

/// A segment that is routed: pods see one gateway, the switch.
#[derive(Clone, Debug)]
pub struct RoutedSegment {
    /// MAC address the gateway answers with, the same on every port.
    pub gateway_mac: Mac,
    /// The gateway's addresses, at most one of each family in use.
    pub gateway_addresses: Vec<IpAddr>,
    /// This node's own addresses among pods, at most one of each family in use: source of the ICMP errors it sends.
    /// They are routed to the host's port; the switch answers echo requests for one that is routed to no port.
    pub router_addresses: Vec<IpAddr>,
    /// Source ports that masqueraded connections get.
    pub masquerade_ports: PortRange,
    /// Whether networks outside that know the way to pods know the way to its members: there is one such segment.
    pub known_outside: bool,
    /// Prefixes that are of other segments, which this one has the routes of: nobody else here has an address in them, and
    /// none lies inside another. Few, since all are compared.
    pub connected: Arc<[(IpNet, SegmentIndex)]>,
    /// MAC address of this node's end of the tunnel: inner source of what it sends, inner destination of what it gets.
    pub tunnel_mac: Mac,
    /// IPv4 routes, addresses left-aligned in 128 bits (see [`address_bits`]).
    pub routes_ipv4: PrefixTree<Route>,
    /// IPv6 routes.
    pub routes_ipv6: PrefixTree<Route>,
}

/// Where packets for a prefix go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The object this route comes from, for people: `pod default/web-0`, `block 10-1-0-64-26 of node b`.
    pub name: Arc<str>,
    /// Where to.
    pub target: RouteTarget,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteTarget {
    /// Out of a port of this node, to the station with this MAC address.
    Port {
        /// The port.
        port: PortIndex,
        /// The station's MAC address.
        mac: Mac,
    },
    /// Through the tunnel to another node.
    Tunnel {
        /// VTEP address of the node.
        peer: IpAddr,
        /// Inner destination MAC: the VTEP device of that node.
        mac: Mac,
    },
    /// To another node on the link of an uplink, as plain IP.
    Direct {
        /// VTEP address of the node; its first hop is the node itself.
        peer: IpAddr,
    },
    /// Out of an uplink, as plain IP.
    Outside {
        /// The uplink.
        port: PortIndex,
        /// The router on the way; `None` if the destination itself is on the link.
        gateway: Option<IpAddr>,
        /// The node's address towards there: what connections are masqueraded as.
        source: IpAddr,
        /// Longest packet that gets there, in bytes.
        mtu: u32,
    },
    /// Nowhere; the sender is told.
    Unreachable,
}

impl RoutedSegment {
    /// Whether the switch itself answers for `address`: the gateway, or this node while no port stands for it.
    #[must_use]
    pub fn is_own(&self, address: IpAddr) -> bool {
        let delivered = || matches!(self.route(address), Some((_, Route { target: RouteTarget::Port { .. }, .. })));
        self.gateway_addresses.contains(&address) || (self.router_addresses.contains(&address) && !delivered())
    }

    /// The address of the switch's own that packets to `receiver` come from, ICMP errors and masqueraded ones: to the
    /// outside that of the uplink, else the node's among pods where there is one, else the gateway's. To the host itself
    /// they come from the gateway too, since a kernel takes no packet from an address of its own.
    #[must_use]
    pub fn source_towards(&self, receiver: IpAddr) -> Option<IpAddr> {
        let same_family = |address: &&IpAddr| address.is_ipv4() == receiver.is_ipv4();
        let target = |address: IpAddr| self.route(address).map(|(_, route)| &route.target);
        if let Some(RouteTarget::Outside { source, .. }) = target(receiver) {
            return Some(*source);
        }
        let same_port =
            |own: &IpAddr| matches!(target(*own), own @ Some(RouteTarget::Port { .. }) if own == target(receiver));
        let own = self.router_addresses.iter().find(same_family).filter(|own| !same_port(own));
        own.or_else(|| self.gateway_addresses.iter().find(same_family)).copied()
    }

    /// The segment that `address` is of, as this one sees it: a connected one, or none other than this.
    #[must_use]
    pub fn other_home_of(&self, address: IpAddr) -> Option<SegmentIndex> {
        self.connected.iter().find(|(prefix, _)| prefix.contains(&address)).map(|(_, segment)| *segment)
    }

    /// The longest prefix that covers `address`.
    #[must_use]
    pub fn route(&self, address: IpAddr) -> Option<(u8, &Route)> {
        match address {
            IpAddr::V4(_) => self.routes_ipv4.longest(address_bits(address)),
            IpAddr::V6(_) => self.routes_ipv6.longest(address_bits(address)),
        }
    }

    /// The routes of the family of `address`, to change.
    pub fn routes_mut(&mut self, address: IpAddr) -> &mut PrefixTree<Route> {
        match address {
            IpAddr::V4(_) => &mut self.routes_ipv4,
            IpAddr::V6(_) => &mut self.routes_ipv6,
        }
    }
}

/// An address as a key of a [`PrefixTree`]: IPv4 left-aligned, so that prefix lengths count from the first bit.
#[must_use]
pub fn address_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// An address as packets' tuples and translations have it: IPv4 in the first four bytes.
#[must_use]
pub fn address_octets(address: IpAddr) -> [u8; 16] {
    address_bits(address).to_be_bytes()
}

/// A range of ports that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl Default for PortRange {
    fn default() -> Self {
        let (first, last) = limits::MASQUERADE_PORTS;
        Self { first, last }
    }
}

impl PortRange {
    /// The ports from `first` to `last`; `None` if there are none, or port 0 is among them.
    #[must_use]
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || first > last { None } else { Some(Self { first, last }) }
    }

    /// The first port.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The last port, itself included.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }

    /// How many there are, at least one.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.last as u32 - self.first as u32 + 1
    }
}

/// All segments, by number; few, so a change copies one pointer for each.
#[derive(Clone, Debug, Default)]
pub struct SegmentTable {
    entries: Arc<Vec<Option<Arc<Segment>>>>,
    by_vni: Arc<Vec<(Vni, SegmentIndex)>>,
}

impl SegmentTable {
    /// The segment with this number.
    #[inline]
    #[must_use]
    pub fn get(&self, index: SegmentIndex) -> Option<&Arc<Segment>> {
        self.entries.get(index.0 as usize)?.as_ref()
    }

    /// The segment whose packets carry this identifier.
    #[must_use]
    pub fn by_vni(&self, vni: Vni) -> Option<SegmentIndex> {
        let at = self.by_vni.binary_search_by_key(&vni, |(vni, _)| *vni).ok()?;
        self.by_vni.get(at).map(|(_, index)| *index)
    }

    /// Puts `segment` at its number.
    pub fn insert(&mut self, segment: Segment) {
        let (index, vni) = (segment.index, segment.vni);
        self.remove(index);
        let entries = Arc::make_mut(&mut self.entries);
        if entries.len() <= index.0 as usize {
            entries.resize(index.0 as usize + 1, None);
        }
        entries[index.0 as usize] = Some(Arc::new(segment));
        let by_vni = Arc::make_mut(&mut self.by_vni);
        by_vni.extend(vni.map(|vni| (vni, index)));
        by_vni.sort_unstable();
    }

    /// Takes the segment with this number away.
    pub fn remove(&mut self, index: SegmentIndex) {
        if self.get(index).is_none() {
            return;
        }
        let entries = Arc::make_mut(&mut self.entries);
        entries[index.0 as usize] = None;
        while matches!(entries.last(), Some(None)) {
            entries.pop();
        }
        Arc::make_mut(&mut self.by_vni).retain(|(_, at)| *at != index);
    }

    /// All segments in order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.entries.iter().flatten()
    }

    /// Whether this is the very table `other` is, without looking inside.
    #[must_use]
    pub fn is_same(&self, other: &SegmentTable) -> bool {
        Arc::ptr_eq(&self.entries, &other.entries)
    }
}
