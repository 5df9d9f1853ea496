//! How a snapshot reaches the workers.
//!
//! The control thread stores a new snapshot; each worker refreshes its [`Subscription`] once a turn (one atomic
//! load when nothing changed) and reports the generation it uses. The publisher keeps every snapshot that a worker
//! may still hold and drops it later, on its own thread: no worker ever frees a table.

use std::sync::Arc;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

// This file is also part of the models in tests/loom/, with a plain model of `arc_swap`.
#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use crossbeam::utils::CachePadded;

use super::{ChangeSet, Snapshot, change};

/// The publishing side; one, on the control thread.
#[derive(Debug)]
pub struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
    used: Vec<Arc<CachePadded<AtomicU64>>>,
    retired: Vec<Arc<Snapshot>>,
}

/// One worker's side.
#[derive(Debug)]
pub struct Subscription {
    cache: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    used: Arc<CachePadded<AtomicU64>>,
}

impl Default for Publisher {
    fn default() -> Self {
        Self::new()
    }
}

impl Publisher {
    /// A publisher of the empty snapshot, without subscribers.
    #[must_use]
    pub fn new() -> Self {
        let first = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        Self { current: first, used: Vec::new(), retired: Vec::new() }
    }

    /// A new worker's side.
    pub fn subscribe(&mut self) -> Subscription {
        let used = Arc::new(CachePadded::new(AtomicU64::new(0)));
        self.used.push(Arc::clone(&used));
        Subscription { cache: Cache::new(Arc::clone(&self.current)), used }
    }

    /// Publishes `snapshot` as the next generation and says what changed.
    pub fn publish(&mut self, mut snapshot: Snapshot) -> ChangeSet {
        let before = self.current.load_full();
        snapshot.generation = before.generation + 1;
        let changes = change::changes(&before, &snapshot);
        self.current.store(Arc::new(snapshot));
        self.retired.push(before);
        self.collect();
        changes
    }

    /// Drops the snapshots that every worker has left behind. `publish` does it too; call it now and then when idle.
    pub fn collect(&mut self) {
        let oldest = self.used.iter().map(|used| used.load(Ordering::Acquire)).min().unwrap_or(u64::MAX);
        self.retired.retain(|snapshot| snapshot.generation >= oldest);
    }

    /// The snapshot in force.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Snapshots kept for workers that may still use them.
    #[must_use]
    pub fn retired(&self) -> usize {
        self.retired.len()
    }

    /// The lowest generation any worker uses; the present one without workers.
    #[must_use]
    pub fn generation_in_use(&self) -> u64 {
        let lowest = self.used.iter().map(|used| used.load(Ordering::Acquire)).min();
        lowest.unwrap_or_else(|| self.current.load().generation)
    }
}

impl Subscription {
    /// The snapshot to use for this turn; reports the one used before as left behind.
    #[inline]
    pub fn refresh(&mut self) -> &Arc<Snapshot> {
        let snapshot = self.cache.load();
        self.used.store(snapshot.generation, Ordering::Release);
        snapshot
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_retired_snapshot_lives_until_the_worker_has_left_it() {
        let mut publisher = Publisher::new();
        let mut worker = publisher.subscribe();
        assert_eq!(worker.refresh().generation, 0);
        publisher.publish(Snapshot::default());
        publisher.publish(Snapshot::default());
        assert_eq!((publisher.retired(), publisher.generation_in_use()), (2, 0));
        assert_eq!(worker.refresh().generation, 2);
        publisher.collect();
        assert_eq!((publisher.retired(), publisher.generation_in_use()), (0, 2));
    }
}
