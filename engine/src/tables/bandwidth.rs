//! How much may go into a port and come out of it.
//!
//! No decision rests on it: whoever changes a limit decides no flow again.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::packet::PortIndex;

/// The limits of one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Of what comes in by the port: what a pod sends.
    pub from_port: Option<RateLimit>,
    /// Of what leaves by the port: what a pod receives.
    pub to_port: Option<RateLimit>,
}

/// A rate, and how far it may be run ahead of. Bits are those of whole frames, from the Ethernet header on without the
/// checksum behind; a GSO unit counts as the frames it is cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Bits per second; 0 lets one packet through in a very long time.
    pub bits_per_second: u64,
    /// Bits that pass at once after a silence. A packet passes whole while any of them is left, and what it took too much is
    /// missing later: a unit of 64 KiB passes a smaller burst, and the rate holds.
    pub burst_bits: u64,
}

/// Limits by the number of their port; ports without any are not in it.
pub type BandwidthTable = Arc<BTreeMap<PortIndex, Bandwidth>>;

impl Bandwidth {
    /// Whether neither direction is limited.
    #[must_use]
    pub const fn is_unlimited(&self) -> bool {
        self.from_port.is_none() && self.to_port.is_none()
    }
}
