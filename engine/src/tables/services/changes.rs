//! What differs between the Services of two snapshots, in terms of flows.
//!
//! A Service that went or changed touches the flows it served. One that appeared touches the flows to its address that
//! were routed before. Costs what changed: the trees skip what they share.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Frontend, SegmentServices, ServiceTable, Vip, address_of};
use crate::tables::{Change, SegmentIndex};

impl ServiceTable {
    /// Adds what differs between `self` and the later `new` to `changes`.
    pub(in crate::tables) fn changes(&self, new: &ServiceTable, changes: &mut Vec<Change>) {
        if self.is_same(new) {
            return;
        }
        let nothing = SegmentServices::default();
        for (segment, before) in self.iter() {
            segment_changes(segment, before, new.get(segment).unwrap_or(&nothing), changes);
        }
        for (segment, after) in new.iter().filter(|(segment, _)| self.get(*segment).is_none()) {
            segment_changes(segment, &nothing, after, changes);
        }
    }
}

fn segment_changes(segment: SegmentIndex, old: &SegmentServices, new: &SegmentServices, changes: &mut Vec<Change>) {
    let routed = |address: IpAddr| Change::Prefix(segment, IpNet::from(address));
    for (at, (before, after)) in old.vips.iter().zip(&new.vips).enumerate() {
        before.for_each_difference(after, |bits, _, before, after| {
            if vip_changes(before.map(AsRef::as_ref), after.map(AsRef::as_ref), changes) {
                changes.push(routed(address_of(at == 0, bits)));
            }
        });
    }
    for (at, (before, after)) in old.node_ports.iter().zip(&new.node_ports).enumerate() {
        let mut appeared = false;
        before.for_each_difference(after, |_, _, before, after| {
            appeared |= frontend_changes(before.map(AsRef::as_ref), after.map(AsRef::as_ref), changes);
        });
        let addresses = new.node_addresses.iter().filter(|address| appeared && address.is_ipv4() == (at == 0));
        changes.extend(addresses.map(|address| routed(*address)));
    }
    let only_in = |some: &[IpAddr], others: &[IpAddr]| -> Vec<IpAddr> {
        some.iter().filter(|address| !others.contains(address)).copied().collect()
    };
    let (old_addresses, new_addresses) = (&old.node_addresses, &new.node_addresses);
    changes.extend(only_in(old_addresses, new_addresses).into_iter().map(routed));
    changes.extend(only_in(new_addresses, old_addresses).into_iter().map(routed));
    let (gone, come) = (&old.ranges, &new.ranges);
    let ranges =
        gone.iter().filter(|range| !come.contains(range)).chain(come.iter().filter(|range| !gone.contains(range)));
    changes.extend(ranges.map(|range| Change::Prefix(segment, *range)));
}

/// Whether flows to the address that no Service had are touched.
fn vip_changes(before: Option<&Vip>, after: Option<&Vip>, changes: &mut Vec<Change>) -> bool {
    let nothing = Vip::default();
    let (before, after) = (before.unwrap_or(&nothing), after.unwrap_or(&nothing));
    let mut appeared = before.is_cluster_ip() != after.is_cluster_ip();
    for ((protocol, port), frontend) in &before.ports {
        frontend_changes(Some(frontend), after.get(*protocol, *port), changes);
    }
    for ((protocol, port), frontend) in &after.ports {
        if before.get(*protocol, *port).is_none() {
            appeared |= frontend_changes(None, Some(frontend), changes);
        }
    }
    appeared
}

/// Whether the frontend appeared.
fn frontend_changes(before: Option<&Frontend>, after: Option<&Frontend>, changes: &mut Vec<Change>) -> bool {
    if before != after {
        let both = [before, after].into_iter().flatten();
        changes.extend(both.map(|frontend| Change::Service(frontend.service.id)));
    }
    before.is_none() && after.is_some()
}
