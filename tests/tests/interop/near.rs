//! Our end: a Millrace made of objects, its guests on memory ports, its two wires by AF_XDP.

use std::net::IpAddr;

use millrace_control::cluster::NodeName;
use millrace_control::plan::LocalView;
use millrace_control::store::ObjectStore;
use millrace_engine::packet::PortIndex;
use millrace_engine::port::PortQueue;
use millrace_engine::port::af_xdp::{
    AfXdpOptions, AfXdpQueue, AttachPreference, RingSizes, Steering, Umem, VxlanRules,
};
use millrace_engine::port::memory::WireFrame;
use millrace_engine::tables::Vni;
use millrace_tests::cluster::{ClusterNode, UPLINK};
use millrace_tests::memory_store::MemoryStore;
use serde_json::{Value, json};

use crate::wires::{TUNNELLED, UNDERLAY, VXLAN_PORT, WIRE, Wires, end, underlay_mac};

/// A switch with guests in VLAN 1, in VLAN 10, and at a trunk of all VLANs but 1.
pub(crate) struct Near {
    node: ClusterNode,
    guests: Vec<(&'static str, u16)>,
    _steering: [Steering; 2],
    _store: MemoryStore,
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "millrace.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

impl Near {
    /// On our side of the wires.
    pub(crate) fn create(wires: &Wires) -> Self {
        Self::on_side(wires, 0, ["n1", "n10", "nt"])
    }

    /// On either side, with guests of these names.
    pub(crate) fn on_side(wires: &Wires, side: usize, names: [&'static str; 3]) -> Self {
        wires.address(side);
        let store = MemoryStore::default();
        let vnis: Vec<Value> = TUNNELLED.iter().map(|(vlan, vni)| json!({"vlan": vlan, "vni": vni})).collect();
        let trunk: Vec<u16> = [10, 20].into_iter().chain(TUNNELLED.iter().map(|(vlan, _)| *vlan)).collect();
        let tap = |name: &str| json!({"interface": name});
        let objects = [
            object("Bridge", "lan", &json!({"vnis": vnis, "remotes": [end(1 - side)]})),
            object("Port", WIRE, &json!({"bridge": "lan", "tap": tap(WIRE), "trunk": [10, 20], "nativeVlan": 1})),
            object("Port", names[0], &json!({"bridge": "lan", "tap": tap(names[0])})),
            object("Port", names[1], &json!({"bridge": "lan", "tap": tap(names[1]), "vlan": 10})),
            object("Port", names[2], &json!({"bridge": "lan", "tap": tap(names[2]), "trunk": trunk})),
        ];
        objects.iter().for_each(|object| drop(store.create(object).expect("created")));
        let own: [IpAddr; 1] = [end(side)];
        // VNI 1 is the pods' unless the agent's configuration says otherwise.
        let name = NodeName::new("standalone").expect("a name");
        let local = LocalView { vni: Vni::new(77).expect("24 bits"), ..LocalView::new(name) };
        let mut node = ClusterNode::configured(side as u8 + 1, local, &own, 1, &store);
        node.tell_underlay([(end(1 - side), underlay_mac(1 - side))]);
        let wire = node.plug_bridge_port_in(WIRE);
        let guests = names.map(|name| (name, node.plug_bridge_port_in(name))).to_vec();
        let settled = node.follow(usize::MAX);
        assert!(settled.error.is_none() && settled.problems.is_empty(), "{settled:?}");
        let rules = VxlanRules {
            port: VXLAN_PORT,
            local: [end(side)].into_iter().collect(),
            peers: [end(1 - side)].into_iter().collect(),
        };
        let umem = node.switch().switch.umem(0).cloned().expect("a worker");
        let handle = wires.sides[side].handle();
        let taken = handle.enter(|| {
            let everything = Steering::everything(WIRE, AttachPreference::default()).expect("steering");
            let vxlan = Steering::by_rules(UNDERLAY, rules, AttachPreference::default()).expect("steering");
            [(everything, WIRE, wire), (vxlan, UNDERLAY, UPLINK)]
                .map(|(steering, name, port)| open(steering, name, port, &umem))
        });
        let mut steering = Vec::new();
        for (program, port, queue) in taken.expect("entered") {
            node.switch().detach(port);
            node.switch().switch.attach(PortIndex(port), vec![Some(queue)]).expect("attached");
            steering.push(program);
        }
        let _steering = steering.try_into().unwrap_or_else(|_| unreachable!("two wires"));
        Self { node, guests, _steering, _store: store }
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

fn open(mut steering: Steering, name: &str, port: u16, umem: &Umem) -> (Steering, u16, Box<dyn PortQueue>) {
    let options = AfXdpOptions {
        rings: RingSizes { receive: 256, transmit: 256, fill: 512, completion: 512 },
        ..AfXdpOptions::new(PortIndex(port), name, 0, steering.mode())
    };
    let queue = AfXdpQueue::open(options, umem).expect("queue");
    steering.insert_socket(0, queue.socket().expect("socket")).expect("steered");
    (steering, port, Box::new(queue))
}
