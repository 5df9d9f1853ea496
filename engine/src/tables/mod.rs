//! What the control plane publishes: immutable tables, replaced as a whole by one pointer swap.
//!
//! A [`Snapshot`] is built off the packet threads, shares what did not change with the one before (prefix trees
//! copy only the path to a change), and is freed off the packet threads too. Packets never change a table; what
//! packets teach lives in `state/`. [`change::changes`] compares two snapshots and says which flows to decide
//! again, so that the change set cannot disagree with the tables.

mod bandwidth;
mod bridging;
pub mod change;
pub mod lookup;
mod outside;
pub mod policy;
mod ports;
mod publish;
mod segments;
pub mod services;
mod tunnels;

pub use bandwidth::{Bandwidth, BandwidthTable, RateLimit};
pub use bridging::{
    BridgedPort, BridgedSegment, FloodClass, Location, Member, Mirror, MoveLimit, StormLimits, Tag, TagProtocol,
    VlanMember,
};
pub use change::{Change, ChangeSet};
pub use outside::Outside;
pub use policy::PolicyTable;
pub use ports::{HandBack, HostPort, PodPort, Port, PortRole, PortTable, UplinkPort};
pub use publish::{Publisher, Subscription};
pub use segments::{
    PortRange, Route, RouteTarget, RoutedSegment, Segment, SegmentIndex, SegmentKind, SegmentTable, Vni, address_bits,
    address_octets,
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
    /// What is reached outside of any tunnel.
    pub outside: Outside,
    /// Addresses that stand for endpoints.
    pub services: ServiceTable,
    /// Ports whose frames are copied, each once. No decision rests on them.
    pub mirrors: std::sync::Arc<Vec<Mirror>>,
    /// Ports with limits of bandwidth. No decision rests on them.
    pub bandwidth: BandwidthTable,
    /// Who may talk to whom.
    pub policy: PolicyTable,
}
