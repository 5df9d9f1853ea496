//! The cluster as this program sees it: plain, validated values, free of the types they came from.
//!
//! Whoever holds one of these values need not check it again: names are names, blocks have no host bits and lie in
//! their pools, MAC addresses name one station. All maps are ordered, so everything computed from a cluster comes
//! out in one order whatever order it came in.

mod addressing;
mod bandwidth;
mod bridging;
mod cursor;
mod name;
mod network;
mod node;
mod offsets;
mod policy;
mod selector;
mod service;
mod workload;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use addressing::{AssignedAddress, BlockRecord, Cidr, CidrError, KeptFor, PoolError, PoolRecord, TunnelUse};
pub use bandwidth::rate_limit;
pub use bridging::{
    BridgePortRecord, BridgeRecord, DEFAULT_VLAN, DeviceKind, Membership, MirrorRecord, PortDevice, PortVlans,
    StationPlace, StationRecord, VlanId, VlanIdError,
};
pub use cursor::Cursor;
pub use name::{
    BlockName, BridgeName, InterfaceName, NameError, NamespaceName, NetworkName, NodeName, PodName, PoolName, PortName,
    ServiceName, ServiceRangeName, SliceName, UplinkName,
};
pub use network::{NetworkRecord, SubnetRecord};
pub use node::{NodeRecord, StationMac, StationMacError, TunnelEnd, UplinkPort, UplinkPortKind, UplinkRecord};
pub use offsets::{Offsets, OffsetsError};
pub use policy::{NetworkBlock, Peer, PolicyName, PolicyRecord, PortRecord, RuleRecord, Tier};
pub use selector::{Labels, NAMESPACE_NAME_LABEL, Namespaces, PodSelection, Requirement, Selector};
pub use service::{
    ClientSubnet, Distribution, EndpointGroup, EndpointRecord, ServicePortRecord, ServiceRangeRecord, ServiceRecord,
    SlicePort, SliceRecord, Slices, TargetPort,
};
pub use workload::{AddressWishes, ContainerPort, HostPort, NamespaceRecord, PodPrecedence, PodRecord};

/// The present state, of all objects that are valid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Nodes.
    pub nodes: BTreeMap<NodeName, NodeRecord>,
    /// Pods.
    pub pods: BTreeMap<PodName, PodRecord>,
    /// Namespaces.
    pub namespaces: BTreeMap<NamespaceName, NamespaceRecord>,
    /// Uplinks of all nodes.
    pub uplinks: BTreeMap<UplinkName, UplinkRecord>,
    /// Address pools.
    pub pools: BTreeMap<PoolName, PoolRecord>,
    /// Blocks claimed out of the pools.
    pub blocks: BTreeMap<BlockName, BlockRecord>,
    /// Services.
    pub services: BTreeMap<ServiceName, Arc<ServiceRecord>>,
    /// Endpoints of Services.
    pub slices: Slices,
    /// Ranges of Services' addresses.
    pub service_ranges: BTreeMap<ServiceRangeName, ServiceRangeRecord>,
    /// Policies of both kinds.
    pub policies: BTreeMap<PolicyName, Arc<PolicyRecord>>,
    /// Bridges of all nodes.
    pub bridges: BTreeMap<BridgeName, BridgeRecord>,
    /// Ports of standalone switches.
    pub ports: BTreeMap<PortName, BridgePortRecord>,
    /// Networks that pods may be plugged into directly.
    pub networks: BTreeMap<NetworkName, NetworkRecord>,
}

impl Cluster {
    /// Whether a block's addresses are of a network of their own and not of the pods' segment.
    #[must_use]
    pub fn is_of_network(&self, block: &BlockRecord) -> bool {
        self.pools.get(&block.pool).is_some_and(|pool| pool.network.is_some())
    }
}
