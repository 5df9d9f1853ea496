//! What a flow's entry owes its connection: when packets were last seen.
//!
//! The hit path counts in the entry alone. The ageing hand writes the time back for every flow seen since its last
//! round, at least every second; so does whatever removes the entry. A connection that has ended takes its entries
//! along: they are removed at the hand's next round, those of known places at once (see [`FlowCache::forget`]).

use std::sync::Arc;

use super::batch::{LookupBatch, Place};
use super::bucket::NO_SLOT;
use super::entry::elapsed_ms;
use super::{FlowCache, Table};
use crate::state::{ConnectionReference, Connections};

/// The way from a table to the connections; a cache without any has none.
#[derive(Clone, Debug, Default)]
pub(super) struct WriteBack(Option<Arc<Connections>>);

impl WriteBack {
    /// Asks the processor for what [`WriteBack::seen`] will look at.
    #[inline]
    pub(super) fn prefetch(&self, connection: ConnectionReference) {
        if let Some(connections) = &self.0 {
            connections.prefetch(connection);
        }
    }

    /// Notes that a packet of the connection was seen; false if it has ended.
    #[inline]
    pub(super) fn seen(&self, connection: ConnectionReference, seen_ms: u32) -> bool {
        match &self.0 {
            Some(connections) if connection != ConnectionReference::NONE => connections.touch(connection, seen_ms),
            _ => true,
        }
    }
}

impl FlowCache {
    /// The same cache, writing back to `connections`.
    #[must_use]
    pub fn writing_back_to(mut self, connections: &Arc<Connections>) -> Self {
        let write_back = WriteBack(Some(Arc::clone(connections)));
        self.ipv4.write_back = write_back.clone();
        self.ipv6.write_back = write_back;
        self
    }

    /// Says whose packets the flow of packet `packet_number` has, which was inserted just now. Returns its place, by
    /// which [`FlowCache::forget`] finds it again; `None` if it is not in the cache.
    pub fn bind(&mut self, batch: &LookupBatch, packet_number: usize, connection: ConnectionReference) -> Option<u32> {
        let (slot, first) = match batch.place(packet_number) {
            Place::None => (NO_SLOT, 0),
            Place::Ipv4(item) => {
                (bind(&mut self.ipv4, |table| table.locate(&batch.ipv4, item as usize), connection), 0)
            }
            Place::Ipv6(item) => {
                let slot = bind(&mut self.ipv6, |table| table.locate(&batch.ipv6, item as usize), connection);
                (slot, self.ipv4.capacity() as u32)
            }
        };
        (slot != NO_SLOT).then(|| first + slot)
    }

    /// Removes the flow at `place` if its packets still belong to `connection`; says whether they did.
    pub fn forget(&mut self, place: u32, connection: ConnectionReference) -> bool {
        let first = self.ipv4.capacity() as u32;
        let rewrites = &mut self.rewrites;
        if place < first {
            forget(&mut self.ipv4, place, connection, rewrites)
        } else {
            forget(&mut self.ipv6, place - first, connection, rewrites)
        }
    }

    /// The time, in milliseconds modulo 2^32, before which every packet seen was written back; `None` before the first
    /// round of the ageing hand.
    #[must_use]
    pub fn written_back_ms(&self, now_ms: u32) -> Option<u32> {
        let (ipv4, ipv6) = (self.ipv4.hand.written_back_ms?, self.ipv6.hand.written_back_ms?);
        Some(if elapsed_ms(now_ms, ipv4) > elapsed_ms(now_ms, ipv6) { ipv4 } else { ipv6 })
    }

    /// Whether the ageing hand is in the middle of a round.
    #[must_use]
    pub fn is_ageing(&self) -> bool {
        self.ipv4.hand.is_turning() || self.ipv6.hand.is_turning()
    }
}

fn bind<K: super::FlowKey>(
    table: &mut Table<K>,
    locate: impl FnOnce(&Table<K>) -> u32,
    connection: ConnectionReference,
) -> u32 {
    let slot = locate(table);
    if let Some(cold) = table.cold.get_mut(slot as usize) {
        cold.connection = connection;
    }
    slot
}

fn forget<K: super::FlowKey>(
    table: &mut Table<K>,
    slot: u32,
    connection: ConnectionReference,
    rewrites: &mut super::Rewrites,
) -> bool {
    let is_its = table.cold.get(slot as usize).is_some_and(|cold| cold.in_use() && cold.connection == connection);
    if is_its {
        table.remove(slot, rewrites);
    }
    is_its
}
