//! Captures on whole switches: which packets they are of, what is told of each, and that nobody waits for a reader.

use std::net::IpAddr;

use millrace_engine::capture::{CaptureFilter, CaptureReader, Captured, FlowFilter, Moment};
use millrace_engine::counters::Event;
use millrace_engine::drop_reason::DropReason;
use millrace_engine::limits::CAPTURE_SLOTS;
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::port::memory::MemoryQueue;
use millrace_engine::testing::node::{GATEWAY_MAC, Node, TestPeer, TestPod, pods_snapshot};
use millrace_engine::testing::{FrameBuilder, frame};

const UPLINK: u16 = 100;

fn mac(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, number])
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

/// A node with pods 1 to 3 and one peer; port `n` has its queue on worker `n` modulo their number.
fn node(workers: usize) -> Node {
    let mut node = Node::new(workers);
    let pods = [1u16, 2, 3].map(|port| {
        node.attach(port, MemoryQueue::LIKE_TAP, usize::from(port) % workers);
        TestPod { port, mac: mac(port as u8), addresses: vec![ip(&format!("10.1.0.{port}"))] }
    });
    node.attach(UPLINK, MemoryQueue::LIKE_AF_XDP, 0);
    let peer = TestPeer {
        address: ip("192.0.2.2"),
        source: ip("192.0.2.1"),
        tunnel_mac: mac(202),
        prefixes: vec!["10.2.0.0/24".parse().expect("a prefix")],
    };
    node.switch.publish(pods_snapshot(&pods, UPLINK, mac(201), &[peer]));
    node.settle();
    node
}

fn datagram(from: u8, to: &str) -> FrameBuilder {
    frame().from(mac(from), format!("10.1.0.{from}").as_str()).to(GATEWAY_MAC, to).udp().ports(1000, 53).payload(b"x")
}

fn taken(readers: &mut [CaptureReader]) -> Vec<Captured> {
    readers.iter_mut().flat_map(|reader| std::iter::from_fn(move || reader.next())).collect()
}

/// Each copy as a few words.
fn told(captured: &[Captured]) -> Vec<String> {
    let one = |captured: &Captured| {
        let what = match &captured.moment {
            Moment::Arrived(decided) => format!("by {}: {}", captured.ingress.0, decided.decision.trail),
            Moment::Left(port) => format!("to {}", port.0),
            Moment::Dropped(reason) => format!("drop {reason}"),
        };
        format!("{} {what}", captured.packet)
    };
    captured.iter().map(one).collect()
}

fn of_ports(ports: &[u16]) -> CaptureFilter {
    CaptureFilter { ports: ports.iter().copied().map(PortIndex).collect(), ..CaptureFilter::default() }
}

#[test]
fn a_captured_packet_is_told_as_it_came_and_as_it_left() {
    for (workers, to, egress) in [(1, "10.1.0.2", 2), (2, "10.1.0.2", 2), (1, "10.2.0.9", UPLINK)] {
        let mut node = node(workers);
        let sent = datagram(1, to);
        // Its flow is in the cache before the capture begins.
        node.inject(1, sent.wire());
        let before = node.sent(egress).expect("a frame");
        let mut readers = node.switch.capture(of_ports(&[egress]));
        node.inject(1, sent.wire());
        let left = node.sent(egress).expect("a frame");
        assert_eq!(left.bytes, before.bytes, "a capture changes no packet");
        let captured = taken(&mut readers);
        let [came, went] = captured.as_slice() else { panic!("{:?}", told(&captured)) };
        assert_eq!((came.packet, went.packet), (1, 1));
        assert_eq!((came.bytes.as_slice(), came.length), (sent.build().as_slice(), sent.build().len()));
        assert_eq!((went.bytes.as_slice(), went.length), (left.bytes.as_slice(), left.bytes.len()), "to {to}");
        assert!(matches!(went.moment, Moment::Left(PortIndex(port)) if port == egress));
        let Moment::Arrived(decided) = &came.moment else { panic!("{came:?}") };
        assert_eq!(decided.tables.generation, node.switch.tables().generation);
        let trail = decided.decision.trail.to_string();
        assert!(trail.starts_with("admit default/pod-1 in segment pods | connection known, original"), "{trail}");
    }
}

#[test]
fn only_what_the_filter_means_is_captured() {
    let mut node = node(1);
    let mut readers = node.switch.capture(of_ports(&[2]));
    for (from, to) in [(1, "10.1.0.3"), (1, "10.1.0.2"), (2, "10.1.0.3"), (1, "10.1.0.3"), (1, "10.1.0.2")] {
        node.inject(u16::from(from), datagram(from, to).wire());
    }
    let ports = |captured: &[Captured]| -> Vec<u16> {
        let came = captured.iter().filter(|captured| matches!(captured.moment, Moment::Arrived(_)));
        came.map(|captured| captured.ingress.0).collect()
    };
    assert_eq!(ports(&taken(&mut readers)), [1, 2, 1]);
    // What the capture is not of is served by the cache.
    assert_eq!(node.event(Event::FlowCacheHit), 1);

    let flow = FlowFilter { protocol: Some(17), addresses: vec![ip("10.1.0.3")], ports: vec![53] };
    let mut readers = node.switch.capture(CaptureFilter { flow, ..CaptureFilter::default() });
    for (from, to, port) in [(1, "10.1.0.3", 53), (1, "10.1.0.2", 53), (1, "10.1.0.3", 54), (2, "10.1.0.3", 53)] {
        node.inject(u16::from(from), datagram(from, to).ports(1000, port).wire());
    }
    assert_eq!(ports(&taken(&mut readers)), [1, 2]);
    node.switch.end_capture();
    node.inject(1, datagram(1, "10.1.0.3").wire());
    assert!(taken(&mut readers).is_empty());
}

#[test]
fn drops_are_told_with_their_reason_wherever_they_happen() {
    let mut node = node(1);
    let drops = |reasons: &[DropReason]| CaptureFilter { drops: Some(reasons.to_vec()), ..CaptureFilter::default() };
    let mut readers = node.switch.capture(drops(&[]));
    node.inject(1, datagram(1, "10.1.0.2").wire());
    node.inject(1, datagram(1, "10.9.0.2").wire());
    node.inject(1, datagram(1, "10.1.0.2").from(mac(9), "10.1.0.1").wire());
    let mut cut = datagram(1, "10.1.0.2").wire();
    cut.bytes.truncate(20);
    node.inject(1, cut);
    // The decision lets it go, its port is gone.
    node.detach(2);
    node.inject(1, datagram(1, "10.1.0.2").wire());
    let captured = taken(&mut readers);
    let expected = [
        "1 by 1: admit default/pod-1 in segment pods | connection new | route drop no_route, sender told",
        "1 drop no_route",
        "1 to 1",
        "2 by 1: admit drop source_mac_spoofed",
        "2 drop source_mac_spoofed",
        "0 drop ipv4_truncated",
        "0 drop port_down",
    ];
    assert_eq!(told(&captured), expected);
    let mut readers = node.switch.capture(drops(&[DropReason::NoRoute]));
    node.inject(1, datagram(1, "10.1.0.2").from(mac(9), "10.1.0.1").wire());
    node.inject(1, datagram(1, "10.9.0.2").wire());
    assert_eq!(told(&taken(&mut readers))[1..], ["1 drop no_route", "1 to 1"]);
}

#[test]
fn what_nobody_reads_is_lost_and_counted_and_the_packets_go_on() {
    let mut node = node(1);
    let mut readers = node.switch.capture(of_ports(&[1]));
    let packets = CAPTURE_SLOTS / 2 + 10;
    for _ in 0..packets {
        node.inject(1, datagram(1, "10.1.0.2").wire());
    }
    assert_eq!(node.all_sent(2).len(), packets);
    assert_eq!((taken(&mut readers).len(), readers[0].take_lost(), readers[0].take_lost()), (CAPTURE_SLOTS, 20, 0));
    node.inject(1, datagram(1, "10.1.0.2").wire());
    assert_eq!(taken(&mut readers).len(), 2);
    // A reader that goes without a word ends the capture.
    drop(readers);
    node.inject(1, datagram(1, "10.1.0.2").wire());
    let hits = node.event(Event::FlowCacheHit);
    node.inject(1, datagram(1, "10.1.0.2").wire());
    assert_eq!(node.event(Event::FlowCacheHit), hits + 1);
    assert_eq!(node.switch.lost_frames(), 0);
}

#[test]
fn packets_of_a_flow_keep_their_order_when_a_capture_begins_among_them() {
    let mut node = node(1);
    node.inject(1, datagram(1, "10.1.0.2").wire());
    let _ = node.all_sent(2);
    let _readers = node.switch.capture(of_ports(&[2]));
    for number in 0..40u8 {
        node.queue(1, datagram(1, "10.1.0.2").payload(&[number]).wire());
        node.queue(1, datagram(1, "10.1.0.3").payload(&[number]).wire());
    }
    node.settle();
    let last = |frames: Vec<millrace_engine::port::memory::WireFrame>| -> Vec<u8> {
        frames.iter().map(|frame| *frame.bytes.last().expect("bytes")).collect()
    };
    assert_eq!(last(node.all_sent(2)), (0..40).collect::<Vec<u8>>());
    assert_eq!(last(node.all_sent(3)), (0..40).collect::<Vec<u8>>());
}
