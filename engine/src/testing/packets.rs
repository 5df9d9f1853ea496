//! One valid packet of every kind, for tests that must hold for all.

use super::frame::{FrameBuilder, frame};
use super::{ACK, CWR, FIN, PSH, RST, SYN};
use crate::port::memory::WireFrame;

fn v4() -> FrameBuilder {
    frame().from("02:00:5e:00:53:05", "10.1.0.5").to("02:00:5e:00:53:07", "10.2.0.7")
}

fn v6() -> FrameBuilder {
    frame().from("02:00:5e:00:53:05", "2001:db8:1::5").to("02:00:5e:00:53:07", "2001:db8:2::7")
}

fn nodes() -> FrameBuilder {
    frame().from("02:00:5e:00:53:a1", "192.0.2.1").to("02:00:5e:00:53:a2", "192.0.2.2")
}

fn nodes_v6() -> FrameBuilder {
    frame().from("02:00:5e:00:53:a1", "2001:db8:f::1").to("02:00:5e:00:53:a2", "2001:db8:f::2")
}

/// Cuts the packet of `whole` into IP fragments with at most `size` bytes of data each, a multiple of eight.
#[must_use]
pub fn fragments(whole: &FrameBuilder, size: usize) -> Vec<Vec<u8>> {
    assert!(size.is_multiple_of(8) && size > 0, "fragments carry a multiple of eight bytes");
    let segment = whole.segment();
    let number = whole.protocol_number();
    let pieces = segment.chunks(size).enumerate();
    pieces
        .map(|(index, piece)| {
            let offset = index * size;
            let more = offset + piece.len() < segment.len();
            whole.clone().protocol(number).payload(piece).fragment(offset as u16, more).build()
        })
        .collect()
}

/// A valid frame of every kind, with a name for messages.
#[must_use]
pub fn valid_packets() -> Vec<(&'static str, Vec<u8>)> {
    let mut all = link_packets();
    all.extend(ipv4_packets());
    all.extend(ipv6_packets());
    all.extend(icmp_packets());
    all.extend(vxlan_packets());
    all
}

fn link_packets() -> Vec<(&'static str, Vec<u8>)> {
    let broadcast = v4().to("ff:ff:ff:ff:ff:ff", "10.1.0.1");
    vec![
        ("arp request", broadcast.clone().arp_request("10.1.0.1").build()),
        ("arp request padded", broadcast.clone().arp_request("10.1.0.1").padded_to(60).build()),
        ("arp reply", v4().arp_reply().build()),
        ("arp in vlan", broadcast.vlan(10).arp_request("10.1.0.1").build()),
        ("lldp", v4().ethertype(0x88cc).payload_of(40).build()),
        ("llc", v4().ethertype(0x0026).payload_of(38).build()),
        ("vlan tcp", v4().vlan(10).tcp(SYN).build()),
        ("priority tag udp", v4().tag(0x8100, 0xe000).udp().payload(b"data").build()),
        ("qinq udp", v4().qinq(100, 10).udp().payload(b"data").build()),
        ("qinq tcp over ipv6", v6().qinq(100, 10).tcp(ACK).payload_of(64).build()),
    ]
}

fn ipv4_packets() -> Vec<(&'static str, Vec<u8>)> {
    let large = v4().udp().identification(7).payload_of(3000);
    let [first, later, last] = fragments(&large, 1480).try_into().expect("3008 bytes make three fragments");
    vec![
        ("tcp syn", v4().tcp(SYN).tcp_options(&[2, 4, 5, 0xb4, 1, 1, 4, 2]).dont_fragment().build()),
        ("tcp data", v4().tcp(ACK | PSH).sequence(1, 2).dont_fragment().payload_of(1398).build()),
        ("tcp odd data", v4().tcp(ACK).payload(b"odd").padded_to(60).build()),
        ("tcp fin", v4().tcp(FIN | ACK).build()),
        ("tcp rst", v4().tcp(RST).build()),
        ("tcp cwr", v4().tcp(ACK | CWR).traffic_class(2).build()),
        ("tcp behind options", v4().options(&[1, 1, 1, 1]).tcp(ACK).payload_of(10).build()),
        ("udp", v4().udp().ports(5000, 53).payload(b"question").build()),
        ("udp empty", v4().udp().build()),
        ("udp without checksum", v4().udp_without_checksum().payload(b"data").build()),
        (
            "udp to broadcast",
            v4().to("ff:ff:ff:ff:ff:ff", "255.255.255.255").udp().ports(68, 67).payload_of(240).build(),
        ),
        (
            "udp to multicast",
            v4().to("01:00:5e:00:00:fb", "224.0.0.251").udp().ports(5353, 5353).payload_of(20).build(),
        ),
        ("sctp", v4().sctp(0x1234_5678).ports(3868, 3868).payload(&[0, 0, 0, 4]).build()),
        ("first fragment", first),
        ("later fragment", later),
        ("last fragment", last),
        ("gre", v4().protocol(47).payload_of(24).build()),
        ("igmp", v4().to("01:00:5e:00:00:16", "224.0.0.22").ttl(1).protocol(2).payload(&IGMP_REPORT).build()),
    ]
}

const IGMP_REPORT: [u8; 16] = [0x22, 0, 0xf9, 2, 0, 0, 0, 1, 4, 0, 0, 0, 224, 0, 0, 251];

fn ipv6_packets() -> Vec<(&'static str, Vec<u8>)> {
    let large = v6().udp().identification(7).payload_of(2000);
    let [first, last] = fragments(&large, 1232).try_into().expect("2008 bytes make two fragments");
    let hop = v6().extension(0, &[5, 2, 0, 0]);
    vec![
        ("tcp syn over ipv6", v6().tcp(SYN).tcp_options(&[2, 4, 5, 0xa0]).build()),
        ("tcp data over ipv6", v6().tcp(ACK).payload_of(1378).build()),
        ("udp over ipv6", v6().udp().ports(5000, 53).payload(b"question").build()),
        ("sctp over ipv6", v6().sctp(1).payload(&[0, 0, 0, 4]).build()),
        ("tcp behind hop-by-hop", hop.clone().tcp(ACK).payload_of(10).build()),
        ("udp behind three headers", hop.extension(60, &[1, 12]).extension(43, &[4, 0, 0, 0, 0, 0]).udp().build()),
        ("udp behind authentication", v6().authentication(3).udp().payload(b"data").build()),
        ("ipv6 first fragment", first),
        ("ipv6 last fragment", last),
        ("ipv6 atomic fragment", v6().identification(9).fragment(0, false).udp().payload(b"atomic").build()),
        ("ipv6 no next header", v6().protocol(59).build()),
        ("ipv6 link-local", v6().from("02:00:5e:00:53:05", "fe80::5").to("02:00:5e:00:53:07", "fe80::7").udp().build()),
    ]
}

fn icmp_packets() -> Vec<(&'static str, Vec<u8>)> {
    let (cause, cause_v6) = (v4().udp().payload_of(1400).build(), v6().udp().payload_of(1400).build());
    let back = || frame().from("02:00:5e:00:53:07", "10.1.0.1").to("02:00:5e:00:53:05", "10.1.0.5");
    let back_v6 = || frame().from("02:00:5e:00:53:07", "2001:db8::1").to("02:00:5e:00:53:05", "2001:db8:1::5");
    vec![
        ("icmp echo request", v4().echo_request(7, 1).payload_of(56).build()),
        ("icmp echo reply", v4().echo_reply(7, 1).payload_of(56).build()),
        ("icmp time exceeded", back().time_exceeded(&cause).build()),
        ("icmp fragmentation needed", back().too_big(1450, &cause).build()),
        ("icmp port unreachable", back().unreachable(3, &cause).build()),
        ("icmp timestamp", v4().icmp(13, 0, [0, 1, 0, 1]).payload(&[0; 12]).build()),
        ("icmpv6 echo request", v6().echo_request(7, 1).payload_of(56).build()),
        ("icmpv6 echo reply", v6().echo_reply(7, 1).payload_of(56).build()),
        ("icmpv6 time exceeded", back_v6().time_exceeded(&cause_v6).build()),
        ("icmpv6 packet too big", back_v6().too_big(1400, &cause_v6).build()),
        ("icmpv6 port unreachable", back_v6().unreachable(4, &cause_v6).build()),
        ("nd solicitation", frame().from("02:00:5e:00:53:05", "fe80::5").nd_solicitation("2001:db8:1::1").build()),
        ("nd probe", frame().from("02:00:5e:00:53:05", "::").nd_solicitation("fe80::5").build()),
        ("nd advertisement", v6().nd_advertisement("2001:db8:1::5").build()),
        (
            "nd router solicitation",
            frame()
                .from("02:00:5e:00:53:05", "fe80::5")
                .to("33:33:00:00:00:02", "ff02::2")
                .ttl(255)
                .icmp(133, 0, [0; 4])
                .build(),
        ),
        (
            "mld report",
            frame()
                .from("02:00:5e:00:53:05", "fe80::5")
                .to("33:33:00:00:00:16", "ff02::16")
                .ttl(1)
                .extension(0, &[5, 2, 0, 0])
                .icmp(143, 0, [0, 0, 0, 1])
                .payload_of(20)
                .build(),
        ),
    ]
}

fn vxlan_packets() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("vxlan tcp", v4().tcp(SYN).inside_vxlan(7, nodes()).build()),
        ("vxlan ipv6 inside", v6().tcp(ACK).payload_of(100).inside_vxlan(7, nodes()).build()),
        ("vxlan over ipv6", v4().udp().payload(b"data").inside_vxlan(0xff_ffff, nodes_v6()).build()),
        ("vxlan arp", v4().arp_request("10.1.0.1").inside_vxlan(1, nodes()).build()),
        ("vxlan vlan inside", v4().vlan(10).udp().inside_vxlan(7, nodes()).build()),
        ("vxlan in vlan on port 8472", v4().udp().inside_vxlan(1, nodes().vlan(20).ports(50_000, 8472)).build()),
    ]
}

/// GSO units of every kind, as a TAP with all offloads gives them.
#[must_use]
pub fn gso_units() -> Vec<(&'static str, WireFrame)> {
    vec![
        ("tcp unit", v4().dont_fragment().tcp(ACK | PSH).payload_of(5000).gso(1398).wire()),
        ("tcp unit over ipv6", v6().tcp(ACK).payload_of(60_000).gso(1378).wire()),
        ("tcp unit with ecn", v4().traffic_class(2).tcp(ACK | CWR).payload_of(3000).gso(1398).gso_ecn().wire()),
        ("udp unit", v4().udp().payload_of(4000).gso(1400).wire()),
        ("udp unit over ipv6", v6().udp().payload_of(4100).gso(1300).wire()),
        ("tcp unit in vlan", v4().vlan(10).tcp(ACK).payload_of(4000).gso(1398).wire()),
    ]
}
