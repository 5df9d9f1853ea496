//! A node built by the production constructor, on memory ports and a clock that the test moves.
//!
//! The node of a scenario, of a simulation and of a bench: what runs here is [`Switch`] itself, worker by worker on
//! the caller's thread. After each [`Node::settle`] frames must be conserved.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::clock::{Clock, ManualClock};
use crate::counters::Event;
use crate::drop_reason::DropReason;
use crate::limits::SWEEP_STEP;
use crate::packet::{FrameMemory, FrameMemoryLayout, Mac, PortIndex};
use crate::port::memory::{MemoryQueue, MemoryWire, WireFrame};
use crate::port::{Capabilities, PortQueue};
use crate::switch::{Switch, SwitchOptions};
use crate::tables::{
    NextHop, Peer, PodPort, Port, PortRange, PortRole, Route, RouteTarget, RoutedSegment, Segment, SegmentIndex,
    SegmentKind, Snapshot, UplinkPort, Vni, Vtep, address_bits,
};
use crate::worker;

/// Turns after which a node that still moves is in a loop.
const TURNS: usize = 10_000;

/// A switch on memory ports.
#[derive(Debug)]
pub struct Node {
    /// The switch.
    pub switch: Switch,
    /// Its clock.
    pub clock: ManualClock,
    /// Each port's wires: one for each worker that has a queue of it.
    wires: BTreeMap<PortIndex, Vec<MemoryWire>>,
    /// Frames for packets that are only explained.
    imagined: FrameMemory,
}

impl Node {
    /// A node with `workers` workers and small frame memories.
    ///
    /// # Panics
    /// If the machine gives no memory.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self::with_options(Self::options(workers))
    }

    /// What [`Node::new`] builds a node of.
    #[must_use]
    pub fn options(workers: usize) -> SwitchOptions {
        SwitchOptions {
            workers,
            frame_memory: FrameMemoryLayout { head_frames: 4096, big_buffers: 64 },
            flows: crate::flow_cache::FlowCacheLayout { ipv4: 4096, ipv6: 4096 },
            connections: 4096,
            hash_seed: Some(7),
            ..SwitchOptions::default()
        }
    }

    /// A node of other sizes; its clock is always the test's.
    ///
    /// # Panics
    /// If the machine gives no memory.
    #[must_use]
    pub fn with_options(options: SwitchOptions) -> Self {
        Self::on_clock(options, ManualClock::new())
    }

    /// The same on a clock that goes on, as that of a machine does when a process ends and another begins.
    ///
    /// # Panics
    /// If the machine gives no memory.
    #[must_use]
    pub fn on_clock(options: SwitchOptions, clock: ManualClock) -> Self {
        let options = SwitchOptions { clock: Clock::Manual(clock.clone()), ..options };
        let switch = Switch::new(options).expect("a switch");
        let imagined = FrameMemory::new(FrameMemoryLayout { head_frames: 64, big_buffers: 2 }).expect("memory");
        Self { switch, clock, wires: BTreeMap::new(), imagined }
    }

    /// Attaches a memory port with a queue on worker `worker`; the others reach it by lane.
    ///
    /// # Panics
    /// If the number is taken.
    pub fn attach(&mut self, port: u16, capabilities: Capabilities, worker: usize) -> MemoryWire {
        self.attach_at(port, capabilities, |number| number == worker).remove(0)
    }

    /// Attaches a memory port with a queue and a wire on every worker, as a TAP or a network card has.
    ///
    /// # Panics
    /// If the number is taken.
    pub fn attach_to_every_worker(&mut self, port: u16, capabilities: Capabilities) -> Vec<MemoryWire> {
        self.attach_at(port, capabilities, |_| true)
    }

    fn attach_at(&mut self, port: u16, capabilities: Capabilities, has: impl Fn(usize) -> bool) -> Vec<MemoryWire> {
        let (index, mut wires) = (PortIndex(port), Vec::new());
        let mut queue = |number: usize| -> Option<Box<dyn PortQueue>> {
            has(number).then(|| {
                wires.push(MemoryWire::default());
                let wire = wires[wires.len() - 1].clone();
                Box::new(MemoryQueue::new(index, wire, capabilities)) as Box<dyn PortQueue>
            })
        };
        let queues = (0..self.switch.options().workers).map(&mut queue).collect();
        self.switch.attach(index, queues).expect("attach");
        self.wires.insert(index, wires.clone());
        wires
    }

    /// Detaches a port.
    pub fn detach(&mut self, port: u16) {
        self.switch.detach(PortIndex(port));
        self.wires.remove(&PortIndex(port));
    }

    /// Sends a frame into a port and settles.
    ///
    /// # Panics
    /// If there is no such port, or frames were lost.
    pub fn inject(&mut self, port: u16, frame: WireFrame) {
        self.wires[&PortIndex(port)][0].send(frame);
        self.settle();
    }

    /// The trail of a frame that would come in by `port` now, as one line; nothing is carried out or learned.
    ///
    /// # Panics
    /// If the frame is longer than any packet.
    #[must_use]
    pub fn explain(&mut self, port: u16, frame: &WireFrame) -> String {
        let mut packet = self.imagined.packet_from(&frame.bytes).expect("a frame of at most a packet's length");
        packet.ingress = PortIndex(port);
        packet.set_gso(frame.gso);
        let (tables, now) = (self.switch.tables(), Clock::Manual(self.clock.clone()).now());
        let explained = worker::explain(&tables, self.switch.state(), &self.imagined, &packet, now);
        self.imagined.release(packet);
        match explained {
            Ok((_, decision)) => decision.trail.to_string(),
            Err(reason) => format!("read drop {reason}"),
        }
    }

    /// Turns until every sweep that a publish began is over.
    pub fn finish_sweeps(&mut self) {
        let flows = self.switch.options().flows;
        for _ in 0..(flows.ipv4 + flows.ipv6) / SWEEP_STEP + 3 {
            self.switch.turn();
        }
        self.settle();
    }

    /// Puts a frame before a port without a turn, so that several arrive in one vector.
    ///
    /// # Panics
    /// If there is no such port.
    pub fn queue(&mut self, port: u16, frame: WireFrame) {
        self.wires[&PortIndex(port)][0].send(frame);
    }

    /// Turns until nothing moves.
    ///
    /// # Panics
    /// If the switch never rests, or frames were lost: received, made and taken from lanes must equal sent, dropped,
    /// consumed, merged, held and handed to lanes.
    pub fn settle(&mut self) {
        for turn in 0.. {
            assert!(turn < TURNS, "the switch does not come to rest");
            if !self.switch.turn() {
                break;
            }
        }
        self.assert_conserved();
    }

    /// Checks that every frame is accounted for.
    ///
    /// # Panics
    /// If one is not.
    pub fn assert_conserved(&self) {
        for (number, counters) in self.switch.counters().enumerate() {
            assert_eq!(counters.unaccounted(), 0, "worker {number} lost count of frames: {:?}", self.moved());
        }
    }

    /// The next frame that the switch sent out of a port.
    #[must_use]
    pub fn sent(&self, port: u16) -> Option<WireFrame> {
        self.wires.get(&PortIndex(port))?.iter().find_map(MemoryWire::receive)
    }

    /// All frames that the switch sent out of a port since the last look.
    #[must_use]
    pub fn all_sent(&self, port: u16) -> Vec<WireFrame> {
        std::iter::from_fn(|| self.sent(port)).collect()
    }

    /// All event and drop counters that are not zero, by name, summed over the workers; turns and vectors apart,
    /// which say how the work was cut and not what was done.
    #[must_use]
    pub fn moved(&self) -> BTreeMap<&'static str, u64> {
        let mut moved = BTreeMap::new();
        let mut add = |name, count: u64| {
            if count > 0 {
                *moved.entry(name).or_insert(0) += count;
            }
        };
        for counters in self.switch.counters() {
            let named = Event::ALL.iter().filter(|event| !matches!(event, Event::Turns | Event::Vectors));
            named.for_each(|event| add(event.name(), counters.event(*event).get()));
            DropReason::ALL.iter().for_each(|reason| add(reason.name(), counters.drops(*reason).get()));
        }
        moved
    }

    /// The count of one event, summed over the workers.
    #[must_use]
    pub fn event(&self, event: Event) -> u64 {
        self.switch.counters().map(|counters| counters.event(event).get()).sum()
    }
}

/// The gateway's MAC address in [`pods_snapshot`].
pub const GATEWAY_MAC: Mac = Mac([0x02, 0, 0x5e, 0, 1, 1]);

/// One pod of [`pods_snapshot`].
#[derive(Clone, Debug)]
pub struct TestPod {
    /// Its port.
    pub port: u16,
    /// Its MAC address.
    pub mac: Mac,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// One other node of [`pods_snapshot`].
#[derive(Clone, Debug)]
pub struct TestPeer {
    /// Its VTEP address.
    pub address: IpAddr,
    /// Our own address towards it.
    pub source: IpAddr,
    /// MAC address of its end of the tunnel.
    pub tunnel_mac: Mac,
    /// Prefixes of its pods.
    pub prefixes: Vec<ipnet::IpNet>,
}

/// Tables of a node with pods in one routed segment (VNI 1), an uplink at port `uplink`, and peers, as a control plane
/// would compile them; for engine tests and benches that need no objects.
#[must_use]
pub fn pods_snapshot(pods: &[TestPod], uplink: u16, tunnel_mac: Mac, peers: &[TestPeer]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let mut routed = RoutedSegment {
        gateway_mac: GATEWAY_MAC,
        gateway_addresses: vec!["169.254.1.1".parse().expect("address"), "fe80::1".parse().expect("address")],
        router_addresses: Vec::new(),
        masquerade_ports: PortRange::default(),
        known_outside: true,
        connected: Default::default(),
        tunnel_mac,
        routes_ipv4: Default::default(),
        routes_ipv6: Default::default(),
    };
    for pod in pods {
        snapshot.ports.insert(pod_port(pod));
        for address in &pod.addresses {
            let target = RouteTarget::Port { port: PortIndex(pod.port), mac: pod.mac };
            let route = Route { name: format!("pod {}", pod.port).into(), target };
            let length = if address.is_ipv4() { 32 } else { 128 };
            routed.routes_mut(*address).insert(address_bits(*address), length, route);
        }
    }
    snapshot.ports.insert(Port {
        index: PortIndex(uplink),
        name: "uplink".into(),
        mtu: 1500,
        role: PortRole::Uplink(UplinkPort { mac: uplink_mac(uplink), hand_back: None }),
    });
    for peer in peers {
        add_peer(&mut snapshot, &mut routed, uplink, peer);
    }
    snapshot.segments.insert(Segment {
        index: SegmentIndex(0),
        name: "pods".into(),
        vni: Vni::new(1),
        kind: SegmentKind::Routed(routed),
    });
    snapshot
}

/// The MAC address of the uplink at this port.
#[must_use]
pub fn uplink_mac(port: u16) -> Mac {
    Mac([2, 0xee, 0, 0, (port >> 8) as u8, port as u8])
}

fn pod_port(pod: &TestPod) -> Port {
    let role = PodPort { segment: SegmentIndex(0), mac: pod.mac, addresses: pod.addresses.clone() };
    Port {
        index: PortIndex(pod.port),
        name: format!("default/pod-{}", pod.port).into(),
        mtu: 1450,
        role: PortRole::Pod(role),
    }
}

fn add_peer(snapshot: &mut Snapshot, routed: &mut RoutedSegment, uplink: u16, peer: &TestPeer) {
    let next_hop = NextHop {
        port: PortIndex(uplink),
        source_mac: uplink_mac(uplink),
        destination_mac: Mac([2, 0xff, 0, 0, 0, 1]),
    };
    let name: std::sync::Arc<str> = format!("node {}", peer.address).into();
    snapshot.tunnels.insert_peer(Peer {
        name: name.clone(),
        address: peer.address,
        source: peer.source,
        next_hop: Some(next_hop),
        mtu: 1500,
    });
    let local = std::sync::Arc::make_mut(&mut snapshot.tunnels.local);
    if !local.iter().any(|vtep| vtep.address == peer.source) {
        local.push(Vtep { address: peer.source, port: PortIndex(uplink) });
    }
    for prefix in &peer.prefixes {
        let target = RouteTarget::Tunnel { peer: peer.address, mac: peer.tunnel_mac };
        let route = Route { name: format!("block of {name}").into(), target };
        routed.routes_mut(prefix.addr()).insert(address_bits(prefix.network()), prefix.prefix_len(), route);
    }
}
