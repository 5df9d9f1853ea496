//! A plan into the engine's tables.
//!
//! Compiling edits a copy of the tables compiled from the plan before: what is equal in both plans stays the very
//! same memory, so that a publish costs what changed and the change set is found by comparing pointers. The result
//! is what compiling from nothing gives; a property test holds the two against each other. A plan that contradicts
//! itself is refused as a whole, since half a table would drop packets nobody can explain.

mod difference;
mod services;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use millrace_engine::limits;
use millrace_engine::packet::PortIndex;
use millrace_engine::tables::lookup::PrefixTree;
use millrace_engine::tables::{
    Outside, PortRole, PortTable, Route, RouteTarget, RoutedSegment, Segment, SegmentIndex, SegmentKind, SegmentTable,
    Snapshot, Tunnels, Vni, address_bits,
};

use crate::plan::{NodePlan, OutsidePlan, SegmentPlan, TunnelPlan};
use difference::differences;

/// Why a plan is refused. Each is a defect of the planner, not of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// A port's number is beyond the table.
    #[error("port {name} has the number {number}, beyond the limit of {}", limits::PORTS)]
    PortBeyondLimit {
        /// The port.
        name: Arc<str>,
        /// Its number.
        number: u16,
    },
    /// A port stands at another number than its own.
    #[error("port {name} stands at {at:?}")]
    PortMisplaced {
        /// The port.
        name: Arc<str>,
        /// Where it stands.
        at: PortIndex,
    },
    /// Two segments have one identifier.
    #[error("segments {first:?} and {second:?} both have the VNI {vni}")]
    VniTwice {
        /// One segment.
        first: SegmentIndex,
        /// The other.
        second: SegmentIndex,
        /// Their identifier.
        vni: Vni,
    },
    /// A pod or the host is in a segment that does not exist.
    #[error("port {name} is in segment {segment:?}, which does not exist")]
    NoSegment {
        /// The port.
        name: Arc<str>,
        /// The segment.
        segment: SegmentIndex,
    },
    /// A route leads to a port that does not exist.
    #[error("route {prefix} ({name}) leads to port {port:?}, which does not exist")]
    NoPort {
        /// The route's prefix.
        prefix: IpNet,
        /// The route's name.
        name: Arc<str>,
        /// The port.
        port: PortIndex,
    },
    /// A member of a bridged segment does not exist.
    #[error("segment {segment} has the member {port:?}, which does not exist")]
    NoMember {
        /// The segment.
        segment: Arc<str>,
        /// The port.
        port: PortIndex,
    },
    /// A route leads to a node without a tunnel.
    #[error("route {prefix} ({name}) leads to {peer}, which is no peer")]
    NoPeer {
        /// The route's prefix.
        prefix: IpNet,
        /// The route's name.
        name: Arc<str>,
        /// The peer's address.
        peer: IpAddr,
    },
}

/// Compiles `plan`. `previous` is a plan with the tables compiled from it, to be reused where the plans agree.
/// The generation is left for the publisher to set.
pub fn compile(plan: &NodePlan, previous: Option<(&NodePlan, &Snapshot)>) -> Result<Snapshot, CompileError> {
    check(plan)?;
    let nothing = (NodePlan::default(), Snapshot::default());
    let (before, tables) = previous.unwrap_or((&nothing.0, &nothing.1));
    let mut snapshot = tables.clone();
    ports(before, plan, &mut snapshot.ports);
    segments(before, plan, &mut snapshot.segments);
    bridged_segments(before, plan, &mut snapshot.segments);
    tunnels(&before.tunnels, &plan.tunnels, &mut snapshot.tunnels);
    outside(&before.outside, &plan.outside, &mut snapshot.outside);
    services::services(&before.services, &plan.services, &mut snapshot.services);
    // Planned in the engine's own terms, sharing what did not change.
    snapshot.policy = plan.policy.clone();
    if *snapshot.mirrors != plan.mirrors {
        snapshot.mirrors = Arc::new(plan.mirrors.clone());
    }
    if *snapshot.bandwidth != plan.bandwidth {
        snapshot.bandwidth = Arc::new(plan.bandwidth.clone());
    }
    Ok(snapshot)
}

fn ports(before: &NodePlan, plan: &NodePlan, table: &mut PortTable) {
    differences(&before.ports, &plan.ports, |index, port| match port {
        Some(port) => table.insert(port.clone()),
        None => table.remove(*index),
    });
}

fn segments(before: &NodePlan, plan: &NodePlan, table: &mut SegmentTable) {
    differences(&before.segments, &plan.segments, |index, segment| match segment {
        Some(segment) => {
            let base = before.segments.get(index).zip(table.get(*index));
            let routed = routed_segment(base.map(|(plan, table)| (plan, table.as_ref())), segment);
            let kind = SegmentKind::Routed(routed);
            table.insert(Segment { index: *index, name: Arc::clone(&segment.name), vni: Some(segment.vni), kind });
        }
        None => table.remove(*index),
    });
}

fn bridged_segments(before: &NodePlan, plan: &NodePlan, table: &mut SegmentTable) {
    differences(&before.bridged, &plan.bridged, |index, bridged| match bridged {
        Some(bridged) => table.insert(Segment {
            index: *index,
            name: Arc::clone(&bridged.name),
            vni: bridged.vni,
            kind: SegmentKind::Bridged(bridged.segment.clone()),
        }),
        None => table.remove(*index),
    });
}

fn routed_segment(previous: Option<(&SegmentPlan, &Segment)>, plan: &SegmentPlan) -> RoutedSegment {
    let (before, trees) = match previous {
        Some((before, Segment { kind: SegmentKind::Routed(routed), .. })) => {
            (Some(before), (routed.routes_ipv4.clone(), routed.routes_ipv6.clone()))
        }
        _ => (None, (PrefixTree::new(), PrefixTree::new())),
    };
    let mut routed = RoutedSegment {
        gateway_mac: plan.gateway_mac,
        gateway_addresses: plan.gateway_addresses.clone(),
        router_addresses: plan.router_addresses.clone(),
        masquerade_ports: plan.masquerade_ports,
        known_outside: plan.known_outside,
        connected: plan.connected.iter().map(|(prefix, segment)| (*prefix, *segment)).collect(),
        tunnel_mac: plan.tunnel_mac,
        routes_ipv4: trees.0,
        routes_ipv6: trees.1,
    };
    let edit = |prefix: &IpNet, route: Option<&Route>| {
        let address = prefix.addr();
        let tree = routed.routes_mut(address);
        match route {
            Some(route) => drop(tree.insert(address_bits(address), prefix.prefix_len(), route.clone())),
            None => drop(tree.remove(address_bits(address), prefix.prefix_len())),
        }
    };
    let nothing = std::collections::BTreeMap::new();
    differences(before.map_or(&nothing, |before| &before.routes), &plan.routes, edit);
    routed
}

fn tunnels(before: &TunnelPlan, plan: &TunnelPlan, tunnels: &mut Tunnels) {
    tunnels.udp_port = plan.udp_port;
    if *tunnels.local != plan.local {
        tunnels.local = Arc::new(plan.local.clone());
    }
    differences(&before.peers, &plan.peers, |address, peer| match peer {
        Some(peer) => tunnels.insert_peer(peer.clone()),
        None => tunnels.remove_peer(*address),
    });
}

fn outside(before: &OutsidePlan, plan: &OutsidePlan, outside: &mut Outside) {
    outside.ports = plan.ports;
    if before.exempt != plan.exempt {
        outside.exempt = plan.exempt.iter().copied().collect();
    }
    if before.tenants != plan.tenants {
        outside.tenants = plan.tenants.iter().copied().collect();
    }
    if before.announced != plan.announced {
        let mut announced: Vec<_> = plan.announced.iter().map(|(address, port)| (*port, *address)).collect();
        announced.sort_unstable();
        outside.announced = announced.into();
    }
    if before.neighbours != plan.neighbours {
        outside.set_neighbours(plan.neighbours.iter().map(|(key, mac)| (*key, *mac)));
    }
}

fn check(plan: &NodePlan) -> Result<(), CompileError> {
    for (index, port) in &plan.ports {
        let name = || Arc::clone(&port.name);
        if usize::from(index.0) >= limits::PORTS {
            return Err(CompileError::PortBeyondLimit { name: name(), number: index.0 });
        }
        if port.index != *index {
            return Err(CompileError::PortMisplaced { name: name(), at: *index });
        }
        let segment = match &port.role {
            PortRole::Pod(pod) => Some(pod.segment),
            PortRole::Host(host) => Some(host.segment),
            PortRole::Bridged(_) | PortRole::Uplink(_) | PortRole::Mirror => None,
        };
        if let Some(segment) = segment.filter(|segment| !plan.segments.contains_key(segment)) {
            return Err(CompileError::NoSegment { name: name(), segment });
        }
    }
    let mut identifiers = std::collections::BTreeMap::new();
    for (index, segment) in &plan.segments {
        if let Some(first) = identifiers.insert(segment.vni, *index) {
            return Err(CompileError::VniTwice { first, second: *index, vni: segment.vni });
        }
        segment.routes.iter().try_for_each(|(prefix, route)| check_route(plan, *prefix, route))?;
    }
    for (index, bridged) in &plan.bridged {
        if let Some((vni, first)) = bridged.vni.and_then(|vni| Some((vni, identifiers.insert(vni, *index)?))) {
            return Err(CompileError::VniTwice { first, second: *index, vni });
        }
        for member in &bridged.segment.members {
            if !plan.ports.contains_key(&member.port) {
                return Err(CompileError::NoMember { segment: Arc::clone(&bridged.name), port: member.port });
            }
        }
    }
    Ok(())
}

fn check_route(plan: &NodePlan, prefix: IpNet, route: &Route) -> Result<(), CompileError> {
    let name = || Arc::clone(&route.name);
    match &route.target {
        RouteTarget::Port { port, .. } | RouteTarget::Outside { port, .. } if !plan.ports.contains_key(port) => {
            Err(CompileError::NoPort { prefix, name: name(), port: *port })
        }
        RouteTarget::Tunnel { peer, .. } | RouteTarget::Direct { peer } if !plan.tunnels.peers.contains_key(peer) => {
            Err(CompileError::NoPeer { prefix, name: name(), peer: *peer })
        }
        RouteTarget::Port { .. } | RouteTarget::Tunnel { .. } | RouteTarget::Direct { .. } => Ok(()),
        RouteTarget::Outside { .. } | RouteTarget::Unreachable => Ok(()),
    }
}
