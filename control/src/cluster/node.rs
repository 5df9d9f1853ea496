//! Nodes: where they are reached, what they own, what they are plugged into.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use millrace_engine::packet::Mac;

use super::{Cidr, InterfaceName, Labels, NodeName, UplinkName};
use crate::stable_hash::hash_64;

/// A MAC address that names one station: neither a group nor zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StationMac(Mac);

/// Why a text or an address is no [`StationMac`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StationMacError {
    /// It does not read as one.
    #[error("{0:?} is not a MAC address such as 02:00:5e:10:00:01")]
    Syntax(String),
    /// It is a group address or zero.
    #[error("{0} does not name one station")]
    NotOneStation(Mac),
}

impl StationMac {
    /// The address, if it names one station.
    pub fn new(mac: Mac) -> Result<Self, StationMacError> {
        if mac.is_group() || mac == Mac::ZERO { Err(StationMacError::NotOneStation(mac)) } else { Ok(Self(mac)) }
    }

    /// The address that the tunnel end of a node has unless the node says otherwise: every node computes the same.
    /// Locally administered; 40 bits of the name's hash, so two of 5,000 nodes meet with a chance of 1 in 90,000.
    #[must_use]
    pub fn of_node(name: &NodeName) -> Self {
        let [.., a, b, c, d, e] = hash_64(name.as_str()).to_be_bytes();
        Self(Mac([0x02, a, b, c, d, e]))
    }

    /// The plain address.
    #[must_use]
    pub fn mac(self) -> Mac {
        self.0
    }
}

impl fmt::Display for StationMac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl FromStr for StationMac {
    type Err = StationMacError;

    fn from_str(text: &str) -> Result<Self, StationMacError> {
        text.parse().map_err(|_| StationMacError::Syntax(text.to_owned())).and_then(Self::new)
    }
}

/// Where a node's tunnel ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelEnd {
    /// Underlay address: outer destination.
    pub address: IpAddr,
    /// Inner destination MAC address.
    pub mac: StationMac,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its name.
    pub name: NodeName,
    /// Its labels.
    pub labels: Labels,
    /// Its internal addresses, first of each family as listed.
    pub addresses: Vec<IpAddr>,
    /// Its tunnel end over IPv4.
    pub ipv4_end: Option<TunnelEnd>,
    /// Its tunnel end over IPv6.
    pub ipv6_end: Option<TunnelEnd>,
    /// Whether IPv6 pods are reached over the IPv6 end only, as flannel has it; else one end serves both families.
    pub ends_by_family: bool,
    /// Prefixes of its pods as the cluster assigned them.
    pub pod_cidrs: Vec<Cidr>,
    /// The zone it is in, as its label says.
    pub zone: Option<String>,
    /// Whether it is up: its condition `Ready` says nothing else.
    pub ready: bool,
    /// Whether it is about to go: it is being deleted, or the cluster's autoscaler marked it.
    pub leaving: bool,
}

impl NodeRecord {
    /// MAC address of the tunnel end that serves both families.
    #[must_use]
    pub fn tunnel_mac(&self) -> StationMac {
        self.ipv4_end.or(self.ipv6_end).map_or_else(|| StationMac::of_node(&self.name), |end| end.mac)
    }
}

/// An interface that tunnels leave by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkRecord {
    /// Its name.
    pub name: UplinkName,
    /// The node; `None` for every node that has the interface.
    pub node: Option<NodeName>,
    /// The interface.
    pub interface: InterfaceName,
    /// How frames come from it.
    pub port: UplinkPort,
}

/// How frames come from an uplink, and what its card is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UplinkPort {
    /// By what they come.
    pub kind: UplinkPortKind,
    /// By AF_XDP: packets that one call of a worker takes from the driver, instead of an interrupt.
    pub busy_poll_budget: Option<NonZeroU16>,
}

/// How the frames of an uplink are moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UplinkPortKind {
    /// By AF_XDP, and by packet sockets where that is refused.
    #[default]
    Automatic,
    /// By AF_XDP or not at all.
    AfXdp,
    /// Tunnels by UDP sockets, all else by packet sockets.
    Udp,
    /// By packet sockets.
    Packet,
}

impl UplinkRecord {
    /// Whether it is meant for this node.
    #[must_use]
    pub fn is_for(&self, node: &NodeName) -> bool {
        self.node.as_ref().is_none_or(|own| own == node)
    }
}
