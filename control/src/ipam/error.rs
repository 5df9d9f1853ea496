//! Why an address cannot be given.

use std::net::IpAddr;

use super::Holder;
use crate::cluster::{BlockName, NetworkName, NodeName, PODS, PoolName};
use crate::store::StoreError;

/// Why no address can be given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IpamError {
    /// There is nothing to take addresses from.
    #[error("no IpPool exists")]
    NoPool,
    /// A pod or its namespace names a pool that is not there.
    #[error("IpPool {pool}, which the annotation millrace.dev/ip-pools names, does not exist")]
    UnknownPool {
        /// Its name.
        pool: PoolName,
    },
    /// A pod or its namespace names a pool whose addresses mean something elsewhere.
    #[error(
        "IpPool {pool}, which the annotation millrace.dev/ip-pools names, is for pods of {}",
        network_name(network)
    )]
    OfAnotherNetwork {
        /// Its name.
        pool: PoolName,
        /// The network it is for; `None` for the pods' segment.
        network: Option<NetworkName>,
    },
    /// All blocks of the pools of a family are claimed and all addresses of ours are in use.
    #[error("all addresses are in use: pool{} {} of node {node} {} exhausted", if pools.len() == 1 { "" } else { "s" },
        names(pools), if pools.len() == 1 { "is" } else { "are" })]
    Exhausted {
        /// The pools of the family.
        pools: Vec<PoolName>,
        /// This node.
        node: NodeName,
    },
    /// The address that is asked for is in use on this node.
    #[error("{address} is in use by {holder}")]
    InUse {
        /// The address.
        address: IpAddr,
        /// Who holds it.
        holder: Holder,
    },
    /// The address that is asked for lies in no pool, or not in what is assigned to this node.
    #[error("{address} is not an address that pods of this node can have: no IpPool or podCIDR has it")]
    NotOfAnyPool {
        /// The address.
        address: IpAddr,
    },
    /// The address that is asked for is the first of a block, which belongs to the node.
    #[error("{address} is the address of node {node} itself, the first of its block")]
    OfTheNode {
        /// The address.
        address: IpAddr,
        /// The node.
        node: NodeName,
    },
    /// The address that is asked for is taken, or kept by its node for its own pods.
    #[error(
        "{address} is taken, or kept by node {node} for its pods; list it under `reserved` of its IpPool to keep it free"
    )]
    NotLent {
        /// The address.
        address: IpAddr,
        /// The node whose block has it.
        node: NodeName,
    },
    /// Too many nodes write the same block.
    #[error("IpBlock {block} is being changed by others all the time")]
    Contended {
        /// The block.
        block: BlockName,
    },
    /// The store could not be read or written.
    #[error("cannot claim a block of pool {pool}")]
    Store {
        /// The pool.
        pool: PoolName,
        /// What the store said.
        source: StoreError,
    },
    /// The blocks in the store cannot be read.
    #[error("cannot list blocks")]
    List {
        /// What the store said.
        source: StoreError,
    },
    /// An address that is recorded as in use is held by somebody else too.
    #[error("{address} is held by {first} and by {second}")]
    HeldTwice {
        /// The address.
        address: IpAddr,
        /// Who holds it.
        first: Holder,
        /// Who would hold it too.
        second: Holder,
    },
}

impl IpamError {
    /// Whether it is the store that failed and may not fail again soon.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Store { source, .. } | Self::List { source } if source.is_passing())
    }

    /// Whether the store does not answer, so that the next call would wait as long again.
    #[must_use]
    pub const fn is_unreachable(&self) -> bool {
        matches!(self, Self::Store { source, .. } | Self::List { source } if matches!(source, StoreError::Unreachable { .. }))
    }

    /// Whether the request itself asks for what cannot be, so that trying again does not help.
    #[must_use]
    pub const fn is_of_the_request(&self) -> bool {
        matches!(
            self,
            Self::UnknownPool { .. }
                | Self::OfAnotherNetwork { .. }
                | Self::NotOfAnyPool { .. }
                | Self::OfTheNode { .. }
        )
    }
}

fn network_name(network: &Option<NetworkName>) -> String {
    network.as_ref().map_or_else(|| PODS.to_owned(), |network| format!("network {network}"))
}

fn names(pools: &[PoolName]) -> String {
    pools.iter().map(PoolName::as_str).collect::<Vec<_>>().join(", ")
}
