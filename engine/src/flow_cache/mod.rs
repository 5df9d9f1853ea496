//! The flow cache: what was decided for the first packet of a flow, kept for all that follow.
//!
//! One cache for each worker, used by its thread alone; all memory is taken by [`FlowCache::new`] and nothing grows
//! after. A vector is looked up in stages, so that the memory accesses of 64 packets overlap:
//! ```text
//!  hash keys, prefetch buckets | compare tags, prefetch entries | compare keys | take_hit: action and counts
//! ```
//! A hit reads the bucket's line, the entry's line (two for IPv6) and a shared, hot line of its rewrite; it writes
//! only the entry's. Beyond the processor's caches that costs about two overlapped memory accesses a packet.
//!
//! Entries leave by silence, to make room (`eviction.rs`), or because a publish changed what they rest on
//! (`sweep.rs`). None of this is ever needed for correctness of a packet: a flow that is not here goes the slow path.
//!
//! ```text
//!  batch.clear(); batch.push(n, ..) for each packet; cache.lookup(&mut batch);
//!  for each packet in order: cache.take_hit(&batch, n, ..) or else: slow path, cache.insert(&batch, n, ..)
//! ```
//! In that order a second packet of a new flow in the same vector hits what the first inserted.

mod batch;
mod bucket;
mod entry;
mod eviction;
mod hash;
mod huge_array;
mod key;
#[cfg(any(test, feature = "testing"))]
pub mod oracle;
mod rewrites;
mod sweep;
mod table;
#[cfg(test)]
mod tests;
mod view;
mod write_back;

use std::sync::Arc;

pub use batch::LookupBatch;
pub use hash::HashKey;
pub(crate) use hash::HashWords;
pub use key::KeyFields;
pub use sweep::SweepPlan;
pub use table::Inserted;
pub use view::FlowView;

use crate::edit::{CompiledRewrite, NewEnds};
use crate::limits;
use crate::packet::parse::Network;
use crate::packet::{Headers, PortIndex};
use crate::slow_path::decision::{Dependencies, Forward};
use batch::Place;
use bucket::NO_SLOT;
use key::{FlowKey, Ipv4Key, Ipv6Key};
use rewrites::Rewrites;
use sweep::Sweeps;
use table::Table;

/// How many flows of each family to hold; at least eight are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowCacheLayout {
    /// IPv4 flows.
    pub ipv4: usize,
    /// IPv6 flows.
    pub ipv6: usize,
}

impl Default for FlowCacheLayout {
    fn default() -> Self {
        Self { ipv4: limits::FLOWS_IPV4, ipv6: limits::FLOWS_IPV6 }
    }
}

/// What is done to a packet whose flow was found.
#[derive(Clone, Copy, Debug)]
pub struct Action<'a> {
    /// Port it leaves by.
    pub egress: PortIndex,
    /// What is done to it before.
    pub rewrite: &'a CompiledRewrite,
    /// New addresses, if any.
    pub ends: NewEnds<'a>,
}

/// The flows one worker has decided. See the module.
pub struct FlowCache {
    ipv4: Table<Ipv4Key>,
    ipv6: Table<Ipv6Key>,
    rewrites: Rewrites,
    sweeps: Sweeps,
    hash_key: HashKey,
}

impl std::fmt::Debug for FlowCache {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (flows, capacity) = (self.len(), self.capacity());
        formatter.debug_struct("FlowCache").field("flows", &flows).field("capacity", &capacity).finish_non_exhaustive()
    }
}

impl FlowCache {
    /// An empty cache. Takes and writes all its memory: some ten milliseconds at the default size.
    #[must_use]
    pub fn new(layout: FlowCacheLayout, hash_key: HashKey) -> Self {
        Self {
            ipv4: Table::new(layout.ipv4),
            ipv6: Table::new(layout.ipv6),
            rewrites: Rewrites::new(),
            sweeps: Sweeps::new(),
            hash_key,
        }
    }

    /// Flows in the cache.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ipv4.len() + self.ipv6.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Flows it can hold, both families together.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.ipv4.capacity() + self.ipv6.capacity()
    }

    /// Distinct rewrites its flows use.
    #[must_use]
    pub fn rewrites(&self) -> usize {
        self.rewrites.len()
    }

    /// Looks up all packets of the batch.
    #[inline]
    pub fn lookup(&self, batch: &mut LookupBatch) {
        self.ipv4.lookup(&self.hash_key, &mut batch.ipv4);
        self.ipv6.lookup(&self.hash_key, &mut batch.ipv6);
    }

    /// Serves packet `packet_number` of a batch that was looked up in this cache: counts it and says what to do.
    /// `None` if its flow is not in the cache at this moment. What was inserted or removed since the lookup counts.
    #[inline(always)]
    pub fn take_hit(
        &mut self,
        batch: &LookupBatch,
        packet_number: usize,
        bytes: usize,
        now_ms: u32,
    ) -> Option<Action<'_>> {
        match batch.place(packet_number) {
            Place::None => None,
            Place::Ipv4(item) => {
                let slot = self.ipv4.locate(&batch.ipv4, item as usize);
                serve(&mut self.ipv4, &self.rewrites, slot, bytes, now_ms)
            }
            Place::Ipv6(item) => {
                let slot = self.ipv6.locate(&batch.ipv6, item as usize);
                serve(&mut self.ipv6, &self.rewrites, slot, bytes, now_ms)
            }
        }
    }

    /// Keeps the decision for the flow of packet `packet_number`, in place of one kept before.
    pub fn insert(
        &mut self,
        batch: &LookupBatch,
        packet_number: usize,
        forward: &Forward,
        dependencies: &Dependencies,
        now_ms: u32,
    ) -> Inserted {
        let decision = (forward, dependencies);
        let Self { ipv4, ipv6, rewrites, .. } = self;
        match batch.place(packet_number) {
            Place::None => Inserted::Uncacheable,
            Place::Ipv4(item) => ipv4.insert(&batch.ipv4, item as usize, decision, now_ms, rewrites),
            Place::Ipv6(item) => ipv6.insert(&batch.ipv6, item as usize, decision, now_ms, rewrites),
        }
    }

    /// The hash of the flow that a packet outside any batch belongs to; the same a batch gives. 0 for what is not IP.
    #[must_use]
    pub fn flow_hash(&self, headers: &Headers, macs: &[u8; 12], ingress: u32) -> u64 {
        match headers.network {
            Network::Ipv4 => self.hash_key.hash(&Ipv4Key::new(headers, macs, ingress)),
            Network::Ipv6 => self.hash_key.hash(&Ipv6Key::new(headers, macs, ingress)),
            Network::Arp | Network::Other => 0,
        }
    }

    /// Removes silent flows and those whose connection has ended among the next `entries`, writes back when the others
    /// were last seen; shared between the families by their size; returns how many. Rests between revolutions, see [`limits::AGEING_REVOLUTION_MS`], so it may be called every turn. `heard` is told
    /// of each bridged flow that was served since the hand last came by, and for how long it has been silent.
    pub fn age_step(&mut self, entries: usize, now_ms: u32, mut heard: impl FnMut(&Dependencies, u32)) -> usize {
        let share = (entries * self.ipv4.capacity() / self.capacity()).max(1);
        let rest = entries.saturating_sub(share).max(1);
        self.ipv4.age(share, now_ms, &mut self.rewrites, &mut heard)
            + self.ipv6.age(rest, now_ms, &mut self.rewrites, &mut heard)
    }

    /// Begins to sweep by `plan`; call it before the first packet that is decided by the plan's generation.
    /// Returns how many flows were removed at once: 0, unless too many sweeps were under way and had to be finished.
    pub fn begin_sweep(&mut self, plan: Arc<SweepPlan>) -> usize {
        if plan.is_empty() || self.is_empty() {
            return 0;
        }
        let removed = if self.sweeps.is_full() { self.sweep_step(usize::MAX) } else { 0 };
        let capacity = self.capacity();
        self.sweeps.push(plan, capacity);
        removed
    }

    /// Whether entries are left that a sweep has not come to.
    #[inline]
    #[must_use]
    pub fn sweeping(&self) -> bool {
        self.sweeps.remaining() > 0
    }

    /// Goes on sweeping over the next `entries`; returns how many flows were removed. Entries that were never used
    /// are passed for nothing.
    pub fn sweep_step(&mut self, entries: usize) -> usize {
        let mut budget = entries;
        let mut removed = 0;
        while budget > 0 && self.sweeping() {
            let (examined, passed) = self.sweep_part(budget, &mut removed);
            self.sweeps.advance(passed, self.capacity());
            budget -= examined;
        }
        removed
    }

    /// One contiguous part of a step, within one table: how many entries were examined, and how many passed.
    fn sweep_part(&mut self, budget: usize, removed: &mut usize) -> (usize, usize) {
        let Self { ipv4, ipv6, rewrites, sweeps, .. } = self;
        let position = sweeps.position;
        let within_ipv4 = position < ipv4.capacity();
        let (start, high_water, capacity) = if within_ipv4 {
            (position, ipv4.high_water, ipv4.capacity())
        } else {
            (position - ipv4.capacity(), ipv6.high_water, ipv6.capacity())
        };
        if start >= high_water {
            return (0, capacity - start);
        }
        let end = high_water.min(start.saturating_add(budget));
        let affected = |dependencies: &Dependencies| sweeps.affect(dependencies);
        *removed += if within_ipv4 {
            ipv4.sweep(start..end, rewrites, affected)
        } else {
            ipv6.sweep(start..end, rewrites, affected)
        };
        (end - start, end - start)
    }
}

#[inline(always)]
fn serve<'a, K: FlowKey>(
    table: &'a mut Table<K>,
    rewrites: &'a Rewrites,
    slot: u32,
    bytes: usize,
    now_ms: u32,
) -> Option<Action<'a>> {
    if slot == NO_SLOT {
        return None;
    }
    let entry = &mut table.entries[slot as usize];
    entry.count(bytes, now_ms);
    let rewrite = rewrites.get(entry.rewrite);
    Some(Action { egress: entry.egress(), rewrite, ends: entry.ends() })
}
