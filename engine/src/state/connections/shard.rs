//! One shard: its entries' free list, the hash chains of tuples that fall into it, and who gives way first.
//!
//! All of it under the shard's lock. Entries are numbered over the whole table; a shard has those of one contiguous
//! range for the connections whose original tuple falls into it. A chain's nodes are entry number times two, plus one
//! for the reply tuple: that of a translated connection may lie in another shard than its entry.
//!
//! **Who gives way.** A list holds, oldest first, the connections that nobody answered, that are half open or over.
//! The first of it goes when a new one finds no room, so a flood of openings replaces itself. Only where the list is
//! empty goes an established one: the longest silent of [`EVICTION_STEP`] from a hand on.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::entry::{Entry, NONE};
use super::tuple::TUPLE_WORDS;
use super::{Direction, Tuple};
use crate::limits::EVICTION_STEP;

/// First nodes of the chains of all shards: a shard's are written under its lock, and read by anybody as a hint of what
/// memory a look will need.
#[derive(Debug)]
pub(super) struct ChainHeads {
    heads: Box<[AtomicU32]>,
    /// Heads of one shard, a power of two.
    in_shard: usize,
}

impl ChainHeads {
    /// Empty chains of `shards` shards with `entries` entries each.
    pub(super) fn new(shards: usize, entries: u32) -> Self {
        // Two places for each connection, since a translated one is found by two tuples that differ.
        let in_shard = (2 * entries as usize).next_power_of_two();
        Self { heads: (0..shards * in_shard).map(|_| AtomicU32::new(NONE)).collect(), in_shard }
    }

    /// The head of the chain that `hash` leads to.
    #[inline]
    pub(super) fn head(&self, shard: usize, hash: u64) -> &AtomicU32 {
        // The low bits have chosen the shard.
        &self.heads[shard * self.in_shard + ((hash >> 16) as usize & (self.in_shard - 1))]
    }

    /// The entry that a look for `hash` meets first.
    #[inline]
    pub(super) fn first(&self, shard: usize, hash: u64) -> Option<u32> {
        let node = self.head(shard, hash).load(Ordering::Relaxed);
        (node != NONE).then(|| parts(node).0)
    }
}

/// What a shard's lock guards.
#[derive(Debug)]
pub(super) struct Shard {
    /// Entries of this shard.
    range: Range<u32>,
    number: usize,
    heads: Arc<ChainHeads>,
    /// Numbers of free entries, linked through their list word; the rest was never used.
    free: u32,
    unused: u32,
    /// First and last of those that give way early.
    early: (u32, u32),
    hand: u32,
    live: u32,
}

const fn node(index: u32, direction: Direction) -> u32 {
    index << 1 | matches!(direction, Direction::Reply) as u32
}

const fn parts(node: u32) -> (u32, Direction) {
    (node >> 1, if node & 1 == 0 { Direction::Original } else { Direction::Reply })
}

/// Whether two tuples are one. Word by word, since an array's own comparison calls the C library for one of five words.
#[inline]
fn are_same(one: &[u64; TUPLE_WORDS], other: &[u64; TUPLE_WORDS]) -> bool {
    one.iter().zip(other).fold(0, |differs, (one, other)| differs | (one ^ other)) == 0
}

impl Shard {
    /// Empty shard number `number`, of the entries in `range`.
    pub(super) fn new(number: usize, range: Range<u32>, heads: Arc<ChainHeads>) -> Self {
        Self { number, heads, free: NONE, unused: range.start, early: (NONE, NONE), hand: range.start, live: 0, range }
    }

    /// Connections whose entries are in this shard.
    pub(super) fn live(&self) -> u32 {
        self.live
    }

    /// The numbers of this shard's entries that were ever used.
    pub(super) fn used(&self) -> Range<u32> {
        self.range.start..self.unused
    }

    fn head(&self, hash: u64) -> &AtomicU32 {
        self.heads.head(self.number, hash)
    }

    /// The entry that the next connection will get, or whose connection will give way to it.
    pub(super) fn next(&self) -> u32 {
        match self.free {
            NONE if self.unused < self.range.end => self.unused,
            NONE => self.early.0,
            free => free,
        }
    }

    /// The connection that packets of this tuple belong to, and their direction.
    #[inline]
    pub(super) fn find(&self, words: &[AtomicU64], tuple: &Tuple, hash: u64) -> Option<(u32, Direction)> {
        let wanted = tuple.words();
        let mut at = self.head(hash).load(Ordering::Relaxed);
        while at != NONE {
            let (index, as_direction) = parts(at);
            let entry = Entry::at(words, index);
            // A node of a connection without translation stands for both of its tuples.
            for direction in [as_direction, as_direction.reversed()] {
                if are_same(&entry.tuple_words(direction), &wanted) {
                    return Some((index, direction));
                }
            }
            at = entry.behind_in_chain(as_direction);
        }
        None
    }

    /// Puts the connection's tuple of `direction` into its chain.
    pub(super) fn link(&mut self, words: &[AtomicU64], index: u32, direction: Direction, hash: u64) {
        let head = self.head(hash);
        Entry::at(words, index).set_behind_in_chain(direction, head.load(Ordering::Relaxed));
        head.store(node(index, direction), Ordering::Relaxed);
    }

    /// Takes the connection's tuple of `direction` out of its chain.
    pub(super) fn unlink(&mut self, words: &[AtomicU64], index: u32, direction: Direction, hash: u64) {
        let head = self.head(hash);
        let gone = node(index, direction);
        let behind = Entry::at(words, index).behind_in_chain(direction);
        let mut at = head.load(Ordering::Relaxed);
        if at == gone {
            return head.store(behind, Ordering::Relaxed);
        }
        while at != NONE {
            let (index, direction) = parts(at);
            let entry = Entry::at(words, index);
            at = entry.behind_in_chain(direction);
            if at == gone {
                return entry.set_behind_in_chain(direction, behind);
            }
        }
        debug_assert!(false, "entry {index} is in no chain");
    }

    /// Takes a free entry.
    pub(super) fn allocate(&mut self, words: &[AtomicU64]) -> Option<u32> {
        let index = if self.free != NONE {
            let index = self.free;
            self.free = Entry::at(words, index).neighbours().1;
            index
        } else if self.unused < self.range.end {
            self.unused += 1;
            self.unused - 1
        } else {
            return None;
        };
        self.live += 1;
        Some(index)
    }

    /// Gives an entry back.
    pub(super) fn release(&mut self, words: &[AtomicU64], index: u32) {
        Entry::at(words, index).set_behind(self.free);
        self.free = index;
        self.live -= 1;
    }

    /// Puts a connection behind the others that give way early.
    pub(super) fn append_early(&mut self, words: &[AtomicU64], index: u32) {
        let (first, last) = self.early;
        let entry = Entry::at(words, index);
        entry.set_before(last);
        entry.set_behind(NONE);
        if last == NONE {
            self.early = (index, index);
        } else {
            Entry::at(words, last).set_behind(index);
            self.early = (first, index);
        }
    }

    /// Takes a connection out of those that give way early.
    pub(super) fn remove_early(&mut self, words: &[AtomicU64], index: u32) {
        let (before, behind) = Entry::at(words, index).neighbours();
        if before == NONE {
            self.early.0 = behind
        } else {
            Entry::at(words, before).set_behind(behind)
        }
        if behind == NONE { self.early.1 = before } else { Entry::at(words, behind).set_before(before) }
    }

    /// The connection that gives way to a new one; `None` only where all entries are free.
    pub(super) fn victim(&mut self, words: &[AtomicU64], now_ms: u32) -> Option<u32> {
        if self.early.0 != NONE {
            return Some(self.early.0);
        }
        let step = EVICTION_STEP.min(self.range.len()) as u32;
        let mut longest = None;
        for _ in 0..step {
            let index = self.hand;
            self.hand = if index + 1 < self.range.end { index + 1 } else { self.range.start };
            let entry = Entry::at(words, index);
            if entry.status().is_some() {
                longest = longest.max(Some((now_ms.wrapping_sub(entry.life().1), index)));
            }
        }
        longest.map(|(_, index)| index)
    }
}
