//! Ports of fragmented packets, by what their fragments share: learned from the first fragment, asked for by later ones.
//!
//! Only the first fragment has the layer-4 header that names its connection. A key is what RFC 791 and RFC 8200 section
//! 4.5 say a packet's fragments share, and the segment. A later fragment that comes before it is held by its worker
//! (`worker/late_fragments.rs`), and a place here says which workers hold some.
//!
//! Fixed capacity, [`FRAGMENTS`] places of 64 B, taken at start: a key may stand in [`FRAGMENT_WAYS`] of them, and if all
//! are in force the oldest gives way. A place is in force for [`FRAGMENT_TIMEOUT`]; one that is waited at gives way to any
//! first fragment, so that fragments without a first push nothing out. One lock a shard, for one look at those places, on
//! the slow path only.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::Time;
use crate::flow_cache::{HashKey, HashWords};
use crate::limits::{FRAGMENT_SHARDS, FRAGMENT_TIMEOUT, FRAGMENT_WAYS, FRAGMENTS, LATE_FRAGMENT_TIMEOUT, WORKERS};
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
    /// It came by an uplink and is the host's.
    Hosts,
}

/// Numbers of workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerSet(u16);

const _: () = assert!(WORKERS <= u16::BITS as usize);

impl WorkerSet {
    /// Those numbers in order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..WORKERS).filter(move |worker| self.0 & 1 << worker != 0)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// What became of the wish to hear of a first fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// Whoever decides it is told of this worker.
    Noted,
    /// It was decided meanwhile.
    Known,
    /// There is no room to note it.
    Full,
}

/// What a first fragment left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Whether another packet's place gave way that was still in force.
    pub evicted: bool,
    /// Workers that hold later fragments of the packet.
    pub awaited_by: WorkerSet,
}

/// What a place says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// What the first fragment said.
    First(Fragmented),
    /// These workers hold later ones.
    Awaited(WorkerSet),
}

#[derive(Clone, Copy, Debug)]
struct Place {
    key: FragmentKey,
    said: Said,
    at: Time,
}

const _: () = assert!(size_of::<Place>() == 64);

impl Place {
    const EMPTY: Place = Place { key: FragmentKey([0; 6]), said: Said::First(Fragmented::Untracked), at: Time::ZERO };

    /// What it says, while it is in force.
    fn holds(&self, now: Time) -> Option<Said> {
        let timeout = match self.said {
            Said::First(_) => FRAGMENT_TIMEOUT,
            Said::Awaited(_) => LATE_FRAGMENT_TIMEOUT,
        };
        (self.key != Self::EMPTY.key && now.since(self.at) < timeout).then_some(self.said)
    }

    /// What the first fragment said, while that is in force.
    fn first(&self, now: Time) -> Option<Fragmented> {
        match self.holds(now)? {
            Said::First(said) => Some(said),
            Said::Awaited(_) => None,
        }
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
        shard[set].iter().find(|place| place.key == *key)?.first(now)
    }

    /// Notes what a first fragment says.
    pub fn remember(&self, key: FragmentKey, said: Fragmented, now: Time) -> Remembered {
        let (mut shard, set) = self.shard(&key);
        let rank = |place: &Place| (place.key != key, place.first(now).is_some(), place.holds(now).is_some(), place.at);
        let Some(place) = shard[set].iter_mut().min_by_key(|place| rank(place)) else { return Remembered::default() };
        let is_same = place.key == key;
        let awaited_by = match place.holds(now) {
            Some(Said::Awaited(workers)) if is_same => workers,
            _ => WorkerSet::default(),
        };
        let evicted = !is_same && place.first(now).is_some();
        *place = Place { key, said: Said::First(said), at: now };
        Remembered { evicted, awaited_by }
    }

    /// Asks for worker `worker` to be told when the first fragment of this packet is decided.
    pub fn await_first(&self, key: &FragmentKey, worker: usize, now: Time) -> Awaited {
        let (mut shard, set) = self.shard(key);
        let rank = |place: &Place| (place.key != *key, place.holds(now).is_some(), place.at);
        let free = shard[set].iter_mut().filter(|place| place.key == *key || place.first(now).is_none());
        let Some(place) = free.min_by_key(|place| rank(place)) else { return Awaited::Full };
        let mut workers = WorkerSet(1 << worker);
        if place.key == *key {
            match place.holds(now) {
                Some(Said::First(_)) => return Awaited::Known,
                Some(Said::Awaited(others)) => workers.0 |= others.0,
                None => {}
            }
        }
        *place = Place { key: *key, said: Said::Awaited(workers), at: now };
        Awaited::Noted
    }

    /// What is added to the number that the fragments of a packet with these headers share where its addresses are replaced
    /// (`edit/renumber.rs` says why).
    #[must_use]
    pub fn renumbering(&self, headers: &Headers) -> u32 {
        let halves = |bytes: &[u8; 16]| {
            let bits = u128::from_le_bytes(*bytes);
            [bits as u64, (bits >> 64) as u64]
        };
        let ([a, b], [c, d]) = (halves(&headers.source), halves(&headers.destination));
        self.hash_key.hash(&FragmentKey([a, b, c, d, 0, 2])) as u32
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
        assert_eq!(table.remember(key(1), said(7), Time::ZERO), Remembered::default());
        let almost = Time::ZERO + (FRAGMENT_TIMEOUT - std::time::Duration::from_millis(1));
        assert_eq!(table.find(&key(1), almost), Some(said(7)));
        assert_eq!(table.find(&key(2), almost), None);
        assert_eq!(table.remember(key(1), said(8), almost), Remembered::default());
        assert_eq!(table.find(&key(1), almost), Some(said(8)), "a number used again");
        assert_eq!(table.find(&key(1), almost + FRAGMENT_TIMEOUT), None);
    }

    #[test]
    fn a_flood_takes_no_more_than_the_places_and_the_newest_stay() {
        let table = Fragments::new(HashKey::from_seed(1));
        let at = |number: u64| Time::ZERO + std::time::Duration::from_micros(number);
        let flood = 20 * FRAGMENTS as u64;
        let remember = |number| table.remember(key(number), Fragmented::Untracked, at(number));
        let spare = (0..flood).filter(|number| !remember(*number).evicted).count();
        assert_eq!(spare, FRAGMENTS);
        assert_eq!(table.find(&key(flood - 1), at(flood)), Some(Fragmented::Untracked));
        assert_eq!(table.find(&key(0), at(flood)), None);
    }

    #[test]
    fn workers_that_wait_are_named_to_the_first_fragment() {
        let table = Fragments::new(HashKey::from_seed(1));
        assert_eq!([3, 9, 3].map(|worker| table.await_first(&key(1), worker, Time::ZERO)), [Awaited::Noted; 3]);
        assert_eq!(table.find(&key(1), Time::ZERO), None);
        let told = table.remember(key(1), Fragmented::Hosts, Time::ZERO);
        assert_eq!(told.awaited_by.iter().collect::<Vec<_>>(), [3, 9]);
        assert!(table.remember(key(1), Fragmented::Hosts, Time::ZERO).awaited_by.is_empty(), "told once");
        assert_eq!(table.await_first(&key(1), 3, Time::ZERO), Awaited::Known);
        assert_eq!(table.await_first(&key(2), 3, Time::ZERO), Awaited::Noted);
        let later = Time::ZERO + LATE_FRAGMENT_TIMEOUT;
        assert!(table.remember(key(2), Fragmented::Hosts, later).awaited_by.is_empty(), "they have given up");
    }

    #[test]
    fn who_waits_in_vain_pushes_no_packet_out() {
        let table = Fragments::new(HashKey::from_seed(1));
        let known = 0..FRAGMENTS as u64;
        let evicted =
            known.clone().filter(|number| table.remember(key(*number), Fragmented::Untracked, Time::ZERO).evicted);
        let evicted = evicted.count();
        let orphans = || 1_000_000..1_000_000 + 20 * FRAGMENTS as u64;
        let full = orphans().filter(|number| table.await_first(&key(*number), 0, Time::ZERO) == Awaited::Full).count();
        assert!(full > 0, "no room is made for those who wait");
        let found = known.clone().filter(|number| table.find(&key(*number), Time::ZERO).is_some()).count();
        assert_eq!(found, FRAGMENTS - evicted);
        // Nor do they keep a first fragment from its place.
        let more = (2_000_000..2_000_100).filter(|number| {
            table.remember(key(*number), Fragmented::Untracked, Time::ZERO);
            table.find(&key(*number), Time::ZERO).is_some()
        });
        assert_eq!(more.count(), 100);
    }
}
