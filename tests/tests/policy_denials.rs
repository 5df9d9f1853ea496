//! What is denied is counted by policy and rule, and waits to be logged where the policy or its namespace asks for it.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use millrace_control::plan::GATEWAY_MAC;
use millrace_control::store::{Located, ObjectKey, ObjectStore};
use millrace_engine::port::memory::WireFrame;
use millrace_engine::state::DeniedPacket;
use millrace_engine::tables::policy::RuleList;
use millrace_engine::testing::frame;
use millrace_tests::cluster::ClusterNode;
use millrace_tests::memory_store::MemoryStore;
use millrace_tests::objects;
use serde_json::{Value, json};

fn pod(name: &str, address: IpAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {"nodeName": "a"}, "status": {"phase": "Running", "podIPs": [{"ip": address.to_string()}]},
    })
}

fn policy(name: &str, annotations: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "default", "annotations": annotations},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"ports": [{"port": 80, "protocol": "UDP"}]}],
        },
    })
}

/// A node with pods `client` and `web`, and a policy that lets UDP to port 80 of `web` through.
struct World {
    store: MemoryStore,
    node: ClusterNode,
    client: (u16, WireFrame, WireFrame),
}

impl World {
    fn new() -> Self {
        let store = MemoryStore::default();
        let [own, client, web] = [[192, 0, 2, 1], [10, 1, 0, 5], [10, 1, 0, 6]].map(IpAddr::from);
        let all = [
            objects::node("a", &[own]),
            objects::pool("four", "10.0.0.0/8", 24),
            objects::block("10.1.0.0/24", "four", "a"),
            pod("client", client),
            pod("web", web),
            policy("web", json!({})),
        ];
        all.iter().for_each(|object| drop(store.create(object).expect("created")));
        let mut node = ClusterNode::new(1, "a", &[own], 1, &store);
        node.follow(usize::MAX);
        let (port, mac) = node.plug_in("client", &[client]);
        node.plug_in("web", &[web]);
        let to =
            |port| WireFrame::plain(frame().from(mac, client).to(GATEWAY_MAC, web).udp().ports(4000, port).build());
        let client = (port, to(80), to(81));
        let mut world = Self { store, node, client };
        world.follow();
        world
    }

    fn follow(&mut self) {
        let settled = self.node.follow(usize::MAX);
        assert_eq!((settled.problems.as_slice(), settled.error.is_none()), (&[][..], true));
        self.node.switch().finish_sweeps();
    }

    fn apply(&mut self, object: &Value) {
        let key = ObjectKey::read(&Located::from(object)).expect("an object");
        let known = self.store.get(&key).expect("asked");
        match known {
            Some(known) => drop(self.store.update(object, &known.resource_version).expect("updated")),
            None => drop(self.store.create(object).expect("created")),
        }
        self.follow();
    }

    /// Sends one packet that is allowed and two that are not; the denials that wait to be logged.
    fn send(&self) -> Vec<DeniedPacket> {
        let (port, allowed, denied) = &self.client;
        self.node.inject(*port, allowed.clone());
        self.node.inject(*port, denied.clone());
        self.node.inject(*port, denied.clone());
        let switch = self.node.switch();
        let state = switch.switch.state();
        std::iter::from_fn(|| state.denials.take()).collect()
    }

    /// Packets denied by the policy, and decisions of its rule.
    fn counts(&self) -> (u64, u64) {
        let tables = self.node.switch().switch.tables();
        let mut policies = tables.policy.pods.iter().flat_map(|(_, policy)| policy.ingress.isolating.iter());
        let list: &RuleList = policies.next().expect("a policy selects a pod");
        (list.counts.denied.load(Ordering::Relaxed), list.counts.used[0].load(Ordering::Relaxed))
    }
}

#[test]
fn denials_are_counted_and_logged_where_it_is_asked_for() {
    let mut world = World::new();
    assert!(world.send().is_empty(), "nobody asked for a log");
    assert_eq!(world.counts(), (2, 1));
    assert!(world.send().is_empty());
    assert_eq!(world.counts(), (4, 1), "the rule decided once, the cache served the second packet");
    world.apply(&policy("web", json!({"millrace.dev/log": "denied"})));
    let denied = world.send();
    assert_eq!(denied.len(), 2);
    assert_eq!(denied[0].ports, [4000, 81]);
    assert_eq!(denied[0].denial.to_string(), "isolated by default/web");
    world.apply(&policy("web", json!({})));
    assert!(world.send().is_empty());
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "default", "annotations": {"millrace.dev/log": "denied"}},
    });
    world.apply(&namespace);
    assert_eq!(world.send().len(), 2);
}

/// The API server takes any annotation: a policy that is left out for one would open what it closes.
#[test]
fn a_policy_with_an_annotation_nobody_knows_is_in_force_and_its_author_told() {
    let mut world = World::new();
    let wrong = policy("web", json!({"millrace.dev/log": "yes"}));
    let key = ObjectKey::read(&Located::from(&wrong)).expect("an object");
    let known = world.store.get(&key).expect("asked").expect("there");
    world.store.delete(&key, &known.resource_version).expect("deleted");
    world.follow();
    world.store.create(&wrong).expect("created");
    let settled = world.node.follow(usize::MAX);
    world.node.switch().finish_sweeps();
    let problems: Vec<String> = settled.problems.iter().map(ToString::to_string).collect();
    let expected = "NetworkPolicy default/web: metadata.annotations.millrace.dev/log: \"yes\" has no effect; the one value it \
                    knows is \"denied\"";
    assert_eq!(problems, [expected]);
    assert!(world.send().is_empty(), "nothing is logged");
    assert_eq!(world.counts(), (2, 1), "what the policy does not allow is denied");
}
