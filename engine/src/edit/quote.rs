//! Translates the packet that an ICMP or ICMPv6 error quotes, so that its receiver finds what it sent itself.
//!
//! The quoted packet travelled the other way than the error: what becomes of the error's destination becomes of the
//! quote's source, and the reverse. Checksums inside stay as right or as wrong as they were, as far as the quote
//! reaches (SCTP's, which covers bytes that are not here, is left: no receiver of an error looks at it); the error's own is
//! carried along by the difference of what changed.

use super::Translation;
use crate::packet::checksum;
use crate::packet::parse::protocol;
use crate::packet::quoted::{self, QUOTE_FRONT, QUOTE_OFFSET};
use crate::packet::wire::{self, icmp, ipv4, ipv6, tcp, udp};

/// Translates the quote of the error whose message is `message`; a quote that names no connection is left alone.
pub(super) fn translate_quote(
    message: &mut [u8],
    is_ipv6: bool,
    partial: bool,
    translation: &Translation,
) -> Option<()> {
    let quote = message.get_mut(QUOTE_OFFSET..)?;
    let mut before = [0; QUOTE_FRONT];
    let front = quote.len().min(QUOTE_FRONT);
    before[..front].copy_from_slice(&quote[..front]);
    if let Some((address, port)) = translation.destination {
        replace(quote, is_ipv6, true, &address, port);
    }
    if let Some((address, port)) = translation.source {
        replace(quote, is_ipv6, false, &address, port);
    }
    let difference = checksum::difference(&before[..front], &quote[..front]);
    if partial {
        // Completed later, over the message as it is then.
        return Some(());
    }
    let sum = wire::read_u16(message, icmp::CHECKSUM)?;
    wire::write_u16(message, icmp::CHECKSUM, checksum::apply(sum, difference))
}

/// Replaces the quoted source, or destination, as far as the quote reaches.
fn replace(quote: &mut [u8], is_ipv6: bool, is_source: bool, address: &[u8; 16], port: u16) -> Option<()> {
    let packet = quoted::read(quote, is_ipv6)?;
    let old = if is_source { packet.source } else { packet.destination };
    let [a, b, c, d, ..] = *address;
    let length = match (is_ipv6, is_source) {
        (true, true) => ipv6::set_source(quote, address).map(|()| 16),
        (true, false) => ipv6::set_destination(quote, address).map(|()| 16),
        (false, true) => ipv4::set_source(quote, [a, b, c, d]).map(|()| 4),
        (false, false) => ipv4::set_destination(quote, [a, b, c, d]).map(|()| 4),
    }?;
    let addresses = checksum::difference(&old[..length], &address[..length]);
    replace_port(quote.get_mut(packet.transport_offset..)?, packet.protocol, is_source, addresses, port)
}

fn replace_port(segment: &mut [u8], number: u8, is_source: bool, addresses: u16, port: u16) -> Option<()> {
    let side = if is_source { 0 } else { 2 };
    let (offset, field, is_covered) = match number {
        protocol::TCP => (side, Some(tcp::CHECKSUM), true),
        protocol::UDP => (side, Some(udp::CHECKSUM), true),
        protocol::SCTP => (side, None, false),
        protocol::ICMP => (icmp::IDENTIFIER, Some(icmp::CHECKSUM), false),
        protocol::ICMPV6 => (icmp::IDENTIFIER, Some(icmp::CHECKSUM), true),
        _ => return Some(()),
    };
    let old = wire::read_u16(segment, offset)?;
    wire::write_u16(segment, offset, port)?;
    let field = field?;
    let sum = wire::read_u16(segment, field)?;
    if number == protocol::UDP && sum == 0 {
        return Some(());
    }
    let ports = checksum::difference(&old.to_be_bytes(), &port.to_be_bytes());
    let new = checksum::apply(if is_covered { checksum::apply(sum, addresses) } else { sum }, ports);
    wire::write_u16(segment, field, if number == protocol::UDP { udp::checksum_field(new) } else { new })
}
