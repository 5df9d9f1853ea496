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
use super::{Connection, ConnectionFlags, Connections, Direction, Filling, NewConnection};
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

/// A connection of another switch.
#[derive(Clone, Copy, Debug)]
pub struct Former {
    /// Its tuples, its state and what else it began with.
    pub connection: NewConnection,
    /// Whether a packet of the reply direction was seen.
    pub replied: bool,
    /// Which ends have sent a FIN, as bits.
    pub fins: u8,
    /// When it was opened, in milliseconds of the switch's clock modulo 2^32.
    pub opened_ms: u32,
    /// When a packet was last seen, by the same clock.
    pub seen_ms: u32,
}

impl Former {
    /// What another switch's table says of it.
    #[must_use]
    pub fn of(connection: &Connection) -> Self {
        Self {
            connection: as_new(connection),
            replied: connection.replied,
            fins: connection.fins,
            opened_ms: connection.opened_ms,
            seen_ms: connection.seen_ms,
        }
    }
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

    /// Takes in a connection as another switch had it, to explain packets by: nothing is counted for its endpoint. False if
    /// there is no room, or one of its tuples is another connection's.
    pub fn take_in(&self, former: &Former) -> bool {
        let new = &former.connection;
        let hashes = (new.original.hash(&self.hash_key), new.reply.hash(&self.hash_key));
        let mut locked = self.lock_both(hashes.0, hashes.1);
        let words = self.memory.words();
        let is_taken = locked.original().find(words, &new.original, hashes.0).is_some()
            || locked.reply().find(words, &new.reply, hashes.1).is_some();
        let Some(place) = (!is_taken).then(|| locked.original().allocate(words)).flatten() else { return false };
        let progress = Progress { state: new.state, fins: former.fins, replied: former.replied };
        let status = Status { progress, flags: new.flags, opened_ms: former.opened_ms };
        self.fill(&mut locked, place, &Filling { new, status, seen_ms: former.seen_ms, hashes });
        true
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
