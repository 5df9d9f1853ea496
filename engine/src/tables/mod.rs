//! What the control plane publishes: immutable tables, replaced as a whole by one pointer swap.
//!
//! A [`Snapshot`] is built off the packet threads, shares what did not change with the one before (prefix trees
//! copy only the path to a change), and is freed off the packet threads too. Packets never change a table; what
//! packets teach lives in `state/`. [`change::changes`] compares two snapshots and says which flows to decide
//! again, so that the change set cannot disagree with the tables.

pub mod change;
pub mod lookup;
mod ports;
mod publish;
mod segments;
pub mod services;
mod tunnels;

pub use change::{Change, ChangeSet};
pub use ports::{BridgedPort, HostPort, PodPort, Port, PortRole, PortTable, UplinkPort, VlanMember};
pub use publish::{Publisher, Subscription};
pub use segments::{
    BridgedSegment, Route, RouteTarget, RoutedSegment, Segment, SegmentIndex, SegmentKind, SegmentTable, Vni,
    address_bits,
};
pub use services::ServiceTable;
pub use tunnels::{NextHop, Peer, Tunnels, Vtep};

/// Everything a worker decides by, at one generation.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts publishes; 0 is the empty snapshot a switch starts with.
    pub generation: u64,
    /// What each port is.
    pub ports: PortTable,
    /// Who shares a network, and how it is routed or bridged.
    pub segments: SegmentTable,
    /// Other nodes and how to reach them.
    pub tunnels: Tunnels,
    /// Addresses that stand for endpoints.
    pub services: ServiceTable,
}
