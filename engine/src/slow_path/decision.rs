//! What the slow path decides of a packet, and everything that follows from it.
//!
//! One [`Decision`] serves four readers: `apply` carries it out, the flow cache keeps its [`Forward`] and
//! [`Dependencies`], `millrace trace` prints its [`Trail`], and tests compare it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::service::{Pick, Picked};
use crate::drop_reason::DropReason;
use crate::edit::{Rewrite, Translation};
use crate::limits::TRAIL_STEPS;
use crate::packet::{Mac, PortIndex};
use crate::state::{ConnectionReference, Direction, FragmentKey, Fragmented, NewConnection};
pub use crate::tables::Location;
use crate::tables::policy::{self, Denial, RuleList};
use crate::tables::{Change, FloodClass, HandBack, SegmentIndex, Vni};

/// The outcome of one walk through the slow path.
#[derive(Clone, Debug)]
pub struct Decision {
    /// What happens to the packet.
    pub verdict: Verdict,
    /// What the packet taught, to be written when the decision is carried out.
    pub lesson: Option<Lesson>,
    /// The endpoint that was picked for a new connection to a Service, to be counted when it is open.
    pub pick: Option<Pick>,
    /// What a first fragment says of those behind it, to be remembered when it goes on or back to the host.
    pub fragment: Option<(FragmentKey, Fragmented)>,
    /// Each stage's reason, in order.
    pub trail: Trail,
    /// What the verdict rests on: when one of these changes, the flow is decided again.
    pub dependencies: Dependencies,
    /// Whether later packets of the flow may be served from the cache.
    pub cacheable: bool,
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It leaves by one port.
    Forward(Forward),
    /// Copies leave by every other member of its bridged segment, and through a tunnel to every remote.
    Flood(FloodClass, Vec<Forward>),
    /// It is answered out of the port it came by.
    Reply(Reply),
    /// It goes back to the host's kernel as it came, but for its destination MAC address.
    HandBack(HandBack),
    /// It waits until the first fragment of its packet is decided; without one it goes back to the host's kernel, or
    /// nowhere.
    Hold(FragmentKey, Option<HandBack>),
    /// It is dropped.
    Drop(DropReason),
    /// It is dropped and its sender told by an ICMP error.
    Reject(DropReason, Rejection),
}

/// Where a packet leaves and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Output port.
    pub egress: PortIndex,
    /// What is done to it before.
    pub rewrite: Rewrite,
    /// New addresses, if any.
    pub translation: Translation,
}

/// Answers the switch gives in place of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// ARP: the gateway's MAC address (RFC 826).
    Arp(Mac),
    /// ND advertisement: the gateway's MAC address (RFC 4861 section 7.2.4).
    NeighbourAdvertisement(Mac),
    /// ICMP or ICMPv6 echo reply (RFC 792, RFC 4443 section 4.2).
    Echo,
}

/// ICMP errors the switch owes the sender of a dropped packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// TTL or hop limit ran out (RFC 792, RFC 4443 section 3.3).
    TimeExceeded,
    /// Fragmentation Needed or Packet Too Big with the MTU to use (RFC 1191, RFC 4443 section 3.2).
    TooBig {
        /// Longest packet that fits, in bytes.
        mtu: u32,
    },
    /// Network or host unreachable (RFC 792; RFC 4443 section 3.1 code 0).
    NoRoute,
    /// Nobody listens on the port (RFC 792; RFC 4443 section 3.1 code 4).
    PortUnreachable,
    /// The same for TCP: a reset from the address that was called (RFC 9293 section 3.5.2).
    Reset,
}

/// What a packet taught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lesson {
    /// A station of a bridged segment lives behind this port or peer.
    Station {
        /// Segment.
        segment: SegmentIndex,
        /// Its MAC address.
        mac: Mac,
        /// Where.
        location: Location,
    },
    /// It needs a neighbour on an uplink's link whose MAC address is not known.
    Wants {
        /// The uplink.
        port: PortIndex,
        /// The neighbour.
        neighbour: IpAddr,
    },
    /// It opened a connection.
    Open(NewConnection),
    /// It belongs to a connection.
    Advance {
        /// The connection.
        connection: ConnectionReference,
        /// The packet's direction.
        direction: Direction,
        /// The packet's `Headers::tcp_flags_or_icmp_type`.
        signal: u8,
    },
}

/// What a verdict rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dependencies {
    /// Port the packet came in by.
    pub ingress: PortIndex,
    /// Port it leaves by.
    pub egress: PortIndex,
    /// Segment it belongs to.
    pub segment: SegmentIndex,
    /// Source address that anti-spoofing looked up.
    pub source: IpAddr,
    /// Destination address that was routed, after translation.
    pub destination: IpAddr,
    /// Peer it came from.
    pub ingress_peer: Option<IpAddr>,
    /// Peer it goes to through a tunnel, or the neighbour that it is handed to outside of one.
    pub egress_peer: Option<IpAddr>,
    /// Source MAC address, where a bridge decided.
    pub source_mac: Mac,
    /// Destination MAC address, where a bridge decided.
    pub destination_mac: Mac,
    /// The Service that gave the flow its endpoint ([`ServiceId::tag`](crate::tables::services::ServiceId::tag)); 0 for
    /// none.
    pub service: u32,
}

impl Dependencies {
    /// Whether `change` touches what this rests on.
    #[must_use]
    pub fn affected_by(&self, change: &Change) -> bool {
        match change {
            Change::Port(port) | Change::PodPolicy(port) => *port == self.ingress || *port == self.egress,
            Change::Segment(segment) => *segment == self.segment,
            Change::Prefix(segment, network) => {
                *segment == self.segment && (network.contains(&self.destination) || network.contains(&self.source))
            }
            Change::Identity(segment, address) => {
                *segment == self.segment && (*address == self.destination || *address == self.source)
            }
            Change::PolicyNetwork(network) => network.contains(&self.destination) || network.contains(&self.source),
            Change::Peer(peer) => Some(*peer) == self.ingress_peer || Some(*peer) == self.egress_peer,
            Change::Neighbour(port, address) => *port == self.egress && Some(*address) == self.egress_peer,
            Change::Station(segment, mac) => {
                *segment == self.segment && (*mac == self.source_mac || *mac == self.destination_mac)
            }
            Change::Service(service) => service.tag() == self.service,
            Change::Tunnels => self.ingress_peer.is_some() || self.egress_peer.is_some(),
        }
    }
}

/// The stages of the slow path, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Which segment, and may the sender send this.
    Admit,
    /// Does the gateway answer it itself.
    Reply,
    /// Layer 2: where does this MAC address live.
    Bridge,
    /// Whose packet is it.
    Connection,
    /// Which endpoint does the address stand for.
    Service,
    /// Layer 3: which way to this address.
    Route,
    /// May these two speak to each other.
    Policy,
    /// Which source do the answers need.
    Masquerade,
    /// Which outer headers, and does it fit.
    Encap,
}

impl Stage {
    /// The stage's name as trace, docs and tests write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Admit => "admit",
            Stage::Reply => "reply",
            Stage::Bridge => "bridge",
            Stage::Connection => "connection",
            Stage::Service => "service",
            Stage::Route => "route",
            Stage::Masquerade => "masquerade",
            Stage::Policy => "policy",
            Stage::Encap => "encap",
        }
    }
}

/// Why a stage did what it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Came in by this port into this segment.
    Admitted(Arc<str>, Arc<str>),
    /// Came out of the tunnel from this node into this segment.
    AdmittedFrom(Arc<str>, Vni, Arc<str>),
    /// Came by this uplink outside of any tunnel and is for this segment.
    AdmittedOutside(Arc<str>, Arc<str>),
    /// The node it goes to without a tunnel.
    Direct(Arc<str>),
    /// Another node's name, by which uplink without a tunnel, into which segment.
    AdmittedDirect(Arc<str>, Arc<str>, Arc<str>),
    /// Answered.
    Answered(Reply),
    /// Came by this uplink, is not ours, and goes to the host by this port.
    HandedBack(Arc<str>, Arc<str>),
    /// The station lives behind this port or node.
    Station(Mac, Arc<str>),
    /// The station is unknown, or the frame is for a group: to this many others.
    Flooded(usize),
    /// Opens a connection.
    Opens,
    /// Belongs to a connection, in this direction.
    Known(Direction),
    /// Is an error about a connection, and goes in this direction.
    Related(Direction),
    /// Waits for the first fragment of its packet.
    AwaitsFirst,
    /// Got this endpoint of a Service.
    Picked(Box<Picked>),
    /// The route with this prefix and name.
    Routed(IpNet, Arc<str>),
    /// Goes on with this source of the node's own.
    Masqueraded(SocketAddr),
    /// Goes on with another port, since answers to its own would be another connection's.
    PortTaken(SocketAddr),
    /// In this direction of a pod the rule at this place of a policy's rules allows it.
    Allowed(policy::Direction, Arc<RuleList>, usize),
    /// In this direction of a pod it is denied.
    Denied(policy::Direction, Denial, DropReason),
    /// It would be denied, but the policies that do let connections finish.
    Finishes(policy::Direction, Denial),
    /// Leaves by this port.
    Leaves(Arc<str>),
    /// Goes to this node in this VNI.
    Encapsulated(Vni, Arc<str>),
    /// Dropped.
    Dropped(DropReason),
    /// Dropped, and the sender told.
    Rejected(DropReason, Rejection),
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Admitted(port, segment) => write!(formatter, "{port} in segment {segment}"),
            Reason::AdmittedFrom(peer, vni, segment) => {
                write!(formatter, "from node {peer} by vni {vni} in segment {segment}")
            }
            Reason::Direct(peer) => write!(formatter, "directly to node {peer}"),
            Reason::AdmittedDirect(peer, uplink, segment) => {
                write!(formatter, "from node {peer} by {uplink} in segment {segment}")
            }
            Reason::AdmittedOutside(uplink, segment) => {
                write!(formatter, "from outside by {uplink} for segment {segment}")
            }
            Reason::Answered(Reply::Arp(mac)) => write!(formatter, "arp answered: gateway is {mac}"),
            Reason::Answered(Reply::NeighbourAdvertisement(mac)) => write!(formatter, "nd answered: gateway is {mac}"),
            Reason::Answered(Reply::Echo) => formatter.write_str("echo answered by the gateway"),
            Reason::HandedBack(uplink, host) => write!(formatter, "{uplink}, not ours: back to the host by {host}"),
            Reason::Station(mac, place) => write!(formatter, "{mac} is at {place}"),
            Reason::Flooded(copies) => write!(formatter, "flood to {copies}"),
            Reason::Opens => formatter.write_str("new"),
            Reason::Known(direction) => write!(formatter, "known, {}", direction.name()),
            Reason::AwaitsFirst => formatter.write_str("waits for its first fragment"),
            Reason::Related(direction) => write!(formatter, "error about a known one, {}", direction.name()),
            Reason::Picked(picked) => picked.fmt(formatter),
            Reason::Routed(prefix, name) => write!(formatter, "{prefix} {name}"),
            Reason::Masqueraded(source) => write!(formatter, "as {source}"),
            Reason::PortTaken(source) => write!(formatter, "port taken, as {source}"),
            Reason::Allowed(direction, list, place) => {
                write!(formatter, "{} allowed by {}", direction.name(), list.rule_name(*place))
            }
            Reason::Denied(direction, denial, reason) => {
                write!(formatter, "{} drop {reason}: {denial}", direction.name())
            }
            Reason::Finishes(direction, denial) => {
                write!(formatter, "{} established goes on: {denial}", direction.name())
            }
            Reason::Leaves(port) => write!(formatter, "to {port}"),
            Reason::Encapsulated(vni, peer) => write!(formatter, "vni {vni} to node {peer}"),
            Reason::Dropped(reason) => write!(formatter, "drop {reason}"),
            Reason::Rejected(reason, Rejection::TooBig { mtu }) => {
                write!(formatter, "drop {reason}, sender told to use {mtu}")
            }
            Reason::Rejected(reason, _) => write!(formatter, "drop {reason}, sender told"),
        }
    }
}

/// One stage's reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The stage.
    pub stage: Stage,
    /// Its reason.
    pub reason: Reason,
}

/// The reasons of a walk, in order; at most [`TRAIL_STEPS`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trail(Vec<Step>);

impl Trail {
    /// Adds a step; one beyond the bound is left out, which the stage list makes impossible.
    pub fn push(&mut self, stage: Stage, reason: Reason) {
        debug_assert!(self.0.len() < TRAIL_STEPS);
        if self.0.len() < TRAIL_STEPS {
            self.0.push(Step { stage, reason });
        }
    }

    /// The steps in order.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.0
    }
}

impl fmt::Display for Trail {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { " | " };
            write!(formatter, "{separator}{} {}", step.stage.name(), step.reason)?;
        }
        Ok(())
    }
}
