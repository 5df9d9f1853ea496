//! Networks: a wire of the node, or a VLAN of it, that pods are plugged into directly.
//!
//! A network is a bridge with a port at the wire, one for the host, and one for each pod. The host and the wire do not
//! meet in it: they meet on the interface itself, which stays the host's.

use std::net::IpAddr;

use millrace_engine::limits;
use millrace_engine::tables::{MoveLimit, StormLimits, TagProtocol};

use super::{
    BridgeName, BridgePortRecord, BridgeRecord, Cidr, DEFAULT_VLAN, DeviceKind, InterfaceName, Membership, NetworkName,
    NodeName, PortDevice, PortName, PortVlans, VlanId,
};
use crate::stable_hash::hash_64;

/// The split-horizon group of wire and host.
const OUTSIDE: u16 = 1;

/// A network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkRecord {
    /// Its name.
    pub name: NetworkName,
    /// The node it is on; `None` for every node that has the interface.
    pub node: Option<NodeName>,
    /// The host's interface at the wire.
    pub interface: InterfaceName,
    /// The VLAN on the wire; `None` for untagged frames.
    pub vlan: Option<VlanId>,
    /// What addresses mean there.
    pub subnets: Vec<SubnetRecord>,
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
        self.node.as_ref().is_none_or(|own| own == node)
    }

    /// The subnet that an address lies in.
    #[must_use]
    pub fn subnet_of(&self, address: IpAddr) -> Option<&SubnetRecord> {
        self.subnets.iter().find(|subnet| subnet.cidr.has(address))
    }

    /// Its bridge.
    #[must_use]
    pub fn bridge(&self) -> BridgeRecord {
        BridgeRecord {
            name: self.bridge_name(),
            node: self.node.clone(),
            vnis: std::collections::BTreeMap::new(),
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

    /// The port at the wire.
    #[must_use]
    pub fn wire_port(&self) -> BridgePortRecord {
        let vlans = match self.vlan {
            Some(vlan) => PortVlans::Trunk { tagged: vec![vlan], native: None },
            None => PortVlans::Access(DEFAULT_VLAN),
        };
        self.port("wire", DeviceKind::Packet, self.interface.clone(), vlans)
    }

    /// The port of the host: an interface that has the host's addresses of the subnets, and the way to the pods.
    #[must_use]
    pub fn host_port(&self) -> BridgePortRecord {
        self.port("host", DeviceKind::Tap, self.host_interface(), PortVlans::Access(self.segment_vlan()))
    }

    /// The VLAN of its bridge that everything is in.
    #[must_use]
    pub fn segment_vlan(&self) -> VlanId {
        self.vlan.unwrap_or(DEFAULT_VLAN)
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
            node: self.node.clone(),
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
