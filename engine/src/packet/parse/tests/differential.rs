//! The same answers as etherparse, for generated valid packets and for whatever both accept.

use etherparse::{IpPayloadSlice, NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;
use crate::testing::{FrameBuilder, checksums_valid, frame};

/// Where `part` begins in `whole`, of which it is a slice.
fn offset(whole: &[u8], part: &[u8]) -> usize {
    part.as_ptr() as usize - whole.as_ptr() as usize
}

/// Compares our answer with etherparse's, where etherparse accepts the frame.
pub(super) fn assert_agrees(bytes: &[u8], ours: &Headers, name: &str) {
    let Ok(theirs) = SlicedPacket::from_ethernet(bytes) else { return };
    let Some(net) = &theirs.net else { return };
    match (net, ours.network) {
        (NetSlice::Arp(arp), Network::Arp) => {
            assert_eq!(ours.network_offset as usize, offset(bytes, arp.slice()), "{name}");
        }
        (NetSlice::Ipv4(ip), Network::Ipv4) => {
            let header = ip.header();
            assert_eq!(ours.source_address(), header.source_addr(), "{name}");
            assert_eq!(ours.destination_address(), header.destination_addr(), "{name}");
            assert_eq!((ours.ttl, ours.network_length), (header.ttl(), u32::from(header.total_len())), "{name}");
            assert_eq!(ours.network_offset as usize, offset(bytes, header.slice()), "{name}");
            assert_eq!(ours.has(flag::OPTIONS), !header.options().is_empty(), "{name}");
            assert_eq!(ours.has(flag::DONT_FRAGMENT), header.dont_fragment(), "{name}");
            // etherparse looks behind an authentication header in IPv4; we leave such packets as they are.
            if ours.protocol != 51 {
                assert_payload_agrees(bytes, ours, ip.payload(), &theirs, name);
            }
        }
        (NetSlice::Ipv6(ip), Network::Ipv6) => {
            let header = ip.header();
            assert_eq!(ours.source_address(), header.source_addr(), "{name}");
            assert_eq!(ours.destination_address(), header.destination_addr(), "{name}");
            assert_eq!((ours.ttl, ours.traffic_class), (header.hop_limit(), header.traffic_class()), "{name}");
            assert_eq!(ours.network_length, 40 + u32::from(header.payload_length()), "{name}");
            assert_eq!(ours.has(flag::EXTENSIONS), !ip.extensions().is_empty(), "{name}");
            // What follows a later fragment's header is payload; etherparse may take it for more headers.
            if !ours.has(flag::LATER_FRAGMENT) {
                assert_payload_agrees(bytes, ours, ip.payload(), &theirs, name);
            }
        }
        // 0x9100 is a tag for etherparse and a foreign EtherType for us; MACsec is opaque to us.
        (_, Network::Other) => assert!(matches!(ours.ethertype, 0x9100 | 0x88e5), "{name}: {ours:?}"),
        (net, network) => panic!("{name}: {net:?} is {network:?} for us"),
    }
}

fn assert_payload_agrees(bytes: &[u8], ours: &Headers, ip: &IpPayloadSlice<'_>, theirs: &SlicedPacket<'_>, name: &str) {
    let transport = ours.transport_offset as usize;
    assert_eq!((ours.protocol, transport), (ip.ip_number.0, offset(bytes, ip.payload)), "{name}");
    let fragment = ours.has(flag::FRAGMENT);
    assert!(!ip.fragmented || fragment, "{name}");
    match &theirs.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            assert_eq!(ours.ports, [tcp.source_port(), tcp.destination_port()], "{name}");
            assert_eq!(ours.payload_offset as usize, offset(bytes, tcp.payload()), "{name}");
            assert_eq!(ours.has(flag::CONNECTION_CONTROL), tcp.syn() || tcp.fin() || tcp.rst(), "{name}");
        }
        Some(TransportSlice::Udp(udp)) => {
            assert_eq!(ours.ports, [udp.source_port(), udp.destination_port()], "{name}");
            assert_eq!(ours.payload_offset as usize, offset(bytes, udp.payload()), "{name}");
        }
        Some(TransportSlice::Icmpv4(icmp)) if ours.network == Network::Ipv4 => {
            assert_eq!(ours.tcp_flags_or_icmp_type, icmp.type_u8(), "{name}");
        }
        Some(TransportSlice::Icmpv6(icmp)) if ours.network == Network::Ipv6 => {
            assert_eq!(ours.tcp_flags_or_icmp_type, icmp.type_u8(), "{name}");
        }
        Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_)) | None => {}
    }
}

#[derive(Clone, Debug)]
enum Layer4 {
    Tcp(u8, usize),
    Udp,
    Sctp,
    Echo,
    Other(u8),
}

fn layer4() -> impl Strategy<Value = Layer4> {
    prop_oneof![
        (any::<u8>(), 0usize..=10).prop_map(|(flags, words)| Layer4::Tcp(flags, words * 4)),
        Just(Layer4::Udp),
        Just(Layer4::Sctp),
        Just(Layer4::Echo),
        prop_oneof![Just(47u8), Just(50), Just(59), Just(89), Just(4)].prop_map(Layer4::Other),
    ]
}

/// Extension headers in a legal order, as a mask: hop-by-hop, destination, routing, authentication, atomic fragment.
fn with_extensions(mut builder: FrameBuilder, mask: u8, body: &[u8]) -> FrameBuilder {
    if mask & 1 != 0 {
        builder = builder.extension(0, body);
    }
    if mask & 2 != 0 {
        builder = builder.extension(43, body);
    }
    if mask & 4 != 0 {
        builder = builder.fragment(0, false);
    }
    if mask & 8 != 0 {
        builder = builder.authentication(3);
    }
    if mask & 16 != 0 { builder.extension(60, body) } else { builder }
}

fn valid_frame() -> impl Strategy<Value = FrameBuilder> {
    let link = (0usize..=2, any::<u16>(), any::<u16>(), 0usize..100);
    let ip = (any::<bool>(), any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u8>(), any::<u8>(), any::<bool>());
    let extra = (0usize..=10, 0u8..32, proptest::collection::vec(any::<u8>(), 0..40));
    let payload = proptest::collection::vec(any::<u8>(), 0..200);
    (link, ip, extra, layer4(), any::<[u16; 2]>(), payload).prop_map(|(link, ip, extra, layer4, ports, payload)| {
        let (six, from, to, ttl, class, dont_fragment) = ip;
        let address = |bytes: [u8; 16]| match six {
            true => IpAddr::from(bytes),
            false => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
        };
        let mut builder = frame()
            .from("02:00:5e:00:53:05", address(from))
            .to("02:00:5e:00:53:07", address(to))
            .ttl(ttl)
            .traffic_class(class)
            .padded_to(link.3);
        builder = match link.0 {
            0 => builder,
            1 => builder.tag(ethertype::VLAN, link.1),
            _ => builder.tag(ethertype::QINQ, link.1).tag(ethertype::VLAN, link.2),
        };
        builder = match (six, dont_fragment) {
            (true, _) => with_extensions(builder, extra.1, &extra.2),
            (false, true) => builder.options(&vec![1; extra.0 * 4]).dont_fragment(),
            (false, false) => builder.options(&vec![1; extra.0 * 4]),
        };
        builder = builder.ports(ports[0], ports[1]);
        builder = match layer4 {
            Layer4::Tcp(flags, options) => builder.tcp(flags).tcp_options(&vec![1; options]),
            Layer4::Udp => builder.udp(),
            Layer4::Sctp => builder.sctp(9),
            Layer4::Echo => builder.echo_request(ports[0], ports[1]),
            Layer4::Other(number) => builder.protocol(number),
        };
        builder.payload(&payload)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn valid_packets_read_alike(builder in valid_frame()) {
        let bytes = builder.build();
        prop_assert!(SlicedPacket::from_ethernet(&bytes).is_ok());
        let headers = parse(&bytes, bytes.len());
        prop_assert!(headers.is_ok(), "{:?}", headers);
        let headers = headers.expect("checked");
        assert_inside(&headers, &bytes, bytes.len(), "generated");
        assert_agrees(&bytes, &headers, "generated");
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), longer in 0usize..100) {
        if let Ok(headers) = parse(&bytes, bytes.len() + longer) {
            assert_inside(&headers, &bytes, bytes.len() + longer, "arbitrary");
            let _ = parse_vxlan(&bytes, &headers);
        }
    }

    #[test]
    fn generated_packets_sum_up(builder in valid_frame()) {
        // Port 4789 would make the random payload a frame.
        prop_assert_eq!(checksums_valid(&builder.ports(1000, 2000).build()), Ok(()));
    }
}
