//! The packets of one vector on their way through the lookup: keys, hashes and found slots, in arrays by stage.
//!
//! Made once and used again for each vector; 8 KiB. Packets are named by their number in the vector.

use super::bucket::NO_SLOT;
use super::key::{self, FlowKey, Ipv4Key, Ipv6Key};
use crate::limits::VECTOR_PACKETS;
use crate::packet::Headers;
use crate::packet::parse::Network;
use crate::packet::parse::plain::Front;

/// Epoch of a lane that was not looked up.
pub(super) const NOT_LOOKED_UP: u64 = 0;

/// The packets of one address family.
pub(super) struct Lane<K> {
    pub(super) count: usize,
    pub(super) keys: [K; VECTOR_PACKETS],
    pub(super) hashes: [u64; VECTOR_PACKETS],
    pub(super) slots: [u32; VECTOR_PACKETS],
    pub(super) cacheable: [bool; VECTOR_PACKETS],
    /// What the table's epoch was at the lookup.
    pub(super) epoch: u64,
}

impl<K: FlowKey> Lane<K> {
    const fn new() -> Self {
        Self {
            count: 0,
            keys: [K::EMPTY; VECTOR_PACKETS],
            hashes: [0; VECTOR_PACKETS],
            slots: [NO_SLOT; VECTOR_PACKETS],
            cacheable: [false; VECTOR_PACKETS],
            epoch: NOT_LOOKED_UP,
        }
    }

    fn clear(&mut self) {
        self.count = 0;
        self.epoch = NOT_LOOKED_UP;
    }

    #[inline]
    fn push(&mut self, key: K, cacheable: bool) -> u8 {
        let item = self.count % VECTOR_PACKETS;
        self.keys[item] = key;
        self.cacheable[item] = cacheable;
        self.hashes[item] = 0;
        self.count = item + 1;
        item as u8
    }
}

/// Where a packet's key lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It was not pushed.
    None,
    /// At this item of the IPv4 lane.
    Ipv4(u8),
    /// At this item of the IPv6 lane.
    Ipv6(u8),
}

/// The scratch of one vector's lookup.
pub struct LookupBatch {
    pub(super) ipv4: Lane<Ipv4Key>,
    pub(super) ipv6: Lane<Ipv6Key>,
    places: [Place; VECTOR_PACKETS],
}

impl std::fmt::Debug for LookupBatch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counts = (self.ipv4.count, self.ipv6.count);
        formatter.debug_struct("LookupBatch").field("packets", &counts).finish_non_exhaustive()
    }
}

impl Default for LookupBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl LookupBatch {
    /// An empty batch.
    #[must_use]
    pub const fn new() -> Self {
        Self { ipv4: Lane::new(), ipv6: Lane::new(), places: [Place::None; VECTOR_PACKETS] }
    }

    /// Forgets all packets: the start of a vector.
    #[inline]
    pub fn clear(&mut self) {
        self.ipv4.clear();
        self.ipv6.clear();
        self.places = [Place::None; VECTOR_PACKETS];
    }

    /// Adds the IP packet with number `packet_number` (each at most once), whose frame starts with `macs` and that
    /// came by `ingress`. False, and nothing added, for what is not IP or has a number beyond the vector.
    ///
    /// Push packets that only the slow path may serve (`flag::UNCACHEABLE`) too: they get the hash
    /// of their flow, are never found, and are never inserted.
    #[inline]
    pub fn push(&mut self, packet_number: usize, headers: &Headers, macs: &[u8; 12], ingress: u32) -> bool {
        let Some(place) = self.places.get_mut(packet_number).filter(|place| **place == Place::None) else {
            return false;
        };
        match headers.network {
            Network::Ipv4 => {
                let key = Ipv4Key::new(headers, macs, ingress);
                *place = Place::Ipv4(self.ipv4.push(key, key::cacheable(headers)));
                self.ipv4.epoch = NOT_LOOKED_UP;
            }
            Network::Ipv6 => {
                let key = Ipv6Key::new(headers, macs, ingress);
                *place = Place::Ipv6(self.ipv6.push(key, key::cacheable(headers)));
                self.ipv6.epoch = NOT_LOOKED_UP;
            }
            Network::Arp | Network::Other => return false,
        }
        true
    }

    /// Adds the plain packet with number `packet_number` (each at most once, below the vector's width, and before the
    /// lookup).
    #[inline]
    pub(crate) fn push_plain(&mut self, packet_number: usize, front: Front<'_>, ingress: u32) {
        self.places[packet_number] = match front {
            Front::Ipv4(front) => Place::Ipv4(self.ipv4.push(Ipv4Key::of_plain(front, ingress), true)),
            Front::Ipv6(front) => Place::Ipv6(self.ipv6.push(Ipv6Key::of_plain(front, ingress), true)),
        };
    }

    /// Whether the lookup found the packet's flow. A later insert or removal may have changed that;
    /// [`FlowCache::take_hit`](super::FlowCache::take_hit) knows.
    #[inline]
    #[must_use]
    pub fn found(&self, packet_number: usize) -> bool {
        match self.place(packet_number) {
            Place::None => false,
            Place::Ipv4(item) => self.ipv4.found(item),
            Place::Ipv6(item) => self.ipv6.found(item),
        }
    }

    /// The hash of the packet's flow, the same for every packet of it; 0 if it was not pushed and looked up.
    /// Also the entropy of a tunnel's UDP source port.
    #[inline]
    #[must_use]
    pub fn hash(&self, packet_number: usize) -> u64 {
        match self.place(packet_number) {
            Place::None => 0,
            Place::Ipv4(item) => self.ipv4.hashes[item as usize],
            Place::Ipv6(item) => self.ipv6.hashes[item as usize],
        }
    }

    #[inline]
    pub(super) fn place(&self, packet_number: usize) -> Place {
        self.places.get(packet_number).copied().unwrap_or(Place::None)
    }
}

impl<K> Lane<K> {
    #[inline]
    fn found(&self, item: u8) -> bool {
        self.epoch != NOT_LOOKED_UP && self.slots[item as usize] != NO_SLOT
    }
}
