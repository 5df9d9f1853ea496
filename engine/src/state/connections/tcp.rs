//! TCP: from state to state as net/netfilter/nf_conntrack_proto_tcp.c does, with two differences.
//!
//! Which end sent a FIN is remembered, so that a FIN sent twice is not taken for the other end's. Sequence numbers are
//! not compared with windows, since cached segments are not looked at: a segment of a known connection is translated
//! whatever it says, so none can reach an end untranslated, and it is the end that judges it. A segment that fits no
//! transition changes nothing.
//!
//! **A RST may be forged.** Linux believes one whose sequence number is exactly the next, and keeps the connection
//! otherwise (RFC 5961 section 3.2). Here it is believed while the handshake lasts and once both ends have closed; in
//! between it is a claim: the connection keeps its endpoint and its tuples, and a SYN does not replace it. An end that
//! reset a connection never speaks in it again, so the next segment of the direction that the RST claimed to have
//! refutes it. A SYN-ACK confirms it: the other end knows the connection no more.

use super::state::{Progress, bit};
use super::{ConnectionState, Direction};
use crate::packet::wire::tcp::flag;

/// What a segment says of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Segment {
    Syn,
    SynAck,
    Fin,
    Ack,
    Rst,
    /// A combination that no end sends (`tcp_valid_flags` of Linux).
    Nonsense,
}

impl Segment {
    fn of(flags: u8) -> Self {
        let has = |bits| flags & bits == bits;
        let ends = u8::from(has(flag::SYN)) + u8::from(has(flag::FIN)) + u8::from(has(flag::RST));
        match () {
            () if ends > 1 => Segment::Nonsense,
            () if has(flag::RST) => Segment::Rst,
            () if has(flag::SYN | flag::ACK) => Segment::SynAck,
            () if has(flag::SYN) => Segment::Syn,
            () if !has(flag::ACK) => Segment::Nonsense,
            () if has(flag::FIN) => Segment::Fin,
            () => Segment::Ack,
        }
    }
}

/// Whether these flags ask for a new connection.
pub(super) fn asks_to_open(flags: u8) -> bool {
    Segment::of(flags) == Segment::Syn
}

/// The state a segment opens a connection in. A stream met in its middle (the switch restarted, a route changed) is
/// taken up as established; what only answers or resets opens nothing.
pub(super) fn opened_by(flags: u8) -> Option<ConnectionState> {
    match Segment::of(flags) {
        Segment::Syn => Some(ConnectionState::SynSent),
        Segment::Ack => Some(ConnectionState::Established),
        Segment::Fin => Some(ConnectionState::FinWait),
        Segment::SynAck | Segment::Rst | Segment::Nonsense => None,
    }
}

/// A FIN of both ends.
const FINS: u8 = bit(Direction::Original) | bit(Direction::Reply);

/// The state of a connection that was not reset after all, by who sent a FIN.
const fn refuted(fins: u8) -> ConnectionState {
    match fins {
        0 => ConnectionState::Established,
        FINS => ConnectionState::LastAck,
        _ => ConnectionState::CloseWait,
    }
}

/// Where a segment takes the connection.
pub(super) fn step(progress: Progress, direction: Direction, flags: u8) -> Progress {
    use ConnectionState as State;
    let Progress { state, mut fins, .. } = progress;
    let segment = Segment::of(flags);
    let fin_of_this_end = fins & bit(direction) != 0;
    let state = match (state, segment, direction) {
        (State::Established | State::FinWait | State::CloseWait | State::ResetClaimed, Segment::Rst, _) => {
            return progress.claiming_reset(direction);
        }
        (_, Segment::Rst, _) => State::Close,
        (State::ResetClaimed, Segment::SynAck, Direction::Reply) => {
            fins = 0;
            State::SynReceived
        }
        (State::ResetClaimed, Segment::Ack | Segment::Fin, _) if progress.reset_was_claimed_by(direction) => {
            fins = fins & FINS | if segment == Segment::Fin { bit(direction) } else { 0 };
            refuted(fins)
        }
        (State::SynSent, Segment::Syn, Direction::Reply) => State::SynSent2,
        (State::SynSent, Segment::SynAck, Direction::Reply) | (State::SynSent2, Segment::SynAck, _) => {
            State::SynReceived
        }
        (State::SynReceived, Segment::Ack, Direction::Original) => State::Established,
        (State::SynReceived | State::Established | State::FinWait | State::CloseWait, Segment::Fin, _) => {
            fins |= bit(direction);
            if fins == FINS {
                State::LastAck
            } else if state == State::CloseWait {
                state
            } else {
                State::FinWait
            }
        }
        (State::FinWait, Segment::Ack, _) if !fin_of_this_end => State::CloseWait,
        (State::LastAck, Segment::Ack, _) => State::TimeWait,
        (state, ..) => state,
    };
    Progress { state, fins, ..progress }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ConnectionState as State;

    const SYN: u8 = flag::SYN;
    const SYN_ACK: u8 = flag::SYN | flag::ACK;
    const ACK: u8 = flag::ACK;
    const FIN: u8 = flag::FIN | flag::ACK;
    const RST: u8 = flag::RST;

    /// Segments as (from the opener?, flags) and the state after each.
    fn walk(rows: &[(bool, u8, State)]) {
        let first = rows[0];
        let mut progress = Progress { state: opened_by(first.1).expect("an opening segment"), fins: 0, replied: false };
        if first.1 == FIN {
            progress.fins = 1;
        }
        assert_eq!(progress.state, first.2);
        for (at, (original, flags, expected)) in rows.iter().enumerate().skip(1) {
            let direction = if *original { Direction::Original } else { Direction::Reply };
            progress = step(progress, direction, *flags);
            assert_eq!(progress.state, *expected, "segment {at} of {rows:?}");
        }
    }

    #[test]
    fn a_connection_lives_from_handshake_to_time_wait() {
        walk(&[
            (true, SYN, State::SynSent),
            (true, SYN, State::SynSent),
            (false, SYN_ACK, State::SynReceived),
            (false, SYN_ACK, State::SynReceived),
            (true, ACK, State::Established),
            (false, ACK, State::Established),
            (true, FIN, State::FinWait),
            (true, FIN, State::FinWait),
            (true, ACK, State::FinWait),
            (false, ACK, State::CloseWait),
            (false, ACK, State::CloseWait),
            (true, ACK, State::CloseWait),
            (true, FIN, State::CloseWait),
            (false, FIN, State::LastAck),
            (false, FIN, State::LastAck),
            (true, ACK, State::TimeWait),
            (true, ACK, State::TimeWait),
        ]);
    }

    #[test]
    fn other_lives() {
        walk(&[(true, SYN, State::SynSent), (false, RST, State::Close), (true, SYN, State::Close)]);
        walk(&[(true, SYN, State::SynSent), (false, SYN, State::SynSent2), (true, SYN_ACK, State::SynReceived)]);
        walk(&[(true, SYN, State::SynSent), (true, ACK, State::SynSent), (false, ACK, State::SynSent)]);
        walk(&[(true, ACK, State::Established), (false, SYN_ACK, State::Established), (false, FIN, State::FinWait)]);
        walk(&[(true, ACK, State::Established), (true, FIN, State::FinWait), (false, FIN, State::LastAck)]);
        walk(&[(true, ACK, State::Established), (true, 0, State::Established), (true, SYN | RST, State::Established)]);
    }

    /// A forged RST changes nothing that lasts: its alleged sender speaks on. The other end may have segments on their way.
    #[test]
    fn a_reset_is_refuted_by_its_sender_alone() {
        let established =
            [(true, SYN, State::SynSent), (false, SYN_ACK, State::SynReceived), (true, ACK, State::Established)];
        let after = |rows: &[(bool, u8, State)]| walk(&[&established[..], rows].concat());
        let claimed = State::ResetClaimed;
        after(&[(true, RST, claimed), (false, ACK, claimed), (true, SYN, claimed), (true, ACK, State::Established)]);
        after(&[(false, RST, claimed), (true, ACK, claimed), (false, ACK, State::Established)]);
        after(&[(true, RST, claimed), (false, RST, claimed), (false, ACK, State::Established)]);
        after(&[
            (true, FIN, State::FinWait),
            (false, RST, claimed),
            (true, ACK, claimed),
            (false, ACK, State::CloseWait),
        ]);
        after(&[
            (true, FIN, State::FinWait),
            (false, RST, claimed),
            (false, FIN, State::LastAck),
            (false, RST, State::Close),
        ]);
        // The client died, and asks anew by the same port: the server knows nothing of before.
        after(&[
            (true, RST, claimed),
            (true, SYN, claimed),
            (false, SYN_ACK, State::SynReceived),
            (true, ACK, State::Established),
        ]);
    }

    #[test]
    fn answers_resets_and_nonsense_open_nothing() {
        for flags in [SYN_ACK, RST, RST | ACK, 0, SYN | flag::FIN, flag::FIN, SYN | RST] {
            assert_eq!(opened_by(flags), None, "{flags:#04x}");
        }
        assert!(asks_to_open(SYN | flag::ECE | flag::CWR) && !asks_to_open(SYN_ACK) && !asks_to_open(SYN | flag::FIN));
    }
}
