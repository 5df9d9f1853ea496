//! Stage 3, `bridge`: layer 2 of bridged segments: learn the source, forward to the station, flood what is unknown.
//!
//! Before routing, because in a bridged segment the MAC address alone decides. Split horizon: what came out of a
//! tunnel is never sent into a tunnel again, since the sending node has copied it to every other node already; members
//! of one split-horizon group and isolated members never meet. Groups are flooded, all of them alike: IGMP and MLD are
//! not snooped, so that a group works before and without a querier; storm limits bound what that costs.

use std::net::IpAddr;
use std::ops::ControlFlow;

use super::Walk;
use super::decision::{Forward, Lesson, Location, Reason, Stage, Verdict};
use super::encap::tunnel_rewrite;
use crate::drop_reason::DropReason;
use crate::edit::{Rewrite, Translation};
use crate::packet::Mac;
use crate::tables::{BridgedSegment, FloodClass, Member, PortRole, Segment, SegmentKind, Snapshot};

/// The group addresses that no bridge forwards (IEEE 802.1Q table 8-1) but for their last four bits.
const RESERVED_GROUPS: [u8; 5] = [0x01, 0x80, 0xc2, 0, 0];

/// Decides frames of bridged segments; lets those of routed ones pass on.
pub(super) fn bridge(walk: &mut Walk<'_>, segment: &Segment) -> ControlFlow<Verdict> {
    let SegmentKind::Bridged(bridged) = &segment.kind else { return ControlFlow::Continue(()) };
    let destination = walk.arrival.destination_mac();
    let here = walk.arrival.tunnel.map_or(Location::Port(walk.arrival.port), |tunnel| Location::Peer(tunnel.peer));
    (walk.dependencies.source_mac, walk.dependencies.destination_mac) = (walk.arrival.source_mac(), destination);
    if destination.0[..5] == RESERVED_GROUPS && destination.0[5] < 0x10 {
        return walk.drop(Stage::Bridge, DropReason::LinkProtocol);
    }
    learn(walk, segment, bridged, here)?;
    match station(walk, segment, bridged, destination) {
        Some(location) if is_there(walk, bridged, location) => forward(walk, segment, bridged, here, location),
        _ => flood(walk, segment, bridged),
    }
}

/// What the frame teaches about its sender, if the sender may be there.
fn learn(walk: &mut Walk<'_>, segment: &Segment, bridged: &BridgedSegment, here: Location) -> ControlFlow<Verdict> {
    let mac = walk.arrival.source_mac();
    if mac.is_group() || mac == Mac::ZERO {
        return walk.drop(Stage::Bridge, DropReason::SourceMacInvalid);
    }
    if let Some(configured) = bridged.station(mac) {
        let elsewhere = configured != here;
        return if elsewhere { walk.drop(Stage::Bridge, DropReason::StationStatic) } else { ControlFlow::Continue(()) };
    }
    let known = walk.state.stations.find(segment.index, mac, walk.now);
    if known.is_some_and(|station| station.location != here && station.is_held(walk.now)) {
        return walk.drop(Stage::Bridge, DropReason::StationHeld);
    }
    if known.is_none_or(|station| station.location != here) && is_full(walk, here) {
        return walk.drop(Stage::Bridge, DropReason::StationLimit);
    }
    walk.lesson = Some(Lesson::Station { segment: segment.index, mac, location: here });
    ControlFlow::Continue(())
}

fn is_full(walk: &Walk<'_>, here: Location) -> bool {
    let Location::Port(port) = here else { return false };
    match walk.tables.ports.get(port).map(|port| &port.role) {
        Some(PortRole::Bridged(bridged)) => walk.state.stations.behind(port) >= bridged.station_limit,
        _ => false,
    }
}

/// Where the station lives: as configured, else as learned.
fn station(walk: &Walk<'_>, segment: &Segment, bridged: &BridgedSegment, mac: Mac) -> Option<Location> {
    if mac.is_group() {
        return None;
    }
    let learned = || walk.state.stations.find(segment.index, mac, walk.now).map(|station| station.location);
    bridged.station(mac).or_else(learned)
}

/// Whether the place where a station was heard of still is part of the segment; if not, the station is looked for
/// like any unknown one, rather than lost until it is forgotten.
fn is_there(walk: &Walk<'_>, bridged: &BridgedSegment, location: Location) -> bool {
    match location {
        Location::Port(port) => bridged.member(port).is_some(),
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
        Location::Port(port) => {
            let Some(to) = bridged.member(port).filter(|to| may_meet(walk, bridged, to)) else {
                return walk.drop(Stage::Bridge, DropReason::Isolated);
            };
            member(walk, to)
        }
        Location::Peer(_) if walk.arrival.tunnel.is_some() => {
            return walk.drop(Stage::Bridge, DropReason::SplitHorizon);
        }
        Location::Peer(peer) => {
            walk.dependencies.egress_peer = Some(peer);
            tunnel(walk, segment, peer)
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
    if !fits(walk, &forward) {
        return walk.drop(Stage::Bridge, DropReason::Oversized);
    }
    let (tables, station) = (walk.tables, walk.arrival.destination_mac());
    walk.note(Stage::Bridge, || Reason::Station(station, name_of(tables, location)));
    ControlFlow::Break(Verdict::Forward(forward))
}

fn flood(walk: &mut Walk<'_>, segment: &Segment, bridged: &BridgedSegment) -> ControlFlow<Verdict> {
    let class = FloodClass::of(walk.arrival.destination_mac());
    if let Some(limit) = storm_limit(walk, class)
        && !walk.state.storms.allow(walk.arrival.port, class, limit, walk.now)
    {
        return walk.drop(Stage::Bridge, DropReason::StormControl);
    }
    let mut copies = Vec::with_capacity(bridged.members.len() + bridged.remotes.len());
    let others = bridged.members.iter().filter(|other| other.port != walk.arrival.port);
    copies.extend(others.filter(|other| may_meet(walk, bridged, other)).filter_map(|other| member(walk, other)));
    if walk.arrival.tunnel.is_none() {
        copies.extend(bridged.remotes.iter().filter_map(|peer| tunnel(walk, segment, *peer)));
    }
    if copies.is_empty() {
        return walk.drop(Stage::Bridge, DropReason::NoFloodTarget);
    }
    copies.retain(|copy| fits(walk, copy));
    if copies.is_empty() {
        return walk.drop(Stage::Bridge, DropReason::Oversized);
    }
    walk.note(Stage::Bridge, || Reason::Flooded(copies.len()));
    ControlFlow::Break(Verdict::Flood(class, copies))
}

/// How many frames of this class a second the port may flood. Tunnels have no limit here: the other node has one.
fn storm_limit(walk: &Walk<'_>, class: FloodClass) -> Option<u32> {
    match &walk.tables.ports.get(walk.arrival.port)?.role {
        PortRole::Bridged(bridged) => bridged.storm.of(class),
        PortRole::Pod(_) | PortRole::Host(_) | PortRole::Uplink(_) | PortRole::Mirror => None,
    }
}

/// Whether frames from where this one came in may leave by that member.
fn may_meet(walk: &Walk<'_>, bridged: &BridgedSegment, to: &Member) -> bool {
    let from = if walk.arrival.tunnel.is_none() { bridged.member(walk.arrival.port) } else { None };
    from.is_none_or(|from| !from.is_apart_from(to))
}

/// How a frame leaves by a member port: its tag is exchanged for the member's own.
fn member(walk: &Walk<'_>, to: &Member) -> Option<Forward> {
    let rewrite = Rewrite {
        decapsulate: walk.arrival.tunnel.is_some(),
        pop_tags: walk.pop_tags,
        route: None,
        push_tag: to.tag,
        encapsulate: None,
        mtu: walk.tables.ports.get(to.port)?.mtu,
    };
    Some(Forward { egress: to.port, rewrite, translation: Translation::NONE })
}

/// How a frame leaves through the tunnel to `peer`. Tags that stay take room of the outer packet.
fn tunnel(walk: &Walk<'_>, segment: &Segment, peer: IpAddr) -> Option<Forward> {
    let (egress, rewrite) = tunnel_rewrite(walk, segment, peer)?;
    let tags = u32::from(walk.arrival.headers.vlan_tags.saturating_sub(walk.pop_tags));
    let mtu = rewrite.mtu.saturating_sub(tags * crate::packet::wire::vlan::TAG_BYTES as u32);
    let rewrite = Rewrite { pop_tags: walk.pop_tags, mtu, ..rewrite };
    Some(Forward { egress, rewrite, translation: Translation::NONE })
}

/// Layer 2 tells nobody of a frame that is too long, and cuts none.
fn fits(walk: &Walk<'_>, forward: &Forward) -> bool {
    walk.arrival.network_bytes() <= forward.rewrite.mtu
}

fn name_of(tables: &Snapshot, location: Location) -> std::sync::Arc<str> {
    match location {
        Location::Port(port) => tables.ports.get(port).map(|port| port.name.clone()),
        Location::Peer(peer) => tables.tunnels.peer(peer).map(|peer| peer.name.clone()),
    }
    .unwrap_or_else(|| "nowhere".into())
}
