//! TCP (RFC 9293).

use super::{ethernet, ipv4, ipv6, read_u16, read_u32, write_bytes, write_u16};
use crate::packet::parse::protocol;
use crate::packet::{Headers, Mac, Network, checksum};

/// Bytes of a header without options.
pub const HEADER_BYTES: usize = 20;
/// Source port.
pub const SOURCE_PORT: usize = 0;
/// Destination port.
pub const DESTINATION_PORT: usize = 2;
/// Sequence number.
pub const SEQUENCE: usize = 4;
/// Acknowledgement number.
pub const ACKNOWLEDGEMENT: usize = 8;
/// Header length in 32-bit words in the high half.
pub const DATA_OFFSET: usize = 12;
/// Flags, see [`flag`].
pub const FLAGS: usize = 13;
/// Receive window.
pub const WINDOW: usize = 14;
/// Checksum over pseudo header, header and payload.
pub const CHECKSUM: usize = 16;
/// Urgent pointer.
pub const URGENT: usize = 18;

/// Bits of the flags byte (RFC 9293 section 3.1, RFC 3168).
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 1 << 1;
    /// Reset the connection.
    pub const RST: u8 = 1 << 2;
    /// Push.
    pub const PSH: u8 = 1 << 3;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 1 << 4;
    /// The urgent pointer counts.
    pub const URG: u8 = 1 << 5;
    /// Explicit congestion notification echo.
    pub const ECE: u8 = 1 << 6;
    /// Congestion window reduced.
    pub const CWR: u8 = 1 << 7;
}

/// Sequence number.
#[must_use]
pub fn sequence(header: &[u8]) -> Option<u32> {
    read_u32(header, SEQUENCE)
}

/// Acknowledgement number.
#[must_use]
pub fn acknowledgement(header: &[u8]) -> Option<u32> {
    read_u32(header, ACKNOWLEDGEMENT)
}

/// Flags, see [`flag`].
#[must_use]
pub fn flags(header: &[u8]) -> Option<u8> {
    header.get(FLAGS).copied()
}

/// Bytes of the header, options included, by its own field.
#[must_use]
pub fn header_length(header: &[u8]) -> Option<usize> {
    header.get(DATA_OFFSET).map(|byte| usize::from(byte >> 4) * 4)
}

/// Checksum field.
#[must_use]
pub fn checksum(header: &[u8]) -> Option<u16> {
    read_u16(header, CHECKSUM)
}

/// TTL or hop limit of a reset.
const RESET_TTL: u8 = 64;

/// Writes the whole frame of the reset that answers the received segment whose frame begins with `frame` and whose
/// headers are `about`, as the address it was sent to would send it (RFC 9293 section 3.5.2), with the same VLAN tags.
/// `None` if the segment is a reset itself, which is never answered.
pub fn write_reset_frame(target: &mut [u8], frame: &[u8], about: &Headers, mac: Mac) -> Option<usize> {
    let (network, transport) = (usize::from(about.network_offset), usize::from(about.transport_offset));
    let segment = frame.get(transport..)?;
    let received = flags(segment)?;
    if about.protocol != protocol::TCP || received & flag::RST != 0 {
        return None;
    }
    let (sequence, acknowledgement, flags) = if received & flag::ACK != 0 {
        (self::acknowledgement(segment)?, 0, flag::RST)
    } else {
        let headers = transport.checked_sub(network)? + header_length(segment)?;
        let payload = about.network_length.checked_sub(headers as u32)?;
        let controls = [flag::SYN, flag::FIN].iter().filter(|bit| received & **bit != 0).count() as u32;
        let end = self::sequence(segment)?.wrapping_add(payload).wrapping_add(controls);
        (0, end, flag::RST | flag::ACK)
    };
    target.get_mut(..network)?.copy_from_slice(frame.get(..network)?);
    ethernet::answer_to_source(target, mac)?;
    let header = reset_header(about, sequence, acknowledgement, flags);
    let packet = target.get_mut(network..)?;
    let at = match about.network {
        Network::Ipv4 => ipv4::write_ipv4(packet, &answer_ipv4(about))?,
        _ => ipv6::write_ipv6(packet, &answer_ipv6(about))?,
    };
    write_bytes(packet, at, &header)?;
    Some(network + at + HEADER_BYTES)
}

fn reset_header(about: &Headers, sequence: u32, acknowledgement: u32, flags: u8) -> [u8; HEADER_BYTES] {
    let mut header = [0u8; HEADER_BYTES];
    let [source, destination] = about.ports;
    header[SOURCE_PORT..DESTINATION_PORT].copy_from_slice(&destination.to_be_bytes());
    header[DESTINATION_PORT..SEQUENCE].copy_from_slice(&source.to_be_bytes());
    header[SEQUENCE..ACKNOWLEDGEMENT].copy_from_slice(&sequence.to_be_bytes());
    header[ACKNOWLEDGEMENT..DATA_OFFSET].copy_from_slice(&acknowledgement.to_be_bytes());
    header[DATA_OFFSET] = (HEADER_BYTES as u8 / 4) << 4;
    header[FLAGS] = flags;
    let length = HEADER_BYTES as u32;
    let pseudo = match about.network {
        Network::Ipv4 => {
            let answer = answer_ipv4(about);
            checksum::pseudo_header_v4(answer.source, answer.destination, protocol::TCP, length)
        }
        _ => checksum::pseudo_header_v6(&about.destination, &about.source, protocol::TCP, length),
    };
    let sum = checksum::finish(pseudo + checksum::sum(&header));
    // The field lies within the header, so there is always room for it.
    let _ = write_u16(&mut header, CHECKSUM, sum);
    header
}

fn answer_ipv4(about: &Headers) -> ipv4::Ipv4 {
    let [a, b, c, d, ..] = about.destination;
    ipv4::Ipv4 {
        traffic_class: 0,
        total_length: (ipv4::HEADER_BYTES + HEADER_BYTES) as u16,
        identification: 0,
        fragment: ipv4::DONT_FRAGMENT,
        ttl: RESET_TTL,
        protocol: protocol::TCP,
        source: [a, b, c, d],
        destination: about.source_ipv4(),
    }
}

fn answer_ipv6(about: &Headers) -> ipv6::Ipv6 {
    ipv6::Ipv6 {
        traffic_class: 0,
        flow_label: 0,
        payload_length: HEADER_BYTES as u16,
        next_header: protocol::TCP,
        hop_limit: RESET_TTL,
        source: about.destination,
        destination: about.source,
    }
}
