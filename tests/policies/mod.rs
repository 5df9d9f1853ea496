//! What the tests of policies share: an oracle, and a node that judges through its own slow path.
//!
//! - [`oracle`]: policies as the API's comments tell them, read from the raw objects, one after the other.
//! - [`judge`]: the same objects through observe, plan and compile into tables, and a packet through the stages.
//! - [`random_cluster`]: clusters with every feature of the API, from a seed.
//! - [`shrink`]: the smallest objects that still show something.

pub mod judge;
pub mod oracle;
pub mod random_cluster;
pub mod shrink;

use std::fmt;
use std::net::IpAddr;

/// The node that judges.
pub const NODE: &str = "a";

/// A packet that opens a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who sends it.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// `TCP`, `UDP`, `SCTP` or `ICMP`.
    pub protocol: &'static str,
    /// Destination port; 0 for ICMP.
    pub port: u16,
}

impl fmt::Display for Flow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} > {} port {}", self.protocol, self.source, self.destination, self.port)
    }
}
