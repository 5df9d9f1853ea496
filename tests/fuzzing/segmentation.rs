//! Units and what their senders say of them: a virtio-net header that need not fit its frame, and units that are sound.

use std::cell::RefCell;

use millrace_engine::limits;
use millrace_engine::packet::parse;
use millrace_engine::port::memory::WireFrame;
use millrace_engine::port::tap::vnet_header::{VNET_HEADER_BYTES, VnetHeader};
use millrace_engine::testing::{ACK, PSH, checksums_valid};

use super::{frame_of, packets, with_length};
use crate::anything::AnyNode;
use crate::random::Random;

thread_local! {
    static NODE: RefCell<AnyNode> = RefCell::new(AnyNode::new());
}

/// Ports that understand units, behind which pods and stations can say anything of them.
const TAPS: [u16; 4] = [1, 2, 10, 11];
/// Longest frame whose header may speak of all of it: what a TAP reads into the head frame.
const HEAD: usize = 1_500;

/// A sound unit whose form the bytes behind the first choose, if that is odd; else frames, each behind a byte for its
/// port, a virtio-net header, two bytes that say how much longer than its head it is, and its length in two bytes.
///
/// # Panics
/// If the switch breaks a promise, a segment of a sound unit has a wrong checksum, or its bytes are not those of the unit.
pub fn run(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else { return };
    NODE.with_borrow_mut(|node| {
        if first % 2 == 1 {
            sound(node, rest)
        } else {
            any(node, rest)
        }
        node.rest();
        node.assert_whole();
    });
}

fn any(node: &mut AnyNode, mut input: &[u8]) {
    while let [port, rest @ ..] = input
        && let Some((header, [more, less, rest @ ..])) = rest.split_first_chunk::<VNET_HEADER_BYTES>()
        && let Some((head, behind)) = frame_of(rest)
    {
        input = behind;
        let head = &head[..head.len().min(HEAD)];
        let mut bytes = head.to_vec();
        bytes.resize(head.len() + usize::from(u16::from_be_bytes([*more, *less])), 0x5a);
        let Ok(told) = VnetHeader::parse(header, head.len(), bytes.len()) else { continue };
        let again = VnetHeader { header_bytes: 0, ..told };
        let written = VnetHeader::parse(&again.bytes(), head.len(), bytes.len());
        assert_eq!(written.map(|read| (read.partial_checksum, read.gso)), Ok((told.partial_checksum, told.gso)));
        let frame = WireFrame { bytes, partial_checksum: told.partial_checksum, gso: told.gso };
        node.queue(TAPS[usize::from(*port) % TAPS.len()], frame);
    }
}

/// What a sound unit is, and where it goes.
fn sound(node: &mut AnyNode, choices: &[u8]) {
    let mut random = Random::chosen_by(choices);
    let targets = ["10.1.0.6", "2001:db8:1::6", "10.2.0.9", "2001:db8:2::9", "10.3.0.9", "2001:db8:3::9"];
    let to = random.below(targets.len());
    let built = AnyNode::from_pod(targets[to]).ttl(2 + random.below(250) as u8);
    let is_tcp = random.below(3) > 0;
    let built = match (is_tcp, random.below(2)) {
        (false, _) => built.udp(),
        (true, 0) => built.tcp([ACK, ACK | PSH][random.below(2)]),
        (true, _) => built.tcp(ACK).tcp_options(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]),
    };
    let (size, length) = (1 + random.below(1_400) as u16, random.below(61_000));
    let segments = length.div_ceil(usize::from(size));
    if segments > 200 {
        return;
    }
    let built = built.ports(random.below(65_536) as u16, 5_000).payload_of(length);
    let unit = if segments > 1 { built.gso(size) } else { built.partial_checksum() }.wire();
    drop(node.sent(AnyNode::UPLINK));
    drop(node.sent(AnyNode::OTHER_POD));
    node.queue(AnyNode::POD, unit);
    if to < 2 {
        check_near(&node.sent(AnyNode::OTHER_POD), length, size);
    } else {
        check_far(&node.sent(AnyNode::UPLINK), length, size, segments);
    }
    // Budgets of errors and buckets fill again.
    node.pass(std::time::Duration::from_millis(50));
}

/// A TAP gets the unit whole, or nothing if its segments would be too long.
fn check_near(sent: &[WireFrame], length: usize, size: u16) {
    match sent {
        [frame] => assert_eq!(payload(&frame.bytes, false), length),
        [] => assert!(usize::from(size).min(length) > 1_300, "segments of {size} bytes fit the pod next door"),
        _ => panic!("{} frames for the pod next door", sent.len()),
    }
}

/// The uplink gets segments, each sound and none longer than it can be, or nothing if they would be too long.
fn check_far(sent: &[WireFrame], length: usize, size: u16, segments: usize) {
    if sent.is_empty() {
        assert!(usize::from(size).min(length) > 1_300, "segments of {size} bytes fit the uplink");
        return;
    }
    let mut total = 0;
    for frame in sent {
        assert!(frame.bytes.len() <= 1_514 && frame.gso.is_none() && frame.partial_checksum.is_none());
        checksums_valid(&frame.bytes).expect("segments are sound");
        total += payload(&frame.bytes, true);
    }
    assert_eq!((total, sent.len()), (length, segments.max(1)), "bytes and segments");
}

/// Bytes behind the headers of layer 4, of the inner packet if it is tunnelled.
fn payload(bytes: &[u8], tunnelled: bool) -> usize {
    let outer = parse::parse(bytes, bytes.len()).expect("a packet");
    let inner = if tunnelled { parse::parse_vxlan(bytes, &outer).expect("a tunnelled packet").1 } else { 0 };
    let bytes = &bytes[inner..];
    let headers = parse::parse(bytes, bytes.len()).expect("a packet");
    let transport = usize::from(headers.transport_offset);
    let header = if headers.protocol == parse::protocol::UDP { 8 } else { usize::from(bytes[transport + 12] >> 4) * 4 };
    assert!(bytes.len() <= limits::PACKET_BYTES);
    bytes.len() - transport - header
}

/// One packet of every kind under headers of every kind, and sound units.
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let header = |flags: u8, kind: u8, size: u16, start: u16, offset: u16| {
        let mut header = [0; VNET_HEADER_BYTES];
        (header[0], header[1]) = (flags, kind);
        for (at, field) in [(4, size), (6, start), (8, offset)] {
            header[at..at + 2].copy_from_slice(&field.to_ne_bytes());
        }
        header
    };
    let headers =
        [header(0, 0, 0, 0, 0), header(1, 1, 100, 34, 16), header(1, 4, 100, 54, 16), header(1, 5, 100, 34, 6)];
    let mut seeds: Vec<(String, Vec<u8>)> = packets::short_packets()
        .map(|(name, bytes)| {
            let mut input = vec![0];
            for (port, header) in headers.iter().enumerate() {
                input.push(port as u8);
                input.extend_from_slice(header);
                input.extend_from_slice(&(port as u16 * 700).to_be_bytes());
                input.extend(with_length(&bytes));
            }
            (name, input)
        })
        .collect();
    for to in 0..6u8 {
        for (size, length) in [(1_200u16, 50_000u16), (700, 1_400), (1_399, 9)] {
            let input: Vec<u8> =
                [1, to, 60, to, 0, 0].into_iter().chain(size.to_be_bytes()).chain(length.to_be_bytes()).collect();
            seeds.push((format!("unit-{to}-{length}"), input));
        }
    }
    seeds
}
