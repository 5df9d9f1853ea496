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
use std::sync::atomic::AtomicU64;

use super::entry::{Entry, NONE};
use super::tuple::TUPLE_WORDS;
use super::{Direction, Tuple};
use crate::limits::EVICTION_STEP;

/// What a shard's lock guards.
#[derive(Debug)]
pub(super) struct Shard {
    /// Entries of this shard.
    range: Range<u32>,
    /// First nodes of the chains, a power of two of them.
    buckets: Box<[u32]>,
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
    /// An empty shard of the entries in `range`.
    pub(super) fn new(range: Range<u32>) -> Self {
        // Two places for each connection, since a translated one is found by two tuples that differ.
        let buckets = (2 * range.len()).next_power_of_two();
        Self {
            buckets: vec![NONE; buckets].into_boxed_slice(),
            free: NONE,
            unused: range.start,
            early: (NONE, NONE),
            hand: range.start,
            live: 0,
            range,
        }
    }

    /// Connections whose entries are in this shard.
    pub(super) fn live(&self) -> u32 {
        self.live
    }

    /// The numbers of this shard's entries that were ever used.
    pub(super) fn used(&self) -> Range<u32> {
        self.range.start..self.unused
    }

    fn bucket(&self, hash: u64) -> usize {
        // The low bits have chosen the shard.
        (hash >> 16) as usize & (self.buckets.len() - 1)
    }

    /// The connection that packets of this tuple belong to, and their direction.
    #[inline]
    pub(super) fn find(&self, words: &[AtomicU64], tuple: &Tuple, hash: u64) -> Option<(u32, Direction)> {
        let wanted = tuple.words();
        let mut at = self.buckets[self.bucket(hash)];
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
        let bucket = self.bucket(hash);
        Entry::at(words, index).set_behind_in_chain(direction, self.buckets[bucket]);
        self.buckets[bucket] = node(index, direction);
    }

    /// Takes the connection's tuple of `direction` out of its chain.
    pub(super) fn unlink(&mut self, words: &[AtomicU64], index: u32, direction: Direction, hash: u64) {
        let bucket = self.bucket(hash);
        let gone = node(index, direction);
        let behind = Entry::at(words, index).behind_in_chain(direction);
        if self.buckets[bucket] == gone {
            self.buckets[bucket] = behind;
            return;
        }
        let mut at = self.buckets[bucket];
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
