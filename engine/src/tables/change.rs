//! What a publish changed, in the terms a cached decision depends on.
//!
//! Found by comparing two snapshots. Trees share what did not change, so the comparison costs what changed.
//! Additions count like removals: a longer prefix changes where an address goes, a new peer may now send.

use std::net::IpAddr;

use ipnet::IpNet;

use super::policy::{self, PolicyChange};
use super::services::ServiceId;
use super::{BridgedSegment, Route, Segment, SegmentIndex, SegmentKind, Snapshot};
use crate::packet::{Mac, PortIndex};

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Change {
    /// The port appeared, went, or is another one now: flows in by or out of it.
    Port(PortIndex),
    /// The segment appeared, went, or differs in more than routes: all its flows.
    Segment(SegmentIndex),
    /// A route for this prefix appeared, went or leads elsewhere, or a Service appeared at this address: flows of the
    /// segment from or to these addresses.
    Prefix(SegmentIndex, IpNet),
    /// The peer appeared, went or is reached otherwise: flows through its tunnel, either way.
    Peer(IpAddr),
    /// The MAC address of this neighbour on an uplink's link is another, known now, or unknown: flows that leave by it
    /// outside of tunnels.
    Neighbour(PortIndex, IpAddr),
    /// The station with this MAC address lives at another port or peer: flows of the segment from or to it. A publish
    /// brings it for configured stations; of learned ones the worker that learns of the move tells the others.
    Station(SegmentIndex, Mac),
    /// The Service changed or went: flows that it gave their endpoint.
    Service(ServiceId),
    /// Our own tunnel ends or the tunnel port changed: every flow through any tunnel.
    Tunnels,
    /// Other rules judge the pod at this port: flows in by or out of it.
    PodPolicy(PortIndex),
    /// Rules tell this address from others in another way now: flows of the segment from or to it.
    Identity(SegmentIndex, IpAddr),
    /// Rules tell these addresses from others in another way now: flows from or to them.
    PolicyNetwork(IpNet),
}

/// All changes of one publish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeSet {
    /// Generation that the changes lead to.
    pub generation: u64,
    /// The changes, each once, sorted.
    pub changes: Vec<Change>,
}

/// What `new` changed against `old`.
#[must_use]
pub fn changes(old: &Snapshot, new: &Snapshot) -> ChangeSet {
    let mut changes = Vec::new();
    ports(old, new, &mut changes);
    segments(old, new, &mut changes);
    tunnels(old, new, &mut changes);
    outside(old, new, &mut changes);
    old.services.changes(&new.services, &mut changes);
    policies(old, new, &mut changes);
    connected(new, &mut changes);
    changes.sort_unstable();
    changes.dedup();
    ChangeSet { generation: new.generation, changes }
}

fn ports(old: &Snapshot, new: &Snapshot, changes: &mut Vec<Change>) {
    if old.ports.is_same(&new.ports) {
        return;
    }
    let known = old.ports.iter().chain(new.ports.iter()).map(|port| port.index);
    changes.extend(known.filter(|index| port_differs(old, new, *index)).map(Change::Port));
}

fn port_differs(old: &Snapshot, new: &Snapshot, index: PortIndex) -> bool {
    match (old.ports.get(index), new.ports.get(index)) {
        (Some(before), Some(after)) => !std::sync::Arc::ptr_eq(before, after) && before != after,
        (before, after) => before.is_some() != after.is_some(),
    }
}

fn segments(old: &Snapshot, new: &Snapshot, changes: &mut Vec<Change>) {
    if old.segments.is_same(&new.segments) {
        return;
    }
    for segment in old.segments.iter().chain(new.segments.iter()) {
        match (old.segments.get(segment.index), new.segments.get(segment.index)) {
            (Some(before), Some(after)) => segment_changes(before, after, changes),
            _ => changes.push(Change::Segment(segment.index)),
        }
    }
}

fn segment_changes(before: &Segment, after: &Segment, changes: &mut Vec<Change>) {
    if (before.vni, &before.name) != (after.vni, &after.name) {
        changes.push(Change::Segment(after.index));
        return;
    }
    match (&before.kind, &after.kind) {
        (SegmentKind::Routed(old), SegmentKind::Routed(new)) => {
            let frame = |routed: &super::RoutedSegment| (routed.gateway_mac, routed.tunnel_mac);
            if frame(old) != frame(new)
                || old.gateway_addresses != new.gateway_addresses
                || old.router_addresses != new.router_addresses
                || old.known_outside != new.known_outside
                || old.connected != new.connected
            {
                changes.push(Change::Segment(after.index));
                return;
            }
            let mut push = |network: Option<IpNet>| changes.extend(network.map(|net| Change::Prefix(after.index, net)));
            old.routes_ipv4.for_each_difference(&new.routes_ipv4, |bits, length, _: Option<&Route>, _| {
                push(IpNet::new(IpAddr::V4(((bits >> 96) as u32).into()), length).ok());
            });
            old.routes_ipv6.for_each_difference(&new.routes_ipv6, |bits, length, _: Option<&Route>, _| {
                push(IpNet::new(IpAddr::V6(bits.into()), length).ok());
            });
        }
        (SegmentKind::Bridged(old), SegmentKind::Bridged(new)) => bridged_changes(after.index, old, new, changes),
        _ => changes.push(Change::Segment(after.index)),
    }
}

/// What changed of a segment's addresses changed for the segments that have its routes.
fn connected(new: &Snapshot, changes: &mut Vec<Change>) {
    let mut more = Vec::new();
    for segment in new.segments.iter() {
        let SegmentKind::Routed(routed) = &segment.kind else { continue };
        let sees = |other: &SegmentIndex| routed.connected.iter().any(|(_, connected)| connected == other);
        for change in changes.iter().filter(|_| !routed.connected.is_empty()) {
            match change {
                Change::Prefix(other, network) if sees(other) => more.push(Change::Prefix(segment.index, *network)),
                Change::Identity(other, address) if sees(other) => {
                    more.push(Change::Identity(segment.index, *address));
                }
                _ => {}
            }
        }
    }
    changes.append(&mut more);
}

/// Floods are never cached, so members and remotes that only take part in floods change no flow. Flows to and from a
/// member rest on its port, those of a station on its MAC address.
fn bridged_changes(segment: SegmentIndex, old: &BridgedSegment, new: &BridgedSegment, changes: &mut Vec<Change>) {
    let members = old.members.iter().chain(&new.members).map(|member| member.port);
    changes.extend(members.filter(|port| old.member(*port) != new.member(*port)).map(Change::Port));
    let stations = old.stations.iter().chain(&new.stations).map(|(mac, _)| *mac);
    changes
        .extend(stations.filter(|mac| old.station(*mac) != new.station(*mac)).map(|mac| Change::Station(segment, mac)));
}

fn outside(old: &Snapshot, new: &Snapshot, changes: &mut Vec<Change>) {
    let (before, now) = (&old.outside, &new.outside);
    now.for_each_changed_neighbour(before, |port, address| changes.push(Change::Neighbour(port, address)));
    let differs = |network: &&IpNet| before.exempt.contains(network) != now.exempt.contains(network);
    for network in before.exempt.iter().chain(now.exempt.iter()).filter(differs) {
        changes.extend(new.segments.iter().map(|segment| Change::Prefix(segment.index, *network)));
    }
}

fn tunnels(old: &Snapshot, new: &Snapshot, changes: &mut Vec<Change>) {
    if old.tunnels.udp_port != new.tunnels.udp_port || old.tunnels.local != new.tunnels.local {
        changes.push(Change::Tunnels);
    }
    new.tunnels.for_each_changed_peer(&old.tunnels, |address| changes.push(Change::Peer(address)));
}

fn policies(old: &Snapshot, new: &Snapshot, changes: &mut Vec<Change>) {
    policy::for_each_change(&old.policy, &new.policy, |change| match change {
        // A port that comes or goes is a change of its own, which says as much.
        PolicyChange::Pod(port) if port_differs(old, new, port) => {}
        PolicyChange::Pod(port) => changes.push(Change::PodPolicy(port)),
        PolicyChange::Identity(segment, address) => changes.push(Change::Identity(segment, address)),
        PolicyChange::Network(network) => changes.push(Change::PolicyNetwork(network)),
    });
}
