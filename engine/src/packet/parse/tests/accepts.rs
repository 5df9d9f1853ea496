//! What the parser says of valid packets, and of every prefix of them.

use super::*;
use crate::testing::{ACK, FrameBuilder, frame, gso_units, valid_packets};

#[test]
fn every_valid_packet_is_accepted_and_lies_inside() {
    for (name, bytes) in valid_packets() {
        match parse(&bytes, bytes.len()) {
            Ok(headers) => assert_inside(&headers, &bytes, bytes.len(), name),
            Err(reason) => panic!("{name}: {reason}"),
        }
    }
}

#[test]
fn every_prefix_is_refused_or_lies_inside() {
    for (name, bytes) in valid_packets() {
        for cut in 0..bytes.len() {
            // As a frame that was cut on its way, and as the head of a frame that goes on in a chain.
            for length in [cut, bytes.len()] {
                if let Ok(headers) = parse(&bytes[..cut], length) {
                    assert_inside(&headers, &bytes[..cut], length, name);
                    let _ = parse_vxlan(&bytes[..cut], &headers);
                }
            }
        }
    }
}

#[test]
fn the_head_of_a_unit_is_enough() {
    for (name, unit) in gso_units() {
        let whole = parse(&unit.bytes, unit.bytes.len()).expect(name);
        let head = &unit.bytes[..usize::from(whole.payload_offset)];
        assert_eq!(parse(head, unit.bytes.len()), Ok(whole), "{name}");
        let (start, _) = unit.partial_checksum.expect(name);
        assert_eq!(whole.transport_offset, start, "{name}");
    }
}

#[test]
fn flags_tell_what_the_slow_path_must_serve() {
    use super::flag::*;
    let rows: [(&str, u16); 28] = [
        ("tcp syn", CONNECTION_CONTROL | DONT_FRAGMENT),
        ("tcp data", DONT_FRAGMENT),
        ("tcp odd data", 0),
        ("tcp fin", CONNECTION_CONTROL),
        ("tcp rst", CONNECTION_CONTROL),
        ("tcp cwr", 0),
        ("tcp behind options", OPTIONS),
        ("udp", 0),
        ("udp to broadcast", GROUP_MAC | LINK_SCOPE),
        ("udp to multicast", GROUP_MAC | LINK_SCOPE),
        ("sctp", 0),
        ("first fragment", FRAGMENT),
        ("later fragment", FRAGMENT | LATER_FRAGMENT),
        ("last fragment", FRAGMENT | LATER_FRAGMENT),
        ("tcp behind hop-by-hop", EXTENSIONS),
        ("udp behind authentication", EXTENSIONS),
        ("ipv6 first fragment", EXTENSIONS | FRAGMENT),
        ("ipv6 last fragment", EXTENSIONS | FRAGMENT | LATER_FRAGMENT),
        ("ipv6 atomic fragment", EXTENSIONS | FRAGMENT),
        ("ipv6 link-local", LINK_SCOPE),
        ("icmp echo request", 0),
        ("icmp time exceeded", ICMP_ERROR),
        ("icmp timestamp", ICMP_OTHER),
        ("icmpv6 echo reply", 0),
        ("icmpv6 packet too big", ICMP_ERROR),
        ("nd solicitation", ICMP_OTHER | GROUP_MAC | LINK_SCOPE),
        ("nd advertisement", ICMP_OTHER),
        ("arp request", GROUP_MAC),
    ];
    let packets = valid_packets();
    for (name, flags) in rows {
        let (_, bytes) = packets.iter().find(|(other, _)| *other == name).expect(name);
        assert_eq!(parse(bytes, bytes.len()).expect(name).flags, flags, "{name}");
    }
}

#[test]
fn link_scope_of_addresses() {
    let rows = [
        ("10.1.0.5", "10.2.0.7", false),
        ("10.1.0.5", "169.254.1.1", true),
        ("169.254.1.1", "10.1.0.5", true),
        ("10.1.0.5", "169.253.1.1", false),
        ("10.1.0.5", "239.255.255.255", true),
        ("10.1.0.5", "223.255.255.255", false),
        ("10.1.0.5", "240.0.0.1", false),
        ("10.1.0.5", "255.255.255.255", true),
        ("0.0.0.0", "10.1.0.1", false),
        ("2001:db8::1", "febf::1", true),
        ("fe80::1", "2001:db8::1", true),
        ("2001:db8::1", "fec0::1", false),
        ("2001:db8::1", "ff05::1", true),
        ("2001:db8::1", "fd00::1", false),
    ];
    for (source, destination, expected) in rows {
        let bytes = frame().from("02:00:5e:00:53:05", source).to("02:00:5e:00:53:07", destination).tcp(ACK).build();
        let headers = parse(&bytes, bytes.len()).expect("valid");
        assert_eq!(headers.has(flag::LINK_SCOPE), expected, "{source} > {destination}");
    }
}

#[test]
fn fields_of_one_frame() {
    let bytes = frame()
        .from("02:00:5e:00:53:05", "10.1.0.5")
        .to("02:00:5e:00:53:07", "10.2.0.7")
        .qinq(0x6064, 10)
        .options(&[1; 8])
        .ttl(3)
        .traffic_class(0xb9)
        .tcp(ACK)
        .tcp_options(&[1; 12])
        .payload_of(10)
        .padded_to(120)
        .build();
    let headers = parse(&bytes, bytes.len()).expect("valid");
    let expected = Headers {
        network: Network::Ipv4,
        protocol: protocol::TCP,
        ttl: 3,
        traffic_class: 0xb9,
        tcp_flags_or_icmp_type: ACK,
        vlan_tags: 2,
        flags: flag::OPTIONS | flag::SERVICE_TAG,
        ethertype: ethertype::IPV4,
        vlan: [0x6064, 10],
        network_offset: 22,
        transport_offset: 50,
        payload_offset: 82,
        ports: [40_000, 80],
        network_length: 70,
        source: [10, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        destination: [10, 2, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    };
    assert_eq!(headers, expected);
    assert_eq!((headers.source_ipv4(), headers.destination_ipv4()), ([10, 1, 0, 5], [10, 2, 0, 7]));
}

#[test]
fn echoes_have_their_identifier_for_ports() {
    let both = |builder: FrameBuilder| {
        let bytes = builder.echo_request(7, 1).build();
        parse(&bytes, bytes.len()).expect("valid").ports
    };
    assert_eq!(both(frame()), [7, 7]);
    assert_eq!(both(frame().from("02:00:5e:00:53:05", "2001:db8::5")), [7, 7]);
}

#[test]
fn icmp_of_the_other_family_is_an_unknown_protocol() {
    for (source, number) in [("10.1.0.5", 58), ("2001:db8::5", 1)] {
        let bytes = frame().from("02:00:5e:00:53:05", source).protocol(number).payload(&[128]).build();
        let headers = parse(&bytes, bytes.len()).expect("opaque");
        assert_eq!((headers.tcp_flags_or_icmp_type, headers.payload_offset), (0, headers.transport_offset));
    }
}

#[test]
fn bytes_behind_the_length_are_not_looked_at() {
    let bytes = frame().tcp(ACK).build();
    assert_eq!(parse(&bytes, 53), parse(&bytes[..53], 53));
    assert_eq!(parse(&bytes, 0), Err(DropReason::EthernetTruncated));
}
