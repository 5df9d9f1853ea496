//! The oracle is segmentation: cutting what was joined must give back, byte for byte, what was put in.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::frames::{self, Segment as Written, Shape};
use super::super::segmentation::Segmenter;
use super::*;
use crate::packet::FrameMemoryLayout;

const ACK: u8 = 0x10;
const ACK_PSH: u8 = 0x18;

fn memory() -> FrameMemory {
    FrameMemory::new(FrameMemoryLayout { head_frames: 256, big_buffers: 2 }).expect("memory")
}

fn assert_all_free(memory: &FrameMemory) {
    let FrameMemoryLayout { head_frames, big_buffers } = memory.layout();
    assert_eq!((memory.free_heads(), memory.free_bigs()), (head_frames, big_buffers));
}

fn written(flow: u16, sequence: u32, identification: u16, flags: u8, payload: Vec<u8>) -> Written {
    Written { flow, sequence, identification, outer_identification: 0, flags, payload }
}

/// `count` consecutive segments of `size` bytes.
fn train(shape: Shape, flow: u16, count: usize, size: usize) -> Vec<Vec<u8>> {
    let segment = |number: usize| {
        let payload = (0..size).map(|byte| (byte * 31 + number * 7) as u8).collect();
        frames::frame(shape, &written(flow, (number * size) as u32, number as u16, ACK, payload))
    };
    (0..count).map(segment).collect()
}

fn packets(memory: &mut FrameMemory, frames: &[Vec<u8>]) -> Vec<Packet> {
    frames.iter().map(|bytes| memory.packet_from(bytes).expect("packet")).collect()
}

fn join(memory: &mut FrameMemory, list: &mut Vec<Packet>) -> Joined {
    Joiner::new(Kernel::detect()).join(memory, list, true)
}

fn release(memory: &mut FrameMemory, list: Vec<Packet>) {
    list.into_iter().for_each(|packet| memory.release(packet));
    assert_all_free(memory);
}

/// Layout of a frame of TCP or UDP, found from its bytes by the longer way: by etherparse.
fn layout(bytes: &[u8]) -> super::super::segmentation::Layout {
    let sliced = etherparse::SlicedPacket::from_ethernet(bytes).expect("frame");
    let (payload, header) = match &sliced.transport {
        Some(etherparse::TransportSlice::Tcp(tcp)) => (tcp.payload().len(), tcp.header_len()),
        Some(etherparse::TransportSlice::Udp(udp)) => (udp.payload().len(), 8),
        _ => panic!("neither TCP nor UDP"),
    };
    let payload_offset = (bytes.len() - payload) as u16;
    let transport_offset = payload_offset - header as u16;
    let ip = match sliced.net.expect("network") {
        etherparse::NetSlice::Ipv4(_) => 20,
        etherparse::NetSlice::Ipv6(_) => 40,
        etherparse::NetSlice::Arp(_) => panic!("no IP"),
    };
    super::super::segmentation::Layout {
        outer: None,
        network_offset: transport_offset - ip,
        transport_offset,
        payload_offset,
    }
}

/// The packets as frames on a wire, units cut again. Fails if a unit's metadata are wrong.
fn expand(memory: &mut FrameMemory, list: Vec<Packet>) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for packet in list {
        let bytes = frames::flat(memory, &packet);
        if packet.gso().is_none() {
            memory.release(packet);
            frames.push(bytes);
            continue;
        }
        let layout = layout(&bytes);
        let start = packet.start() as u16 + layout.transport_offset;
        let is_udp = packet.gso().is_some_and(|gso| gso.kind == GsoKind::Udp);
        assert_eq!(packet.checksum(), Checksum::Partial { start, offset: if is_udp { 6 } else { 16 } });
        let mut cut = Segmenter::segment_list();
        Segmenter::new(Kernel::SCALAR).cut(memory, packet, &layout, 2000, &mut cut).expect("cut");
        assert!(cut.len() > 1);
        for segment in cut {
            frames.push(memory.head(&segment).to_vec());
            memory.release(segment);
        }
    }
    frames
}

/// The frame without IPv4 identification and header checksum, in which segments with "don't fragment" may differ.
fn without_identification(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = if bytes[12] == 0x81 { 18 } else { 14 };
    if bytes[at] >> 4 == 4 {
        bytes[at + 4..at + 6].fill(0);
        bytes[at + 10..at + 12].fill(0);
    }
    bytes
}

/// Which flow a frame of `frames` belongs to.
fn flow_of(bytes: &[u8]) -> Vec<u8> {
    let at = if bytes[12] == 0x81 { 18 } else { 14 };
    let ports = at + if bytes[at] >> 4 == 4 { 20 } else { 40 };
    [&bytes[12..at], &bytes[at..=at], &bytes[ports..ports + 4]].concat()
}

fn by_flow(frames: &[Vec<u8>]) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for bytes in frames {
        flows.entry(flow_of(bytes)).or_default().push(without_identification(bytes));
    }
    flows
}

/// One step of a sender: mostly the next segment, sometimes something else.
#[derive(Clone, Debug)]
struct Step {
    flow: u16,
    length: usize,
    flags: u8,
    skip: u32,
    identification_step: u16,
    broken: Option<usize>,
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![8 => Just(100usize), 2 => Just(101), 1 => Just(37), 1 => Just(0)];
    let flags = prop_oneof![12 => Just(ACK), 2 => Just(ACK_PSH), 1 => Just(0x11), 1 => any::<u8>()];
    let skip = prop_oneof![14 => Just(0u32), 1 => Just(100), 1 => Just(u32::MAX - 99)];
    let identification_step = prop_oneof![14 => Just(1u16), 1 => Just(0), 1 => Just(2)];
    let broken = prop_oneof![14 => Just(None), 1 => (0usize..100).prop_map(Some)];
    (0u16..4, length, flags, skip, identification_step, broken).prop_map(
        |(flow, length, flags, skip, identification_step, broken)| Step {
            flow,
            length,
            flags,
            skip,
            identification_step,
            broken,
        },
    )
}

/// Flow 0 is plain, 1 is IPv6, 2 has a VLAN tag and timestamps, 3 is UDP.
fn shape_of(flow: u16) -> Shape {
    let base = Shape::TCP_IPV4;
    match flow {
        0 => base,
        1 => Shape { ipv6: true, timestamps: true, ..base },
        2 => Shape { vlan: true, timestamps: true, ..base },
        _ => Shape { udp: true, ..base },
    }
}

fn send(steps: &[Step]) -> Vec<Vec<u8>> {
    let mut state = [(u32::MAX - 450, 0xfffcu16); 4];
    let mut sent = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let (sequence, identification) = &mut state[usize::from(step.flow)];
        *sequence = sequence.wrapping_add(step.skip);
        let payload: Vec<u8> = (0..step.length).map(|byte| (byte * 13 + number) as u8).collect();
        let segment = written(step.flow, *sequence, *identification, step.flags, payload);
        let mut bytes = frames::frame(shape_of(step.flow), &segment);
        if let Some(at) = step.broken {
            // Anywhere behind the ports, so that the frame stays in its flow.
            let first = [38, 58, 42, 41][usize::from(step.flow)];
            let at = first + at % (bytes.len() - first);
            bytes[at] ^= 0x40;
        }
        sent.push(bytes);
        *sequence = sequence.wrapping_add(step.length as u32);
        *identification = identification.wrapping_add(step.identification_step);
    }
    sent
}

proptest! {
    #[test]
    fn cutting_what_was_joined_gives_back_every_flow(steps in prop::collection::vec(step(), 0..64)) {
        let sent = send(&steps);
        let mut memory = memory();
        for kernel in Kernel::available() {
            let mut list = packets(&mut memory, &sent);
            let joined = Joiner::new(kernel).join(&mut memory, &mut list, true);
            prop_assert_eq!(list.len() + joined.merged_frames(), sent.len());
            prop_assert_eq!(list.iter().filter(|packet| packet.gso().is_some()).count(), joined.units);
            let received = expand(&mut memory, list);
            prop_assert_eq!(by_flow(&received), by_flow(&sent));
            assert_all_free(&memory);
        }
    }

    #[test]
    fn a_cut_unit_joins_to_the_same_unit(
        ipv6: bool,
        vlan: bool,
        timestamps: bool,
        payload in prop::collection::vec(any::<u8>(), 101..5000),
        size in 100usize..1400,
        flags in prop::sample::select(vec![ACK, ACK_PSH, 0x11, 0x19]),
    ) {
        let shape = Shape { ipv6, vlan, timestamps, ..Shape::TCP_IPV4 };
        let whole = written(7, u32::MAX - 700, 0xfffe, flags, payload);
        let bytes = frames::unit(shape, &whole);
        let mut memory = memory();
        let gso = Some(Gso { kind: shape.kind(), size: size as u16, ecn: false });
        let unit = frames::packet(&mut memory, &bytes, 100, 65_536, gso);
        let mut list = Segmenter::segment_list();
        let segments = Segmenter::new(Kernel::detect())
            .cut(&mut memory, unit, &shape.layout(), 1514, &mut list)
            .expect("cut");
        let joined = join(&mut memory, &mut list);
        prop_assert_eq!(list.len(), 1);
        let mut unit = list.remove(0);
        if segments > 1 {
            prop_assert_eq!(joined, Joined { units: 1, segments });
            prop_assert_eq!(unit.gso(), gso);
            unit.set_gso(None);
            checksum::complete(&mut memory, &mut unit).expect("partial checksum in the head");
        }
        prop_assert_eq!(frames::flat(&memory, &unit), frames::frame(shape, &whole));
        release(&mut memory, vec![unit]);
    }

    #[test]
    fn any_bytes_pass_unchanged(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..120), 0..20)) {
        let mut memory = memory();
        let mut list = packets(&mut memory, &frames);
        prop_assert_eq!(join(&mut memory, &mut list), Joined::default());
        let after: Vec<_> = list.iter().map(|packet| frames::flat(&memory, packet)).collect();
        prop_assert_eq!(after, frames);
        release(&mut memory, list);
    }

    #[test]
    fn bent_headers_never_panic_and_never_join_wrongly(
        flow in 0u16..4,
        bends in prop::collection::vec((0usize..5, 12usize..70, any::<u8>()), 1..4),
    ) {
        let mut sent = train(shape_of(flow), flow, 5, 60);
        for (frame, at, value) in bends {
            sent[frame][at] = value;
        }
        let mut memory = memory();
        let mut list = packets(&mut memory, &sent);
        join(&mut memory, &mut list);
        let mut received: Vec<_> = expand(&mut memory, list).iter().map(|bytes| without_identification(bytes)).collect();
        let mut sent: Vec<_> = sent.iter().map(|bytes| without_identification(bytes)).collect();
        received.sort();
        sent.sort();
        prop_assert_eq!(received, sent);
        assert_all_free(&memory);
    }
}

/// Datagrams of one flow with these lengths of payload.
fn datagrams(ipv6: bool, lengths: &[usize]) -> Vec<Vec<u8>> {
    let shape = Shape { ipv6, udp: true, ..Shape::TCP_IPV4 };
    let datagram = |(number, length): (usize, &usize)| {
        let payload = (0..*length).map(|byte| (byte * 31 + number * 7) as u8).collect();
        frames::frame(shape, &written(1, 0, number as u16, 0, payload))
    };
    lengths.iter().enumerate().map(datagram).collect()
}

#[test]
fn datagrams_join_until_a_shorter_one_and_never_behind_it() {
    for ipv6 in [false, true] {
        // A longer one begins anew; an empty one is never part of a unit.
        let sent = datagrams(ipv6, &[100, 100, 100, 40, 100, 100, 200, 200, 0, 200, 30, 30, 30]);
        let mut memory = memory();
        let mut list = packets(&mut memory, &sent);
        assert_eq!(join(&mut memory, &mut list), Joined { units: 5, segments: 12 });
        let lengths: Vec<_> = list.iter().map(|packet| packet.gso().map(|gso| (gso.kind, gso.size))).collect();
        let unit = |size| Some((GsoKind::Udp, size));
        assert_eq!(lengths, [unit(100), unit(100), unit(200), None, unit(200), unit(30)]);
        assert_eq!(expand(&mut memory, list), sent);
        assert_all_free(&memory);
    }
}

#[test]
fn a_port_that_takes_no_units_of_datagrams_gets_none() {
    let sent = datagrams(false, &[100; 4]);
    let mut memory = memory();
    let mut list = packets(&mut memory, &sent);
    assert_eq!(Joiner::new(Kernel::detect()).join(&mut memory, &mut list, false), Joined::default());
    release(&mut memory, list);
}

#[test]
fn datagrams_without_a_checksum_or_with_a_wrong_one_stay_alone() {
    for field in [[0, 0], [0x12, 0x34]] {
        let mut sent = datagrams(false, &[100; 5]);
        sent[2][40..42].copy_from_slice(&field);
        let mut memory = memory();
        let mut list = packets(&mut memory, &sent);
        assert_eq!(join(&mut memory, &mut list), Joined { units: 2, segments: 4 });
        assert_eq!(list[1].gso(), None);
        assert_eq!(expand(&mut memory, list), sent);
    }
}

#[test]
fn datagrams_whose_checksum_is_left_open_join_unread() {
    let sent = datagrams(false, &[100, 100, 60]);
    let mut memory = memory();
    let mut list = packets(&mut memory, &sent);
    for packet in &mut list {
        memory.head_mut(packet)[40..42].copy_from_slice(&[0xab, 0xcd]);
        packet.set_checksum(Checksum::Partial { start: packet.start() as u16 + 34, offset: 6 });
    }
    assert_eq!(join(&mut memory, &mut list), Joined { units: 1, segments: 3 });
    assert_eq!(expand(&mut memory, list), sent, "whoever cuts it writes them");
}

/// Writes IPv4 and TCP checksums anew, so that what was changed before is the only fault.
fn repair(bytes: &mut [u8], shape: Shape) {
    let layout = shape.layout();
    let (network, transport) = (usize::from(layout.network_offset), usize::from(layout.transport_offset));
    let addresses = if shape.ipv6 { network + 8..transport } else { network + 12..transport };
    let pseudo = checksum::sum(&bytes[addresses]) + 6 + (bytes.len() - transport) as u32;
    bytes[transport + 16..transport + 18].fill(0);
    let tcp = checksum::finish(pseudo + checksum::sum(&bytes[transport..]));
    bytes[transport + 16..transport + 18].copy_from_slice(&tcp.to_be_bytes());
    if !shape.ipv6 {
        bytes[network + 10..network + 12].fill(0);
        let ip = checksum::finish(checksum::sum(&bytes[network..transport]));
        bytes[network + 10..network + 12].copy_from_slice(&ip.to_be_bytes());
    }
}

#[test]
fn each_rule_alone_keeps_two_segments_apart() {
    type Change = fn(&mut [u8]);
    let ipv4: &[(&str, bool, Change)] = &[
        ("nothing", true, |_| ()),
        ("destination MAC", false, |bytes| bytes[5] ^= 1),
        ("TOS", false, |bytes| bytes[15] ^= 4),
        ("ECN", false, |bytes| bytes[15] ^= 3),
        ("identification", false, |bytes| bytes[19] ^= 8),
        ("identification stands still", true, |bytes| bytes[19] = 0),
        ("don't fragment", false, |bytes| bytes[20] ^= 0x40),
        ("more fragments", false, |bytes| bytes[20] |= 0x20),
        ("fragment offset", false, |bytes| bytes[21] = 1),
        ("TTL", false, |bytes| bytes[22] ^= 1),
        ("source address", false, |bytes| bytes[29] ^= 1),
        ("destination address", false, |bytes| bytes[33] ^= 1),
        ("source port", false, |bytes| bytes[35] ^= 1),
        ("sequence", false, |bytes| bytes[41] ^= 1),
        ("acknowledgement", false, |bytes| bytes[45] ^= 1),
        ("reserved bit", false, |bytes| bytes[46] |= 1),
        ("PSH", true, |bytes| bytes[47] |= 0x08),
        ("FIN", true, |bytes| bytes[47] |= 0x01),
        ("SYN", false, |bytes| bytes[47] |= 0x02),
        ("RST", false, |bytes| bytes[47] |= 0x04),
        ("no ACK", false, |bytes| bytes[47] = 0),
        ("URG", false, |bytes| bytes[47] |= 0x20),
        ("ECE", false, |bytes| bytes[47] |= 0x40),
        ("CWR", false, |bytes| bytes[47] |= 0x80),
        ("window", false, |bytes| bytes[49] ^= 1),
        ("timestamp", false, |bytes| bytes[61] ^= 1),
        ("echoed timestamp", false, |bytes| bytes[65] ^= 1),
    ];
    let ipv6: &[(&str, bool, Change)] = &[
        ("nothing", true, |_| ()),
        ("traffic class", false, |bytes| bytes[14] ^= 1),
        ("flow label", false, |bytes| bytes[17] ^= 1),
        ("hop limit", false, |bytes| bytes[21] ^= 1),
        ("source address", false, |bytes| bytes[37] ^= 1),
        ("destination address", false, |bytes| bytes[53] ^= 1),
        ("timestamp", false, |bytes| bytes[81] ^= 1),
    ];
    let mut memory = memory();
    for (is_ipv6, changes) in [(false, ipv4), (true, ipv6)] {
        let shape = Shape { ipv6: is_ipv6, timestamps: true, ..Shape::TCP_IPV4 };
        for (name, joins, change) in changes {
            let mut sent = train(shape, 1, 2, 200);
            change(&mut sent[1]);
            repair(&mut sent[1], shape);
            let mut list = packets(&mut memory, &sent);
            let joined = join(&mut memory, &mut list);
            assert_eq!(joined.units == 1, *joins, "{name}");
            if !joins {
                let after: Vec<_> = list.iter().map(|packet| frames::flat(&memory, packet)).collect();
                assert_eq!(after, sent, "{name}");
            }
            release(&mut memory, list);
        }
    }
}

#[test]
fn identifiers_that_stand_still_need_dont_fragment_and_do_not_change_their_way() {
    let shape = Shape::TCP_IPV4;
    let mut memory = memory();
    let mut units = |identifications: [u16; 4], dont_fragment: bool| {
        let mut sent = train(shape, 1, 4, 80);
        for (bytes, identification) in sent.iter_mut().zip(identifications) {
            bytes[18..20].copy_from_slice(&identification.to_be_bytes());
            bytes[20] = if dont_fragment { 0x40 } else { 0 };
            repair(bytes, shape);
        }
        let mut list = packets(&mut memory, &sent);
        let joined = join(&mut memory, &mut list);
        let lengths: Vec<usize> = list.iter().map(Packet::length).collect();
        release(&mut memory, list);
        (joined.segments, lengths)
    };
    assert_eq!(units([5, 6, 7, 8], false), (4, vec![54 + 320]));
    assert_eq!(units([0, 0, 0, 0], true), (4, vec![54 + 320]));
    assert_eq!(units([0, 0, 0, 0], false), (0, vec![134; 4]));
    assert_eq!(units([5, 6, 6, 7], true), (4, vec![54 + 160, 54 + 160]));
    assert_eq!(units([5, 5, 6, 7], true), (4, vec![54 + 160, 54 + 160]));
    assert_eq!(units([0xffff, 0, 1, 2], true), (4, vec![54 + 320]));
}

#[test]
fn short_segments_and_push_end_a_unit() {
    let mut memory = memory();
    let lengths_after = |memory: &mut FrameMemory, segments: &[(usize, u8)]| {
        let mut sequence = 0;
        let mut sent = Vec::new();
        for (number, (length, flags)) in segments.iter().enumerate() {
            let segment = written(1, sequence, number as u16, *flags, vec![number as u8; *length]);
            sent.push(frames::frame(Shape::TCP_IPV4, &segment));
            sequence += *length as u32;
        }
        let mut list = packets(memory, &sent);
        join(memory, &mut list);
        let lengths: Vec<usize> = list.iter().map(|packet| packet.length() - 54).collect();
        let flags: Vec<u8> = list.iter().map(|packet| memory.head(packet)[47]).collect();
        release(memory, list);
        (lengths, flags)
    };
    let (a, p) = (ACK, ACK_PSH);
    assert_eq!(
        lengths_after(&mut memory, &[(90, a), (90, a), (40, a), (90, a), (90, a)]),
        (vec![220, 180], vec![a, a])
    );
    assert_eq!(lengths_after(&mut memory, &[(90, a), (90, p), (90, a), (90, a)]), (vec![180, 180], vec![p, a]));
    assert_eq!(lengths_after(&mut memory, &[(90, p), (90, a), (90, a)]), (vec![90, 180], vec![p, a]));
    assert_eq!(lengths_after(&mut memory, &[(90, a), (91, a), (91, a)]), (vec![90, 182], vec![a, a]));
    assert_eq!(lengths_after(&mut memory, &[(90, a), (0, a), (90, a)]), (vec![90, 0, 90], vec![a; 3]));
}

#[test]
fn a_wrong_checksum_goes_on_alone_and_parts_its_flow() {
    let mut memory = memory();
    for broken in 0..4 {
        let mut sent = train(Shape::TCP_IPV4, 1, 4, 100);
        sent[broken][100] ^= 1;
        let mut list = packets(&mut memory, &sent);
        let joined = join(&mut memory, &mut list);
        assert_eq!(joined.segments, [3, 2, 2, 3][broken], "{broken}");
        let alone = list.iter().find(|packet| frames::flat(&memory, packet) == sent[broken]).expect("as it came");
        assert_eq!((alone.gso(), alone.checksum()), (None, Checksum::Complete));
        release(&mut memory, list);
    }
}

#[test]
fn partial_checksums_and_units_are_left_alone() {
    let mut memory = memory();
    let sent = train(Shape::TCP_IPV4, 1, 2, 100);
    for second_is_unit in [false, true] {
        let mut list = packets(&mut memory, &sent);
        let start = list[1].start() as u16 + 34;
        if second_is_unit {
            list[1].set_gso(Some(Gso { kind: GsoKind::TcpIpv4, size: 50, ecn: false }));
        } else {
            list[1].set_checksum(Checksum::Partial { start, offset: 16 });
        }
        assert_eq!(join(&mut memory, &mut list), Joined::default());
        assert_eq!(list.len(), 2);
        release(&mut memory, list);
    }
}

#[test]
fn a_fragment_of_an_unknown_flow_parts_all_flows() {
    let mut memory = memory();
    let mut sent = train(Shape::TCP_IPV4, 1, 3, 100);
    let mut fragment = sent[2].clone();
    fragment[21] = 1;
    repair(&mut fragment, Shape::TCP_IPV4);
    sent.insert(1, fragment);
    let mut list = packets(&mut memory, &sent);
    let joined = join(&mut memory, &mut list);
    assert_eq!((joined.segments, list.len()), (2, 3));
    release(&mut memory, list);
}

#[test]
fn units_are_bounded_in_parts_bytes_and_number() {
    let mut memory = memory();
    // Parts: 64 small segments, then the next unit.
    let mut list = packets(&mut memory, &train(Shape::TCP_IPV4, 1, 100, 50));
    assert_eq!(join(&mut memory, &mut list), Joined { units: 2, segments: 100 });
    assert_eq!(memory.parts(&list[0]).count(), limits::CHAIN_SEGMENTS);
    release(&mut memory, list);
    // Bytes: 46 segments of 1,398 bytes are 64,348 with headers, 47 are 65,746 and too long.
    let mut list = packets(&mut memory, &train(Shape::TCP_IPV4, 1, 50, 1398));
    assert_eq!(join(&mut memory, &mut list), Joined { units: 2, segments: 50 });
    assert_eq!(list[0].length() - 54, 46 * 1398);
    release(&mut memory, list);
    // Flows: with as many as may be open all join, with one more in turn none does; nothing is lost or held.
    for (flows, units) in [(limits::OPEN_JOINS, limits::OPEN_JOINS), (limits::OPEN_JOINS + 1, 0)] {
        let trains: Vec<_> = (0..flows).map(|flow| train(Shape::TCP_IPV4, flow as u16, 5, 100)).collect();
        let sent: Vec<_> = (0..5).flat_map(|number| trains.iter().map(move |train| train[number].clone())).collect();
        let mut list = packets(&mut memory, &sent);
        assert_eq!(join(&mut memory, &mut list).units, units);
        let received = expand(&mut memory, list);
        assert_eq!(by_flow(&received), by_flow(&sent));
        assert_all_free(&memory);
    }
}

#[test]
fn frames_in_chains_join_too() {
    let mut memory = memory();
    let sent = train(Shape::TCP_IPV4, 1, 6, 1399);
    let mut list: Vec<_> = sent.iter().map(|bytes| frames::packet(&mut memory, bytes, 101, 333, None)).collect();
    assert_eq!(join(&mut memory, &mut list), Joined { units: 1, segments: 6 });
    let received = expand(&mut memory, list);
    assert_eq!(received, sent);
    assert_all_free(&memory);
}

#[test]
fn a_list_longer_than_the_scratch_passes_as_it_is() {
    let layout = FrameMemoryLayout { head_frames: 2048, big_buffers: 0 };
    let mut memory = FrameMemory::new(layout).expect("memory");
    let mut list = packets(&mut memory, &train(Shape::TCP_IPV4, 1, LIST_PACKETS + 1, 10));
    assert_eq!(join(&mut memory, &mut list), Joined::default());
    assert_eq!(list.len(), LIST_PACKETS + 1);
    release(&mut memory, list);
}
