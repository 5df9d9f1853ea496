//! Stage 6, `route`: the longest prefix that covers the destination, and the hop it costs.
//!
//! After everything that may change the destination, since the real one is routed. The TTL is tested here and not
//! at the end, as a router does: a packet that may not travel on is not worth asking where to.

use std::net::IpAddr;
use std::ops::ControlFlow;

use ipnet::IpNet;

use super::Walk;
use super::decision::{Reason, Rejection, Stage, Verdict};
use crate::drop_reason::DropReason;
use crate::tables::{RouteTarget, Segment, SegmentKind};

/// Finds where the packet goes or ends the walk.
pub(super) fn route<'a>(walk: &mut Walk<'a>, segment: &'a Segment) -> ControlFlow<Verdict, &'a RouteTarget> {
    let SegmentKind::Routed(routed) = &segment.kind else {
        return walk.drop(Stage::Route, DropReason::NoRoute);
    };
    if walk.arrival.headers.ttl <= 1 {
        return walk.reject(Stage::Route, DropReason::TimeExceeded, Rejection::TimeExceeded);
    }
    let destination = walk.destination();
    walk.dependencies.destination = destination;
    let Some((length, route)) = routed.route(destination) else {
        return walk.reject(Stage::Route, DropReason::NoRoute, Rejection::NoRoute);
    };
    walk.note(Stage::Route, || Reason::Routed(prefix(destination, length), route.name.clone()));
    match &route.target {
        RouteTarget::Unreachable => walk.reject(Stage::Route, DropReason::Unreachable, Rejection::NoRoute),
        // The node that sent it believed the address to be here: sending it back would loop until the TTL ends.
        RouteTarget::Tunnel { .. } | RouteTarget::Direct { .. } if walk.is_from_node() => {
            walk.drop(Stage::Route, DropReason::SplitHorizon)
        }
        // This node is the way out for its own pods only; answers of what it masqueraded itself are known.
        RouteTarget::Outside { .. } if walk.is_from_node() && !walk.tracking.is_answer() => {
            walk.drop(Stage::Route, DropReason::SplitHorizon)
        }
        target => ControlFlow::Continue(target),
    }
}

fn prefix(address: IpAddr, length: u8) -> IpNet {
    IpNet::new(address, length).map_or_else(|_| IpNet::from(address), |network| network.trunc())
}
