//! Which flow leaves: by age in the background, or to make room for a new one.
//!
//! One clock hand goes round the entries: ageing moves it, removes what was silent for too long, and tells connections
//! when their flows were last seen. Where the whole cache is full, an insert moves a second hand on until it meets an
//! entry that may give way.
//!
//! **Who may give way.** A flow is *established* once a packet was served from its entry. An insert may evict
//!  1. a flow that is not established, the one silent for longest first;
//!  2. failing that, an established flow that was silent for [`limits::FLOW_RECENT_MS`], the longest-silent first;
//!  3. otherwise none: the new flow stays on the slow path.
//!
//! So a flood of new flows (a scan) replaces its own entries only, and established flows in use stay. The choice is
//! among few: the places of the two buckets the flow may live in, or, if those have room but no entry is free,
//! [`limits::EVICTION_STEP`] entries from the second hand on. An insert therefore costs a bounded number of reads.

use super::bucket::{NO_SLOT, PLACES};
use super::entry::{Entry, elapsed_ms};
use super::key::FlowKey;
use super::rewrites::Rewrites;
use super::table::Table;
use crate::limits;
use crate::slow_path::decision::Dependencies;

/// The clock hands of one table.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hand {
    position: usize,
    /// The hand of inserts; apart, so that ageing passes every entry in each revolution.
    evicting: usize,
    /// When the present revolution began; `None` before the first.
    started_ms: Option<u32>,
    /// When the one before began: flows served since are not written back yet.
    before_ms: Option<u32>,
    /// When the last revolution that is complete began: everything seen before is written back.
    pub(super) written_back_ms: Option<u32>,
}

impl Hand {
    /// Whether a revolution is under way.
    pub(super) fn is_turning(&self) -> bool {
        self.started_ms != self.written_back_ms
    }

    /// Whether a flow that has been silent for so long was served since the hand last came by.
    fn is_unwritten(&self, idle_ms: u32, now_ms: u32) -> bool {
        self.before_ms.is_none_or(|before| idle_ms <= elapsed_ms(now_ms, before))
    }
}

/// How readily an entry gives way; `None` if not at all. More is sooner.
fn readiness<K: FlowKey>(entry: &Entry<K>, now_ms: u32) -> Option<(bool, u32)> {
    let idle = entry.idle_ms(now_ms);
    let established = entry.is_established();
    (!established || idle >= limits::FLOW_RECENT_MS).then_some((!established, idle))
}

impl<K: FlowKey> Table<K> {
    /// Removes what has expired or lost its connection among the next `entries`; returns how many. Does nothing where the hand went round
    /// less than [`limits::AGEING_REVOLUTION_MS`] ago.
    ///
    /// `heard` is told of the bridged flows that were served since the hand last came by: what they rest on, and for
    /// how long they have been silent. A flow that is removed in between was told of at most a revolution before.
    pub(super) fn age(
        &mut self,
        entries: usize,
        now_ms: u32,
        rewrites: &mut Rewrites,
        heard: &mut impl FnMut(&Dependencies, u32),
    ) -> usize {
        if self.hand.position >= self.high_water {
            self.hand.position = 0;
        }
        if self.hand.position == 0 {
            let rests = |started| elapsed_ms(now_ms, started) < limits::AGEING_REVOLUTION_MS;
            if self.hand.started_ms.is_some_and(rests) {
                return 0;
            }
            self.hand.before_ms = self.hand.started_ms.replace(now_ms);
        }
        let end = self.high_water.min(self.hand.position.saturating_add(entries));
        let mut removed = 0;
        for slot in self.hand.position..end {
            let entry = &self.entries[slot];
            if !entry.in_use() {
                continue;
            }
            let (idle, seen_ms) = (entry.idle_ms(now_ms), entry.last_seen_ms);
            let is_new = self.hand.is_unwritten(idle, now_ms);
            if entry.is_bridged() && is_new {
                heard(&self.cold[slot].dependencies, idle);
            }
            let ended = is_new && !self.write_back.seen(self.cold[slot].connection, seen_ms);
            if ended || entry.is_expired(now_ms) {
                self.remove(slot as u32, rewrites);
                removed += 1;
            }
        }
        self.hand.position = end;
        if end == self.high_water {
            self.hand.written_back_ms = self.hand.started_ms;
        }
        removed
    }

    /// Sees to it that a flow with this hash finds a place and a slot, evicting at most one flow. False if there is
    /// none that may give way.
    pub(super) fn make_room(&mut self, hash: u64, now_ms: u32, rewrites: &mut Rewrites) -> bool {
        let home = self.home(hash);
        let neighbour = self.neighbour(home);
        let has_place = self.buckets[home].has_room() || self.buckets[neighbour].has_room();
        let victim = match (has_place, self.has_free_slot()) {
            (true, true) => return true,
            (true, false) => self.victim_at_hand(now_ms),
            (false, _) => self.victim_in_buckets([home, neighbour], now_ms),
        };
        if victim == NO_SLOT {
            return false;
        }
        self.remove(victim, rewrites);
        true
    }

    /// The readiest flow of two full buckets.
    fn victim_in_buckets(&self, buckets: [usize; 2], now_ms: u32) -> u32 {
        let mut slots = [NO_SLOT; 2 * PLACES];
        let used = buckets.iter().flat_map(|at| self.buckets[*at].used());
        slots.iter_mut().zip(used).for_each(|(place, slot)| *place = slot);
        self.readiest(slots.into_iter().filter(|slot| *slot != NO_SLOT), now_ms)
    }

    /// The first flow from the hand on that is not established or has expired; failing that, the readiest examined.
    fn victim_at_hand(&mut self, now_ms: u32) -> u32 {
        let capacity = self.capacity();
        let start = self.hand.evicting;
        for step in 0..limits::EVICTION_STEP.min(capacity) {
            let slot = (start + step) % capacity;
            let entry = &self.entries[slot];
            if entry.in_use() && (!entry.is_established() || entry.is_expired(now_ms)) {
                self.hand.evicting = (slot + 1) % capacity;
                return slot as u32;
            }
        }
        self.hand.evicting = (start + limits::EVICTION_STEP) % capacity;
        self.readiest((start..start + limits::EVICTION_STEP).map(|slot| (slot % capacity) as u32), now_ms)
    }

    fn readiest(&self, slots: impl Iterator<Item = u32>, now_ms: u32) -> u32 {
        let ready = slots.filter_map(|slot| Some((readiness(&self.entries[slot as usize], now_ms)?, slot)));
        ready.max().map_or(NO_SLOT, |(_, slot)| slot)
    }
}
