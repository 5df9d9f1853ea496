//! Our end and the third: a Millrace made of objects, its guests on memory ports, its wires by AF_XDP, its tunnels by AF_XDP
//! or UDP sockets.

use std::net::IpAddr;

use millrace_control::cluster::NodeName;
use millrace_control::plan::LocalView;
use millrace_control::store::ObjectStore;
use millrace_engine::packet::PortIndex;
use millrace_engine::port::PortQueue;
use millrace_engine::port::af_xdp::{
    AfXdpOptions, AfXdpQueue, AttachPreference, RingSizes, Steering, Umem, VxlanRules,
};
use millrace_engine::port::memory::{MemoryQueue, MemoryWire, WireFrame};
use millrace_engine::port::udp::UdpSockets;
use millrace_engine::tables::Vni;
use millrace_tests::cluster::{ClusterNode, UPLINK};
use millrace_tests::memory_store::MemoryStore;
use serde_json::{Value, json};

use crate::wires::{Lane, SERVICE_WIRE, SHARED, TUNNELLED, UNDERLAY, VXLAN_PORT, WIRE, Wires, underlay_mac};

/// A switch with guests.
pub(crate) struct Near {
    node: ClusterNode,
    guests: Vec<(&'static str, u16)>,
    _steering: Vec<Steering>,
    _store: MemoryStore,
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "millrace.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// A port of the bridge, with these fields.
fn port(name: &str, fields: &Value) -> Value {
    let mut spec = json!({"bridge": "lan", "tap": {"interface": name}});
    if let (Some(spec), Some(fields)) = (spec.as_object_mut(), fields.as_object()) {
        spec.extend(fields.clone());
    }
    object("Port", name, &spec)
}

fn bridge(wires: &Wires, side: usize, segments: &[(u16, u32)]) -> Value {
    let vnis: Vec<Value> = segments.iter().map(|(vlan, vni)| json!({"vlan": vlan, "vni": vni})).collect();
    let remotes: Vec<IpAddr> = others(side).map(|other| wires.end(other)).collect();
    object("Bridge", "lan", &json!({"vnis": vnis, "remotes": remotes}))
}

fn others(side: usize) -> impl Iterator<Item = usize> {
    (0..3).filter(move |other| *other != side)
}

impl Near {
    /// On our side of the wires.
    pub(crate) fn create(wires: &Wires) -> Self {
        Self::on_side(wires, 0, ["n1", "n10", "nt", "nq"])
    }

    /// On either side of the wires: guests in VLAN 1, in VLAN 10, at a trunk of all VLANs but 1, and in service VLAN 40.
    pub(crate) fn on_side(wires: &Wires, side: usize, names: [&'static str; 4]) -> Self {
        let segments: Vec<(u16, u32)> = TUNNELLED.into_iter().chain([SHARED]).collect();
        let trunk: Vec<u16> = [10, 20].into_iter().chain(segments.iter().map(|(vlan, _)| *vlan)).collect();
        let objects = [
            bridge(wires, side, &segments),
            port(WIRE, &json!({"trunk": [10, 20], "nativeVlan": 1})),
            port(SERVICE_WIRE, &json!({"trunk": [40], "tagProtocol": "802.1ad"})),
            port(names[0], &json!({})),
            port(names[1], &json!({"vlan": 10})),
            port(names[2], &json!({"trunk": trunk})),
            port(names[3], &json!({"serviceVlan": 40})),
        ];
        Self::made_of(wires, side, &objects, &[WIRE, SERVICE_WIRE], &names)
    }

    /// The third end: a guest `t33` in the segment that all three sides share, no wires.
    pub(crate) fn third(wires: &Wires) -> Self {
        let objects = [bridge(wires, 2, &[SHARED]), port("t33", &json!({"vlan": SHARED.0}))];
        Self::made_of(wires, 2, &objects, &[], &["t33"])
    }

    fn made_of(wires: &Wires, side: usize, objects: &[Value], taken: &[&str], guests: &[&'static str]) -> Self {
        wires.address(side, UNDERLAY);
        let store = MemoryStore::default();
        objects.iter().for_each(|object| drop(store.create(object).expect("created")));
        let own: [IpAddr; 1] = [wires.end(side)];
        // VNI 1 is the pods' unless the agent's configuration says otherwise.
        let name = NodeName::new("standalone").expect("a name");
        let local = LocalView { vni: Vni::new(77).expect("24 bits"), ..LocalView::new(name) };
        let mut node = ClusterNode::configured(side as u8 + 1, local, &own, 1, &store);
        node.tell_underlay(others(side).map(|other| (wires.end(other), underlay_mac(other))));
        let wire_ports: Vec<u16> = taken.iter().map(|name| node.plug_bridge_port_in(name)).collect();
        let guests = guests.iter().map(|name| (*name, node.plug_bridge_port_in(name))).collect();
        let settled = node.follow(usize::MAX);
        assert!(settled.error.is_none() && settled.problems.is_empty(), "{settled:?}");
        let rules = VxlanRules {
            port: VXLAN_PORT,
            local: own.into_iter().collect(),
            peers: others(side).map(|other| wires.end(other)).collect(),
        };
        let umem = node.switch().switch.umem(0).cloned().expect("a worker");
        let opened = wires.sides[side].handle().enter(|| {
            let everything = taken.iter().zip(wire_ports).map(|(name, port)| {
                let steering = Steering::everything(name, AttachPreference::default()).expect("steering");
                open(steering, name, port, &umem)
            });
            let mut opened: Vec<_> = everything.collect();
            opened.push(match wires.lane {
                Lane::AfXdp => {
                    let vxlan = Steering::by_rules(UNDERLAY, rules, AttachPreference::default()).expect("steering");
                    open(vxlan, UNDERLAY, UPLINK, &umem)
                }
                Lane::Udp => (None, UPLINK, udp_sockets()),
            });
            opened
        });
        let mut steering = Vec::new();
        for (program, port, queue) in opened.expect("entered") {
            node.switch().detach(port);
            node.switch().switch.attach(PortIndex(port), vec![Some(queue)]).expect("attached");
            steering.extend(program);
        }
        Self { node, guests, _steering: steering, _store: store }
    }

    /// Sends a frame from a guest. False if there is no such guest here.
    pub(crate) fn send(&mut self, guest: &str, bytes: &[u8]) -> bool {
        let Some((_, port)) = self.guests.iter().find(|(name, _)| *name == guest) else { return false };
        let frame = WireFrame { bytes: bytes.to_vec(), partial_checksum: None, gso: None };
        self.node.switch().inject(*port, frame);
        true
    }

    /// What the guests got since they were last asked.
    pub(crate) fn receive(&mut self) -> Vec<(&'static str, Vec<u8>)> {
        let mut switch = self.node.switch();
        switch.settle();
        let mut all = Vec::new();
        for (name, port) in &self.guests {
            all.extend(switch.all_sent(*port).into_iter().map(|frame| (*name, frame.bytes)));
        }
        all
    }

    /// What the switch counted, for a failure's report.
    pub(crate) fn moved(&self) -> String {
        format!("{:?}", self.node.switch().moved())
    }
}

/// Tunnels by UDP sockets; nothing else goes over the underlay.
fn udp_sockets() -> Box<dyn PortQueue> {
    let port = PortIndex(UPLINK);
    let sockets = UdpSockets::open_group(UNDERLAY, 1500, VXLAN_PORT, 1).expect("sockets").remove(0);
    let nothing = MemoryQueue::new(port, MemoryWire::default(), MemoryQueue::LIKE_AF_XDP);
    Box::new(sockets.queue(port, Box::new(nothing)).expect("a queue"))
}

fn open(mut steering: Steering, name: &str, port: u16, umem: &Umem) -> (Option<Steering>, u16, Box<dyn PortQueue>) {
    let options = AfXdpOptions {
        rings: RingSizes { receive: 256, transmit: 256, fill: 512, completion: 512 },
        ..AfXdpOptions::new(PortIndex(port), name, 0, steering.mode())
    };
    let queue = AfXdpQueue::open(options, umem).expect("queue");
    steering.insert_socket(0, queue.socket().expect("socket")).expect("steered");
    (Some(steering), port, Box::new(queue))
}
