//! The cache as `millrace show flows` sees it.

use super::FlowCache;
use super::key::{FlowKey, KeyFields};
use super::rewrites::Rewrites;
use super::table::Table;
use crate::edit::{Rewrite, Translation};
use crate::packet::PortIndex;
use crate::tables::SegmentIndex;

/// One flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowView {
    /// What its packets have in common.
    pub key: KeyFields,
    /// The segment that its packets came in by.
    pub segment: SegmentIndex,
    /// Port they leave by.
    pub egress: PortIndex,
    /// What is done to them.
    pub rewrite: Rewrite,
    /// New addresses, if any.
    pub translation: Translation,
    /// Packets served from the cache: without those the slow path decided.
    pub packets: u32,
    /// Bytes of those packets.
    pub bytes: u64,
    /// Milliseconds since the last of them, or since the entry was written.
    pub idle_ms: u32,
}

impl FlowCache {
    /// Shows the flows in at most `entries` places from place `from` on, and says where to go on, until `None`.
    /// So a command that lists a full cache takes many turns of the worker instead of stopping one; flows that come
    /// and go meanwhile may be shown or not.
    pub fn for_each(&self, from: usize, entries: usize, now_ms: u32, visit: impl FnMut(&FlowView)) -> Option<usize> {
        let first = self.ipv4.capacity();
        if from < first {
            let end = from.saturating_add(entries).min(first);
            show(&self.ipv4, &self.rewrites, from..end, now_ms, visit);
            return Some(end);
        }
        let end = (from - first).saturating_add(entries).min(self.ipv6.capacity());
        show(&self.ipv6, &self.rewrites, from - first..end, now_ms, visit);
        (end < self.ipv6.capacity()).then_some(first + end)
    }
}

fn show<K: FlowKey>(
    table: &Table<K>,
    rewrites: &Rewrites,
    slots: std::ops::Range<usize>,
    now_ms: u32,
    mut visit: impl FnMut(&FlowView),
) {
    let entries = table.entries.get(slots.clone()).unwrap_or(&[]);
    let cold = table.cold.get(slots).unwrap_or(&[]);
    for (entry, cold) in entries.iter().zip(cold).filter(|(entry, _)| entry.in_use()) {
        visit(&FlowView {
            key: entry.key.fields(),
            segment: cold.dependencies.segment,
            egress: entry.egress(),
            rewrite: rewrites.get(entry.rewrite).rewrite,
            translation: entry.ends().translation(),
            packets: entry.packets,
            bytes: entry.bytes(),
            idle_ms: entry.idle_ms(now_ms),
        });
    }
}
