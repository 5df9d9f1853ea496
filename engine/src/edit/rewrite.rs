//! What is done to every packet of a flow, as data: compared, hashed and shared between flows.
//!
//! Order of application: decapsulate, pop tags, translate addresses, route (TTL and MACs), push tag, encapsulate.
//! What differs from flow to flow (translated addresses) is in [`Translation`] and lives in the flow's entry; a
//! [`Rewrite`] depends on where packets go, so a node needs about one for each local pod and peer.

use std::net::IpAddr;

use crate::packet::Mac;
use crate::tables::{Tag, Vni};

/// The two MAC addresses of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacPair {
    /// Destination, first on the wire.
    pub destination: Mac,
    /// Source.
    pub source: Mac,
}

/// The outer headers of a tunnelled frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Encapsulation {
    /// Outer Ethernet addresses.
    pub macs: MacPair,
    /// Outer source: our VTEP.
    pub source: IpAddr,
    /// Outer destination: the peer's VTEP, of the same family as `source`.
    pub destination: IpAddr,
    /// UDP destination port.
    pub udp_port: u16,
    /// VXLAN network identifier.
    pub vni: Vni,
}

impl Encapsulation {
    /// Bytes it adds in front of the frame: 50 over IPv4, 70 over IPv6.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        if self.source.is_ipv4() { 14 + 20 + 8 + 8 } else { 14 + 40 + 8 + 8 }
    }
}

/// What is done to every packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rewrite {
    /// Take the tunnel's outer headers off first.
    pub decapsulate: bool,
    /// VLAN tags to take off, 0 to 2.
    pub pop_tags: u8,
    /// Routed: new MAC addresses, TTL or hop limit one less.
    pub route: Option<MacPair>,
    /// VLAN tag to put on; it takes the priority of a tag that was taken off.
    pub push_tag: Option<Tag>,
    /// Outer headers to put on.
    pub encapsulate: Option<Encapsulation>,
    /// Longest network-layer packet (of a GSO unit: longest segment) that may leave, in bytes, before encapsulation.
    pub mtu: u32,
}

/// New addresses and ports of a flow: destination for a Service, source for masquerade, either way for replies.
/// Addresses are IPv4 in the first four bytes, or IPv6. The port of an ICMP echo is its identifier, as in
/// [`Headers::ports`](crate::packet::Headers::ports).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// New source address and port.
    pub source: Option<([u8; 16], u16)>,
    /// New destination address and port.
    pub destination: Option<([u8; 16], u16)>,
}

impl Translation {
    /// Nothing is translated.
    pub const NONE: Translation = Translation { source: None, destination: None };

    /// Whether nothing is translated.
    #[inline]
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.source.is_none() && self.destination.is_none()
    }
}
