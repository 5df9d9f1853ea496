//! Connections: both directions of a flow in one entry, shared by all workers.
//!
//! Found by either tuple; the difference of the two is the connection's translation, so a tuple of a reply is also the
//! claim on its masquerade port: no two connections have one tuple. A tuple and its mirror image hash alike, so a
//! connection without translation lies in one shard and costs one lock; a translated one costs two where it opens or
//! ends, taken in order of their numbers, and one where it is found.
//!
//! Fixed capacity, [`limits::CONNECTIONS`] by default: 128 B of entry and 8 to 16 B of index each, all taken at start.
//! A full shard makes room as `shard.rs` says. Time passes by a bounded scan (`expiry.rs`), never by a timer of its own.
//!
//! Touched on the slow path and by the ageing hand of the flow caches, which writes back when cached packets were last
//! seen. What stands here is written by `worker/carry_out.rs`; the stages only read.

mod entry;
mod expiry;
mod journal;
mod restore;
mod sctp;
mod shard;
mod state;
mod tcp;
#[cfg(test)]
mod tests;
mod tuple;
mod view;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use entry::ConnectionFlags;
pub use expiry::Removed;
pub(in crate::state) use journal::{CONTENT as JOURNAL_CONTENT, Followed};
pub use restore::Restored;
pub use state::{ConnectionState, ConnectionTimeouts};
pub use tuple::{Direction, Tuple};

use super::kept_memory::{Content, KeptMemory};
use crate::clock::Time;
use crate::edit::Translation;
use crate::flow_cache::HashKey;
use crate::limits;
use crate::packet::parse::protocol;
use crate::prefetch::prefetch;
use entry::{ENTRY_WORDS, Entry, Status};
use expiry::Expiry;
use journal::Journal;
use shard::{ChainHeads, Shard};
use state::Progress;

/// Names a connection for as long as it lives; afterwards it names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionReference {
    index: u32,
    generation: u32,
}

impl ConnectionReference {
    /// Names no connection.
    pub const NONE: ConnectionReference = ConnectionReference { index: u32::MAX, generation: 0 };
}

/// Where one direction of a connection is cached: a worker and a place of its flow cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachePlace(u32);

impl CachePlace {
    const SLOT_BITS: u32 = 24;
    const NONE: u32 = u32::MAX;

    /// Place number `slot` of worker `worker`; `None` for places beyond 2^24, which no cache has by default.
    #[must_use]
    pub fn new(worker: usize, slot: u32) -> Option<Self> {
        let fits = slot < 1 << Self::SLOT_BITS && worker < limits::WORKERS;
        fits.then_some(CachePlace((worker as u32) << Self::SLOT_BITS | slot))
    }

    /// The worker.
    #[must_use]
    pub fn worker(self) -> usize {
        (self.0 >> Self::SLOT_BITS) as usize
    }

    /// The place in its cache.
    #[must_use]
    pub fn slot(self) -> u32 {
        self.0 & ((1 << Self::SLOT_BITS) - 1)
    }

    const fn from_number(number: u32) -> Option<Self> {
        if number == Self::NONE { None } else { Some(CachePlace(number)) }
    }

    fn number(place: Option<Self>) -> u32 {
        place.map_or(Self::NONE, |place| place.0)
    }
}

/// A connection as it was when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its name.
    pub reference: ConnectionReference,
    /// Packets as the opener sends them.
    pub original: Tuple,
    /// Packets as the other end sends them.
    pub reply: Tuple,
    /// What it is in the middle of.
    pub state: ConnectionState,
    /// Whether a packet of the reply direction was seen.
    pub replied: bool,
    /// Facts about it.
    pub flags: ConnectionFlags,
    /// Number of the Service it was opened to; 0 without one.
    pub service: u32,
    /// Number of the endpoint that was chosen; 0 without one.
    pub endpoint: u32,
    /// When it was opened, in milliseconds of the switch's clock modulo 2^32.
    pub opened_ms: u32,
    /// When a packet was last seen, as far as it was written back.
    pub seen_ms: u32,
    fins: u8,
}

impl Connection {
    /// What is done to packets of `direction`.
    #[must_use]
    pub fn translation(&self, direction: Direction) -> Translation {
        match direction {
            Direction::Original => Translation::between(&self.original, &self.reply),
            Direction::Reply => Translation::between(&self.reply, &self.original),
        }
    }

    /// The state after a packet of `direction` with this `Headers::tcp_flags_or_icmp_type`.
    #[must_use]
    pub fn state_after(&self, direction: Direction, signal: u8) -> ConnectionState {
        let progress = Progress { state: self.state, fins: self.fins, replied: self.replied };
        progress.step(self.original.protocol, direction, signal).state
    }

    /// Whether a packet with this `signal` opens a new connection in place of this one, which is over.
    #[must_use]
    pub fn is_reopened_by(&self, signal: u8) -> bool {
        self.state.is_over()
            && match self.original.protocol {
                protocol::TCP => tcp::asks_to_open(signal),
                protocol::SCTP => sctp::asks_to_open(signal),
                _ => false,
            }
    }
}

impl Translation {
    /// What turns packets of tuple `from` into packets whose answers have the tuple `answers`.
    fn between(from: &Tuple, answers: &Tuple) -> Translation {
        let to = answers.mirrored();
        let part = |old: ([u8; 16], u16), new: ([u8; 16], u16)| (old != new).then_some(new);
        Translation {
            source: part((from.source, from.ports[0]), (to.source, to.ports[0])),
            destination: part((from.destination, from.ports[1]), (to.destination, to.ports[1])),
        }
    }
}

/// A connection to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewConnection {
    /// Packets as the opener sends them.
    pub original: Tuple,
    /// Packets as the other end will send them: no other connection may have this tuple.
    pub reply: Tuple,
    /// State it begins in.
    pub state: ConnectionState,
    /// Facts about it.
    pub flags: ConnectionFlags,
    /// Number of the Service; 0 without one.
    pub service: u32,
    /// Number of the endpoint; 0 without one.
    pub endpoint: u32,
    /// The connection of the same tuple that is over and makes room.
    pub replaces: Option<ConnectionReference>,
}

/// What opening did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The connection exists now.
    New(ConnectionReference),
    /// Another worker opened it meanwhile, or took one of its tuples: decide again.
    Taken,
    /// No room, and nothing that may give way.
    Full,
}

/// What a packet did to a known connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advanced {
    /// It goes on.
    Goes,
    /// It must not be served from these caches any more.
    Unsettled([Option<CachePlace>; 2]),
    /// It ended meanwhile: decide again.
    Gone,
}

/// What an entry is filled with.
#[derive(Clone, Copy)]
struct Filling<'a> {
    new: &'a NewConnection,
    status: Status,
    seen_ms: u32,
    /// Of the original tuple and of the reply's.
    hashes: (u64, u64),
}

/// Evictions tried for one opening: each frees an entry that another worker may take first.
const EVICTIONS: usize = 4;
/// A table smaller than this many entries a shard has fewer shards.
const FEWEST_IN_SHARD: usize = 64;

/// How the entries lie in memory.
pub(super) const CONTENT: Content =
    Content { name: "connections", magic: *b"mr-conns", version: 1, item_words: ENTRY_WORDS };

/// The table. See the module.
#[derive(Debug)]
pub struct Connections {
    memory: KeptMemory,
    heads: Arc<ChainHeads>,
    shards: Box<[LockedShard]>,
    in_shard: u32,
    hash_key: HashKey,
    timeouts: ConnectionTimeouts,
    expiry: Expiry,
    journal: Journal,
}

/// A shard behind its lock.
#[derive(Debug)]
struct LockedShard {
    /// What [`Shard::next`] was when a connection was last opened, for who wants to ask the processor for it.
    next: AtomicU32,
    shard: Mutex<Shard>,
}

/// The locks of one or two shards, taken in order of their numbers.
struct Locked<'a> {
    first: MutexGuard<'a, Shard>,
    second: Option<MutexGuard<'a, Shard>>,
    /// Whether `first` is the shard of the original tuple.
    original_first: bool,
}

impl Locked<'_> {
    fn original(&mut self) -> &mut Shard {
        match &mut self.second {
            Some(second) if !self.original_first => second,
            _ => &mut self.first,
        }
    }

    fn reply(&mut self) -> &mut Shard {
        match &mut self.second {
            Some(second) if self.original_first => second,
            _ => &mut self.first,
        }
    }
}

impl Connections {
    /// An empty table of `capacity` connections, written back to by `workers` flow caches.
    ///
    /// # Errors
    /// The kernel refused memory.
    pub fn new(capacity: usize, workers: usize, hash_key: HashKey) -> io::Result<Self> {
        Self::with_memory(capacity, workers, hash_key, |entries| KeptMemory::anonymous(CONTENT, entries))
    }

    /// The same in memory that `memory` gives for so many entries.
    pub(super) fn with_memory(
        capacity: usize,
        workers: usize,
        hash_key: HashKey,
        memory: impl FnOnce(usize) -> io::Result<KeptMemory>,
    ) -> io::Result<Self> {
        let capacity = capacity.clamp(1, 1 << 30);
        let shards = (capacity / FEWEST_IN_SHARD).next_power_of_two().clamp(1, limits::CONNECTION_SHARDS);
        let in_shard = capacity.div_ceil(shards) as u32;
        let heads = Arc::new(ChainHeads::new(shards, in_shard));
        let shard = |number: u32| {
            let shard = Shard::new(number as usize, number * in_shard..(number + 1) * in_shard, Arc::clone(&heads));
            LockedShard { next: AtomicU32::new(shard.next()), shard: Mutex::new(shard) }
        };
        Ok(Self {
            memory: memory(shards * in_shard as usize)?,
            shards: (0..shards as u32).map(shard).collect(),
            heads,
            in_shard,
            hash_key,
            timeouts: ConnectionTimeouts::default(),
            expiry: Expiry::new(workers, shards),
            journal: Journal::default(),
        })
    }

    /// The same table with other timeouts.
    #[must_use]
    pub fn with_timeouts(self, timeouts: ConnectionTimeouts) -> Self {
        Self { timeouts, ..self }
    }

    /// Connections it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shards.len() * self.in_shard as usize
    }

    /// Connections it holds; takes every lock in turn.
    #[must_use]
    pub fn live(&self) -> usize {
        (0..self.shards.len()).map(|number| self.lock(number).live() as usize).sum()
    }

    /// The file of the entries, for a successor process.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.memory.file()
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, Shard> {
        self.shards[shard].shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shard_of(&self, hash: u64) -> usize {
        hash as usize & (self.shards.len() - 1)
    }

    fn lock_both(&self, original: u64, reply: u64) -> Locked<'_> {
        let (original, reply) = (self.shard_of(original), self.shard_of(reply));
        let first = self.lock(original.min(reply));
        let second = (original != reply).then(|| self.lock(original.max(reply)));
        Locked { first, second, original_first: original <= reply }
    }

    fn entry(&self, index: u32) -> Entry<'_> {
        Entry::at(self.memory.words(), index)
    }

    /// The connection that packets of this tuple belong to, and their direction.
    #[must_use]
    pub fn find(&self, tuple: &Tuple) -> Option<(Connection, Direction)> {
        let hash = tuple.hash(&self.hash_key);
        let shard = self.lock(self.shard_of(hash));
        let (index, direction) = shard.find(self.memory.words(), tuple, hash)?;
        Some((self.read(index)?, direction))
    }

    /// A keyed hash of a tuple: bits that nobody outside can foresee, the same for the same tuple.
    #[must_use]
    pub fn keyed_hash(&self, tuple: &Tuple) -> u64 {
        tuple.hash(&self.hash_key)
    }

    /// Whether any connection has this tuple, in either direction.
    #[must_use]
    pub fn is_taken(&self, tuple: &Tuple) -> bool {
        let hash = tuple.hash(&self.hash_key);
        self.lock(self.shard_of(hash)).find(self.memory.words(), tuple, hash).is_some()
    }

    /// The connection of this name, if it lives.
    #[must_use]
    pub fn get(&self, reference: ConnectionReference) -> Option<Connection> {
        let connection = self.read(reference.index)?;
        (connection.reference == reference && self.entry(reference.index).life().0 == reference.generation)
            .then_some(connection)
    }

    fn read(&self, index: u32) -> Option<Connection> {
        Self::read_in(self.memory.words(), index)
    }

    fn read_in(words: &[AtomicU64], index: u32) -> Option<Connection> {
        let entry = Entry::at(words, index);
        let (generation, seen_ms) = entry.life();
        let status = entry.status()?;
        let (service, endpoint) = entry.service();
        Some(Connection {
            reference: ConnectionReference { index, generation },
            original: Tuple::from_words(entry.tuple_words(Direction::Original)),
            reply: Tuple::from_words(entry.tuple_words(Direction::Reply)),
            state: status.progress.state,
            replied: status.progress.replied,
            flags: status.flags,
            service,
            endpoint,
            opened_ms: status.opened_ms,
            seen_ms,
            fins: status.progress.fins,
        })
    }

    /// Opens a connection. Both of its tuples are its own from then on. Tells `ended` of every connection that went for
    /// it, whatever comes of it: the one that it replaces, and those that gave way.
    pub fn open(&self, new: &NewConnection, now: Time, mut ended: impl FnMut(Removed)) -> Opened {
        new.replaces.and_then(|reference| self.remove(reference)).into_iter().for_each(&mut ended);
        let (original, reply) = (new.original.hash(&self.hash_key), new.reply.hash(&self.hash_key));
        for _ in 0..=EVICTIONS {
            let mut locked = self.lock_both(original, reply);
            let words = self.memory.words();
            if locked.original().find(words, &new.original, original).is_some()
                || locked.reply().find(words, &new.reply, reply).is_some()
            {
                return Opened::Taken;
            }
            if let Some(index) = locked.original().allocate(words) {
                let reference = self.write(&mut locked, index, new, (original, reply), now);
                return Opened::New(reference);
            }
            let victim = locked.original().victim(words, now.milliseconds32());
            drop(locked);
            let Some(victim) = victim.and_then(|index| self.read(index)) else { return Opened::Full };
            let evicted = self.remove(victim.reference);
            evicted.map(|removed| Removed { evicted: true, ..removed }).into_iter().for_each(&mut ended);
        }
        Opened::Full
    }

    fn write(
        &self,
        locked: &mut Locked<'_>,
        index: u32,
        new: &NewConnection,
        (original, reply): (u64, u64),
        now: Time,
    ) -> ConnectionReference {
        let fins = u8::from(new.state == ConnectionState::FinWait);
        let progress = Progress { state: new.state, fins, replied: false };
        let now_ms = now.milliseconds32();
        let status = Status { progress, flags: new.flags, opened_ms: now_ms };
        self.fill(locked, index, &Filling { new, status, seen_ms: now_ms, hashes: (original, reply) })
    }

    /// Makes a connection of a free entry.
    fn fill(&self, locked: &mut Locked<'_>, index: u32, filling: &Filling<'_>) -> ConnectionReference {
        let Filling { new, status, seen_ms, hashes: (original, reply) } = *filling;
        let words = self.memory.words();
        let entry = self.entry(index);
        entry.set_tuples(&new.original, &new.reply);
        entry.set_service((new.service, new.endpoint));
        entry.set_place(Direction::Original, None);
        entry.set_place(Direction::Reply, None);
        let (generation, former_ms) = entry.life();
        // Nobody touches an entry of no connection, so the exchange succeeds.
        entry.exchange_life((generation, former_ms), (generation, seen_ms));
        entry.set_status(Some(status));
        locked.original().link(words, index, Direction::Original, original);
        if new.reply != new.original.mirrored() {
            locked.reply().link(words, index, Direction::Reply, reply);
        }
        if status.progress.gives_way_early() {
            locked.original().append_early(words, index);
        }
        let shard = (index / self.in_shard) as usize;
        self.shards[shard].next.store(locked.original().next(), Ordering::Relaxed);
        self.expiry.set_used(shard, locked.original().used().end);
        self.journal.note(index);
        ConnectionReference { index, generation }
    }

    /// Takes a packet of `direction` into account.
    pub fn advance(&self, reference: ConnectionReference, direction: Direction, signal: u8, now: Time) -> Advanced {
        let shard_number = reference.index / self.in_shard;
        let mut shard = self.lock(shard_number as usize);
        let entry = self.entry(reference.index);
        let Some(status) = entry.status().filter(|_| entry.life().0 == reference.generation) else {
            return Advanced::Gone;
        };
        let number = Tuple::from_words(entry.tuple_words(Direction::Original)).protocol;
        let progress = status.progress.step(number, direction, signal);
        if progress != status.progress {
            entry.set_status(Some(Status { progress, ..status }));
            self.journal.note(reference.index);
        }
        self.touch(reference, now.milliseconds32());
        match (status.progress.gives_way_early(), progress.gives_way_early()) {
            (true, false) => shard.remove_early(self.memory.words(), reference.index),
            (false, true) => shard.append_early(self.memory.words(), reference.index),
            _ => {}
        }
        if status.progress.state.is_settled() && !progress.state.is_settled() {
            return Advanced::Unsettled([entry.place(Direction::Original), entry.place(Direction::Reply)]);
        }
        Advanced::Goes
    }

    /// Notes that a packet was seen at `seen_ms`; false if the connection is gone. Takes no lock.
    pub fn touch(&self, reference: ConnectionReference, seen_ms: u32) -> bool {
        let entry = self.entry(reference.index);
        loop {
            let life = entry.life();
            if life.0 != reference.generation {
                return false;
            }
            let is_later = seen_ms.wrapping_sub(life.1) as i32 > 0;
            if !is_later || entry.exchange_life(life, (life.0, seen_ms)) {
                return true;
            }
        }
    }

    /// Asks the processor for where a look for the tuple with this [`Connections::keyed_hash`] begins. The first half of
    /// what makes a vector's misses cheaper together than one by one; nothing is read.
    #[inline]
    pub(crate) fn prefetch_chain(&self, hash: u64) {
        let shard = self.shard_of(hash);
        prefetch(&self.shards[shard]);
        prefetch(self.heads.head(shard, hash));
    }

    /// Asks the processor for the entries that the look will meet, and that a new connection will get: the second half,
    /// some time behind the first.
    #[inline]
    pub(crate) fn prefetch_entries(&self, hash: u64) {
        let shard = self.shard_of(hash);
        let next = self.shards[shard].next.load(Ordering::Relaxed);
        let next = (next != entry::NONE).then_some(next);
        for index in [self.heads.first(shard, hash), next].into_iter().flatten() {
            self.entry(index).prefetch_whole();
        }
    }

    /// Asks the processor for what [`Connections::touch`] looks at.
    #[inline]
    pub(crate) fn prefetch(&self, reference: ConnectionReference) {
        if reference != ConnectionReference::NONE {
            self.entry(reference.index).prefetch();
        }
    }

    /// Notes where packets of `direction` are cached, so that they can be taken out when the connection ends.
    pub fn set_place(&self, reference: ConnectionReference, direction: Direction, place: Option<CachePlace>) {
        let entry = self.entry(reference.index);
        if entry.life().0 == reference.generation {
            entry.set_place(direction, place);
        }
    }

    /// Ends a connection; `None` if it has ended already.
    pub fn remove(&self, reference: ConnectionReference) -> Option<Removed> {
        self.remove_if(reference, |_, _| true)
    }

    /// Ends a connection if `condition` still holds of its status and its time last seen.
    fn remove_if(&self, reference: ConnectionReference, condition: impl Fn(&Status, u32) -> bool) -> Option<Removed> {
        let connection = self.get(reference)?;
        let (original, reply) = (connection.original.hash(&self.hash_key), connection.reply.hash(&self.hash_key));
        let mut locked = self.lock_both(original, reply);
        let (words, entry) = (self.memory.words(), self.entry(reference.index));
        let (generation, seen_ms) = entry.life();
        let status = entry.status().filter(|_| generation == reference.generation)?;
        if !condition(&status, seen_ms)
            || !entry.exchange_life((generation, seen_ms), (generation.wrapping_add(1), seen_ms))
        {
            return None;
        }
        entry.set_status(None);
        locked.original().unlink(words, reference.index, Direction::Original, original);
        if connection.reply != connection.original.mirrored() {
            locked.reply().unlink(words, reference.index, Direction::Reply, reply);
        }
        if status.progress.gives_way_early() {
            locked.original().remove_early(words, reference.index);
        }
        let places = [entry.place(Direction::Original), entry.place(Direction::Reply)];
        locked.original().release(words, reference.index);
        self.journal.note(reference.index);
        let counted = status.flags.has(ConnectionFlags::COUNTED).then_some((connection.service, connection.endpoint));
        Some(Removed { reference, places, evicted: false, counted })
    }
}
