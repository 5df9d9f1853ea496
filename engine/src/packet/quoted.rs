//! The packet that an ICMP or ICMPv6 error quotes, as far as it names a connection.
//!
//! Quotes are cut, by RFC 792 to eight bytes behind the IP header, so `parse`, which wants whole packets, does not take
//! them. Read are the IP header, extension headers of IPv6, and the ports or the echo's identifier; nothing is believed
//! but that whoever knows them may have seen the packet.

use super::parse::protocol;
use super::wire::{icmp, icmpv6, ipv4, ipv6, read_array, read_u16};

/// Bytes of an error before its quote (RFC 792, RFC 4443 section 2.1).
pub const QUOTE_OFFSET: usize = 8;
/// Bytes at the front of a quote within which all lies that a translation may change.
pub const QUOTE_FRONT: usize = 128;
/// Bytes from a layer-4 header's begin to the end of what may change: TCP's checksum is the last.
const LAYER_4_FRONT: usize = 18;
/// Extension headers that are passed over.
const EXTENSIONS: usize = 4;

/// What a quote says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Source address, as in [`Headers::source`](super::Headers::source).
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
    /// Source and destination port; the identifier of an echo twice; else zero.
    pub ports: [u16; 2],
    /// Layer-4 protocol.
    pub protocol: u8,
    /// First byte of the layer-4 header, from the quote's first byte.
    pub transport_offset: usize,
}

/// Reads a quote; `None` for what names no connection: later fragments, errors, packets without so much as ports.
#[must_use]
pub fn read(quote: &[u8], is_ipv6: bool) -> Option<Quoted> {
    let (source, destination, protocol, transport_offset) = if is_ipv6 { read_ipv6(quote)? } else { read_ipv4(quote)? };
    if transport_offset + LAYER_4_FRONT > QUOTE_FRONT {
        return None;
    }
    let ports = ports(protocol, quote.get(transport_offset..)?)?;
    Some(Quoted { source, destination, ports, protocol, transport_offset })
}

type Network = ([u8; 16], [u8; 16], u8, usize);

fn read_ipv4(quote: &[u8]) -> Option<Network> {
    let length = ipv4::header_length(quote).filter(|length| *length >= ipv4::HEADER_BYTES)?;
    let is_ipv4 = quote.first()? >> 4 == 4;
    let is_first = ipv4::fragment(quote)?.0 == 0;
    let in_front = |address: [u8; 4]| {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&address);
        bytes
    };
    let addresses = (in_front(ipv4::source(quote)?), in_front(ipv4::destination(quote)?));
    let protocol = *quote.get(ipv4::PROTOCOL)?;
    (is_ipv4 && is_first).then_some((addresses.0, addresses.1, protocol, length))
}

fn read_ipv6(quote: &[u8]) -> Option<Network> {
    let (source, destination) = (ipv6::source(quote)?, ipv6::destination(quote)?);
    if quote.first()? >> 4 != 6 {
        return None;
    }
    let (mut next, mut at) = (*quote.get(ipv6::NEXT_HEADER)?, ipv6::HEADER_BYTES);
    for _ in 0..EXTENSIONS {
        let header = quote.get(at..)?;
        at += match next {
            ipv6::extension::HOP_BY_HOP | ipv6::extension::ROUTING | ipv6::extension::DESTINATION => {
                (usize::from(*header.get(1)?) + 1) * 8
            }
            ipv6::extension::FRAGMENT => {
                let is_first = read_u16(header, ipv6::FRAGMENT_OFFSET)? & ipv6::OFFSET_MASK == 0;
                is_first.then_some(ipv6::FRAGMENT_BYTES)?
            }
            _ => return Some((source, destination, next, at)),
        };
        next = *header.first()?;
    }
    None
}

fn ports(number: u8, segment: &[u8]) -> Option<[u16; 2]> {
    let is_echo = match number {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            let [a, b, c, d] = read_array(segment, 0)?;
            return Some([u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]);
        }
        protocol::ICMP => matches!(segment.first()?, &icmp::kind::ECHO_REQUEST | &icmp::kind::ECHO_REPLY),
        protocol::ICMPV6 => matches!(segment.first()?, &icmpv6::kind::ECHO_REQUEST | &icmpv6::kind::ECHO_REPLY),
        _ => return Some([0; 2]),
    };
    let identifier = read_u16(segment, icmp::IDENTIFIER)?;
    is_echo.then_some([identifier; 2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SYN, fragments, frame};

    fn v4() -> crate::testing::FrameBuilder {
        frame().from("02:00:00:00:00:01", "10.1.0.5").to("02:00:00:00:00:02", "10.2.0.7")
    }

    fn v6() -> crate::testing::FrameBuilder {
        frame().from("02:00:00:00:00:01", "fd00:1::5").to("02:00:00:00:00:02", "fd00:2::7")
    }

    fn names(frame: &[u8]) -> Option<([u16; 2], u8)> {
        let is_ipv6 = frame.get(14).is_some_and(|byte| byte >> 4 == 6);
        read(&frame[14..], is_ipv6).map(|quoted| (quoted.ports, quoted.protocol))
    }

    #[test]
    fn whole_and_cut_quotes_name_their_ports() {
        for builder in [v4(), v6()] {
            for (whole, number) in
                [(builder.clone().tcp(SYN).ports(7, 80).build(), 6), (builder.clone().udp().ports(7, 80).build(), 17)]
            {
                let header = if whole[14] >> 4 == 6 { 40 } else { 20 };
                assert_eq!(names(&whole), Some(([7, 80], number)));
                assert_eq!(names(&whole[..14 + header + 8]), Some(([7, 80], number)), "eight bytes are enough");
                (0..header + 4).for_each(|length| assert_eq!(names(&whole[..14 + length]), None, "{length}"));
            }
            let echo = builder.clone().echo_request(9, 1).build();
            assert_eq!(names(&echo).map(|(ports, _)| ports), Some([9, 9]));
            let error = builder.clone().time_exceeded(&echo).build();
            assert_eq!(names(&error), None, "an error about an error");
            let pieces = fragments(&builder.udp().ports(7, 80).payload_of(100), 64);
            assert_eq!(names(&pieces[0]), Some(([7, 80], 17)));
            assert_eq!(names(&pieces[1]), None, "a later fragment");
        }
    }
}
