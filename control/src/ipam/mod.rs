//! Addresses for pods: blocks claimed out of pools, addresses handed out of blocks.
//!
//! A node owns small blocks and hands out their addresses without asking anybody. A block is an `IpBlock` object
//! created with compare-and-swap; its name is its prefix, so that two nodes that want the same block write the same
//! key and the store decides. Nodes look for free blocks from a place computed from their name, and so rarely meet.
//!
//! The first address of each block is kept for the node itself. The last is as good as any: pods have routes of their
//! own, no broadcast address exists. Which addresses are in use is recorded by the caller, who tells it at start.

mod block;
mod claim;

use std::collections::BTreeMap;
use std::net::IpAddr;

use block::OwnBlock;

use crate::cluster::{Cidr, Cluster, NodeName, PoolName, PoolRecord};
use crate::store::{ObjectStore, StoreError};

/// Who holds an address: the caller's name for an attachment, e.g. container and interface.
pub type Holder = String;

/// Why no address can be given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IpamError {
    /// There is nothing to take addresses from.
    #[error("no IpPool exists")]
    NoPool,
    /// All blocks of the pools of a family are claimed and all addresses of ours are in use.
    #[error("all addresses are in use: pool{} {} of node {node} {} exhausted", if pools.len() == 1 { "" } else { "s" },
        names(pools), if pools.len() == 1 { "is" } else { "are" })]
    Exhausted {
        /// The pools of the family.
        pools: Vec<PoolName>,
        /// This node.
        node: NodeName,
    },
    /// The store could not be read or written.
    #[error("cannot claim a block of pool {pool}")]
    Store {
        /// The pool.
        pool: PoolName,
        /// What the store said.
        source: StoreError,
    },
    /// The store has an object that is not a valid block.
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

fn names(pools: &[PoolName]) -> String {
    pools.iter().map(PoolName::as_str).collect::<Vec<_>>().join(", ")
}

/// The allocator of one node.
#[derive(Debug)]
pub struct AddressAllocator {
    node: NodeName,
    blocks: BTreeMap<Cidr, OwnBlock>,
    held: BTreeMap<IpAddr, Holder>,
}

impl AddressAllocator {
    /// An allocator without blocks.
    #[must_use]
    pub fn new(node: NodeName) -> Self {
        Self { node, blocks: BTreeMap::new(), held: BTreeMap::new() }
    }

    /// Records an address that is in use already, at start. It need not lie in a block that is known yet.
    pub fn restore(&mut self, holder: &str, address: IpAddr) -> Result<(), IpamError> {
        if let Some(first) = self.held.get(&address).filter(|first| *first != holder) {
            return Err(IpamError::HeldTwice { address, first: first.clone(), second: holder.to_owned() });
        }
        self.held.insert(address, holder.to_owned());
        for block in self.blocks.values_mut() {
            block.take(address);
        }
        Ok(())
    }

    /// An address of each family that has a pool, the lowest free ones of our blocks; claims blocks where needed.
    /// The same holder gets the same addresses again. IPv4 comes first.
    pub fn allocate(
        &mut self,
        store: &dyn ObjectStore,
        cluster: &Cluster,
        holder: &str,
    ) -> Result<Vec<IpAddr>, IpamError> {
        let mut pools: [Vec<&PoolRecord>; 2] = Default::default();
        for pool in cluster.pools.values() {
            pools[usize::from(!pool.cidr().is_ipv4())].push(pool);
        }
        if pools.iter().all(Vec::is_empty) {
            return Err(IpamError::NoPool);
        }
        self.give_up_lost_blocks(cluster);
        let before = self.addresses_of(holder);
        let mut given = Vec::new();
        for (pools, ipv4) in pools.iter().zip([true, false]).filter(|(pools, _)| !pools.is_empty()) {
            let known = before.iter().copied().find(|address| address.is_ipv4() == ipv4);
            match known.map_or_else(|| self.allocate_family(store, pools, ipv4), Ok) {
                Ok(address) => {
                    self.held.insert(address, holder.to_owned());
                    given.push(address);
                }
                Err(error) => {
                    // All families or none: what was given just now goes back.
                    given
                        .into_iter()
                        .filter(|address| !before.contains(address))
                        .for_each(|address| self.free(address));
                    return Err(error);
                }
            }
        }
        Ok(given)
    }

    /// Sees to it that this node has a block of each family that has a pool, before any pod asks: its first address is
    /// the node's own. Which one that is says the plan.
    ///
    /// # Errors
    /// As [`Self::allocate`]; families that could be served are.
    pub fn claim_for_node(&mut self, store: &dyn ObjectStore, cluster: &Cluster) -> Result<(), IpamError> {
        self.give_up_lost_blocks(cluster);
        let claim_family = |ipv4: bool| {
            let pools = || cluster.pools.values().filter(|pool| pool.cidr().is_ipv4() == ipv4);
            let ours = |cidr: &Cidr| pools().any(|pool| pool.cidr().contains(*cidr));
            if pools().next().is_none() || self.blocks.keys().any(ours) {
                return Ok(());
            }
            for pool in pools() {
                if let Some(cidr) = claim::claim(store, &self.node, pool, |_| false)? {
                    self.add_block(cidr);
                    return Ok(());
                }
            }
            let pools = pools().map(|pool| pool.name().clone()).collect();
            Err(IpamError::Exhausted { pools, node: self.node.clone() })
        };
        let outcomes = [true, false].map(claim_family);
        outcomes.into_iter().collect()
    }

    /// Takes all addresses of the holder back and says which they were; none is no error.
    pub fn release(&mut self, holder: &str) -> Vec<IpAddr> {
        let addresses = self.addresses_of(holder);
        addresses.iter().for_each(|address| self.free(*address));
        addresses
    }

    /// Addresses of a holder.
    #[must_use]
    pub fn addresses_of(&self, holder: &str) -> Vec<IpAddr> {
        self.held.iter().filter(|(_, known)| *known == holder).map(|(address, _)| *address).collect()
    }

    /// Our blocks, each with how many of its addresses are in use and how many there are for pods.
    pub fn blocks(&self) -> impl Iterator<Item = (Cidr, usize, usize)> {
        self.blocks.values().map(|block| (block.cidr(), block.used(), block.capacity()))
    }

    /// A block whose object was deleted or handed to another node gives no more addresses; those in use stay held.
    fn give_up_lost_blocks(&mut self, cluster: &Cluster) {
        let owners: BTreeMap<Cidr, bool> = cluster
            .blocks
            .values()
            .filter(|block| self.blocks.contains_key(&block.cidr))
            .map(|block| (block.cidr, block.node == self.node))
            .collect();
        self.blocks.retain(|cidr, block| block.is_still_ours(owners.get(cidr).copied()));
    }

    fn free(&mut self, address: IpAddr) {
        self.held.remove(&address);
        self.blocks.values_mut().for_each(|block| block.release(address));
    }

    fn allocate_family(
        &mut self,
        store: &dyn ObjectStore,
        pools: &[&PoolRecord],
        ipv4: bool,
    ) -> Result<IpAddr, IpamError> {
        if let Some(address) = self.lowest_free(pools, ipv4) {
            return Ok(address);
        }
        // Blocks claimed by an earlier process of this node count before new ones.
        for pool in pools {
            while let Some(cidr) = claim::claim(store, &self.node, pool, |cidr| self.blocks.contains_key(&cidr))? {
                self.add_block(cidr);
                if let Some(address) = self.lowest_free(pools, ipv4) {
                    return Ok(address);
                }
            }
        }
        let pools = pools.iter().map(|pool| pool.name().clone()).collect();
        Err(IpamError::Exhausted { pools, node: self.node.clone() })
    }

    /// Out of blocks that lie in a pool still: a pool that was deleted or shrunk gives no more addresses.
    fn lowest_free(&mut self, pools: &[&PoolRecord], ipv4: bool) -> Option<IpAddr> {
        let pooled = |cidr: Cidr| pools.iter().any(|pool| pool.cidr().contains(cidr));
        let mut blocks =
            self.blocks.values_mut().filter(|block| block.cidr().is_ipv4() == ipv4 && pooled(block.cidr()));
        blocks.find_map(OwnBlock::allocate)
    }

    fn add_block(&mut self, cidr: Cidr) {
        let mut block = OwnBlock::new(cidr);
        self.held.keys().for_each(|address| block.take(*address));
        self.blocks.insert(cidr, block);
    }
}
