//! Nearly valid frames: no panic in the parser or in what the slow path does with an accepted frame, offsets always
//! inside, and wherever etherparse accepts the frame too, the same answer.

use super::differential::assert_agrees;
use super::*;
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
    let mut mutator = Mutator::new(seed);
    let (mut accepted, mut inner, mut shortcuts) = (0u64, 0u64, 0u64);
    let mut reasons = std::collections::BTreeSet::new();
    for index in 0..count {
        let frame = mutator.next_frame();
        // Every fourth frame is a head whose packet goes on.
        let length = frame.len() + if index % 4 == 0 { mutator.below(3000) } else { 0 };
        let name = format!("seed {seed} frame {index}");
        shortcuts += u64::from(assert_shortcut_agrees(&frame, length, &name));
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

/// Whatever the shortcut for plain frames takes, the long way takes with the same result. True if it took the frame.
fn assert_shortcut_agrees(frame: &[u8], length: usize, name: &str) -> bool {
    let (mut short, mut long) = (Headers { flags: u16::MAX, vlan: [9; 2], ..Headers::EMPTY }, Headers::EMPTY);
    let taken = plain::parse(&mut short, frame, length);
    if taken {
        assert_eq!(parse_any(&mut long, frame, length), Ok(()), "{name}");
        assert_eq!(short, long, "{name}");
    }
    taken
}

#[test]
fn ordinary_frames_take_the_shortcut() {
    use crate::testing::{ACK, SYN, frame};
    let of = |from: &str, to: &str| frame().from("02:00:5e:00:53:01", from).to("02:00:5e:00:53:02", to).ttl(9);
    for (from, to) in [("10.1.0.1", "192.0.2.7"), ("fd00:1::1", "2001:db8::7")] {
        for builder in [of(from, to).udp().payload(b"x"), of(from, to).tcp(ACK).payload(b"hello")] {
            let frame = builder.build();
            assert!(assert_shortcut_agrees(&frame, frame.len(), from), "{}", describe(&frame));
            for cut in 0..frame.len() {
                assert_shortcut_agrees(&frame[..cut], cut, from);
                assert_shortcut_agrees(&frame[..cut], frame.len(), from);
            }
        }
        let special = of(from, to).tcp(SYN).build();
        assert!(!assert_shortcut_agrees(&special, special.len(), from));
    }
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
