//! Neighbour discovery for IPv6 (RFC 4861).
//!
//! [`is_valid`] holds every rule of the RFC's "validation of" sections but the checksum, which the parser leaves to
//! whoever acts on a message ([`icmpv6::checksum_is_right`]).

use super::icmpv6::{self, write_checksum};
use super::{ethernet, ipv6, read_array, write_bytes};
use crate::packet::Mac;
use crate::packet::parse::ethertype;

/// First byte of the target address in solicitations, advertisements and redirects.
pub const TARGET: usize = 8;
/// First option of a solicitation or advertisement.
pub const OPTIONS: usize = 24;
/// Bytes of a link-layer address option for Ethernet.
pub const ADDRESS_OPTION_BYTES: usize = 8;
/// Option: the sender's link-layer address.
pub const SOURCE_ADDRESS_OPTION: u8 = 1;
/// Option: the target's link-layer address.
pub const TARGET_ADDRESS_OPTION: u8 = 2;
/// Hop limit of every message, which proves that no router forwarded it.
pub const HOP_LIMIT: u8 = 255;
/// ff02::1.
pub const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// Bytes of a solicitation or advertisement frame with its address option.
pub const FRAME_BYTES: usize = ethernet::HEADER_BYTES + ipv6::HEADER_BYTES + OPTIONS + ADDRESS_OPTION_BYTES;

const UNSPECIFIED: [u8; 16] = [0; 16];
const SOLICITED_NODE: [u8; 13] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff];

/// Message types.
pub mod kind {
    /// Router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation.
    pub const SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const ADVERTISEMENT: u8 = 136;
    /// Redirect.
    pub const REDIRECT: u8 = 137;
}

/// Flags of an advertisement, in the byte behind the checksum (RFC 4861 section 4.4).
pub mod flag {
    /// The sender is a router.
    pub const ROUTER: u8 = 0x80;
    /// Answers a solicitation that named its sender.
    pub const SOLICITED: u8 = 0x40;
    /// Replaces what the receiver has cached.
    pub const OVERRIDE: u8 = 0x20;
}

/// Whether an ICMPv6 message of this type is neighbour discovery.
#[inline]
#[must_use]
pub const fn is_nd(message_type: u8) -> bool {
    matches!(message_type, kind::ROUTER_SOLICITATION..=kind::REDIRECT)
}

/// The solicited-node multicast address of `address` (RFC 4291 section 2.7.1).
#[must_use]
pub fn solicited_node(address: &[u8; 16]) -> [u8; 16] {
    let mut group = [0; 16];
    group[..13].copy_from_slice(&SOLICITED_NODE);
    group[13..].copy_from_slice(&address[13..]);
    group
}

/// The options of a message: type and whole option. Ends early at a malformed one.
fn options(bytes: &[u8]) -> impl Iterator<Item = Result<(u8, &[u8]), ()>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let [kind, units, ..] = *rest else {
            let torn = !rest.is_empty();
            rest = &[];
            return torn.then_some(Err(()));
        };
        let length = usize::from(units) * 8;
        if length == 0 || length > rest.len() {
            rest = &[];
            return Some(Err(()));
        }
        let (option, behind) = rest.split_at(length);
        rest = behind;
        Some(Ok((kind, option)))
    })
}

/// The Ethernet address in the first option of this type.
fn address_option(bytes: &[u8], wanted: u8) -> Option<Mac> {
    options(bytes).flatten().find(|(kind, _)| *kind == wanted).and_then(|(_, option)| read_array(option, 2)).map(Mac)
}

/// Whether the message, all of which is `message`, keeps the rules of RFC 4861 sections 6.1, 7.1 and 8.1.
#[must_use]
pub fn is_valid(message: &[u8], hop_limit: u8, source: &[u8; 16], destination: &[u8; 16]) -> bool {
    let [message_type, code, ..] = *message else { return false };
    let fixed = match message_type {
        kind::ROUTER_SOLICITATION => 8,
        kind::ROUTER_ADVERTISEMENT => 16,
        kind::SOLICITATION | kind::ADVERTISEMENT => OPTIONS,
        kind::REDIRECT => 40,
        _ => return false,
    };
    let Some(option_bytes) = message.get(fixed..) else { return false };
    if hop_limit != HOP_LIMIT || code != 0 || options(option_bytes).any(|option| option.is_err()) {
        return false;
    }
    let anonymous = *source == UNSPECIFIED;
    let names_itself = address_option(option_bytes, SOURCE_ADDRESS_OPTION).is_some();
    let target_is_host = message.get(TARGET).is_some_and(|first| *first != 0xff);
    match message_type {
        kind::ROUTER_SOLICITATION => !(anonymous && names_itself),
        kind::SOLICITATION => {
            let probe = !names_itself && destination[..13] == SOLICITED_NODE;
            target_is_host && (!anonymous || probe)
        }
        kind::ADVERTISEMENT => {
            let solicited = message.get(4).is_some_and(|flags| flags & flag::SOLICITED != 0);
            target_is_host && !(solicited && ipv6::is_multicast(destination))
        }
        _ => ipv6::is_link_local(source),
    }
}

/// What a neighbour solicitation asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Solicitation {
    /// Whose MAC address is wanted.
    pub target: [u8; 16],
    /// The asker's own MAC address; absent in duplicate address detection.
    pub source_mac: Option<Mac>,
}

/// Reads a solicitation; `None` if the message is none or cut short. Its validity was checked by the parser.
#[must_use]
pub fn read_solicitation(message: &[u8]) -> Option<Solicitation> {
    if *message.first()? != kind::SOLICITATION {
        return None;
    }
    let target = read_array(message, TARGET)?;
    Some(Solicitation { target, source_mac: address_option(message.get(OPTIONS..)?, SOURCE_ADDRESS_OPTION) })
}

/// What a neighbour advertisement says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// Whose MAC address is told.
    pub target: [u8; 16],
    /// That MAC address, if it is told.
    pub target_mac: Option<Mac>,
    /// Bits of [`flag`].
    pub flags: u8,
}

/// Reads an advertisement; `None` if the message is none or cut short.
#[must_use]
pub fn read_advertisement(message: &[u8]) -> Option<Advertisement> {
    if *message.first()? != kind::ADVERTISEMENT {
        return None;
    }
    let (flags, target) = (*message.get(4)?, read_array(message, TARGET)?);
    Some(Advertisement { target, target_mac: address_option(message.get(OPTIONS..)?, TARGET_ADDRESS_OPTION), flags })
}

/// Writes the message of an advertisement: `address` has the MAC address `mac`.
pub fn write_advertisement(
    target: &mut [u8],
    source: &[u8; 16],
    destination: &[u8; 16],
    address: &[u8; 16],
    mac: Mac,
    flags: u8,
) -> Option<usize> {
    let start = [kind::ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    write_message(target, start, source, destination, address, (TARGET_ADDRESS_OPTION, mac))
}

fn write_message(
    target: &mut [u8],
    start: [u8; TARGET],
    source: &[u8; 16],
    destination: &[u8; 16],
    address: &[u8; 16],
    (option, mac): (u8, Mac),
) -> Option<usize> {
    let message = target.get_mut(..OPTIONS + ADDRESS_OPTION_BYTES)?;
    write_bytes(message, 0, &start)?;
    write_bytes(message, TARGET, address)?;
    write_bytes(message, OPTIONS, &[option, 1])?;
    write_bytes(message, OPTIONS + 2, &mac.0)?;
    write_checksum(message, source, destination)?;
    Some(message.len())
}

fn write_frame(
    target: &mut [u8],
    macs: (Mac, Mac),
    source: &[u8; 16],
    destination: &[u8; 16],
    length: usize,
) -> Option<usize> {
    let network = ethernet::write_ethernet(target, macs.0, macs.1, ethertype::IPV6)?;
    icmpv6::write_header(target.get_mut(network..)?, length, HOP_LIMIT, source, destination)?;
    Some(network + ipv6::HEADER_BYTES + length)
}

/// Writes the untagged frame that answers a solicitation received from `asker_mac` and `asker`: the target has the
/// MAC address `mac`. An anonymous asker (duplicate address detection) is answered to all nodes.
pub fn write_advertisement_frame(
    target: &mut [u8],
    asker_mac: Mac,
    asker: &[u8; 16],
    solicitation: &Solicitation,
    mac: Mac,
    router: bool,
) -> Option<usize> {
    let anonymous = *asker == UNSPECIFIED;
    let (destination, destination_mac) = if anonymous {
        (ALL_NODES, ethernet::multicast_ipv6(&ALL_NODES))
    } else {
        (*asker, solicitation.source_mac.unwrap_or(asker_mac))
    };
    let flags = flag::OVERRIDE | if router { flag::ROUTER } else { 0 } | if anonymous { 0 } else { flag::SOLICITED };
    let message = target.get_mut(ethernet::HEADER_BYTES + ipv6::HEADER_BYTES..)?;
    let source = &solicitation.target;
    let length = write_advertisement(message, source, &destination, source, mac, flags)?;
    write_frame(target, (destination_mac, mac), source, &destination, length)
}

/// Writes the untagged frame by which `mac` and `source` ask for the MAC address of `address`.
pub fn write_solicitation_frame(target: &mut [u8], mac: Mac, source: &[u8; 16], address: &[u8; 16]) -> Option<usize> {
    let destination = solicited_node(address);
    let message = target.get_mut(ethernet::HEADER_BYTES + ipv6::HEADER_BYTES..)?;
    let start = [kind::SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    let length = write_message(message, start, source, &destination, address, (SOURCE_ADDRESS_OPTION, mac))?;
    write_frame(target, (ethernet::multicast_ipv6(&destination), mac), source, &destination, length)
}
