//! The table as `millrace show connections` sees it.

use super::{Connection, Connections};

/// Entries shown under one lock: a worker that opens a connection waits for no more.
const SHOW_STEP: usize = 64;

impl Connections {
    /// Shows the connections in at most [`SHOW_STEP`] places from place `from` on, and says where to go on, until
    /// `None`. What comes and goes between two steps may be shown or not. Never on a worker.
    pub fn for_each(&self, from: usize, mut visit: impl FnMut(&Connection)) -> Option<usize> {
        let in_shard = self.in_shard as usize;
        let number = from / in_shard;
        if number >= self.shards.len() {
            return None;
        }
        let shard = self.lock(number);
        let end = (from + SHOW_STEP).min(shard.used().end as usize);
        let connections = (from..end).filter_map(|index| self.read(index as u32));
        connections.for_each(|connection| visit(&connection));
        let next = if end < shard.used().end as usize { end } else { (number + 1) * in_shard };
        (next < self.capacity()).then_some(next)
    }
}
