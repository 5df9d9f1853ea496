//! Bridges and their ports: the standalone switch.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use millrace_engine::limits;
use millrace_engine::tables::{MoveLimit, StormLimits, TagProtocol, Vni};

use super::{BridgeName, InterfaceName, NodeName, PortName, StationMac};

/// The VLAN of a port that names none, as every switch has it.
pub const DEFAULT_VLAN: VlanId = VlanId(1);

/// A VLAN identifier: 1 to 4094 (IEEE 802.1Q section 9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VlanId(u16);

/// That a number is no [`VlanId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no VLAN: 1 to 4094")]
pub struct VlanIdError(u16);

impl VlanId {
    /// The VLAN with this number.
    pub fn new(number: u16) -> Result<Self, VlanIdError> {
        if (1..=4094).contains(&number) { Ok(Self(number)) } else { Err(VlanIdError(number)) }
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl std::fmt::Display for VlanId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeRecord {
    /// Its name.
    pub name: BridgeName,
    /// The node it is on; `None` for every node.
    pub node: Option<NodeName>,
    /// Identifiers of those of its VLANs that have members elsewhere.
    pub vnis: BTreeMap<VlanId, Vni>,
    /// Tunnel ends that floods of VLANs with an identifier are copied to.
    pub remotes: Vec<IpAddr>,
    /// Time without a frame after which a station is forgotten.
    pub ageing: Duration,
    /// How often a station may move.
    pub moves: MoveLimit,
    /// Stations that are not learned.
    pub stations: Vec<StationRecord>,
}

impl BridgeRecord {
    /// Whether it is meant for this node.
    #[must_use]
    pub fn is_for(&self, node: &NodeName) -> bool {
        self.node.as_ref().is_none_or(|own| own == node)
    }
}

/// A station that is not learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StationRecord {
    /// Its MAC address.
    pub mac: StationMac,
    /// The VLAN it is in.
    pub vlan: VlanId,
    /// Where it lives.
    pub place: StationPlace,
}

/// Where a configured station lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StationPlace {
    /// Behind a port of the node.
    Port(PortName),
    /// Behind a tunnel end.
    Remote(IpAddr),
}

/// A port of the standalone switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgePortRecord {
    /// Its name.
    pub name: PortName,
    /// The node it is on; `None` for every node.
    pub node: Option<NodeName>,
    /// What it is made of.
    pub device: PortDevice,
    /// Longest network-layer packet; `None` as the interface has it.
    pub mtu: Option<u32>,
    /// Its place in a bridge; `None` for the destination of a mirror.
    pub membership: Option<Membership>,
    /// Where its frames are copied to.
    pub mirror: Option<MirrorRecord>,
}

impl BridgePortRecord {
    /// Whether it is meant for this node.
    #[must_use]
    pub fn is_for(&self, node: &NodeName) -> bool {
        self.node.as_ref().is_none_or(|own| own == node)
    }
}

/// The interface behind a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortDevice {
    /// How frames are moved.
    pub kind: DeviceKind,
    /// The network namespace, as a path; `None` for the host's.
    pub namespace: Option<PathBuf>,
    /// The interface.
    pub interface: InterfaceName,
}

/// How the frames of a port are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A TAP that the switch makes.
    Tap,
    /// All queues of an interface that exists, taken from the kernel whole.
    AfXdp,
    /// An interface that exists and stays the kernel's: the switch receives and sends beside it.
    Packet,
}

/// A port's place in a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The bridge.
    pub bridge: BridgeName,
    /// Which frames are of which VLAN.
    pub vlans: PortVlans,
    /// Which tags say the VLAN.
    pub tag_protocol: TagProtocol,
    /// Whether it is kept apart from other isolated ports.
    pub isolated: bool,
    /// Its split-horizon group.
    pub group: Option<u16>,
    /// Stations behind it at most.
    pub station_limit: u32,
    /// How much it may flood.
    pub storm: StormLimits,
}

impl Membership {
    /// An access port in the default VLAN of this bridge.
    #[must_use]
    pub fn new(bridge: BridgeName) -> Self {
        Self {
            bridge,
            vlans: PortVlans::Access(DEFAULT_VLAN),
            tag_protocol: TagProtocol::default(),
            isolated: false,
            group: None,
            station_limit: limits::STATIONS_PER_PORT,
            storm: StormLimits::default(),
        }
    }
}

/// Which frames of a port are of which VLAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortVlans {
    /// Untagged frames, all of one VLAN.
    Access(VlanId),
    /// Frames tagged with one of these, and untagged ones of the native VLAN if there is one.
    Trunk {
        /// VLANs that are tagged.
        tagged: Vec<VlanId>,
        /// VLAN of untagged frames.
        native: Option<VlanId>,
    },
    /// All frames, tagged or not, of one VLAN; their tags are the customer's and stay.
    Service(VlanId),
}

impl PortVlans {
    /// The VLANs, each with whether its frames are tagged.
    pub fn all(&self) -> impl Iterator<Item = (VlanId, bool)> + '_ {
        let (untagged, tagged) = match self {
            PortVlans::Access(vlan) | PortVlans::Service(vlan) => (Some(*vlan), [].as_slice()),
            PortVlans::Trunk { tagged, native } => (*native, tagged.as_slice()),
        };
        untagged.map(|vlan| (vlan, false)).into_iter().chain(tagged.iter().map(|vlan| (*vlan, true)))
    }
}

/// Copies of a port's frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorRecord {
    /// Where they go.
    pub to: PortName,
    /// Whether frames that come in are copied.
    pub ingress: bool,
    /// Whether frames that leave are copied.
    pub egress: bool,
}
