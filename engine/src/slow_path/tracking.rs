//! The contract between `connection` and the stages behind it: whose packet this is, and what a new connection will be.
//!
//! - `connection` finds the packet's connection, or notes what the packet would open. A known connection fixes the
//!   packet's direction and what is translated; no later stage chooses anything for it.
//! - A stage that chooses for new connections (Service, masquerade) asks [`Walk::opening`], which is `None` for every
//!   packet that opens none, and writes its choice into the [`Opening`]. It changes nothing else.
//! - A stage that asks where the packet goes takes [`Walk::destination`], which is the translated one.
//! - A stage that judges who may speak to whom takes [`Walk::parties`]: the connection's original direction with real
//!   addresses (the client before masquerade, the server behind a Service), the same for both directions.
//! - A connection that may be decided anew is turned into an opening by [`Walk::reopen`].
//!
//! Nothing is written during the walk: `carry_out` commits the opening. If another worker was faster (the same
//! connection, the same masquerade port), the packet is decided again, so choices must follow from tables, state and
//! time alone.

use std::net::IpAddr;

use super::decision::Lesson;
use super::{Masquerade, Walk};
use crate::edit::Translation;
use crate::packet::Headers;
use crate::packet::parse::{flag, protocol};
use crate::state::{
    Connection, ConnectionFlags, ConnectionReference, ConnectionState, Direction, NewConnection, Tuple,
};
use crate::tables::SegmentIndex;

/// Whose packet this is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tracking {
    /// Nobody's: it is bridged, or of a kind that has no connection.
    Untracked,
    /// It opens a connection, if it is forwarded.
    Opening(Opening),
    /// It belongs to a connection.
    Known(Connection, Direction),
    /// It is an ICMP error about a connection, and goes as the connection's packets of this direction go.
    Related(Connection, Direction),
}

/// The connection that a packet will open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opening {
    /// The packet's own tuple.
    pub(super) original: Tuple,
    /// State it begins in.
    pub(super) state: ConnectionState,
    /// What is done to packets of the original direction; the reverse is done to replies.
    pub(super) translation: Translation,
    /// Why the source must become the node's own, if it must; stage `masquerade` sees to it.
    pub(super) masquerade: Option<Masquerade>,
    /// Segment that replies will come in by: the packet's own unless a stage says otherwise.
    pub(super) reply_segment: SegmentIndex,
    /// Facts about it.
    pub(super) flags: ConnectionFlags,
    /// Number of the Service; 0 without one.
    pub(super) service: u32,
    /// Number of the endpoint; 0 without one.
    pub(super) endpoint: u32,
    /// A connection of the same tuple that makes room.
    pub(super) replaces: Option<ConnectionReference>,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Party {
    /// Its real address.
    pub(super) address: IpAddr,
    /// Its real port, or the echo identifier.
    pub(super) port: u16,
}

/// Who speaks to whom: the two ends of a connection, whichever of them sent the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parties {
    /// Who opened it, before masquerade.
    pub(super) client: Party,
    /// Who answers, behind any Service.
    pub(super) server: Party,
    /// The packet's direction.
    pub(super) direction: Direction,
}

impl Opening {
    /// What a packet of `original` opens in `state`, where no stage chooses anything.
    pub(super) fn new(original: Tuple, state: ConnectionState) -> Self {
        Self {
            original,
            state,
            translation: Translation::NONE,
            masquerade: None,
            reply_segment: original.segment,
            flags: ConnectionFlags::NONE,
            service: 0,
            endpoint: 0,
            replaces: None,
        }
    }

    /// The tuple that replies will have: the claim of this connection on ports of its own.
    pub(super) fn reply(&self) -> Tuple {
        let mut sent = self.original;
        if let Some((address, port)) = self.translation.source {
            (sent.source, sent.ports[0]) = (address, port);
        }
        if let Some((address, port)) = self.translation.destination {
            (sent.destination, sent.ports[1]) = (address, port);
        }
        Tuple { segment: self.reply_segment, ..sent.mirrored() }
    }

    fn connection(&self) -> NewConnection {
        NewConnection {
            original: self.original,
            reply: self.reply(),
            state: self.state,
            flags: self.flags,
            service: self.service,
            endpoint: self.endpoint,
            replaces: self.replaces,
        }
    }
}

impl Tracking {
    /// Whether the packet goes back to who opened its connection, or is about what does.
    pub(super) fn is_answer(&self) -> bool {
        matches!(self, Tracking::Known(_, Direction::Reply) | Tracking::Related(_, Direction::Reply))
    }

    /// What is done to this packet.
    pub(super) fn translation(&self) -> Translation {
        match self {
            Tracking::Untracked => Translation::NONE,
            Tracking::Opening(opening) => opening.translation,
            Tracking::Known(connection, direction) | Tracking::Related(connection, direction) => {
                connection.translation(*direction)
            }
        }
    }

    /// What the packet teaches, if it is forwarded.
    pub(super) fn lesson(&self, headers: &Headers) -> Option<Lesson> {
        match self {
            // An error keeps nothing alive.
            Tracking::Untracked | Tracking::Related(..) => None,
            // What the connection is to learn of a packet stood in its first fragment.
            Tracking::Known(..) if headers.has(flag::LATER_FRAGMENT) => None,
            Tracking::Opening(opening) => Some(Lesson::Open(opening.connection())),
            Tracking::Known(connection, direction) => Some(Lesson::Advance {
                connection: connection.reference,
                direction: *direction,
                signal: headers.tcp_flags_or_icmp_type,
            }),
        }
    }

    /// Whether later packets may do without the slow path: the connection is neither being opened nor closed.
    pub(super) fn is_settled(&self, headers: &Headers) -> bool {
        match self {
            Tracking::Untracked | Tracking::Related(..) => true,
            Tracking::Opening(opening) => opening.state.is_settled(),
            Tracking::Known(connection, direction) => {
                connection.state_after(*direction, headers.tcp_flags_or_icmp_type).is_settled()
            }
        }
    }
}

// Policy stands behind this contract.
#[allow(dead_code)]
impl Walk<'_> {
    /// The connection that this packet opens, to choose for it; `None` for packets that open none.
    pub(super) fn opening(&mut self) -> Option<&mut Opening> {
        match &mut self.tracking {
            Tracking::Opening(opening) => Some(opening),
            Tracking::Untracked | Tracking::Known(..) | Tracking::Related(..) => None,
        }
    }

    /// Turns a known connection into one that is opened anew, with everything to be chosen again; the old one makes
    /// room. For packets that would open it themselves, such as a SYN that was never answered.
    pub(super) fn reopen(&mut self) {
        let Tracking::Known(connection, direction) = self.tracking else { return };
        let signal = self.arrival.headers.tcp_flags_or_icmp_type;
        let Some(state) = ConnectionState::opened_by(connection.original.protocol, signal) else { return };
        let original = match direction {
            Direction::Original => connection.original,
            Direction::Reply => connection.reply,
        };
        let replaces = Some(connection.reference);
        self.tracking = Tracking::Opening(Opening { replaces, ..Opening::new(original, state) });
    }

    /// The same, but the server and what stands for it stay: only the source is to be chosen again.
    pub(super) fn reopen_towards_server(&mut self) {
        let Tracking::Known(connection, _) = self.tracking else { return };
        self.reopen();
        let Some(opening) = self.opening() else { return };
        let server = (connection.reply.source, connection.reply.ports[0]);
        let called = (connection.original.destination, connection.original.ports[1]);
        let is_echo = matches!(connection.original.protocol, protocol::ICMP | protocol::ICMPV6);
        // An echo's identifier follows the source that it gets.
        let is_another = if is_echo { server.0 != called.0 } else { server != called };
        opening.translation.destination = is_another.then_some(server);
        opening.flags = connection.flags.without(ConnectionFlags::MASQUERADED);
        (opening.service, opening.endpoint) = (connection.service, connection.endpoint);
    }

    /// Who speaks to whom; `None` for packets of no connection, whose own addresses are all there is.
    pub(super) fn parties(&self) -> Option<Parties> {
        let (original, reply, direction) = match &self.tracking {
            Tracking::Untracked => return None,
            Tracking::Opening(opening) => (opening.original, opening.reply(), Direction::Original),
            Tracking::Known(connection, direction) | Tracking::Related(connection, direction) => {
                (connection.original, connection.reply, *direction)
            }
        };
        Some(Parties {
            client: Party { address: original.source_address(), port: original.ports[0] },
            server: Party { address: reply.source_address(), port: reply.ports[0] },
            direction,
        })
    }

    /// The destination after translation: what is routed.
    pub(super) fn destination(&self) -> IpAddr {
        let headers = self.arrival.headers;
        match self.tracking.translation().destination {
            Some((address, _)) => Headers { destination: address, ..*headers }.destination_address(),
            None => headers.destination_address(),
        }
    }
}
