//! One row for each way a frame can be malformed.

use super::*;
use crate::testing::{ACK, FrameBuilder, SYN, frame};

fn v4() -> FrameBuilder {
    frame().from("02:00:5e:00:53:05", "10.1.0.5").to("02:00:5e:00:53:07", "10.2.0.7")
}

fn v6() -> FrameBuilder {
    frame().from("02:00:5e:00:53:05", "2001:db8::5").to("02:00:5e:00:53:07", "2001:db8::7")
}

fn host() -> FrameBuilder {
    frame().from("02:00:5e:00:53:05", "fe80::5")
}

/// The frame with `bytes` written at `at`.
fn patched(builder: &FrameBuilder, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = builder.build();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

#[track_caller]
fn check(rows: &[(&str, Vec<u8>, DropReason)]) {
    for (name, frame, reason) in rows {
        assert_eq!(parse(frame, frame.len()), Err(*reason), "{name}");
    }
}

#[test]
fn link_layer() {
    use DropReason::{ArpMalformed, EthernetTruncated, VlanTooDeep};
    let arp = v4().arp_request("10.1.0.1");
    check(&[
        ("nothing", Vec::new(), EthernetTruncated),
        ("13 bytes", v4().tcp(SYN).cut_at(13).build(), EthernetTruncated),
        ("inside the tag", v4().vlan(10).tcp(SYN).cut_at(17).build(), EthernetTruncated),
        ("inside the second tag", v4().qinq(1, 2).tcp(SYN).cut_at(20).build(), EthernetTruncated),
        ("three tags", v4().qinq(1, 2).vlan(3).tcp(SYN).build(), VlanTooDeep),
        ("three tags, the third cut", v4().qinq(1, 2).vlan(3).tcp(SYN).cut_at(22).build(), VlanTooDeep),
        ("ARP cut", arp.clone().cut_at(41).build(), ArpMalformed),
        ("ARP for token ring", patched(&arp, 14, &[0, 6]), ArpMalformed),
        ("ARP for another protocol", patched(&arp, 16, &[0x86, 0xdd]), ArpMalformed),
        ("ARP with long hardware addresses", patched(&arp, 18, &[8]), ArpMalformed),
        ("ARP with long protocol addresses", patched(&arp, 19, &[16]), ArpMalformed),
    ]);
}

#[test]
fn ipv4() {
    use DropReason::{FragmentMalformed, Ipv4Checksum, Ipv4HeaderLength, Ipv4TotalLength, Ipv4Truncated, Ipv4Version};
    let udp = v4().udp().payload(b"data");
    let piece = |size: usize| v4().protocol(17).payload_of(size);
    check(&[
        ("header cut", udp.clone().cut_at(33).build(), Ipv4Truncated),
        ("nothing behind Ethernet", udp.clone().cut_at(14).build(), Ipv4Truncated),
        ("version 6", patched(&udp, 14, &[0x65]), Ipv4Version),
        ("version 0", patched(&udp, 14, &[0x05]), Ipv4Version),
        ("header of 16 bytes", patched(&udp, 14, &[0x44]), Ipv4HeaderLength),
        ("header beyond the frame", patched(&udp, 14, &[0x4f]), Ipv4HeaderLength),
        ("total length below the header", udp.clone().with_ip_length(19).build(), Ipv4TotalLength),
        ("total length zero", udp.clone().with_ip_length(0).build(), Ipv4TotalLength),
        ("total length inside the options", udp.clone().options(&[1; 4]).with_ip_length(23).build(), Ipv4TotalLength),
        ("total length beyond the frame", udp.clone().with_ip_length(33).build(), Ipv4TotalLength),
        ("wrong checksum", udp.clone().with_bad_ip_checksum().build(), Ipv4Checksum),
        ("wrong option byte", patched(&udp.clone().options(&[1; 4]), 34, &[0]), Ipv4Checksum),
        ("fragment of 9 bytes that is not the last", piece(9).fragment(8, true).build(), FragmentMalformed),
        ("fragment without data", piece(0).fragment(8, false).build(), FragmentMalformed),
        ("fragment beyond 64 KiB", piece(8).fragment(65_528, false).build(), FragmentMalformed),
        ("fragment into the TCP flags", v4().tcp(SYN).payload_of(8).fragment(8, false).build(), FragmentMalformed),
        ("fragment into the TCP checksum", v4().tcp(SYN).payload_of(8).fragment(16, true).build(), FragmentMalformed),
    ]);
}

#[test]
fn ipv6() {
    use DropReason::{FragmentMalformed, Ipv6Extension, Ipv6PayloadLength, Ipv6Truncated, Ipv6Version};
    let udp = v6().udp().payload(b"data");
    let piece = |size: usize| v6().protocol(17).payload_of(size);
    let nine = (0..9).fold(v6(), |builder, _| builder.extension(60, &[]));
    let eight = (0..8).fold(v6(), |builder, _| builder.extension(60, &[]));
    assert!(parse(&eight.udp().build(), 126).is_ok());
    check(&[
        ("header cut", udp.clone().cut_at(53).build(), Ipv6Truncated),
        ("version 4", patched(&udp, 14, &[0x45]), Ipv6Version),
        ("payload beyond the frame", udp.clone().with_ip_length(13).build(), Ipv6PayloadLength),
        ("jumbogram", v6().extension(0, &[0xc2, 4, 0, 1, 0, 0]).udp().with_ip_length(0).build(), Ipv6Extension),
        ("extension cut", v6().extension(60, &[]).udp().with_ip_length(7).build(), Ipv6Extension),
        ("extension beyond the packet", patched(&v6().extension(60, &[]).udp(), 55, &[2]), Ipv6Extension),
        ("hop-by-hop second", v6().extension(60, &[]).extension(0, &[]).udp().build(), Ipv6Extension),
        ("hop-by-hop twice", v6().extension(0, &[]).extension(0, &[]).udp().build(), Ipv6Extension),
        ("nine extension headers", nine.udp().build(), Ipv6Extension),
        ("short authentication header", patched(&v6().authentication(0).udp(), 55, &[0]), Ipv6Extension),
        ("fragment of a fragment", piece(8).fragment(0, false).fragment(0, true).build(), Ipv6Extension),
        (
            "first fragment ends in the header chain",
            v6().fragment(0, true).extension(60, &[]).protocol(59).with_ip_length(8).build(),
            FragmentMalformed,
        ),
        ("fragment of 9 bytes that is not the last", piece(9).fragment(8, true).build(), FragmentMalformed),
        ("fragment without data", piece(0).fragment(8, false).build(), FragmentMalformed),
        ("fragment beyond 64 KiB", piece(8).fragment(65_528, false).build(), FragmentMalformed),
        (
            "fragment beyond by its options",
            v6().extension(60, &[]).protocol(17).payload(&[0; 7]).fragment(65_528, false).build(),
            FragmentMalformed,
        ),
        ("fragment into the TCP flags", v6().tcp(SYN).payload_of(8).fragment(8, false).build(), FragmentMalformed),
    ]);
}

#[test]
fn transport_layer() {
    use DropReason::{IcmpTruncated, SctpTruncated, TcpTruncated, UdpTruncated};
    let tcp = v4().tcp(SYN);
    check(&[
        ("TCP header cut", v4().protocol(6).payload_of(19).build(), TcpTruncated),
        ("TCP header cut by the IP length", tcp.clone().with_ip_length(39).build(), TcpTruncated),
        ("TCP data offset 4", patched(&tcp, 46, &[0x40]), TcpTruncated),
        ("TCP options beyond the packet", patched(&tcp, 46, &[0x60]), TcpTruncated),
        ("TCP options in the padding", patched(&tcp.clone().padded_to(60), 46, &[0x60]), TcpTruncated),
        ("TCP in a tiny first fragment", v4().protocol(6).payload_of(8).fragment(0, true).build(), TcpTruncated),
        (
            "TCP over IPv6 in a tiny first fragment",
            v6().protocol(6).payload_of(8).fragment(0, true).build(),
            TcpTruncated,
        ),
        ("UDP header cut", v4().protocol(17).payload_of(7).build(), UdpTruncated),
        ("UDP length 7", v4().udp().with_udp_length(7).build(), UdpTruncated),
        ("UDP length 0", v6().udp().with_udp_length(0).build(), UdpTruncated),
        ("UDP length beyond the packet", v4().udp().with_udp_length(9).build(), UdpTruncated),
        ("UDP length into the padding", v4().udp().with_udp_length(9).padded_to(60).build(), UdpTruncated),
        (
            "UDP length beyond an atomic fragment",
            v6().fragment(0, false).udp().with_udp_length(9).build(),
            UdpTruncated,
        ),
        ("SCTP header cut", v4().protocol(132).payload_of(11).build(), SctpTruncated),
        ("ICMP header cut", v4().protocol(1).payload_of(7).build(), IcmpTruncated),
        ("ICMPv6 header cut", v6().protocol(58).payload_of(7).build(), IcmpTruncated),
    ]);
}

#[test]
fn neighbour_discovery() {
    let solicitation = || host().nd_solicitation("fe80::7");
    let option = |bytes: &[u8]| {
        solicitation().payload(&[&[0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7], bytes].concat())
    };
    let probe = || frame().from("02:00:5e:00:53:05", "::").nd_solicitation("fe80::7");
    let advertisement = || v6().nd_advertisement("2001:db8::5");
    let router = || host().to("33:33:00:00:00:01", "ff02::1").ttl(255);
    let rows = [
        ("hop limit 254", solicitation().ttl(254)),
        ("code 1", solicitation().icmp(135, 1, [0; 4])),
        ("target cut", solicitation().payload(&[0xfe; 15])),
        ("option of no length", option(&[1, 0, 0, 0, 0, 0, 0, 0])),
        ("option beyond the message", option(&[1, 2, 0, 0, 0, 0, 0, 0])),
        ("option of one byte", option(&[1])),
        ("multicast target", host().nd_solicitation("ff02::7")),
        ("probe that names its sender", probe().payload(&[[0xfe; 16].as_slice(), &[1, 1, 2, 0, 0, 0, 0, 1]].concat())),
        (
            "probe to a host",
            frame().from("02:00:5e:00:53:05", "::").to("02:00:5e:00:53:07", "fe80::7").nd_solicitation("fe80::7"),
        ),
        ("solicited advertisement to a group", router().nd_advertisement("fe80::5")),
        ("advertisement of a multicast target", v6().nd_advertisement("ff02::5")),
        ("router advertisement too short", router().icmp(134, 0, [0; 4]).payload_of(7)),
        ("router advertisement from elsewhere", v6().ttl(255).icmp(134, 0, [0; 4]).payload(&[0; 8])),
        (
            "anonymous router solicitation that names its sender",
            frame().from("02:00:5e:00:53:05", "::").ttl(255).icmp(133, 0, [0; 4]).payload(&[1, 1, 2, 0, 0, 0, 0, 1]),
        ),
        ("redirect too short", host().to("02:00:5e:00:53:07", "fe80::7").ttl(255).icmp(137, 0, [0; 4]).payload_of(31)),
        ("in an atomic fragment", host().fragment(0, false).nd_solicitation("fe80::7")),
    ];
    for (name, builder) in rows {
        let frame = builder.build();
        assert_eq!(parse(&frame, frame.len()), Err(DropReason::NeighbourDiscoveryMalformed), "{name}");
    }
    for (name, builder) in [("solicitation", solicitation()), ("probe", probe()), ("advertisement", advertisement())] {
        let frame = builder.build();
        assert!(parse(&frame, frame.len()).is_ok(), "{name}");
    }
}

#[test]
fn headers_behind_the_head_are_refused() {
    use DropReason::{IcmpTruncated, Ipv4Truncated, Ipv6Extension, TcpTruncated, UdpTruncated};
    let unit = v4().tcp(ACK).tcp_options(&[1; 12]).payload_of(3000).build();
    assert!(parse(&unit[..66], unit.len()).is_ok());
    let rows = [
        ("TCP options", 65, unit.clone(), TcpTruncated),
        ("TCP", 53, unit, TcpTruncated),
        ("IPv4 options", 36, v4().options(&[1; 4]).udp().payload_of(100).build(), Ipv4Truncated),
        ("UDP", 41, v4().udp().payload_of(100).build(), UdpTruncated),
        ("IPv6 extension", 61, v6().extension(60, &[]).udp().payload_of(100).build(), Ipv6Extension),
        ("ICMP", 40, v4().echo_request(1, 1).payload_of(100).build(), IcmpTruncated),
    ];
    for (name, cut, frame, reason) in rows {
        assert_eq!(parse(&frame[..cut], frame.len()), Err(reason), "{name}");
    }
}

#[test]
fn vxlan() {
    use DropReason::{VxlanFlags, VxlanTruncated};
    let outer = || v4().ports(49_152, 4789);
    let good = v4().udp().inside_vxlan(0xabcdef, outer());
    let inner_cut = |length: usize| {
        outer().udp().payload(&[&[8, 0, 0, 0, 0, 0, 7, 0], [0; 64].get(..length).expect("short")].concat()).build()
    };
    let mut fragment = outer().udp().payload_of(64).fragment(0, true).build();
    fragment[42] = 8;
    let rows = [
        ("good", good.build(), Ok((0xab_cdef, 50))),
        ("reserved bits", patched(&good, 42, &[0xff, 0xff, 0xff, 0xff]), Ok((0xab_cdef, 50))),
        ("last byte reserved", patched(&good, 49, &[0xff]), Ok((0xab_cdef, 50))),
        ("shortest inner frame", inner_cut(14), Ok((7, 50))),
        ("no VNI", patched(&good, 42, &[0xf7]), Err(VxlanFlags)),
        ("inner Ethernet header cut", inner_cut(13), Err(VxlanTruncated)),
        ("no payload", outer().udp().build(), Err(VxlanTruncated)),
        (
            "inner frame beyond the UDP length",
            outer().udp().payload(&[8; 22]).with_udp_length(29).build(),
            Err(VxlanTruncated),
        ),
        ("a fragment", fragment, Err(VxlanTruncated)),
        ("TCP", v4().tcp(SYN).ports(1, 4789).payload_of(64).build(), Err(VxlanTruncated)),
    ];
    for (name, frame, expected) in rows {
        let headers = parse(&frame, frame.len()).expect(name);
        assert_eq!(parse_vxlan(&frame, &headers), expected, "{name}");
    }
}
