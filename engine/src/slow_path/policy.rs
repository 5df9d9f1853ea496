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
//! by the host's port and nothing else does. ICMP is judged like anything else, by rules without ports; an error about a
//! connection is judged as that connection.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::Walk;
use super::decision::{Reason, Stage, Verdict};
use super::tracking::Tracking;
use crate::drop_reason::DropReason;
use crate::packet::PortIndex;
use crate::packet::parse::{flag, protocol};
use crate::state::Direction as Way;
use crate::tables::policy::{Denial, Direction, Judgement, Packet, PeerView, RuleList};
use crate::tables::{PortRole, RouteTarget, Segment};

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
}

/// Lets the packet pass or drops it.
pub(super) fn policy(walk: &mut Walk<'_>, segment: &Segment, target: &RouteTarget) -> ControlFlow<Verdict> {
    let question = question(walk, segment, target);
    if question.source_pod == question.destination_pod {
        return ControlFlow::Continue(());
    }
    if let Some(pod) = question.source_pod {
        judge(walk, &question, pod, Direction::Egress)?;
    }
    match question.destination_pod {
        Some(pod) if !question.from_host => judge(walk, &question, pod, Direction::Ingress),
        Some(_) | None => ControlFlow::Continue(()),
    }
}

fn question<'a>(walk: &Walk<'a>, segment: &Segment, target: &RouteTarget) -> Question<'a> {
    let headers = walk.arrival.headers;
    let arrived = walk.arrival.tunnel.is_none().then_some(walk.arrival.port);
    let leaves = match target {
        RouteTarget::Port { port, .. } => Some(*port),
        _ => None,
    };
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
    let role = |port: PortIndex| walk.tables.ports.get(port).map(|port| &port.role);
    let pod = |port: Option<PortIndex>| port.filter(|port| matches!(role(*port), Some(PortRole::Pod(_))));
    let has_ports = matches!(protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
    Question {
        packet: Packet { protocol, port: port.filter(|_| has_ports) },
        source: walk.tables.policy.peer(segment.index, source),
        destination: walk.tables.policy.peer(segment.index, destination),
        source_pod: pod(client),
        destination_pod: pod(server),
        from_host: client.is_some_and(|port| matches!(role(port), Some(PortRole::Host(_)))),
    }
}

fn judge(walk: &mut Walk<'_>, question: &Question<'_>, pod: PortIndex, direction: Direction) -> ControlFlow<Verdict> {
    let table = &walk.tables.policy;
    let policy = table.pods.get(pod).direction(direction);
    let Question { packet, source, destination, .. } = question;
    let denial = match table.judge(policy, direction, *packet, *source, *destination) {
        Judgement::NotJudged => return ControlFlow::Continue(()),
        Judgement::Allowed(list, place) => {
            walk.note(Stage::Policy, Reason::Allowed(direction, list, place));
            return ControlFlow::Continue(());
        }
        Judgement::Denied(denial) => denial,
    };
    if matches!(walk.tracking, Tracking::Known(..) | Tracking::Related(..)) && denial.lists().is_some_and(all_keep) {
        walk.note(Stage::Policy, Reason::Finishes(direction, denial));
        return ControlFlow::Continue(());
    }
    let reason = match (&denial, direction) {
        (Denial::Unknown, _) => DropReason::PolicyPodUnknown,
        (_, Direction::Ingress) => DropReason::PolicyIngress,
        (_, Direction::Egress) => DropReason::PolicyEgress,
    };
    walk.note(Stage::Policy, Reason::Denied(direction, denial, reason));
    ControlFlow::Break(Verdict::Drop(reason))
}

fn all_keep(lists: &[Arc<RuleList>]) -> bool {
    lists.iter().all(|list| list.policy.keeps_established)
}
