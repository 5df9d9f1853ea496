//! Stage 1, `admit`: which segment does the packet belong to, and may its sender send it.
//!
//! First, because nothing else may look at a packet before its tenant is known and its source is believed. A pod
//! sends from its own MAC and addresses only, and so does the host; what comes out of a tunnel must come from the node
//! that its inner source address is routed to. What reached an uplink outside of any tunnel must not claim to come from the
//! cluster; it is ours if it asks for an address that this node announces, belongs to a connection, calls a Service, or comes from a network that reaches pods directly,
//! else the host's, and goes back to its kernel.

use std::net::{IpAddr, Ipv6Addr};
use std::ops::ControlFlow;
use std::sync::Arc;

use super::connection::{fragment_key, known_outside};
use super::decision::{Reason, Reply, Stage, Verdict};
use super::{Arrival, Walk};
use crate::drop_reason::DropReason;
use crate::packet::parse::{flag, protocol};
use crate::packet::wire::{arp, nd, vlan};
use crate::packet::{Headers, Mac, Network};
use crate::state::Fragmented;
use crate::tables::services::{Found, Frontend, FrontendKind};
use crate::tables::{
    BridgedPort, HandBack, Port, PortRole, RouteTarget, Segment, SegmentIndex, SegmentKind, TagProtocol, UplinkPort,
};

/// Finds the packet's segment or ends the walk.
pub(super) fn admit<'a>(walk: &mut Walk<'a>) -> ControlFlow<Verdict, &'a Segment> {
    let Some(port) = walk.tables.ports.get(walk.arrival.port) else {
        return walk.drop(Stage::Admit, DropReason::PortUnknown);
    };
    match &port.role {
        PortRole::Pod(pod) => admit_member(walk, port, pod.segment, pod.mac, &pod.addresses),
        PortRole::Host(host) => admit_member(walk, port, host.segment, host.mac, &host.addresses),
        PortRole::Bridged(bridged) => admit_bridged(walk, port, bridged),
        PortRole::Uplink(uplink) if walk.arrival.tunnel.is_none() => admit_plain(walk, port, uplink),
        PortRole::Uplink(_) => admit_tunnelled(walk),
        PortRole::Mirror => walk.drop(Stage::Admit, DropReason::MirrorPort),
    }
}

/// A member of a routed segment, which sends untagged frames from its own MAC and IP addresses.
fn admit_member<'a>(
    walk: &mut Walk<'a>,
    port: &Port,
    segment: SegmentIndex,
    mac: Mac,
    addresses: &[IpAddr],
) -> ControlFlow<Verdict, &'a Segment> {
    if walk.arrival.headers.vlan_tags > 0 {
        return walk.drop(Stage::Admit, DropReason::VlanUnexpected);
    }
    if walk.arrival.source_mac() != mac {
        return walk.drop(Stage::Admit, DropReason::SourceMacSpoofed);
    }
    if !source_allowed(walk, addresses) {
        return walk.drop(Stage::Admit, DropReason::SourceAddressSpoofed);
    }
    let Some(segment) = walk.tables.segments.get(segment) else {
        return walk.drop(Stage::Admit, DropReason::PortUnknown);
    };
    walk.dependencies.segment = segment.index;
    walk.note(Stage::Admit, || Reason::Admitted(port.name.clone(), segment.name.clone()));
    ControlFlow::Continue(segment)
}

/// Whether the sender owns the source address: of the ARP sender field, or of the IP header. The unspecified address
/// (duplicate address detection) and IPv6 link-local ones never leave the link, so they are let in.
fn source_allowed(walk: &Walk<'_>, addresses: &[IpAddr]) -> bool {
    let headers = walk.arrival.headers;
    match headers.network {
        Network::Other => true,
        Network::Arp | Network::Ipv4 => {
            let source = headers.source_address();
            addresses.contains(&source) || (headers.network == Network::Arp && source.is_unspecified())
        }
        Network::Ipv6 => {
            let source = Ipv6Addr::from(headers.source);
            addresses.contains(&IpAddr::V6(source)) || source.is_unspecified() || source.is_unicast_link_local()
        }
    }
}

fn admit_bridged<'a>(walk: &mut Walk<'a>, port: &Port, bridged: &BridgedPort) -> ControlFlow<Verdict, &'a Segment> {
    let segment = match membership(walk.arrival.headers, bridged) {
        Some((index, pop_tags)) => {
            walk.pop_tags = pop_tags;
            walk.tables.segments.get(index)
        }
        None => None,
    };
    let Some(segment) = segment else {
        return walk.drop(Stage::Admit, DropReason::VlanUnexpected);
    };
    walk.dependencies.segment = segment.index;
    walk.note(Stage::Admit, || Reason::Admitted(port.name.clone(), segment.name.clone()));
    ControlFlow::Continue(segment)
}

/// The segment of a frame that came in by this port, and the tags that said so and come off. A tag with identifier 0
/// only carries a priority (IEEE 802.1Q section 6.9.1): the frame counts as untagged.
fn membership(headers: &Headers, bridged: &BridgedPort) -> Option<(SegmentIndex, u8)> {
    if bridged.transparent || headers.vlan_tags == 0 {
        return bridged.untagged.map(|index| (index, 0));
    }
    match (bridged.tag_protocol, headers.has(flag::SERVICE_TAG)) {
        (TagProtocol::Customer, false) | (TagProtocol::Service, true) => match vlan::id(headers.vlan[0]) {
            0 => bridged.untagged.map(|index| (index, 1)),
            identifier => {
                let at = bridged.tagged.binary_search_by_key(&identifier, |member| member.identifier).ok()?;
                bridged.tagged.get(at).map(|member| (member.segment, 1))
            }
        },
        (TagProtocol::Service, false) => bridged.untagged.map(|index| (index, 0)),
        (TagProtocol::Customer, true) => None,
    }
}

/// What reached an uplink outside of any tunnel: ours, or the host's. The host's segment says which addresses are the
/// cluster's own and which Services are reached from outside.
fn admit_plain<'a>(walk: &mut Walk<'a>, port: &Port, uplink: &UplinkPort) -> ControlFlow<Verdict, &'a Segment> {
    if let Some(reply) = asks_for_announced(walk, uplink.mac) {
        return walk.answer(reply);
    }
    let target = uplink.hand_back.filter(|_| is_for_one_host(walk.arrival, uplink.mac));
    let host = target.and_then(|target| walk.tables.ports.get(target.port).map(|host| (target, host)));
    let Some((target, host)) = host else {
        return walk.drop(Stage::Admit, DropReason::NotForUs);
    };
    let segment = match &host.role {
        PortRole::Host(host) => walk.tables.segments.get(host.segment),
        _ => None,
    };
    let Some(segment) = segment else { return hand_back(walk, port, target, host) };
    if let Some(name) = neighbour(walk, port, segment) {
        walk.from_neighbour = true;
        walk.dependencies.segment = segment.index;
        walk.note(Stage::Admit, || Reason::AdmittedDirect(name, port.name.clone(), segment.name.clone()));
        return ControlFlow::Continue(segment);
    }
    if is_of_cluster(segment, walk.arrival.headers.source_address()) {
        return walk.drop(Stage::Admit, DropReason::OutsideSourceSpoofed);
    }
    let other_end = known_outside(walk).and_then(|index| walk.tables.segments.get(index));
    let is_ours = || calls_service(walk, segment.index) || reaches_pod(walk, segment);
    let called = || if is_ours() { Some(segment) } else { tenant_called(walk) };
    let Some(segment) = other_end.or_else(called) else {
        return not_ours(walk, port, target, host);
    };
    walk.from_outside = true;
    walk.dependencies.segment = segment.index;
    walk.note(Stage::Admit, || Reason::AdmittedOutside(port.name.clone(), segment.name.clone()));
    ControlFlow::Continue(segment)
}

/// The answer to a station on the link that asks for the MAC address of an address that this node announces there.
fn asks_for_announced(walk: &Walk<'_>, mac: Mac) -> Option<Reply> {
    let (headers, frame) = (walk.arrival.headers, walk.arrival.frame);
    let announces = |address: IpAddr| walk.tables.outside.announces(walk.arrival.port, address);
    if headers.network == Network::Arp {
        let asked = arp::read_arp(frame.get(usize::from(headers.network_offset)..)?)?;
        let is_asked = asked.operation == arp::REQUEST && !asked.is_announcement();
        return (is_asked && announces(asked.target_address.into())).then_some(Reply::Arp(mac));
    }
    let is_solicitation = headers.network == Network::Ipv6
        && headers.protocol == protocol::ICMPV6
        && headers.tcp_flags_or_icmp_type == nd::kind::SOLICITATION
        && headers.ttl == nd::HOP_LIMIT;
    let message = frame.get(usize::from(headers.transport_offset)..).filter(|_| is_solicitation)?;
    let asked = nd::read_solicitation(message)?;
    announces(asked.target.into()).then_some(Reply::NeighbourAdvertisement(mac))
}

/// The node on the link that the packet's source is routed to, without a tunnel; only its own station may send as it.
fn neighbour(walk: &mut Walk<'_>, port: &Port, segment: &Segment) -> Option<Arc<str>> {
    let SegmentKind::Routed(routed) = &segment.kind else { return None };
    let (_, route) = routed.route(walk.arrival.headers.source_address())?;
    let RouteTarget::Direct { peer } = route.target else { return None };
    walk.dependencies.ingress_peer = Some(peer);
    let entry = walk.tables.tunnels.peer(peer)?;
    let hop = entry.next_hop.filter(|hop| hop.port == port.index)?;
    (hop.destination_mac == walk.arrival.source_mac()).then(|| entry.name.clone())
}

/// Whether an address is one of the cluster's, and of this node's: packets from it do not come from outside.
fn is_of_cluster(segment: &Segment, address: IpAddr) -> bool {
    let SegmentKind::Routed(routed) = &segment.kind else { return false };
    routed.route(address).is_some_and(|(_, route)| !matches!(route.target, RouteTarget::Outside { .. }))
}

/// Whether a pod of this node is the destination and the source may call it by its own address.
fn reaches_pod(walk: &Walk<'_>, segment: &Segment) -> bool {
    let SegmentKind::Routed(routed) = &segment.kind else { return false };
    let headers = walk.arrival.headers;
    let is_pod = |port| walk.tables.ports.get(port).is_some_and(|port| matches!(port.role, PortRole::Pod(_)));
    walk.tables.outside.is_exempt(headers.source_address())
        && routed.route(headers.destination_address()).is_some_and(|(_, route)| match route.target {
            RouteTarget::Port { port, .. } => is_pod(port),
            _ => false,
        })
}

fn calls_service(walk: &Walk<'_>, segment: SegmentIndex) -> bool {
    called_in(walk, segment).is_some()
}

/// The address of a Service of the segment that a packet is for.
fn called_in<'a>(walk: &Walk<'a>, segment: SegmentIndex) -> Option<&'a Frontend> {
    let headers = walk.arrival.headers;
    let services = walk.tables.services.get(segment).filter(|_| !headers.has(flag::LATER_FRAGMENT))?;
    match services.find(headers.destination_address(), headers.protocol, headers.ports[1]) {
        Found::Frontend(frontend) => Some(frontend),
        Found::WrongPort | Found::Unallocated(_) | Found::Nothing => None,
    }
}

/// The tenant whose Service is called, at an address that is meant for callers from outside. Who calls must not claim an
/// address of the tenant's own.
fn tenant_called<'a>(walk: &Walk<'a>) -> Option<&'a Arc<Segment>> {
    let source = walk.arrival.headers.source_address();
    let calls = |index: &&SegmentIndex| {
        called_in(walk, **index).is_some_and(|frontend| frontend.kind != FrontendKind::ClusterIp)
    };
    let called = walk.tables.outside.tenants.iter().find(calls)?;
    walk.tables.segments.get(*called).filter(|segment| !is_of_cluster(segment, source))
}

/// Nothing of this packet is known here: it is the host's. Of a packet in fragments the first one decides, so a later one
/// waits for it.
fn not_ours<T>(walk: &mut Walk<'_>, port: &Port, target: HandBack, host: &Port) -> ControlFlow<Verdict, T> {
    let key = fragment_key(walk, SegmentIndex::OUTSIDE).filter(|_| walk.arrival.headers.has(flag::FRAGMENT));
    if let Some(key) = key {
        if !walk.arrival.headers.has(flag::LATER_FRAGMENT) {
            walk.fragment = Some((key, Fragmented::Hosts));
        } else if walk.state.fragments.find(&key, walk.now).is_none() {
            return walk.hold(Stage::Admit, key, Some(target));
        }
    }
    hand_back(walk, port, target, host)
}

/// What is not ours is the host's. The steering program cannot tell whose a fragment or an ICMP message is, so it takes
/// all of them.
fn hand_back<T>(walk: &mut Walk<'_>, port: &Port, target: HandBack, host: &Port) -> ControlFlow<Verdict, T> {
    walk.dependencies.egress = target.port;
    walk.note(Stage::Admit, || Reason::HandedBack(port.name.clone(), host.name.clone()));
    ControlFlow::Break(Verdict::HandBack(target))
}

/// Whether the packet was sent to this station and to an address of one host. Frames that another station was to get,
/// and groups, stay the uplink's: the kernel would take a frame whose MAC address is changed for its own.
fn is_for_one_host(arrival: &Arrival<'_>, mac: Mac) -> bool {
    let headers = arrival.headers;
    let is_single = match headers.destination_address() {
        IpAddr::V4(address) => !address.is_multicast() && !address.is_broadcast() && !address.is_unspecified(),
        IpAddr::V6(address) => !address.is_multicast() && !address.is_unspecified(),
    };
    matches!(headers.network, Network::Ipv4 | Network::Ipv6)
        && headers.vlan_tags == 0
        && is_single
        && arrival.destination_mac() == mac
}

fn admit_tunnelled<'a>(walk: &mut Walk<'a>) -> ControlFlow<Verdict, &'a Segment> {
    let Some(tunnel) = walk.arrival.tunnel else {
        return walk.drop(Stage::Admit, DropReason::NotForUs);
    };
    let Some(peer) = walk.tables.tunnels.peer(tunnel.peer) else {
        return walk.drop(Stage::Admit, DropReason::VxlanUnknownPeer);
    };
    let index = walk.tables.segments.by_vni(tunnel.vni);
    let Some(segment) = index.and_then(|index| walk.tables.segments.get(index)) else {
        return walk.drop(Stage::Admit, DropReason::VxlanUnknownVni);
    };
    walk.dependencies.segment = segment.index;
    if let SegmentKind::Routed(routed) = &segment.kind {
        if walk.arrival.headers.vlan_tags > 0 {
            return walk.drop(Stage::Admit, DropReason::VlanUnexpected);
        }
        if walk.arrival.destination_mac() != routed.tunnel_mac {
            return walk.drop(Stage::Admit, DropReason::MacNotOurs);
        }
        let source = walk.arrival.headers.source_address();
        let home = routed.route(source).map(|(_, route)| &route.target);
        // Whether a node that is reached without a tunnel sends by one is its own choice, as its tables are of the moment.
        let from_home = matches!(
            home,
            Some(RouteTarget::Tunnel { peer, .. } | RouteTarget::Direct { peer }) if *peer == tunnel.peer
        );
        if !from_home {
            return walk.drop(Stage::Admit, DropReason::TunnelSourceSpoofed);
        }
    }
    walk.note(Stage::Admit, || Reason::AdmittedFrom(peer.name.clone(), tunnel.vni, segment.name.clone()));
    ControlFlow::Continue(segment)
}
