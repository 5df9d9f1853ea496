//! Blocks and addresses of nodes that are gone for good: nobody else gives them back.
//!
//! A node is vanished while its object is missing. After [`GONE_BEFORE_COLLECTED`], as this agent has observed it without a
//! break, and once the store itself says that the object is not there:
//!
//! - its blocks are deleted, if nothing out of them is assigned to a node that is there or kept for a pod that may come
//!   again; from others all the rest is offered to everybody;
//! - addresses assigned to it out of others' blocks go back to these, but for those kept for a pod that may come again:
//!   the node that gets the pod takes them over.
//!
//! Every change is a compare-and-swap, so two agents that do it at once do it once. Mostly one does: nodes are ranked by a
//! hash of both names, and each further one waits [`BETWEEN_RANKS`] longer, so that a node without an agent is only a delay;
//! after the first [`RANKS`] nobody does.
//! A node that has no object itself collects nothing. Nobody reaches the pods of a node without an object, since tunnels go
//! by it; one that comes back later has them made anew, as its kubelet does (docs/decisions/0013-addresses-of-vanished-nodes.md).
//!
//! Cost of a look: one walk over blocks; for each vanished node past its time one hash for each node that is there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::block::last_offset;
use super::maintenance::may_come_again;
use super::{IpamError, agreement};
use crate::cluster::{AssignedAddress, BlockName, BlockRecord, Cluster, NodeName, Offsets};
use crate::observe::{IP_BLOCK, NODE};
use crate::stable_hash::hash_64;
use crate::store::{ObjectKey, ObjectStore, StoreError};

/// How long a node's object must have been missing. A node that is made anew under its name takes minutes.
pub const GONE_BEFORE_COLLECTED: Duration = Duration::from_secs(15 * 60);

/// How much later the next node in rank does it.
pub const BETWEEN_RANKS: Duration = Duration::from_secs(60);

/// Nodes that look after a vanished one.
pub const RANKS: u32 = 16;

/// How soon they look again at one that leaves something behind, such as a block with an address kept for a pod.
pub const LOOKED_AT_AGAIN: Duration = Duration::from_secs(10 * 60);

/// What was freed.
#[derive(Debug, Default)]
pub struct Collected {
    /// Blocks that are no more.
    pub blocks: Vec<BlockName>,
    /// Blocks that stay and have addresses for others again.
    pub changed: Vec<BlockName>,
    /// What could not be done; it is tried again the next time.
    pub errors: Vec<IpamError>,
}

/// The nodes that are missing, as one agent knows them.
#[derive(Debug)]
pub struct VanishedNodes {
    node: NodeName,
    missing: BTreeMap<NodeName, Missing>,
}

#[derive(Debug)]
struct Missing {
    since: Instant,
    /// When it is to be looked at, if it is this node's turn.
    due: Instant,
}

/// What became of a block.
enum Fate {
    Deleted,
    Changed,
    Stays,
}

impl VanishedNodes {
    /// None yet, as the agent of `node` sees them.
    #[must_use]
    pub fn new(node: NodeName) -> Self {
        Self { node, missing: BTreeMap::new() }
    }

    /// Frees what belongs to nodes that are gone for long enough, of all networks. Ends at the first write that finds no
    /// server: it is tried again the next time.
    pub fn collect(&mut self, store: &dyn ObjectStore, cluster: &Cluster, now: Instant) -> Collected {
        let mut done = Collected::default();
        self.observe(cluster, now);
        let gone = match self.gone(store, cluster, now) {
            Ok(gone) => gone,
            Err(error) => {
                done.errors.push(error);
                return done;
            }
        };
        let concerned = |block: &&BlockRecord| {
            gone.contains(&block.node) || block.assigned.values().any(|entry| gone.contains(&entry.node))
        };
        for block in cluster.blocks.values().filter(concerned) {
            match free(store, &block.name, &gone) {
                Ok(Fate::Deleted) => done.blocks.push(block.name.clone()),
                Ok(Fate::Changed) => done.changed.push(block.name.clone()),
                Ok(Fate::Stays) => {}
                Err(error) => {
                    let is_away = error.is_unreachable();
                    done.errors.push(error);
                    if is_away {
                        break;
                    }
                }
            }
        }
        if done.errors.is_empty() {
            self.missing.iter_mut().filter(|(node, _)| gone.contains(*node)).for_each(|(_, missing)| {
                missing.due = now + LOOKED_AT_AGAIN;
            });
        }
        done
    }

    fn observe(&mut self, cluster: &Cluster, now: Instant) {
        let named = |block: &'_ BlockRecord| -> BTreeSet<NodeName> {
            let assigned = block.assigned.values().map(|entry| entry.node.clone());
            assigned.chain([block.node.clone()]).collect()
        };
        let mut missing: BTreeSet<NodeName> = cluster.blocks.values().flat_map(named).collect();
        missing.retain(|node| *node != self.node && !cluster.nodes.contains_key(node));
        self.missing.retain(|node, _| missing.contains(node));
        for node in missing {
            self.missing.entry(node).or_insert(Missing { since: now, due: now + GONE_BEFORE_COLLECTED });
        }
    }

    /// Nodes whose turn it is for this agent, and which the store does not have either.
    fn gone(&self, store: &dyn ObjectStore, cluster: &Cluster, now: Instant) -> Result<BTreeSet<NodeName>, IpamError> {
        let mut gone = BTreeSet::new();
        if !cluster.nodes.contains_key(&self.node) {
            return Ok(gone);
        }
        for (node, missing) in self.missing.iter().filter(|(_, missing)| missing.due <= now) {
            let rank = self.rank(node, cluster);
            let turn = missing.since + GONE_BEFORE_COLLECTED + BETWEEN_RANKS * rank;
            if rank >= RANKS || now < turn {
                continue;
            }
            let key = ObjectKey::cluster_scoped(NODE, node.as_str());
            if store.get(&key).map_err(|source| IpamError::List { source })?.is_none() {
                gone.insert(node.clone());
            }
        }
        Ok(gone)
    }

    /// How many nodes come before this one in looking after the vanished one.
    fn rank(&self, vanished: &NodeName, cluster: &Cluster) -> u32 {
        let place = |node: &NodeName| (hash_64(&format!("{vanished}/{node}")), node.clone());
        let own = place(&self.node);
        cluster.nodes.keys().filter(|node| place(node) < own).count() as u32
    }
}

/// Frees what these nodes have of a block as it is in the store now.
fn free(store: &dyn ObjectStore, name: &BlockName, gone: &BTreeSet<NodeName>) -> Result<Fate, IpamError> {
    let Some(present) = agreement::read(store, name)? else { return Ok(Fate::Stays) };
    let mut stays: BTreeSet<IpAddr> = BTreeSet::new();
    for (address, entry) in &present.assigned {
        if !gone.contains(&entry.node) || is_kept(store, entry)? {
            stays.insert(*address);
        }
    }
    if gone.contains(&present.node) && stays.is_empty() {
        return delete(store, &present);
    }
    let changed = agreement::change(store, name, |block| {
        let before = block.clone();
        let leaves = |address: &IpAddr, node| gone.contains(node) && !stays.contains(address);
        let assigned = block.assigned.iter().filter(|(address, entry)| leaves(address, &entry.node));
        for address in assigned.map(|(address, _)| *address).collect::<Vec<_>>() {
            block.assigned.remove(&address);
            block.offset(address).into_iter().for_each(|offset| block.lendable.insert(offset));
        }
        if gone.contains(&block.node) {
            offer_the_rest(block);
        }
        (*block != before).then_some(())
    })?;
    Ok(changed.map_or(Fate::Stays, |_| Fate::Changed))
}

/// All places but the first, which is the node's own, and those that are assigned.
fn offer_the_rest(block: &mut BlockRecord) {
    let assigned: BTreeSet<u16> = block.assigned.keys().filter_map(|address| block.offset(*address)).collect();
    let mut places = Offsets::range(1, last_offset(block.cidr));
    for offset in assigned {
        places.remove(offset);
    }
    block.lendable = places;
}

fn is_kept(store: &dyn ObjectStore, entry: &AssignedAddress) -> Result<bool, IpamError> {
    entry.kept_for.as_ref().map_or(Ok(false), |kept_for| may_come_again(store, kept_for))
}

/// Deletes the very version that was judged.
fn delete(store: &dyn ObjectStore, block: &BlockRecord) -> Result<Fate, IpamError> {
    let key = ObjectKey::cluster_scoped(IP_BLOCK, block.name.as_str());
    match store.delete(&key, &block.resource_version) {
        Ok(()) => Ok(Fate::Deleted),
        // Another agent did, or somebody borrowed out of it; or it stands in a file that people write.
        Err(StoreError::NotOurs { .. }) => Ok(Fate::Stays),
        Err(error) if error.is_race() => Ok(Fate::Stays),
        Err(source) => Err(IpamError::Store { pool: block.pool.clone(), source }),
    }
}
