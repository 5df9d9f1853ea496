//! The present state alone decides: any order, any batches, any repetition of inputs give the same plan and tables.

use std::collections::BTreeMap;
use std::time::Instant;

use millrace_control::cluster::NetworkName;
use millrace_control::observe::KINDS;
use millrace_control::plan::{AttachedPod, LocalView};
use millrace_control::reconcile::{Input, Reconciler, Settled};
use millrace_control::store::{Event, Object, ObjectKey, ObjectStore};
use proptest::prelude::*;

use crate::support::{TestDirectory, address, attached, block, node, node_name, path, pool, uplink};

/// One history of inputs that ends in the same state as every other.
#[derive(Clone, Debug)]
enum Step {
    Input(Box<Input>),
    Settle,
}

fn objects() -> Vec<Object> {
    let mut text = pool("four", "10.1.0.0/16") + &pool("six", "fd00::/48");
    for number in 0..6 {
        let name = format!("n{number}");
        text += &node(&name, &[&format!("192.0.2.{}", number + 1), &format!("2001:db8::{}", number + 1)]);
        text += &block(&format!("b{number}"), &format!("10.1.{number}.0/26"), "four", &name);
        text += &block(&format!("s{number}"), &format!("fd00::{number}:0/122"), "six", &name);
    }
    for number in 0..4 {
        text += &format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s{number}}}, spec: {{clusterIPs: [10.96.0.{number}, 'fd00:96::{number}'], \
             externalIPs: [198.51.100.{}], selector: {{app: web}}, ports: [{{port: 80, nodePort: 3000{number}}}]}}}}\n",
            number % 3
        );
    }
    for (number, service) in [(0, "s0"), (1, "s0"), (2, "s1")] {
        text += &format!(
            "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{name: e{number}, labels: \
             {{kubernetes.io/service-name: {service}}}}}, ports: [{{port: 8080}}], endpoints: [{{addresses: [10.1.{number}.1], \
             nodeName: n{number}}}, {{addresses: [10.1.3.3], conditions: {{ready: false}}}}]}}\n"
        );
        text += &format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: web{number}, labels: {{app: web}}}}, spec: {{nodeName: n{number}, containers: \
             [{{name: c, ports: [{{containerPort: 80, hostPort: 800{}}}]}}]}}, status: {{podIP: 10.1.{number}.9}}}}\n",
            number % 2
        );
    }
    text += "---\n{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: kubernetes}, spec: {cidrs: [10.96.0.0/16]}}\n";
    text += "---\n{apiVersion: millrace.dev/v1alpha1, kind: Network, metadata: {name: blue}, spec: {vni: 5001, connect: [red]}}\n\
             ---\n{apiVersion: millrace.dev/v1alpha1, kind: Network, metadata: {name: red}, spec: {vni: 5002, connect: [blue]}}\n\
             ---\n{apiVersion: millrace.dev/v1alpha1, kind: Network, metadata: {name: twin}, spec: {vni: 5002}}\n\
             ---\n{apiVersion: millrace.dev/v1alpha1, kind: Network, metadata: {name: lan}, spec: {vni: 5003, layer: 2}}\n\
             ---\n{apiVersion: millrace.dev/v1alpha1, kind: IpPool, metadata: {name: blue}, spec: {cidr: 10.1.0.0/16, network: blue}}\n\
             ---\n{apiVersion: millrace.dev/v1alpha1, kind: IpBlock, metadata: {name: blue.b}, spec: {cidr: 10.1.0.0/26, pool: blue, \
             network: blue, node: n1}}\n\
             ---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: {millrace.dev/network: blue}}}\n\
             ---\n{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: shop, labels: {app: web}}, spec: {nodeName: n1}, \
             status: {podIP: 10.1.0.1}}\n\
             ---\n{apiVersion: v1, kind: Service, metadata: {name: s, namespace: shop}, spec: {clusterIPs: [10.96.0.99], \
             selector: {app: web}, ports: [{port: 80, nodePort: 30099}]}}\n";
    // Contradictions and faults must come out the same in any order too.
    text += &node("twin", &["192.0.2.3"]);
    text += &block("b2-again", "10.1.2.0/26", "four", "n4");
    text += &block("nowhere", "10.1.99.0/26", "four", "nobody");
    text += &pool("invalid", "10.0.0.1/8");
    let directory = TestDirectory::new();
    directory.write("objects.yaml", &text);
    let store = directory.store();
    KINDS.iter().flat_map(|kind| store.list(kind).expect("list")).collect()
}

fn facts() -> [Input; 3] {
    let member = |port, pod, address, network| {
        let (port, plugged) = attached(port, pod, &[address]);
        (port, AttachedPod { network: Some(NetworkName::new(network).expect("name")), ..plugged })
    };
    let pods = [
        attached(3, "web", &["10.1.0.1"]),
        attached(4, "db", &["10.1.0.2", "fd00::2"]),
        member(5, "tenant", "10.1.0.2", "blue"),
        member(6, "flat", "10.1.0.2", "lan"),
    ];
    let underlay = (2..7).map(|last| (address(&format!("192.0.2.{last}")), path(0, "192.0.2.1")));
    [
        Input::Pods(BTreeMap::from(pods)),
        Input::Uplinks(BTreeMap::from([uplink(0, &["192.0.2.1", "2001:db8::1"])])),
        Input::Underlay(underlay.collect()),
    ]
}

/// Debug text of plan, tables (but for the generation) and problems.
fn outcome(steps: &[Step]) -> (String, String, String) {
    let mut reconciler = Reconciler::new(LocalView::new(node_name("n0")));
    for step in steps {
        match step {
            Step::Input(input) => assert!(reconciler.take(input.as_ref().clone())),
            Step::Settle => drop(reconciler.settle(Instant::now())),
        }
    }
    let settled = reconciler.settle(Instant::now());
    assert_eq!(settled.error, None);
    let mut tables = reconciler.publish_state().tables().as_ref().clone();
    tables.generation = 0;
    (format!("{:#?}", settled.plan), format!("{tables:#?}"), format!("{:#?}", settled.problems))
}

fn input(event: Event) -> Step {
    Step::Input(Box::new(Input::Store(event)))
}

/// A history: everything once at the end of its life, with detours before.
fn history() -> impl Strategy<Value = Vec<Step>> {
    let objects = objects();
    let count = objects.len() + 3;
    let last: Vec<Step> = objects
        .iter()
        .map(|object| input(Event::Applied(object.clone())))
        .chain(facts().map(|fact| Step::Input(Box::new(fact))))
        .collect();
    let others: Vec<Step> = objects
        .iter()
        .map(|object| input(Event::Deleted(object.key.clone())))
        .chain(last.iter().cloned())
        .chain([
            input(Event::Deleted(ObjectKey::cluster_scoped(KINDS[0].clone(), "never-was"))),
            Step::Input(Box::new(Input::Pods(BTreeMap::from([attached(9, "gone", &["10.1.0.9"])])))),
            Step::Input(Box::new(Input::Uplinks(BTreeMap::new()))),
            Step::Settle,
        ])
        .collect();
    let order = Just((0..count).collect::<Vec<usize>>()).prop_shuffle();
    let detours = prop::collection::vec(prop::sample::select(others), 0..40);
    let pauses = prop::collection::vec(0..count, 0..5);
    let synced = any::<bool>();
    (order, detours, pauses, synced).prop_map(move |(order, detours, pauses, synced)| {
        let mut steps: Vec<Step> = synced.then(|| input(Event::Synced)).into_iter().collect();
        steps.extend(detours);
        for (position, index) in order.iter().enumerate() {
            steps.push(last[*index].clone());
            if pauses.contains(&position) {
                steps.push(Step::Settle);
            }
        }
        if !synced {
            steps.push(input(Event::Synced));
        }
        steps
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn any_history_of_one_state_gives_one_outcome(steps in history()) {
        let mut plain: Vec<Step> = objects().into_iter().map(|object| input(Event::Applied(object))).collect();
        plain.extend(facts().map(|fact| Step::Input(Box::new(fact))));
        plain.push(input(Event::Synced));
        let (expected, found) = (outcome(&plain), outcome(&steps));
        prop_assert!(expected.0.contains("pod default/web") && expected.1.contains("default/s3:80"));
        prop_assert!(expected.2.contains("belongs to Service default/s0 already"));
        prop_assert_eq!(expected, found);
    }
}

#[test]
fn nothing_is_published_before_all_objects_are_known() {
    let mut reconciler = Reconciler::new(LocalView::new(node_name("n0")));
    for object in objects() {
        reconciler.take(Input::Store(Event::Applied(object)));
    }
    assert!(reconciler.settle(Instant::now()).changes.is_none());
    assert_eq!(reconciler.publish_state().tables().generation, 0);
    reconciler.take(Input::Store(Event::Synced));
    assert!(reconciler.settle(Instant::now()).changes.is_some());
    assert_eq!(reconciler.publish_state().tables().generation, 1);
    // The same state again is no publish.
    for object in objects() {
        reconciler.take(Input::Store(Event::Applied(object)));
    }
    assert!(reconciler.settle(Instant::now()).changes.is_none());
}

#[test]
fn inputs_that_arrive_together_are_one_publish() {
    let mut reconciler = Reconciler::new(LocalView::new(node_name("n0")));
    let (sender, receiver) = millrace_control::reconcile::inputs();
    for object in objects() {
        sender.send(Input::Store(Event::Applied(object))).expect("send");
    }
    sender.send(Input::Store(Event::Synced)).expect("send");
    sender.send(Input::Stop).expect("send");
    let mut publishes = Vec::new();
    let (_events, none) = crossbeam::channel::bounded(1);
    reconciler.run(&none, &receiver, |_, settled| publishes.extend(settled.changes.clone()), |_| ());
    assert_eq!(publishes.iter().map(|changes| changes.generation).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_problem_found_late_still_names_its_place() {
    let mut reconciler = Reconciler::new(LocalView::new(node_name("n0")));
    for object in objects() {
        reconciler.take(Input::Store(Event::Applied(object)));
    }
    reconciler.take(Input::Store(Event::Synced));
    reconciler.take(Input::Uplinks(BTreeMap::from([uplink(0, &["192.0.2.1"])])));
    let problems: Vec<String> = reconciler.settle(Instant::now()).problems.iter().map(ToString::to_string).collect();
    let expected = "IpBlock b2-again: 10.1.2.0/26 belongs to block b2 of node n2 already";
    assert!(problems.iter().any(|line| line.starts_with("objects.yaml:") && line.ends_with(expected)), "{problems:#?}");
}

/// From a file that is saved to tables in force, with the real store and the real loop.
#[test]
fn a_saved_file_becomes_tables() {
    let directory = TestDirectory::new();
    directory.write("nodes.yaml", &(node("n0", &["192.0.2.1"]) + &node("n1", &["192.0.2.2"])));
    let watch = directory.watch();
    let (sender, receiver) = millrace_control::reconcile::inputs();
    sender.send(Input::Uplinks(BTreeMap::from([uplink(0, &["192.0.2.1"])]))).expect("send");
    let mut reconciler = Reconciler::new(LocalView::new(node_name("n0")));
    let mut saved = None;
    let settled = |reconciler: &Reconciler, settled: &Settled| {
        let Some(changes) = &settled.changes else { return };
        if changes.generation == 1 && saved.is_none() {
            directory.write("block.yaml", &block("b", "10.1.0.0/26", "four", "n1"));
            saved = Some(Instant::now());
        }
        let tables = reconciler.publish_state().tables();
        let segment = tables.segments.get(millrace_control::plan::POD_SEGMENT).expect("segment");
        if let millrace_engine::tables::SegmentKind::Routed(routed) = &segment.kind
            && routed.route(address("10.1.0.5")).is_some()
        {
            println!("from save to publish: {:?}", saved.map(|at| at.elapsed()));
            sender.send(Input::Stop).expect("send");
        }
    };
    reconciler.run(&watch.events, &receiver, settled, |_| ());
    assert!(saved.is_some_and(|at| at.elapsed().as_secs() < 5));
}
