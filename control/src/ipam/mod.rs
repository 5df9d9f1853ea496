//! Addresses for pods: blocks claimed out of pools, addresses handed out of blocks.
//!
//! A node owns small blocks and hands out their addresses. A block is an `IpBlock` object created with
//! compare-and-swap; its name is its prefix, so that two nodes that want the same block write the same key and the
//! store decides. Nodes look for free blocks from a place computed from their name, and so rarely meet.
//!
//! | when | what |
//! |---|---|
//! | the first 15 addresses of a block | handed out without asking anybody |
//! | more of them | taken out of the block's `lendable` places first, 16 at a time: one write |
//! | all our blocks are full | another block is claimed |
//! | the pool has no free block | an address is borrowed out of another node's block, see [`agreement`] |
//! | a pod asks for the very address | taken from wherever it is lendable, or its block is claimed |
//! | a pod of a StatefulSet | the address is noted in its block as kept for the pod, and found again on any node |
//! | a block is empty for [`EMPTY_BEFORE_RETURN`] | it is returned, see [`maintenance`] |
//! | a node is gone for good | others free what it had, see [`vanished`] |
//!
//! With [`AddressSource::PodCidr`] the prefixes that the cluster assigned to the node take the place of blocks:
//! nothing is written, claimed or borrowed.
//!
//! Networks of their own have allocators of their own ([`AddressAllocators`]), always with blocks: what one hands out says
//! nothing of the same address in another.
//!
//! The first address of each block is kept for the node itself. The last is as good as any: pods have routes of their
//! own, no broadcast address exists. Which addresses are in use is recorded by the caller, who tells it at start. The
//! allocator is used under one lock, also while it waits for the store; giving back never waits for it ([`shared`]).

mod agreement;
mod block;
mod by_network;
pub mod check;
mod claim;
mod error;
pub mod maintenance;
pub mod shared;
pub mod vanished;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use block::OwnBlock;
pub use by_network::AddressAllocators;
pub use error::IpamError;

use crate::cluster::{
    BlockName, BlockRecord, Cidr, Cluster, KeptFor, NetworkName, NodeName, PodName, PoolName, PoolRecord,
};
use crate::store::ObjectStore;

/// Who holds an address: the caller's name for an attachment, e.g. container and interface.
pub type Holder = String;

/// Places of a new block that its node uses without asking, the node's own first one among them. The rest may be lent.
pub const KEPT_AT_CLAIM: u16 = 16;

/// Places that a node takes out of the lendable ones at once, while the pool has free blocks.
const KEPT_MORE: usize = 16;

/// Blocks of a pool that one request may claim.
const BLOCKS_TRIED: usize = 64;

/// How long a block must have been empty before it is returned: pods come and go, blocks should not.
pub const EMPTY_BEFORE_RETURN: Duration = Duration::from_secs(300);

/// Where a node has addresses from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressSource {
    /// Blocks claimed out of `IpPool` objects.
    #[default]
    Blocks,
    /// `spec.podCIDRs` of the node's object.
    PodCidr,
}

/// For whom addresses are wanted, and which.
#[derive(Clone, Copy, Debug)]
pub struct AddressRequest<'a> {
    /// Who holds them then.
    pub holder: &'a str,
    /// The pod, if it is one of Kubernetes.
    pub pod: Option<&'a PodName>,
    /// The StatefulSet that makes the pod again and again.
    pub stateful_set: Option<&'a str>,
    /// The very addresses, at most one of each family.
    pub fixed: &'a [IpAddr],
    /// The pools to take from; empty for those of everybody.
    pub pools: &'a [PoolName],
    /// Addresses that others have, whom no block tells of: pods plugged in by another program, the host itself.
    pub taken: &'a BTreeSet<IpAddr>,
}

impl Default for AddressRequest<'_> {
    fn default() -> Self {
        static NONE: BTreeSet<IpAddr> = BTreeSet::new();
        Self { holder: "", pod: None, stateful_set: None, fixed: &[], pools: &[], taken: &NONE }
    }
}

impl<'a> AddressRequest<'a> {
    /// Any addresses, for this holder.
    #[must_use]
    pub fn any(holder: &'a str) -> Self {
        Self { holder, ..Self::default() }
    }

    fn kept_for(&self) -> Option<KeptFor> {
        let (pod, set) = (self.pod?, self.stateful_set?);
        Some(KeptFor { pod: pod.clone(), stateful_set: set.into() })
    }
}

/// An address out of another node's block.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Borrowed {
    block: BlockName,
    /// Whether it is kept for one pod: nobody else gets it.
    kept: bool,
}

/// The allocator of one node, for the pods' segment or for one network.
#[derive(Debug)]
pub struct AddressAllocator {
    node: NodeName,
    network: Option<NetworkName>,
    source: AddressSource,
    blocks: BTreeMap<Cidr, OwnBlock>,
    borrowed: BTreeMap<IpAddr, Borrowed>,
    held: BTreeMap<IpAddr, Holder>,
    /// Whether the last search for a block of the family found none: then single addresses are taken, not sixteens.
    short: [bool; 2],
}

impl AddressAllocator {
    /// An allocator without blocks.
    #[must_use]
    pub fn new(node: NodeName) -> Self {
        Self::with_source(node, AddressSource::Blocks)
    }

    /// As [`AddressAllocator::new`], with addresses from `source`.
    #[must_use]
    pub fn with_source(node: NodeName, source: AddressSource) -> Self {
        Self {
            node,
            network: None,
            source,
            blocks: BTreeMap::new(),
            borrowed: BTreeMap::new(),
            held: BTreeMap::new(),
            short: [false; 2],
        }
    }

    /// An allocator of addresses of a network, out of blocks of that network.
    #[must_use]
    pub fn of_network(node: NodeName, network: NetworkName) -> Self {
        Self { network: Some(network), ..Self::new(node) }
    }

    fn network(&self) -> Option<&NetworkName> {
        self.network.as_ref()
    }

    fn block_name(&self, cidr: Cidr) -> BlockName {
        claim::block_name(self.network(), cidr)
    }

    /// Where addresses come from.
    #[must_use]
    pub fn source(&self) -> AddressSource {
        self.source
    }

    /// Records an address that is in use already, at start. It need not lie in a block that is known yet.
    pub fn restore(&mut self, holder: &str, address: IpAddr) -> Result<(), IpamError> {
        if let Some(first) = self.held.get(&address).filter(|first| *first != holder) {
            return Err(IpamError::HeldTwice { address, first: first.clone(), second: holder.to_owned() });
        }
        self.hold(holder, address);
        Ok(())
    }

    /// An address of each family that has a pool, the lowest free ones of our blocks unless the request asks for
    /// others; claims or borrows where needed. The same holder gets the same addresses again. IPv4 comes first.
    pub fn allocate(
        &mut self,
        store: &dyn ObjectStore,
        cluster: &Cluster,
        request: &AddressRequest<'_>,
    ) -> Result<Vec<IpAddr>, IpamError> {
        self.follow(store, cluster)?;
        let assigned = self.assigned_pools(cluster);
        let pools = match self.source {
            AddressSource::Blocks => self.pools(cluster, request.pools)?,
            AddressSource::PodCidr => by_family(assigned.iter()),
        };
        let fixed = |ipv4: bool| request.fixed.iter().copied().find(|address| address.is_ipv4() == ipv4);
        if pools.iter().all(Vec::is_empty) && request.fixed.is_empty() {
            return Err(IpamError::NoPool);
        }
        let before = self.addresses_of(request.holder);
        let mut given = Vec::new();
        for (pools, ipv4) in pools.iter().zip([true, false]) {
            let known = before.iter().copied().find(|address| address.is_ipv4() == ipv4);
            let found = match (known, fixed(ipv4)) {
                (Some(address), _) => Ok(address),
                (None, Some(address)) => self.allocate_fixed(store, cluster, request, address),
                (None, None) if pools.is_empty() => continue,
                (None, None) => self.allocate_family(store, request, pools, ipv4),
            };
            match found {
                Ok(address) => {
                    self.hold(request.holder, address);
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
        self.follow(store, cluster)?;
        if self.source == AddressSource::PodCidr {
            return Ok(());
        }
        let network = self.network.clone();
        let claim_family = |ipv4: bool| {
            let pools = || {
                let pools = cluster.pools_of(network.as_ref());
                pools.filter(|pool| pool.cidr().is_ipv4() == ipv4 && !pool.only_on_request)
            };
            let ours = |cidr: &Cidr| pools().any(|pool| pool.cidr().contains(*cidr));
            if pools().next().is_none() || self.blocks.keys().any(ours) {
                return Ok(());
            }
            for pool in pools() {
                if let Some(block) = claim::claim(store, &self.node, pool, |_| false)? {
                    self.adopt(&block);
                    return Ok(());
                }
            }
            let pools = pools().map(|pool| pool.name().clone()).collect();
            Err(IpamError::Exhausted { pools, node: self.node.clone() })
        };
        let outcomes = [true, false].map(claim_family);
        outcomes.into_iter().collect()
    }

    /// Takes all addresses of the holder back and says which they were; none is no error. Borrowed ones go back to
    /// their blocks with the next [`AddressAllocator::maintain`].
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

    /// All addresses in use, with their holders.
    #[must_use]
    pub fn held(&self) -> &BTreeMap<IpAddr, Holder> {
        &self.held
    }

    /// Our blocks, each with how many of its addresses are in use and how many there are for pods.
    pub fn blocks(&self) -> impl Iterator<Item = (Cidr, usize, usize)> {
        self.blocks.values().map(|block| (block.cidr(), block.used(), block.capacity()))
    }

    fn hold(&mut self, holder: &str, address: IpAddr) {
        self.held.insert(address, holder.to_owned());
        self.blocks.values_mut().for_each(|block| block.take(address));
    }

    fn free(&mut self, address: IpAddr) {
        self.held.remove(&address);
        self.blocks.values_mut().for_each(|block| block.release(address));
        if self.borrowed.get(&address).is_some_and(|borrowed| borrowed.kept) {
            // It waits in its block for the pod, on whatever node.
            self.borrowed.remove(&address);
        }
    }

    /// Takes over which blocks are ours by now. A block whose object was deleted or handed to another node gives no
    /// more addresses; those in use stay held. One that an earlier process claimed is read and used.
    fn follow(&mut self, store: &dyn ObjectStore, cluster: &Cluster) -> Result<(), IpamError> {
        if self.source == AddressSource::PodCidr {
            let assigned = cluster.nodes.get(&self.node).map(|node| node.pod_cidrs.clone()).unwrap_or_default();
            self.blocks.retain(|cidr, _| assigned.contains(cidr));
            for cidr in assigned {
                if !self.blocks.contains_key(&cidr) {
                    self.add_block(OwnBlock::new(cidr));
                }
            }
            return Ok(());
        }
        let owners: BTreeMap<Cidr, bool> =
            cluster.blocks_of(self.network()).map(|block| (block.cidr, block.node == self.node)).collect();
        self.blocks.retain(|cidr, block| block.is_still_ours(owners.get(cidr).copied()));
        let network = self.network.clone();
        for block in cluster.blocks_of(network.as_ref()) {
            if block.node == self.node && !self.blocks.contains_key(&block.cidr) {
                // What was observed may be older than our own return of the block.
                let present = agreement::read(store, &block.name)?.filter(|present| present.node == self.node);
                present.iter().for_each(|present| self.adopt(present));
            }
            for (address, entry) in block.assigned.iter().filter(|(address, _)| self.held.contains_key(*address)) {
                if entry.node == self.node && block.node != self.node {
                    let borrowed = Borrowed { block: block.name.clone(), kept: entry.kept_for.is_some() };
                    self.borrowed.entry(*address).or_insert(borrowed);
                }
            }
        }
        Ok(())
    }

    /// The prefixes assigned to this node, as pools.
    fn assigned_pools(&self, cluster: &Cluster) -> Vec<PoolRecord> {
        let prefixes = cluster.nodes.get(&self.node).map(|node| node.pod_cidrs.as_slice()).unwrap_or_default();
        let name = PoolName::new("assigned").unwrap_or_else(|_| unreachable!("letters make a name"));
        let length = |cidr: &Cidr| Some(cidr.length().max(cidr.address_bits() - 16).min(cidr.address_bits() - 1));
        prefixes.iter().filter_map(|cidr| PoolRecord::new(name.clone(), *cidr, length(cidr)).ok()).collect()
    }

    fn allocate_family(
        &mut self,
        store: &dyn ObjectStore,
        request: &AddressRequest<'_>,
        pools: &[&PoolRecord],
        ipv4: bool,
    ) -> Result<IpAddr, IpamError> {
        let kept_for = request.kept_for().filter(|_| self.source == AddressSource::Blocks);
        if let Some(kept_for) = &kept_for
            && let Some((address, block)) =
                agreement::take_kept(store, (&self.node, self.network()), &kept_for.pod, ipv4)?
        {
            if let Some(holder) = self.held.get(&address) {
                // The pod's former sandbox is still there: its DEL is to come first.
                return Err(IpamError::InUse { address, holder: holder.clone() });
            }
            self.note(&block, address, true);
            return Ok(address);
        }
        let address = self.free_address(store, request, pools, ipv4)?;
        if let Some(kept_for) = kept_for {
            let own = self.blocks.keys().find(|cidr| cidr.has(address)).map(|cidr| self.block_name(*cidr));
            let name = own.or_else(|| self.borrowed.get(&address).map(|borrowed| borrowed.block.clone()));
            if let Some(name) = name
                && let Some(block) = agreement::keep_for(store, &self.node, &name, address, &kept_for)?
            {
                self.note(&block, address, true);
            }
        }
        Ok(address)
    }

    fn free_address(
        &mut self,
        store: &dyn ObjectStore,
        request: &AddressRequest<'_>,
        pools: &[&PoolRecord],
        ipv4: bool,
    ) -> Result<IpAddr, IpamError> {
        if let Some(address) = self.lowest_free(request, pools, ipv4) {
            return Ok(address);
        }
        if self.source == AddressSource::Blocks {
            self.keep_more_if_full(store, request, pools, ipv4)?;
            if let Some(address) = self.lowest_free(request, pools, ipv4) {
                return Ok(address);
            }
            // Blocks claimed by an earlier process of this node count before new ones. Of new ones a single one will do,
            // unless all of it is reserved.
            for pool in pools {
                for _ in 0..BLOCKS_TRIED {
                    let known = |cidr| self.blocks.contains_key(&cidr);
                    let Some(block) = claim::claim(store, &self.node, pool, known)? else { break };
                    self.short[usize::from(!ipv4)] = false;
                    self.adopt(&block);
                    self.keep_more_if_full(store, request, pools, ipv4)?;
                    if let Some(address) = self.lowest_free(request, pools, ipv4) {
                        return Ok(address);
                    }
                }
            }
            self.short[usize::from(!ipv4)] = true;
            if let Some((address, block)) = agreement::borrow(store, &self.node, pools)? {
                self.note(&block, address, false);
                return Ok(address);
            }
        }
        let pools = pools.iter().map(|pool| pool.name().clone()).collect();
        Err(IpamError::Exhausted { pools, node: self.node.clone() })
    }

    /// Takes lendable places of our own blocks, of the first that has any, if no address is free without.
    fn keep_more_if_full(
        &mut self,
        store: &dyn ObjectStore,
        request: &AddressRequest<'_>,
        pools: &[&PoolRecord],
        ipv4: bool,
    ) -> Result<(), IpamError> {
        if self.lowest_free(request, pools, ipv4).is_some() {
            return Ok(());
        }
        let count = if self.short[usize::from(!ipv4)] { 1 } else { KEPT_MORE };
        for block in self.blocks.values_mut() {
            let Some(pool) = pools.iter().find(|pool| pool.cidr().contains(block.cidr())) else { continue };
            let name = claim::block_name(self.network.as_ref(), block.cidr());
            if let Some(record) = agreement::keep_more(store, &name, count, |address| pool.reserves(address))? {
                block.follow(&record);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Out of what was borrowed, then of blocks that lie in a pool still: a pool that was deleted or shrunk gives no
    /// more addresses.
    fn lowest_free(&self, request: &AddressRequest<'_>, pools: &[&PoolRecord], ipv4: bool) -> Option<IpAddr> {
        let free = |(address, borrowed): (&IpAddr, &Borrowed)| {
            let pooled = pools.iter().any(|pool| pool.cidr().has(*address) && !pool.reserves(*address));
            (pooled && !borrowed.kept && !self.held.contains_key(address)).then_some(*address)
        };
        let borrowed = self.borrowed.iter().find_map(free);
        borrowed.or_else(|| {
            let mut blocks = self.blocks.values().filter(|block| block.cidr().is_ipv4() == ipv4);
            blocks.find_map(|block| {
                let pool = pools.iter().find(|pool| pool.cidr().contains(block.cidr()))?;
                block.lowest_free(|address| pool.reserves(address) || request.taken.contains(&address))
            })
        })
    }

    /// The very address that is asked for.
    fn allocate_fixed(
        &mut self,
        store: &dyn ObjectStore,
        cluster: &Cluster,
        request: &AddressRequest<'_>,
        address: IpAddr,
    ) -> Result<IpAddr, IpamError> {
        if let Some(holder) = self.held.get(&address) {
            return Err(IpamError::InUse { address, holder: holder.clone() });
        }
        if request.taken.contains(&address) {
            return Err(IpamError::InUse { address, holder: "somebody whom the agent did not plug in".to_owned() });
        }
        if self.borrowed.get(&address).is_some_and(|borrowed| !borrowed.kept) {
            return Ok(address);
        }
        let pool = cluster.pools.values().find(|pool| pool.network == self.network && pool.cidr().has(address));
        if self.take_own(store, request, address)? {
            return Ok(address);
        }
        let pool = pool.filter(|_| self.source == AddressSource::Blocks).ok_or(IpamError::NotOfAnyPool { address })?;
        // Somebody may claim or return the block meanwhile: look twice.
        for _ in 0..2 {
            let covering = agreement::blocks(store, self.network())?.into_iter().find(|block| block.cidr.has(address));
            match covering {
                Some(block) if block.node == self.node => {
                    self.adopt(&block);
                    if self.take_own(store, request, address)? {
                        return Ok(address);
                    }
                }
                Some(block) if block.offset(address) == Some(0) => {
                    return Err(IpamError::OfTheNode { address, node: block.node });
                }
                Some(block) => {
                    let lent = agreement::borrow_this(store, &self.node, &block.name, address)?;
                    let lent = lent.ok_or(IpamError::NotLent { address, node: block.node })?;
                    self.note(&lent, address, false);
                    return Ok(address);
                }
                None => {
                    let claimed = claim::claim_around(store, &self.node, pool, address)?;
                    claimed.iter().for_each(|block| self.adopt(block));
                    if claimed.is_some() && self.take_own(store, request, address)? {
                        return Ok(address);
                    }
                }
            }
        }
        Err(IpamError::NotLent { address, node: self.node.clone() })
    }

    /// Whether the address is one of our own blocks and now ours to give.
    fn take_own(
        &mut self,
        store: &dyn ObjectStore,
        request: &AddressRequest<'_>,
        address: IpAddr,
    ) -> Result<bool, IpamError> {
        let Some(block) = self.blocks.values_mut().find(|block| block.cidr().has(address)) else { return Ok(false) };
        if block.place(address) == Some(0) {
            return Err(IpamError::OfTheNode { address, node: self.node.clone() });
        }
        if !block.is_shared(address) {
            return Ok(!block.is_in_use(address));
        }
        let name = claim::block_name(self.network.as_ref(), block.cidr());
        let taken = agreement::change(store, &name, |record| {
            let lendable = record.offset(address).is_some_and(|offset| record.lendable.remove(offset));
            let kept = record.assigned.get(&address).and_then(|entry| entry.kept_for.as_ref());
            (lendable || kept.is_some_and(|kept| request.pod == Some(&kept.pod))).then_some(())
        })?;
        match taken {
            Some(((), record)) => {
                block.follow(&record);
                Ok(true)
            }
            None => Err(IpamError::NotLent { address, node: self.node.clone() }),
        }
    }

    /// Remembers an address that was agreed upon in the store.
    fn note(&mut self, record: &BlockRecord, address: IpAddr, kept: bool) {
        if record.node == self.node {
            self.adopt(record);
        } else {
            self.borrowed.insert(address, Borrowed { block: record.name.clone(), kept });
        }
    }

    /// Takes a block of ours over as its object has it.
    fn adopt(&mut self, record: &BlockRecord) {
        match self.blocks.get_mut(&record.cidr) {
            Some(block) => block.follow(record),
            None => self.add_block(OwnBlock::of(record)),
        }
    }

    fn add_block(&mut self, mut block: OwnBlock) {
        self.held.keys().for_each(|address| block.take(*address));
        self.blocks.insert(block.cidr(), block);
    }

    /// The pools to take from, by family.
    fn pools<'a>(&self, cluster: &'a Cluster, wanted: &[PoolName]) -> Result<[Vec<&'a PoolRecord>; 2], IpamError> {
        if wanted.is_empty() {
            let pools = cluster.pools.values().filter(|pool| pool.network == self.network);
            return Ok(by_family(pools.filter(|pool| !pool.only_on_request)));
        }
        let named = |name: &PoolName| {
            let pool = cluster.pools.get(name).ok_or_else(|| IpamError::UnknownPool { pool: name.clone() })?;
            let is_ours = pool.network == self.network;
            let refused = || IpamError::OfAnotherNetwork { pool: name.clone(), network: pool.network.clone() };
            is_ours.then_some(pool).ok_or_else(refused)
        };
        let found = wanted.iter().map(named).collect::<Result<Vec<_>, _>>()?;
        Ok(by_family(found.into_iter()))
    }
}

fn by_family<'a>(pools: impl Iterator<Item = &'a PoolRecord>) -> [Vec<&'a PoolRecord>; 2] {
    let (ipv4, ipv6) = pools.partition(|pool| pool.cidr().is_ipv4());
    [ipv4, ipv6]
}
