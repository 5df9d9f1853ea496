//! Packets whose output cannot take them: a port without a queue, one that is gone, a worker that does not keep up. Each
//! drop has its name, and no frame is lost count of.

use millrace_engine::drop_reason::DropReason;
use millrace_engine::limits::{LANE_PACKETS, VECTOR_PACKETS};
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::port::memory::{MemoryQueue, MemoryWire};
use millrace_engine::tables::Snapshot;
use millrace_engine::testing::node::{GATEWAY_MAC, Node, TestPeer, TestPod, pods_snapshot};
use millrace_engine::testing::{FrameBuilder, frame};

const UPLINK: u16 = 100;

fn mac(port: u16) -> Mac {
    Mac([2, 0, 0, 0, 0, port as u8])
}

/// Pods at the ports 1 to `count`, and another node behind the uplink.
fn tables(count: u16) -> Snapshot {
    let pod = |port: u16| {
        let addresses = vec![format!("10.1.0.{port}").parse().expect("address")];
        TestPod { port, mac: mac(port), addresses }
    };
    let peer = TestPeer {
        address: "192.0.2.2".parse().expect("address"),
        source: "192.0.2.1".parse().expect("address"),
        tunnel_mac: mac(202),
        prefixes: vec!["10.2.0.0/24".parse().expect("prefix")],
    };
    pods_snapshot(&(1..=count).map(pod).collect::<Vec<_>>(), UPLINK, mac(201), &[peer])
}

fn datagram(from: u16, to: &str) -> FrameBuilder {
    frame().from(mac(from), &*format!("10.1.0.{from}")).to(GATEWAY_MAC, to).udp().ports(1_000, 53).payload(b"x")
}

fn drops(node: &Node, reason: DropReason) -> u64 {
    node.switch.counters().map(|counters| counters.drops(reason).get()).sum()
}

#[test]
fn a_port_of_the_tables_without_a_queue_is_down() {
    let mut node = Node::new(1);
    node.attach(1, MemoryQueue::LIKE_TAP, 0);
    node.switch.publish(tables(2));
    node.settle();
    for sent in 1..=3 {
        // The first by the slow path, the others from the cache.
        node.inject(1, datagram(1, "10.1.0.2").wire());
        assert_eq!(drops(&node, DropReason::PortDown), sent);
    }
    // The queue comes: nothing has to be forgotten for that.
    node.attach(2, MemoryQueue::LIKE_TAP, 0);
    node.inject(1, datagram(1, "10.1.0.2").wire());
    assert!(node.sent(2).is_some());
    assert_eq!(drops(&node, DropReason::PortDown), 3);
}

#[test]
fn a_route_to_a_port_that_the_tables_lack_is_down() {
    let mut node = Node::new(1);
    node.attach(1, MemoryQueue::LIKE_TAP, 0);
    let mut tables = tables(2);
    tables.ports.remove(PortIndex(2));
    node.switch.publish(tables);
    node.settle();
    let sent = datagram(1, "10.1.0.2").wire();
    assert!(node.explain(1, &sent).ends_with("| encap drop port_down"), "{}", node.explain(1, &sent));
    node.inject(1, sent);
    assert_eq!(drops(&node, DropReason::PortDown), 1);
}

#[test]
fn what_waits_for_a_port_goes_with_it() {
    const SENT: u64 = 10;
    const ROOM: u64 = 2;
    let mut node = Node::new(1);
    node.attach(1, MemoryQueue::LIKE_TAP, 0);
    let slow = MemoryWire::default();
    let queue = MemoryQueue::new(PortIndex(2), slow.clone(), MemoryQueue::LIKE_TAP).with_room(ROOM as usize);
    node.switch.attach(PortIndex(2), vec![Some(Box::new(queue))]).expect("attach");
    node.switch.publish(tables(2));
    node.settle();
    for _ in 0..SENT {
        node.inject(1, datagram(1, "10.1.0.2").wire());
    }
    assert_eq!(drops(&node, DropReason::PortDown), 0, "they wait");
    node.detach(2);
    node.settle();
    assert_eq!(drops(&node, DropReason::PortDown), SENT - ROOM);
    let arrived = std::iter::from_fn(|| slow.receive()).count() as u64;
    assert_eq!((arrived, node.switch.lost_frames()), (ROOM, 0));
}

/// In one turn of the first worker come more packets for the other worker's uplink than the lane between them holds.
#[test]
fn a_worker_that_does_not_keep_up_gets_no_more_than_its_lane_holds() {
    const BEYOND: usize = 2 * VECTOR_PACKETS;
    let pods = ((LANE_PACKETS + BEYOND) / VECTOR_PACKETS) as u16;
    let mut node = Node::new(2);
    (1..=pods).for_each(|port| drop(node.attach(port, MemoryQueue::LIKE_TAP, 0)));
    node.attach(UPLINK, MemoryQueue::LIKE_AF_XDP, 1);
    node.switch.publish(tables(pods));
    node.settle();
    for port in 1..=pods {
        (0..VECTOR_PACKETS).for_each(|_| node.queue(port, datagram(port, "10.2.0.7").wire()));
    }
    node.settle();
    assert_eq!(node.all_sent(UPLINK).len(), LANE_PACKETS);
    assert_eq!(drops(&node, DropReason::LaneFull), BEYOND as u64);
    // It has caught up.
    node.inject(1, datagram(1, "10.2.0.7").wire());
    assert!(node.sent(UPLINK).is_some());
    assert_eq!((drops(&node, DropReason::LaneFull), node.switch.lost_frames()), (BEYOND as u64, 0));
}
