//! What the slow path is given of a packet.

use std::net::IpAddr;

use crate::packet::{Gso, Headers, Mac, PortIndex};
use crate::tables::Vni;

/// A packet as the stages see it: the innermost frame, and how it came.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Port it came in by.
    pub port: PortIndex,
    /// The tunnel it came out of, if it did; the outer headers are checked already.
    pub tunnel: Option<Tunnelled>,
    /// Head of the frame, inner Ethernet header first.
    pub frame: &'a [u8],
    /// Parsed headers of `frame`.
    pub headers: &'a Headers,
    /// Segment size, if it is a GSO unit.
    pub gso: Option<Gso>,
}

/// The tunnel a packet came out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tunnelled {
    /// VTEP address of the peer that sent it.
    pub peer: IpAddr,
    /// Network identifier it carried.
    pub vni: Vni,
}

impl Arrival<'_> {
    /// Destination MAC address.
    #[must_use]
    pub fn destination_mac(&self) -> Mac {
        Mac::read(self.frame)
    }

    /// Source MAC address.
    #[must_use]
    pub fn source_mac(&self) -> Mac {
        Mac::read(self.frame.get(6..).unwrap_or_default())
    }

    /// Bytes of the network-layer packet; of a GSO unit, of its longest segment.
    #[must_use]
    pub fn network_bytes(&self) -> u32 {
        self.headers.network_bytes(self.gso)
    }
}
