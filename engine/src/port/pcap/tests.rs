//! Captures that are right, cut short and damaged; a replay that gives the same bytes twice.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::packet::Mac;
use crate::switch::Switch;
use crate::testing::node::{GATEWAY_MAC, Node, TestPeer, TestPod, pods_snapshot, uplink_mac};
use crate::testing::{ACK, checksums_valid, describe, frame, valid_packets};

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("memory").clone()
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("memory").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read(bytes: Vec<u8>) -> Result<Capture, CaptureError> {
    Capture::from_bytes(Path::new("test.pcap"), bytes)
}

fn fault(bytes: Vec<u8>) -> (usize, CaptureFault) {
    match read(bytes) {
        Err(CaptureError::Malformed { offset, fault, .. }) => (offset, fault),
        other => panic!("not malformed: {other:?}"),
    }
}

/// Numbers in one byte order.
fn fields(big: bool, fields: &[u32]) -> Vec<u8> {
    fields.iter().flat_map(|field| if big { field.to_be_bytes() } else { field.to_le_bytes() }).collect()
}

fn version(big: bool, major: u16, minor: u16) -> u32 {
    let (first, second) = if big { (major, minor) } else { (minor, major) };
    u32::from(first) << 16 | u32::from(second)
}

/// A classic file: frames with their seconds and fractions.
fn classic(magic: u32, big: bool, frames: &[(u32, u32, &[u8])]) -> Vec<u8> {
    let mut file = fields(big, &[magic, version(big, 2, 4), 0, 0, 65_535, 1]);
    for (seconds, fraction, bytes) in frames {
        file.extend(fields(big, &[*seconds, *fraction, bytes.len() as u32, bytes.len() as u32]));
        file.extend_from_slice(bytes);
    }
    file
}

fn block(big: bool, kind: u32, body: &[u8]) -> Vec<u8> {
    let length = 12 + body.len() as u32;
    [fields(big, &[kind, length]), body.to_vec(), fields(big, &[length])].concat()
}

fn section(big: bool) -> Vec<u8> {
    block(big, 0x0a0d_0d0a, &fields(big, &[0x1a2b_3c4d, version(big, 1, 0), u32::MAX, u32::MAX]))
}

/// An interface whose options are `[code, value]`, values of up to four bytes, or of eight.
fn interface(big: bool, snap_length: u32, options: &[(u16, &[u8])]) -> Vec<u8> {
    let number = |number: u16| if big { number.to_be_bytes() } else { number.to_le_bytes() };
    let mut body = [&number(1)[..], &[0, 0], &fields(big, &[snap_length])].concat();
    for (code, value) in options {
        body.extend([number(*code), number(value.len() as u16)].concat());
        body.extend_from_slice(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    block(big, 1, &body)
}

fn enhanced(big: bool, interface: u32, stamp: u64, bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len() as u32;
    let mut body = fields(big, &[interface, (stamp >> 32) as u32, stamp as u32, length, length]);
    body.extend_from_slice(bytes);
    body.resize(body.len().next_multiple_of(4), 0);
    block(big, 6, &body)
}

fn simple(big: bool, original: u32, bytes: &[u8]) -> Vec<u8> {
    let mut body = fields(big, &[original]);
    body.extend_from_slice(bytes);
    body.resize(body.len().next_multiple_of(4), 0);
    block(big, 3, &body)
}

fn times_and_bytes(capture: &Capture) -> Vec<(u64, &[u8])> {
    capture.frames().map(|frame| (frame.time, frame.bytes)).collect()
}

#[test]
fn reads_classic_files_of_both_orders_and_units() {
    let frames: [(u32, u32, &[u8]); 3] = [(5, 700, b"first frame"), (5, 900, b"second"), (5, 800, b"a step back")];
    for big in [false, true] {
        for (magic, unit) in [(0xa1b2_c3d4, 1_000), (0xa1b2_3c4d, 1)] {
            let capture = read(classic(magic, big, &frames)).expect("capture");
            let base = 5_000_000_000;
            let expected: [(u64, &[u8]); 3] =
                [(base + 700 * unit, frames[0].2), (base + 900 * unit, frames[1].2), (base + 900 * unit, frames[2].2)];
            assert_eq!(times_and_bytes(&capture), expected);
        }
    }
}

#[test]
fn reads_pcapng_of_both_orders_with_every_resolution() {
    for big in [false, true] {
        let offset = if big { 3u64.to_be_bytes() } else { 3u64.to_le_bytes() };
        let file = [
            section(big),
            interface(big, 0, &[]),
            interface(big, 0, &[(9, &[9]), (14, &offset)]),
            interface(big, 8, &[(2, b"eth"), (9, &[0x80 | 10])]),
            block(big, 0x0bad, &[1, 2, 3, 4]),
            enhanced(big, 0, 7_000_001, b"microseconds"),
            enhanced(big, 1, 6_000_000_007, b"nanoseconds, moved"),
            enhanced(big, 2, 1024 * 10 + 512, b"binary"),
            simple(big, 3, b"all"),
            // A second section forgets the first's interfaces, and may have another byte order.
            section(!big),
            interface(!big, 4, &[(9, &[0])]),
            enhanced(!big, 0, 11, b"seconds"),
            simple(!big, 9, b"cut!"),
        ];
        let capture = read(file.concat()).expect("capture");
        let expected: [(u64, &[u8]); 6] = [
            (7_000_001_000, b"microseconds"),
            (9_000_000_007, b"nanoseconds, moved"),
            (10_500_000_000, b"binary"),
            (10_500_000_000, b"all"),
            (11_000_000_000, b"seconds"),
            (11_000_000_000, b"cut!"),
        ];
        assert_eq!(times_and_bytes(&capture), expected);
    }
}

#[test]
fn what_is_recorded_reads_back() {
    let sink = Memory::default();
    let recording = Recording::new(sink.clone());
    let long = "ß".repeat(600);
    let mut expected = Vec::new();
    for (number, (name, bytes)) in valid_packets().into_iter().enumerate() {
        let comment = match number % 3 {
            0 => None,
            1 => Some(name.to_owned()),
            _ => Some(long.clone()),
        };
        let time = 1_790_000_000_123_456_789 + number as u64;
        let (front, back) = bytes.split_at(bytes.len() / 2);
        assert!(recording.write(time, [front, back].into_iter(), comment.as_deref()));
        expected.push((time, bytes, comment.map(|text| text.chars().take(512).collect::<String>())));
    }
    assert_eq!(recording.finish().expect("written"), expected.len() as u64);
    let capture = read(sink.bytes()).expect("capture");
    let found: Vec<_> = capture
        .frames()
        .map(|frame| (frame.time, frame.bytes.to_vec(), frame.comment.map(ToOwned::to_owned)))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn a_failed_write_ends_the_recording_and_is_told_once() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let recording = Recording::new(Full(220));
    let write = || recording.write(1, [&[7u8; 40][..]].into_iter(), None);
    assert_eq!([write(), write(), write(), write()], [true, true, false, false]);
    assert_eq!(recording.finish().expect_err("full").kind(), io::ErrorKind::StorageFull);
}

#[test]
fn every_fault_is_named_with_its_place() {
    use CaptureFault::*;
    let head = || section(false);
    let with = |blocks: &[Vec<u8>]| [head(), blocks.concat()].concat();
    let ethernet = || interface(false, 0, &[]);
    let at = head().len();
    let packet = at + ethernet().len();
    let mut unrepeated = ethernet();
    *unrepeated.last_mut().expect("byte") ^= 1;
    let mut wifi = classic(0xa1b2_c3d4, false, &[]);
    wifi[20] = 105;
    let mut third = classic(0xa1b2_c3d4, true, &[]);
    third[5] = 3;
    let mut lying = enhanced(false, 0, 1, b"four");
    lying[20] = 40;
    lying[24] = 40;
    let mut disordered = head();
    disordered[8] = 0;
    let cases = [
        (b"GIF89a, no capture".to_vec(), (0, NotACapture)),
        (vec![0xd4, 0xc3], (0, Truncated)),
        (wifi, (0, LinkType(105))),
        (third, (0, Version(3, 4))),
        (fields(false, &[0xa1b2_c3d4, version(false, 2, 4), 0]), (0, Truncated)),
        ([classic(0xa1b2_c3d4, true, &[]), fields(true, &[1, 2, 5, 4])].concat(), (24, FrameLength(5))),
        ([classic(0xa1b2_c3d4, true, &[]), fields(true, &[1, 2, 70_000, 70_000])].concat(), (24, FrameLength(70_000))),
        (disordered, (0, NotACapture)),
        (with(&[block(false, 1, &[105, 0, 0, 0, 0, 0, 0, 0])]), (at, LinkType(105))),
        (with(&[unrepeated]), (at, BlockLength(20))),
        (with(&[fields(false, &[5, 8, 8])]), (at, BlockLength(8))),
        (with(&[fields(false, &[5, u32::MAX, 8])]), (at, Truncated)),
        (with(&[block(false, 1, &[1, 0, 0, 0])]), (at, BlockLength(16))),
        (with(&[interface(false, 0, &[(9, &[20])])]), (at, TimeResolution(20))),
        (with(&[ethernet(), enhanced(false, 1, 0, b"x")]), (packet, Interface(1))),
        (with(&[ethernet(), enhanced(false, 0, u64::MAX, b"x")]), (packet, TimeStamp)),
        (with(&[ethernet(), lying]), (packet, BlockLength(36))),
        (with(&[simple(false, 1, b"x")]), (at, Interface(0))),
        (with(&[ethernet(), simple(false, 9, b"x")]), (packet, BlockLength(20))),
        (with(&[block(false, 2, &[0; 20])]), (at, ObsoletePacketBlock)),
    ];
    for (number, (file, expected)) in cases.into_iter().enumerate() {
        assert_eq!(fault(file), expected, "case {number}");
    }
    let error = read(b"GIF8".to_vec()).expect_err("no capture");
    assert_eq!(error.to_string(), "test.pcap: at byte 0: neither a pcap nor a pcapng file begins like this");
    assert!(matches!(Capture::open(Path::new("/nowhere/at.all")), Err(CaptureError::Read { .. })));
}

fn whole_files() -> Vec<Vec<u8>> {
    let sink = Memory::default();
    let recording = Recording::new(sink.clone());
    for number in 0..3u8 {
        recording.write(u64::from(number), [&[number; 61][..]].into_iter(), Some("noted"));
    }
    let mixed =
        [section(true), interface(true, 0, &[(9, &[6])]), enhanced(true, 0, 5, &[1; 33]), simple(true, 3, &[2; 3])];
    vec![
        classic(0xa1b2_c3d4, false, &[(1, 2, &[3; 60]), (1, 3, &[4; 61])]),
        classic(0xa1b2_3c4d, true, &[(1, 2, &[3; 60])]),
        sink.bytes(),
        mixed.concat(),
    ]
}

#[test]
fn a_file_cut_anywhere_is_refused_or_ends_at_a_frame() {
    for whole in whole_files() {
        let frames = read(whole.clone()).expect("whole").len();
        let mut complete = 0;
        for length in 0..whole.len() {
            match read(whole[..length].to_vec()) {
                Ok(capture) => {
                    complete += 1;
                    assert!(capture.len() < frames);
                }
                Err(CaptureError::Malformed { offset, .. }) => assert!(offset <= length),
                Err(other) => panic!("{other}"),
            }
        }
        // A cut is unseen only where a header, block or record ends.
        assert!(complete <= frames + 1, "{complete} of {frames}");
    }
}

proptest! {
    #[test]
    fn damage_never_panics(
        which in 0usize..4,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let mut file = whole_files()[which].clone();
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Ok(capture) = read(file) {
            let times: Vec<u64> = capture.frames().map(|frame| frame.time).collect();
            prop_assert!(times.is_sorted() && times.len() == capture.len());
        }
    }

    #[test]
    fn garbage_never_panics(magic in 0usize..4, bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let start = whole_files()[magic][..28].to_vec();
        if let Ok(capture) = read([start, bytes].concat()) {
            prop_assert!(capture.frames().all(|frame| frame.bytes.len() <= limits::PACKET_BYTES));
        }
    }
}

const POD: Mac = Mac([2, 0, 0x5e, 0, 0x53, 5]);

fn pods_and_a_peer() -> crate::tables::Snapshot {
    let pod =
        |port: u16, mac: Mac, address: &str| TestPod { port, mac, addresses: vec![address.parse().expect("address")] };
    let peer = TestPeer {
        address: "192.0.2.2".parse().expect("address"),
        source: "192.0.2.1".parse().expect("address"),
        tunnel_mac: Mac([2, 0, 0x5e, 0, 2, 2]),
        prefixes: vec!["10.2.0.0/24".parse().expect("prefix")],
    };
    let pods = [pod(1, POD, "10.1.0.5"), pod(2, Mac([2, 0, 0x5e, 0, 0x53, 6]), "10.1.0.6")];
    pods_snapshot(&pods, 0, Mac([2, 0, 0x5e, 0, 2, 1]), &[peer])
}

/// What a pod sends and what comes over the tunnel, recorded as a capture file each.
fn traffic() -> [Arc<Capture>; 2] {
    let files = [Memory::default(), Memory::default()];
    let [pod, uplink] = files.each_ref().map(|file| Recording::new(file.clone()));
    let gateway = GATEWAY_MAC;
    let outer = || frame().from("02:ff:00:00:00:01", "192.0.2.2").to(uplink_mac(0), "192.0.2.1").ports(50_000, 8472);
    for number in 0..300u16 {
        let time = 1_790_000_000_000_000_000 + u64::from(number) * 1_000_000;
        let to = ["10.1.0.6", "10.2.0.7", "10.9.9.9"][usize::from(number) % 3];
        let sent = frame().from(POD, "10.1.0.5").to(gateway, to).tcp(ACK).ports(4000 + number % 7, 80).payload_of(70);
        pod.write(time, [&sent.build()[..]].into_iter(), None);
        let inner = frame().from("02:00:5e:00:02:02", "10.2.0.7").to("02:00:5e:00:02:01", "10.1.0.5");
        let came = inner.udp().ports(53, 4000 + number % 5).payload_of(40).inside_vxlan(1, outer());
        // Half of them at the pod's instants, half between.
        uplink.write(time + u64::from(number % 2) * 500_000, [&came.build()[..]].into_iter(), None);
    }
    files.map(|file| Arc::new(read(file.bytes()).expect("capture")))
}

/// Replays the traffic through a node; returns what it sent out of the uplink and both pods, as files.
fn replay(captures: &[Arc<Capture>; 2]) -> [Vec<u8>; 3] {
    let mut node = Node::new(1);
    let mut replay = Replay::new(node.clock.clone(), captures.iter().map(AsRef::as_ref));
    let sinks = [Memory::default(), Memory::default(), Memory::default()];
    let [uplink, pod, other] = sinks.each_ref().map(|sink| Recording::new(sink.clone()));
    let empty = Arc::new(Capture::default());
    let queues = [(0, &captures[1], &uplink), (1, &captures[0], &pod), (2, &empty, &other)];
    for (port, capture, recording) in queues {
        let capabilities = PcapQueue::wire(1500);
        let queue = replay.queue(PortIndex(port), Arc::clone(capture), Some(recording.clone()), capabilities);
        attach(&mut node.switch, queue);
    }
    node.switch.publish(pods_and_a_peer());
    while replay.advance() {
        node.settle();
    }
    let received: u64 = node.switch.counters().map(|counters| counters.port(1).received_frames.get()).sum();
    assert_eq!(received, 300, "all frames arrived");
    [uplink, pod, other].iter().for_each(|recording| assert!(recording.finish().is_ok()));
    sinks.map(|sink| sink.bytes())
}

fn attach(switch: &mut Switch, queue: PcapQueue) {
    switch.attach(queue.port(), vec![Some(Box::new(queue))]).expect("attach");
}

#[test]
fn a_replay_gives_the_same_bytes_twice() {
    let captures = traffic();
    let (first, second) = (replay(&captures), replay(&captures));
    assert!(first == second, "two replays differ");
    let [uplink, pod, other] = first.map(|file| read(file).expect("capture"));
    assert_eq!((uplink.len(), other.len()), (100, 100));
    for capture in [&uplink, &pod, &other] {
        for sent in capture.frames() {
            checksums_valid(sent.bytes).expect("checksums");
            assert!(sent.time >= 1_790_000_000_000_000_000);
        }
    }
    let delivered = pod.frames().filter(|sent| describe(sent.bytes).contains("10.2.0.7")).count();
    assert_eq!(delivered, 300, "every datagram from the tunnel");
    // Frames leave at the instant at which they came: the clock is the capture's.
    let times: Vec<u64> = other.frames().map(|sent| sent.time).collect();
    let came: Vec<u64> = captures[0].frames().step_by(3).map(|frame| frame.time).collect();
    assert_eq!(times, came);
}

#[test]
fn a_frame_waits_for_its_time() {
    let capture = read(classic(0xa1b2_3c4d, false, &[(9, 0, &[1; 60]), (9, 50, &[2; 60])])).expect("capture");
    let capture = Arc::new(capture);
    let clock = ManualClock::new();
    let mut replay = Replay::new(clock.clone(), [capture.as_ref()]);
    let mut queue = replay.queue(PortIndex(3), capture, None, PcapQueue::wire(1500));
    let mut memory =
        FrameMemory::new(crate::packet::FrameMemoryLayout { head_frames: 64, big_buffers: 0 }).expect("memory");
    let mut vector = Vec::new();
    assert!(replay.advance());
    assert_eq!((queue.receive(&mut memory, &mut vector), queue.prepare_to_sleep()), (1, true));
    clock.set(Time::from_nanoseconds(49));
    assert_eq!(queue.receive(&mut memory, &mut vector), 0);
    assert!(replay.advance() && !queue.prepare_to_sleep());
    assert_eq!((queue.receive(&mut memory, &mut vector), replay.advance()), (1, false));
    assert_eq!(queue.describe().mode, "replay of 2 frames, 0 to come");
    for packet in vector {
        assert_eq!(packet.ingress, PortIndex(3));
        memory.release(packet);
    }
}
