//! What a node does about its addresses from time to time: gives back what it no longer needs.
//!
//! - Borrowed addresses without a pod go back to their blocks, also those a killed process had borrowed.
//! - Addresses kept for a pod go back when its StatefulSet is gone or has been scaled below it.
//! - A block that was empty for [`EMPTY_BEFORE_RETURN`](super::EMPTY_BEFORE_RETURN) is returned, if another of its
//!   family has room for the next pod and it does not hold the node's own address. The object is deleted by
//!   compare-and-swap: a node that borrowed out of it a moment ago has changed the object, and the deletion fails.
//! - While a pool has no free block, free places of our blocks are offered to everybody.
//!
//! Bounds: as many writes as there is to give back; each is independent of the others, so an error of one is told and
//! the others go on. A server that does not answer ends the round: the next write would wait as long again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use super::{AddressAllocator, AddressSource, EMPTY_BEFORE_RETURN, IpamError, agreement, claim};
use crate::cluster::{BlockName, BlockRecord, Cidr, Cluster, KeptFor, Offsets, PodRecord};
use crate::observe::{IP_BLOCK, STATEFUL_SET};
use crate::store::{ObjectKey, ObjectStore, StoreError};

/// What was done.
#[derive(Debug, Default)]
pub struct Maintained {
    /// Blocks that are no longer ours.
    pub returned: Vec<Cidr>,
    /// Addresses that went back to their blocks.
    pub given_back: Vec<IpAddr>,
    /// Places offered to other nodes.
    pub offered: usize,
    /// What could not be done; it is tried again the next time.
    pub errors: Vec<IpamError>,
}

impl Maintained {
    /// Whether the last that was tried found no server.
    #[must_use]
    pub fn is_cut_short(&self) -> bool {
        self.errors.last().is_some_and(IpamError::is_unreachable)
    }
}

impl AddressAllocator {
    /// Does all of it once; see the module.
    /// `own` are the node's own addresses among pods: their blocks are not returned.
    pub fn maintain(&mut self, store: &dyn ObjectStore, cluster: &Cluster, own: &[IpAddr], now: Instant) -> Maintained {
        let mut done = Maintained::default();
        if self.source == AddressSource::PodCidr {
            return done;
        }
        if let Err(error) = self.follow(store, cluster) {
            done.errors.push(error);
            return done;
        }
        self.give_back_borrowed(store, cluster, &mut done);
        if !done.is_cut_short() {
            self.return_empty(store, cluster, own, now, &mut done);
        }
        if !done.is_cut_short() {
            self.offer_when_short(store, cluster, &mut done);
        }
        done
    }

    fn give_back_borrowed(&mut self, store: &dyn ObjectStore, cluster: &Cluster, done: &mut Maintained) {
        let mut unused: BTreeMap<IpAddr, BlockName> = BTreeMap::new();
        for (address, borrowed) in self.borrowed.iter().filter(|(_, borrowed)| !borrowed.kept) {
            unused.insert(*address, borrowed.block.clone());
        }
        for block in cluster.blocks_of(self.network.as_ref()) {
            for (address, _) in block.assigned.iter().filter(|(_, entry)| entry.node == self.node) {
                unused.insert(*address, block.name.clone());
            }
        }
        unused.retain(|address, _| !self.held.contains_key(address));
        for (address, block) in unused {
            if done.is_cut_short() {
                return;
            }
            match self.give_back(store, &block, address) {
                Ok(true) => done.given_back.push(address),
                Ok(false) => {}
                Err(error) => done.errors.push(error),
            }
        }
    }

    /// Gives one address back, unless it is kept for a pod that may come again.
    fn give_back(&mut self, store: &dyn ObjectStore, block: &BlockName, address: IpAddr) -> Result<bool, IpamError> {
        // What was observed may be old: the object says for whom the address is kept now.
        let present = agreement::read(store, block)?;
        let entry = present.as_ref().and_then(|block| block.assigned.get(&address));
        let Some(entry) = entry.filter(|entry| entry.node == self.node) else {
            self.borrowed.remove(&address);
            return Ok(false);
        };
        if let Some(kept_for) = &entry.kept_for
            && may_come_again(store, kept_for)?
        {
            return Ok(false);
        }
        let given = agreement::give_back(store, &self.node, block, address)?;
        self.borrowed.remove(&address);
        if let Some(record) = given.as_ref().filter(|record| record.node == self.node) {
            self.adopt(record);
        }
        Ok(given.is_some())
    }

    fn return_empty(
        &mut self,
        store: &dyn ObjectStore,
        cluster: &Cluster,
        own: &[IpAddr],
        now: Instant,
        done: &mut Maintained,
    ) {
        let first = self.first_blocks(cluster);
        // Pods as the cluster has them, too: they count if the record of attachments was lost.
        let mut pods: BTreeSet<IpAddr> = BTreeSet::new();
        let of_network = |pod: &&PodRecord| cluster.memberships.of_pod(&pod.name) == self.network();
        for pod in cluster.pods.values().filter(|pod| pod.node.as_ref() == Some(&self.node)).filter(of_network) {
            pods.extend(&pod.addresses);
        }
        let is_own = |cidr: &Cidr| {
            let known = own.iter().any(|address| address.is_ipv4() == cidr.is_ipv4());
            own.iter().any(|address| cidr.has(*address)) || !known && first.contains(cidr)
        };
        let network = self.network.clone();
        let is_empty = |cidr: &Cidr, used: usize| {
            let mut blocks = cluster.blocks_of(network.as_ref());
            let assigned = blocks.any(|block| block.cidr == *cidr && !block.assigned.is_empty());
            used == 0 && !assigned && !is_own(cidr) && !pods.iter().any(|address| cidr.has(*address))
        };
        for (cidr, block) in &mut self.blocks {
            block.empty_since =
                if is_empty(cidr, block.used()) { Some(block.empty_since.unwrap_or(now)) } else { None };
        }
        let long_empty =
            |since: Option<Instant>| since.is_some_and(|since| now.duration_since(since) >= EMPTY_BEFORE_RETURN);
        let candidates: Vec<Cidr> =
            self.blocks.iter().filter(|(_, block)| long_empty(block.empty_since)).map(|(cidr, _)| *cidr).collect();
        for cidr in candidates {
            let has_room = |other: &Cidr| *other != cidr && other.is_ipv4() == cidr.is_ipv4();
            // A network that has no pod here any more needs no block here.
            let room = self.network.is_some()
                || self.blocks.iter().any(|(other, block)| has_room(other) && block.used() < block.capacity());
            if !room {
                continue;
            }
            if done.is_cut_short() {
                return;
            }
            match self.return_block(store, cidr) {
                Ok(true) => done.returned.push(cidr),
                Ok(false) => {}
                Err(error) => done.errors.push(error),
            }
        }
    }

    fn return_block(&mut self, store: &dyn ObjectStore, cidr: Cidr) -> Result<bool, IpamError> {
        let name = self.block_name(cidr);
        let Some(present) = agreement::read(store, &name)?.filter(|block| block.node == self.node) else {
            return Ok(false);
        };
        if !present.assigned.is_empty() || self.held.keys().any(|address| cidr.has(*address)) {
            return Ok(false);
        }
        let key = ObjectKey::cluster_scoped(IP_BLOCK, name.as_str());
        match store.delete(&key, &present.resource_version) {
            Ok(()) => {
                self.blocks.remove(&cidr);
                Ok(true)
            }
            // Somebody borrowed out of it, or it stands in a file that people write: it stays.
            Err(StoreError::NotOurs { .. }) => Ok(false),
            Err(error) if error.is_race() => Ok(false),
            Err(source) => Err(IpamError::Store { pool: present.pool, source }),
        }
    }

    fn offer_when_short(&mut self, store: &dyn ObjectStore, cluster: &Cluster, done: &mut Maintained) {
        for pool in cluster.pools.values().filter(|pool| pool.network == self.network) {
            let ours = |block: &BlockRecord| block.node == self.node && pool.cidr().contains(block.cidr);
            if !cluster.blocks_of(self.network.as_ref()).any(ours)
                || claim::has_free_block(cluster.blocks.values(), pool)
            {
                continue;
            }
            for (cidr, block) in self.blocks.iter_mut().filter(|(cidr, _)| pool.cidr().contains(**cidr)) {
                let mut places = Offsets::default();
                block.free_places().for_each(|offset| places.insert(offset));
                if places.is_empty() {
                    continue;
                }
                if done.is_cut_short() {
                    return;
                }
                match agreement::offer(store, &claim::block_name(self.network.as_ref(), *cidr), &places) {
                    Ok(Some(record)) => {
                        block.follow(&record);
                        done.offered += places.count();
                    }
                    Ok(None) => {}
                    Err(error) => done.errors.push(error),
                }
            }
            self.short[usize::from(!pool.cidr().is_ipv4())] = true;
        }
    }

    /// The first block of each family by name: where the plan looks for the node's own address before it has one. The node
    /// has none in a network.
    fn first_blocks(&self, cluster: &Cluster) -> Vec<Cidr> {
        let first = |ipv4: bool| {
            let mut own = cluster.blocks_of(None).filter(|block| block.node == self.node);
            own.find(|block| block.cidr.is_ipv4() == ipv4).map(|block| block.cidr)
        };
        if self.network.is_some() { Vec::new() } else { [first(true), first(false)].into_iter().flatten().collect() }
    }
}

/// Whether the StatefulSet is there and large enough to make the pod again.
pub(super) fn may_come_again(store: &dyn ObjectStore, kept_for: &KeptFor) -> Result<bool, IpamError> {
    let key = ObjectKey {
        kind: STATEFUL_SET,
        namespace: Some(kept_for.pod.namespace().to_string()),
        name: kept_for.stateful_set.to_string(),
    };
    let Some(set) = store.get(&key).map_err(|source| IpamError::List { source })? else { return Ok(false) };
    let set = set.to_json();
    let number = |path: &str| set.pointer(path).and_then(serde_json::Value::as_u64);
    let (first, replicas) = (number("/spec/ordinals/start").unwrap_or(0), number("/spec/replicas").unwrap_or(1));
    let ordinal = kept_for.pod.name().rsplit_once('-').and_then(|(_, ordinal)| ordinal.parse::<u64>().ok());
    Ok(ordinal.is_some_and(|ordinal| (first..first.saturating_add(replicas)).contains(&ordinal)))
}
