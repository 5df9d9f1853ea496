//! Who floods harms himself: one pod's packets neither crowd another's out of a slow port nor push its flows out of the
//! flow cache.

use millrace_engine::counters::Event;
use millrace_engine::drop_reason::DropReason;
use millrace_engine::limits::{TRANSMIT_QUEUE_PACKETS, VECTOR_PACKETS};
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::port::memory::{MemoryQueue, MemoryWire};
use millrace_engine::testing::node::{GATEWAY_MAC, Node, TestPod, pods_snapshot};
use millrace_engine::testing::{FrameBuilder, frame};

const QUIET: u16 = 1;
const FLOODER: u16 = 2;
const SLOW: u16 = 3;
const UPLINK: u16 = 100;

fn mac(port: u16) -> Mac {
    Mac([2, 0, 0, 0, 0, port as u8])
}

fn datagram(from: u16, source_port: u16) -> FrameBuilder {
    let datagram = frame().from(mac(from), &*format!("10.1.0.{from}")).to(GATEWAY_MAC, &*format!("10.1.0.{SLOW}"));
    datagram.udp().ports(source_port, 53).payload(b"x")
}

/// A node with three pods, of which the third takes at most `room` frames at a time; the flooder's port is polled
/// before the quiet one's.
fn node(room: usize) -> (Node, MemoryWire) {
    let mut node = Node::new(1);
    let slow = MemoryWire::default();
    let queue = MemoryQueue::new(PortIndex(SLOW), slow.clone(), MemoryQueue::LIKE_TAP).with_room(room);
    node.switch.attach(PortIndex(SLOW), vec![Some(Box::new(queue))]).expect("attach");
    node.attach(QUIET, MemoryQueue::LIKE_TAP, 0);
    node.attach(FLOODER, MemoryQueue::LIKE_TAP, 0);
    let pod = |port: u16| {
        let addresses = vec![format!("10.1.0.{port}").parse().expect("address")];
        TestPod { port, mac: mac(port), addresses }
    };
    node.switch.publish(pods_snapshot(&[QUIET, FLOODER, SLOW].map(pod), UPLINK, mac(200), &[]));
    node.settle();
    (node, slow)
}

#[test]
fn a_flooding_pod_does_not_crowd_another_out_of_a_slow_port() {
    const TURNS: usize = 400;
    let (mut node, slow) = node(16);
    let mut arrived = [0; 2];
    let mut take = |slow: &MemoryWire| {
        while let Some(frame) = slow.receive() {
            let source = u16::from_be_bytes([frame.bytes[34], frame.bytes[35]]);
            arrived[usize::from(source == 7)] += 1;
        }
        arrived
    };
    for _ in 0..TURNS {
        for _ in 0..2 * VECTOR_PACKETS {
            node.queue(FLOODER, datagram(FLOODER, 6).wire());
        }
        node.queue(QUIET, datagram(QUIET, 7).wire());
        node.switch.turn();
        take(&slow);
    }
    let dropped = |port: u16| {
        let counters = node.switch.counters();
        counters.map(|counters| counters.port(port.into()).dropped_frames.get()).sum::<u64>()
    };
    // More than half of what the flooder sent found no room; of the quiet pod's nothing was lost.
    assert_eq!(dropped(QUIET), 0);
    assert!(dropped(FLOODER) > (TURNS * VECTOR_PACKETS / 2) as u64, "{} dropped", dropped(FLOODER));
    let full: u64 = node.switch.counters().map(|counters| counters.drops(DropReason::TransmitQueueFull).get()).sum();
    assert_eq!(full, dropped(FLOODER));
    // What still waits arrives, and each turn took one vector from either port.
    let held: u64 = node.switch.counters().map(|counters| counters.held.get()).sum();
    assert!(held as usize <= TRANSMIT_QUEUE_PACKETS);
    for _ in 0..2 * TRANSMIT_QUEUE_PACKETS {
        node.switch.turn();
        take(&slow);
    }
    let arrived = take(&slow);
    assert_eq!(arrived[1], TURNS, "of the quiet pod's packets");
    assert_eq!(node.switch.lost_frames(), 0);
}

#[test]
fn established_flows_stay_in_the_cache_while_another_pod_scans() {
    const FLOWS: u16 = 500;
    let (mut node, slow) = node(usize::MAX);
    // Each flow there and back; how many packets the cache served and how many it did not.
    let all_flows = |node: &mut Node| {
        let before = (node.event(Event::FlowCacheHit), node.event(Event::FlowCacheMiss));
        for flow in 0..FLOWS {
            node.inject(QUIET, datagram(QUIET, 1_000 + flow).wire());
            let answer = frame().from(mac(SLOW), "10.1.0.3").to(GATEWAY_MAC, "10.1.0.1").udp().ports(53, 1_000 + flow);
            slow.send(answer.payload(b"y").wire());
            node.settle();
        }
        (node.event(Event::FlowCacheHit) - before.0, node.event(Event::FlowCacheMiss) - before.1)
    };
    all_flows(&mut node);
    all_flows(&mut node);
    assert_eq!(all_flows(&mut node), (2 * u64::from(FLOWS), 0));
    // 30,000 flows of one packet each through a cache of 4,096, half a second long.
    for round in 0..10u16 {
        for flow in 0..3_000 {
            node.queue(FLOODER, datagram(FLOODER, 1_000 + round * 3_000 + flow).wire());
        }
        node.settle();
        node.clock.advance(std::time::Duration::from_millis(50));
        while slow.receive().is_some() {}
    }
    assert!(node.event(Event::FlowCacheInserted) > 30_000, "{:?}", node.moved());
    let (hits, misses) = all_flows(&mut node);
    assert_eq!((hits, misses), (2 * u64::from(FLOWS), 0), "established flows that had to be decided again");
}
