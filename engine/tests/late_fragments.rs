//! A later fragment on one worker, its first one on another: a card may steer the one by its ports, the other by addresses.

use std::net::IpAddr;

use millrace_engine::counters::Event;
use millrace_engine::drop_reason::DropReason;
use millrace_engine::limits::LATE_FRAGMENT_TIMEOUT;
use millrace_engine::packet::Mac;
use millrace_engine::port::memory::{MemoryQueue, MemoryWire, WireFrame};
use millrace_engine::testing::node::{GATEWAY_MAC, Node, TestPod, pods_snapshot};
use millrace_engine::testing::{fragments, frame};

fn pod(port: u16, ipv4: bool) -> IpAddr {
    if ipv4 { format!("10.1.0.{port}") } else { format!("fd00:1::{port}") }.parse().expect("address")
}

fn mac(port: u16) -> Mac {
    Mac([2, 0, 0, 0, 0, port as u8])
}

fn two_workers() -> (Node, Vec<MemoryWire>) {
    let mut node = Node::new(2);
    let wires = node.attach_to_every_worker(1, MemoryQueue::LIKE_TAP);
    node.attach(2, MemoryQueue::LIKE_TAP, 0);
    let pods = [1, 2].map(|port| TestPod { port, mac: mac(port), addresses: vec![pod(port, true), pod(port, false)] });
    node.switch.publish(pods_snapshot(&pods, 0, Mac([2, 0xee, 0, 0, 9, 9]), &[]));
    node.settle();
    (node, wires)
}

fn pieces(ipv4: bool) -> Vec<WireFrame> {
    let builder = frame().from(mac(1), pod(1, ipv4)).to(GATEWAY_MAC, pod(2, ipv4)).udp().payload_of(3_000);
    fragments(&builder, 1_200).into_iter().map(WireFrame::plain).collect()
}

#[test]
fn the_worker_of_the_first_fragment_tells_the_one_that_waits() {
    let (mut node, wires) = two_workers();
    for ipv4 in [true, false] {
        for (early, late) in [(0, 1), (1, 0)] {
            let [first, second, third] = <[WireFrame; 3]>::try_from(pieces(ipv4)).expect("three pieces");
            for piece in [second, third] {
                wires[early].send(piece);
            }
            node.settle();
            assert_eq!(node.all_sent(2).len(), 0);
            wires[late].send(first);
            node.settle();
            assert_eq!(node.all_sent(2).len(), 3);
            node.clock.advance(std::time::Duration::from_secs(31));
        }
    }
    assert_eq!((node.event(Event::FragmentsHeld), node.switch.lost_frames()), (8, 0));
}

/// Frames that wait are given back when nobody comes, and when the switch stops.
#[test]
fn what_waits_in_vain_is_given_back() {
    let (mut node, wires) = two_workers();
    wires[0].send(pieces(true).remove(1));
    node.settle();
    node.clock.advance(LATE_FRAGMENT_TIMEOUT);
    node.settle();
    assert_eq!(node.moved().get(DropReason::FragmentWithoutFirst.name()), Some(&1));
    wires[1].send(pieces(false).remove(1));
    node.settle();
    node.switch.stop();
    node.assert_conserved();
    assert_eq!(node.moved().get(DropReason::FragmentWithoutFirst.name()), Some(&2));
}
