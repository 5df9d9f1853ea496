//! What a connection is in the middle of, how long it may be silent there, and whether it may give way.
//!
//! States bear the names of Linux (net/netfilter/nf_conntrack_proto_{tcp,sctp,udp,icmp,generic}.c) and have its
//! timeouts; established and half-closed TCP have those that kube-proxy sets (24 h and 1 h; Linux says 5 days and 60 s).

use std::time::Duration;

use super::{Direction, sctp, tcp};
use crate::packet::parse::protocol;

/// Time after which a UDP connection that is answered counts as a stream (`udp_stream_ts` of Linux).
const STREAM_AFTER_MS: u32 = 2_000;

macro_rules! states {
    ($($variant:ident $name:literal $seconds:literal $sentence:literal;)+) => {
        /// State of a connection.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum ConnectionState { $(#[doc = $sentence] $variant,)+ }

        impl ConnectionState {
            /// All states, in order of their number.
            pub const ALL: &'static [ConnectionState] = &[$(ConnectionState::$variant,)+];

            /// The name Linux gives it.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(ConnectionState::$variant => $name,)+ } }

            /// Seconds without a packet after which the connection is forgotten, where nothing else is said.
            const fn seconds(self) -> u32 { match self { $(ConnectionState::$variant => $seconds,)+ } }
        }
    };
}

states! {
    SynSent "SYN_SENT" 120 "TCP: SYN seen.";
    SynSent2 "SYN_SENT2" 120 "TCP: both ends sent a SYN.";
    SynReceived "SYN_RECV" 60 "TCP: SYN-ACK seen.";
    Established "ESTABLISHED" 86_400 "TCP: the handshake is complete, or the stream was met in its middle.";
    FinWait "FIN_WAIT" 120 "TCP: one end sent a FIN.";
    CloseWait "CLOSE_WAIT" 3_600 "TCP: the FIN was acknowledged; the other end may go on sending.";
    LastAck "LAST_ACK" 30 "TCP: both ends sent a FIN.";
    TimeWait "TIME_WAIT" 120 "TCP: the last FIN was acknowledged.";
    Close "CLOSE" 10 "TCP: reset.";
    ResetClaimed "RESET_CLAIMED" 300 "TCP and SCTP: a RST or ABORT was seen that may be forged. Linux has no such state; 300 s are what it allows the unacknowledged.";
    SctpClosed "CLOSED" 10 "SCTP: aborted or shut down.";
    CookieWait "COOKIE_WAIT" 3 "SCTP: INIT seen.";
    CookieEchoed "COOKIE_ECHOED" 3 "SCTP: COOKIE ECHO seen.";
    SctpEstablished "ESTABLISHED" 210 "SCTP: COOKIE ACK seen, or the association was met in its middle.";
    ShutdownSent "SHUTDOWN_SENT" 3 "SCTP: the end that opened it shuts down.";
    ShutdownReceived "SHUTDOWN_RECD" 3 "SCTP: the other end shuts down.";
    ShutdownAckSent "SHUTDOWN_ACK_SENT" 3 "SCTP: SHUTDOWN ACK seen.";
    HeartbeatSent "HEARTBEAT_SENT" 30 "SCTP: a heartbeat on a path that was not seen before.";
    Unreplied "UNREPLIED" 30 "UDP, ICMP echo and others: no answer seen.";
    Replied "REPLIED" 30 "UDP, ICMP echo and others: answered.";
}

/// Silence allowed to protocols that are not known (`nf_ct_generic_timeout`).
const GENERIC_SECONDS: u32 = 600;
/// Silence allowed to a TCP stream met in its middle that was not answered yet (`TCP_CONNTRACK_UNACK`).
const UNACKNOWLEDGED_SECONDS: u32 = 300;

/// Where the directions that a reset claimed to come from stand among the FINs.
const RESET_SHIFT: u8 = 2;

/// The bit of a direction in [`Progress::fins`].
pub(super) const fn bit(direction: Direction) -> u8 {
    match direction {
        Direction::Original => 1,
        Direction::Reply => 2,
    }
}

/// How long connections may be silent, where a node may say: what kube-proxy's configuration says under `conntrack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionTimeouts {
    /// TCP, established (`tcpEstablishedTimeout`).
    pub tcp_established: Duration,
    /// TCP, half closed (`tcpCloseWaitTimeout`).
    pub tcp_close_wait: Duration,
    /// UDP, not answered, or younger than two seconds (`udpTimeout`).
    pub udp: Duration,
    /// UDP, answered and older than that (`udpStreamTimeout`).
    pub udp_stream: Duration,
}

impl Default for ConnectionTimeouts {
    /// kube-proxy's and the kernel's.
    fn default() -> Self {
        let of = |state: ConnectionState| Duration::from_secs(u64::from(state.seconds()));
        Self {
            tcp_established: of(ConnectionState::Established),
            tcp_close_wait: of(ConnectionState::CloseWait),
            udp: of(ConnectionState::Unreplied),
            udp_stream: Duration::from_secs(120),
        }
    }
}

/// What the state of a connection is judged by, besides the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) state: ConnectionState,
    /// Ends that sent a FIN (bit 0 the original direction, bit 1 the reply), and that a RST or ABORT claimed to come from
    /// (bits 2 and 3).
    pub(super) fins: u8,
    /// Whether a packet of the reply direction was seen.
    pub(super) replied: bool,
}

impl ConnectionState {
    /// The state a packet of this protocol opens a connection in; `None` if it cannot open one (Linux: invalid).
    /// `signal` is the packet's `Headers::tcp_flags_or_icmp_type`.
    #[must_use]
    pub fn opened_by(number: u8, signal: u8) -> Option<ConnectionState> {
        use crate::packet::wire::{icmp, icmpv6};
        match number {
            protocol::TCP => tcp::opened_by(signal),
            protocol::SCTP => sctp::opened_by(signal),
            protocol::ICMP => (signal == icmp::kind::ECHO_REQUEST).then_some(ConnectionState::Unreplied),
            protocol::ICMPV6 => (signal == icmpv6::kind::ECHO_REQUEST).then_some(ConnectionState::Unreplied),
            _ => Some(ConnectionState::Unreplied),
        }
    }

    /// Whether packets may be served from a flow cache: an end that opens or closes speaks to the slow path.
    #[must_use]
    pub fn is_settled(self) -> bool {
        use ConnectionState as State;
        matches!(
            self,
            State::Established | State::CloseWait | State::SctpEstablished | State::Unreplied | State::Replied
        )
    }

    /// Whether a packet that opens may take the connection's place: it is over.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, ConnectionState::TimeWait | ConnectionState::Close | ConnectionState::SctpClosed)
    }

    /// Whether connections of this protocol can be in it.
    #[must_use]
    pub fn is_of(self, number: u8) -> bool {
        use ConnectionState as State;
        match number {
            protocol::TCP => matches!(
                self,
                State::SynSent
                    | State::SynSent2
                    | State::SynReceived
                    | State::Established
                    | State::FinWait
                    | State::CloseWait
                    | State::LastAck
                    | State::TimeWait
                    | State::Close
                    | State::ResetClaimed
            ),
            protocol::SCTP => matches!(
                self,
                State::SctpClosed
                    | State::CookieWait
                    | State::CookieEchoed
                    | State::SctpEstablished
                    | State::ShutdownSent
                    | State::ShutdownReceived
                    | State::ShutdownAckSent
                    | State::HeartbeatSent
                    | State::ResetClaimed
            ),
            _ => matches!(self, State::Unreplied | State::Replied),
        }
    }

    /// The state with this number.
    pub(super) fn from_number(number: u8) -> Option<ConnectionState> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

impl Progress {
    /// Where a packet of `direction` takes the connection.
    pub(super) fn step(self, number: u8, direction: Direction, signal: u8) -> Progress {
        let replied = self.replied || direction == Direction::Reply;
        let next = match number {
            protocol::TCP => tcp::step(self, direction, signal),
            protocol::SCTP => sctp::step(self, direction, signal),
            _ if replied => Progress { state: ConnectionState::Replied, ..self },
            _ => self,
        };
        Progress { replied, ..next }
    }

    /// The same after a RST or an ABORT that may be forged.
    pub(super) fn claiming_reset(self, direction: Direction) -> Progress {
        let fins = self.fins | bit(direction) << RESET_SHIFT;
        Progress { state: ConnectionState::ResetClaimed, fins, ..self }
    }

    /// Whether a RST or ABORT claimed to come from this direction.
    pub(super) fn reset_was_claimed_by(self, direction: Direction) -> bool {
        self.fins & bit(direction) << RESET_SHIFT != 0
    }

    /// Whether the connection gives way to a new one before those that work: nobody answered it, it is half open, or
    /// over.
    pub(super) fn gives_way_early(self) -> bool {
        !self.replied || !self.state.is_settled() && !matches!(self.state, ConnectionState::FinWait)
    }

    /// Longest silence of a connection of this protocol that was opened and last seen at these times.
    pub(super) fn longest_silence(
        self,
        number: u8,
        (opened_ms, seen_ms): (u32, u32),
        timeouts: &ConnectionTimeouts,
    ) -> Duration {
        let is_stream = || seen_ms.wrapping_sub(opened_ms) >= STREAM_AFTER_MS;
        let seconds = match self.state {
            ConnectionState::Established if !self.replied => UNACKNOWLEDGED_SECONDS,
            ConnectionState::Established => return timeouts.tcp_established,
            ConnectionState::CloseWait => return timeouts.tcp_close_wait,
            ConnectionState::Replied if number == protocol::UDP && is_stream() => return timeouts.udp_stream,
            ConnectionState::Replied | ConnectionState::Unreplied if number == protocol::UDP => return timeouts.udp,
            ConnectionState::Replied | ConnectionState::Unreplied if !is_known(number) => GENERIC_SECONDS,
            state => state.seconds(),
        };
        Duration::from_secs(u64::from(seconds))
    }
}

fn is_known(number: u8) -> bool {
    matches!(number, protocol::UDP | protocol::ICMP | protocol::ICMPV6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_follows_state_protocol_and_age() {
        let progress = |state, replied| Progress { state, fins: 0, replied };
        let rows = [
            (progress(ConnectionState::Unreplied, false), protocol::UDP, 9_000, 30),
            (progress(ConnectionState::Replied, true), protocol::UDP, 1_999, 30),
            (progress(ConnectionState::Replied, true), protocol::UDP, 2_000, 120),
            (progress(ConnectionState::Replied, true), protocol::ICMP, 9_000, 30),
            (progress(ConnectionState::Unreplied, false), 47, 0, 600),
            (progress(ConnectionState::Established, true), protocol::TCP, 0, 86_400),
            (progress(ConnectionState::Established, false), protocol::TCP, 0, 300),
            (progress(ConnectionState::CloseWait, true), protocol::TCP, 0, 3_600),
        ];
        for (progress, number, age_ms, seconds) in rows {
            let silence = progress.longest_silence(number, (5, 5 + age_ms), &ConnectionTimeouts::default());
            assert_eq!(silence.as_secs(), seconds, "{progress:?} of protocol {number} after {age_ms} ms");
        }
    }

    #[test]
    fn a_node_may_say_how_long() {
        let of = |seconds| Duration::from_secs(seconds);
        let timeouts =
            ConnectionTimeouts { tcp_established: of(1), tcp_close_wait: of(2), udp: of(3), udp_stream: of(4) };
        let silence = |state, number, age_ms: u32| {
            let progress = Progress { state, fins: 0, replied: true };
            progress.longest_silence(number, (5, 5 + age_ms), &timeouts).as_secs()
        };
        assert_eq!(silence(ConnectionState::Established, protocol::TCP, 0), 1);
        assert_eq!(silence(ConnectionState::CloseWait, protocol::TCP, 0), 2);
        assert_eq!(silence(ConnectionState::Replied, protocol::UDP, 0), 3);
        assert_eq!(silence(ConnectionState::Replied, protocol::UDP, 2_000), 4);
        assert_eq!(silence(ConnectionState::Replied, protocol::ICMP, 2_000), 30, "of UDP only");
        assert_eq!(silence(ConnectionState::SynSent, protocol::TCP, 0), 120);
    }

    #[test]
    fn only_requests_open_an_echo() {
        assert_eq!(ConnectionState::opened_by(protocol::ICMP, 8), Some(ConnectionState::Unreplied));
        assert_eq!(ConnectionState::opened_by(protocol::ICMP, 0), None);
        assert_eq!(ConnectionState::opened_by(protocol::ICMPV6, 128), Some(ConnectionState::Unreplied));
        assert_eq!(ConnectionState::opened_by(protocol::ICMPV6, 129), None);
        assert_eq!(ConnectionState::opened_by(47, 0), Some(ConnectionState::Unreplied));
    }
}
