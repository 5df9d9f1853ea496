//! Layer 2 as it is configured: segments whose stations are found by MAC address, and their member ports.
//!
//! A bridged segment is one VLAN of one bridge, or one tenant's network. Which segment a frame belongs to is said by
//! the port it comes in by ([`BridgedPort`]); how it leaves by a member is said by the segment ([`Member`]).

use std::net::IpAddr;
use std::time::Duration;

use super::SegmentIndex;
use crate::limits;
use crate::packet::parse::ethertype;
use crate::packet::{Mac, PortIndex};

/// Where a station of a bridged segment lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Location {
    /// Behind a port of this node.
    Port(PortIndex),
    /// Behind the tunnel to a peer.
    Peer(IpAddr),
}

/// Which of the two tag protocols a VLAN tag has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TagProtocol {
    /// 802.1Q customer tag, EtherType 0x8100.
    #[default]
    Customer,
    /// 802.1ad service tag, EtherType 0x88a8.
    Service,
}

impl TagProtocol {
    /// The EtherType that announces such a tag.
    #[must_use]
    pub const fn ethertype(self) -> u16 {
        match self {
            TagProtocol::Customer => ethertype::VLAN,
            TagProtocol::Service => ethertype::QINQ,
        }
    }
}

/// A VLAN tag to put on a frame; the priority comes from the tag it replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag {
    /// Its protocol.
    pub protocol: TagProtocol,
    /// VLAN identifier, 1 to 4094 (IEEE 802.1Q section 9.6).
    pub identifier: u16,
}

impl Tag {
    /// An 802.1Q tag.
    #[must_use]
    pub const fn customer(identifier: u16) -> Self {
        Self { protocol: TagProtocol::Customer, identifier }
    }
}

/// A segment that is bridged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgedSegment {
    /// Member ports, each once, in order of their numbers.
    pub members: Vec<Member>,
    /// Tunnel ends that have members too: floods are copied to each (head-end replication).
    pub remotes: Vec<IpAddr>,
    /// Stations that are configured and never learned, in order of their addresses.
    pub stations: Vec<(Mac, Location)>,
    /// Time without a frame after which a learned station is forgotten (IEEE 802.1Q section 8.8.3).
    pub ageing: Duration,
    /// How often a station may move.
    pub moves: MoveLimit,
}

impl Default for BridgedSegment {
    fn default() -> Self {
        Self {
            members: Vec::new(),
            remotes: Vec::new(),
            stations: Vec::new(),
            ageing: limits::STATION_AGE,
            moves: MoveLimit::default(),
        }
    }
}

impl BridgedSegment {
    /// The member with this port.
    #[must_use]
    pub fn member(&self, port: PortIndex) -> Option<&Member> {
        let at = self.members.binary_search_by_key(&port, |member| member.port).ok()?;
        self.members.get(at)
    }

    /// Where the configuration says that this station lives.
    #[must_use]
    pub fn station(&self, mac: Mac) -> Option<Location> {
        let at = self.stations.binary_search_by_key(&mac, |(station, _)| *station).ok()?;
        self.stations.get(at).map(|(_, location)| *location)
    }
}

/// A member port of a bridged segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The port.
    pub port: PortIndex,
    /// The tag that the segment's frames leave with, if any.
    pub tag: Option<Tag>,
    /// Never exchanges frames with another isolated member of this node.
    pub isolated: bool,
    /// Never exchanges frames with another member of the same split-horizon group.
    pub group: Option<u16>,
}

impl Member {
    /// A member like any other.
    #[must_use]
    pub const fn new(port: PortIndex, tag: Option<Tag>) -> Self {
        Self { port, tag, isolated: false, group: None }
    }

    /// Whether frames of one never go to the other.
    #[must_use]
    pub fn is_apart_from(&self, other: &Member) -> bool {
        self.isolated && other.isolated || self.group.is_some() && self.group == other.group
    }
}

/// How often a station may move before it is held where it is. The defaults are those by which EVPN finds duplicate
/// addresses (RFC 7432 section 15.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveLimit {
    /// Moves allowed within `within`.
    pub moves: u8,
    /// The time in which moves are counted.
    pub within: Duration,
    /// For how long a station that moved more often is held.
    pub hold: Duration,
}

impl Default for MoveLimit {
    fn default() -> Self {
        Self { moves: 5, within: Duration::from_secs(180), hold: Duration::from_secs(60) }
    }
}

/// A port's place in bridged segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgedPort {
    /// Segment of frames without a tag of `tag_protocol`, if they are allowed.
    pub untagged: Option<SegmentIndex>,
    /// Segments of tagged frames, by VLAN identifier, each identifier once, in order.
    pub tagged: Vec<VlanMember>,
    /// Whether tags of frames that come in belong to whoever is behind the port: they stay, and every frame is one of
    /// `untagged` (a QinQ access port, "dot1q tunnel").
    pub transparent: bool,
    /// Which tags say the segment. Behind a port with service tags, customer tags are payload.
    pub tag_protocol: TagProtocol,
    /// Stations learned behind this port at most; frames of further ones are dropped.
    pub station_limit: u32,
    /// How much this port may flood.
    pub storm: StormLimits,
}

impl Default for BridgedPort {
    fn default() -> Self {
        Self {
            untagged: None,
            tagged: Vec::new(),
            transparent: false,
            tag_protocol: TagProtocol::Customer,
            station_limit: limits::STATIONS_PER_PORT,
            storm: StormLimits::default(),
        }
    }
}

impl BridgedPort {
    /// An access port: all frames are untagged and of one segment.
    #[must_use]
    pub fn access(segment: SegmentIndex) -> Self {
        Self { untagged: Some(segment), ..Self::default() }
    }
}

/// That frames with this VLAN identifier belong to this segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanMember {
    /// VLAN identifier, 1 to 4094 (IEEE 802.1Q section 9.6).
    pub identifier: u16,
    /// The segment.
    pub segment: SegmentIndex,
}

/// Why a frame is flooded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloodClass {
    /// To everybody.
    Broadcast,
    /// To a group.
    Multicast,
    /// To a station that is not known.
    Unknown,
}

impl FloodClass {
    /// How many classes there are.
    pub const COUNT: usize = 3;

    /// The class of a frame with this destination that is flooded.
    #[must_use]
    pub fn of(destination: Mac) -> Self {
        match destination {
            Mac::BROADCAST => FloodClass::Broadcast,
            mac if mac.is_group() => FloodClass::Multicast,
            _ => FloodClass::Unknown,
        }
    }
}

/// Frames a port may flood each second, by class; `None` for any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StormLimits {
    /// Broadcasts.
    pub broadcast: Option<u32>,
    /// Multicasts.
    pub multicast: Option<u32>,
    /// Frames to unknown stations.
    pub unknown: Option<u32>,
}

impl StormLimits {
    /// The limit of one class.
    #[must_use]
    pub fn of(&self, class: FloodClass) -> Option<u32> {
        match class {
            FloodClass::Broadcast => self.broadcast,
            FloodClass::Multicast => self.multicast,
            FloodClass::Unknown => self.unknown,
        }
    }
}

/// Copies of one port's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The port whose frames are copied.
    pub source: PortIndex,
    /// Where copies go of what comes in.
    pub ingress: Option<PortIndex>,
    /// Where copies go of what leaves.
    pub egress: Option<PortIndex>,
}
