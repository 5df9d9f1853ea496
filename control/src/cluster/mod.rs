//! The cluster as this program sees it: plain, validated values, free of the types they came from.
//!
//! Whoever holds one of these values need not check it again: names are names, blocks have no host bits and lie in
//! their pools, MAC addresses name one station. All maps are ordered, so everything computed from a cluster comes
//! out in one order whatever order it came in.

mod addressing;
mod bandwidth;
mod bridging;
mod cursor;
mod membership;
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
pub use membership::Memberships;
pub use name::{
    BlockName, BridgeName, InterfaceName, NameError, NamespaceName, NetworkName, NodeName, PodName, PoolName, PortName,
    ServiceName, ServiceRangeName, SliceName, UplinkName,
};
pub use network::{NetworkKind, NetworkRecord, PODS, RoutedNetwork, SubnetRecord, WireRecord};
pub use node::{NodeRecord, StationMac, StationMacError, TunnelEnd, UplinkPort, UplinkPortKind, UplinkRecord};
pub use offsets::{Offsets, OffsetsError};
pub use policy::{NetworkBlock, Peer, PolicyName, PolicyRecord, PortRecord, RuleRecord, Tier};
pub use selector::{Labels, NAMESPACE_NAME_LABEL, Namespaces, PodSelection, Requirement, Selector};
pub use service::{
    ClientSubnet, Distribution, EndpointGroup, EndpointRecord, ServicePortRecord, ServiceRangeRecord, ServiceRecord,
    SlicePort, SliceRecord, Slices, TargetPort,
};
pub use workload::{
    AddressWishes, ContainerPort, FurtherInterface, HostPort, NamespaceRecord, PodPrecedence, PodRecord,
};

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
    /// Networks that pods may be plugged into instead of the pods' segment.
    pub networks: BTreeMap<NetworkName, NetworkRecord>,
    /// Which pods and namespaces name a network.
    pub memberships: Memberships,
}

impl Cluster {
    /// The pools of a network; of the pods' segment for `None`.
    pub fn pools_of<'a>(&'a self, network: Option<&'a NetworkName>) -> impl Iterator<Item = &'a PoolRecord> + Clone {
        self.pools.values().filter(move |pool| pool.network.as_ref() == network)
    }

    /// The blocks of a network; of the pods' segment for `None`.
    pub fn blocks_of<'a>(&'a self, network: Option<&'a NetworkName>) -> impl Iterator<Item = &'a BlockRecord> + Clone {
        self.blocks.values().filter(move |block| block.network.as_ref() == network)
    }

    /// The network of a name, if it is a tenant's routed one.
    #[must_use]
    pub fn routed_network(&self, name: &NetworkName) -> Option<&RoutedNetwork> {
        self.networks.get(name).and_then(NetworkRecord::routed)
    }
}
