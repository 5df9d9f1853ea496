//! `millrace policy` before the command line: which connections would get another verdict, and who may reach whom.

use std::net::IpAddr;
use std::path::Path;

use millrace_control::api::model::{FlowChangeReport, PolicyDiffReport};
use millrace_control::cluster::NodeName;
use millrace_control::plan::GATEWAY_MAC;
use millrace_control::policy_preview::reach::{Question, Selection, reach, unused};
use millrace_control::policy_preview::{Names, Proposal, diff};
use millrace_control::replay::{ReplayClock, ReplayOptions, policies};
use millrace_control::store::ObjectStore;
use millrace_engine::packet::Mac;
use millrace_engine::port::memory::WireFrame;
use millrace_engine::testing::frame;
use millrace_tests::cluster::ClusterNode;
use millrace_tests::memory_store::MemoryStore;
use millrace_tests::objects;
use serde_json::{Value, json};

fn pod(name: &str, address: IpAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {"nodeName": "a", "containers": [{"name": "c", "ports": [{"name": "metrics", "containerPort": 9100}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": address.to_string()}]},
    })
}

fn policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "default"}, "spec": spec,
    })
}

/// Node `a` with its host, pods `client` and `web`, a Service in front of `web`, and the policy `web`, which lets
/// `client` in at port 80.
struct World {
    node: ClusterNode,
    client: (u16, Mac),
    host: (u16, Mac),
}

const CLIENT: [u8; 4] = [10, 1, 0, 5];
const WEB: [u8; 4] = [10, 1, 0, 6];
const HOST: [u8; 4] = [10, 1, 0, 0];

impl World {
    fn new() -> Self {
        let store = MemoryStore::default();
        let own = IpAddr::from([192, 0, 2, 1]);
        let from_client = json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": 80, "protocol": "UDP"}]},
                {"from": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]},
            ],
        });
        let all = [
            objects::node("a", &[own]),
            objects::pool("four", "10.0.0.0/8", 24),
            objects::block("10.1.0.0/24", "four", "a"),
            pod("client", CLIENT.into()),
            pod("web", WEB.into()),
            policy("web", from_client),
        ];
        all.iter().for_each(|object| drop(store.create(object).expect("created")));
        let mut node = ClusterNode::new(1, "a", &[own], 1, &store);
        node.follow(usize::MAX);
        let host = node.plug_host(&[HOST.into()]);
        let client = node.plug_in("client", &[CLIENT.into()]);
        node.plug_in("web", &[WEB.into()]);
        let settled = node.follow(usize::MAX);
        assert_eq!((settled.problems.as_slice(), settled.error.is_none()), (&[][..], true));
        Self { node, client, host }
    }

    fn send(&self, (port, mac): (u16, Mac), source: [u8; 4], ports: [u16; 2]) {
        let packet = frame().from(mac, IpAddr::from(source)).to(GATEWAY_MAC, IpAddr::from(WEB)).udp();
        self.node.inject(port, WireFrame::plain(packet.ports(ports[0], ports[1]).build()));
    }

    fn diff(&self, objects: &[Value], delete: bool) -> PolicyDiffReport {
        let proposal = Proposal::from_json(objects, delete).expect("objects");
        let (control, switch) = (self.node.control(), self.node.switch());
        let (tables, state) = (switch.switch.tables(), switch.switch.state());
        let (after, _) = proposal.tables(&tables, control.cluster(), control.local()).expect("tables");
        diff::connections((&tables, &after), &state.connections, &Names::of(control.cluster()), 10)
    }
}

fn words(flow: &FlowChangeReport) -> String {
    let end = |end: &millrace_control::api::model::FlowEndReport| format!("{} {}:{}", end.name, end.address, end.port);
    format!(
        "{} {} > {}: {} -> {}",
        flow.protocol,
        end(&flow.source),
        end(&flow.destination),
        flow.before.reasons.join(", "),
        flow.after.reasons.join(", ")
    )
}

#[test]
fn connections_that_would_be_cut_are_named_and_nothing_is_changed() {
    let world = World::new();
    world.send(world.client, CLIENT, [4000, 80]);
    world.send(world.client, CLIENT, [4001, 81]);
    world.send(world.host, HOST, [4002, 80]);
    let generation = world.node.switch().switch.tables().generation;
    let closed = policy("web", json!({"podSelector": {"matchLabels": {"app": "web"}}}));
    let report = world.diff(std::slice::from_ref(&closed), false);
    // The second packet was denied and is no connection; the node reaches its pods whatever policies say.
    assert_eq!((report.judged, report.changing), (2, 1));
    assert_eq!(
        words(&report.flows[0]),
        "udp default/client 10.1.0.5:4000 > default/web 10.1.0.6:80: ingress allowed by default/web rule 1 -> ingress \
         drop policy_ingress: isolated by default/web"
    );
    // A second policy that denies at the sender, and one that lets what is established finish.
    let egress =
        policy("client", json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"]}));
    let report = world.diff(&[egress.clone(), closed], false);
    assert!(words(&report.flows[0]).ends_with("-> egress drop policy_egress: isolated by default/client"));
    let mut keeps = egress;
    keeps["metadata"]["annotations"] = json!({"millrace.dev/established": "keep"});
    assert_eq!(world.diff(&[keeps], false).changing, 0);
    // Labels are what policies read, too.
    let mut relabelled = pod("client", CLIENT.into());
    relabelled["metadata"]["labels"]["app"] = "other".into();
    assert_eq!(world.diff(&[relabelled], false).changing, 1);
    // Without the policy nothing is denied.
    let deleted = policy("web", json!({}));
    assert_eq!(world.diff(&[deleted], true).changing, 0);
    assert_eq!(world.node.switch().switch.tables().generation, generation);
    world.send(world.client, CLIENT, [4000, 80]);
    assert_eq!(world.node.switch().switch.state().connections.live(), 2);
}

#[test]
fn proposals_that_are_wrong_are_refused_with_the_reason() {
    let refused = |objects: &[Value], delete| Proposal::from_json(objects, delete).expect_err("refused").to_string();
    assert_eq!(refused(&[], false), "there is no object in what was given");
    let service = objects::service("shop", &["10.96.0.1"], json!({}));
    assert_eq!(refused(&[service], false), "Service default/shop: is of a kind that policies do not read");
    let wrong = policy("web", json!({"podSelector": {}, "policyTypes": ["Inward"]}));
    let words = refused(&[wrong], false);
    assert!(words.contains("NetworkPolicy default/web: spec.policyTypes[0]: \"Inward\""), "{words}");
    let world = World::new();
    let absent = Proposal::from_json(&[policy("none", json!({}))], true).expect("objects");
    let words = absent.cluster(world.node.control().cluster()).expect_err("refused").to_string();
    assert_eq!(words, "NetworkPolicy default/none: does not exist");
}

#[test]
fn flows_of_a_capture_are_compared_offline() {
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures");
    let input = |pod: &str| (format!("default/{pod}"), captures.join(format!("same-node/default_{pod}.pcapng")));
    let options = ReplayOptions {
        objects: captures.join("objects"),
        node: NodeName::new("a").expect("name"),
        inputs: vec![input("client"), input("web")],
        out: None,
        workers: 1,
        clock: ReplayClock::Capture,
    };
    let only_ipv4 = policy(
        "ipv4",
        json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 80}]}]}),
    );
    let proposal = Proposal::from_json(&[only_ipv4], false).expect("objects");
    let (report, problems) = policies::diff(&options, &proposal, 10).expect("compared");
    assert_eq!((report.judged, report.changing, problems.len()), (2, 1, 0), "{report:?}");
    assert_eq!(
        words(&report.flows[0]),
        "tcp default/client fd00:10:1::5:40000 > default/web fd00:10:1::6:80: no policy speaks of it -> ingress drop \
         policy_ingress: isolated by default/ipv4"
    );
    let question = Question { limit: 10, ..Question::default() };
    let report = policies::reach(&options, &question).expect("told");
    assert_eq!((report.pairs, report.open_pairs, report.reach[0].ports[0].as_str()), (2, 2, "all"));
    assert_eq!(report.unused_rules, Some(Vec::new()));
}

#[test]
fn who_reaches_whom_is_told_port_by_port_and_unused_rules_are_named() {
    let world = World::new();
    world.send(world.client, CLIENT, [4000, 80]);
    let control = world.node.control();
    let ask = |from: &str, to: &str| {
        let read = |text: &str| if text == "*" { Selection::All } else { Selection::read(text).expect("a selection") };
        let question = Question { from: read(from), to: read(to), limit: 10 };
        let report = reach(control.cluster(), control.local(), &question).expect("told");
        let lines = report.reach.iter();
        lines.map(|reach| format!("{} > {}: {}", reach.source, reach.target, reach.ports.join(" "))).collect::<Vec<_>>()
    };
    assert_eq!(ask("*", "*"), ["default/client > default/web: udp/80", "default/web > default/client: all"]);
    assert_eq!(ask("default/*", "default/web"), ["default/client > default/web: udp/80"]);
    assert_eq!(ask("203.0.113.9", "default/web"), ["203.0.113.9 > default/web: all"]);
    assert_eq!(ask("198.51.100.9", "default/web"), [""; 0]);
    // The node reaches its pods, by its address and by the one among pods.
    assert_eq!(ask("192.0.2.1", "default/web"), ["192.0.2.1 > default/web: all"]);
    assert_eq!(ask("10.1.0.0", "default/web"), ["10.1.0.0 > default/web: all"]);
    let nobody = Question { from: Selection::read("default/none").expect("a selection"), ..Question::default() };
    assert!(reach(control.cluster(), control.local(), &nobody).is_err());
    let unused = unused(&world.node.switch().switch.tables());
    let named: Vec<String> =
        unused.iter().map(|of| format!("{} {} rule {}", of.policy, of.direction, of.rule.number)).collect();
    assert_eq!(named, ["default/web ingress rule 2"]);
}
