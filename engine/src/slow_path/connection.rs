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
use crate::packet::Headers;
use crate::packet::parse::flag;
use crate::state::{ConnectionFlags, ConnectionState, Direction, Tuple};
use crate::tables::Segment;

/// Finds the packet's connection or notes what it would open.
pub(super) fn connection(walk: &mut Walk<'_>, segment: &Segment) -> ControlFlow<Verdict> {
    let headers = walk.arrival.headers;
    let Some(tuple) = tuple(headers, segment) else { return ControlFlow::Continue(()) };
    let signal = headers.tcp_flags_or_icmp_type;
    let replaces = match walk.state.connections.find(&tuple) {
        Some((known, direction)) if !known.is_reopened_by(signal) => {
            walk.note(Stage::Connection, Reason::Known(direction));
            walk.tracking = Tracking::Known(known, direction);
            return ControlFlow::Continue(());
        }
        Some((over, _)) => Some(over.reference),
        None => None,
    };
    let Some(state) = ConnectionState::opened_by(tuple.protocol, signal) else {
        return walk.drop(Stage::Connection, DropReason::ConnectionInvalid);
    };
    walk.note(Stage::Connection, Reason::Opens);
    walk.tracking = Tracking::Opening(Opening { replaces, ..Opening::new(tuple, state) });
    ControlFlow::Continue(())
}

/// Whether the packet answers one that left under an address of the node's own: it is not for the node.
pub(super) fn answers_masqueraded(walk: &Walk<'_>, segment: &Segment) -> bool {
    let known = tuple(walk.arrival.headers, segment).and_then(|tuple| walk.state.connections.find(&tuple));
    known.is_some_and(|(known, direction)| {
        direction == Direction::Reply && known.flags.has(ConnectionFlags::MASQUERADED)
    })
}

/// The tuple that names the packet's connection. Later fragments have no ports; errors and other ICMP messages are about
/// a connection at most.
fn tuple(headers: &Headers, segment: &Segment) -> Option<Tuple> {
    let names_one = !headers.has(flag::LATER_FRAGMENT | flag::ICMP_ERROR | flag::ICMP_OTHER);
    names_one.then(|| Tuple::of(headers, segment.index))
}
