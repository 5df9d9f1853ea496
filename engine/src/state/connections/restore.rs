//! Connections that somebody else began, taken into the table: of a former process, or of the host's kernel.
//!
//! Each is opened anew with its tuples, state, times, Service and endpoint: both translations go on, and a masquerade
//! port is claimed before anybody else may take it. Numbers of Services and endpoints are hashes of what they name, so
//! they mean the same in every process. Once at start, before there are workers; some hundred nanoseconds each.
//!
//! The kernel's are those that kube-proxy's rules translated: the table goes on with the very translation, so that neither
//! end sees a difference.
//!
//! A packet then meets its connection on the slow path, as every first packet of a flow does, and is judged by the
//! tables in force: a policy or a Service that changed meanwhile counts.

use std::sync::atomic::AtomicU64;

use super::entry::{ENTRY_WORDS, Entry, Status};
use super::state::Progress;
use super::{
    Connection, ConnectionFlags, ConnectionReference, Connections, Direction, Filling, Followed, NewConnection,
};
use crate::clock::Time;
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
        let mut restored = Restored::default();
        for index in 0..(former.words().len() / ENTRY_WORDS) as u32 {
            self.restore_into(former.words(), index, &mut restored, &mut counts);
        }
        restored
    }

    /// As [`Connections::restore`], of a process that goes on meanwhile: what it changes is to be caught up with.
    pub(in crate::state) fn follow(
        &self,
        former: &KeptMemory,
        mut counts: impl FnMut(u32, u32) -> bool,
    ) -> (Restored, Followed) {
        let mut restored = Restored::default();
        let places = 0..(former.words().len() / ENTRY_WORDS) as u32;
        let names = places.map(|index| self.restore_into(former.words(), index, &mut restored, &mut counts));
        let names = names.map(|name| name.unwrap_or(ConnectionReference::NONE)).collect();
        (restored, Followed(names))
    }

    /// Takes in what is at this place, if it goes on, and counts what became of it.
    pub(super) fn restore_into(
        &self,
        words: &[AtomicU64],
        index: u32,
        restored: &mut Restored,
        counts: &mut impl FnMut(u32, u32) -> bool,
    ) -> Option<ConnectionReference> {
        let outcome = self.restore_one(words, index, counts)?;
        match outcome {
            Some(_) => restored.taken += 1,
            None => restored.refused += 1,
        }
        outcome
    }

    /// Takes a connection in that is answered already. False if there is no room, or one of its tuples is another
    /// connection's; but for one that its own answer opened, of which nobody knew what it answers.
    pub fn adopt(&self, adopted: &NewConnection, now: Time) -> bool {
        if let Some((known, Direction::Original)) = self.find(&adopted.reply)
            && known.service == 0
            && known.reply == known.original.mirrored()
        {
            self.remove(known.reference);
        }
        let hashes = (adopted.original.hash(&self.hash_key), adopted.reply.hash(&self.hash_key));
        let mut locked = self.lock_both(hashes.0, hashes.1);
        let words = self.memory.words();
        let is_taken = locked.original().find(words, &adopted.original, hashes.0).is_some()
            || locked.reply().find(words, &adopted.reply, hashes.1).is_some();
        let Some(place) = (!is_taken).then(|| locked.original().allocate(words)).flatten() else { return false };
        let now_ms = now.milliseconds32();
        let progress = Progress { state: adopted.state, fins: 0, replied: true };
        let status = Status { progress, flags: adopted.flags, opened_ms: now_ms };
        self.fill(&mut locked, place, &Filling { new: adopted, status, seen_ms: now_ms, hashes });
        true
    }

    /// Under which name the connection at this place goes on, if it does; `None` where there was none.
    fn restore_one(
        &self,
        words: &[AtomicU64],
        index: u32,
        counts: &mut impl FnMut(u32, u32) -> bool,
    ) -> Option<Option<ConnectionReference>> {
        let mut status = Entry::at(words, index).status()?;
        let former = Self::read_in(words, index)?;
        let hashes = (former.original.hash(&self.hash_key), former.reply.hash(&self.hash_key));
        let mut locked = self.lock_both(hashes.0, hashes.1);
        let own = self.memory.words();
        if !former.state.is_of(former.original.protocol)
            || locked.original().find(own, &former.original, hashes.0).is_some()
            || locked.reply().find(own, &former.reply, hashes.1).is_some()
        {
            return Some(None);
        }
        let Some(place) = locked.original().allocate(own) else { return Some(None) };
        if status.flags.has(ConnectionFlags::COUNTED) && !counts(former.service, former.endpoint) {
            status.flags = status.flags.without(ConnectionFlags::COUNTED);
        }
        let new = as_new(&former);
        Some(Some(self.fill(&mut locked, place, &Filling { new: &new, status, seen_ms: former.seen_ms, hashes })))
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
