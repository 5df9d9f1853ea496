//! A node that is given anything: every kind of port, both families, two workers.
//!
//! Used by the mutation tests and the fuzz targets. Where a frame goes is no matter here, only that the switch keeps
//! its promises: it never panics, every frame leaves or is dropped by name, and no frame memory is lost.

use std::net::IpAddr;
use std::time::Duration;

use millrace_engine::counters::Event;
use millrace_engine::drop_reason::DropReason;
use millrace_engine::packet::{Gso, GsoKind, Mac, PortIndex};
use millrace_engine::port::memory::{MemoryQueue, WireFrame};
use millrace_engine::tables::{
    BridgedPort, BridgedSegment, Member, Port, PortRole, Segment, SegmentIndex, SegmentKind, Tag, VlanMember, Vni, Vtep,
};
use millrace_engine::testing::node::{GATEWAY_MAC, Node, TestPeer, TestPod, pods_snapshot};
use millrace_engine::testing::{ACK, FrameBuilder, Mutator, SYN, frame};

const UPLINK: u16 = 100;
const ACCESS: u16 = 10;
const TRUNK: u16 = 11;
const TUNNEL_MAC: Mac = Mac([2, 0, 0, 0, 0, 201]);
const PEER_MAC: Mac = Mac([2, 0, 0, 0, 0, 202]);

/// The node.
#[derive(Debug)]
pub struct AnyNode {
    node: Node,
    queued: u64,
}

impl Default for AnyNode {
    fn default() -> Self {
        Self::new()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn pod(port: u16) -> TestPod {
    let mac = Mac([2, 0, 0x5e, 0, 0x53, 4 + port as u8]);
    let addresses = vec![ip(&format!("10.1.0.{}", 4 + port)), ip(&format!("2001:db8:1::{}", 4 + port))];
    TestPod { port, mac, addresses }
}

fn peer(address: &str, own: &str, prefixes: &[&str]) -> TestPeer {
    TestPeer {
        address: ip(address),
        source: ip(own),
        tunnel_mac: PEER_MAC,
        prefixes: prefixes.iter().map(|prefix| prefix.parse().expect("prefix")).collect(),
    }
}

impl AnyNode {
    /// Its ports: two pods, an access port, a trunk, the uplink.
    pub const PORTS: [u16; 5] = [1, 2, ACCESS, TRUNK, UPLINK];

    /// The port of the uplink.
    pub const UPLINK: u16 = UPLINK;
    /// The port of the first pod.
    pub const POD: u16 = 1;
    /// The port of the second.
    pub const OTHER_POD: u16 = 2;

    /// The node.
    #[must_use]
    pub fn new() -> Self {
        let mut node = Node::new(2);
        for (number, port) in Self::PORTS.into_iter().enumerate() {
            let like = if port == UPLINK { MemoryQueue::LIKE_AF_XDP } else { MemoryQueue::LIKE_TAP };
            node.attach(port, like, number % 2);
        }
        let peers = [
            peer("192.0.2.2", "192.0.2.1", &["10.2.0.0/24", "2001:db8:2::/64"]),
            peer("2001:db8:f::2", "2001:db8:f::1", &["10.3.0.0/24", "2001:db8:3::/64"]),
        ];
        let mut tables = pods_snapshot(&[pod(1), pod(2)], UPLINK, TUNNEL_MAC, &peers);
        tables.segments.insert(Segment {
            index: SegmentIndex(1),
            name: "lan".into(),
            vni: Vni::new(7),
            kind: SegmentKind::Bridged(BridgedSegment {
                members: vec![
                    Member::new(PortIndex(ACCESS), None),
                    Member::new(PortIndex(TRUNK), Some(Tag::customer(10))),
                ],
                remotes: vec![ip("192.0.2.2"), ip("2001:db8:f::2")],
                ..BridgedSegment::default()
            }),
        });
        let tagged = vec![VlanMember { identifier: 10, segment: SegmentIndex(1) }];
        let access = BridgedPort::access(SegmentIndex(1));
        let trunk = BridgedPort { tagged, ..BridgedPort::default() };
        for (index, name, bridged) in [(ACCESS, "access", access), (TRUNK, "trunk", trunk)] {
            let role = PortRole::Bridged(bridged);
            tables.ports.insert(Port { index: PortIndex(index), name: name.into(), mtu: 1500, role });
        }
        let local = std::sync::Arc::make_mut(&mut tables.tunnels.local);
        local.push(Vtep { address: ip("192.0.2.3"), port: PortIndex(UPLINK) });
        node.switch.publish(tables);
        node.settle();
        Self { node, queued: 0 }
    }

    /// Packets that this node forwards in every way it can, so that damage to them goes deep.
    #[must_use]
    pub fn own_packets(&self) -> Vec<(&'static str, Vec<u8>)> {
        let (one, two) = (pod(1), pod(2));
        let v4 = |to: &str| frame().from(one.mac, one.addresses[0]).to(GATEWAY_MAC, to);
        let v6 = |to: &str| frame().from(one.mac, one.addresses[1]).to(GATEWAY_MAC, to);
        let tunnelled = |inner: FrameBuilder, vni| {
            let outer = frame().from("02:ff:00:00:00:01", "192.0.2.2").to("02:ff:00:00:00:02", "192.0.2.1");
            inner.inside_vxlan(vni, outer.ports(50_000, 8472)).build()
        };
        let tunnelled_v6 = |inner: FrameBuilder, vni| {
            let outer = frame().from("02:ff:00:00:00:01", "2001:db8:f::2").to("02:ff:00:00:00:02", "2001:db8:f::1");
            inner.inside_vxlan(vni, outer.ports(50_000, 8472)).build()
        };
        let from_peer = || frame().from(PEER_MAC, "10.2.0.9").to(TUNNEL_MAC, two.addresses[0]);
        let from_peer_v6 = || frame().from(PEER_MAC, "2001:db8:3::9").to(TUNNEL_MAC, two.addresses[1]);
        let lan = || frame().from("02:aa:00:00:00:01", "10.9.0.1").to("02:aa:00:00:00:02", "10.9.0.2");
        vec![
            ("near", v4("10.1.0.6").tcp(ACK).payload_of(20).build()),
            ("near over ipv6", v6("2001:db8:1::6").udp().payload_of(20).build()),
            ("far", v4("10.2.0.9").tcp(SYN).build()),
            ("far over ipv6 underlay", v4("10.3.0.9").udp().payload_of(1400).build()),
            ("far over ipv6", v6("2001:db8:2::9").udp().payload_of(9).build()),
            ("too big", v4("10.2.0.9").dont_fragment().udp().payload_of(1440).build()),
            ("last hop", v6("2001:db8:2::9").ttl(1).udp().payload_of(9).build()),
            ("nowhere", v4("10.99.0.1").udp().build()),
            ("gateway echo", v4("169.254.1.1").echo_request(1, 2).payload_of(30).build()),
            ("gateway echo over ipv6", v6("fe80::1").echo_request(1, 2).payload_of(30).build()),
            ("gateway arp", v4("169.254.1.1").arp_request("169.254.1.1").build()),
            ("gateway nd", frame().from(one.mac, one.addresses[1]).nd_solicitation("fe80::1").build()),
            ("from a peer", tunnelled(from_peer().tcp(ACK).payload_of(100), 1)),
            ("from a peer, last hop", tunnelled(from_peer().ttl(1).udp().payload_of(10), 1)),
            ("from a peer, no pod", tunnelled(from_peer().to(TUNNEL_MAC, "10.1.0.77").udp(), 1)),
            ("from a peer over ipv6", tunnelled_v6(from_peer_v6().udp().payload_of(10), 1)),
            ("access to trunk", lan().udp().payload_of(10).build()),
            ("trunk to access", lan().vlan(10).tcp(ACK).payload_of(10).build()),
            ("lan from a peer", tunnelled(lan().arp_request("10.9.0.2"), 7)),
            ("lan from a peer over ipv6", tunnelled_v6(lan().vlan(3).udp(), 7)),
        ]
    }

    /// Units that this node forwards whole, cut and tunnelled.
    #[must_use]
    pub fn own_units(&self) -> Vec<(&'static str, WireFrame)> {
        let one = pod(1);
        let v4 = |to: &str| frame().from(one.mac, one.addresses[0]).to(GATEWAY_MAC, to);
        let v6 = |to: &str| frame().from(one.mac, one.addresses[1]).to(GATEWAY_MAC, to);
        vec![
            ("near unit", v4("10.1.0.6").tcp(ACK).payload_of(30_000).gso(1410).wire()),
            ("far unit", v4("10.2.0.9").tcp(ACK).payload_of(60_000).gso(1410).wire()),
            ("far unit over ipv6", v6("2001:db8:3::9").tcp(ACK).payload_of(20_000).gso(1370).wire()),
            ("far udp unit", v4("10.2.0.9").udp().payload_of(20_000).gso(1400).wire()),
            ("far udp unit over ipv6", v6("2001:db8:2::9").udp().payload_of(9_000).gso(1380).wire()),
        ]
    }

    /// A damaged frame; now and then with offload metadata that need not fit it.
    pub fn damaged(&self, mutator: &mut Mutator) -> WireFrame {
        let mut frame = WireFrame::plain(mutator.next_frame());
        if mutator.below(8) == 0 {
            frame.partial_checksum = Some((mutator.below(140) as u16, [6, 16, 2, 0, 10, 64][mutator.below(6)]));
            if mutator.below(2) == 0 {
                frame.bytes.resize(frame.bytes.len() + mutator.below(6000), 0x5a);
                let kind = [GsoKind::TcpIpv4, GsoKind::TcpIpv6, GsoKind::Udp][mutator.below(3)];
                frame.gso = Some(Gso { kind, size: mutator.below(3000) as u16, ecn: mutator.below(4) == 0 });
            }
        }
        frame
    }

    /// Puts a frame before a port.
    pub fn queue(&mut self, port: u16, frame: WireFrame) {
        self.queued += 1;
        self.node.queue(port, frame);
    }

    /// Comes to rest and takes away what was sent.
    ///
    /// # Panics
    /// If the switch does not come to rest or lost count of a frame.
    pub fn rest(&mut self) {
        self.node.settle();
        for port in Self::PORTS {
            drop(self.node.all_sent(port));
        }
    }

    /// Lets time pass.
    pub fn pass(&mut self, time: Duration) {
        self.node.clock.advance(time);
        self.node.finish_sweeps();
    }

    /// Plays an input of the fuzz target: frames one after another, each behind its port's number in [`Self::PORTS`]
    /// (high nibble: offload metadata) and its length in two bytes; what is cut short ends with the input.
    ///
    /// # Panics
    /// If the switch breaks a promise.
    pub fn play(&mut self, mut input: &[u8]) {
        while let [choice, high, low, rest @ ..] = input {
            let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
            let (bytes, behind) = rest.split_at(length);
            let mut frame = WireFrame::plain(bytes.to_vec());
            match choice >> 4 {
                1 => frame.partial_checksum = Some((34, 6)),
                2 => frame.partial_checksum = Some((54, 16)),
                3 => {
                    frame.partial_checksum = Some((34, 16));
                    frame.gso = Some(Gso { kind: GsoKind::TcpIpv4, size: 100, ecn: false });
                }
                4 => {
                    frame.partial_checksum = Some((54, 6));
                    frame.gso = Some(Gso { kind: GsoKind::Udp, size: 100, ecn: false });
                }
                5 => frame.partial_checksum = bytes.first_chunk().map(|[start, at]| ((*start).into(), (*at).into())),
                _ => {}
            }
            self.queue(Self::PORTS[usize::from(choice & 15) % Self::PORTS.len()], frame);
            input = behind;
        }
        self.rest();
        self.assert_whole();
    }

    /// Checks that every frame is accounted for.
    ///
    /// # Panics
    /// If one is not.
    pub fn assert_whole(&self) {
        self.node.assert_conserved();
        assert_eq!(self.node.switch.lost_frames(), 0, "frame memory is missing");
    }

    /// What was sent out of a port since the last look.
    #[must_use]
    pub fn sent(&mut self, port: u16) -> Vec<WireFrame> {
        self.node.settle();
        self.node.all_sent(port)
    }

    /// A packet of the first pod to another pod.
    #[must_use]
    pub fn from_pod(to: &str) -> FrameBuilder {
        let one = pod(1);
        let ipv6 = usize::from(to.contains(':'));
        frame().from(one.mac, one.addresses[ipv6]).to(GATEWAY_MAC, to)
    }

    /// Frames that a peer has reason to send to this node's pods and stations.
    #[must_use]
    pub fn inner_packets() -> Vec<(&'static str, Vec<u8>)> {
        let two = pod(2);
        let to_pod = || frame().from(PEER_MAC, "10.2.0.9").to(TUNNEL_MAC, two.addresses[0]);
        let to_pod_v6 = || frame().from(PEER_MAC, "2001:db8:3::9").to(TUNNEL_MAC, two.addresses[1]);
        let lan = || frame().from("02:aa:00:00:00:01", "10.9.0.1").to("02:aa:00:00:00:02", "10.9.0.2");
        vec![
            ("peer-tcp", to_pod().tcp(ACK).payload_of(100).build()),
            ("peer-udp-last-hop", to_pod().ttl(1).udp().payload_of(10).build()),
            ("peer-udp-ipv6", to_pod_v6().udp().payload_of(10).build()),
            ("peer-echo", to_pod().echo_request(1, 2).payload_of(8).build()),
            ("peer-fragment", to_pod().fragment(0, true).udp().payload_of(64).build()),
            ("lan-broadcast", lan().to("ff:ff:ff:ff:ff:ff", "10.9.0.2").arp_request("10.9.0.2").build()),
            ("lan-tagged", lan().vlan(3).udp().build()),
        ]
    }

    /// An input of [`Self::play`] with one frame at each port.
    #[must_use]
    pub fn input_of(frame: &[u8]) -> Vec<u8> {
        let mut input = Vec::new();
        for port in 0..Self::PORTS.len() as u8 {
            input.push(port);
            input.extend_from_slice(&(frame.len() as u16).to_be_bytes());
            input.extend_from_slice(frame);
        }
        input
    }

    /// What was counted.
    #[must_use]
    pub fn moved(&self) -> std::collections::BTreeMap<&'static str, u64> {
        self.node.moved()
    }

    /// Checks the sum of it all: as many frames came in as were put there, none is missing.
    ///
    /// # Panics
    /// If one is.
    pub fn finish(mut self, frames: u64) {
        self.rest();
        self.node.assert_conserved();
        assert_eq!(self.node.switch.lost_frames(), 0, "frame memory is missing: {:?}", self.moved());
        let received: u64 = self
            .node
            .switch
            .counters()
            .flat_map(|counters| Self::PORTS.map(|port| counters.port(usize::from(port)).received_frames.get()))
            .sum();
        assert_eq!((received, self.queued), (frames, frames), "frames that came in");
        let sum = |pick: fn(DropReason) -> bool| -> u64 {
            let dropped = self.node.switch.counters().map(|counters| {
                DropReason::ALL.iter().filter(|reason| pick(**reason)).map(|reason| counters.drops(*reason).get())
            });
            dropped.flatten().sum()
        };
        assert_eq!(sum(|reason| reason == DropReason::FramesExhausted), 0, "frames ran out");
        println!(
            "{frames} frames: {} dropped, {} hits, {:?}",
            sum(|_| true),
            self.node.event(Event::FlowCacheHit),
            self.moved()
        );
    }
}

/// Parses any bytes.
///
/// # Panics
/// If an offset that the parser gives lies outside the bytes.
pub fn parse(bytes: &[u8]) {
    if let Ok(headers) = millrace_engine::packet::parse::parse(bytes, bytes.len()) {
        assert!(usize::from(headers.network_offset) <= bytes.len(), "{headers:?}");
        assert!(usize::from(headers.transport_offset) <= bytes.len(), "{headers:?}");
        if let Ok((_, inner)) = millrace_engine::packet::parse::parse_vxlan(bytes, &headers) {
            parse(bytes.get(inner..).expect("the inner frame lies in the outer one"));
        }
    }
}
