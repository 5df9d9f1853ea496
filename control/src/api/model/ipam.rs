//! `show ipam` and `check ipam`.

use serde::{Deserialize, Serialize};

/// `show ipam`: pools, blocks, and the addresses in use on this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct IpamReport {
    /// Name of this node.
    pub node: String,
    /// Where this node has addresses from: `blocks` or `pod-cidr`.
    pub source: String,
    /// Pools of the cluster, by name.
    pub pools: Vec<PoolReport>,
    /// Blocks of all nodes, by prefix; prefixes assigned to this node with source `pod-cidr`.
    pub blocks: Vec<BlockReport>,
    /// Addresses in use on this node, by address.
    pub addresses: Vec<AddressReport>,
}

/// One pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolReport {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub cidr: String,
    /// Prefix length of its blocks.
    pub block_length: u8,
    /// Blocks that nodes have claimed.
    pub blocks: u64,
    /// Blocks there are room for; a pool of IPv6 may have more than fit a number here, then the largest number.
    pub blocks_possible: u64,
    /// The network whose pods its addresses are for; absent for the pods' segment.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub network: Option<String>,
    /// Whether only pods that name it get addresses of it.
    pub only_on_request: bool,
}

/// One block.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BlockReport {
    /// Its addresses.
    pub cidr: String,
    /// The pool it is part of; empty for an assigned prefix.
    pub pool: String,
    /// The network whose pods have its addresses; absent for the pods' segment.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub network: Option<String>,
    /// The node that hands its addresses out.
    pub node: String,
    /// Addresses in use on this node, of blocks of this node.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub used: Option<u64>,
    /// Addresses for pods.
    pub capacity: u64,
    /// Addresses that any node may borrow.
    pub lendable: u64,
    /// Addresses borrowed by other nodes, or kept for pods.
    pub assigned: Vec<AssignedReport>,
}

/// An address of a block that nodes agreed upon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AssignedReport {
    /// The address.
    pub address: String,
    /// Where it is routed.
    pub node: String,
    /// The pod it is kept for, as `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kept_for: Option<String>,
}

/// An address in use.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AddressReport {
    /// The address.
    pub address: String,
    /// The network it is an address of; absent for the pods' segment.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub network: Option<String>,
    /// The attachment that holds it, as `container/interface`.
    pub holder: String,
    /// The pod, as `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pod: Option<String>,
}

/// `check ipam`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct IpamCheckReport {
    /// Name of this node.
    pub node: String,
    /// Addresses in use on this node that were looked at.
    pub addresses: u64,
    /// Blocks that were looked at.
    pub blocks: u64,
    /// What is lost.
    pub findings: Vec<FindingReport>,
}

/// One leak.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FindingReport {
    /// What sort; a stable name.
    pub kind: String,
    /// The address or the block.
    pub subject: String,
    /// What is wrong, in a sentence.
    pub message: String,
    /// What to do.
    pub next_step: String,
}
