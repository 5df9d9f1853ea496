//! Claiming a block: one compare-and-swap write on the store decides between nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::block::last_offset;
use super::{IpamError, KEPT_AT_CLAIM};
use crate::cluster::{BlockName, BlockRecord, Cidr, NetworkName, NodeName, Offsets, PoolRecord};
use crate::observe::{self, IP_BLOCK, Record};
use crate::stable_hash::ContentHash;
use crate::store::{ObjectStore, StoreError};

/// How often a block may be refused as claimed without being listed before that is an error.
const UNSEEN: u32 = 16;

/// Finds a block of the pool for this node: one that it owns already and that is not `known`, else a new one.
/// `None` if all blocks of the pool are claimed.
pub(super) fn claim(
    store: &dyn ObjectStore,
    node: &NodeName,
    pool: &PoolRecord,
    known: impl Fn(Cidr) -> bool,
) -> Result<Option<BlockRecord>, IpamError> {
    let mut unseen = 0;
    loop {
        let claimed = Claimed::read(store, pool)?;
        if let Some(own) = claimed.own(node, pool).find(|block| !known(block.cidr)) {
            return Ok(Some(own.clone()));
        }
        let Some(cidr) = claimed.first_free(node, pool) else { return Ok(None) };
        if let Some(block) = create(store, node, pool, cidr, &mut unseen)? {
            return Ok(Some(block));
        }
    }
}

/// Claims the very block that has this address. `None` if somebody else has claimed it or a part of it.
pub(super) fn claim_around(
    store: &dyn ObjectStore,
    node: &NodeName,
    pool: &PoolRecord,
    address: IpAddr,
) -> Result<Option<BlockRecord>, IpamError> {
    let block = IpNet::new(address, pool.block_length()).ok().and_then(|prefix| Cidr::new(prefix.trunc()).ok());
    let Some(cidr) = block else { return Ok(None) };
    if Claimed::read(store, pool)?.obstacle(cidr).is_some() {
        return Ok(None);
    }
    create(store, node, pool, cidr, &mut 0)
}

/// Whether a pool has a block that nobody has claimed, as far as these blocks tell.
pub(super) fn has_free_block<'a>(blocks: impl Iterator<Item = &'a BlockRecord>, pool: &PoolRecord) -> bool {
    let network = pool.network.clone();
    let mut claimed = Claimed { network, blocks: blocks.cloned().collect(), names: BTreeSet::new() };
    claimed.blocks.retain(|block| block.network == pool.network && block.cidr.overlaps(pool.cidr()));
    claimed.first_free_from(0, pool).is_some()
}

/// Tries to write the block; `None` if another node was faster, and the caller looks again.
fn create(
    store: &dyn ObjectStore,
    node: &NodeName,
    pool: &PoolRecord,
    cidr: Cidr,
    unseen: &mut u32,
) -> Result<Option<BlockRecord>, IpamError> {
    let block = new_block(node, pool, cidr);
    let failed = |source| IpamError::Store { pool: pool.name().clone(), source };
    match store.create(&observe::block_object(&block)) {
        Ok(created) => {
            if !Claimed::read(store, pool)?.overlaps_another(&block.name, cidr) {
                return Ok(Some(BlockRecord { resource_version: created.resource_version, ..block }));
            }
            // Somebody with another block size took part of it meanwhile. Whoever wrote last sees the other and
            // steps back; if both see each other, both do, and both look again.
            match store.delete(&created.key, &created.resource_version) {
                Ok(()) | Err(StoreError::NotFound { .. }) => Ok(None),
                Err(error) => Err(failed(error)),
            }
        }
        // Another node was faster: the block is in the list now.
        Err(error) if error.is_race() => {
            if !Claimed::read(store, pool)?.names.contains(block.name.as_str()) {
                // Given back at once by the other, or there but not readable; nothing gets past the latter.
                *unseen += 1;
                if *unseen > UNSEEN {
                    return Err(failed(error));
                }
            }
            Ok(None)
        }
        Err(error) => Err(failed(error)),
    }
}

/// A block as it is claimed: the first places are the node's to give without asking, the others may be lent.
fn new_block(node: &NodeName, pool: &PoolRecord, cidr: Cidr) -> BlockRecord {
    let mut lendable = Offsets::range(KEPT_AT_CLAIM, last_offset(cidr));
    let reserved = |offset: &u16| cidr.address(u128::from(*offset)).is_some_and(|address| pool.reserves(address));
    (1..KEPT_AT_CLAIM.min(last_offset(cidr))).filter(reserved).for_each(|offset| lendable.insert(offset));
    BlockRecord {
        name: block_name(pool.network.as_ref(), cidr),
        cidr,
        pool: pool.name().clone(),
        network: pool.network.clone(),
        node: node.clone(),
        lendable,
        assigned: BTreeMap::new(),
        resource_version: "".into(),
    }
}

/// All claims there are in the network of a pool.
struct Claimed {
    network: Option<NetworkName>,
    blocks: Vec<BlockRecord>,
    names: BTreeSet<String>,
}

impl Claimed {
    fn read(store: &dyn ObjectStore, pool: &PoolRecord) -> Result<Self, IpamError> {
        let objects = store.list(&IP_BLOCK).map_err(|source| IpamError::List { source })?;
        let mut claimed = Self { network: pool.network.clone(), blocks: Vec::new(), names: BTreeSet::new() };
        for object in objects {
            // An object that is not valid still has a name, and the name is what a claim competes for.
            claimed.names.insert(object.key.name.clone());
            if let Ok(Some(Record::Block(block))) = observe::read(&object)
                && block.network == pool.network
            {
                claimed.blocks.push(block);
            }
        }
        Ok(claimed)
    }

    fn own<'a>(&'a self, node: &'a NodeName, pool: &'a PoolRecord) -> impl Iterator<Item = &'a BlockRecord> {
        self.blocks.iter().filter(move |block| block.node == *node && pool.cidr().contains(block.cidr))
    }

    fn overlaps_another(&self, name: &BlockName, cidr: Cidr) -> bool {
        self.blocks.iter().any(|other| other.name != *name && other.cidr.overlaps(cidr))
    }

    /// Walks the pool once from the node's preferred place on. Claims larger than a block are passed in one step, so
    /// the walk takes at most two steps for each claim, however large the pool.
    fn first_free(&self, node: &NodeName, pool: &PoolRecord) -> Option<Cidr> {
        self.first_free_from(preferred(node, pool), pool)
    }

    fn first_free_from(&self, preferred: u128, pool: &PoolRecord) -> Option<Cidr> {
        let shift = u32::from(pool.cidr().address_bits() - pool.block_length());
        let count = 1u128 << (pool.block_length() - pool.cidr().length());
        // A full pool is common where addresses are borrowed; the walk would meet each claim once.
        let of_this_size = |block: &&BlockRecord| block.cidr.length() == pool.block_length();
        let ours = self.blocks.iter().filter(of_this_size).filter(|block| pool.cidr().contains(block.cidr));
        if ours.map(|block| block.cidr).collect::<BTreeSet<_>>().len() as u128 >= count {
            return None;
        }
        let start = preferred % count;
        let mut walked = 0;
        while walked < count {
            let index = (start + walked) % count;
            let first = pool.cidr().address(index << shift)?;
            let cidr = Cidr::new(IpNet::new(first, pool.block_length()).ok()?).ok()?;
            match self.obstacle(cidr) {
                None => return Some(cidr),
                Some(claimed) => {
                    let larger = pool.block_length().saturating_sub(claimed.length().max(pool.cidr().length()));
                    let blocks = 1u128 << larger;
                    walked += blocks - index % blocks;
                }
            }
        }
        None
    }

    /// A claim that keeps this block from being claimed, the largest if there are several.
    fn obstacle(&self, cidr: Cidr) -> Option<Cidr> {
        let overlapping = self.blocks.iter().map(|block| block.cidr).filter(|other| other.overlaps(cidr));
        let named = self.names.contains(block_name(self.network.as_ref(), cidr).as_str()).then_some(cidr);
        overlapping.chain(named).min_by_key(|other| other.length())
    }
}

/// Where in the pool a node begins to look.
fn preferred(node: &NodeName, pool: &PoolRecord) -> u128 {
    let mut hash = ContentHash::default();
    hash.update(node.as_str().as_bytes());
    hash.update(b" ");
    hash.update(pool.name().as_str().as_bytes());
    let hash = hash.finish();
    // The low bits of this hash depend on the last byte most; fold the high half in.
    hash ^ (hash >> 64) ^ (hash >> 32)
}

/// The name of a block: its network, if it is not of the pods' segment, and its prefix, so that who claims the same block
/// writes the same object.
#[must_use]
pub(crate) fn block_name(network: Option<&NetworkName>, cidr: Cidr) -> BlockName {
    let text = match cidr.net() {
        IpNet::V4(prefix) => {
            let [a, b, c, d] = prefix.addr().octets();
            format!("{a}-{b}-{c}-{d}-{}", prefix.prefix_len())
        }
        IpNet::V6(prefix) => {
            let groups = prefix.addr().segments().map(|group| format!("{group:x}")).join("-");
            format!("{groups}-{}", prefix.prefix_len())
        }
    };
    let text = network.map_or_else(|| text.clone(), |network| format!("{network}.{text}"));
    BlockName::new(&text).unwrap_or_else(|_| unreachable!("digits and dashes make a name"))
}
