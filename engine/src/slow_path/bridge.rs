//! Stage 3, `bridge`: layer 2 of bridged segments: learn the source, forward to the station, flood what is unknown.
//!
//! Before routing, because in a bridged segment the MAC address alone decides. Split horizon: what came out of a
//! tunnel is never sent into a tunnel again, since the sending node has copied it to every other node already.

use std::ops::ControlFlow;

use super::Walk;
use super::decision::{Forward, Lesson, Location, Reason, Stage, Verdict};
use super::encap::tunnel_rewrite;
use crate::drop_reason::DropReason;
use crate::edit::{Rewrite, Translation};
use crate::packet::PortIndex;
use crate::tables::{BridgedSegment, Segment, SegmentKind};

/// Decides frames of bridged segments; lets those of routed ones pass on.
pub(super) fn bridge(walk: &mut Walk<'_>, segment: &Segment) -> ControlFlow<Verdict> {
    let SegmentKind::Bridged(bridged) = &segment.kind else { return ControlFlow::Continue(()) };
    let (source, destination) = (walk.arrival.source_mac(), walk.arrival.destination_mac());
    (walk.dependencies.source_mac, walk.dependencies.destination_mac) = (source, destination);
    let here = walk.arrival.tunnel.map_or(Location::Port(walk.arrival.port), |tunnel| Location::Peer(tunnel.peer));
    if !source.is_group() {
        walk.lesson = Some(Lesson::Station { segment: segment.index, mac: source, location: here });
    }
    let station = walk.state.stations.find(segment.index, destination, walk.now);
    match station {
        Some(location) if !destination.is_group() && is_there(walk, bridged, location) => {
            forward(walk, segment, bridged, here, location)
        }
        _ => flood(walk, segment, bridged),
    }
}

/// Whether the place where a station was heard of still is part of the segment; if not, the station is looked for
/// like any unknown one, rather than lost until it is forgotten.
fn is_there(walk: &Walk<'_>, bridged: &BridgedSegment, location: Location) -> bool {
    match location {
        Location::Port(port) => bridged.members.iter().any(|(member, _)| *member == port),
        Location::Peer(peer) => walk.tables.tunnels.peer(peer).is_some(),
    }
}

fn forward(
    walk: &mut Walk<'_>,
    segment: &Segment,
    bridged: &BridgedSegment,
    here: Location,
    location: Location,
) -> ControlFlow<Verdict> {
    if here == location {
        return walk.drop(Stage::Bridge, DropReason::SplitHorizon);
    }
    let towards = match location {
        Location::Port(port) => member(walk, bridged, port),
        Location::Peer(_) if walk.arrival.tunnel.is_some() => {
            return walk.drop(Stage::Bridge, DropReason::SplitHorizon);
        }
        Location::Peer(peer) => {
            walk.dependencies.egress_peer = Some(peer);
            tunnel_rewrite(walk, segment, peer).map(|(egress, rewrite)| plain(egress, pop_all(walk, rewrite)))
        }
    };
    let Some(forward) = towards else {
        let reason = match location {
            Location::Port(_) => DropReason::PortDown,
            Location::Peer(_) => DropReason::NeighbourUnresolved,
        };
        return walk.drop(Stage::Bridge, reason);
    };
    walk.dependencies.egress = forward.egress;
    let place = name_of(walk, location);
    walk.note(Stage::Bridge, Reason::Station(walk.arrival.destination_mac(), place));
    ControlFlow::Break(Verdict::Forward(forward))
}

fn flood(walk: &mut Walk<'_>, segment: &Segment, bridged: &BridgedSegment) -> ControlFlow<Verdict> {
    let mut copies = Vec::with_capacity(bridged.members.len() + bridged.remotes.len());
    let others = bridged.members.iter().filter(|(port, _)| *port != walk.arrival.port);
    copies.extend(others.filter_map(|(port, _)| member(walk, bridged, *port)));
    if walk.arrival.tunnel.is_none() {
        let remotes = bridged.remotes.iter().filter_map(|peer| tunnel_rewrite(walk, segment, *peer));
        copies.extend(remotes.map(|(egress, rewrite)| plain(egress, pop_all(walk, rewrite))));
    }
    if copies.is_empty() {
        return walk.drop(Stage::Bridge, DropReason::NoFloodTarget);
    }
    walk.note(Stage::Bridge, Reason::Flooded(copies.len()));
    ControlFlow::Break(Verdict::Flood(copies))
}

/// How a frame leaves by a member port: its tag is exchanged for the member's own.
fn member(walk: &Walk<'_>, bridged: &BridgedSegment, port: PortIndex) -> Option<Forward> {
    let (_, tag) = bridged.members.iter().find(|(member, _)| *member == port)?;
    let mtu = walk.tables.ports.get(port)?.mtu;
    let rewrite = Rewrite {
        decapsulate: walk.arrival.tunnel.is_some(),
        pop_tags: 0,
        route: None,
        push_tag: *tag,
        encapsulate: None,
        mtu,
    };
    Some(plain(port, pop_all(walk, rewrite)))
}

/// The tag that assigned the segment comes off; a second one, if any, belongs to the members and stays.
fn pop_all(walk: &Walk<'_>, rewrite: Rewrite) -> Rewrite {
    let assigned = walk.arrival.tunnel.is_none() && walk.arrival.headers.vlan_tags > 0;
    Rewrite { pop_tags: u8::from(assigned), ..rewrite }
}

fn plain(egress: PortIndex, rewrite: Rewrite) -> Forward {
    Forward { egress, rewrite, translation: Translation::NONE }
}

fn name_of(walk: &Walk<'_>, location: Location) -> std::sync::Arc<str> {
    match location {
        Location::Port(port) => walk.tables.ports.get(port).map(|port| port.name.clone()),
        Location::Peer(peer) => walk.tables.tunnels.peer(peer).map(|peer| peer.name.clone()),
    }
    .unwrap_or_else(|| "nowhere".into())
}
