//! Stage 7, `policy`: may these two speak to each other.
//!
//! After routing, which says what pods of this node are at the ends, and after Services, so that the pod behind one is
//! judged; before masquerade, so that the client is. Only pods of this node are judged: what its pod sends is judged by
//! the sender's node, what it receives by the receiver's, and between two pods of one node both are judged here.
//!
//! Judged is the connection, by its original direction and its real addresses, whichever way the packet goes: a reply
//! is as good as the question. A packet of no connection is judged as it is. The verdict is part of the cached decision,
//! so a packet of a known connection comes here again only when something it rests on has changed; a policy that denies
//! it then cuts the connection, unless every policy that denies it says that connections may finish.
//!
//! Not judged: a pod and itself, and what this node's own processes open to its pods (the kubelet's probes), which come
//! by the host's port and nothing else does. What a pod opens to its own node no NetworkPolicy denies ("traffic to and from
//! the node where a Pod is running is always allowed", says the Kubernetes page of them); rules of ClusterNetworkPolicies do,
//! which speak of nodes. ICMP is judged like anything else, by rules without ports; an error about a
//! connection is judged as that connection.
//!
//! [`judge_connection`] asks the same of a connection without a packet, for who wants to know what other tables would
//! make of it.

use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::Walk;
use super::decision::{Reason, Stage, Verdict};
use super::tracking::Tracking;
use crate::drop_reason::DropReason;
use crate::packet::PortIndex;
use crate::packet::parse::{flag, protocol};
use crate::state::{Connection, Direction as Way};
use crate::tables::policy::{Denial, Direction, Judgement, Packet, PeerView, RuleList};
use crate::tables::{PortRole, RouteTarget, Segment, SegmentIndex, SegmentKind, Snapshot};

/// The two ends of what is judged, and what of it rules can ask for.
struct Question<'a> {
    packet: Packet,
    source: PeerView<'a>,
    destination: PeerView<'a>,
    /// Port of the sending pod, if it is here.
    source_pod: Option<PortIndex>,
    /// Port of the receiving pod, if it is here.
    destination_pod: Option<PortIndex>,
    /// Whether this node's own processes opened it.
    from_host: bool,
    /// Whether it is for this node's own processes.
    to_host: bool,
}

/// Two ends by their addresses, and the ports of this node by which they are reached.
struct Ends {
    protocol: u8,
    /// Destination port, if it is known.
    port: Option<u16>,
    source: IpAddr,
    destination: IpAddr,
    client: Option<PortIndex>,
    server: Option<PortIndex>,
}

/// Lets the packet pass or drops it.
pub(super) fn policy(walk: &mut Walk<'_>, segment: &Segment, target: &RouteTarget) -> ControlFlow<Verdict> {
    if is_open(walk.tables, Some(walk.arrival.port)) && is_open(walk.tables, port_of(target)) {
        return ControlFlow::Continue(());
    }
    let known = matches!(walk.tracking, Tracking::Known(..) | Tracking::Related(..));
    let question = Question::new(walk.tables, Some(segment), &ends(walk, target));
    for (pod, direction) in question.asked().into_iter().flatten() {
        let Some(reason) = question.judge(walk.tables, pod, direction, known) else { continue };
        let denied = match &reason {
            Reason::Denied(_, _, reason) => Some(*reason),
            _ => None,
        };
        walk.record(Stage::Policy, reason);
        if let Some(reason) = denied {
            return ControlFlow::Break(Verdict::Drop(reason));
        }
    }
    ControlFlow::Continue(())
}

/// Whether no policy judges what the member at this port sends or receives, as with most: nothing need be asked then.
fn is_open(tables: &Snapshot, port: Option<PortIndex>) -> bool {
    let Some(port) = port else { return true };
    let is_pod = tables.ports.get(port).is_some_and(|port| matches!(port.role, PortRole::Pod(_)));
    !is_pod || tables.policy.pods.get(port).is_open()
}

/// What the policies in `tables` would say of the next packet of a connection, in the words of a trail; nothing where
/// none speaks of it. Routes tell which pods of this node are at its ends, as they do for its packets.
#[must_use]
pub fn judge_connection(tables: &Snapshot, connection: &Connection) -> Vec<Reason> {
    let (source, destination) = (connection.original.source_address(), connection.reply.source_address());
    let ends = Ends {
        protocol: connection.original.protocol,
        port: Some(connection.reply.ports[0]),
        source,
        destination,
        client: port_to(tables, connection.reply.segment, source),
        server: port_to(tables, connection.original.segment, destination),
    };
    let known_from = match connection.original.segment {
        SegmentIndex::OUTSIDE => connection.reply.segment,
        segment => segment,
    };
    let question = Question::new(tables, tables.segments.get(known_from).map(AsRef::as_ref), &ends);
    let mut reasons = Vec::new();
    for (pod, direction) in question.asked().into_iter().flatten() {
        reasons.extend(question.judge(tables, pod, direction, true));
        if matches!(reasons.last(), Some(Reason::Denied(..))) {
            break;
        }
    }
    reasons
}

/// The port by which packets to this address leave, if it is not a tunnel.
fn port_to(tables: &Snapshot, segment: SegmentIndex, address: IpAddr) -> Option<PortIndex> {
    let SegmentKind::Routed(routed) = &tables.segments.get(segment)?.kind else { return None };
    routed.route(address).and_then(|(_, route)| port_of(&route.target))
}

fn port_of(target: &RouteTarget) -> Option<PortIndex> {
    match target {
        RouteTarget::Port { port, .. } => Some(*port),
        _ => None,
    }
}

fn ends(walk: &Walk<'_>, target: &RouteTarget) -> Ends {
    let headers = walk.arrival.headers;
    let arrived = walk.arrival.tunnel.is_none().then_some(walk.arrival.port);
    let leaves = port_of(target);
    let protocol = match &walk.tracking {
        Tracking::Untracked => headers.protocol,
        Tracking::Opening(opening) => opening.original.protocol,
        Tracking::Known(connection, _) | Tracking::Related(connection, _) => connection.original.protocol,
    };
    let (source, destination, port, way) = match walk.parties() {
        Some(parties) => (parties.client.address, parties.server.address, Some(parties.server.port), parties.direction),
        None => {
            let port = (!headers.has(flag::LATER_FRAGMENT)).then_some(headers.ports[1]);
            (headers.source_address(), headers.destination_address(), port, Way::Original)
        }
    };
    let (client, server) = match way {
        Way::Original => (arrived, leaves),
        Way::Reply => (leaves, arrived),
    };
    Ends { protocol, port, source, destination, client, server }
}

impl<'a> Question<'a> {
    /// `segment`: as one of the two ends sees them.
    fn new(tables: &'a Snapshot, segment: Option<&Segment>, ends: &Ends) -> Self {
        let home = |address| segment.map_or(SegmentIndex::OUTSIDE, |segment| segment.home_of(address));
        let role = |port: PortIndex| tables.ports.get(port).map(|port| &port.role);
        let pod = |port: Option<PortIndex>| port.filter(|port| matches!(role(*port), Some(PortRole::Pod(_))));
        let is_host = |port: Option<PortIndex>| port.is_some_and(|port| matches!(role(port), Some(PortRole::Host(_))));
        let has_ports = matches!(ends.protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
        Self {
            packet: Packet { protocol: ends.protocol, port: ends.port.filter(|_| has_ports) },
            source: tables.policy.peer(home(ends.source), ends.source),
            destination: tables.policy.peer(home(ends.destination), ends.destination),
            source_pod: pod(ends.client),
            destination_pod: pod(ends.server),
            from_host: is_host(ends.client),
            to_host: is_host(ends.server),
        }
    }

    /// Which pods of this node are asked, in order: the sender, then the receiver.
    fn asked(&self) -> [Option<(PortIndex, Direction)>; 2] {
        if self.source_pod == self.destination_pod {
            return [None; 2];
        }
        let receiver = self.destination_pod.filter(|_| !self.from_host);
        [self.source_pod.map(|pod| (pod, Direction::Egress)), receiver.map(|pod| (pod, Direction::Ingress))]
    }

    /// What one direction of one pod says; `None` where no policy speaks of the packet. `known`: of a connection that
    /// is open already.
    fn judge(&self, tables: &Snapshot, pod: PortIndex, direction: Direction, known: bool) -> Option<Reason> {
        let policy = tables.policy.pods.get(pod).direction(direction);
        let denial = match tables.policy.judge(policy, direction, self.packet, self.source, self.destination) {
            Judgement::NotJudged => return None,
            Judgement::Allowed(list, place) => return Some(Reason::Allowed(direction, list, place)),
            Judgement::Denied(Denial::Isolated(_)) if self.to_host && direction == Direction::Egress => return None,
            Judgement::Denied(denial) => denial,
        };
        if known && all_keep(denial.lists()) {
            return Some(Reason::Finishes(direction, denial));
        }
        let reason = match (&denial, direction) {
            (Denial::Unknown(_) | Denial::UnknownPeer(..), _) => DropReason::PolicyPodUnknown,
            (Denial::Rule(..) | Denial::Isolated(_), Direction::Ingress) => DropReason::PolicyIngress,
            (Denial::Rule(..) | Denial::Isolated(_), Direction::Egress) => DropReason::PolicyEgress,
        };
        Some(Reason::Denied(direction, denial, reason))
    }
}

fn all_keep(lists: &[Arc<RuleList>]) -> bool {
    !lists.is_empty() && lists.iter().all(|list| list.policy.keeps_established)
}
