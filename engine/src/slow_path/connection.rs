//! Stage 4, `connection`: whose packet is this.
//!
//! Behind bridging, since only routed segments track connections, and before everything that chooses or translates: a
//! reply must find the addresses it is really for, and a known connection keeps what was chosen when it opened. See
//! `tracking.rs` for what later stages get.
//!
//! A packet that belongs to no connection and cannot open one (a reset, an answer to a question that nobody asked) ends
//! here, as kube-proxy drops what conntrack calls invalid: the ends may know each other by other addresses.

use std::ops::ControlFlow;

use super::Walk;
use super::decision::{Reason, Stage, Verdict};
use super::tracking::{Opening, Tracking};
use crate::drop_reason::DropReason;
use crate::packet::Network;
use crate::packet::parse::flag;
use crate::packet::quoted::{self, QUOTE_OFFSET, Quoted};
use crate::state::{Connection, ConnectionFlags, ConnectionState, Direction, FragmentKey, Fragmented, Tuple};
use crate::tables::{Segment, SegmentIndex};

/// Finds the packet's connection or notes what it would open.
pub(super) fn connection(walk: &mut Walk<'_>, segment: &Segment) -> ControlFlow<Verdict> {
    let headers = walk.arrival.headers;
    let segment = walk.side(segment.index);
    if headers.has(flag::LATER_FRAGMENT) {
        return later_fragment(walk, segment);
    }
    if headers.has(flag::FRAGMENT) {
        let said = tuple(walk, segment).map_or(Fragmented::Untracked, |tuple| Fragmented::Tracked(tuple.ports));
        walk.fragment = fragment_key(walk, segment).map(|key| (key, said));
    }
    if headers.has(flag::ICMP_ERROR) {
        if let Some((known, direction)) = related(walk, segment) {
            walk.note(Stage::Connection, || Reason::Related(direction));
            walk.tracking = Tracking::Related(known, direction);
        }
        return ControlFlow::Continue(());
    }
    let Some(tuple) = tuple(walk, segment) else { return ControlFlow::Continue(()) };
    let signal = headers.tcp_flags_or_icmp_type;
    let replaces = match walk.state.connections.find(&tuple) {
        Some((known, direction)) if !known.is_reopened_by(signal) => {
            walk.note(Stage::Connection, || Reason::Known(direction));
            walk.tracking = Tracking::Known(known, direction);
            return ControlFlow::Continue(());
        }
        Some((over, _)) => Some(over.reference),
        None => None,
    };
    let Some(state) = ConnectionState::opened_by(tuple.protocol, signal) else {
        return walk.drop(Stage::Connection, DropReason::ConnectionInvalid);
    };
    walk.note(Stage::Connection, || Reason::Opens);
    walk.tracking = Tracking::Opening(Opening { replaces, ..Opening::new(tuple, state) });
    ControlFlow::Continue(())
}

/// Whether the packet answers one that left under an address of the node's own: it is not for the node.
pub(super) fn answers_masqueraded(walk: &Walk<'_>, segment: &Segment) -> bool {
    known(walk, segment.index).is_some_and(|(known, direction)| {
        direction == Direction::Reply && known.flags.has(ConnectionFlags::MASQUERADED)
    })
}

/// The connection that a packet from outside belongs to or is about, and the segment of the other end.
pub(super) fn known_outside(walk: &Walk<'_>) -> Option<SegmentIndex> {
    known(walk, SegmentIndex::OUTSIDE).map(|(known, direction)| match direction {
        Direction::Original => known.reply.segment,
        Direction::Reply => known.original.segment,
    })
}

/// The connection that the packet belongs to, or is an error about.
fn known(walk: &Walk<'_>, segment: SegmentIndex) -> Option<(Connection, Direction)> {
    if walk.arrival.headers.has(flag::ICMP_ERROR) {
        return related(walk, segment);
    }
    tuple(walk, segment).and_then(|tuple| walk.state.connections.find(&tuple))
}

/// A later fragment has the connection of its first one, or none if that has none. Without the first nobody knows where it
/// belongs: it may have to be translated, and what cannot be put together again is of no use. So it waits a moment.
fn later_fragment(walk: &mut Walk<'_>, segment: SegmentIndex) -> ControlFlow<Verdict> {
    let key = fragment_key(walk, segment);
    match key.and_then(|key| walk.state.fragments.find(&key, walk.now)) {
        Some(Fragmented::Untracked) => return ControlFlow::Continue(()),
        Some(Fragmented::Tracked(_) | Fragmented::Hosts) => {}
        None => {
            if let Some(key) = key {
                return walk.hold(Stage::Connection, key, None);
            }
        }
    }
    let known = tuple(walk, segment).and_then(|tuple| walk.state.connections.find(&tuple));
    let Some((known, direction)) = known else {
        return walk.drop(Stage::Connection, DropReason::FragmentWithoutFirst);
    };
    walk.note(Stage::Connection, || Reason::Known(direction));
    walk.tracking = Tracking::Known(known, direction);
    ControlFlow::Continue(())
}

/// What the fragments of the packet share.
pub(super) fn fragment_key(walk: &Walk<'_>, segment: SegmentIndex) -> Option<FragmentKey> {
    let headers = walk.arrival.headers;
    let packet = walk.arrival.frame.get(usize::from(headers.network_offset)..)?;
    FragmentKey::of(headers, packet, segment)
}

/// The tuple that names the packet's connection: a later fragment's ports are those of its first one. ICMP errors are
/// about a connection, and other ICMP messages belong to none.
fn tuple(walk: &Walk<'_>, segment: SegmentIndex) -> Option<Tuple> {
    let headers = walk.arrival.headers;
    if headers.has(flag::ICMP_ERROR | flag::ICMP_OTHER) {
        return None;
    }
    let tuple = Tuple::of(headers, segment);
    if !headers.has(flag::LATER_FRAGMENT) {
        return Some(tuple);
    }
    match fragment_key(walk, segment).and_then(|key| walk.state.fragments.find(&key, walk.now)) {
        Some(Fragmented::Tracked(ports)) => Some(Tuple { ports, ..tuple }),
        Some(Fragmented::Untracked | Fragmented::Hosts) | None => None,
    }
}

/// The connection that an ICMP error is about, and the direction the error goes: against the packet it quotes, which
/// was translated already when it met whoever tells.
fn related(walk: &Walk<'_>, segment: SegmentIndex) -> Option<(Connection, Direction)> {
    let headers = walk.arrival.headers;
    let end = usize::from(headers.network_offset) + headers.network_length as usize;
    let packet = walk.arrival.frame.get(..end).unwrap_or(walk.arrival.frame);
    let is_first = !headers.has(flag::LATER_FRAGMENT);
    let quote = packet.get(usize::from(headers.transport_offset) + QUOTE_OFFSET..).filter(|_| is_first)?;
    let ipv6 = headers.network == Network::Ipv6;
    let Quoted { source, destination, ports, protocol, .. } = quoted::read(quote, ipv6)?;
    let sent = Tuple { source, destination, ports, segment, protocol, ipv6 };
    walk.state.connections.find(&sent.mirrored())
}
