//! What a node lets through while it does not know everything yet: nothing before the store has told all objects; then,
//! of a pod without an object, what the configuration says.

use std::net::IpAddr;

use millrace_control::cluster::NodeName;
use millrace_control::plan::{GATEWAY_MAC, LocalView};
use millrace_control::store::ObjectStore;
use millrace_engine::packet::Mac;
use millrace_engine::port::memory::WireFrame;
use millrace_engine::testing::frame;
use millrace_tests::cluster::ClusterNode;
use millrace_tests::memory_store::MemoryStore;
use millrace_tests::objects;
use serde_json::json;

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
    let words = "policy ingress drop policy_pod_unknown: the pod's labels are not known yet";
    assert_eq!(end(&closed, port, mac), words);
    let (mut open, port, mac) = node(true);
    open.follow(usize::MAX);
    assert_eq!(end(&open, port, mac), "encap to default/web");
}
