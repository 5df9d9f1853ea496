//! What the builders write is what an independent reader reads.

use super::*;
use crate::packet::Mac;
use crate::packet::parse::{Headers, ethertype, flag, parse};
use crate::testing::{
    ACK, FrameBuilder, SYN, checksums_valid, describe, fragments, frame, internet_checksum, valid_packets,
};

const GATEWAY: Mac = Mac([2, 0, 0x5e, 0, 0x53, 1]);
const POD: Mac = Mac([2, 0, 0x5e, 0, 0x53, 5]);

fn v4() -> FrameBuilder {
    frame().from("02:00:5e:00:53:05", "10.1.0.5").to("02:00:5e:00:53:01", "10.1.0.1")
}

fn v6() -> FrameBuilder {
    frame().from("02:00:5e:00:53:05", "2001:db8::5").to("02:00:5e:00:53:01", "2001:db8::1")
}

fn octets(text: &str) -> [u8; 16] {
    text.parse::<std::net::Ipv6Addr>().expect("address").octets()
}

fn headers(frame: &[u8]) -> Headers {
    parse(frame, frame.len()).expect("valid")
}

#[track_caller]
fn assert_line(frame: &[u8], line: &str) {
    assert_eq!(describe(frame), line);
    assert_eq!(checksums_valid(frame), Ok(()));
}

/// Every builder fits exactly or writes nothing.
#[track_caller]
fn written(build: impl Fn(&mut [u8]) -> Option<usize>) -> Vec<u8> {
    let mut large = [0xa5; 1600];
    let length = build(&mut large).expect("fits");
    let mut exact = vec![0; length];
    assert_eq!(build(&mut exact), Some(length));
    assert_eq!(exact, large[..length]);
    for short in 0..length {
        assert_eq!(build(&mut vec![0; short]), None, "{short} of {length} bytes");
    }
    exact
}

#[test]
fn arp_request_and_reply() {
    let request = written(|target| arp::write_request_frame(target, POD, [10, 1, 0, 5], [10, 1, 0, 1]));
    assert_line(&request, "arp who-has 10.1.0.1 tell 10.1.0.5");
    assert_eq!(ethernet::destination(&request), Some(Mac::BROADCAST));
    let read = arp::read_arp(&request[14..]).expect("arp");
    assert!(!read.is_announcement());
    let reply = written(|target| arp::write_reply_frame(target, &read, GATEWAY));
    assert_line(&reply, "arp 10.1.0.1 is-at 02:00:5e:00:53:01 to 10.1.0.5");
    assert_eq!((ethernet::destination(&reply), ethernet::source(&reply)), (Some(POD), Some(GATEWAY)));

    let mut in_place = v4().vlan(10).arp_request("10.1.0.1").padded_to(60).build();
    arp::reply_in_place(&mut in_place, 18, GATEWAY).expect("request");
    assert_line(&in_place, "vlan 10 arp 10.1.0.1 is-at 02:00:5e:00:53:01 to 10.1.0.5");
    assert_eq!(in_place[46..], [0; 14]);
    assert!(arp::read_arp(&[0; 28]).is_none() && arp::read_arp(&request[14..41]).is_none());
}

#[test]
fn ipv4_header_and_its_setters() {
    let builder = v4().ttl(9).traffic_class(0x2e).identification(77).udp().payload(b"data");
    let expected = builder.clone().build();
    let described = ipv4::Ipv4 {
        traffic_class: 0x2e,
        total_length: 32,
        identification: 77,
        fragment: 0,
        ttl: 9,
        protocol: 17,
        source: [10, 1, 0, 5],
        destination: [10, 1, 0, 1],
    };
    let header = written(|target| ipv4::write_ipv4(target, &described));
    assert_eq!(header, expected[14..34]);

    let mut header = header;
    ipv4::set_ttl(&mut header, 8).expect("set");
    ipv4::set_traffic_class(&mut header, 3).expect("set");
    ipv4::set_total_length(&mut header, 1500).expect("set");
    ipv4::set_identification(&mut header, 0xffff).expect("set");
    ipv4::set_source(&mut header, [192, 0, 2, 1]).expect("set");
    ipv4::set_destination(&mut header, [255, 255, 0, 0]).expect("set");
    ipv4::swap_addresses(&mut header).expect("swap");
    assert!(ipv4::header_checksum_is_right(&header));
    assert_eq!(internet_checksum(&[&header]), 0);
    assert_eq!((ipv4::source(&header), ipv4::destination(&header)), (Some([255, 255, 0, 0]), Some([192, 0, 2, 1])));
    assert_eq!((header[8], header[1], ipv4::total_length(&header)), (8, 3, Some(1500)));
    assert_eq!((ipv4::identification(&header), ipv4::header_length(&header)), (Some(0xffff), Some(20)));
    header[8] = 7;
    assert!(!ipv4::header_checksum_is_right(&header));
}

#[test]
fn fragments_are_told_by_offset_and_more() {
    let pieces = fragments(&v4().udp().payload_of(300), 128);
    let read: Vec<_> = pieces.iter().map(|piece| ipv4::fragment(&piece[14..]).expect("header")).collect();
    assert_eq!(read, [(0, true), (128, true), (256, false)]);
}

#[test]
fn ipv6_header_and_its_setters() {
    let expected = v6().ttl(9).traffic_class(0x2e).udp().payload(b"data").build();
    let described = ipv6::Ipv6 {
        traffic_class: 0x2e,
        flow_label: 0,
        payload_length: 12,
        next_header: 17,
        hop_limit: 9,
        source: octets("2001:db8::5"),
        destination: octets("2001:db8::1"),
    };
    let header = written(|target| ipv6::write_ipv6(target, &described));
    assert_eq!(header, expected[14..54]);
    let mut frame = v6().traffic_class(0xff).udp().build();
    let header = &mut frame[14..];
    ipv6::set_hop_limit(header, 1).expect("set");
    ipv6::set_traffic_class(header, 0x5a).expect("set");
    ipv6::swap_addresses(header).expect("swap");
    assert_eq!(ipv6::payload_length(header), Some(8));
    let read = headers(&frame);
    assert_eq!((read.ttl, read.traffic_class), (1, 0x5a));
    assert_line(&frame, "class 22.ect0 udp [2001:db8::1]:40000 > [2001:db8::5]:80");
    let labelled = written(|target| ipv6::write_ipv6(target, &ipv6::Ipv6 { flow_label: 0xfff_ffff, ..described }));
    assert_eq!(labelled[..4], [0x62, 0xef, 0xff, 0xff]);
}

#[test]
fn udp_and_vxlan_headers() {
    let inner = v4().tcp(SYN).build();
    let expected = inner_in_vxlan();
    let udp_length = (16 + inner.len()) as u16;
    let udp = written(|target| udp::write_udp(target, 49_152, vxlan::PORT, udp_length, 0));
    let vxlan = written(|target| vxlan::write_vxlan(target, 0xff00_0007));
    assert_eq!([udp, vxlan].concat(), expected[34..50]);
    assert_eq!(vxlan::read_vni(&expected[42..]), Some(7));
    assert_eq!((udp::checksum_field(0), udp::checksum_field(7)), (0xffff, 7));
}

fn inner_in_vxlan() -> Vec<u8> {
    v4().tcp(SYN).inside_vxlan(7, frame()).build()
}

#[test]
fn tags_go_on_and_come_off() {
    for bytes in [v4().tcp(SYN).build(), v4().vlan(9).tcp(SYN).build()] {
        let mut target = vec![0; vlan::TAG_BYTES];
        target.extend_from_slice(&bytes);
        vlan::push(&mut target, ethertype::QINQ, vlan::control(100, 5)).expect("room");
        let read = headers(&target);
        assert_eq!((read.ethertype, vlan::id(read.vlan[0]), vlan::priority(read.vlan[0])), (ethertype::IPV4, 100, 5));
        assert!(describe(&target).starts_with("vlan s100p5"));
        assert_eq!(vlan::pop(&mut target), Some(vlan::control(100, 5)));
        assert_eq!(target[vlan::TAG_BYTES..], bytes);
    }
    assert_eq!(vlan::push(&mut [0; 15], 0, 0), None);
    assert_eq!(written(|target| vlan::write_tag(target, ethertype::VLAN, 7)), [0x81, 0, 0, 7]);
}

#[test]
fn echo_replies_in_place() {
    for (request, reply) in [
        (v4().echo_request(7, 9).payload_of(57), "icmp echo reply 10.1.0.1 > 10.1.0.5 id 7 seq 9 length 57"),
        (v4().options(&[1; 4]).echo_request(0, 0), "icmp echo reply 10.1.0.1 > 10.1.0.5 id 0 seq 0"),
        (v4().vlan(3).echo_request(7, 9), "vlan 3 icmp echo reply 10.1.0.1 > 10.1.0.5 id 7 seq 9"),
        (v6().echo_request(7, 9).payload_of(57), "icmpv6 echo reply 2001:db8::1 > 2001:db8::5 id 7 seq 9 length 57"),
    ] {
        let mut bytes = request.ttl(1).build();
        let request = headers(&bytes);
        let answered = icmp::echo_reply_in_place(&mut bytes, &request, GATEWAY, 64)
            .or_else(|| icmpv6::echo_reply_in_place(&mut bytes, &request, GATEWAY, 64));
        assert_eq!(answered, Some(()), "{reply}");
        assert_line(&bytes, reply);
        assert_eq!((ethernet::destination(&bytes), ethernet::source(&bytes)), (Some(POD), Some(GATEWAY)));
        assert_eq!(headers(&bytes).ttl, 64);
    }
}

#[test]
fn only_whole_echo_requests_are_answered() {
    let first_fragment = fragments(&v4().echo_request(7, 9).payload_of(100), 64).swap_remove(0);
    let others = [
        v4().echo_reply(7, 9).build(),
        v6().echo_reply(7, 9).build(),
        v4().udp().build(),
        first_fragment,
        v6().extension(60, &[]).echo_request(7, 9).build(),
    ];
    for bytes in others {
        let (mut copy, read) = (bytes.clone(), headers(&bytes));
        assert_eq!(icmp::echo_reply_in_place(&mut copy, &read, GATEWAY, 64), None);
        assert_eq!(icmpv6::echo_reply_in_place(&mut copy, &read, GATEWAY, 64), None);
        assert_eq!(copy, bytes, "{}", describe(&bytes));
    }
}

#[test]
fn ipv4_errors_quote_the_packet() {
    let about = v4().qinq(100, 3).udp().payload_of(2000).build();
    let small = v4().udp().payload(b"x").padded_to(60).build();
    let rows = [
        (icmp::Error::TimeExceeded, "icmp time exceeded"),
        (icmp::Error::FragmentationNeeded { mtu: 1450 }, "icmp fragmentation needed mtu 1450"),
        (icmp::Error::Unreachable { code: icmp::unreachable::PORT }, "icmp port unreachable"),
        (icmp::Error::Unreachable { code: icmp::unreachable::HOST }, "icmp host unreachable"),
    ];
    for (error, words) in rows {
        let build = |frame: &[u8]| {
            let about = headers(frame);
            written(|target| icmp::write_error_frame(target, error, frame, &about, GATEWAY, [10, 1, 0, 1]))
        };
        let line = format!("class 48.not-ect {words} 10.1.0.1 > 10.1.0.5 | udp 10.1.0.5:40000 > 10.1.0.1:80");
        let long = build(&about);
        assert_line(&long, &format!("vlan s100.3 {line}"));
        assert_eq!(long.len(), 22 + 576);
        // Of a padded frame the packet is quoted, not the padding.
        let short = build(&small);
        assert_line(&short, &line);
        assert_eq!(short.len(), 14 + 20 + 8 + 29);
        assert_eq!((ethernet::destination(&short), ethernet::source(&short)), (Some(POD), Some(GATEWAY)));
    }
}

#[test]
fn ipv6_errors_quote_the_packet() {
    let about = v6().tcp(ACK).payload_of(1400).build();
    let rows = [
        (icmpv6::Error::TimeExceeded, "icmpv6 time exceeded"),
        (icmpv6::Error::PacketTooBig { mtu: 70_000 }, "icmpv6 packet too big mtu 70000"),
        (icmpv6::Error::Unreachable { code: icmpv6::unreachable::NO_ROUTE }, "icmpv6 no route"),
        (icmpv6::Error::Unreachable { code: icmpv6::unreachable::ADDRESS }, "icmpv6 address unreachable"),
    ];
    for (error, words) in rows {
        let read = headers(&about);
        let gateway = octets("2001:db8::1");
        let bytes = written(|target| icmpv6::write_error_frame(target, error, &about, &read, GATEWAY, &gateway));
        let quoted = "tcp [2001:db8::5]:40000 > [2001:db8::1]:80";
        assert_line(&bytes, &format!("{words} 2001:db8::1 > 2001:db8::5 | {quoted}"));
        assert_eq!(bytes.len(), 14 + 1280);
    }
}

#[test]
fn no_error_about_what_must_not_get_one() {
    let cause = v4().udp().build();
    let to = |mac: &str, address: &str| v4().to(mac, address).udp().build();
    let from = |address: &str| v4().from("02:00:5e:00:53:05", address).udp().build();
    let later = fragments(&v4().udp().payload_of(100), 64).swap_remove(1);
    let first = fragments(&v4().udp().payload_of(100), 64).swap_remove(0);
    let rows = [
        ("a datagram", cause.clone(), true),
        ("an echo request", v4().echo_request(1, 1).build(), true),
        ("a first fragment", first, true),
        ("an error", v4().time_exceeded(&cause).build(), false),
        ("a redirect", v4().icmp(5, 1, [0; 4]).payload(&cause[14..]).build(), false),
        ("a later fragment", later, false),
        ("a broadcast frame", to("ff:ff:ff:ff:ff:ff", "10.1.0.1"), false),
        ("a broadcast address", to("02:00:5e:00:53:01", "255.255.255.255"), false),
        ("a multicast address", to("02:00:5e:00:53:01", "224.0.0.5"), false),
        ("no source", from("0.0.0.0"), false),
        ("a loopback source", from("127.0.0.1"), false),
        ("a multicast source", from("224.0.0.5"), false),
        ("a broadcast source", from("255.255.255.255"), false),
        ("ARP", v4().arp_reply().build(), false),
        ("an IPv6 datagram", v6().udp().build(), true),
        ("an IPv6 error", v6().time_exceeded(&v6().udp().build()).build(), false),
        (
            "no IPv6 source",
            frame().from("02:00:5e:00:53:05", "::").to("02:00:5e:00:53:01", "2001:db8::1").udp().build(),
            false,
        ),
        ("an IPv6 multicast address", v6().to("02:00:5e:00:53:01", "ff05::1").udp().build(), false),
        ("ND", v6().nd_advertisement("2001:db8::5").build(), true),
    ];
    for (name, bytes, allowed) in rows {
        assert_eq!(icmp::error_allowed(&headers(&bytes)), allowed, "{name}");
    }
}

#[test]
fn neighbour_solicitation_and_advertisement() {
    let (pod, gateway) = (octets("2001:db8::5"), octets("fe80::1"));
    let asked = written(|target| nd::write_solicitation_frame(target, POD, &pod, &gateway));
    assert_line(&asked, "nd who-has fe80::1 tell 2001:db8::5");
    assert_eq!(asked, frame().from("02:00:5e:00:53:05", "2001:db8::5").nd_solicitation("fe80::1").build());
    let message = usize::from(headers(&asked).transport_offset);
    let solicitation = nd::read_solicitation(&asked[message..]).expect("solicitation");
    assert_eq!((solicitation.target, solicitation.source_mac), (gateway, Some(POD)));

    let told = written(|target| nd::write_advertisement_frame(target, POD, &pod, &solicitation, GATEWAY, true));
    assert_line(&told, "nd fe80::1 is-at 02:00:5e:00:53:01 to 2001:db8::5");
    assert_eq!((ethernet::destination(&told), ethernet::source(&told)), (Some(POD), Some(GATEWAY)));
    let advertisement = nd::read_advertisement(&told[54..]).expect("advertisement");
    let flags = nd::flag::ROUTER | nd::flag::SOLICITED | nd::flag::OVERRIDE;
    let expected = nd::Advertisement { target: gateway, target_mac: Some(GATEWAY), flags };
    assert_eq!(advertisement, expected);
    assert!(headers(&told).has(flag::ICMP_OTHER));
    assert!(icmpv6::checksum_is_right(&told[54..], &gateway, &pod));
    assert!(!icmpv6::checksum_is_right(&told[54..], &gateway, &octets("2001:db8::6")));
    assert_eq!(nd::read_solicitation(&told[54..]), None);
}

#[test]
fn a_probe_is_answered_to_all_nodes() {
    let probe = frame().from("02:00:5e:00:53:05", "::").nd_solicitation("fe80::1").build();
    let solicitation = nd::read_solicitation(&probe[54..]).expect("solicitation");
    assert_eq!(solicitation.source_mac, None);
    let told = written(|target| nd::write_advertisement_frame(target, POD, &[0; 16], &solicitation, GATEWAY, false));
    assert_line(&told, "nd fe80::1 is-at 02:00:5e:00:53:01 to ff02::1");
    assert_eq!(ethernet::destination(&told), Some(Mac([0x33, 0x33, 0, 0, 0, 1])));
    assert_eq!(nd::read_advertisement(&told[54..]).map(|read| read.flags), Some(nd::flag::OVERRIDE));
    // The parser holds it to the rules of the RFC.
    assert!(parse(&told, told.len()).is_ok());
}

#[test]
fn group_addresses() {
    assert_eq!(ethernet::multicast_ipv4([239, 129, 2, 3]), Mac([1, 0, 0x5e, 1, 2, 3]));
    assert_eq!(nd::solicited_node(&octets("2001:db8::1:2345")), octets("ff02::1:ff01:2345"));
}

#[test]
fn readers_end_where_the_bytes_end() {
    for (_, bytes) in valid_packets() {
        for cut in 0..bytes.len().min(120) {
            let header = bytes.get(14..cut).unwrap_or_default();
            let _ = (arp::read_arp(header), ipv4::header_checksum_is_right(header), ipv4::fragment(header));
            let _ = (tcp::sequence(header), tcp::acknowledgement(header), tcp::flags(header), tcp::checksum(header));
            let _ = (tcp::header_length(header), udp::length(header), udp::checksum(header), vxlan::read_vni(header));
            let _ = (
                nd::read_solicitation(header),
                nd::read_advertisement(header),
                nd::is_valid(header, 255, &[0; 16], &[0; 16]),
            );
            let mut copy = bytes[..cut].to_vec();
            let _ = (ipv4::set_ttl(&mut copy, 1), ipv6::swap_addresses(&mut copy), vlan::pop(&mut copy));
        }
    }
    let tcp_header = &v4().tcp(SYN).sequence(5, 6).tcp_options(&[1; 4]).build()[34..];
    assert_eq!((tcp::sequence(tcp_header), tcp::acknowledgement(tcp_header)), (Some(5), Some(6)));
    assert_eq!((tcp::flags(tcp_header), tcp::header_length(tcp_header)), (Some(SYN), Some(24)));
}
