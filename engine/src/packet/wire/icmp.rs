//! ICMP (RFC 792): echo replies and the errors a router owes (RFC 1812 section 4.3).

use super::{ethernet, ipv4, read_u16, write_u16};
use crate::packet::checksum;
use crate::packet::parse::{Headers, Network, flag, protocol};
use crate::packet::{Mac, wire};

/// Bytes of the header of every message.
pub const HEADER_BYTES: usize = 8;
/// Message type, see [`kind`].
pub const TYPE: usize = 0;
/// Code within the type.
pub const CODE: usize = 1;
/// Checksum over the message.
pub const CHECKSUM: usize = 2;
/// Identifier of an echo.
pub const IDENTIFIER: usize = 4;
/// Sequence number of an echo.
pub const SEQUENCE: usize = 6;
/// Next-hop MTU of Fragmentation Needed (RFC 1191 section 4).
pub const MTU: usize = 6;
/// Longest error: a datagram of 576 bytes (RFC 1812 section 4.3.2.3), so this much of the invoking packet.
pub const QUOTED_BYTES: usize = 576 - ipv4::HEADER_BYTES - HEADER_BYTES;
/// Precedence of errors: internetwork control (RFC 1812 section 4.3.2.5).
const ERROR_TRAFFIC_CLASS: u8 = 0xc0;
const ERROR_TTL: u8 = 64;

/// Message types (IANA).
pub mod kind {
    /// Answer to an echo request.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable, Fragmentation Needed among its codes.
    pub const UNREACHABLE: u8 = 3;
    /// Source quench, deprecated (RFC 6633).
    pub const SOURCE_QUENCH: u8 = 4;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// TTL or reassembly time ran out.
    pub const TIME_EXCEEDED: u8 = 11;
    /// A header field is wrong.
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// Codes of [`kind::UNREACHABLE`].
pub mod unreachable {
    /// No route.
    pub const NETWORK: u8 = 0;
    /// The host does not answer.
    pub const HOST: u8 = 1;
    /// Nobody listens on the port.
    pub const PORT: u8 = 3;
    /// Too long for the next link, and may not be fragmented.
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Forbidden by policy (RFC 1812 section 5.2.7.1).
    pub const PROHIBITED: u8 = 13;
}

/// An error to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The TTL ran out in transit.
    TimeExceeded,
    /// The packet is longer than the next link's MTU.
    FragmentationNeeded {
        /// That MTU.
        mtu: u16,
    },
    /// Destination unreachable for another cause.
    Unreachable {
        /// See [`mod@unreachable`].
        code: u8,
    },
}

impl Error {
    fn header(self) -> [u8; HEADER_BYTES] {
        let (kind, code, mtu) = match self {
            Error::TimeExceeded => (kind::TIME_EXCEEDED, 0, 0),
            Error::FragmentationNeeded { mtu } => (kind::UNREACHABLE, unreachable::FRAGMENTATION_NEEDED, mtu),
            Error::Unreachable { code } => (kind::UNREACHABLE, code, 0),
        };
        let [high, low] = mtu.to_be_bytes();
        [kind, code, 0, 0, 0, 0, high, low]
    }
}

/// Whether a message of this type reports an error, so that none may be sent about it (RFC 1122 section 3.2.2).
#[inline]
#[must_use]
pub const fn is_error(message_type: u8) -> bool {
    matches!(
        message_type,
        kind::UNREACHABLE | kind::SOURCE_QUENCH | kind::REDIRECT | kind::TIME_EXCEEDED | kind::PARAMETER_PROBLEM
    )
}

/// Whether an ICMP or ICMPv6 error may be sent about this packet (RFC 1122 section 3.2.2, RFC 4443 section 2.4):
/// not about errors and redirects, later fragments, group destinations, or to a source that is no single host.
#[must_use]
pub fn error_allowed(about: &Headers) -> bool {
    if about.has(flag::ICMP_ERROR | flag::LATER_FRAGMENT | flag::GROUP_MAC) {
        return false;
    }
    match about.network {
        Network::Ipv4 => {
            let [first, rest @ ..] = about.source_ipv4();
            let source_is_host = !(first == 0 && rest == [0; 3]) && first != 127 && first < 224;
            source_is_host && about.destination[0] < 224
        }
        Network::Ipv6 => {
            let redirect =
                about.protocol == protocol::ICMPV6 && about.tcp_flags_or_icmp_type == wire::nd::kind::REDIRECT;
            let source_is_host = about.source != [0; 16] && !wire::ipv6::is_multicast(&about.source);
            source_is_host && !wire::ipv6::is_multicast(&about.destination) && !redirect
        }
        Network::Arp | Network::Other => false,
    }
}

/// Writes an ICMP error about the packet that begins with `invoking` (its IPv4 header), which is quoted as far as
/// [`QUOTED_BYTES`]. The caller cuts Ethernet padding off `invoking`.
pub fn write_error(target: &mut [u8], error: Error, invoking: &[u8]) -> Option<usize> {
    let quoted = invoking.get(..QUOTED_BYTES).unwrap_or(invoking);
    let message = target.get_mut(..HEADER_BYTES + quoted.len())?;
    message[..HEADER_BYTES].copy_from_slice(&error.header());
    message[HEADER_BYTES..].copy_from_slice(quoted);
    let sum = checksum::finish(checksum::sum(message));
    write_u16(message, CHECKSUM, sum)?;
    Some(HEADER_BYTES + quoted.len())
}

/// Writes the whole frame of an ICMP error about the received frame whose head is `frame` and whose headers are
/// `about`: from `mac` and `source` back to the sender, with the same VLAN tags.
pub fn write_error_frame(
    target: &mut [u8],
    error: Error,
    frame: &[u8],
    about: &Headers,
    mac: Mac,
    source: [u8; 4],
) -> Option<usize> {
    let network = usize::from(about.network_offset);
    let packet = frame.get(network..)?;
    let invoking = packet.get(..about.network_length as usize).unwrap_or(packet);
    target.get_mut(..network)?.copy_from_slice(frame.get(..network)?);
    ethernet::answer_to_source(target, mac)?;
    let transport = network + ipv4::HEADER_BYTES;
    let message_length = write_error(target.get_mut(transport..)?, error, invoking)?;
    let header = ipv4::Ipv4 {
        traffic_class: ERROR_TRAFFIC_CLASS,
        total_length: (ipv4::HEADER_BYTES + message_length) as u16,
        identification: 0,
        fragment: 0,
        ttl: ERROR_TTL,
        protocol: protocol::ICMP,
        source,
        destination: about.source_ipv4(),
    };
    ipv4::write_ipv4(target.get_mut(network..)?, &header)?;
    Some(transport + message_length)
}

/// Turns the frame of an echo request into its reply: addresses exchanged on both layers (the reply's source MAC is
/// `mac`), a fresh TTL, the type. A packet's chain needs no touch: the checksum is updated, not computed, so that a
/// wrong one stays wrong. `None`, and the frame may be half changed only if it is not the frame `request` describes.
pub fn echo_reply_in_place(frame: &mut [u8], request: &Headers, mac: Mac, ttl: u8) -> Option<()> {
    let asks = request.network == Network::Ipv4
        && request.protocol == protocol::ICMP
        && request.tcp_flags_or_icmp_type == kind::ECHO_REQUEST
        && !request.has(flag::FRAGMENT);
    if !asks {
        return None;
    }
    let message = frame.get_mut(usize::from(request.transport_offset)..)?;
    set_type(message, kind::ECHO_REPLY)?;
    // A reply of nothing but zeros sums to zero, for which zero is the wrong checksum and all ones is right. Of any
    // other message that would be zero, all ones is right as well.
    if read_u16(message, CHECKSUM)? == 0 {
        write_u16(message, CHECKSUM, 0xffff)?;
    }
    let header = frame.get_mut(usize::from(request.network_offset)..)?;
    ipv4::swap_addresses(header)?;
    ipv4::set_ttl(header, ttl)?;
    ethernet::answer_to_source(frame, mac)
}

/// Replaces the message type, of ICMP and ICMPv6 alike, and updates the checksum.
pub(super) fn set_type(message: &mut [u8], message_type: u8) -> Option<()> {
    let old = read_u16(message, TYPE)?;
    let new = u16::from_be_bytes([message_type, old as u8]);
    let sum = read_u16(message, CHECKSUM)?;
    write_u16(message, TYPE, new)?;
    write_u16(message, CHECKSUM, checksum::update(sum, old, new))
}
