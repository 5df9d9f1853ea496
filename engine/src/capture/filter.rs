//! Which packets a capture is of.

use std::net::IpAddr;

use crate::drop_reason::DropReason;
use crate::packet::{Headers, Network, PortIndex};

/// Which packets a capture is of: those for which everything that is said here holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureFilter {
    /// Ports by one of which it comes or leaves; none for any.
    pub ports: Vec<PortIndex>,
    /// Reasons for one of which it drops; an empty list for any. `None` for packets of every fate.
    pub drops: Option<Vec<DropReason>>,
    /// What its headers say as it comes in; those inside a tunnel.
    pub flow: FlowFilter,
}

/// What a packet's headers say, whichever way it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// IP protocol.
    pub protocol: Option<u8>,
    /// Addresses, each of which is its source or its destination.
    pub addresses: Vec<IpAddr>,
    /// Ports of TCP, UDP or SCTP, each of which is its source or its destination.
    pub ports: Vec<u16>,
}

impl FlowFilter {
    /// Whether every packet matches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.protocol.is_none() && self.addresses.is_empty() && self.ports.is_empty()
    }

    /// Whether a packet with these headers matches.
    #[must_use]
    pub fn matches(&self, headers: &Headers) -> bool {
        if self.is_empty() {
            return true;
        }
        let is_ip = matches!(headers.network, Network::Ipv4 | Network::Ipv6);
        let ends = [headers.source_address(), headers.destination_address()];
        is_ip
            && self.protocol.is_none_or(|protocol| protocol == headers.protocol)
            && self.addresses.iter().all(|address| ends.contains(address))
            && self.ports.iter().all(|port| headers.ports.contains(port))
    }
}

impl CaptureFilter {
    /// Whether packets that come by `ingress`, or leave by one of `egress`, are of one of the ports.
    #[must_use]
    pub fn has_port(&self, ingress: PortIndex, mut egress: impl Iterator<Item = PortIndex>) -> bool {
        self.ports.is_empty() || self.ports.contains(&ingress) || egress.any(|port| self.ports.contains(&port))
    }

    /// Whether a packet that drops for this reason, or does not drop, has one of the fates.
    #[must_use]
    pub fn has_fate(&self, dropped: Option<DropReason>) -> bool {
        match (&self.drops, dropped) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(reasons), Some(reason)) => reasons.is_empty() || reasons.contains(&reason),
        }
    }
}
