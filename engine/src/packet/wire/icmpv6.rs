//! ICMPv6 (RFC 4443): echo replies and the errors a router owes. Neighbour discovery is in [`super::nd`].

use super::icmp::set_type;
use super::{ethernet, ipv6, write_u16};
use crate::packet::parse::{Headers, Network, flag, protocol};
use crate::packet::{Mac, checksum};

/// Bytes of the header of errors and echoes; nothing shorter is defined.
pub const HEADER_BYTES: usize = 8;
/// Message type, see [`kind`].
pub const TYPE: usize = 0;
/// Code within the type.
pub const CODE: usize = 1;
/// Checksum over pseudo header and message.
pub const CHECKSUM: usize = 2;
/// Identifier of an echo.
pub const IDENTIFIER: usize = 4;
/// Sequence number of an echo.
pub const SEQUENCE: usize = 6;
/// MTU of Packet Too Big, 32 bits.
pub const MTU: usize = 4;
/// How much of the invoking packet an error quotes: the whole error fits the smallest MTU (RFC 4443 section 2.4 c).
pub const QUOTED_BYTES: usize = ipv6::SMALLEST_MTU - ipv6::HEADER_BYTES - HEADER_BYTES;
const ERROR_HOP_LIMIT: u8 = 64;

/// Message types (IANA); those below 128 are errors.
pub mod kind {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Hop limit or reassembly time ran out.
    pub const TIME_EXCEEDED: u8 = 3;
    /// A header field is wrong.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Answer to an echo request.
    pub const ECHO_REPLY: u8 = 129;
}

/// Codes of [`kind::UNREACHABLE`].
pub mod unreachable {
    /// No route.
    pub const NO_ROUTE: u8 = 0;
    /// Forbidden by policy.
    pub const PROHIBITED: u8 = 1;
    /// The address does not answer.
    pub const ADDRESS: u8 = 3;
    /// Nobody listens on the port.
    pub const PORT: u8 = 4;
}

/// An error to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The hop limit ran out in transit.
    TimeExceeded,
    /// The packet is longer than the next link's MTU.
    PacketTooBig {
        /// That MTU.
        mtu: u32,
    },
    /// Destination unreachable.
    Unreachable {
        /// See [`mod@unreachable`].
        code: u8,
    },
}

impl Error {
    fn header(self) -> [u8; HEADER_BYTES] {
        let (kind, code, mtu) = match self {
            Error::TimeExceeded => (kind::TIME_EXCEEDED, 0, 0),
            Error::PacketTooBig { mtu } => (kind::PACKET_TOO_BIG, 0, mtu),
            Error::Unreachable { code } => (kind::UNREACHABLE, code, 0),
        };
        let [a, b, c, d] = mtu.to_be_bytes();
        [kind, code, 0, 0, a, b, c, d]
    }
}

/// Writes the checksum of the message, all of which is `message`.
pub fn write_checksum(message: &mut [u8], source: &[u8; 16], destination: &[u8; 16]) -> Option<()> {
    write_u16(message, CHECKSUM, 0)?;
    let pseudo = checksum::pseudo_header_v6(source, destination, protocol::ICMPV6, message.len() as u32);
    let sum = checksum::finish(pseudo + checksum::sum(message));
    write_u16(message, CHECKSUM, sum)
}

/// Whether the checksum of the message, all of which is `message`, is right.
#[must_use]
pub fn checksum_is_right(message: &[u8], source: &[u8; 16], destination: &[u8; 16]) -> bool {
    let pseudo = checksum::pseudo_header_v6(source, destination, protocol::ICMPV6, message.len() as u32);
    checksum::finish(pseudo + checksum::sum(message)) == 0
}

/// Writes an error from `source` to `destination` about the packet that begins with `invoking` (its IPv6 header),
/// which is quoted as far as [`QUOTED_BYTES`]. The caller cuts Ethernet padding off `invoking`.
pub fn write_error(
    target: &mut [u8],
    source: &[u8; 16],
    destination: &[u8; 16],
    error: Error,
    invoking: &[u8],
) -> Option<usize> {
    let quoted = invoking.get(..QUOTED_BYTES).unwrap_or(invoking);
    let message = target.get_mut(..HEADER_BYTES + quoted.len())?;
    message[..HEADER_BYTES].copy_from_slice(&error.header());
    message[HEADER_BYTES..].copy_from_slice(quoted);
    write_checksum(message, source, destination)?;
    Some(HEADER_BYTES + quoted.len())
}

/// Writes the whole frame of an error about the received frame whose head is `frame` and whose headers are `about`:
/// from `mac` and `source` back to the sender, with the same VLAN tags.
pub fn write_error_frame(
    target: &mut [u8],
    error: Error,
    frame: &[u8],
    about: &Headers,
    mac: Mac,
    source: &[u8; 16],
) -> Option<usize> {
    let network = usize::from(about.network_offset);
    let packet = frame.get(network..)?;
    let invoking = packet.get(..about.network_length as usize).unwrap_or(packet);
    target.get_mut(..network)?.copy_from_slice(frame.get(..network)?);
    ethernet::answer_to_source(target, mac)?;
    let transport = network + ipv6::HEADER_BYTES;
    let length = write_error(target.get_mut(transport..)?, source, &about.source, error, invoking)?;
    write_header(target.get_mut(network..)?, length, ERROR_HOP_LIMIT, source, &about.source)?;
    Some(transport + length)
}

/// Writes the IPv6 header before a message of `length` bytes.
pub(super) fn write_header(
    target: &mut [u8],
    length: usize,
    hop_limit: u8,
    source: &[u8; 16],
    destination: &[u8; 16],
) -> Option<usize> {
    let header = ipv6::Ipv6 {
        traffic_class: 0,
        flow_label: 0,
        payload_length: length as u16,
        next_header: protocol::ICMPV6,
        hop_limit,
        source: *source,
        destination: *destination,
    };
    ipv6::write_ipv6(target, &header)
}

/// Turns the frame of an echo request into its reply, as [`super::icmp::echo_reply_in_place`] does for IPv4.
/// Requests behind extension headers are not answered: a reply would have to drop them.
pub fn echo_reply_in_place(frame: &mut [u8], request: &Headers, mac: Mac, hop_limit: u8) -> Option<()> {
    let asks = request.network == Network::Ipv6
        && request.protocol == protocol::ICMPV6
        && request.tcp_flags_or_icmp_type == kind::ECHO_REQUEST
        && !request.has(flag::FRAGMENT | flag::EXTENSIONS);
    if !asks {
        return None;
    }
    set_type(frame.get_mut(usize::from(request.transport_offset)..)?, kind::ECHO_REPLY)?;
    let header = frame.get_mut(usize::from(request.network_offset)..)?;
    ipv6::swap_addresses(header)?;
    ipv6::set_hop_limit(header, hop_limit)?;
    ethernet::answer_to_source(frame, mac)
}
