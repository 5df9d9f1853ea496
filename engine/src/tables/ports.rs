//! What each port is: a pod, the host itself, a member of bridged segments, an uplink, or the end of a mirror.

use std::net::IpAddr;
use std::sync::Arc;

use super::{BridgedPort, SegmentIndex};
use crate::packet::{Mac, PortIndex};

/// One port as the tables see it. The queues that move its packets belong to the workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The port's number.
    pub index: PortIndex,
    /// Its name for people: `default/web-0` for a pod, the interface name for an uplink.
    pub name: Arc<str>,
    /// Longest network-layer packet its link carries, in bytes; GSO units count by their segments.
    pub mtu: u32,
    /// What it is for.
    pub role: PortRole,
}

/// What a port is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRole {
    /// A pod, in a routed or a bridged segment.
    Pod(PodPort),
    /// The host's own kernel as a member of a routed segment: node to pods, and pods to their node.
    Host(HostPort),
    /// A member of one or more bridged segments.
    Bridged(BridgedPort),
    /// The underlay: tunnels arrive and leave here.
    Uplink(UplinkPort),
    /// Gets copies of other ports' frames; whatever comes in by it is dropped.
    Mirror,
}

/// A pod: it may send from its own addresses only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPort {
    /// Segment the pod lives in.
    pub segment: SegmentIndex,
    /// The pod's MAC address.
    pub mac: Mac,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
}

/// The host's own port. The host is no tenant but it is no router either: what it sends must come from an address of
/// its own, so that a process which forges a pod's address, or forwards for others, is stopped here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Segment the host is a member of.
    pub segment: SegmentIndex,
    /// MAC address of the host's interface.
    pub mac: Mac,
    /// All addresses that the host's kernel takes for its own, those of its other interfaces included.
    pub addresses: Vec<IpAddr>,
}

/// The underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkPort {
    /// The interface's MAC address.
    pub mac: Mac,
    /// Who gets what arrives outside of any tunnel and is not ours; `None` drops it.
    pub hand_back: Option<HandBack>,
}

/// The host's own port, as the place where an uplink's frames go back to the host's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandBack {
    /// The port.
    pub port: PortIndex,
    /// MAC address of the host's interface: what the frame is addressed to from then on.
    pub mac: Mac,
}

/// All ports, by number. A change copies one pointer for each port.
#[derive(Clone, Debug, Default)]
pub struct PortTable {
    entries: Arc<Vec<Option<Arc<Port>>>>,
}

impl PortTable {
    /// The port with this number.
    #[inline]
    #[must_use]
    pub fn get(&self, index: PortIndex) -> Option<&Arc<Port>> {
        self.entries.get(index.0 as usize)?.as_ref()
    }

    /// Puts `port` at its number.
    pub fn insert(&mut self, port: Port) {
        let at = port.index.0 as usize;
        let entries = Arc::make_mut(&mut self.entries);
        if entries.len() <= at {
            entries.resize(at + 1, None);
        }
        entries[at] = Some(Arc::new(port));
    }

    /// Takes the port with this number away. The table keeps no trace of it: equal ports make equal tables.
    pub fn remove(&mut self, index: PortIndex) {
        if self.get(index).is_none() {
            return;
        }
        let entries = Arc::make_mut(&mut self.entries);
        entries[index.0 as usize] = None;
        while matches!(entries.last(), Some(None)) {
            entries.pop();
        }
    }

    /// All ports in order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Port>> {
        self.entries.iter().flatten()
    }

    /// Whether this is the very table `other` is, without looking inside.
    #[must_use]
    pub fn is_same(&self, other: &PortTable) -> bool {
        Arc::ptr_eq(&self.entries, &other.entries)
    }
}
