//! Whether every checksum of a frame is right, by etherparse's arithmetic and a plain CRC32c.
//!
//! Fragments are checked for their IPv4 header only; packets quoted in ICMP errors not at all, since they may be cut.

use etherparse::{Icmpv4Slice, Icmpv6Slice, NetSlice, SlicedPacket, TcpSlice, UdpSlice};

use super::checksum::crc32c;
use super::decode::{Ip, VXLAN_PORTS};

/// Checks every checksum of a frame, of VXLAN the outer and the inner ones. A UDP checksum of zero is right over
/// IPv4 only.
///
/// # Errors
/// What is wrong, in words.
pub fn checksums_valid(frame: &[u8]) -> Result<(), String> {
    let packet = SlicedPacket::from_ethernet(frame).map_err(|error| format!("malformed: {error}"))?;
    let Some(net) = &packet.net else { return Ok(()) };
    if let NetSlice::Ipv4(ip) = net {
        let header = ip.header();
        compare("ipv4 header", header.header_checksum(), header.to_header().calc_header_checksum())?;
    }
    let Some(ip) = Ip::read(net).filter(Ip::is_whole) else { return Ok(()) };
    match ip.number {
        6 => tcp(&ip),
        17 => udp(&ip),
        132 => sctp(&ip),
        1 if ip.octets_v4().is_some() => icmp(&ip),
        58 if ip.octets_v4().is_none() => icmpv6(&ip),
        _ => Ok(()),
    }
}

fn compare(what: &str, found: u16, right: u16) -> Result<(), String> {
    if found == right { Ok(()) } else { Err(format!("{what} checksum is {found:#06x}, should be {right:#06x}")) }
}

fn text(error: impl std::fmt::Display) -> String {
    format!("malformed: {error}")
}

fn tcp(ip: &Ip<'_>) -> Result<(), String> {
    let tcp = TcpSlice::from_slice(ip.payload).map_err(text)?;
    let right = match ip.octets_v4() {
        Some((source, destination)) => tcp.calc_checksum_ipv4(source, destination),
        None => tcp.calc_checksum_ipv6(ip.octets_v6().0, ip.octets_v6().1),
    };
    compare("tcp", tcp.checksum(), right.map_err(text)?)
}

fn udp(ip: &Ip<'_>) -> Result<(), String> {
    let udp = UdpSlice::from_slice(ip.payload).map_err(text)?;
    let header = udp.to_header();
    let right = match ip.octets_v4() {
        Some((source, destination)) => header.calc_checksum_ipv4_raw(source, destination, udp.payload()),
        None => header.calc_checksum_ipv6_raw(ip.octets_v6().0, ip.octets_v6().1, udp.payload()),
    };
    if udp.checksum() != 0 || ip.octets_v4().is_none() {
        compare("udp", udp.checksum(), right.map_err(text)?)?;
    }
    match udp.payload() {
        [_, _, _, _, _, _, _, _, inner @ ..] if VXLAN_PORTS.contains(&udp.destination_port()) => {
            checksums_valid(inner).map_err(|error| format!("inner {error}"))
        }
        _ => Ok(()),
    }
}

fn sctp(ip: &Ip<'_>) -> Result<(), String> {
    let mut packet = ip.payload.to_vec();
    let field = packet.get_mut(8..12).ok_or("malformed: sctp header cut short")?;
    let found = u32::from_le_bytes([field[0], field[1], field[2], field[3]]);
    field.fill(0);
    let right = crc32c(&packet);
    if found == right { Ok(()) } else { Err(format!("sctp checksum is {found:#010x}, should be {right:#010x}")) }
}

fn icmp(ip: &Ip<'_>) -> Result<(), String> {
    let icmp = Icmpv4Slice::from_slice(ip.payload).map_err(text)?;
    let right = icmp.icmp_type().calc_checksum(icmp.payload());
    // Zero may be written as all ones: a receiver sums up the same.
    if icmp.checksum() == 0xffff && right == 0 { Ok(()) } else { compare("icmp", icmp.checksum(), right) }
}

fn icmpv6(ip: &Ip<'_>) -> Result<(), String> {
    let icmp = Icmpv6Slice::from_slice(ip.payload).map_err(text)?;
    let (source, destination) = ip.octets_v6();
    let right = icmp.icmp_type().calc_checksum(source, destination, icmp.payload()).map_err(text)?;
    compare("icmpv6", icmp.checksum(), right)
}
