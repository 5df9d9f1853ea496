//! Pools, blocks and the prefixes they are made of.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{BlockName, NetworkName, NodeName, Offsets, PodName, PoolName};

/// A prefix without host bits, shorter than the whole address space and not of length 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr(IpNet);

/// Why a text or a prefix is no [`Cidr`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// It does not read as one.
    #[error("{0:?} is not a prefix such as 10.1.0.0/16 or fd00:10:1::/48")]
    Syntax(String),
    /// Bits beyond the length are set.
    #[error("{given} has bits set beyond its length; the prefix is {prefix}")]
    HostBits {
        /// As given.
        given: IpNet,
        /// What was probably meant.
        prefix: IpNet,
    },
    /// It covers all addresses.
    #[error("{0} covers all addresses")]
    Everything(IpNet),
    /// Its addresses cannot be used for pods.
    #[error("{0} is not made of unicast addresses that may be routed")]
    NotUnicast(IpNet),
}

impl Cidr {
    /// The prefix, if it is one of unicast addresses.
    pub fn new(prefix: IpNet) -> Result<Self, CidrError> {
        if prefix.addr() != prefix.network() {
            return Err(CidrError::HostBits { given: prefix, prefix: prefix.trunc() });
        }
        if prefix.prefix_len() == 0 {
            return Err(CidrError::Everything(prefix));
        }
        let refused = match prefix {
            IpNet::V4(prefix) => {
                let first = prefix.network();
                first.octets()[0] == 0 || first.octets()[0] >= 224 || first.is_loopback() || first.is_link_local()
            }
            IpNet::V6(prefix) => {
                let first = prefix.network();
                first.is_multicast()
                    || first.is_unicast_link_local()
                    || first.to_ipv4_mapped().is_some()
                    || first.to_bits() <= 1
            }
        };
        if refused { Err(CidrError::NotUnicast(prefix)) } else { Ok(Self(prefix)) }
    }

    /// The prefix as the library type.
    #[must_use]
    pub fn net(self) -> IpNet {
        self.0
    }

    /// Number of bits that are fixed.
    #[must_use]
    pub fn length(self) -> u8 {
        self.0.prefix_len()
    }

    /// Number of bits an address of this family has: 32 or 128.
    #[must_use]
    pub fn address_bits(self) -> u8 {
        self.0.max_prefix_len()
    }

    /// Whether this is IPv4.
    #[must_use]
    pub fn is_ipv4(self) -> bool {
        self.0.addr().is_ipv4()
    }

    /// Whether `other` lies in this prefix or is the same.
    #[must_use]
    pub fn contains(self, other: Cidr) -> bool {
        self.0.contains(&other.0)
    }

    /// Whether an address lies in this prefix.
    #[must_use]
    pub fn has(self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    /// Whether the two share addresses.
    #[must_use]
    pub fn overlaps(self, other: Cidr) -> bool {
        self.contains(other) || other.contains(self)
    }

    /// The distance of an address from the first; `None` if it is not one of this prefix.
    #[must_use]
    pub fn offset(self, address: IpAddr) -> Option<u128> {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        self.has(address).then(|| bits(address) - bits(self.0.network()))
    }

    /// The address at this distance from the first; `None` beyond the end.
    #[must_use]
    pub fn address(self, offset: u128) -> Option<IpAddr> {
        let host_bits = self.address_bits() - self.length();
        if host_bits < 128 && offset >> host_bits != 0 {
            return None;
        }
        match self.0.addr() {
            IpAddr::V4(first) => {
                let offset = u32::try_from(offset).ok()?;
                first.to_bits().checked_add(offset).map(|bits| IpAddr::V4(bits.into()))
            }
            IpAddr::V6(first) => first.to_bits().checked_add(offset).map(|bits| IpAddr::V6(bits.into())),
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        text.parse().map_err(|_| CidrError::Syntax(text.to_owned())).and_then(Self::new)
    }
}

/// When packets between nodes go through a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TunnelUse {
    /// In any case.
    #[default]
    Always,
    /// Where the nodes are not on one link.
    AcrossSubnets,
    /// Never: nodes that are not on one link do not reach each other's pods.
    Never,
}

/// Addresses that nodes may claim blocks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolRecord {
    name: PoolName,
    cidr: Cidr,
    block_length: u8,
    /// When its addresses go through tunnels between nodes.
    pub tunnel: TunnelUse,
    /// The network whose pods its addresses are for.
    pub network: Option<NetworkName>,
    /// Whether only pods get addresses of it that ask for it by name.
    pub only_on_request: bool,
    /// Addresses that nobody gets who does not ask for the very one.
    pub reserved: Vec<IpNet>,
}

/// Why a pool is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// A block would not fit.
    #[error("blocks of /{block_length} do not fit a pool of /{pool_length}")]
    BlockBeyondPool {
        /// Prefix length of a block.
        block_length: u8,
        /// Prefix length of the pool.
        pool_length: u8,
    },
    /// A block would have no address for a pod: its first is the node's own.
    #[error("blocks of /{0} have no address for a pod, since the first of each is the node's own")]
    BlockTooSmall(u8),
    /// A block would be larger than is sensible.
    #[error("blocks of /{0} are larger than 65536 addresses")]
    BlockTooLarge(u8),
}

impl PoolRecord {
    /// Addresses of a block by default: 64, in either family.
    pub const BLOCK_ADDRESS_BITS: u8 = 6;

    /// A pool; `block_length` is the prefix length of its blocks, /26 or /122 if not given.
    pub fn new(name: PoolName, cidr: Cidr, block_length: Option<u8>) -> Result<Self, PoolError> {
        let bits = cidr.address_bits();
        let default = (bits - Self::BLOCK_ADDRESS_BITS).max(cidr.length());
        let block_length = block_length.unwrap_or(default);
        if block_length < cidr.length() || block_length > bits {
            return Err(PoolError::BlockBeyondPool { block_length, pool_length: cidr.length() });
        }
        match bits - block_length {
            0 => Err(PoolError::BlockTooSmall(block_length)),
            1..=16 => Ok(Self {
                name,
                cidr,
                block_length,
                tunnel: TunnelUse::Always,
                network: None,
                only_on_request: false,
                reserved: Vec::new(),
            }),
            _ => Err(PoolError::BlockTooLarge(block_length)),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &PoolName {
        &self.name
    }

    /// All its addresses.
    #[must_use]
    pub fn cidr(&self) -> Cidr {
        self.cidr
    }

    /// Prefix length of its blocks.
    #[must_use]
    pub fn block_length(&self) -> u8 {
        self.block_length
    }

    /// Whether the address goes only to who asks for it.
    #[must_use]
    pub fn reserves(&self, address: IpAddr) -> bool {
        self.reserved.iter().any(|prefix| prefix.contains(&address))
    }
}

/// A block that a node claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRecord {
    /// Its name.
    pub name: BlockName,
    /// Its addresses.
    pub cidr: Cidr,
    /// The pool it is part of.
    pub pool: PoolName,
    /// The network whose pods have these addresses; `None` for the pods' segment. As it was when the block was claimed: a
    /// pool that changes hands leaves the blocks that are in use where they are.
    pub network: Option<NetworkName>,
    /// The node whose pods have these addresses, but for those assigned elsewhere.
    pub node: NodeName,
    /// Places that the node does not use without asking: any node may take one, by compare-and-swap on the object.
    pub lendable: Offsets,
    /// Addresses that were taken so, or that are kept for a pod.
    pub assigned: BTreeMap<IpAddr, AssignedAddress>,
    /// Version of the object, to release it by compare-and-swap.
    pub resource_version: Arc<str>,
}

impl BlockRecord {
    /// The place of an address in the block, if it is one of its.
    #[must_use]
    pub fn offset(&self, address: IpAddr) -> Option<u16> {
        self.cidr.offset(address).and_then(|offset| u16::try_from(offset).ok())
    }
}

/// An address of a block that nodes agreed upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignedAddress {
    /// Where it is routed.
    pub node: NodeName,
    /// The pod it is kept for while it is away; `None` for an address that is only borrowed.
    pub kept_for: Option<KeptFor>,
}

/// A pod that finds its address again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptFor {
    /// The pod.
    pub pod: PodName,
    /// The StatefulSet that makes it again; in the pod's namespace.
    pub stateful_set: Arc<str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_that_cannot_be_pods_are_refused() {
        for wrong in [
            "10.0.0.1/8",
            "0.0.0.0/0",
            "224.0.0.0/8",
            "127.0.0.0/16",
            "169.254.0.0/16",
            "fe80::/64",
            "ff00::/8",
            "10/8",
        ] {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
        let host_bits = "10.1.2.3/16".parse::<Cidr>().expect_err("host bits").to_string();
        assert_eq!(host_bits, "10.1.2.3/16 has bits set beyond its length; the prefix is 10.1.0.0/16");
    }

    #[test]
    fn addresses_are_counted_from_the_first_and_end_with_the_block() {
        let block: Cidr = "10.1.0.64/26".parse().expect("block");
        assert_eq!(block.address(63).map(|address| address.to_string()).as_deref(), Some("10.1.0.127"));
        assert_eq!(block.address(64), None);
        let last: Cidr = "223.255.255.192/26".parse().expect("block");
        assert_eq!(last.address(u128::MAX), None);
    }

    #[test]
    fn block_lengths_are_bounded() {
        let pool = |cidr: &str, length| {
            PoolRecord::new(PoolName::new("p").expect("name"), cidr.parse().expect("cidr"), length)
                .map(|pool| pool.block_length())
        };
        assert_eq!(pool("10.0.0.0/8", None), Ok(26));
        assert_eq!(pool("fd00::/48", None), Ok(122));
        assert_eq!(pool("10.0.0.0/28", None), Ok(28));
        assert!(pool("10.0.0.0/28", Some(26)).is_err());
        assert!(pool("10.0.0.0/8", Some(32)).is_err());
        assert!(pool("fd00::/48", Some(64)).is_err());
    }
}
