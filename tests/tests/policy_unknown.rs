//! What a node lets through while it does not know everything yet: nothing before the store has told all objects; then,
//! where labels of a pod, of its namespace or of a peer decide that are not known, what the configuration says.

use std::collections::BTreeMap;
use std::net::IpAddr;

use millrace_control::cluster::NodeName;
use millrace_control::plan::{GATEWAY_MAC, LocalView};
use millrace_control::store::{Located, ObjectKey, ObjectStore};
use millrace_engine::packet::Mac;
use millrace_engine::port::memory::WireFrame;
use millrace_engine::testing::frame;
use millrace_tests::cluster::ClusterNode;
use millrace_tests::memory_store::MemoryStore;
use millrace_tests::objects;
use serde_json::{Value, json};

const CLIENT: [u8; 4] = [10, 1, 0, 5];
const WEB: [u8; 4] = [10, 1, 0, 6];
/// What becomes of a pod's packets while no tables know its port.
const UNSERVED: &str = "read drop port_unknown";

/// Node `a` with pods `client` and `web` plugged in, of which no object tells, and a policy that isolates every pod of
/// their namespace; it has not followed the store yet.
fn node(unknown_pods_open: bool) -> (ClusterNode, u16, Mac) {
    let (store, own) = (MemoryStore::default(), IpAddr::from([192, 0, 2, 1]));
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "closed", "namespace": "default"}, "spec": {"podSelector": {"matchLabels": {"app": "web"}}},
    });
    let all = [
        objects::node("a", &[own]),
        objects::pool("four", "10.0.0.0/8", 24),
        objects::block("10.1.0.0/24", "four", "a"),
        policy,
    ];
    all.iter().for_each(|object| drop(store.create(object).expect("created")));
    let local = LocalView { unknown_pods_open, ..LocalView::new(NodeName::new("a").expect("name")) };
    let mut node = ClusterNode::configured(1, local, &[own], 1, &store);
    let (port, mac) = node.plug_in("client", &[CLIENT.into()]);
    node.plug_in("web", &[WEB.into()]);
    (node, port, mac)
}

/// The end of the trail of a packet from `client` to `web`.
fn end(node: &ClusterNode, port: u16, mac: Mac) -> String {
    let packet = frame().from(mac, IpAddr::from(CLIENT)).to(GATEWAY_MAC, IpAddr::from(WEB)).udp().ports(4000, 80);
    let trail = node.switch().explain(port, &WireFrame::plain(packet.build()));
    trail.rsplit(" | ").next().unwrap_or_default().to_owned()
}

#[test]
fn nothing_passes_before_all_objects_are_known() {
    for open in [false, true] {
        let (mut node, port, mac) = node(open);
        // One event after the other; the last says that these were all.
        for _ in 0..4 {
            node.follow(1);
            assert_eq!(end(&node, port, mac), UNSERVED);
        }
        node.follow(1);
        assert_ne!(end(&node, port, mac), UNSERVED);
    }
}

#[test]
fn a_pod_without_an_object_is_closed_or_open_as_configured() {
    let (mut closed, port, mac) = node(false);
    closed.follow(usize::MAX);
    let words = "policy ingress drop policy_pod_unknown: the pod's labels are not known yet, it may be selected by default/closed";
    assert_eq!(end(&closed, port, mac), words);
    let (mut open, port, mac) = node(true);
    open.follow(usize::MAX);
    assert_eq!(end(&open, port, mac), "encap to default/web");
}

/// Node `a` that follows a store: pods and policies come when a test says so.
struct World {
    store: MemoryStore,
    node: ClusterNode,
    pods: BTreeMap<&'static str, (u16, Mac, IpAddr)>,
}

impl World {
    fn new(unknown_pods_open: bool) -> Self {
        let (store, own) = (MemoryStore::default(), IpAddr::from([192, 0, 2, 1]));
        let all = [
            objects::node("a", &[own]),
            objects::node("b", &[IpAddr::from([192, 0, 2, 2])]),
            objects::pool("four", "10.0.0.0/8", 24),
            objects::block("10.1.0.0/24", "four", "a"),
            objects::block("10.2.0.0/24", "four", "b"),
        ];
        all.iter().for_each(|object| drop(store.create(object).expect("created")));
        let local = LocalView { unknown_pods_open, ..LocalView::new(NodeName::new("a").expect("name")) };
        let mut node = ClusterNode::configured(1, local, &[own], 1, &store);
        let mut pods = BTreeMap::new();
        for (name, address) in [("client", CLIENT), ("web", WEB)] {
            let (port, mac) = node.plug_in(name, &[address.into()]);
            pods.insert(name, (port, mac, IpAddr::from(address)));
        }
        node.follow(usize::MAX);
        Self { store, node, pods }
    }

    fn apply(&mut self, object: &Value) {
        let key = ObjectKey::read(&Located::from(object)).expect("an object");
        match self.store.get(&key).expect("asked") {
            Some(known) => drop(self.store.update(object, &known.resource_version).expect("updated")),
            None => drop(self.store.create(object).expect("created")),
        }
        self.node.follow(usize::MAX);
        self.node.switch().finish_sweeps();
    }

    /// The end of the trail of a packet between two pods of this node.
    fn end(&self, from: &str, to: &str) -> String {
        let ((port, mac, source), (_, _, destination)) = (self.pods[from], self.pods[to]);
        let packet = frame().from(mac, source).to(GATEWAY_MAC, destination).udp().ports(4000, 80);
        let trail = self.node.switch().explain(port, &WireFrame::plain(packet.build()));
        trail.rsplit(" | ").next().unwrap_or_default().to_owned()
    }

    /// What is said of a packet to a pod of the other node.
    fn towards(&self, from: &str, destination: [u8; 4]) -> String {
        let (port, mac, source) = self.pods[from];
        let packet = frame().from(mac, source).to(GATEWAY_MAC, IpAddr::from(destination)).udp().ports(4000, 80);
        let trail = self.node.switch().explain(port, &WireFrame::plain(packet.build()));
        trail.split(" | ").find(|step| step.starts_with("policy")).unwrap_or("open").to_owned()
    }
}

fn pod(name: &str, node: &str, address: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "labels": labels},
        "spec": {"nodeName": node}, "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    })
}

fn namespace(labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default", "labels": labels}})
}

/// A policy of the tier Admin with one egress rule.
fn cluster_policy(subject: Value, action: &str, to: Value) -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": "admin"},
        "spec": {"tier": "Admin", "priority": 1, "subject": subject, "egress": [{"action": action, "to": [to]}]},
    })
}

const OPEN: &str = "encap to default/web";

#[test]
fn a_pod_is_closed_until_the_namespace_is_known_by_whose_labels_a_policy_selects() {
    for open in [false, true] {
        let mut world = World::new(open);
        world.apply(&pod("client", "a", "10.1.0.5", json!({})));
        world.apply(&pod("web", "a", "10.1.0.6", json!({})));
        let subject = json!({"namespaces": {"matchLabels": {"stage": "production"}}});
        world.apply(&cluster_policy(subject, "Deny", json!({"networks": ["10.1.0.0/16"]})));
        let closed =
            "policy egress drop policy_pod_unknown: the pod's labels are not known yet, it may be selected by admin";
        assert_eq!(world.end("client", "web"), if open { OPEN } else { closed });
        world.apply(&namespace(json!({"stage": "test"})));
        assert_eq!(world.end("client", "web"), OPEN);
        world.apply(&namespace(json!({"stage": "production"})));
        assert_eq!(world.end("client", "web"), "policy egress drop policy_egress: denied by admin rule 1");
    }
}

#[test]
fn a_deny_by_labels_meets_a_peer_of_which_nothing_is_known() {
    for open in [false, true] {
        let mut world = World::new(open);
        world.apply(&namespace(json!({})));
        world.apply(&pod("client", "a", "10.1.0.5", json!({"app": "client"})));
        let labels =
            |app: &str| json!({"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": app}}}});
        world.apply(&cluster_policy(labels("client"), "Deny", labels("db")));
        let closed = "policy egress drop policy_pod_unknown: the peer's labels are not known yet, it may be meant by admin rule 1";
        // A pod of another node, one of this node, and somebody who can be no pod.
        assert_eq!(world.towards("client", [10, 2, 0, 7]), if open { "open" } else { closed });
        assert_eq!(world.towards("client", WEB), if open { "open" } else { closed });
        assert_eq!(world.towards("client", [192, 0, 2, 2]), "open");
        // The node's own address among pods is known with its block.
        assert_eq!(world.towards("client", [10, 2, 0, 0]), "open");
        world.apply(&pod("far", "b", "10.2.0.7", json!({"app": "other"})));
        assert_eq!(world.towards("client", [10, 2, 0, 7]), "open");
        world.apply(&pod("far", "b", "10.2.0.7", json!({"app": "db"})));
        assert_eq!(world.towards("client", [10, 2, 0, 7]), "policy egress drop policy_egress: denied by admin rule 1");
        world.apply(&pod("web", "a", "10.1.0.6", json!({"app": "other"})));
        assert_eq!(world.towards("client", WEB), "open");
    }
}

/// Its namespace is known from the CNI call.
#[test]
fn a_pod_without_an_object_is_of_its_namespace() {
    let mut world = World::new(false);
    world.apply(&namespace(json!({"stage": "test"})));
    let allow = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "in", "namespace": "default"},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"stage": "test"}}}]}]},
    });
    world.apply(&allow);
    assert_eq!(world.end("client", "web"), OPEN);
    let subject = json!({"namespaces": {}});
    world.apply(&cluster_policy(subject, "Deny", json!({"namespaces": {"matchLabels": {"stage": "test"}}})));
    assert_eq!(world.end("client", "web"), "policy egress drop policy_egress: denied by admin rule 1");
}

#[test]
fn what_is_denied_for_want_of_knowledge_is_logged_where_it_is_asked_for() {
    let mut world = World::new(false);
    let policy = |annotations: Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "web", "namespace": "default", "annotations": annotations},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}},
        })
    };
    let send = |world: &World| {
        let ((port, mac, source), (_, _, destination)) = (world.pods["client"], world.pods["web"]);
        let packet = frame().from(mac, source).to(GATEWAY_MAC, destination).udp().ports(4000, 80);
        world.node.inject(port, WireFrame::plain(packet.build()));
        let state = std::sync::Arc::clone(world.node.switch().switch.state());
        state.denials.take().map(|denied| denied.denial.to_string())
    };
    world.apply(&policy(json!({})));
    assert_eq!(send(&world), None);
    world.apply(&policy(json!({"millrace.dev/log": "denied"})));
    let words = "the pod's labels are not known yet, it may be selected by default/web";
    assert_eq!(send(&world).as_deref(), Some(words));
    let moved = world.node.switch().moved();
    assert_eq!(moved.get("policy_pod_unknown"), Some(&2), "{moved:?}");
}

/// The runtime says which pod it plugs in: the object of an earlier pod of its name tells nothing of it.
#[test]
fn a_pod_made_anew_is_not_judged_by_the_object_of_the_one_before() {
    let mut world = World::new(false);
    world.apply(&namespace(json!({})));
    world.apply(&pod("client", "a", "10.1.0.5", json!({"app": "client"})));
    let web = |uid: &str, app: &str| {
        let mut web = pod("web", "a", "10.1.0.6", json!({"app": app}));
        web["metadata"]["uid"] = uid.into();
        web
    };
    let closed = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}},
    });
    world.apply(&closed);
    world.apply(&web("one", "open"));
    let (port, ..) = world.pods["web"];
    world.node.tell_uid(port, "one");
    world.node.follow(usize::MAX);
    assert_eq!(world.end("client", "web"), OPEN);
    world.node.tell_uid(port, "two");
    world.node.follow(usize::MAX);
    assert!(world.end("client", "web").contains("policy_pod_unknown"), "{}", world.end("client", "web"));
    world.apply(&web("two", "web"));
    assert_eq!(world.end("client", "web"), "policy ingress drop policy_ingress: isolated by default/web");
    // A static pod's object is its mirror, which has a uid of its own and names that of the pod.
    let mut mirror = web("three", "open");
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "two"});
    world.apply(&mirror);
    assert_eq!(world.end("client", "web"), OPEN);
}

/// An address is given again while the status of who had it before is late.
#[test]
fn an_address_is_the_pods_that_has_it_now() {
    let mut world = World::new(false);
    world.apply(&namespace(json!({})));
    world.apply(&pod("client", "a", "10.1.0.5", json!({"app": "client"})));
    let labels = |app: &str| json!({"pods": {"podSelector": {"matchLabels": {"app": app}}}});
    world.apply(&cluster_policy(labels("client"), "Deny", labels("db")));
    let denied = "policy egress drop policy_egress: denied by admin rule 1";
    let made = |name: &str, app: &str, created: &str, field: &str, value: Value| {
        let mut pod = pod(name, "b", "10.2.0.7", json!({"app": app}));
        pod["metadata"]["creationTimestamp"] = created.into();
        *pod.pointer_mut(field).expect("a field") = value;
        pod
    };
    let old = "2026-01-01T00:00:00Z";
    world.apply(&made("a", "db", old, "/kind", json!("Pod")));
    assert_eq!(world.towards("client", [10, 2, 0, 7]), denied);
    world.apply(&made("b", "other", "2026-01-01T00:00:01Z", "/kind", json!("Pod")));
    assert_eq!(world.towards("client", [10, 2, 0, 7]), "open", "the newer one has it");
    world.apply(&made("b", "other", "2026-01-01T00:00:01Z", "/status/phase", json!("Succeeded")));
    assert_eq!(world.towards("client", [10, 2, 0, 7]), denied, "one that has ended has none");
    world.apply(&made("c", "other", "2025-01-01T00:00:00Z", "/kind", json!("Pod")));
    assert_eq!(world.towards("client", [10, 2, 0, 7]), denied, "the older one has it not");
    let mut ending = made("a", "db", old, "/kind", json!("Pod"));
    ending["metadata"]["deletionTimestamp"] = old.into();
    world.apply(&ending);
    assert_eq!(world.towards("client", [10, 2, 0, 7]), "open", "one that is being deleted comes last");
    // What is plugged in here has its address, whatever anybody's status says.
    world.apply(&pod("web", "a", "10.1.0.6", json!({"app": "other"})));
    world.apply(&pod("a-late", "b", "10.1.0.6", json!({"app": "db"})));
    assert_eq!(world.towards("client", WEB), "open");
    // Nor has a pod plugged in here another one.
    world.apply(&pod("web", "a", "10.2.0.9", json!({"app": "db"})));
    world.apply(&pod("z", "b", "10.2.0.9", json!({"app": "other"})));
    assert_eq!(world.towards("client", [10, 2, 0, 9]), "open");
}
