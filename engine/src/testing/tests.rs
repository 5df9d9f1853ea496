//! The builder is right, and `describe` and `checksums_valid` see what is wrong.

use super::*;

#[test]
fn every_valid_packet_is_well_formed_and_sums_up() {
    for (name, bytes) in valid_packets() {
        let line = describe(&bytes);
        assert!(!line.contains("malformed"), "{name}: {line}");
        assert_eq!(checksums_valid(&bytes), Ok(()), "{name}: {line}");
    }
}

#[test]
fn names_of_valid_packets_are_unique() {
    let mut names: Vec<_> = valid_packets().into_iter().map(|(name, _)| name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn one_line_says_what_a_frame_is() {
    let lines = [
        ("arp request", "arp who-has 10.1.0.1 tell 10.1.0.5"),
        ("arp reply", "arp 10.1.0.5 is-at 02:00:5e:00:53:05 to 10.2.0.7"),
        ("arp in vlan", "vlan 10 arp who-has 10.1.0.1 tell 10.1.0.5"),
        ("lldp", "ethertype 0x88cc 02:00:5e:00:53:05 > 02:00:5e:00:53:07 length 40"),
        ("tcp syn", "tcp syn 10.1.0.5:40000 > 10.2.0.7:80"),
        ("tcp data", "tcp psh ack 10.1.0.5:40000 > 10.2.0.7:80 length 1398"),
        ("tcp odd data", "tcp ack 10.1.0.5:40000 > 10.2.0.7:80 length 3"),
        ("udp", "udp 10.1.0.5:5000 > 10.2.0.7:53 length 8"),
        ("qinq udp", "vlan s100.10 udp 10.1.0.5:40000 > 10.2.0.7:80 length 4"),
        ("sctp", "sctp 10.1.0.5:3868 > 10.2.0.7:3868 length 4"),
        ("first fragment", "udp 10.1.0.5:40000 > 10.2.0.7:80 length 1472 fragment 0 more"),
        ("last fragment", "udp 10.1.0.5 > 10.2.0.7 length 48 fragment 2960"),
        ("gre", "protocol 47 10.1.0.5 > 10.2.0.7 length 24"),
        ("tcp syn over ipv6", "tcp syn [2001:db8:1::5]:40000 > [2001:db8:2::7]:80"),
        ("ipv6 atomic fragment", "udp [2001:db8:1::5]:40000 > [2001:db8:2::7]:80 length 6 fragment atomic"),
        ("icmp echo request", "icmp echo request 10.1.0.5 > 10.2.0.7 id 7 seq 1 length 56"),
        (
            "icmp fragmentation needed",
            "icmp fragmentation needed mtu 1450 10.1.0.1 > 10.1.0.5 | udp 10.1.0.5:40000 > 10.2.0.7:80",
        ),
        (
            "icmpv6 packet too big",
            "icmpv6 packet too big mtu 1400 2001:db8::1 > 2001:db8:1::5 | udp [2001:db8:1::5]:40000 > [2001:db8:2::7]:80",
        ),
        ("nd solicitation", "nd who-has 2001:db8:1::1 tell fe80::5"),
        ("nd advertisement", "nd 2001:db8:1::5 is-at 02:00:5e:00:53:05 to 2001:db8:2::7"),
        ("vxlan tcp", "vxlan vni 7 192.0.2.1 > 192.0.2.2 | tcp syn 10.1.0.5:40000 > 10.2.0.7:80"),
        ("vxlan arp", "vxlan vni 1 192.0.2.1 > 192.0.2.2 | arp who-has 10.1.0.1 tell 10.1.0.5"),
    ];
    let packets = valid_packets();
    for (name, line) in lines {
        let (_, bytes) = packets.iter().find(|(other, _)| *other == name).expect(name);
        assert_eq!(describe(bytes), line, "{name}");
    }
}

#[test]
fn one_flipped_bit_of_the_payload_is_seen() {
    let covered = ["tcp data", "udp", "sctp", "tcp data over ipv6", "icmp echo request", "icmpv6 echo reply"];
    for (name, mut bytes) in valid_packets() {
        if covered.contains(&name) {
            *bytes.last_mut().expect("not empty") ^= 0x10;
            assert!(checksums_valid(&bytes).is_err(), "{name}");
        }
    }
}

#[test]
fn damage_asked_for_is_done() {
    assert!(checksums_valid(&frame().tcp(SYN).with_bad_checksum().build()).is_err());
    assert!(checksums_valid(&frame().sctp(1).with_bad_checksum().build()).is_err());
    assert!(checksums_valid(&frame().tcp(SYN).with_bad_ip_checksum().build()).is_err());
    assert!(checksums_valid(&frame().tcp(SYN).payload(b"x").partial_checksum().build()).is_err());
    let inner = frame().tcp(SYN).with_bad_checksum().inside_vxlan(7, frame());
    assert!(checksums_valid(&inner.build()).expect_err("inner is bad").starts_with("inner tcp"));
    let no_checksum = frame().from("02:00:5e:00:53:01", "2001:db8::1").udp_without_checksum();
    assert!(checksums_valid(&no_checksum.build()).expect_err("IPv6 needs one").starts_with("udp"));
    assert!(describe(&frame().tcp(SYN).cut_at(40).build()).starts_with("malformed"));
}

#[test]
fn a_partial_checksum_completes_to_the_right_one() {
    for frame in [frame().tcp(ACK).payload(b"hello"), frame().udp().payload(b"hello!")] {
        let wire = frame.clone().partial_checksum().wire();
        let (start, offset) = wire.partial_checksum.expect("partial");
        let mut bytes = wire.bytes;
        let sum = internet_checksum(&[&bytes[usize::from(start)..]]);
        let at = usize::from(start + offset);
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksums_valid(&bytes), Ok(()));
        assert_eq!(bytes, frame.build());
    }
}

#[test]
fn gso_units_say_how_to_cut_them() {
    for (name, unit) in gso_units() {
        let gso = unit.gso.expect(name);
        assert!(unit.bytes.len() > usize::from(gso.size) && unit.partial_checksum.is_some(), "{name}");
        assert!(!describe(&unit.bytes).contains("malformed"), "{name}");
    }
}

#[test]
fn fragments_join_to_the_datagram() {
    let whole = frame().udp().payload_of(1000);
    let pieces = fragments(&whole, 256);
    let joined: Vec<u8> = pieces.iter().flat_map(|piece| piece[34..].to_vec()).collect();
    assert_eq!(joined, whole.build()[34..]);
    assert_eq!(pieces.len(), 4);
}

#[test]
fn known_checksums() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(internet_checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
}
