//! Every edit against an obvious oracle: the frame that should come out is built from scratch.
//!
//! What transmit adds (completion of partial checksums, the outer checksum over IPv6) is done here by the plain sum
//! of `testing`, so that neither side of a comparison calls the arithmetic under test. Units are cut by the segmenter
//! that follows the edit in the product, and each segment is compared.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::drop_reason::DropReason;
use crate::packet::copy_and_checksum::Kernel;
use crate::packet::parse::{self, Plain, flag};
use crate::packet::{Checksum, FrameMemory, FrameMemoryLayout, Headers, Mac, Packet};
use crate::tables::{Tag, Vni};
use crate::testing::{ACK, CWR, FrameBuilder, PSH, checksums_valid, describe, fragments, frame, internet_checksum};
use crate::transmit::Layout;
use crate::transmit::segmentation::Segmenter;

const TAGS: [(u16, u16); 2] = [(0x88a8, 0x2064), (0x8100, 10)];
const IDENTIFICATION: u32 = 0xfffe;
const SEQUENCE: u32 = 0xffff_ff00;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Tcp,
    Udp,
    UdpWithoutChecksum,
    Sctp,
    Echo,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Complete,
    Partial,
    /// A unit in segments of this size.
    Unit(u16),
}

/// A packet and what is done to it.
#[derive(Clone, Debug)]
struct Case {
    ipv6: bool,
    kind: Kind,
    mode: Mode,
    payload: Vec<u8>,
    traffic_class: u8,
    tags: u8,
    padded: bool,
    /// Came in a tunnel over IPv6 (or IPv4), whose outer header has this DSCP and ECN.
    tunnelled: Option<(bool, u8)>,
    pop: u8,
    translate: [bool; 2],
    ports_change: bool,
    route: bool,
    push: bool,
    /// Leaves in a tunnel over IPv6 (or IPv4).
    encapsulate: Option<bool>,
    flow_hash: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let packet = (
        any::<bool>(),
        prop::sample::select(vec![Kind::Tcp, Kind::Udp, Kind::UdpWithoutChecksum, Kind::Sctp, Kind::Echo]),
        prop_oneof![Just(Mode::Complete), Just(Mode::Partial), (1u16..300).prop_map(Mode::Unit)],
        prop::collection::vec(any::<u8>(), 0..900),
        any::<u8>(),
        0u8..3,
        any::<bool>(),
    );
    let edit = (
        prop::option::of(any::<(bool, u8)>()),
        0u8..3,
        any::<[bool; 2]>(),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        prop::option::of(any::<bool>()),
        any::<u64>(),
    );
    (packet, edit).prop_map(|(packet, edit)| {
        let (ipv6, kind, mode, payload, traffic_class, tags, padded) = packet;
        let (tunnelled, pop, translate, ports_change, route, push, encapsulate, flow_hash) = edit;
        let ipv6 = ipv6 && kind != Kind::UdpWithoutChecksum;
        let mode = match (kind, mode) {
            (Kind::Tcp | Kind::Udp, Mode::Unit(size)) => Mode::Unit(size.max(payload.len().div_ceil(100) as u16)),
            (Kind::Tcp | Kind::Udp, mode) => mode,
            _ => Mode::Complete,
        };
        let padded = padded && mode == Mode::Complete;
        let pop = pop.min(tags);
        Case {
            ipv6,
            kind,
            mode,
            payload,
            traffic_class,
            tags,
            padded,
            tunnelled,
            pop,
            translate,
            ports_change,
            route,
            push,
            encapsulate,
            flow_hash,
        }
    })
}

fn mac(number: u8) -> Mac {
    Mac([2, 0, 0x5e, 0, 0x53, number])
}

fn address(ipv6: bool, number: u8) -> IpAddr {
    let text = if ipv6 { format!("2001:db8:{number}::{number}") } else { format!("10.{number}.255.{number}") };
    text.parse().expect("address")
}

fn octets(address: IpAddr) -> [u8; 16] {
    let mut octets = [0; 16];
    match address {
        IpAddr::V4(address) => octets[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => octets = address.octets(),
    }
    octets
}

/// The ECN field that leaves the tunnel, as figure 4 of RFC 6040 prints it: a row for each inner field (Not-ECT,
/// ECT(1), ECT(0), CE), a column for each outer one; `None` is "drop".
const RFC_6040_FIGURE_4: [[Option<u8>; 4]; 4] = [
    [Some(0), Some(0), Some(0), None],
    [Some(1), Some(1), Some(1), Some(3)],
    [Some(2), Some(1), Some(2), Some(3)],
    [Some(3), Some(3), Some(3), Some(3)],
];

impl Case {
    fn ports(&self, translated: [bool; 2]) -> (u16, u16) {
        let changed = |side: usize| self.ports_change && translated[side];
        if self.kind == Kind::Echo {
            let identifier = if changed(0) || changed(1) { 60_001 } else { 700 };
            return (identifier, identifier);
        }
        (if changed(0) { 60_001 } else { 40_000 }, if changed(1) { 8_080 } else { 80 })
    }

    /// The frame with this payload and header fields, before or after the edit.
    fn inner(&self, edited: bool, payload: &[u8]) -> FrameBuilder {
        let translated = self.translate.map(|side| side && edited);
        let ends = [0, 1].map(|side| address(self.ipv6, 1 + side as u8 + if translated[side] { 2 } else { 0 }));
        let (source, destination, ttl) = if edited && self.route { (11, 12, 63) } else { (1, 2, 64) };
        let mut builder = frame().from(mac(source), ends[0]).to(mac(destination), ends[1]).ttl(ttl);
        if edited && self.push {
            // The priority of the tag that came off goes on.
            let priority = if self.pop > 0 { TAGS[0].1 & 0xf000 } else { 0 };
            builder = builder.tag(0x8100, 42 | priority);
        }
        let first_tag = if edited { self.pop } else { 0 };
        for (protocol, control) in TAGS.iter().take(self.tags.into()).skip(first_tag.into()) {
            builder = builder.tag(*protocol, *control);
        }
        let ports = self.ports(translated);
        builder = match self.kind {
            Kind::Tcp => builder.tcp(ACK).sequence(SEQUENCE, 9).tcp_options(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]),
            Kind::Udp => builder.udp(),
            Kind::UdpWithoutChecksum => builder.udp_without_checksum(),
            Kind::Sctp => builder.sctp(0xdead_beef),
            Kind::Echo => builder.echo_request(ports.0, 3),
        };
        let class = if edited { self.inner_class_after().unwrap_or(0) } else { self.traffic_class };
        let builder =
            builder.ports(ports.0, ports.1).payload(payload).traffic_class(class).identification(IDENTIFICATION);
        let tags_changed = if edited { 4 * usize::from(self.push) as isize - 4 * self.pop as isize } else { 0 };
        if self.padded { builder.padded_to((300 + tags_changed) as usize) } else { builder }
    }

    /// DSCP and ECN behind the tunnel; `None` if the packet must be dropped.
    fn inner_class_after(&self) -> Option<u8> {
        let Some((_, outer)) = self.tunnelled else { return Some(self.traffic_class) };
        let (inner, outer) = (self.traffic_class & 3, outer & 3);
        // The figure's order of rows and columns is that of the codepoints.
        RFC_6040_FIGURE_4[usize::from(inner)][usize::from(outer)].map(|ecn| self.traffic_class & 0xfc | ecn)
    }

    fn rewrite(&self) -> Rewrite {
        let (source, destination) = match self.encapsulate {
            Some(true) => (address(true, 101), address(true, 102)),
            _ => (address(false, 101), address(false, 102)),
        };
        let encapsulation = Encapsulation {
            macs: MacPair { destination: mac(22), source: mac(21) },
            source,
            destination,
            udp_port: 8472,
            vni: Vni::new(0xab_cdef).expect("vni"),
        };
        Rewrite {
            decapsulate: self.tunnelled.is_some(),
            pop_tags: self.pop,
            route: self.route.then_some(MacPair { destination: mac(12), source: mac(11) }),
            push_tag: self.push.then_some(Tag::customer(42)),
            encapsulate: self.encapsulate.map(|_| encapsulation),
            mtu: 1500,
        }
    }

    fn translation(&self) -> Translation {
        let ports = self.ports(self.translate);
        let side = |side: usize, port| self.translate[side].then(|| (octets(address(self.ipv6, 3 + side as u8)), port));
        Translation { source: side(0, ports.0), destination: side(1, ports.1) }
    }

    /// The packet before the edit, in memory, and where its inner frame begins.
    fn packet(&self, memory: &mut FrameMemory) -> (Packet, Headers, usize, u8) {
        let mut builder = self.inner(false, &self.payload);
        builder = match self.mode {
            Mode::Complete => builder,
            Mode::Partial => builder.partial_checksum(),
            Mode::Unit(size) => builder.gso(size),
        };
        let wire = builder.wire();
        let bytes = match self.tunnelled {
            None => wire.bytes.clone(),
            Some((ipv6, class)) => {
                let outer = frame().from(mac(31), address(ipv6, 111)).to(mac(32), address(ipv6, 112));
                builder.inside_vxlan(7, outer.traffic_class(class)).build()
            }
        };
        let mut packet = memory.packet_from(&bytes).expect("packet");
        let inner_offset = bytes.len() - wire.bytes.len();
        packet.set_gso(wire.gso);
        if let Some((start, offset)) = wire.partial_checksum {
            let start = packet.start() as u16 + inner_offset as u16 + start;
            packet.set_checksum(Checksum::Partial { start, offset });
        }
        let headers = parse::parse(&bytes[inner_offset..], bytes.len() - inner_offset).expect("valid");
        (packet, headers, inner_offset, self.tunnelled.map_or(0, |(_, class)| class))
    }

    fn apply(&self, memory: &mut FrameMemory) -> (Packet, Result<Layout, DropReason>) {
        let (mut packet, headers, inner_offset, outer_traffic_class) = self.packet(memory);
        let subject = Subject { headers: &headers, inner_offset, outer_traffic_class, flow_hash: self.flow_hash };
        let compiled = CompiledRewrite::new(&self.rewrite());
        let layout = super::apply(memory, &mut packet, &subject, &compiled, &self.translation());
        (packet, layout)
    }

    /// The frame that leaves; of the tunnel's source port, whose choice is free, `sent` says which it is.
    fn expected(&self, inner: FrameBuilder, sent: &[u8]) -> Vec<u8> {
        let Some(ipv6) = self.encapsulate else { return inner.build() };
        let ecn = self.inner_class_after().expect("forwarded") & 3;
        let at = if ipv6 { 54 } else { 34 };
        let source_port = u16::from_be_bytes([sent[at], sent[at + 1]]);
        assert!(source_port >= 49_152, "{source_port} is not in the dynamic range");
        let outer = frame().from(mac(21), address(ipv6, 101)).to(mac(22), address(ipv6, 102)).traffic_class(ecn);
        let outer = if ipv6 { outer } else { outer.dont_fragment() };
        inner.inside_vxlan(0xab_cdef, outer.ports(source_port, 8472)).build()
    }

    /// The segments that a cut unit should become: payload, sequence and identification go on, PSH is on the last.
    fn segments(&self, size: u16) -> Vec<FrameBuilder> {
        let chunks: Vec<&[u8]> = match self.payload.is_empty() {
            true => vec![&[]],
            false => self.payload.chunks(size.into()).collect(),
        };
        let segment = |(number, chunk): (usize, &&[u8])| {
            let sequence = SEQUENCE.wrapping_add(number as u32 * u32::from(size));
            let identification = u32::from((IDENTIFICATION as u16).wrapping_add(number as u16));
            let builder = self.inner(true, chunk).identification(identification);
            if self.kind == Kind::Tcp { builder.sequence(sequence, 9) } else { builder }
        };
        chunks.iter().enumerate().map(segment).collect()
    }
}

fn memory() -> FrameMemory {
    FrameMemory::new(FrameMemoryLayout { head_frames: 1_024, big_buffers: 2 }).expect("memory")
}

fn flat(memory: &FrameMemory, packet: &Packet) -> Vec<u8> {
    memory.parts(packet).flatten().copied().collect()
}

/// The packet's bytes with its partial checksum completed, and the outer one written that IPv6 demands.
fn completed(case: &Case, memory: &FrameMemory, packet: &Packet) -> Vec<u8> {
    let mut bytes = flat(memory, packet);
    if let Checksum::Partial { start, offset } = packet.checksum() {
        let first = usize::from(start) - packet.start();
        let at = first + usize::from(offset);
        let sum = match (internet_checksum(&[&bytes[first..]]), offset) {
            (0, 6) => 0xffff,
            (sum, _) => sum,
        };
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    if case.encapsulate == Some(true) {
        let length = (bytes.len() as u32 - 54).to_be_bytes();
        let sum = internet_checksum(&[&bytes[22..54], &length, &[0, 0, 0, 17], &bytes[54..]]);
        bytes[60..62].copy_from_slice(&if sum == 0 { 0xffff } else { sum }.to_be_bytes());
    }
    bytes
}

fn check(case: &Case, memory: &mut FrameMemory) {
    let free = memory.free_heads();
    check_plain(case, memory);
    let (packet, layout) = case.apply(memory);
    let Ok(layout) = layout else {
        assert_eq!((layout.err(), case.inner_class_after()), (Some(DropReason::EcnNotCapable), None), "{case:?}");
        return memory.release(packet);
    };
    match case.mode {
        Mode::Complete | Mode::Partial => {
            let sent = completed(case, memory, &packet);
            compare(case, &sent, case.inner(true, &case.payload));
            memory.release(packet);
        }
        Mode::Unit(size) => {
            let mut cut = Segmenter::segment_list();
            let segmenter = Segmenter::new(Kernel::detect());
            segmenter.cut(memory, packet, &layout, 2_000, &mut cut).expect("cut");
            let expected = case.segments(size);
            assert_eq!(cut.len(), expected.len());
            for (segment, expected) in cut.into_iter().zip(expected) {
                compare(case, &flat(memory, &segment), expected);
                memory.release(segment);
            }
        }
    }
    assert_eq!(memory.free_heads(), free);
}

/// Where the short way of plain packets is open, it gives what the long way gives. True if it was.
fn check_plain(case: &Case, memory: &mut FrameMemory) -> bool {
    let (mut packet, _, inner_offset, outer_traffic_class) = case.packet(memory);
    let frame = &memory.head(&packet)[inner_offset..];
    let read = parse::plain::read(frame, packet.length() - inner_offset).filter(|_| packet.is_finished());
    let plain = read.map(|(plain, _)| Plain { offset: inner_offset as u8, outer_traffic_class, ..plain });
    let compiled = CompiledRewrite::new(&case.rewrite());
    let short = plain.and_then(|plain| {
        let mut bytes = memory.head(&packet)[inner_offset..][if plain.is_ipv6 { 22..58 } else { 26..38 }].to_vec();
        let sides = new_ends::write(&mut bytes, &case.translation());
        let ends = NewEnds::new(&bytes, sides);
        assert_eq!(ends.translation(), case.translation());
        super::apply_plain(memory, &mut packet, &plain, || case.flow_hash, &compiled, ends)
    });
    if let Some(result) = short {
        let (expected, layout) = case.apply(memory);
        assert_eq!(result, layout.map(|_| ()), "{case:?}");
        if result.is_ok() {
            assert_eq!(flat(memory, &packet), flat(memory, &expected), "{case:?}");
        }
        memory.release(expected);
    }
    memory.release(packet);
    short.is_some()
}

#[test]
fn plain_packets_go_the_short_way() {
    let mut memory = memory();
    let short = |case: &Case| matches!(case.kind, Kind::Tcp | Kind::Udp | Kind::UdpWithoutChecksum);
    for plain in plain().into_iter().filter(short) {
        for (route, encapsulate) in [(false, None), (true, None), (false, Some(false)), (true, Some(false))] {
            for tunnelled in [None, Some((false, 0)), Some((true, 0x21))] {
                for translate in [[false, false], [true, false], [false, true], [true, true]] {
                    let case = Case { route, encapsulate, tunnelled, translate, ..plain.clone() };
                    assert!(check_plain(&case, &mut memory), "{case:?}");
                }
            }
        }
        for other in [
            Case { encapsulate: Some(true), ..plain.clone() },
            Case { push: true, ..plain.clone() },
            Case { tags: 1, ..plain.clone() },
        ] {
            assert!(!check_plain(&other, &mut memory), "{other:?}");
        }
    }
}

fn compare(case: &Case, sent: &[u8], inner: FrameBuilder) {
    let expected = case.expected(inner, sent);
    assert_eq!(describe(sent), describe(&expected), "{case:?}");
    assert_eq!(sent, expected, "{case:?}");
    assert_eq!(checksums_valid(sent), Ok(()), "{case:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 200 }))]
    #[test]
    fn any_combination_gives_the_frame_built_from_scratch(cases in prop::collection::vec(case(), 1..30)) {
        let mut memory = memory();
        cases.iter().for_each(|case| check(case, &mut memory));
    }

    #[test]
    fn a_damaged_packet_stays_damaged(case in case(), damage in 1u16..0xffff) {
        let kind = if case.kind == Kind::UdpWithoutChecksum { Kind::Udp } else { case.kind };
        let payload = if case.payload.len() < 2 { vec![1, 2] } else { case.payload };
        let (mode, tunnelled, encapsulate, padded) = (Mode::Complete, None, None, false);
        let case = Case { kind, payload, mode, tunnelled, encapsulate, padded, ..case };
        let mut memory = memory();
        let (mut packet, headers, ..) = case.packet(&mut memory);
        let at = usize::from(headers.payload_offset);
        let word = &mut memory.head_mut(&mut packet)[at..at + 2];
        word.copy_from_slice(&(u16::from_be_bytes([word[0], word[1]]) ^ damage).to_be_bytes());
        prop_assume!(checksums_valid(&flat(&memory, &packet)).is_err());
        let subject = Subject { headers: &headers, inner_offset: 0, outer_traffic_class: 0, flow_hash: 0 };
        let compiled = CompiledRewrite::new(&case.rewrite());
        prop_assert!(super::apply(&memory, &mut packet, &subject, &compiled, &case.translation()).is_ok());
        prop_assert!(checksums_valid(&flat(&memory, &packet)).is_err());
        memory.release(packet);
    }
}

/// One plain packet of each kind and family, nothing done to it.
fn plain() -> Vec<Case> {
    let mut cases = Vec::new();
    for ipv6 in [false, true] {
        for kind in [Kind::Tcp, Kind::Udp, Kind::UdpWithoutChecksum, Kind::Sctp, Kind::Echo] {
            if ipv6 && kind == Kind::UdpWithoutChecksum {
                continue;
            }
            cases.push(Case {
                ipv6,
                kind,
                mode: Mode::Complete,
                payload: (0..77).collect(),
                traffic_class: 0xba,
                tags: 0,
                padded: false,
                tunnelled: None,
                pop: 0,
                translate: [false; 2],
                ports_change: true,
                route: false,
                push: false,
                encapsulate: None,
                flow_hash: 0,
            });
        }
    }
    cases
}

/// Each edit alone for each kind of packet in each checksum mode: what the random combinations must never miss.
#[test]
fn each_edit_alone_in_each_mode() {
    let mut memory = memory();
    for plain in plain() {
        let modes = match plain.kind {
            Kind::Tcp | Kind::Udp => vec![Mode::Complete, Mode::Partial, Mode::Unit(20)],
            _ => vec![Mode::Complete],
        };
        for mode in modes {
            let plain = Case { mode, ..plain.clone() };
            let mut edits = vec![
                plain.clone(),
                Case { route: true, ..plain.clone() },
                Case { push: true, ..plain.clone() },
                Case { tags: 1, pop: 1, ..plain.clone() },
                Case { tags: 2, pop: 1, ..plain.clone() },
                Case { tags: 2, pop: 2, push: true, ..plain.clone() },
                Case { encapsulate: Some(false), ..plain.clone() },
                Case { encapsulate: Some(true), ..plain.clone() },
                Case { tunnelled: Some((false, 0)), ..plain.clone() },
                Case { tunnelled: Some((true, 0)), ..plain.clone() },
            ];
            for translate in [[true, false], [false, true], [true, true]] {
                for ports_change in [false, true] {
                    edits.push(Case { translate, ports_change, ..plain.clone() });
                }
            }
            edits.iter().for_each(|case| check(case, &mut memory));
        }
    }
}

#[test]
fn congestion_crosses_the_tunnel_as_rfc_6040_says() {
    let mut memory = memory();
    for plain in plain() {
        for (inner, outer) in (0..4u8).flat_map(|inner| (0..4u8).map(move |outer| (inner, outer))) {
            for encapsulate in [None, Some(false), Some(true)] {
                let (traffic_class, tunnelled) = (0xb8 | inner, Some((false, 0x20 | outer)));
                check(&Case { traffic_class, tunnelled, encapsulate, ..plain.clone() }, &mut memory);
            }
        }
    }
}

#[test]
fn what_is_not_ip_crosses_a_tunnel_unchanged() {
    let mut memory = memory();
    let arp = frame().from(mac(1), "10.1.0.5").arp_request("10.1.0.1").build();
    let case = Case { encapsulate: Some(false), ..plain().remove(0) };
    let compiled = CompiledRewrite::new(&case.rewrite());
    let headers = parse::parse(&arp, arp.len()).expect("valid");
    let mut packet = memory.packet_from(&arp).expect("packet");
    let subject = Subject { headers: &headers, inner_offset: 0, outer_traffic_class: 0, flow_hash: 0 };
    assert!(super::apply(&memory, &mut packet, &subject, &compiled, &Translation::NONE).is_ok());
    let sent = flat(&memory, &packet);
    assert_eq!((checksums_valid(&sent), &sent[50..]), (Ok(()), &arp[..]));
    // And back, with an outer header that met congestion.
    let subject = Subject { headers: &headers, inner_offset: 50, outer_traffic_class: 3, flow_hash: 0 };
    let back = Case { tunnelled: Some((false, 3)), encapsulate: None, ..case };
    let compiled = CompiledRewrite::new(&back.rewrite());
    assert!(super::apply(&memory, &mut packet, &subject, &compiled, &Translation::NONE).is_ok());
    assert_eq!(flat(&memory, &packet), arp);
    memory.release(packet);
}

#[test]
fn fragments_are_translated_piece_by_piece() {
    let mut memory = memory();
    for ipv6 in [false, true] {
        let case = Case { ipv6, translate: [true, true], ..plain().remove(1) };
        let whole = |edited| case.inner(edited, &[7; 700]);
        for (before, expected) in fragments(&whole(false), 304).into_iter().zip(fragments(&whole(true), 304)) {
            let headers = parse::parse(&before, before.len()).expect("valid");
            assert!(headers.has(flag::FRAGMENT));
            let mut packet = memory.packet_from(&before).expect("packet");
            let subject = Subject { headers: &headers, inner_offset: 0, outer_traffic_class: 0, flow_hash: 0 };
            let compiled = CompiledRewrite::new(&case.rewrite());
            assert!(super::apply(&memory, &mut packet, &subject, &compiled, &case.translation()).is_ok());
            assert_eq!(flat(&memory, &packet), expected);
            memory.release(packet);
        }
    }
}

#[test]
fn the_ports_of_an_sctp_fragment_cannot_be_translated() {
    let mut memory = memory();
    let plain = plain().into_iter().find(|case| case.kind == Kind::Sctp).expect("sctp");
    for (ports_change, expected) in [(true, Err(DropReason::SctpFragment)), (false, Ok(()))] {
        let case = Case { translate: [true, true], ports_change, ..plain.clone() };
        let first = fragments(&case.inner(false, &[7; 700]), 304).remove(0);
        let headers = parse::parse(&first, first.len()).expect("valid");
        let mut packet = memory.packet_from(&first).expect("packet");
        let subject = Subject { headers: &headers, inner_offset: 0, outer_traffic_class: 0, flow_hash: 0 };
        let compiled = CompiledRewrite::new(&case.rewrite());
        let done = super::apply(&memory, &mut packet, &subject, &compiled, &case.translation());
        assert_eq!(done.map(|_| ()), expected);
        memory.release(packet);
    }
}

#[test]
fn the_flags_of_a_unit_fall_on_its_first_and_last_segment() {
    let mut memory = memory();
    let case = Case { mode: Mode::Unit(100), payload: vec![5; 250], translate: [true; 2], ..plain().remove(0) };
    let unit = case.inner(false, &case.payload).tcp(ACK | PSH | CWR).ports(40_000, 80).gso(100).gso_ecn().wire();
    let headers = parse::parse(&unit.bytes, unit.bytes.len()).expect("valid");
    let mut packet = memory.packet_from(&unit.bytes).expect("packet");
    packet.set_gso(unit.gso);
    let (start, offset) = unit.partial_checksum.expect("partial");
    packet.set_checksum(Checksum::Partial { start: packet.start() as u16 + start, offset });
    let subject = Subject { headers: &headers, inner_offset: 0, outer_traffic_class: 0, flow_hash: 0 };
    let compiled = CompiledRewrite::new(&case.rewrite());
    let layout = super::apply(&memory, &mut packet, &subject, &compiled, &case.translation()).expect("edited");
    let mut cut = Segmenter::segment_list();
    Segmenter::new(Kernel::detect()).cut(&mut memory, packet, &layout, 2_000, &mut cut).expect("cut");
    let flags: Vec<u8> =
        cut.iter().map(|segment| memory.head(segment)[usize::from(layout.transport_offset) + 13]).collect();
    assert_eq!(flags, [ACK | CWR, ACK, ACK | PSH]);
    for segment in cut {
        checksums_valid(&flat(&memory, &segment)).expect("checksums");
        memory.release(segment);
    }
}

#[test]
fn flows_spread_over_the_tunnels_source_ports() {
    let mut memory = memory();
    let mut ports = std::collections::BTreeSet::new();
    for number in 0..64u64 {
        let flow_hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let case = Case { encapsulate: Some(false), flow_hash, ..plain().remove(0) };
        let (first, second) = (case.apply(&mut memory).0, case.apply(&mut memory).0);
        assert_eq!(flat(&memory, &first), flat(&memory, &second), "one flow, one port");
        ports.insert(flat(&memory, &first)[34..36].to_vec());
        memory.release(first);
        memory.release(second);
    }
    assert!(ports.len() > 60, "{} ports for 64 flows", ports.len());
}
