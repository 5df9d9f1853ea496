//! Stage 8, `masquerade`: the source address and port under which a new connection goes on.
//!
//! Behind everything that judges the client, which must see its real address, and behind `route`, since the address
//! depends on where the packet goes. Three sorts of opening get a new source: one that a stage before demanded, which
//! becomes the node's own; one that leaves the cluster, which becomes the uplink's, since nobody outside knows the way to
//! a pod but in networks that the configuration exempts; and one whose answers could not be told from another connection's (a client port that is used towards two
//! Services with one endpoint), which keeps its address and gets another port, as Linux does. What leaves the cluster and
//! is of no connection that answers from there would find ends here: its sender's address must not be seen outside.
//!
//! No port is handed out: the tuple of the answers is the claim on it, and the connection table has each tuple once. So
//! workers need no share of the range each. The first port tried follows from a keyed hash of the packet's tuple, the
//! others from a step that meets every port of the range; at most [`MASQUERADE_PROBES`] are tried, each costs one look
//! into the table. If none is free the packet is dropped: nothing leaves under a source that the answer would not find.

use std::net::SocketAddr;
use std::ops::ControlFlow;

use super::Walk;
use super::decision::{Reason, Stage, Verdict};
use super::tracking::{Opening, Tracking};
use crate::drop_reason::DropReason;
use crate::limits::MASQUERADE_PROBES;
use crate::packet::parse::{flag, protocol};
use crate::state::{ConnectionFlags, Direction, Tuple};
use crate::tables::lookup::mix;
use crate::tables::{
    PortRange, PortRole, RouteTarget, RoutedSegment, Segment, SegmentIndex, SegmentKind, address_octets,
};

/// Why the source of a connection must become the node's own: else the answer would not come back here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Masquerade {
    /// The endpoint is the client itself.
    Hairpin,
    /// The client is outside the cluster, or is the node.
    NotFromPod,
    /// The address is one for clients outside, under the policy `Cluster`.
    External,
    /// The configuration masquerades everything.
    All,
}

impl Masquerade {
    /// The word that trace prints.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hairpin => "hairpin",
            Self::NotFromPod => "not from a pod",
            Self::External => "external",
            Self::All => "all",
        }
    }
}

/// Gives an opening the source that its answers will find, or ends the walk.
pub(super) fn masquerade(walk: &mut Walk<'_>, segment: &Segment, target: &RouteTarget) -> ControlFlow<Verdict> {
    let SegmentKind::Routed(routed) = &segment.kind else { return ControlFlow::Continue(()) };
    let leaves = matches!(target, RouteTarget::Outside { .. });
    let far_side = if leaves { SegmentIndex::OUTSIDE } else { segment.home_of(walk.destination()) };
    if source_is_another(walk, routed, target, far_side) {
        walk.reopen_towards_server();
    }
    let is_exempt = routed.known_outside && walk.tables.outside.is_exempt(walk.destination());
    let Some(opening) = walk.opening() else {
        return if leaves && !is_exempt && !answers_come_from(walk, far_side) {
            walk.drop(Stage::Masquerade, DropReason::OutsideUntracked)
        } else {
            ControlFlow::Continue(())
        };
    };
    opening.reply_segment = far_side;
    let opening = *opening;
    let hides = leaves && !is_exempt;
    if hides && !has_ports(&opening.original) {
        return walk.drop(Stage::Masquerade, DropReason::OutsideUntracked);
    }
    if hides && would_look_like_a_tunnel(walk, &opening) {
        return walk.drop(Stage::Masquerade, DropReason::TunnelForged);
    }
    let is_demanded = opening.masquerade.is_some() && !returns_anyway(walk, target);
    let own = opening.original.source;
    let address = if hides || is_demanded || answers_go_astray(walk, target) {
        let Some(address) = source_towards(walk, routed, target) else {
            return walk.drop(Stage::Masquerade, DropReason::MasqueradeUnavailable);
        };
        address
    } else {
        own
    };
    if address == own && is_free(walk, &opening) {
        return ControlFlow::Continue(());
    }
    let ports = if leaves { walk.tables.outside.ports } else { routed.masquerade_ports };
    let Some(chosen) = choose(walk, &opening, address, ports) else {
        return walk.drop(Stage::Masquerade, DropReason::MasqueradePortsExhausted);
    };
    let source = chosen.reply();
    let source = SocketAddr::new(source.destination_address(), source.ports[1]);
    walk.note(
        Stage::Masquerade,
        || if address == own { Reason::PortTaken(source) } else { Reason::Masqueraded(source) },
    );
    walk.opening().into_iter().for_each(|opening| *opening = chosen);
    ControlFlow::Continue(())
}

/// Under this node's address, which other nodes know as a peer's, a datagram to their tunnel port would be taken for a tunnel's,
/// with whatever frame the pod put inside.
fn would_look_like_a_tunnel(walk: &Walk<'_>, opening: &Opening) -> bool {
    let (server, tunnels) = (opening.reply(), &walk.tables.tunnels);
    server.protocol == protocol::UDP
        && server.ports[0] == tunnels.udp_port
        && tunnels.peer(server.source_address()).is_some()
}

/// Whether a known connection's source is not what it would get now, since the node's address on the way out is another
/// one or its server lies on the other side of the uplink now: its answers would not come back. Linux forgets such
/// connections too when an address goes.
fn source_is_another(walk: &Walk<'_>, routed: &RoutedSegment, target: &RouteTarget, far_side: SegmentIndex) -> bool {
    let Tracking::Known(connection, Direction::Original) = &walk.tracking else { return false };
    if walk.arrival.headers.has(flag::LATER_FRAGMENT) {
        return false;
    }
    let is_masqueraded = connection.flags.has(ConnectionFlags::MASQUERADED);
    let moved = connection.reply.segment != far_side;
    let leaves = far_side == SegmentIndex::OUTSIDE;
    // Only a new port under its own address is as good as another.
    let has_own = connection.reply.destination == connection.original.source;
    let wanted = || source_towards(walk, routed, target);
    moved || (leaves && is_masqueraded && !has_own && wanted() != Some(connection.reply.destination))
}

/// Whether what opens nothing belongs to a connection with an end on that side.
fn answers_come_from(walk: &Walk<'_>, far_side: SegmentIndex) -> bool {
    match &walk.tracking {
        Tracking::Known(connection, direction) | Tracking::Related(connection, direction) => match direction {
            Direction::Original => connection.reply.segment == far_side,
            Direction::Reply => connection.original.segment == far_side,
        },
        Tracking::Untracked | Tracking::Opening(_) => false,
    }
}

/// The host's kernel answers clients outside by its own routes, past the switch that knows the client's own question.
fn answers_go_astray(walk: &Walk<'_>, target: &RouteTarget) -> bool {
    walk.from_outside && leads_to_host(walk, target)
}

fn leads_to_host(walk: &Walk<'_>, target: &RouteTarget) -> bool {
    let role = |port| walk.tables.ports.get(port).map(|port| &port.role);
    matches!(target, RouteTarget::Port { port, .. } if matches!(role(*port), Some(PortRole::Host(_))))
}

/// The host sends its answers to pods through the switch in any case, so a pod keeps its address towards the host, as it
/// does with kube-proxy, whose rules do not touch what is for the host itself.
fn returns_anyway(walk: &Walk<'_>, target: &RouteTarget) -> bool {
    let role = walk.tables.ports.get(walk.arrival.port).map(|port| &port.role);
    matches!(role, Some(PortRole::Pod(_))) && leads_to_host(walk, target)
}

/// The switch's own address towards the destination. That of the gateway is good on this node only: every node has it.
fn source_towards(walk: &Walk<'_>, routed: &RoutedSegment, target: &RouteTarget) -> Option<[u8; 16]> {
    let address = routed.source_towards(walk.destination())?;
    let stays_here = matches!(target, RouteTarget::Port { .. });
    (stays_here || !routed.gateway_addresses.contains(&address)).then(|| address_octets(address))
}

/// The opening with the first port of its row that is free.
fn choose(walk: &Walk<'_>, opening: &Opening, address: [u8; 16], range: PortRange) -> Option<Opening> {
    if !has_ports(&opening.original) {
        let kept = with_source(opening, address, opening.original.ports[0]);
        return is_free(walk, &kept).then_some(kept);
    }
    let count = u64::from(range.count());
    let bits = mix(walk.state.connections.keyed_hash(&opening.original));
    let (first, step) = (bits % count, step(bits >> 32, count));
    let numbers = (0..count.min(MASQUERADE_PROBES)).map(|probe| (first + probe * step) % count);
    let candidates = numbers.map(|number| with_source(opening, address, range.first() + number as u16));
    candidates.into_iter().find(|candidate| is_free(walk, candidate))
}

/// A step that meets every number below `count`: one that has no divisor in common with it.
fn step(bits: u64, count: u64) -> u64 {
    let divides_both = |mut a: u64, mut b: u64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a > 1
    };
    let mut step = 1 + bits % count;
    while divides_both(step, count) {
        step += 1;
    }
    step
}

fn with_source(opening: &Opening, address: [u8; 16], port: u16) -> Opening {
    let mut translated = Opening { flags: opening.flags.with(ConnectionFlags::MASQUERADED), ..*opening };
    translated.translation.source = Some((address, port));
    if is_echo(&opening.original) {
        // The one identifier stands for both ports.
        let destination = translated.translation.destination.map_or(opening.original.destination, |(to, _)| to);
        translated.translation.destination = Some((destination, port));
    }
    translated
}

const fn is_echo(tuple: &Tuple) -> bool {
    matches!(tuple.protocol, protocol::ICMP | protocol::ICMPV6)
}

const fn has_ports(tuple: &Tuple) -> bool {
    is_echo(tuple) || matches!(tuple.protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
}

/// Whether answers to it would be nobody else's. A connection that makes room for this one counts as gone.
fn is_free(walk: &Walk<'_>, opening: &Opening) -> bool {
    let holder = walk.state.connections.find(&opening.reply());
    holder.is_none_or(|(holder, _)| Some(holder.reference) == opening.replaces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::wire::icmp;
    use crate::state::ConnectionState;

    /// The identifier of an echo stands for both ports, so its answer must be known by the new one on both sides.
    #[test]
    fn an_echo_gets_another_identifier_and_its_answer_has_it() {
        let octets = |last| address_octets([10, 1, 0, last].into());
        let original = Tuple {
            source: octets(5),
            destination: octets(7),
            ports: [9, 9],
            segment: SegmentIndex(1),
            protocol: protocol::ICMP,
            ipv6: false,
        };
        let state = ConnectionState::opened_by(protocol::ICMP, icmp::kind::ECHO_REQUEST).expect("it opens");
        let translated = with_source(&Opening::new(original, state), octets(0), 40_000);
        let answer = Tuple { source: octets(7), destination: octets(0), ports: [40_000, 40_000], ..original };
        assert_eq!(translated.reply(), answer);
        assert!(translated.flags.has(ConnectionFlags::MASQUERADED));
    }

    #[test]
    fn a_step_meets_every_port_of_any_range() {
        for count in [1_u64, 2, 3, 4, 30, 210, 2_310, 30_030, 32_768, 65_535] {
            for bits in [0, 1, 5, 29, 2_309, u64::from(u32::MAX)] {
                let step = step(bits, count);
                let mut met = vec![false; count as usize];
                (0..count).for_each(|probe| met[(probe * step % count) as usize] = true);
                assert!(met.into_iter().all(|met| met), "count {count}, bits {bits}, step {step}");
            }
        }
    }
}
