//! Networks that pods may be plugged into instead of the pods' segment: a wire of the node, or a tenant's own segment.
//!
//! A wire is a bridge with a port at the wire, one for the host, and one for each pod. The host and the wire do not
//! meet in it: they meet on the interface itself, which stays the host's. A tenant's segment has a VXLAN identifier of its
//! own and is the same on every node; it is routed, or it is one broadcast domain.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use millrace_engine::limits;
use millrace_engine::tables::{MoveLimit, StormLimits, TagProtocol, Vni};

use super::{
    BridgeName, BridgePortRecord, BridgeRecord, Cidr, DEFAULT_VLAN, DeviceKind, InterfaceName, Membership, NetworkName,
    NodeName, PortDevice, PortName, PortVlans, VlanId,
};
use crate::stable_hash::hash_64;

/// The split-horizon group of wire and host.
const OUTSIDE: u16 = 1;

/// What stands for the pods' segment where a network is named; no network has it.
pub const PODS: &str = "pods";

/// A network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkRecord {
    /// Its name.
    pub name: NetworkName,
    /// What it is made of.
    pub kind: NetworkKind,
    /// What addresses mean there; none where it is routed.
    pub subnets: Vec<SubnetRecord>,
}

/// What a network is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkKind {
    /// A wire of nodes, or a VLAN of it.
    Wire(WireRecord),
    /// A tenant's segment, routed by the switch.
    Routed(RoutedNetwork),
    /// A tenant's broadcast domain over all nodes, with this identifier.
    Bridged(Vni),
}

/// A wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireRecord {
    /// The node it is on; `None` for every node that has the interface.
    pub node: Option<NodeName>,
    /// The host's interface at the wire.
    pub interface: InterfaceName,
    /// The VLAN on the wire; `None` for untagged frames.
    pub vlan: Option<VlanId>,
}

/// A routed segment of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutedNetwork {
    /// Its identifier between nodes.
    pub vni: Vni,
    /// Whether its pods reach what is outside of the cluster, and its Services are reached from there.
    pub egress: bool,
    /// The networks it exchanges routes with, where these name it too; [`PODS`] stands for the pods' segment.
    pub connect: BTreeSet<NetworkName>,
}

/// A subnet of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubnetRecord {
    /// Its prefix.
    pub cidr: Cidr,
    /// The router that leads out of it.
    pub gateway: Option<IpAddr>,
}

impl NetworkRecord {
    /// Whether it is meant for this node.
    #[must_use]
    pub fn is_for(&self, node: &NodeName) -> bool {
        self.node().is_none_or(|own| own == node)
    }

    fn node(&self) -> Option<&NodeName> {
        self.wire().and_then(|wire| wire.node.as_ref())
    }

    /// The wire it is, if it is one.
    #[must_use]
    pub fn wire(&self) -> Option<&WireRecord> {
        match &self.kind {
            NetworkKind::Wire(wire) => Some(wire),
            NetworkKind::Routed(_) | NetworkKind::Bridged(_) => None,
        }
    }

    /// The tenant's routed segment it is, if it is one.
    #[must_use]
    pub fn routed(&self) -> Option<&RoutedNetwork> {
        match &self.kind {
            NetworkKind::Routed(routed) => Some(routed),
            NetworkKind::Wire(_) | NetworkKind::Bridged(_) => None,
        }
    }

    /// Its identifier between nodes, if it has members elsewhere.
    #[must_use]
    pub fn vni(&self) -> Option<Vni> {
        match &self.kind {
            NetworkKind::Wire(_) => None,
            NetworkKind::Routed(routed) => Some(routed.vni),
            NetworkKind::Bridged(vni) => Some(*vni),
        }
    }

    /// The subnet that an address lies in.
    #[must_use]
    pub fn subnet_of(&self, address: IpAddr) -> Option<&SubnetRecord> {
        self.subnets.iter().find(|subnet| subnet.cidr.has(address))
    }

    /// Its bridge. Of a tenant's the planner adds the identifier and the nodes that floods are copied to.
    #[must_use]
    pub fn bridge(&self) -> BridgeRecord {
        BridgeRecord {
            name: self.bridge_name(),
            node: self.node().cloned(),
            vnis: BTreeMap::new(),
            remotes: Vec::new(),
            ageing: limits::STATION_AGE,
            moves: MoveLimit::default(),
            stations: Vec::new(),
        }
    }

    /// The name of its bridge.
    #[must_use]
    pub fn bridge_name(&self) -> BridgeName {
        BridgeName::new(&format!("network-{}", self.name)).unwrap_or_else(|_| unreachable!("made of a shorter name"))
    }

    /// The ports of a wire: that at the wire, then that of the host, an interface that has the host's addresses of the
    /// subnets, and the way to the pods.
    #[must_use]
    pub fn wire_ports(&self) -> Option<[BridgePortRecord; 2]> {
        let wire = self.wire()?;
        let vlans = match wire.vlan {
            Some(vlan) => PortVlans::Trunk { tagged: vec![vlan], native: None },
            None => PortVlans::Access(DEFAULT_VLAN),
        };
        let at_wire = self.port("wire", DeviceKind::Packet, wire.interface.clone(), vlans);
        let of_host = PortVlans::Access(self.segment_vlan());
        Some([at_wire, self.port("host", DeviceKind::Tap, self.host_interface(), of_host)])
    }

    /// The VLAN of its bridge that everything is in.
    #[must_use]
    pub fn segment_vlan(&self) -> VlanId {
        self.wire().and_then(|wire| wire.vlan).unwrap_or(DEFAULT_VLAN)
    }

    /// The host's interface towards its pods: by the network's name where that leaves room.
    #[must_use]
    pub fn host_interface(&self) -> InterfaceName {
        let plain = format!("mr-{}", self.name);
        let hashed = || format!("mr-{:08x}", hash_64(self.name.as_str()) as u32);
        InterfaceName::new(&plain)
            .or_else(|_| InterfaceName::new(&hashed()))
            .unwrap_or_else(|_| unreachable!("eleven letters are an interface's name"))
    }

    fn port(&self, end: &str, kind: DeviceKind, interface: InterfaceName, vlans: PortVlans) -> BridgePortRecord {
        let name = PortName::new(&format!("network-{}-{end}", self.name));
        BridgePortRecord {
            name: name.unwrap_or_else(|_| unreachable!("made of a shorter name")),
            node: self.node().cloned(),
            device: PortDevice { kind, namespace: None, interface },
            mtu: None,
            membership: Some(Membership {
                bridge: self.bridge_name(),
                vlans,
                tag_protocol: TagProtocol::Customer,
                isolated: false,
                group: Some(OUTSIDE),
                station_limit: limits::STATIONS_PER_PORT,
                storm: StormLimits::default(),
            }),
            mirror: None,
        }
    }
}
