//! A policy that begins to deny cuts what is live: counted in turns of the worker, for a turn's part is bounded and what it
//! takes is measured elsewhere (`benches/policy_flows.rs`, `cut`). From the turn after the publish on each turn sweeps
//! [`SWEEP_STEP`] entries of the cache; what a step has met is decided by the new policies with its next packet. So nothing
//! denied passes once the walk is round, and nothing but what the policy concerns is touched.

use std::net::IpAddr;

use millrace_control::cluster::NodeName;
use millrace_control::plan::{GATEWAY_MAC, LocalView};
use millrace_control::store::ObjectStore;
use millrace_engine::counters::Event;
use millrace_engine::flow_cache::FlowCacheLayout;
use millrace_engine::limits::SWEEP_STEP;
use millrace_engine::packet::{FrameMemoryLayout, Mac};
use millrace_engine::port::memory::WireFrame;
use millrace_engine::switch::SwitchOptions;
use millrace_engine::testing::frame;
use millrace_tests::cluster::ClusterNode;
use millrace_tests::memory_store::MemoryStore;
use millrace_tests::objects;
use serde_json::{Value, json};

const CLIENT: [u8; 4] = [10, 1, 0, 5];
const WEB: [u8; 4] = [10, 1, 0, 6];
/// Flows to each of the two ports.
const FLOWS: u16 = 1_000;
const ALLOWED: u16 = 80;
const DENIED: u16 = 81;

struct World {
    store: MemoryStore,
    node: ClusterNode,
    client: (u16, Mac),
    web: u16,
    /// Turns in which a walk over the whole cache is round.
    turns: usize,
}

impl World {
    fn new() -> Self {
        let (store, own) = (MemoryStore::default(), IpAddr::from([192, 0, 2, 1]));
        let pod = |name: &str, address: [u8; 4]| {
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
                "spec": {"nodeName": "a"}, "status": {"podIPs": [{"ip": IpAddr::from(address).to_string()}]},
            })
        };
        let all = [
            objects::node("a", &[own]),
            objects::pool("four", "10.0.0.0/8", 24),
            objects::block("10.1.0.0/24", "four", "a"),
            pod("client", CLIENT),
            pod("web", WEB),
        ];
        all.iter().for_each(|object| drop(store.create(object).expect("created")));
        let flows = FlowCacheLayout { ipv4: 32_768, ipv6: 4_096 };
        let options = SwitchOptions {
            workers: 1,
            frame_memory: FrameMemoryLayout { head_frames: 4096, big_buffers: 64 },
            flows,
            connections: 8_192,
            hash_seed: Some(7),
            ..SwitchOptions::default()
        };
        let local = LocalView::new(NodeName::new("a").expect("name"));
        let mut node = ClusterNode::of_size(1, local, &[own], options, &store);
        node.follow(usize::MAX);
        let client = node.plug_in("client", &[CLIENT.into()]);
        let (web, _) = node.plug_in("web", &[WEB.into()]);
        node.follow(usize::MAX);
        let turns = (flows.ipv4 + flows.ipv6).div_ceil(SWEEP_STEP);
        let world = Self { store, node, client, web, turns };
        assert_eq!((world.passed(ALLOWED), world.passed(DENIED)), (FLOWS, FLOWS));
        let switch = world.node.switch();
        assert_eq!(switch.event(Event::FlowCacheInserted), 2 * u64::from(FLOWS));
        assert_eq!(switch.event(Event::FlowCacheEvicted), 0);
        drop(switch);
        world
    }

    /// A packet of each flow to this port; how many get through.
    fn passed(&self, port: u16) -> u16 {
        (0..FLOWS).map(|flow| self.passes(10_000 + flow, port)).sum()
    }

    fn passes(&self, from: u16, port: u16) -> u16 {
        let built = frame().from(self.client.1, IpAddr::from(CLIENT)).to(GATEWAY_MAC, IpAddr::from(WEB));
        self.node.inject(self.client.0, WireFrame::plain(built.udp().ports(from, port).build()));
        self.node.switch().all_sent(self.web).len() as u16
    }

    /// Publishes a policy that denies one of the ports, without a turn.
    fn deny(&mut self, annotations: Value) {
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "web", "namespace": "default", "annotations": annotations},
            "spec": {"podSelector": {}, "ingress": [{"ports": [{"port": ALLOWED, "protocol": "UDP"}]}]},
        });
        self.store.create(&policy).expect("created");
        assert!(self.node.publish(usize::MAX).error.is_none());
    }

    /// Entries met by each turn from now on, until the walk is round.
    fn redecided(&self) -> Vec<u64> {
        let mut switch = self.node.switch();
        let count = |switch: &millrace_engine::testing::node::Node| switch.event(Event::FlowCacheRedecided);
        let turn = |_| {
            let before = count(&switch);
            switch.switch.turn();
            count(&switch) - before
        };
        (0..self.turns).map(turn).collect()
    }
}

#[test]
fn what_a_new_policy_denies_is_cut_by_the_steps_that_follow_the_publish() {
    let mut world = World::new();
    world.deny(json!({}));
    let redecided = world.redecided();
    assert!(redecided[0] > 0, "the first turn already cuts its part: {redecided:?}");
    // All flows of the pod rest on its policies; each step meets its share and no more than it looked at.
    assert_eq!(redecided.iter().sum::<u64>(), 2 * u64::from(FLOWS));
    assert!(redecided.iter().all(|step| *step <= SWEEP_STEP as u64));
    assert_eq!(world.passed(DENIED), 0);
    assert_eq!(world.passed(ALLOWED), FLOWS, "what the policy allows goes on");
    assert_eq!(world.passes(9_999, DENIED), 0, "and what is new is denied");
}

#[test]
fn connections_finish_where_the_policy_says_so_and_new_ones_are_denied() {
    let mut world = World::new();
    world.deny(json!({"millrace.dev/established": "keep"}));
    assert_eq!(world.redecided().iter().sum::<u64>(), 2 * u64::from(FLOWS));
    assert_eq!(world.passed(DENIED), FLOWS);
    assert_eq!(world.passed(ALLOWED), FLOWS);
    assert_eq!(world.passes(9_999, DENIED), 0);
    assert_eq!(world.passes(9_999, ALLOWED), 1);
}
