//! Each segment is compared, byte for byte, with a frame that etherparse writes from scratch.

use proptest::prelude::*;

use super::super::frames::{self, Segment, Shape};
use super::*;
use crate::packet::{Checksum, FrameMemoryLayout, Gso, PortIndex};

const ACK: u8 = 0x10;

fn memory() -> FrameMemory {
    FrameMemory::new(FrameMemoryLayout { head_frames: 480, big_buffers: 2 }).expect("memory")
}

fn whole(flags: u8, payload: Vec<u8>) -> Segment {
    let outer_identification = 0xfffe;
    Segment { flow: 1, sequence: 0xffff_f000, identification: 0xfffd, outer_identification, flags, payload }
}

/// The definition: what each segment of `whole` looks like.
fn expected(shape: Shape, whole: &Segment, size: usize) -> Vec<Vec<u8>> {
    let pieces: Vec<&[u8]> = if whole.payload.is_empty() { vec![&[]] } else { whole.payload.chunks(size).collect() };
    let last = pieces.len() - 1;
    let segment = |(number, payload): (usize, &&[u8])| {
        let mut flags = whole.flags;
        if number != 0 {
            flags &= 0x7f;
        }
        if number != last {
            flags &= !0x09;
        }
        frames::frame(
            shape,
            &Segment {
                flow: whole.flow,
                sequence: whole.sequence.wrapping_add((number * size) as u32),
                identification: whole.identification.wrapping_add(number as u16),
                outer_identification: whole.outer_identification.wrapping_add(number as u16),
                flags,
                payload: payload.to_vec(),
            },
        )
    };
    pieces.iter().enumerate().map(segment).collect()
}

fn gso(shape: Shape, size: usize) -> Option<Gso> {
    Some(Gso { kind: shape.kind(), size: size as u16, ecn: false })
}

fn assert_all_free(memory: &FrameMemory) {
    assert_eq!((memory.free_heads(), memory.free_bigs()), (480, 2));
}

proptest! {
    #[test]
    fn segments_are_the_frames_a_sender_would_have_written(
        shape in Shape::any(),
        payload in prop::collection::vec(any::<u8>(), 0..6000),
        size in 60usize..1500,
        flags: u8,
        split in 0usize..200,
        part in prop::sample::select(vec![1usize, 61, 333, 1398, 1399, 9000]),
        partial: bool,
    ) {
        // Parts of one byte each need a short payload to fit the memory.
        let payload = if part == 1 { payload[..payload.len().min(300)].to_vec() } else { payload };
        let mut memory = memory();
        let whole = whole(flags | ACK, payload);
        let layout = shape.layout();
        let bytes = frames::unit(shape, &whole);
        for kernel in Kernel::available() {
            let head = usize::from(layout.payload_offset) + split;
            let mut packet = frames::packet(&mut memory, &bytes, head, part, gso(shape, size));
            packet.ingress = PortIndex(3);
            if partial {
                let start = packet.start() as u16 + layout.transport_offset;
                packet.set_checksum(Checksum::Partial { start, offset: if shape.udp { 6 } else { 16 } });
            }
            let mut out = Segmenter::segment_list();
            let cut = Segmenter::new(kernel).cut(&mut memory, packet, &layout, 2000, &mut out);
            let expected = expected(shape, &whole, size);
            prop_assert_eq!(cut, Ok(expected.len()));
            prop_assert_eq!(out.len(), expected.len());
            for (segment, expected) in out.drain(..).zip(&expected) {
                prop_assert!(!segment.is_chained() && segment.headroom() >= limits::HEADROOM_BYTES);
                prop_assert_eq!((segment.checksum(), segment.gso(), segment.ingress), (Checksum::Complete, None, PortIndex(3)));
                prop_assert_eq!(memory.head(&segment), &expected[..]);
                memory.release(segment);
            }
            assert_all_free(&memory);
        }
    }

    #[test]
    fn nonsense_metadata_is_refused_and_never_leaks(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        kind in prop::sample::select(vec![GsoKind::TcpIpv4, GsoKind::TcpIpv6, GsoKind::Udp]),
        size: u16,
        offsets: [u8; 5],
        with_outer: bool,
        is_ipv6: bool,
    ) {
        let mut memory = memory();
        let mut packet = frames::packet(&mut memory, &bytes, 150, 100, None);
        packet.set_gso(Some(Gso { kind, size, ecn: false }));
        let [a, b, c, d, e] = offsets.map(u16::from);
        let outer = OuterLayout { network_offset: d, udp_offset: e, is_ipv6 };
        let outer = with_outer.then_some(outer);
        let layout = Layout { outer, network_offset: a, transport_offset: b, payload_offset: c };
        let mut out = Segmenter::segment_list();
        let result = Segmenter::new(Kernel::SCALAR).cut(&mut memory, packet, &layout, 2000, &mut out);
        prop_assert_eq!(result.unwrap_or(0), out.len());
        out.drain(..).for_each(|segment| memory.release(segment));
        assert_all_free(&memory);
    }

    #[test]
    fn headers_bent_in_one_byte_never_panic_or_leak(
        shape in Shape::any(),
        at in 0usize..150,
        value: u8,
        shift in -3i32..4,
    ) {
        let mut memory = memory();
        let mut bytes = frames::unit(shape, &whole(ACK, vec![7; 500]));
        bytes[at] = value;
        let mut layout = shape.layout();
        layout.transport_offset = layout.transport_offset.wrapping_add_signed(shift as i16);
        let packet = frames::packet(&mut memory, &bytes, 180, 77, gso(shape, 100));
        let mut out = Segmenter::segment_list();
        let result = Segmenter::new(Kernel::detect()).cut(&mut memory, packet, &layout, 2000, &mut out);
        prop_assert_eq!(result.unwrap_or(0), out.len());
        out.drain(..).for_each(|segment| memory.release(segment));
        assert_all_free(&memory);
    }
}

#[test]
fn limits_drop_the_whole_unit() {
    let shape = Shape::TCP_IPV4;
    let mut memory = memory();
    let segmenter = Segmenter::new(Kernel::detect());
    let mut try_cut = |payload: usize, size: usize, frame_limit: usize, room: usize, keep_free: usize| {
        let bytes = frames::unit(shape, &whole(ACK, vec![9; payload]));
        let packet = frames::packet(&mut memory, &bytes, 100, 60_000, gso(shape, size));
        let held: Vec<_> = (keep_free..memory.free_heads()).filter_map(|_| memory.allocate_head()).collect();
        let mut out = Vec::with_capacity(room);
        let result = segmenter.cut(&mut memory, packet, &shape.layout(), frame_limit, &mut out);
        assert_eq!(result.unwrap_or(0), out.len());
        out.drain(..).for_each(|segment| memory.release(segment));
        held.into_iter().for_each(|frame| memory.release_frame(frame));
        assert_all_free(&memory);
        result
    };
    // 64 KiB at the smallest TCP default fit; at a segment size of 88 they are 745 segments.
    assert_eq!(try_cut(65_000, 536, 1514, 128, 200), Ok(122));
    assert_eq!(try_cut(128 * 88, 88, 1514, 128, 200), Ok(128));
    assert_eq!(try_cut(128 * 88 + 1, 88, 1514, 128, 200), Err(DropReason::Oversized));
    assert_eq!(try_cut(65_000, 88, 1514, 128, 200), Err(DropReason::Oversized));
    // Segments of exactly the frame limit, and one byte more.
    assert_eq!(try_cut(5000, 1460, 1514, 128, 200), Ok(4));
    assert_eq!(try_cut(5000, 1461, 1514, 128, 200), Err(DropReason::Oversized));
    // Beyond a head frame, whatever the port takes.
    assert_eq!(try_cut(60_000, 8948, 9018, 128, 200), Err(DropReason::Oversized));
    // The list of the caller does not grow.
    assert_eq!(try_cut(5000, 1000, 1514, 4, 200), Err(DropReason::TransmitQueueFull));
    // The last frame is missing: none is taken.
    assert_eq!(try_cut(5000, 1000, 1514, 128, 4), Err(DropReason::FramesExhausted));
    assert_eq!(try_cut(5000, 1000, 1514, 128, 5), Ok(5));
    assert_eq!(try_cut(5000, 0, 1514, 128, 5), Err(DropReason::GsoMalformed));
}

#[test]
fn an_interface_whose_segments_do_not_fit_a_head_frame_builds_no_units() {
    let longest = limits::HEAD_FRAME_BYTES - limits::HEADROOM_BYTES - BESIDE_MTU_BYTES;
    assert_eq!(segments_of_unit(longest as u32), limits::SEGMENTS_PER_UNIT as u32);
    assert_eq!(segments_of_unit(longest as u32 + 1), 1);
}
