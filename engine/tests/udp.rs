//! Uplinks whose tunnels go through UDP sockets, against the real kernel: two switches joined by a veth pair. Needs root.
//!
//! ```text
//!  pod 1 of node 1 (in memory) -- switch -- e0 <----> e1 -- switch -- pod 1 of node 2 (in memory)
//!             10.1.0.1, fd00:1::1     192.0.2.1, 2001:db8::1     192.0.2.2, 2001:db8::2
//! ```

#[path = "support/root_tests.rs"]
#[macro_use]
mod root_tests;
#[path = "support/namespaces.rs"]
mod namespaces;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use millrace_engine::counters::{Event, WorkerCounters};
use millrace_engine::drop_reason::DropReason;
use millrace_engine::packet::{FrameMemory, FrameMemoryLayout, Mac, PortIndex};
use millrace_engine::port::PortQueue;
use millrace_engine::port::memory::{MemoryQueue, MemoryWire, WireFrame};
use millrace_engine::port::packet_socket::{Accept, PacketQueue, PacketSocket};
use millrace_engine::port::udp::{UdpError, UdpQueue, UdpSockets, probe_segmentation};
use millrace_engine::testing::node::{GATEWAY_MAC, Node, TestPeer, TestPod, pods_snapshot};
use millrace_engine::testing::{ACK, FrameBuilder, checksums_valid, describe, frame};
use namespaces::{End, Namespace, add_address, add_neighbour, make_veth, set_up};

const UPLINK: u16 = 100;
const VXLAN_PORT: u16 = 8472;
/// VNI of the pods' segment.
const VNI: u32 = 1;
const INTERFACES: [&str; 2] = ["e0", "e1"];
const UNDERLAYS: [&str; 2] = ["192.0.2.", "2001:db8::"];
/// An address of the far namespace that is no node's.
const STRANGER: &str = "192.0.2.9";
const PATIENCE: Duration = Duration::from_secs(5);

fn mac(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, number])
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn pod_addresses(node: usize) -> [String; 2] {
    [format!("10.{node}.0.1"), format!("fd00:{node}::1")]
}

/// Two namespaces joined by a veth pair; permanent neighbours, so that only tunnels are on it.
fn network(mtu: u32) -> [Namespace; 2] {
    let nodes = [Namespace::new(), Namespace::new()];
    let end = |number: usize| End { name: INTERFACES[number], mac: mac(100 + number as u8).0, mtu };
    nodes[0].run(|| make_veth(&end(0), &end(1), &nodes[1]));
    for (number, namespace) in nodes.iter().enumerate() {
        namespace.run(|| {
            set_up(INTERFACES[number], true);
            for (underlay, length) in UNDERLAYS.iter().zip([24, 64]) {
                add_address(INTERFACES[number], ip(&format!("{underlay}{}", number + 1)), length);
                let other = mac(100 + (1 - number) as u8).0;
                add_neighbour(INTERFACES[number], ip(&format!("{underlay}{}", 2 - number)), other);
            }
        });
    }
    nodes[1].run(|| add_address(INTERFACES[1], ip(STRANGER), 24));
    nodes
}

/// The worker's queues; what goes outside of tunnels lies in memory.
fn queues(namespace: &Namespace, number: usize, mtu: u32, workers: usize) -> (Vec<UdpQueue>, MemoryWire) {
    let port = PortIndex(UPLINK);
    let sockets = namespace.run(|| UdpSockets::open_group(INTERFACES[number], mtu, VXLAN_PORT, workers));
    let plain = MemoryWire::default();
    let queue = |sockets: UdpSockets| {
        let queue = MemoryQueue::new(port, plain.clone(), MemoryQueue::LIKE_AF_XDP);
        sockets.queue(port, Box::new(queue)).expect("an epoll set")
    };
    (sockets.expect("sockets").into_iter().map(queue).collect(), plain)
}

/// A switch of this node, with a pod and tunnels to the other node over one underlay.
struct Side {
    node: Node,
    plain: MemoryWire,
}

impl Side {
    fn new(namespaces: &[Namespace; 2], number: usize, underlay: &str, workers: usize) -> Self {
        let (own, other) = (number + 1, 2 - number);
        let mut node = Node::new(workers);
        node.attach(1, MemoryQueue::LIKE_TAP, 0);
        let (queues, plain) = queues(&namespaces[number], number, 1500, workers);
        let boxed = queues.into_iter().map(|queue| -> Option<Box<dyn PortQueue>> { Some(Box::new(queue)) });
        node.switch.attach(PortIndex(UPLINK), boxed.collect()).expect("attached");
        let addresses = pod_addresses(own).map(|address| ip(&address)).to_vec();
        let pod = TestPod { port: 1, mac: mac(1), addresses };
        let peer = TestPeer {
            address: ip(&format!("{underlay}{other}")),
            source: ip(&format!("{underlay}{own}")),
            tunnel_mac: mac(200 + other as u8),
            prefixes: [format!("10.{other}.0.0/24"), format!("fd00:{other}::/64")]
                .map(|prefix| prefix.parse().expect("prefix"))
                .to_vec(),
        };
        node.switch.publish(pods_snapshot(&[pod], UPLINK, mac(200 + own as u8), &[peer]));
        node.settle();
        Self { node, plain }
    }

    /// What the pod gets until `done` says that it is all.
    fn delivered(&mut self, mut done: impl FnMut(&[WireFrame]) -> bool) -> Vec<WireFrame> {
        let (mut all, end) = (Vec::new(), Instant::now() + PATIENCE);
        while !done(&all) {
            assert!(Instant::now() < end, "only {} frames came: {:?}", all.len(), self.node.moved());
            self.node.settle();
            all.extend(self.node.all_sent(1));
        }
        all
    }

    /// Turns until this drop reason was met so often.
    fn drops(&mut self, reason: DropReason, count: u64) {
        let end = Instant::now() + PATIENCE;
        while self.node.moved().get(reason.name()) != Some(&count) {
            assert!(Instant::now() < end, "{reason}: {:?}", self.node.moved());
            self.node.settle();
        }
    }

    fn assert_nothing_lost(&self) {
        self.node.assert_conserved();
        assert_eq!(self.node.switch.lost_frames(), 0);
    }
}

fn pair(namespaces: &[Namespace; 2], underlay: &str, workers: usize) -> [Side; 2] {
    [0, 1].map(|number| Side::new(namespaces, number, underlay, workers))
}

/// From the pod of one node to that of the other, in the family of this number, as it leaves the pod.
fn between_pods(from: usize, family: usize) -> FrameBuilder {
    let (source, destination) = (&pod_addresses(from + 1)[family], &pod_addresses(2 - from)[family]);
    frame().from(mac(1), source.as_str()).to(GATEWAY_MAC, destination.as_str())
}

/// From node 2's pod to node 1's, as it leaves the tunnel's far end.
fn inside() -> FrameBuilder {
    let (source, destination) = (&pod_addresses(2)[0], &pod_addresses(1)[0]);
    frame().from(mac(202), source.as_str()).to(mac(201), destination.as_str())
}

/// The content of a datagram with this frame.
fn datagram(vni: u32, inner: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes(), inner].concat()
}

fn sender(namespaces: &[Namespace; 2], address: &str) -> UdpSocket {
    namespaces[1].run(|| UdpSocket::bind((ip(address), 0)).expect("socket"))
}

fn send(socket: &UdpSocket, content: &[u8]) {
    assert_eq!(socket.send_to(content, (ip("192.0.2.1"), VXLAN_PORT)).expect("sent"), content.len());
}

fn units_cross_in_both_directions_over_both_underlays() {
    let namespaces = network(1500);
    for underlay in UNDERLAYS {
        let mut sides = pair(&namespaces, underlay, 1);
        for (from, family) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let payload: Vec<u8> = (0..40_000u32).map(|number| (number * 7 % 253) as u8).collect();
            let unit = between_pods(from, family).tcp(ACK).ports(4000, 80).payload(&payload).gso(1300);
            sides[from].node.inject(1, unit.wire());
            let received = |frames: &[WireFrame]| -> Vec<u8> {
                let headers = 54 + 20 * family;
                frames.iter().flat_map(|frame| frame.bytes[headers..].to_vec()).collect()
            };
            let got = sides[1 - from].delivered(|frames| received(frames).len() >= payload.len());
            assert!(received(&got) == payload, "{underlay} from {from}");
            assert!(got.iter().any(|frame| frame.gso.is_some_and(|gso| gso.size == 1300)), "nothing was joined");
            assert!(got.len() < 8, "{} units of 31 segments", got.len());
        }
        let segments = 4 * 40_000u64.div_ceil(1300);
        for side in &sides {
            let port = |counters: &WorkerCounters| {
                let port = counters.port(usize::from(UPLINK));
                (port.received_frames.get(), port.sent_frames.get())
            };
            let counted: Vec<_> = side.node.switch.counters().map(|counters| port(counters.as_ref())).collect();
            assert_eq!(counted, [(segments / 2, segments / 2)], "{underlay}");
            assert_eq!(side.plain.waiting(), 0);
            side.assert_nothing_lost();
        }
    }
}

fn small_datagrams_keep_order_and_boundaries() {
    let namespaces = network(1500);
    for (underlay, family) in [(UNDERLAYS[0], 1), (UNDERLAYS[1], 0)] {
        let [mut first, mut second] = pair(&namespaces, underlay, 1);
        // Lengths that may go together, and some that may not, of four flows in turn.
        let sent: Vec<FrameBuilder> = (0..200u16)
            .map(|number| {
                let payload = vec![number as u8; if number % 7 == 0 { 90 } else { 40 }];
                between_pods(0, family).udp().ports(1000 + number % 4, 53).payload(&payload)
            })
            .collect();
        for builder in &sent {
            first.node.queue(1, builder.wire());
        }
        first.node.settle();
        let got = second.delivered(|frames| frames.len() == sent.len());
        let of_flow = |flow: u16| move |line: &String| line.contains(&format!(":{} >", 1000 + flow));
        let lines = |frames: Vec<Vec<u8>>| -> Vec<String> {
            let line = |bytes: &Vec<u8>| format!("{} first {}", describe(bytes), bytes[bytes.len() - 1]);
            frames.iter().map(line).collect()
        };
        got.iter().for_each(|frame| checksums_valid(&frame.bytes).expect("checksums"));
        let (sent, got) = (
            lines(sent.iter().map(FrameBuilder::build).collect()),
            lines(got.into_iter().map(|frame| frame.bytes).collect()),
        );
        for flow in 0..4 {
            let of_both =
                [&sent, &got].map(|lines| lines.iter().filter(|line| of_flow(flow)(line)).collect::<Vec<_>>());
            assert_eq!(of_both[0], of_both[1]);
        }
        [first, second].iter().for_each(Side::assert_nothing_lost);
    }
}

fn a_flow_stays_with_one_worker() {
    let namespaces = network(1500);
    let [mut first, mut second] = pair(&namespaces, UNDERLAYS[0], 2);
    for round in 0..4 {
        for flow in 0..64u16 {
            let sent = between_pods(0, 0).udp().ports(2000 + flow, 53).payload(&[round; 30]);
            first.node.inject(1, sent.wire());
        }
        second.delivered(|frames| frames.len() == 64);
    }
    let mut workers: HashMap<String, HashSet<usize>> = HashMap::new();
    for worker in 0..2 {
        for flow in second.node.switch.flows(worker, 1000) {
            workers.entry(format!("{:?}", flow.key)).or_default().insert(worker);
        }
    }
    assert!(workers.len() >= 64 && workers.values().all(|workers| workers.len() == 1), "{workers:?}");
    let received: Vec<u64> = second
        .node
        .switch
        .counters()
        .map(|counters| counters.port(usize::from(UPLINK)).received_frames.get())
        .collect();
    assert!(received.iter().all(|count| *count > 0) && received.iter().sum::<u64>() == 256, "{received:?}");
    [first, second].iter().for_each(Side::assert_nothing_lost);
}

fn only_frames_of_known_peers_and_segments_come_in() {
    let namespaces = network(1500);
    let mut side = Side::new(&namespaces, 0, UNDERLAYS[0], 1);
    let (peer, stranger) = (sender(&namespaces, "192.0.2.2"), sender(&namespaces, STRANGER));
    let inner = inside().udp().payload_of(40).build();
    send(&peer, &datagram(VNI, &inner));
    let got = side.delivered(|frames| frames.len() == 1);
    assert_eq!(describe(&got[0].bytes), describe(&inner));
    send(&stranger, &datagram(VNI, &inner));
    side.drops(DropReason::VxlanUnknownPeer, 1);
    send(&peer, &datagram(7, &inner));
    side.drops(DropReason::VxlanUnknownVni, 1);
    send(&peer, &[&[0; 8][..], &inner].concat());
    side.drops(DropReason::VxlanFlags, 1);
    let short = datagram(VNI, &inner[..13]);
    let stumps: [&[u8]; 3] = [&[], &[8, 0, 0], &short];
    stumps.iter().for_each(|content| send(&peer, content));
    side.drops(DropReason::VxlanTruncated, 3);
    let forged = inside().from(mac(202), "10.1.0.77").udp().build();
    send(&peer, &datagram(VNI, &forged));
    side.drops(DropReason::TunnelSourceSpoofed, 1);
    side.assert_nothing_lost();
}

fn wrong_checksums_stay_wrong_and_partial_ones_are_known() {
    let namespaces = network(1500);
    let mut side = Side::new(&namespaces, 0, UNDERLAYS[0], 1);
    let peer = sender(&namespaces, "192.0.2.2");
    let segment = |number: u32| inside().tcp(ACK).ports(80, 4000).sequence(1000 + number * 100, 1).payload_of(100);
    // The second one is wrong: it is not joined, and the pod's kernel drops it.
    for builder in [segment(0), segment(1).with_bad_checksum(), segment(2)] {
        send(&peer, &datagram(VNI, &builder.build()));
    }
    let got = side.delivered(|frames| frames.len() == 3);
    let valid: Vec<bool> = got.iter().map(|frame| checksums_valid(&frame.bytes).is_ok()).collect();
    assert_eq!(valid, [true, false, true]);
    assert!(got.iter().all(|frame| frame.partial_checksum.is_none()));
    // What a kernel behind a veth pair leaves to nobody.
    for builder in [inside().tcp(ACK).payload_of(300), inside().udp().payload_of(300)] {
        send(&peer, &datagram(VNI, &builder.partial_checksum().build()));
        let got = side.delivered(|frames| frames.len() == 1);
        assert!(got[0].partial_checksum.is_some(), "{}", describe(&got[0].bytes));
    }
    // The same with a unit of segments, whole.
    send(&peer, &datagram(VNI, &inside().tcp(ACK).ports(80, 4000).payload_of(20_000).gso(1000).build()));
    let got = side.delivered(|frames| frames.len() == 1);
    assert_eq!(got[0].gso.map(|gso| gso.size), Some(1410), "the longest that the tunnel carries");
    assert_eq!(got[0].bytes.len(), 54 + 20_000);
    // An outer checksum that is wrong: the kernel drops the datagram.
    let outer = frame().from(mac(101), "192.0.2.2").to(mac(100), "192.0.2.1").ports(50_000, VXLAN_PORT);
    let packet = outer.udp().payload(&datagram(VNI, &inside().udp().build())).with_bad_checksum().build();
    let mut raw = Raw::open(&namespaces[1]);
    raw.send(&packet);
    let behind = inside().udp().payload_of(7).build();
    send(&peer, &datagram(VNI, &behind));
    let got = side.delivered(|frames| !frames.is_empty());
    assert_eq!(got.iter().map(|frame| describe(&frame.bytes)).collect::<Vec<_>>(), [describe(&behind)]);
    side.assert_nothing_lost();
}

/// A packet socket at the far end of the wire.
struct Raw {
    queue: PacketQueue,
    memory: FrameMemory,
    counters: WorkerCounters,
}

impl Raw {
    fn open(namespace: &Namespace) -> Self {
        let socket = namespace.run(|| PacketSocket::open(INTERFACES[1], 1500, &Accept::Everything)).expect("socket");
        let memory = FrameMemory::new(FrameMemoryLayout { head_frames: 256, big_buffers: 8 }).expect("memory");
        Self { queue: socket.queue(PortIndex(3)), memory, counters: WorkerCounters::default() }
    }

    fn send(&mut self, bytes: &[u8]) {
        let mut packets = vec![self.memory.packet_from(bytes).expect("a packet")];
        self.queue.transmit(&mut self.memory, &mut packets, &self.counters);
        assert!(packets.is_empty());
    }

    /// The tunnelled packets that come in, as many at least.
    fn receive(&mut self, count: usize) -> Vec<Vec<u8>> {
        let (mut all, end) = (Vec::new(), Instant::now() + PATIENCE);
        while all.len() < count {
            assert!(Instant::now() < end, "only {} packets came", all.len());
            let mut vector = Vec::with_capacity(64);
            self.queue.receive(&mut self.memory, &mut vector);
            for packet in vector {
                let bytes: Vec<u8> = self.memory.parts(&packet).flatten().copied().collect();
                self.memory.release(packet);
                if describe(&bytes).contains("vxlan") {
                    all.push(bytes);
                }
            }
        }
        all
    }
}

fn outer_headers_are_those_of_any_uplink() {
    let namespaces = network(1500);
    for (number, underlay) in UNDERLAYS.into_iter().enumerate() {
        let mut side = Side::new(&namespaces, 0, underlay, 1);
        let mut raw = Raw::open(&namespaces[1]);
        let mut ports = HashSet::new();
        for flow in 0..64u16 {
            // ECT(0) goes out as that, DSCP stays inside (RFC 6040).
            let sent = between_pods(0, 0).udp().ports(3000 + flow, 53).payload_of(60).traffic_class(46 << 2 | 2);
            side.node.inject(1, sent.wire());
            let packet = raw.receive(1).remove(0);
            let line = describe(&packet);
            assert!(line.starts_with(&format!("class 0.ect0 vxlan vni 1 {underlay}1 > {underlay}2 ")), "{line}");
            let (ttl, udp) = if number == 0 { (packet[22], 34) } else { (packet[21], 54) };
            assert_eq!(ttl, 64);
            assert!(number == 1 || packet[20] & 0x40 != 0, "don't fragment");
            assert_ne!(packet[udp + 6..udp + 8], [0, 0], "a checksum, also over IPv4");
            ports.insert([packet[udp], packet[udp + 1]]);
        }
        assert!((10..=16).contains(&ports.len()), "{} source ports", ports.len());
        side.assert_nothing_lost();
    }
}

fn congestion_on_the_way_is_carried_inwards() {
    let namespaces = network(1500);
    let mut side = Side::new(&namespaces, 0, UNDERLAYS[0], 1);
    let peer = sender(&namespaces, "192.0.2.2");
    rustix::net::sockopt::set_ip_tos(&peer, 3).expect("congestion experienced");
    send(&peer, &datagram(VNI, &inside().udp().traffic_class(2).payload_of(40).build()));
    let got = side.delivered(|frames| frames.len() == 1);
    assert_eq!(describe(&got[0].bytes), describe(&inside().udp().traffic_class(3).payload_of(40).build()));
    send(&peer, &datagram(VNI, &inside().udp().payload_of(40).build()));
    side.drops(DropReason::EcnNotCapable, 1);
    side.assert_nothing_lost();
}

fn a_datagram_in_fragments_is_put_together() {
    let namespaces = network(1300);
    let mut side = Side::new(&namespaces, 0, UNDERLAYS[0], 1);
    let peer = sender(&namespaces, "192.0.2.2");
    let inner = inside().udp().payload_of(1450 - 28).build();
    send(&peer, &datagram(VNI, &inner));
    let got = side.delivered(|frames| frames.len() == 1);
    assert_eq!(describe(&got[0].bytes), describe(&inner));
    side.assert_nothing_lost();
}

fn what_the_path_cannot_carry_is_dropped_and_counted() {
    // The tables say 1500.
    let namespaces = network(1300);
    for underlay in UNDERLAYS {
        let [mut first, mut second] = pair(&namespaces, underlay, 1);
        first.node.inject(1, between_pods(0, 0).udp().payload_of(1300).wire());
        first.drops(DropReason::Oversized, 1);
        first.node.inject(1, between_pods(0, 0).tcp(ACK).payload_of(13_000).gso(1300).wire());
        first.drops(DropReason::Oversized, 11);
        first.node.inject(1, between_pods(0, 0).tcp(ACK).payload_of(11_000).gso(1100).wire());
        let bytes = |frames: &[WireFrame]| frames.iter().map(|frame| frame.bytes.len() - 54).sum::<usize>();
        second.delivered(|frames| bytes(frames) == 11_000);
        assert!(first.node.switch.queues()[0].iter().any(|queue| queue.description.mode.contains(" gso ")));
        [first, second].iter().for_each(Side::assert_nothing_lost);
    }
    let mut side = Side::new(&namespaces, 0, UNDERLAYS[0], 1);
    namespaces[0].run(|| set_up(INTERFACES[0], false));
    side.node.inject(1, between_pods(0, 0).udp().payload_of(13).wire());
    side.drops(DropReason::PortRefused, 1);
    side.assert_nothing_lost();
}

fn what_is_in_no_tunnel_goes_by_the_other_port() {
    let namespaces = network(1500);
    let (mut queues, plain) = queues(&namespaces[0], 0, 1500, 1);
    let mut memory = FrameMemory::new(FrameMemoryLayout { head_frames: 256, big_buffers: 8 }).expect("memory");
    let counters = WorkerCounters::default();
    // To the VXLAN port of the other node, but no tunnel of ours.
    let own = frame().from(mac(100), "192.0.2.1").to(mac(101), "192.0.2.2").udp().ports(50_000, VXLAN_PORT).build();
    let mut packets = vec![memory.packet_from(&own).expect("a packet")];
    queues[0].transmit(&mut memory, &mut packets, &counters);
    assert_eq!((packets.len(), plain.receive().map(|frame| frame.bytes)), (0, Some(own.clone())));
    plain.send(WireFrame { bytes: own.clone(), partial_checksum: None, gso: None });
    let mut vector = Vec::with_capacity(64);
    assert_eq!(queues[0].receive(&mut memory, &mut vector), 1);
    let capabilities = queues[0].capabilities();
    assert!(capabilities.tunnels && capabilities.frame_bytes == MemoryQueue::LIKE_AF_XDP.frame_bytes);
    vector.drain(..).for_each(|packet| memory.release(packet));
    queues[0].close(&mut memory);
    assert_eq!(memory.free_heads(), 256);
}

fn who_has_the_port_already_is_named() {
    let namespaces = network(1500);
    let open = |name: &str, workers| namespaces[0].run(|| UdpSockets::open_group(name, 1500, VXLAN_PORT, workers));
    let first = open(INTERFACES[0], 1).expect("sockets");
    assert!(matches!(open(INTERFACES[0], 1), Err(UdpError::Occupied { port: VXLAN_PORT, .. })));
    drop(first);
    assert_eq!(open(INTERFACES[0], 2).expect("sockets").len(), 2);
    assert!(matches!(open("e7", 1), Err(UdpError::Interface { .. })));
    namespaces[0].run(|| probe_segmentation(INTERFACES[0])).expect("a veth pair's kernel cuts");
    assert!(namespaces[0].run(|| probe_segmentation("e7")).is_err());
    let mut raw = Raw::open(&namespaces[1]);
    namespaces[0].run(|| probe_segmentation(INTERFACES[0])).expect("once more");
    let mut vector = Vec::with_capacity(64);
    std::thread::sleep(Duration::from_millis(50));
    raw.queue.receive(&mut raw.memory, &mut vector);
    let lines = vector.iter().map(|packet| describe(raw.memory.head(packet)));
    assert!(!lines.into_iter().any(|line| line.contains("224.0.0.1")), "a probe stays in the kernel");
}

fn what_found_no_frame_is_counted() {
    let namespaces = network(1500);
    let (mut queues, _plain) = queues(&namespaces[0], 0, 1500, 1);
    let layout = FrameMemoryLayout { head_frames: 64, big_buffers: 2 };
    let mut memory = FrameMemory::new(layout).expect("memory");
    let peer = sender(&namespaces, "192.0.2.2");
    let content = datagram(VNI, &inside().udp().payload_of(40).build());
    (0..200).for_each(|_| send(&peer, &content));
    let (mut vector, mut kept) = (Vec::with_capacity(64), Vec::new());
    let end = Instant::now() + PATIENCE;
    while kept.len() < 64 && Instant::now() < end {
        queues[0].receive(&mut memory, &mut vector);
        kept.append(&mut vector);
    }
    assert_eq!((kept.len(), memory.free_heads()), (64, 0), "every frame holds a datagram");
    queues[0].receive(&mut memory, &mut vector);
    assert!(vector.is_empty());
    kept.into_iter().for_each(|packet| memory.release(packet));
    let mut rest = 0;
    while rest < 200 - 64 && Instant::now() < end {
        queues[0].receive(&mut memory, &mut vector);
        rest += vector.len();
        vector.drain(..).for_each(|packet| memory.release(packet));
    }
    assert_eq!(rest, 200 - 64, "what was not read waited in the kernel");
    queues[0].close(&mut memory);
    assert_eq!(memory.free_heads(), 64);
}

fn a_node_counts_what_was_joined() {
    let namespaces = network(1500);
    let [mut first, mut second] = pair(&namespaces, UNDERLAYS[0], 1);
    // Four flows at once, in one vector.
    for flow in 0..4u16 {
        let unit = between_pods(0, 0).tcp(ACK).ports(5000 + flow, 80).payload_of(13_000).gso(1300);
        first.node.queue(1, unit.wire());
    }
    first.node.settle();
    let bytes = |frames: &[WireFrame]| frames.iter().map(|frame| frame.bytes.len() - 54).sum::<usize>();
    let got = second.delivered(|frames| bytes(frames) == 4 * 13_000);
    assert!(got.len() < 12, "{} units of four flows", got.len());
    assert!(second.node.event(Event::SegmentsJoined) >= 32);
    [first, second].iter().for_each(Side::assert_nothing_lost);
}

root_tests!(every run [
    units_cross_in_both_directions_over_both_underlays,
    small_datagrams_keep_order_and_boundaries,
    a_flow_stays_with_one_worker,
    only_frames_of_known_peers_and_segments_come_in,
    wrong_checksums_stay_wrong_and_partial_ones_are_known,
    outer_headers_are_those_of_any_uplink,
    congestion_on_the_way_is_carried_inwards,
    a_datagram_in_fragments_is_put_together,
    what_the_path_cannot_carry_is_dropped_and_counted,
    what_is_in_no_tunnel_goes_by_the_other_port,
    who_has_the_port_already_is_named,
    what_found_no_frame_is_counted,
    a_node_counts_what_was_joined,
]);
