//! The rewrites that a worker's flows share: each distinct one once, counted, named by a 16-bit number.
//!
//! A node needs about one rewrite for each local pod and each peer, so a few lines stay in the first-level cache
//! while a million flows pass; headers inside the entries would cost half as much again (measured at a million
//! flows). Bounded by [`limits::REWRITES`]; a flow whose rewrite finds no room is not cached. Lookup by value runs
//! on a miss only: chained hashing over two arrays of numbers, which never grows and never rehashes.

use std::net::IpAddr;

use crate::edit::{CompiledRewrite, Rewrite};
use crate::limits;
use crate::packet::Mac;

const NONE: u16 = u16::MAX;
const HEADS: usize = (2 * limits::REWRITES).next_power_of_two();

const _: () = assert!(limits::REWRITES < NONE as usize);

/// What unused places hold.
const UNUSED: Rewrite =
    Rewrite { decapsulate: false, pop_tags: 0, route: None, push_tag: None, encapsulate: None, mtu: 0 };

/// See the module.
pub(super) struct Rewrites {
    compiled: Box<[CompiledRewrite]>,
    references: Box<[u32]>,
    /// Next in the chain of the same hash, or in the list of free numbers.
    next: Box<[u16]>,
    heads: Box<[u16]>,
    free: u16,
    used: usize,
}

impl Rewrites {
    /// An empty table of [`limits::REWRITES`] places.
    pub(super) fn new() -> Self {
        let places = limits::REWRITES as u16;
        let mut next: Box<[u16]> = (1..=places).collect();
        next[places as usize - 1] = NONE;
        Self {
            compiled: vec![CompiledRewrite::new(&UNUSED); limits::REWRITES].into_boxed_slice(),
            references: vec![0; limits::REWRITES].into_boxed_slice(),
            next,
            heads: vec![NONE; HEADS].into_boxed_slice(),
            free: 0,
            used: 0,
        }
    }

    /// Distinct rewrites in use.
    pub(super) fn len(&self) -> usize {
        self.used
    }

    /// The rewrite with this number.
    #[inline]
    pub(super) fn get(&self, number: u16) -> &CompiledRewrite {
        &self.compiled[number as usize]
    }

    /// The number of `rewrite`, with one more reference to it; `None` if there is no room for another rewrite.
    pub(super) fn acquire(&mut self, rewrite: &Rewrite) -> Option<u16> {
        let head = head(rewrite);
        let mut at = self.heads[head];
        while at != NONE {
            if self.compiled[at as usize].rewrite == *rewrite {
                self.references[at as usize] += 1;
                return Some(at);
            }
            at = self.next[at as usize];
        }
        let number = self.free;
        if number == NONE {
            return None;
        }
        self.free = self.next[number as usize];
        self.next[number as usize] = self.heads[head];
        self.heads[head] = number;
        self.compiled[number as usize] = CompiledRewrite::new(rewrite);
        self.references[number as usize] = 1;
        self.used += 1;
        Some(number)
    }

    /// Takes one reference away; with the last one the number is free.
    pub(super) fn release(&mut self, number: u16) {
        let at = number as usize;
        debug_assert!(self.references[at] > 0, "rewrite {number} released more often than acquired");
        self.references[at] = self.references[at].saturating_sub(1);
        if self.references[at] != 0 {
            return;
        }
        self.unchain(number);
        self.next[at] = self.free;
        self.free = number;
        self.used -= 1;
    }

    fn unchain(&mut self, number: u16) {
        let head = head(&self.compiled[number as usize].rewrite);
        if self.heads[head] == number {
            self.heads[head] = self.next[number as usize];
            return;
        }
        let mut at = self.heads[head];
        while at != NONE {
            let after = self.next[at as usize];
            if after == number {
                self.next[at as usize] = self.next[number as usize];
                return;
            }
            at = after;
        }
    }
}

/// The chain that `rewrite` belongs to. Of the fields, those that differ between destinations; none of them is
/// chosen by who sends packets, so no secret is needed.
fn head(rewrite: &Rewrite) -> usize {
    let mut hash = u64::from(rewrite.mtu)
        | u64::from(rewrite.push_tag.map_or(0, |tag| tag.identifier)) << 32
        | u64::from(rewrite.pop_tags) << 48
        | u64::from(rewrite.decapsulate) << 56;
    if let Some(macs) = &rewrite.route {
        hash = mix(mix(hash, mac_bits(macs.destination)), mac_bits(macs.source));
    }
    if let Some(outer) = &rewrite.encapsulate {
        let destination = match outer.destination {
            IpAddr::V4(address) => u64::from(address.to_bits()),
            IpAddr::V6(address) => mix(address.to_bits() as u64, (address.to_bits() >> 64) as u64),
        };
        hash = mix(mix(hash, destination), u64::from(outer.vni.number()));
    }
    mix(hash, 0) as usize & (HEADS - 1)
}

fn mix(hash: u64, word: u64) -> u64 {
    let product = u128::from(hash ^ 0x9e37_79b9_7f4a_7c15) * u128::from(word ^ 0xbf58_476d_1ce4_e5b9);
    product as u64 ^ (product >> 64) as u64
}

fn mac_bits(mac: Mac) -> u64 {
    let [a, b, c, d, e, f] = mac.0;
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use proptest::prelude::*;

    fn rewrite(number: u32) -> Rewrite {
        Rewrite { mtu: number, ..UNUSED }
    }

    #[test]
    fn a_full_table_refuses_new_values_and_serves_known_ones() {
        let mut rewrites = Rewrites::new();
        let numbers: Vec<_> = (0..limits::REWRITES as u32).map(|mtu| rewrites.acquire(&rewrite(mtu))).collect();
        assert!(numbers.iter().all(Option::is_some) && rewrites.len() == limits::REWRITES);
        assert_eq!(rewrites.acquire(&rewrite(u32::MAX)), None);
        assert_eq!(rewrites.acquire(&rewrite(5)), numbers[5]);
        for number in numbers.into_iter().chain([rewrites.acquire(&rewrite(5))]).flatten() {
            rewrites.release(number);
        }
        assert_eq!(rewrites.len(), 1, "number 5 was acquired once more");
        assert!(rewrites.acquire(&rewrite(u32::MAX)).is_some());
    }

    proptest! {
        #[test]
        fn agrees_with_a_map_of_counts(steps in prop::collection::vec((any::<bool>(), 0u32..40), 1..400)) {
            let mut rewrites = Rewrites::new();
            let mut model: HashMap<u32, (u16, u32)> = HashMap::new();
            for (acquires, mtu) in steps {
                if acquires {
                    let number = rewrites.acquire(&rewrite(mtu)).expect("room");
                    prop_assert_eq!(rewrites.get(number).rewrite, rewrite(mtu));
                    let known = model.entry(mtu).or_insert((number, 0));
                    prop_assert_eq!(known.0, number);
                    known.1 += 1;
                } else if let Some((number, count)) = model.remove(&mtu) {
                    rewrites.release(number);
                    if count > 1 {
                        model.insert(mtu, (number, count - 1));
                    }
                }
                prop_assert_eq!(rewrites.len(), model.len());
            }
            for (number, count) in model.into_values() {
                (0..count).for_each(|_| rewrites.release(number));
            }
            prop_assert_eq!(rewrites.len(), 0);
        }
    }
}
