//! Single addresses that nodes agree upon: lent out of a block, kept for a pod, given back.
//!
//! All of it is a change of the one `IpBlock` object that has the address, written by compare-and-swap. The object
//! says which places its node does not use without asking (`lendable`) and which of them are taken, by whom
//! (`assigned`). The node moves a few places at a time out of `lendable` before it uses them; another node moves one
//! from `lendable` to `assigned` and has it. Both write the same object, so the store decides between them. Every
//! node sees the assignment as part of the block and routes the address there: a longer prefix than the block.

use std::net::IpAddr;

use super::IpamError;
use crate::cluster::{
    AssignedAddress, BlockName, BlockRecord, KeptFor, NetworkName, NodeName, Offsets, PodName, PoolRecord,
};
use crate::observe::{self, IP_BLOCK, Record};
use crate::stable_hash::hash_64;
use crate::store::{ObjectKey, ObjectStore, StoreError};

/// How often a change is tried against others before it is an error.
const ATTEMPTS: u32 = 64;

/// All blocks of a network in the store that can be read.
pub(super) fn blocks(store: &dyn ObjectStore, network: Option<&NetworkName>) -> Result<Vec<BlockRecord>, IpamError> {
    let objects = store.list(&IP_BLOCK).map_err(|source| IpamError::List { source })?;
    let block = |object| match observe::read(&object) {
        Ok(Some(Record::Block(block))) if block.network.as_ref() == network => Some(block),
        _ => None,
    };
    Ok(objects.into_iter().filter_map(block).collect())
}

/// The block as it is in the store now, if it is there and can be read.
pub(super) fn read(store: &dyn ObjectStore, name: &BlockName) -> Result<Option<BlockRecord>, IpamError> {
    let key = ObjectKey::cluster_scoped(IP_BLOCK, name.as_str());
    let object = store.get(&key).map_err(|source| IpamError::List { source })?;
    Ok(object.and_then(|object| match observe::read(&object) {
        Ok(Some(Record::Block(block))) => Some(block),
        _ => None,
    }))
}

/// Changes a block by compare-and-swap. `act` sees the block as it is now and says what it wants to have done, or
/// `None` to leave it; it may be called several times. Returns its answer and the block as written. A block that is
/// gone, cannot be read, or stands in a file that people write is left.
pub(super) fn change<T>(
    store: &dyn ObjectStore,
    name: &BlockName,
    mut act: impl FnMut(&mut BlockRecord) -> Option<T>,
) -> Result<Option<(T, BlockRecord)>, IpamError> {
    for _ in 0..ATTEMPTS {
        let Some(mut block) = read(store, name)? else { return Ok(None) };
        let Some(answer) = act(&mut block) else { return Ok(None) };
        match store.update(&observe::block_object(&block), &block.resource_version) {
            Ok(written) => {
                block.resource_version = written.resource_version;
                return Ok(Some((answer, block)));
            }
            Err(error) if error.is_race() => {}
            Err(StoreError::NotOurs { .. }) => return Ok(None),
            Err(source) => return Err(IpamError::Store { pool: block.pool, source }),
        }
    }
    Err(IpamError::Contended { block: name.clone() })
}

/// Takes up to `count` of the lowest lendable places of our own block, so that they are ours to give.
pub(super) fn keep_more(
    store: &dyn ObjectStore,
    name: &BlockName,
    count: usize,
    reserved: impl Fn(IpAddr) -> bool,
) -> Result<Option<BlockRecord>, IpamError> {
    let changed = change(store, name, |block| {
        let usable = |offset: &u16| block.cidr.address(u128::from(*offset)).is_some_and(|address| !reserved(address));
        let more: Vec<u16> = block.lendable.iter().filter(usable).take(count).collect();
        for offset in &more {
            block.lendable.remove(*offset);
        }
        (!more.is_empty()).then_some(())
    })?;
    Ok(changed.map(|((), block)| block))
}

/// Offers these places of our own block to all nodes.
pub(super) fn offer(
    store: &dyn ObjectStore,
    name: &BlockName,
    places: &Offsets,
) -> Result<Option<BlockRecord>, IpamError> {
    let changed = change(store, name, |block| {
        places.iter().for_each(|offset| block.lendable.insert(offset));
        Some(())
    })?;
    Ok(changed.map(|((), block)| block))
}

/// Borrows an address of another node's block; of the highest, since its node takes the lowest. `None` if none of
/// these pools, which are of one network, has one to lend.
pub(super) fn borrow(
    store: &dyn ObjectStore,
    node: &NodeName,
    pools: &[&PoolRecord],
) -> Result<Option<(IpAddr, BlockRecord)>, IpamError> {
    let pool_of = |block: &BlockRecord| pools.iter().find(|pool| pool.cidr().contains(block.cidr)).copied();
    let network = pools.first().and_then(|pool| pool.network.as_ref());
    let mut lenders = blocks(store, network)?;
    lenders.retain(|block| block.node != *node && !block.lendable.is_empty() && pool_of(block).is_some());
    let lenders_count = lenders.len().max(1);
    // Nodes begin at different blocks, so that they seldom write the same object.
    lenders.rotate_left(hash_64(node.as_str()) as usize % lenders_count);
    for lender in &lenders {
        let borrowed = change(store, &lender.name, |block| {
            let pool = pool_of(block)?;
            let unreserved = |offset: &u16| {
                let address = block.cidr.address(u128::from(*offset))?;
                (!pool.reserves(address)).then_some(address)
            };
            let address = block.lendable.iter().rev().find_map(|offset| unreserved(&offset))?;
            assign(block, address, node).then_some(address)
        })?;
        if borrowed.is_some() {
            return Ok(borrowed);
        }
    }
    Ok(None)
}

/// Borrows this very address; `None` if its block does not lend it.
pub(super) fn borrow_this(
    store: &dyn ObjectStore,
    node: &NodeName,
    block: &BlockName,
    address: IpAddr,
) -> Result<Option<BlockRecord>, IpamError> {
    let changed = change(store, block, |block| assign(block, address, node).then_some(()))?;
    Ok(changed.map(|((), block)| block))
}

/// Moves an address from lendable to assigned; false if it is not lendable.
fn assign(block: &mut BlockRecord, address: IpAddr, node: &NodeName) -> bool {
    let lendable = block.offset(address).is_some_and(|offset| block.lendable.remove(offset));
    if lendable {
        block.assigned.insert(address, AssignedAddress { node: node.clone(), kept_for: None });
    }
    lendable
}

/// Gives an assigned address back to its block, if it is assigned to this node.
pub(super) fn give_back(
    store: &dyn ObjectStore,
    node: &NodeName,
    block: &BlockName,
    address: IpAddr,
) -> Result<Option<BlockRecord>, IpamError> {
    let changed = change(store, block, |block| {
        block.assigned.get(&address).filter(|entry| entry.node == *node)?;
        block.assigned.remove(&address);
        let offset = block.offset(address)?;
        block.lendable.insert(offset);
        Some(())
    })?;
    Ok(changed.map(|((), block)| block))
}

/// Notes in the block that this node has the address and keeps it for the pod.
pub(super) fn keep_for(
    store: &dyn ObjectStore,
    node: &NodeName,
    block: &BlockName,
    address: IpAddr,
    kept_for: &KeptFor,
) -> Result<Option<BlockRecord>, IpamError> {
    let changed = change(store, block, |block| {
        let entry = AssignedAddress { node: node.clone(), kept_for: Some(kept_for.clone()) };
        if let Some(offset) = block.offset(address) {
            block.lendable.remove(offset);
        }
        block.assigned.insert(address, entry);
        Some(())
    })?;
    Ok(changed.map(|((), block)| block))
}

/// The address of a family that is kept for the pod, now moved to this node.
pub(super) fn take_kept(
    store: &dyn ObjectStore,
    (node, network): (&NodeName, Option<&NetworkName>),
    pod: &PodName,
    ipv4: bool,
) -> Result<Option<(IpAddr, BlockRecord)>, IpamError> {
    let is_kept = |entry: &AssignedAddress| entry.kept_for.as_ref().is_some_and(|kept| kept.pod == *pod);
    for block in blocks(store, network)?.iter().filter(|block| block.cidr.is_ipv4() == ipv4) {
        let Some((address, entry)) = block.assigned.iter().find(|(_, entry)| is_kept(entry)) else { continue };
        if entry.node == *node {
            return Ok(Some((*address, block.clone())));
        }
        let taken = change(store, &block.name, |block| {
            let entry = block.assigned.get_mut(address).filter(|entry| is_kept(entry))?;
            entry.node = node.clone();
            Some(*address)
        })?;
        if taken.is_some() {
            return Ok(taken);
        }
    }
    Ok(None)
}
