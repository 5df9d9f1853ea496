//! The flows of one address family: buckets of tags, hot entries, cold entries, and the staged lookup over them.
//!
//! ```text
//!  hash -> bucket (64 B: tags, slots) -> hot entry (64 or 128 B: key, action, counts)
//!                                        cold entry (same slot: dependencies, home bucket)
//! ```
//! A flow lives in its home bucket or, if that is full, in the next one. There is a bucket for every four entries,
//! so a full table fills half the places or fewer; of 1,000 flows that fill it fewer than one finds both buckets full
//! and takes the place of another. Fixed size.

use super::batch::{Lane, NOT_LOOKED_UP};
use super::bucket::{Bucket, NO_SLOT, tag};
use super::entry::{Cold, Entry};
use super::eviction::Hand;
use super::hash::HashKey;
use super::huge_array::HugeArray;
use super::key::FlowKey;
use super::rewrites::Rewrites;
use super::write_back::WriteBack;
use crate::packet::{Mac, PortIndex};
use crate::prefetch::prefetch;
use crate::slow_path::decision::{Dependencies, Forward};
use crate::state::ConnectionReference;

/// Entries for each bucket of eight places.
const ENTRIES_PER_BUCKET: usize = 4;
const FEWEST_ENTRIES: usize = 8;

/// What an insert did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// The flow has an entry of its own now.
    New,
    /// The flow had one already; it does now what the decision says.
    Replaced,
    /// The flow has an entry now, and another flow gave way for it.
    Evicting,
    /// No room: every flow that could give way is in use, or there are too many rewrites. The slow path goes on
    /// serving this flow.
    Full,
    /// Packets of this kind are never cached.
    Uncacheable,
}

/// See the module.
pub(super) struct Table<K: FlowKey> {
    pub(super) buckets: HugeArray<Bucket>,
    pub(super) entries: HugeArray<Entry<K>>,
    pub(super) cold: HugeArray<Cold>,
    free: Vec<u32>,
    /// Slots from here on were never used.
    pub(super) high_water: usize,
    /// Counts inserts and removals, so that a batch knows whether what it found still holds.
    epoch: u64,
    pub(super) hand: Hand,
    pub(super) write_back: WriteBack,
}

impl<K: FlowKey> Table<K> {
    /// An empty table of `capacity` flows, at least eight.
    pub(super) fn new(capacity: usize) -> Self {
        let capacity = capacity.clamp(FEWEST_ENTRIES, NO_SLOT as usize / 2);
        let buckets = (capacity / ENTRIES_PER_BUCKET).next_power_of_two();
        Self {
            buckets: HugeArray::filled(buckets, Bucket::EMPTY),
            entries: HugeArray::filled(capacity, Entry::FREE),
            cold: HugeArray::filled(capacity, Cold::FREE),
            free: (0..capacity as u32).rev().collect(),
            high_water: 0,
            epoch: NOT_LOOKED_UP + 1,
            hand: Hand::default(),
            write_back: WriteBack::default(),
        }
    }

    /// Flows in the table.
    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Flows it can hold.
    pub(super) fn capacity(&self) -> usize {
        self.entries.len()
    }

    #[inline]
    pub(super) fn home(&self, hash: u64) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }

    #[inline]
    pub(super) fn neighbour(&self, home: usize) -> usize {
        (home + 1) & (self.buckets.len() - 1)
    }

    /// Looks up all packets of `lane` in stages, so that the memory accesses of one stage overlap.
    pub(super) fn lookup(&self, hash_key: &HashKey, lane: &mut Lane<K>) {
        let count = lane.count;
        hash_key.hash_all(&lane.keys[..count], &mut lane.hashes[..count]);
        for hash in &lane.hashes[..count] {
            prefetch(&self.buckets[self.home(*hash)]);
        }
        for item in 0..count {
            let slot = if lane.cacheable[item] { self.candidate(lane.hashes[item]) } else { NO_SLOT };
            lane.slots[item] = slot;
            if let Some(entry) = self.entries.get(slot as usize) {
                prefetch(&entry.key);
                if size_of::<Entry<K>>() > 64 {
                    prefetch(&entry.packets);
                }
            }
        }
        for item in 0..count {
            let slot = lane.slots[item];
            if slot != NO_SLOT && self.entries[slot as usize].key != lane.keys[item] {
                lane.slots[item] = self.find(&lane.keys[item], lane.hashes[item]);
            }
        }
        lane.epoch = self.epoch;
    }

    /// The first slot whose tag says it may be the flow's. Without one the flow is not in the table.
    #[inline]
    fn candidate(&self, hash: u64) -> u32 {
        let home = self.home(hash);
        let bucket = &self.buckets[home];
        let mask = bucket.matches(tag(hash));
        if mask != 0 {
            return bucket.slot(mask.trailing_zeros() as usize);
        }
        if bucket.overflowed == 0 {
            return NO_SLOT;
        }
        let bucket = &self.buckets[self.neighbour(home)];
        let mask = bucket.matches(tag(hash));
        if mask == 0 { NO_SLOT } else { bucket.slot(mask.trailing_zeros() as usize) }
    }

    /// The flow's slot, or [`NO_SLOT`]: all tags that match are tried.
    pub(super) fn find(&self, key: &K, hash: u64) -> u32 {
        let home = self.home(hash);
        let overflowed = self.buckets[home].overflowed != 0;
        let neighbour = overflowed.then(|| self.neighbour(home));
        for at in [Some(home), neighbour].into_iter().flatten() {
            let bucket = &self.buckets[at];
            let mut mask = bucket.matches(tag(hash));
            while mask != 0 {
                let slot = bucket.slot(mask.trailing_zeros() as usize);
                if self.entries[slot as usize].key == *key {
                    return slot;
                }
                mask &= mask - 1;
            }
        }
        NO_SLOT
    }

    /// The slot of the lane's `item` at this moment: as the lookup found it, unless the table changed since.
    #[inline]
    pub(super) fn locate(&self, lane: &Lane<K>, item: usize) -> u32 {
        if lane.epoch == self.epoch {
            lane.slots[item]
        } else if lane.epoch != NOT_LOOKED_UP && lane.cacheable[item] {
            self.find(&lane.keys[item], lane.hashes[item])
        } else {
            NO_SLOT
        }
    }

    /// The port that the flow in this slot leaves by.
    pub(super) fn egress(&self, slot: u32) -> Option<PortIndex> {
        self.entries.get(slot as usize).map(|entry| entry.egress())
    }

    /// Writes the decision for the lane's `item`.
    pub(super) fn insert(
        &mut self,
        lane: &Lane<K>,
        item: usize,
        decision: (&Forward, &Dependencies),
        now_ms: u32,
        rewrites: &mut Rewrites,
    ) -> Inserted {
        if !lane.cacheable[item] || lane.epoch == NOT_LOOKED_UP {
            return Inserted::Uncacheable;
        }
        let (forward, dependencies) = decision;
        let bridged = dependencies.source_mac != Mac::ZERO;
        let (key, hash) = (&lane.keys[item], lane.hashes[item]);
        let known = self.locate(lane, item);
        let Some(rewrite) = rewrites.acquire(&forward.rewrite) else {
            // What the entry says is no longer what was decided.
            if known != NO_SLOT {
                self.remove(known, rewrites);
            }
            return Inserted::Full;
        };
        if known != NO_SLOT {
            let entry = &mut self.entries[known as usize];
            rewrites.release(entry.rewrite);
            entry.set_action(forward, rewrite, bridged);
            entry.last_seen_ms = now_ms;
            let cold = &mut self.cold[known as usize];
            cold.dependencies = *dependencies;
            cold.connection = ConnectionReference::NONE;
            return Inserted::Replaced;
        }
        let used = self.len();
        if !self.make_room(hash, now_ms, rewrites) {
            rewrites.release(rewrite);
            return Inserted::Full;
        }
        let evicted = self.len() < used;
        let Some(slot) = self.place(hash) else {
            rewrites.release(rewrite);
            return Inserted::Full;
        };
        self.entries[slot as usize] = Entry::new(*key, forward, rewrite, bridged, now_ms);
        let (home, connection) = (self.home(hash) as u32, ConnectionReference::NONE);
        self.cold[slot as usize] = Cold { dependencies: *dependencies, connection, home };
        if evicted { Inserted::Evicting } else { Inserted::New }
    }

    /// Whether a slot is free.
    pub(super) fn has_free_slot(&self) -> bool {
        !self.free.is_empty()
    }

    /// Takes a free slot and writes its tag, in the home bucket or the next.
    fn place(&mut self, hash: u64) -> Option<u32> {
        let slot = *self.free.last()?;
        let home = self.home(hash);
        let neighbour = self.neighbour(home);
        if !self.buckets[home].put(tag(hash), slot) {
            if !self.buckets[neighbour].put(tag(hash), slot) {
                return None;
            }
            self.buckets[home].overflowed += 1;
        }
        self.free.pop();
        self.high_water = self.high_water.max(slot as usize + 1);
        self.epoch += 1;
        Some(slot)
    }

    /// Takes the flow at `slot` out of the table; its connection learns when it was last seen.
    pub(super) fn remove(&mut self, slot: u32, rewrites: &mut Rewrites) {
        let cold = &mut self.cold[slot as usize];
        if !cold.in_use() {
            return;
        }
        let home = std::mem::replace(&mut cold.home, NO_SLOT) as usize;
        self.write_back.seen(cold.connection, self.entries[slot as usize].last_seen_ms);
        if !self.buckets[home].take(slot) {
            let neighbour = self.neighbour(home);
            let taken = self.buckets[neighbour].take(slot);
            debug_assert!(taken, "slot {slot} has no tag");
            self.buckets[home].overflowed -= 1;
        }
        rewrites.release(self.entries[slot as usize].rewrite);
        self.entries[slot as usize].set_free();
        self.free.push(slot);
        self.epoch += 1;
    }

    /// Removes the flows in `slots` that are affected; returns how many. In groups: their buckets and
    /// their connections lie anywhere, so all are asked for before the first is changed.
    pub(super) fn sweep(
        &mut self,
        slots: std::ops::Range<usize>,
        rewrites: &mut Rewrites,
        affected: impl Fn(&Dependencies) -> bool,
    ) -> usize {
        const GROUP: usize = 32;
        let mut removed = 0;
        for start in slots.clone().step_by(GROUP) {
            let mut found = [NO_SLOT; GROUP];
            let mut count = 0;
            for slot in start..slots.end.min(start + GROUP) {
                let cold = &self.cold[slot];
                if cold.in_use() && affected(&cold.dependencies) {
                    prefetch(&self.buckets[cold.home as usize]);
                    prefetch(&self.entries[slot]);
                    self.write_back.prefetch(cold.connection);
                    found[count] = slot as u32;
                    count += 1;
                }
            }
            for slot in &found[..count] {
                self.remove(*slot, rewrites);
            }
            removed += count;
        }
        removed
    }
}
