//! Ports of fragmented packets, by what their fragments share: learned from the first fragment, asked for by later ones.
//!
//! Only the first fragment has the layer-4 header that names its connection. A key is what RFC 791 and RFC 8200 section
//! 4.5 say a packet's fragments share, and the segment. Ports steer fragments by their addresses alone, so those of one
//! packet meet one worker in the order they were sent.
//!
//! Fixed capacity, [`FRAGMENTS`] places of 64 B, taken at start: a key may stand in [`FRAGMENT_WAYS`] of them, and if all
//! are in force the oldest gives way. A place is in force for [`FRAGMENT_TIMEOUT`]. One lock a shard, for one look at those
//! places, on the slow path only.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::Time;
use crate::flow_cache::{HashKey, HashWords};
use crate::limits::{FRAGMENT_SHARDS, FRAGMENT_TIMEOUT, FRAGMENT_WAYS, FRAGMENTS};
use crate::packet::wire::{ipv4, ipv6};
use crate::packet::{Headers, Network};
use crate::tables::SegmentIndex;

/// What the fragments of one packet share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentKey([u64; 6]);

impl FragmentKey {
    /// The key of a fragment of `segment` with these headers; `packet` begins with its IP header. `None` if there is no
    /// number that fragments share.
    #[must_use]
    pub fn of(headers: &Headers, packet: &[u8], segment: SegmentIndex) -> Option<Self> {
        // IPv4 numbers packets for each protocol apart, IPv6 does not.
        let (number, protocol) = match headers.network {
            Network::Ipv4 => (u32::from(ipv4::identification(packet)?), headers.protocol),
            Network::Ipv6 => (ipv6::fragment_identification(packet)?, 0),
            Network::Arp | Network::Other => return None,
        };
        let halves = |bytes: &[u8; 16]| {
            let bits = u128::from_le_bytes(*bytes);
            [bits as u64, (bits >> 64) as u64]
        };
        let ([a, b], [c, d]) = (halves(&headers.source), halves(&headers.destination));
        let is_ipv6 = u64::from(headers.network == Network::Ipv6);
        let facts = u64::from(number) | u64::from(segment.0) << 32 | u64::from(protocol) << 48 | is_ipv6 << 56;
        // A place that was never used has zeros only.
        Some(Self([a, b, c, d, facts, 1]))
    }
}

impl HashWords for FragmentKey {
    #[inline]
    fn words(&self) -> &[u64] {
        &self.0
    }
}

/// What the first fragment said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragmented {
    /// Its packet belongs to a connection, with these ports, as in [`Headers::ports`].
    Tracked([u16; 2]),
    /// It is of a kind that has no connection.
    Untracked,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    key: FragmentKey,
    said: Fragmented,
    at: Time,
}

impl Place {
    const EMPTY: Place = Place { key: FragmentKey([0; 6]), said: Fragmented::Untracked, at: Time::ZERO };

    fn holds(&self, now: Time) -> bool {
        self.key != Self::EMPTY.key && now.since(self.at) < FRAGMENT_TIMEOUT
    }
}

type Ways = [Place; FRAGMENT_WAYS];

/// The table.
#[derive(Debug)]
pub struct Fragments {
    shards: Box<[Mutex<Box<[Ways]>>]>,
    hash_key: HashKey,
}

impl Fragments {
    /// An empty table.
    #[must_use]
    pub fn new(hash_key: HashKey) -> Self {
        let sets = FRAGMENTS / FRAGMENT_SHARDS / FRAGMENT_WAYS;
        let shard = || Mutex::new(vec![[Place::EMPTY; FRAGMENT_WAYS]; sets].into_boxed_slice());
        Self { shards: (0..FRAGMENT_SHARDS).map(|_| shard()).collect(), hash_key }
    }

    fn shard(&self, key: &FragmentKey) -> (MutexGuard<'_, Box<[Ways]>>, usize) {
        let hash = self.hash_key.hash(key);
        let shard = self.shards[hash as usize % FRAGMENT_SHARDS].lock().unwrap_or_else(PoisonError::into_inner);
        let set = (hash >> 32) as usize % shard.len();
        (shard, set)
    }

    /// What the first fragment of this packet said, if it came lately.
    #[must_use]
    pub fn find(&self, key: &FragmentKey, now: Time) -> Option<Fragmented> {
        let (shard, set) = self.shard(key);
        shard[set].iter().find(|place| place.key == *key && place.holds(now)).map(|place| place.said)
    }

    /// Notes what a first fragment says; false if another packet's gave way that was still in force.
    pub fn remember(&self, key: FragmentKey, said: Fragmented, now: Time) -> bool {
        let (mut shard, set) = self.shard(&key);
        let rank = |place: &Place| (place.key != key, place.holds(now), place.at);
        let Some(place) = shard[set].iter_mut().min_by_key(|place| rank(place)) else { return false };
        let is_spare = place.key == key || !place.holds(now);
        *place = Place { key, said, at: now };
        is_spare
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> FragmentKey {
        FragmentKey([1, 2, 3, 4, number, 1])
    }

    #[test]
    fn a_packet_is_known_for_its_time_and_may_be_sent_anew() {
        let table = Fragments::new(HashKey::from_seed(1));
        let said = |port| Fragmented::Tracked([port, 53]);
        assert_eq!(table.find(&key(1), Time::ZERO), None);
        assert!(table.remember(key(1), said(7), Time::ZERO));
        let almost = Time::ZERO + (FRAGMENT_TIMEOUT - std::time::Duration::from_millis(1));
        assert_eq!(table.find(&key(1), almost), Some(said(7)));
        assert_eq!(table.find(&key(2), almost), None);
        assert!(table.remember(key(1), said(8), almost));
        assert_eq!(table.find(&key(1), almost), Some(said(8)), "a number used again");
        assert_eq!(table.find(&key(1), almost + FRAGMENT_TIMEOUT), None);
    }

    #[test]
    fn a_flood_takes_no_more_than_the_places_and_the_newest_stay() {
        let table = Fragments::new(HashKey::from_seed(1));
        let at = |number: u64| Time::ZERO + std::time::Duration::from_micros(number);
        let flood = 20 * FRAGMENTS as u64;
        let spare =
            (0..flood).filter(|number| table.remember(key(*number), Fragmented::Untracked, at(*number))).count();
        assert_eq!(spare, FRAGMENTS);
        assert_eq!(table.find(&key(flood - 1), at(flood)), Some(Fragmented::Untracked));
        assert_eq!(table.find(&key(0), at(flood)), None);
    }
}
