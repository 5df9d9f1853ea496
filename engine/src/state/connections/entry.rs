//! The words of one entry: 128 bytes, two cache lines.
//!
//! ```text
//!  0..5  original tuple       8..13  reply tuple
//!  5     generation, last seen (ms)   13  service, endpoint
//!  6     state, FINs, flags, opened (ms)   14  list: before, behind
//!  7     chain: behind as original, behind as reply   15  cache places: original, reply
//! ```
//! Who may write: the tuples, state, service and list under the lock of the entry's shard; each half of the chain word
//! under the lock of the shard whose chain it is part of; last seen and cache places by anybody. Whoever reads without
//! the lock compares the generation before and after.

use std::sync::atomic::{AtomicU64, Ordering};

use super::state::Progress;
use super::tuple::TUPLE_WORDS;
use super::{CachePlace, ConnectionState, Direction, Tuple};
use crate::prefetch::prefetch;

/// Words of an entry.
pub(super) const ENTRY_WORDS: usize = 16;
/// No entry: the end of a chain or list.
pub(super) const NONE: u32 = u32::MAX;

const ORIGINAL: usize = 0;
const LIFE: usize = 5;
const STATUS: usize = 6;
const CHAIN: usize = 7;
const REPLY: usize = 8;
const SERVICE: usize = 13;
const LIST: usize = 14;
const PLACES: usize = 15;

/// Facts about a connection, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionFlags(u16);

impl ConnectionFlags {
    /// None.
    pub const NONE: ConnectionFlags = ConnectionFlags(0);
    /// Its source is translated: the connection holds a masquerade port.
    pub const MASQUERADED: ConnectionFlags = ConnectionFlags(1);
    /// It was opened to a Service; the entry names Service and endpoint.
    pub const SERVICE: ConnectionFlags = ConnectionFlags(1 << 1);
    /// Policy let it in as a connection: later packets are not judged one by one.
    pub const POLICY_BY_CONNECTION: ConnectionFlags = ConnectionFlags(1 << 2);
    /// It is among the live connections of its endpoint.
    pub const COUNTED: ConnectionFlags = ConnectionFlags(1 << 3);
    const REPLIED: ConnectionFlags = ConnectionFlags(1 << 14);
    const IN_USE: ConnectionFlags = ConnectionFlags(1 << 15);

    /// These and those.
    #[must_use]
    pub const fn with(self, other: ConnectionFlags) -> ConnectionFlags {
        ConnectionFlags(self.0 | other.0)
    }

    /// Whether all of `other` are set.
    #[must_use]
    pub const fn has(self, other: ConnectionFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// These but not those.
    #[must_use]
    pub const fn without(self, other: ConnectionFlags) -> ConnectionFlags {
        ConnectionFlags(self.0 & !other.0)
    }
}

/// The state word taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) progress: Progress,
    pub(super) flags: ConnectionFlags,
    pub(super) opened_ms: u32,
}

/// One entry. All methods are single loads and stores.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a>(&'a [AtomicU64; ENTRY_WORDS]);

impl<'a> Entry<'a> {
    /// Entry number `index`; the last one if there are fewer, which no index leads to.
    #[inline]
    pub(super) fn at(words: &'a [AtomicU64], index: u32) -> Self {
        let entries = words.as_chunks::<ENTRY_WORDS>().0;
        Self(&entries[index as usize])
    }

    fn get(self, word: usize) -> u64 {
        self.0[word].load(Ordering::Relaxed)
    }

    fn set(self, word: usize, value: u64) {
        self.0[word].store(value, Ordering::Relaxed);
    }

    fn half(self, word: usize, high: bool) -> u32 {
        (self.get(word) >> if high { 32 } else { 0 }) as u32
    }

    /// Replaces half a word; the other half may be written by somebody else meanwhile.
    fn set_half(self, word: usize, high: bool, value: u32) {
        let replaced = |old: u64| Some(if high { join(old as u32, value) } else { join(value, (old >> 32) as u32) });
        // The closure always gives a value, so this always succeeds.
        let _ = self.0[word].fetch_update(Ordering::Relaxed, Ordering::Relaxed, replaced);
    }

    fn tuple(self, first: usize) -> [u64; TUPLE_WORDS] {
        std::array::from_fn(|word| self.get(first + word))
    }

    /// The words of the tuple of `direction`.
    #[inline]
    pub(super) fn tuple_words(self, direction: Direction) -> [u64; TUPLE_WORDS] {
        self.tuple(match direction {
            Direction::Original => ORIGINAL,
            Direction::Reply => REPLY,
        })
    }

    /// Writes both tuples.
    pub(super) fn set_tuples(self, original: &Tuple, reply: &Tuple) {
        let first = original.words().into_iter().enumerate();
        first.for_each(|(word, value)| self.set(ORIGINAL + word, value));
        let second = reply.words().into_iter().enumerate();
        second.for_each(|(word, value)| self.set(REPLY + word, value));
    }

    /// Generation and time last seen.
    #[inline]
    pub(super) fn life(self) -> (u32, u32) {
        let word = self.get(LIFE);
        ((word >> 32) as u32, word as u32)
    }

    /// Asks the processor for generation and time last seen.
    #[inline]
    pub(super) fn prefetch(self) {
        prefetch(&self.0[LIFE]);
    }

    /// Asks the processor for both lines.
    #[inline]
    pub(super) fn prefetch_whole(self) {
        prefetch(&self.0[ORIGINAL]);
        prefetch(&self.0[REPLY]);
    }

    /// Replaces the time last seen, unless generation or time are no longer `expected`.
    pub(super) fn exchange_life(self, expected: (u32, u32), new: (u32, u32)) -> bool {
        let word = |(generation, seen_ms)| join(seen_ms, generation);
        self.0[LIFE].compare_exchange(word(expected), word(new), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// State, flags and time opened; `None` for an entry no connection has.
    #[inline]
    pub(super) fn status(self) -> Option<Status> {
        let word = self.get(STATUS);
        let flags = ConnectionFlags((word >> 16) as u16);
        let state = ConnectionState::from_number(word as u8).filter(|_| flags.has(ConnectionFlags::IN_USE))?;
        let replied = flags.has(ConnectionFlags::REPLIED);
        let progress = Progress { state, fins: (word >> 8) as u8, replied };
        let flags = flags.without(ConnectionFlags::IN_USE).without(ConnectionFlags::REPLIED);
        Some(Status { progress, flags, opened_ms: (word >> 32) as u32 })
    }

    pub(super) fn set_status(self, status: Option<Status>) {
        let word = status.map_or(0, |Status { progress, flags, opened_ms }| {
            let replied = if progress.replied { ConnectionFlags::REPLIED } else { ConnectionFlags::NONE };
            let flags = flags.with(ConnectionFlags::IN_USE).with(replied);
            let low = u32::from(progress.state as u8) | u32::from(progress.fins) << 8 | u32::from(flags.0) << 16;
            join(low, opened_ms)
        });
        // Behind all else that was written: whoever finds the entry after this process was killed finds it whole.
        self.0[STATUS].store(word, Ordering::Release);
    }

    /// The node behind this one in the chain that it is part of as `direction`.
    #[inline]
    pub(super) fn behind_in_chain(self, direction: Direction) -> u32 {
        self.half(CHAIN, direction == Direction::Reply)
    }

    pub(super) fn set_behind_in_chain(self, direction: Direction, node: u32) {
        self.set_half(CHAIN, direction == Direction::Reply, node);
    }

    /// Service and endpoint.
    pub(super) fn service(self) -> (u32, u32) {
        (self.half(SERVICE, false), self.half(SERVICE, true))
    }

    pub(super) fn set_service(self, (service, endpoint): (u32, u32)) {
        self.set(SERVICE, join(service, endpoint));
    }

    /// Entries before and behind this one in its shard's list.
    pub(super) fn neighbours(self) -> (u32, u32) {
        (self.half(LIST, false), self.half(LIST, true))
    }

    pub(super) fn set_before(self, index: u32) {
        self.set_half(LIST, false, index);
    }

    pub(super) fn set_behind(self, index: u32) {
        self.set_half(LIST, true, index);
    }

    /// Where packets of `direction` are cached.
    pub(super) fn place(self, direction: Direction) -> Option<CachePlace> {
        CachePlace::from_number(self.half(PLACES, direction == Direction::Reply))
    }

    pub(super) fn set_place(self, direction: Direction, place: Option<CachePlace>) {
        self.set_half(PLACES, direction == Direction::Reply, CachePlace::number(place));
    }
}

const fn join(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_as_written() {
        let words: [AtomicU64; 32] = std::array::from_fn(|_| AtomicU64::new(0));
        let entry = Entry::at(&words, 1);
        assert_eq!(entry.status(), None);
        let progress = Progress { state: ConnectionState::Replied, fins: 2, replied: true };
        let status = Status { progress, flags: ConnectionFlags::SERVICE, opened_ms: 77 };
        entry.set_status(Some(status));
        assert_eq!(entry.status(), Some(status));
        entry.set_behind_in_chain(Direction::Reply, 5);
        entry.set_behind_in_chain(Direction::Original, 6);
        let chain = [Direction::Original, Direction::Reply].map(|direction| entry.behind_in_chain(direction));
        assert_eq!(chain, [6, 5]);
        let place = CachePlace::new(3, 0x12_3456);
        entry.set_place(Direction::Original, place);
        assert_eq!((entry.place(Direction::Original), entry.place(Direction::Reply).is_some()), (place, true));
        entry.set_place(Direction::Reply, None);
        assert_eq!(entry.place(Direction::Reply), None);
        assert!(entry.exchange_life((0, 0), (1, 9)) && !entry.exchange_life((0, 0), (1, 9)));
        assert_eq!(entry.life(), (1, 9));
        assert!(words[..16].iter().all(|word| word.load(Ordering::Relaxed) == 0), "entry 0 was written");
    }
}
