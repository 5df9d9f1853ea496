//! Connections of a former process, taken into the table of this one.
//!
//! Each is opened anew with its tuples, state, times, Service and endpoint: both translations go on, and a masquerade
//! port is claimed before anybody else may take it. Numbers of Services and endpoints are hashes of what they name, so
//! they mean the same in every process. Once at start, before there are workers; some hundred nanoseconds each.
//!
//! A packet then meets its connection on the slow path, as every first packet of a flow does, and is judged by the
//! tables in force: a policy or a Service that changed meanwhile counts.

use std::sync::atomic::AtomicU64;

use super::entry::{ENTRY_WORDS, Entry};
use super::{Connection, ConnectionFlags, Connections, Filling, NewConnection};
use crate::state::kept_memory::KeptMemory;

/// What became of the connections of a former process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Those that go on.
    pub taken: usize,
    /// Those for which there was no room, or that no process could have left.
    pub refused: usize,
}

impl Connections {
    /// Takes in what `former` has. `counts` says of the Service and endpoint of each one that was counted for it whether
    /// it is counted again.
    pub(in crate::state) fn restore(&self, former: &KeptMemory, mut counts: impl FnMut(u32, u32) -> bool) -> Restored {
        let words = former.words();
        let mut restored = Restored::default();
        for index in 0..(words.len() / ENTRY_WORDS) as u32 {
            match self.restore_one(words, index, &mut counts) {
                None => {}
                Some(true) => restored.taken += 1,
                Some(false) => restored.refused += 1,
            }
        }
        restored
    }

    /// Whether the connection at this place goes on; `None` where there was none.
    fn restore_one(&self, words: &[AtomicU64], index: u32, counts: &mut impl FnMut(u32, u32) -> bool) -> Option<bool> {
        let mut status = Entry::at(words, index).status()?;
        let former = Self::read_in(words, index)?;
        let hashes = (former.original.hash(&self.hash_key), former.reply.hash(&self.hash_key));
        let mut locked = self.lock_both(hashes.0, hashes.1);
        let own = self.memory.words();
        if !former.state.is_of(former.original.protocol)
            || locked.original().find(own, &former.original, hashes.0).is_some()
            || locked.reply().find(own, &former.reply, hashes.1).is_some()
        {
            return Some(false);
        }
        let Some(place) = locked.original().allocate(own) else { return Some(false) };
        if status.flags.has(ConnectionFlags::COUNTED) && !counts(former.service, former.endpoint) {
            status.flags = status.flags.without(ConnectionFlags::COUNTED);
        }
        let new = as_new(&former);
        self.fill(&mut locked, place, &Filling { new: &new, status, seen_ms: former.seen_ms, hashes });
        Some(true)
    }
}

fn as_new(former: &Connection) -> NewConnection {
    NewConnection {
        original: former.original,
        reply: former.reply,
        state: former.state,
        flags: former.flags,
        service: former.service,
        endpoint: former.endpoint,
        replaces: None,
    }
}
