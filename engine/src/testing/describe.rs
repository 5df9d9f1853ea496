//! A frame in one line, the same words every time.
//!
//! ```text
//! tcp syn 10.1.0.5:40000 > 10.96.0.10:80
//! vlan 10 udp 10.1.0.5:40000 > 10.1.0.6:53 length 4
//! vxlan vni 7 192.0.2.1 > 192.0.2.2 | tcp ack [2001:db8::5]:40000 > [2001:db8::6]:80 length 100
//! icmp fragmentation needed mtu 1450 10.1.0.1 > 10.1.0.5 | udp 10.1.0.5:40000 > 10.2.0.7:80
//! vlan s100.20p5 class 46.ect0 udp 10.1.0.5:40000 > 10.1.0.6:53
//! ```
//! A service tag has an `s`, a priority stands behind `p`; `class` is DSCP and ECN, left out when both are zero.
//! `length` is the layer-4 payload's, and left out when there is none. What is volatile (MAC addresses of IP
//! packets, sequence numbers, TTL, checksums) does not appear.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{ArpPacketSlice, LaxSlicedPacket, NetSlice, SlicedPacket, TcpSlice};

use super::decode::{Ip, VXLAN_PORTS};
use crate::packet::Mac;
use crate::packet::parse::ethertype;

/// Says what a frame is.
#[must_use]
pub fn describe(frame: &[u8]) -> String {
    let packet = match SlicedPacket::from_ethernet(frame) {
        Ok(packet) => packet,
        Err(error) => return format!("malformed: {error}"),
    };
    let (tags, network_offset) = tags_text(frame);
    let class = packet.net.as_ref().map_or_else(String::new, |net| class_text(net, &frame[network_offset..]));
    let body = match &packet.net {
        Some(NetSlice::Arp(arp)) => describe_arp(arp),
        Some(net) => Ip::read(net).map_or_else(String::new, |ip| describe_ip(&ip)),
        None => describe_ethernet(frame, &packet),
    };
    tags + &class + &body
}

/// The tags and the bytes before the network header. A service tag is marked by an `s`, a priority stands behind `p`.
fn tags_text(frame: &[u8]) -> (String, usize) {
    let (mut at, mut texts) = (12, Vec::new());
    while matches!(word(frame, at), ethertype::VLAN | ethertype::QINQ) {
        let service = if word(frame, at) == ethertype::QINQ { "s" } else { "" };
        let control = word(frame, at + 2);
        let priority = if control >> 13 == 0 { String::new() } else { format!("p{}", control >> 13) };
        texts.push(format!("{service}{}{priority}", control & 0x0fff));
        at += 4;
    }
    let text = if texts.is_empty() { String::new() } else { format!("vlan {} ", texts.join(".")) };
    (text, (at + 2).min(frame.len()))
}

/// DSCP and ECN, if either says something.
fn class_text(net: &NetSlice<'_>, header: &[u8]) -> String {
    let class = match net {
        NetSlice::Ipv4(_) => word(header, 0) as u8,
        NetSlice::Ipv6(_) => (word(header, 0) >> 4) as u8,
        NetSlice::Arp(_) => 0,
    };
    let ecn = ["not-ect", "ect1", "ect0", "ce"][usize::from(class & 3)];
    if class == 0 { String::new() } else { format!("class {}.{ecn} ", class >> 2) }
}

fn describe_ethernet(frame: &[u8], packet: &SlicedPacket<'_>) -> String {
    let (destination, source) = (Mac::read(frame), Mac::read(&frame[6..]));
    let number = packet.payload_ether_type().map_or(0, |number| number.0);
    let length = packet.ether_payload().map_or(0, |payload| payload.payload.len());
    format!("ethertype {number:#06x} {source} > {destination}{}", length_text(length))
}

fn describe_arp(arp: &ArpPacketSlice<'_>) -> String {
    let address = |bytes: &[u8]| bytes.first_chunk::<4>().map_or(Ipv4Addr::UNSPECIFIED, |octets| (*octets).into());
    let (sender, target) = (address(arp.sender_protocol_addr()), address(arp.target_protocol_addr()));
    match arp.operation().0 {
        1 => format!("arp who-has {target} tell {sender}"),
        2 => format!("arp {sender} is-at {} to {target}", Mac::read(arp.sender_hw_addr())),
        other => format!("arp operation {other} {sender} > {target}"),
    }
}

fn describe_ip(ip: &Ip<'_>) -> String {
    let fragment = match ip.fragment {
        Some((0, false)) => " fragment atomic".to_owned(),
        Some((offset, more)) => format!(" fragment {offset}{}", if more { " more" } else { "" }),
        None => String::new(),
    };
    if ip.fragment.is_some_and(|(offset, _)| offset != 0) {
        let line = format!("{} {} > {}", protocol_name(ip.number), ip.source, ip.destination);
        return line + &length_text(ip.payload.len()) + &fragment;
    }
    let body = match ip.number {
        6 => describe_tcp(ip),
        17 => describe_udp(ip),
        132 => describe_ports("sctp", ip, 12),
        1 if ip.source.is_ipv4() => describe_icmp(ip),
        58 if ip.source.is_ipv6() => describe_icmpv6(ip),
        number => {
            format!("{} {} > {}{}", protocol_name(number), ip.source, ip.destination, length_text(ip.payload.len()))
        }
    };
    body + &fragment
}

fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => format!("protocol {other}"),
    }
}

fn length_text(length: usize) -> String {
    if length == 0 { String::new() } else { format!(" length {length}") }
}

/// The word at `offset`; zero beyond the end, as in a quote that was cut.
fn word(bytes: &[u8], offset: usize) -> u16 {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u16::from_be_bytes(*word))
}

fn describe_ports(name: &str, ip: &Ip<'_>, header_length: usize) -> String {
    let source = SocketAddr::new(ip.source, word(ip.payload, 0));
    let destination = SocketAddr::new(ip.destination, word(ip.payload, 2));
    format!("{name} {source} > {destination}{}", length_text(ip.payload.len().saturating_sub(header_length)))
}

fn describe_tcp(ip: &Ip<'_>) -> String {
    let Ok(tcp) = TcpSlice::from_slice(ip.payload) else { return describe_ports("tcp", ip, usize::MAX) };
    let flags = [
        (tcp.syn(), "syn "),
        (tcp.fin(), "fin "),
        (tcp.rst(), "rst "),
        (tcp.psh(), "psh "),
        (tcp.ack(), "ack "),
        (tcp.urg(), "urg "),
        (tcp.ece(), "ece "),
        (tcp.cwr(), "cwr "),
    ];
    let names: String = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    let names = if names.is_empty() { "none ".to_owned() } else { names };
    describe_ports(&format!("tcp {}", names.trim_end()), ip, usize::from(tcp.data_offset()) * 4)
}

fn describe_udp(ip: &Ip<'_>) -> String {
    let length = usize::from(word(ip.payload, 4));
    let payload = ip.payload.get(8..length).or_else(|| ip.payload.get(8..)).unwrap_or_default();
    if VXLAN_PORTS.contains(&word(ip.payload, 2)) && payload.len() >= 22 && ip.is_whole() {
        let vni = u32::from_be_bytes([0, payload[4], payload[5], payload[6]]);
        let flags = if payload[0] == 8 { String::new() } else { format!(" flags {:#04x}", payload[0]) };
        return format!("vxlan vni {vni}{flags} {} > {} | {}", ip.source, ip.destination, describe(&payload[8..]));
    }
    describe_ports("udp", ip, 8)
}

fn describe_icmp(ip: &Ip<'_>) -> String {
    let (kind, code) = (ip.payload.first().copied().unwrap_or(0), ip.payload.get(1).copied().unwrap_or(0));
    let name = match (kind, code) {
        (0 | 8, _) => return describe_echo("icmp", kind == 8, ip),
        (11, 0) => "time exceeded".to_owned(),
        (3, 4) => format!("fragmentation needed mtu {}", word(ip.payload, 6)),
        (3, 0) => "network unreachable".to_owned(),
        (3, 1) => "host unreachable".to_owned(),
        (3, 3) => "port unreachable".to_owned(),
        (3, 13) => "prohibited".to_owned(),
        (3 | 4 | 5 | 11 | 12, _) => format!("type {kind} code {code}"),
        _ => return format!("icmp type {kind} code {code} {} > {}", ip.source, ip.destination),
    };
    format!("icmp {name} {} > {} | {}", ip.source, ip.destination, describe_quote(ip))
}

fn describe_icmpv6(ip: &Ip<'_>) -> String {
    let (kind, code) = (ip.payload.first().copied().unwrap_or(0), ip.payload.get(1).copied().unwrap_or(0));
    let name = match (kind, code) {
        (128 | 129, _) => return describe_echo("icmpv6", kind == 128, ip),
        (133..=137, _) => return describe_nd(kind, ip),
        (1, 0) => "no route".to_owned(),
        (1, 1) => "prohibited".to_owned(),
        (1, 3) => "address unreachable".to_owned(),
        (1, 4) => "port unreachable".to_owned(),
        (2, _) => {
            format!("packet too big mtu {}", u32::from(word(ip.payload, 4)) << 16 | u32::from(word(ip.payload, 6)))
        }
        (3, 0) => "time exceeded".to_owned(),
        (0..=127, _) => format!("type {kind} code {code}"),
        _ => return format!("icmpv6 type {kind} code {code} {} > {}", ip.source, ip.destination),
    };
    format!("icmpv6 {name} {} > {} | {}", ip.source, ip.destination, describe_quote(ip))
}

fn describe_echo(name: &str, request: bool, ip: &Ip<'_>) -> String {
    let kind = if request { "request" } else { "reply" };
    let (identifier, sequence) = (word(ip.payload, 4), word(ip.payload, 6));
    let length = length_text(ip.payload.len().saturating_sub(8));
    format!("{name} echo {kind} {} > {} id {identifier} seq {sequence}{length}", ip.source, ip.destination)
}

fn describe_nd(kind: u8, ip: &Ip<'_>) -> String {
    let target = ip
        .payload
        .get(8..)
        .and_then(|rest| rest.first_chunk::<16>())
        .map_or(Ipv6Addr::UNSPECIFIED, |octets| Ipv6Addr::from(*octets));
    let mac = ip.payload.get(26..32).map(Mac::read);
    match (kind, mac) {
        (135, _) => format!("nd who-has {target} tell {}", ip.source),
        (136, Some(mac)) => format!("nd {target} is-at {mac} to {}", ip.destination),
        (136, None) => format!("nd {target} is-here to {}", ip.destination),
        (133, _) => format!("nd router solicitation {} > {}", ip.source, ip.destination),
        (134, _) => format!("nd router advertisement {} > {}", ip.source, ip.destination),
        _ => format!("nd redirect {} > {}", ip.source, ip.destination),
    }
}

/// The packet inside an ICMP error, which may be cut: only its ports are told.
fn describe_quote(ip: &Ip<'_>) -> String {
    let quote = ip.payload.get(8..).unwrap_or_default();
    let packet = match LaxSlicedPacket::from_ip(quote) {
        Ok(packet) => packet,
        Err(error) => return format!("malformed: {error}"),
    };
    let Some(quoted) = packet.net.as_ref().and_then(Ip::read_cut) else { return "nothing".to_owned() };
    let name = protocol_name(quoted.number);
    let first = quoted.fragment.is_none_or(|(offset, _)| offset == 0);
    if matches!(quoted.number, 6 | 17 | 132) && first && quoted.payload.len() >= 4 {
        describe_ports(&name, &quoted, usize::MAX)
    } else {
        format!("{name} {} > {}", quoted.source, quoted.destination)
    }
}
