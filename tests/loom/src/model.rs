//! Tables that know on which thread they are freed.

use std::cell::Cell;

loom::thread_local! {
    static WORKER: Cell<bool> = Cell::new(false);
}

/// Marks this thread as a worker, or says whether it is one.
pub fn is_worker(mark: bool) -> bool {
    WORKER.with(|worker| {
        worker.set(worker.get() || mark);
        worker.get()
    })
}

/// Tables.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Set by the publisher.
    pub generation: u64,
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        assert!(!is_worker(false), "a worker freed the tables of generation {}", self.generation);
    }
}

/// What a publish changed.
#[derive(Debug)]
pub struct ChangeSet {
    /// Of the new tables.
    pub generation: u64,
}

/// `tables::change`.
pub mod change {
    use super::{ChangeSet, Snapshot};

    /// The comparison is no matter here.
    pub fn changes(_: &Snapshot, new: &Snapshot) -> ChangeSet {
        ChangeSet { generation: new.generation }
    }
}
