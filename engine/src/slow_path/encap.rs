//! Stage 9, `encap`: by which port and in which outer headers the packet leaves, and whether it fits.
//!
//! Last, because only now the room is known. A packet that does not fit is not cut if its sender forbade it or if it
//! is IPv6; the sender is told the size that fits (RFC 1191, RFC 8201). IPv4 without "don't fragment" is told as well:
//! pods set it by default, and a tunnel that fragments is slower than a sender that learns.

use std::net::IpAddr;
use std::ops::ControlFlow;

use super::Walk;
use super::decision::{Forward, Lesson, Reason, Rejection, Stage, Verdict};
use crate::drop_reason::DropReason;
use crate::edit::{Encapsulation, MacPair, Rewrite};
use crate::packet::{Mac, PortIndex};
use crate::tables::{PortRole, RouteTarget, RoutedSegment, Segment, SegmentKind};

/// Completes the forwarding of a routed packet.
pub(super) fn encap(walk: &mut Walk<'_>, segment: &Segment, target: &RouteTarget) -> ControlFlow<Verdict, Verdict> {
    let SegmentKind::Routed(routed) = &segment.kind else {
        return walk.drop(Stage::Encap, DropReason::NoRoute);
    };
    match target {
        RouteTarget::Port { port, mac } => leave(walk, routed, *port, *mac),
        RouteTarget::Tunnel { peer, mac } => tunnel(walk, segment, routed, *peer, *mac),
        RouteTarget::Direct { peer } => leave_directly(walk, *peer),
        RouteTarget::Outside { port, gateway, mtu, .. } => leave_outside(walk, *port, *gateway, *mtu),
        RouteTarget::Unreachable => walk.drop(Stage::Encap, DropReason::Unreachable),
    }
}

fn leave(walk: &mut Walk<'_>, routed: &RoutedSegment, port: PortIndex, mac: Mac) -> ControlFlow<Verdict, Verdict> {
    let Some(entry) = walk.tables.ports.get(port) else {
        return walk.drop(Stage::Encap, DropReason::PortDown);
    };
    let macs = MacPair { destination: mac, source: routed.gateway_mac };
    let rewrite = Rewrite {
        decapsulate: walk.arrival.tunnel.is_some(),
        pop_tags: 0,
        route: Some(macs),
        push_tag: None,
        encapsulate: None,
        mtu: entry.mtu,
    };
    walk.dependencies.egress = port;
    fits(walk, rewrite.mtu)?;
    walk.note(Stage::Encap, || Reason::Leaves(entry.name.clone()));
    let translation = walk.tracking.translation();
    ControlFlow::Continue(Verdict::Forward(Forward { egress: port, rewrite, translation }))
}

/// As plain IP to another node on the link of an uplink.
fn leave_directly(walk: &mut Walk<'_>, peer: IpAddr) -> ControlFlow<Verdict, Verdict> {
    walk.dependencies.egress_peer = Some(peer);
    let Some((entry, hop)) = walk.tables.tunnels.peer(peer).and_then(|entry| Some((entry, entry.next_hop?))) else {
        return walk.drop(Stage::Encap, DropReason::NeighbourUnresolved);
    };
    let rewrite = Rewrite {
        decapsulate: false,
        pop_tags: 0,
        route: Some(MacPair { destination: hop.destination_mac, source: hop.source_mac }),
        push_tag: None,
        encapsulate: None,
        mtu: entry.mtu,
    };
    walk.dependencies.egress = hop.port;
    fits(walk, rewrite.mtu)?;
    walk.note(Stage::Encap, || Reason::Direct(entry.name.clone()));
    let translation = walk.tracking.translation();
    ControlFlow::Continue(Verdict::Forward(Forward { egress: hop.port, rewrite, translation }))
}

/// As plain IP by an uplink, to a router or to the destination itself. The host's kernel resolves neighbours; one that
/// it was never asked for is reported, and the packet dropped: senders repeat themselves.
fn leave_outside(
    walk: &mut Walk<'_>,
    port: PortIndex,
    gateway: Option<IpAddr>,
    mtu: u32,
) -> ControlFlow<Verdict, Verdict> {
    let neighbour = gateway.unwrap_or_else(|| walk.destination());
    (walk.dependencies.egress, walk.dependencies.egress_peer) = (port, Some(neighbour));
    let Some((entry, PortRole::Uplink(uplink))) = walk.tables.ports.get(port).map(|entry| (entry, &entry.role)) else {
        return walk.drop(Stage::Encap, DropReason::PortDown);
    };
    let Some(destination) = walk.tables.outside.neighbour(port, neighbour) else {
        walk.lesson = Some(Lesson::Wants { port, neighbour });
        return walk.drop(Stage::Encap, DropReason::NeighbourUnresolved);
    };
    let rewrite = Rewrite {
        decapsulate: walk.arrival.tunnel.is_some(),
        pop_tags: 0,
        route: Some(MacPair { destination, source: uplink.mac }),
        push_tag: None,
        encapsulate: None,
        mtu: mtu.min(entry.mtu),
    };
    fits(walk, rewrite.mtu)?;
    walk.note(Stage::Encap, || Reason::Leaves(entry.name.clone()));
    let translation = walk.tracking.translation();
    ControlFlow::Continue(Verdict::Forward(Forward { egress: port, rewrite, translation }))
}

fn tunnel(
    walk: &mut Walk<'_>,
    segment: &Segment,
    routed: &RoutedSegment,
    peer: IpAddr,
    mac: Mac,
) -> ControlFlow<Verdict, Verdict> {
    walk.dependencies.egress_peer = Some(peer);
    let Some((egress, rewrite)) = tunnel_rewrite(walk, segment, peer) else {
        return walk.drop(Stage::Encap, DropReason::NeighbourUnresolved);
    };
    let macs = MacPair { destination: mac, source: routed.tunnel_mac };
    let rewrite = Rewrite { route: Some(macs), ..rewrite };
    walk.dependencies.egress = egress;
    fits(walk, rewrite.mtu)?;
    let tunnels = &walk.tables.tunnels;
    let name = || tunnels.peer(peer).map_or_else(|| peer.to_string().into(), |peer| peer.name.clone());
    segment.vni.iter().for_each(|vni| walk.note(Stage::Encap, || Reason::Encapsulated(*vni, name())));
    let translation = walk.tracking.translation();
    ControlFlow::Continue(Verdict::Forward(Forward { egress, rewrite, translation }))
}

/// The outer headers towards `peer`; `None` if the segment stays on this node, the peer is unknown or its first hop
/// not resolved yet.
pub(super) fn tunnel_rewrite(walk: &Walk<'_>, segment: &Segment, peer: IpAddr) -> Option<(PortIndex, Rewrite)> {
    let entry = walk.tables.tunnels.peer(peer)?;
    let hop = entry.next_hop?;
    let encapsulation = Encapsulation {
        macs: MacPair { destination: hop.destination_mac, source: hop.source_mac },
        source: entry.source,
        destination: entry.address,
        udp_port: walk.tables.tunnels.udp_port,
        vni: segment.vni?,
    };
    let rewrite = Rewrite {
        decapsulate: false,
        pop_tags: 0,
        route: None,
        push_tag: None,
        encapsulate: Some(encapsulation),
        // The outer IP packet holds the outer IP, UDP and VXLAN headers and the inner Ethernet header: as much as
        // the encapsulation adds in all, since the inner Ethernet header takes the place of the outer one.
        mtu: entry.mtu.saturating_sub(encapsulation.bytes() as u32),
    };
    Some((hop.port, rewrite))
}

fn fits(walk: &mut Walk<'_>, mtu: u32) -> ControlFlow<Verdict> {
    if walk.arrival.network_bytes() <= mtu {
        return ControlFlow::Continue(());
    }
    walk.reject(Stage::Encap, DropReason::PacketTooBig, Rejection::TooBig { mtu })
}
