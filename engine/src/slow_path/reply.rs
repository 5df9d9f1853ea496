//! Stage 2, `reply`: what the gateway answers itself in a routed segment: ARP, neighbour solicitations and echo
//! requests for its own addresses; and what no router forwards ends here.
//!
//! Before any forwarding, because these packets are addressed to the switch: all but answers to connections that were
//! masqueraded, which `connection` gives their real destination. Bridged segments have no gateway.

use std::net::Ipv6Addr;
use std::ops::ControlFlow;

use super::Walk;
use super::connection::answers_masqueraded;
use super::decision::{Reply, Stage, Verdict};
use crate::drop_reason::DropReason;
use crate::packet::Network;
use crate::packet::parse::{flag, protocol};
use crate::packet::wire::{arp, icmp, icmpv6, nd};
use crate::tables::{RoutedSegment, Segment, SegmentKind};

/// Answers, drops, or lets the packet pass on.
pub(super) fn reply(walk: &mut Walk<'_>, segment: &Segment) -> ControlFlow<Verdict> {
    let SegmentKind::Routed(routed) = &segment.kind else { return ControlFlow::Continue(()) };
    // Admission let it in for its connection or a Service: it is no talk with the gateway.
    if walk.from_outside || walk.from_neighbour {
        return ControlFlow::Continue(());
    }
    match walk.arrival.headers.network {
        Network::Arp => reply_arp(walk, routed),
        Network::Other => walk.drop(Stage::Reply, DropReason::EtherTypeUnsupported),
        Network::Ipv4 | Network::Ipv6 => reply_ip(walk, segment, routed),
    }
}

fn reply_arp(walk: &mut Walk<'_>, routed: &RoutedSegment) -> ControlFlow<Verdict> {
    let headers = walk.arrival.headers;
    let packet = walk.arrival.frame.get(headers.network_offset as usize..).unwrap_or_default();
    let request = arp::read_arp(packet).is_some_and(|arp| arp.operation == arp::REQUEST);
    if request && routed.gateway_addresses.contains(&headers.destination_address()) {
        return walk.answer(Reply::Arp(routed.gateway_mac));
    }
    walk.drop(Stage::Reply, DropReason::ArpNotForUs)
}

fn reply_ip(walk: &mut Walk<'_>, segment: &Segment, routed: &RoutedSegment) -> ControlFlow<Verdict> {
    let headers = walk.arrival.headers;
    if headers.network == Network::Ipv6
        && headers.protocol == protocol::ICMPV6
        && headers.tcp_flags_or_icmp_type == nd::kind::SOLICITATION
    {
        return reply_solicitation(walk, routed);
    }
    if walk.arrival.tunnel.is_none() && walk.arrival.destination_mac() != routed.gateway_mac {
        let reason = if headers.has(flag::GROUP_MAC) { DropReason::LinkScoped } else { DropReason::MacNotOurs };
        return walk.drop(Stage::Reply, reason);
    }
    if routed.is_own(headers.destination_address()) {
        // What was masqueraded comes back to the address it was given.
        if answers_masqueraded(walk, segment) {
            return ControlFlow::Continue(());
        }
        return reply_to_gateway(walk);
    }
    if headers.has(flag::LINK_SCOPE) {
        return walk.drop(Stage::Reply, DropReason::LinkScoped);
    }
    ControlFlow::Continue(())
}

/// RFC 4861 section 7.1.1 says which solicitations are valid; the target is what is asked for.
fn reply_solicitation(walk: &mut Walk<'_>, routed: &RoutedSegment) -> ControlFlow<Verdict> {
    let headers = walk.arrival.headers;
    let message = walk.arrival.frame.get(headers.transport_offset as usize..).unwrap_or_default();
    let solicitation = nd::read_solicitation(message).filter(|_| headers.ttl == nd::HOP_LIMIT);
    let ours =
        solicitation.is_some_and(|asked| routed.gateway_addresses.contains(&Ipv6Addr::from(asked.target).into()));
    if ours && !headers.source_address().is_unspecified() {
        return walk.answer(Reply::NeighbourAdvertisement(routed.gateway_mac));
    }
    walk.drop(Stage::Reply, DropReason::NeighbourSolicitationNotForUs)
}

fn reply_to_gateway(walk: &mut Walk<'_>) -> ControlFlow<Verdict> {
    let headers = walk.arrival.headers;
    let echo_request = match headers.protocol {
        protocol::ICMP => headers.tcp_flags_or_icmp_type == icmp::kind::ECHO_REQUEST,
        protocol::ICMPV6 => headers.tcp_flags_or_icmp_type == icmpv6::kind::ECHO_REQUEST,
        _ => return walk.drop(Stage::Reply, DropReason::GatewayPort),
    };
    if echo_request && !headers.has(flag::FRAGMENT) {
        return walk.answer(Reply::Echo);
    }
    walk.drop(Stage::Reply, DropReason::IcmpNotServed)
}
