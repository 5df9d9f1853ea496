//! What differs between two policy tables, in the terms a cached decision depends on.
//!
//! An identity that gains or loses a set matters only if rules spoke of the set before *and* do so now: a set that is
//! new or gone is spoken of by rules that are new or gone, and those are a change of the pods they judge. So a new
//! policy that names a thousand pods as peers touches the flows of the pods it selects, and no others.
//!
//! An unknown peer is judged so that what it may do it may do whatever its labels turn out to be: to become known touches
//! no flow by itself, to become unknown does.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Identity, PeerSet, PolicyTable};
use crate::packet::PortIndex;
use crate::tables::SegmentIndex;

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyChange {
    /// Other rules judge the pod at this port.
    Pod(PortIndex),
    /// The address is in other sets now.
    Identity(SegmentIndex, IpAddr),
    /// Addresses in this prefix are in other sets of networks now.
    Network(IpNet),
}

/// Calls `visit` with each change from `old` to `new`.
pub fn for_each_change(old: &PolicyTable, new: &PolicyTable, mut visit: impl FnMut(PolicyChange)) {
    if old.is_same(new) {
        return;
    }
    pods(old, new, &mut visit);
    let lasting = Lasting { old: &old.sets, new: &new.sets, same: Arc::ptr_eq(&old.sets, &new.sets) };
    old.identities.for_each_difference(&new.identities, |segment, address, before, after| {
        let lost = after.is_none() && !new.sets.is_empty() && new.is_of_pods(segment, address);
        if lost || lasting.identities_differ(before, after) {
            visit(PolicyChange::Identity(segment, address));
        }
    });
    ranges(old, new, &mut visit);
    networks(old, new, &lasting, &mut visit);
}

fn pods(old: &PolicyTable, new: &PolicyTable, visit: &mut impl FnMut(PolicyChange)) {
    if old.pods.is_same(&new.pods) {
        return;
    }
    for (port, before) in old.pods.iter() {
        let same = new.pods.known(port).is_some_and(|after| Arc::ptr_eq(before, after) || before == after);
        if !same {
            visit(PolicyChange::Pod(port));
        }
    }
    let added = new.pods.iter().filter(|(port, _)| old.pods.known(*port).is_none());
    added.for_each(|(port, _)| visit(PolicyChange::Pod(port)));
}

/// Ranges that came, and with them addresses that are pods' now.
fn ranges(old: &PolicyTable, new: &PolicyTable, visit: &mut impl FnMut(PolicyChange)) {
    if !Arc::ptr_eq(&old.pod_ranges, &new.pod_ranges) && !new.sets.is_empty() {
        let added = new.pod_ranges.iter().filter(|range| !old.pod_ranges.contains(range));
        added.for_each(|(_, range)| visit(PolicyChange::Network(*range)));
    }
}

fn networks(old: &PolicyTable, new: &PolicyTable, lasting: &Lasting<'_>, visit: &mut impl FnMut(PolicyChange)) {
    for (family, (before, after)) in old.networks.iter().zip(&new.networks).enumerate() {
        before.for_each_difference(after, |bits, length, _: Option<&Arc<[PeerSet]>>, _| {
            let address = if family == 0 { IpAddr::V4(((bits >> 96) as u32).into()) } else { IpAddr::V6(bits.into()) };
            let sets = |table: &super::PrefixTree<Arc<[PeerSet]>>| table.covering(bits, length).cloned();
            let (was, is) = (sets(before), sets(after));
            if lasting.lists_differ(was.as_deref().unwrap_or_default(), is.as_deref().unwrap_or_default())
                && let Ok(network) = IpNet::new(address, length)
            {
                visit(PolicyChange::Network(network));
            }
        });
    }
}

/// Sets that rules speak of in both tables.
struct Lasting<'a> {
    old: &'a [PeerSet],
    new: &'a [PeerSet],
    same: bool,
}

impl Lasting<'_> {
    fn identities_differ(&self, before: Option<&Identity>, after: Option<&Identity>) -> bool {
        let nobody = Identity::default();
        let (before, after) = (before.unwrap_or(&nobody), after.unwrap_or(&nobody));
        before.named_ports != after.named_ports
            || before.ports_unknown != after.ports_unknown
            || self.lists_differ(&before.sets, &after.sets)
            || self.lists_differ(&before.possible, &after.possible)
    }

    fn lists_differ(&self, before: &[PeerSet], after: &[PeerSet]) -> bool {
        if self.same {
            return before != after;
        }
        let was = before.iter().filter(|set| self.new.binary_search(set).is_ok());
        let is = after.iter().filter(|set| self.old.binary_search(set).is_ok());
        !was.eq(is)
    }
}
