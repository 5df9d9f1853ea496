//! Who has been silent for too long: a scan that goes round the table once a second, a bounded step at a time.
//!
//! Workers share the scan; each step belongs to one of them. A cached flow's packets are known to its worker's cache
//! only, until that cache's ageing hand has passed it. So silence counts up to a horizon only: the earliest of the times
//! up to which the caches have written everything back. A worker that stands still holds the horizon, and with it
//! expiry, back; no connection that is in use expires because of it.
//!
//! Times are milliseconds modulo 2^32, as flow-cache entries keep them.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crossbeam::utils::CachePadded;

use super::entry::Status;
use super::{CachePlace, ConnectionReference, Connections, Direction, Tuple};
use crate::clock::Time;
use crate::limits::CONNECTION_REVOLUTION_MS;

/// A connection that ended, and where its packets may still be cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Its name, which names nothing any more.
    pub reference: ConnectionReference,
    /// Where its directions were cached.
    pub places: [Option<CachePlace>; 2],
    /// Whether it gave way to a new one.
    pub evicted: bool,
    /// Numbers of the Service and endpoint that it was counted for, if it was.
    pub counted: Option<(u32, u32)>,
}

/// A time, and whether there is one.
const KNOWN: u64 = 1 << 32;

/// What the scan remembers.
#[derive(Debug)]
pub(super) struct Expiry {
    /// Time up to which each worker's cache has written back.
    written_back_ms: Box<[CachePadded<AtomicU64>]>,
    /// End of the entries of each shard that were ever used.
    used: Box<[AtomicU32]>,
    /// Entry the scan comes to next.
    hand: AtomicUsize,
    /// When the present revolution began.
    started_ms: AtomicU64,
}

impl Expiry {
    pub(super) fn new(workers: usize, shards: usize) -> Self {
        Self {
            written_back_ms: (0..workers.max(1)).map(|_| CachePadded::new(AtomicU64::new(0))).collect(),
            used: (0..shards).map(|_| AtomicU32::new(0)).collect(),
            hand: AtomicUsize::new(0),
            started_ms: AtomicU64::new(0),
        }
    }

    /// Notes that the entries of `shard` before `end` are used; called under the shard's lock.
    pub(super) fn set_used(&self, shard: usize, end: u32) {
        self.used[shard].store(end, Ordering::Relaxed);
    }

    /// Whether the scan rests between two revolutions.
    fn rests(&self, now_ms: u32) -> bool {
        let started = self.started_ms.load(Ordering::Relaxed);
        self.hand.load(Ordering::Relaxed) == 0
            && started & KNOWN != 0
            && now_ms.wrapping_sub(started as u32) < CONNECTION_REVOLUTION_MS
    }

    /// The first used entry from `at` on, and the end of its shard's used ones; `None` behind the last.
    fn next_used(&self, at: usize, in_shard: usize) -> Option<Range<usize>> {
        (at / in_shard..self.used.len()).find_map(|shard| {
            let start = at.max(shard * in_shard);
            let end = self.used[shard].load(Ordering::Relaxed) as usize;
            (start < end).then_some(start..end)
        })
    }

    /// The part of the table that this step has to look at.
    fn take_step(&self, entries: usize, in_shard: usize, now_ms: u32) -> Range<usize> {
        if self.rests(now_ms) {
            return 0..0;
        }
        let hand = self.hand.load(Ordering::Relaxed);
        if hand == 0 {
            self.started_ms.store(u64::from(now_ms) | KNOWN, Ordering::Relaxed);
        }
        let found = self.next_used(hand, in_shard);
        let step = found.map_or(0..0, |used| used.start..used.end.min(used.start + entries));
        let next = self.next_used(step.end, in_shard).filter(|_| !step.is_empty()).map_or(0, |used| used.start);
        let taken = self.hand.compare_exchange(hand, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if taken { step } else { 0..0 }
    }

    /// How far the caches are behind, at most; `None` where one has not written back anything yet.
    fn lag_ms(&self, now_ms: u32) -> Option<u32> {
        let mut lag = 0;
        for time in &self.written_back_ms {
            let time = time.load(Ordering::Relaxed);
            if time & KNOWN == 0 {
                return None;
            }
            // A worker whose clock was read later than ours is not behind.
            lag = lag.max((now_ms.wrapping_sub(time as u32) as i32).max(0) as u32);
        }
        Some(lag)
    }
}

impl Connections {
    /// Says that the flow cache of worker `worker` has written back every packet seen before `time_ms`.
    pub fn written_back(&self, worker: usize, time_ms: u32) {
        if let Some(known) = self.expiry.written_back_ms.get(worker) {
            known.store(u64::from(time_ms) | KNOWN, Ordering::Relaxed);
        }
    }

    /// Whether the scan is in the middle of a revolution.
    #[must_use]
    pub fn is_expiring(&self) -> bool {
        self.expiry.hand.load(Ordering::Relaxed) != 0
    }

    /// Ends what was silent for too long among the next `entries`, and tells `removed` of each. Rests between
    /// revolutions ([`CONNECTION_REVOLUTION_MS`]), so any worker may call it every turn.
    pub fn expire_step(&self, entries: usize, now: Time, mut removed: impl FnMut(Removed)) {
        let now_ms = now.milliseconds32();
        let Some(lag_ms) = self.expiry.lag_ms(now_ms) else { return };
        for index in self.expiry.take_step(entries, self.in_shard as usize, now_ms) {
            let entry = self.entry(index as u32);
            let Some(status) = entry.status() else { continue };
            let number = Tuple::from_words(entry.tuple_words(Direction::Original)).protocol;
            let is_silent = |status: &Status, seen_ms: u32| {
                let silent_ms = (now_ms.wrapping_sub(seen_ms) as i32).max(0) as u32;
                let longest = status.progress.longest_silence(number, (status.opened_ms, seen_ms), &self.timeouts);
                u128::from(silent_ms.saturating_sub(lag_ms)) >= longest.as_millis()
            };
            let (generation, seen_ms) = entry.life();
            if is_silent(&status, seen_ms) {
                let reference = ConnectionReference { index: index as u32, generation };
                if let Some(ended) = self.remove_if(reference, is_silent) {
                    removed(ended);
                }
            }
        }
    }
}
