//! Nearly valid frames: no panic in the parser or in what the slow path does with an accepted frame, offsets always
//! inside, and wherever etherparse accepts the frame too, the same answer.

use super::differential::assert_agrees;
use super::*;
use crate::flow_cache::{FlowCache, FlowCacheLayout, HashKey, LookupBatch};
use crate::packet::Mac;
use crate::packet::wire::{icmp, icmpv6, ipv4, nd};
use crate::testing::{Mutator, checksums_valid, describe};

/// Mutated frames of one run; `MILLRACE_MUTATIONS` raises the count, `MILLRACE_SEED` sets the seed.
fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn mutated_frames_never_panic_and_lie_inside() {
    let (count, seed) = (number("MILLRACE_MUTATIONS", 200_000), number("MILLRACE_SEED", 1));
    let (mut mutator, cache) = (Mutator::new(seed), small_cache());
    let (mut accepted, mut inner, mut shortcuts) = (0u64, 0u64, 0u64);
    let mut reasons = std::collections::BTreeSet::new();
    for index in 0..count {
        let frame = mutator.next_frame();
        // Every fourth frame is a head whose packet goes on.
        let length = frame.len() + if index % 4 == 0 { mutator.below(3000) } else { 0 };
        let name = format!("seed {seed} frame {index}");
        shortcuts += u64::from(assert_shortcut_agrees(&cache, &frame, length, &name));
        assert_outer_agrees(&frame, length, &name);
        match parse(&frame, length) {
            Err(reason) => _ = reasons.insert(reason),
            Ok(headers) => {
                accepted += 1;
                assert_inside(&headers, &frame, length, &name);
                inner += u64::from(enter_vxlan(&frame, &headers, length, &name));
                if length == frame.len() {
                    assert_agrees(&frame, &headers, &name);
                }
                answer(&frame, &headers, &name);
            }
        }
    }
    // The frames must be damaged but not hopeless, or this test would test nothing.
    assert!(accepted > count / 20 && inner > count / 500, "{accepted} accepted, {inner} inside VXLAN of {count}");
    assert!(shortcuts > count / 50, "only {shortcuts} plain frames of {count}");
    // The list of reasons begins with the parser's.
    let parse_reasons = DropReason::GsoMalformed as usize;
    assert_eq!(reasons.len(), parse_reasons, "not every reject was met: {reasons:?}");
}

/// Whatever the shortcut for plain frames takes, the parser takes, with the same numbers and the same flow; nothing that
/// only the slow path may serve is among it, but for what the flow key itself tells. True if it took the frame.
fn assert_shortcut_agrees(cache: &FlowCache, frame: &[u8], length: usize, name: &str) -> bool {
    let Some((plain, front)) = plain::read(frame, length) else { return false };
    let headers = parse(frame, length).unwrap_or_else(|reason| panic!("{name}: plain, but {reason}"));
    let same = Plain {
        network_length: headers.network_length,
        ttl: headers.ttl,
        traffic_class: headers.traffic_class,
        is_ipv6: headers.network == Network::Ipv6,
        ..Plain::default()
    };
    assert_eq!((plain, headers.vlan_tags, headers.network_offset), (same, 0, 14), "{name}");
    assert!(!headers.has(flag::UNCACHEABLE & !(flag::GROUP_MAC | flag::LINK_SCOPE)), "{name}: {headers:?}");
    let mut batch = LookupBatch::new();
    batch.push_plain(5, front, 77);
    cache.lookup(&mut batch);
    let macs = frame.first_chunk().expect("MAC addresses");
    assert_eq!(batch.hash(5), cache.flow_hash(&headers, macs, 77), "{name}");
    true
}

fn small_cache() -> FlowCache {
    FlowCache::new(FlowCacheLayout { ipv4: 8, ipv6: 8 }, HashKey::from_seed(3))
}

#[test]
fn ordinary_frames_take_the_shortcut() {
    let cache = small_cache();
    use crate::testing::{ACK, SYN, frame};
    let of = |from: &str, to: &str| frame().from("02:00:5e:00:53:01", from).to("02:00:5e:00:53:02", to).ttl(9);
    for (from, to) in [("10.1.0.1", "192.0.2.7"), ("fd00:1::1", "2001:db8::7")] {
        for builder in [of(from, to).udp().payload(b"x"), of(from, to).tcp(ACK).payload(b"hello")] {
            let frame = builder.build();
            assert!(assert_shortcut_agrees(&cache, &frame, frame.len(), from), "{}", describe(&frame));
            for cut in 0..frame.len() {
                assert_shortcut_agrees(&cache, &frame[..cut], cut, from);
                assert_shortcut_agrees(&cache, &frame[..cut], frame.len(), from);
            }
        }
        let special = of(from, to).tcp(SYN).build();
        assert!(!assert_shortcut_agrees(&cache, &special, special.len(), from));
    }
}

/// Outer headers that need no second look are what the parser and `parse_vxlan` say of them.
fn assert_outer_agrees(frame: &[u8], length: usize, name: &str) {
    let Some(outer) = plain::Outer::read(frame, length, vxlan::PORT) else { return };
    let headers = parse(frame, length).unwrap_or_else(|reason| panic!("{name}: plain, but {reason}"));
    let end = usize::from(headers.network_offset) + headers.network_length as usize;
    assert_eq!(parse_vxlan(frame, &headers), Ok((outer.vni, plain::Outer::BYTES)), "{name}");
    assert_eq!((outer.end, outer.traffic_class), (end, headers.traffic_class), "{name}");
    assert_eq!((&outer.addresses[..4], &outer.addresses[4..]), (&headers.source[..4], &headers.destination[..4]));
    assert!(headers.ports[1] == vxlan::PORT && !headers.has(flag::FRAGMENT) && headers.vlan_tags == 0, "{name}");
}

fn enter_vxlan(frame: &[u8], outer: &Headers, length: usize, name: &str) -> bool {
    let Ok((vni, offset)) = parse_vxlan(frame, outer) else { return false };
    assert!(vni <= vxlan::LARGEST_VNI && offset + ethernet::HEADER_BYTES <= frame.len(), "{name}");
    if let Ok(headers) = parse(&frame[offset..], length - offset) {
        assert_inside(&headers, &frame[offset..], length - offset, name);
    }
    true
}

/// What the slow path may do with any accepted frame; every answer must itself be a valid frame.
fn answer(frame: &[u8], headers: &Headers, name: &str) {
    let mac = Mac([2, 0, 0x5e, 0, 0x53, 1]);
    let mut target = [0u8; 1600];
    let written = match headers.network {
        Network::Ipv4 => {
            icmp::write_error_frame(&mut target, icmp::Error::TimeExceeded, frame, headers, mac, [10, 1, 0, 1])
        }
        Network::Ipv6 => {
            let error = icmpv6::Error::PacketTooBig { mtu: 1280 };
            icmpv6::write_error_frame(&mut target, error, frame, headers, mac, &[0x20; 16])
        }
        Network::Arp | Network::Other => return,
    };
    let error = &target[..written.expect("fits")];
    assert!(
        parse(error, error.len()).is_ok_and(|headers| headers.has(flag::ICMP_ERROR)),
        "{name}: {}",
        describe(error)
    );
    assert_eq!(checksums_valid(error), Ok(()), "{name}");
    let mut copy = frame.to_vec();
    let _ = icmp::echo_reply_in_place(&mut copy, headers, mac, 64);
    let _ = icmpv6::echo_reply_in_place(&mut copy, headers, mac, 64);
    if headers.network == Network::Ipv4 {
        ipv4::set_ttl(&mut copy[usize::from(headers.network_offset)..], 1).expect("header is there");
    }
    assert!(
        parse(&copy, copy.len().max(usize::from(headers.network_offset) + headers.network_length as usize)).is_ok()
    );
    let message = frame.get(usize::from(headers.transport_offset)..).unwrap_or_default();
    let _ = (nd::read_solicitation(message), nd::read_advertisement(message));
}
