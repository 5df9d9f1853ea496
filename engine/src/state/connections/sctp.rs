//! SCTP: from state to state as net/netfilter/nf_conntrack_proto_sctp.c does, by the first chunk of a packet.
//!
//! Chunks that open or close may be bundled with others only behind them, but for a SHUTDOWN behind a SACK, which
//! RFC 9260 makes needless. Unlike Linux an association met in its middle is taken up, as TCP's are. Verification tags are
//! not kept, so an ABORT in the middle is a claim as a RST of TCP is (`tcp.rs`): whoever goes on refutes it, by a heartbeat
//! at the latest.

use super::state::Progress;
use super::{ConnectionState, Direction};
use crate::packet::wire::sctp::chunk;

/// Whether this chunk asks for a new association.
pub(super) fn asks_to_open(first: u8) -> bool {
    first == chunk::INIT
}

/// The state that a packet with this first chunk opens an association in.
pub(super) fn opened_by(first: u8) -> Option<ConnectionState> {
    match first {
        chunk::INIT => Some(ConnectionState::CookieWait),
        chunk::HEARTBEAT => Some(ConnectionState::HeartbeatSent),
        chunk::DATA | chunk::SACK => Some(ConnectionState::SctpEstablished),
        _ => None,
    }
}

/// Where a packet with this first chunk takes the association.
pub(super) fn step(progress: Progress, direction: Direction, first: u8) -> Progress {
    use ConnectionState as State;
    let state = match (progress.state, first, direction) {
        (State::SctpEstablished | State::ResetClaimed, chunk::ABORT, _) => return progress.claiming_reset(direction),
        (State::ResetClaimed, chunk::INIT, _) => State::ResetClaimed,
        (State::ResetClaimed, ..) if progress.reset_was_claimed_by(direction) => {
            return Progress { state: State::SctpEstablished, fins: 0, ..progress };
        }
        (_, chunk::ABORT, _) => State::SctpClosed,
        (State::HeartbeatSent, chunk::INIT, Direction::Original) => State::CookieWait,
        (State::HeartbeatSent, chunk::HEARTBEAT_ACK, Direction::Reply) => State::SctpEstablished,
        (State::CookieWait, chunk::COOKIE_ECHO, Direction::Original) => State::CookieEchoed,
        (State::CookieEchoed, chunk::COOKIE_ACK, Direction::Reply) => State::SctpEstablished,
        (State::SctpEstablished, chunk::SHUTDOWN, Direction::Original) => State::ShutdownSent,
        (State::SctpEstablished, chunk::SHUTDOWN, Direction::Reply) => State::ShutdownReceived,
        (State::ShutdownSent | State::ShutdownReceived, chunk::SHUTDOWN_ACK, _) => State::ShutdownAckSent,
        (State::ShutdownAckSent, chunk::SHUTDOWN_COMPLETE, _) => State::SctpClosed,
        (state, ..) => state,
    };
    Progress { state, ..progress }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ConnectionState as State;

    #[test]
    fn an_association_lives_from_init_to_shutdown_complete() {
        let state = opened_by(chunk::INIT).expect("opens");
        let mut progress = Progress { state, fins: 0, replied: false };
        let rows = [
            (false, chunk::INIT_ACK, State::CookieWait),
            (true, chunk::COOKIE_ECHO, State::CookieEchoed),
            (false, chunk::COOKIE_ACK, State::SctpEstablished),
            (true, chunk::DATA, State::SctpEstablished),
            (false, chunk::SHUTDOWN, State::ShutdownReceived),
            (true, chunk::SHUTDOWN_ACK, State::ShutdownAckSent),
            (false, chunk::SHUTDOWN_COMPLETE, State::SctpClosed),
        ];
        for (original, first, expected) in rows {
            progress = step(progress, if original { Direction::Original } else { Direction::Reply }, first);
            assert_eq!(progress.state, expected, "after chunk {first}");
        }
        let after = |state, first| step(Progress { state, fins: 0, replied: true }, Direction::Reply, first).state;
        assert_eq!(after(State::CookieWait, chunk::ABORT), State::SctpClosed);
        assert_eq!(after(State::HeartbeatSent, chunk::HEARTBEAT_ACK), State::SctpEstablished);
        assert_eq!((opened_by(chunk::ABORT), opened_by(chunk::COOKIE_ACK)), (None, None));
    }

    #[test]
    fn an_abort_is_refuted_by_its_sender_alone() {
        let mut progress = Progress { state: State::SctpEstablished, fins: 0, replied: true };
        let rows = [
            (Direction::Reply, chunk::ABORT, State::ResetClaimed),
            (Direction::Original, chunk::DATA, State::ResetClaimed),
            (Direction::Reply, chunk::INIT, State::ResetClaimed),
            (Direction::Reply, chunk::HEARTBEAT_ACK, State::SctpEstablished),
            (Direction::Original, chunk::HEARTBEAT, State::SctpEstablished),
        ];
        for (direction, first, expected) in rows {
            progress = step(progress, direction, first);
            assert_eq!(progress.state, expected, "after chunk {first}");
        }
    }
}
