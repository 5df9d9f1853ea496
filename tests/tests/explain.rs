//! One packet, four witnesses: `millrace trace` live, the same of a saved state, what a capture tells of the decision that
//! was carried out, and the frame that the engine sent. All must say the same.

use std::path::PathBuf;
use std::time::Duration;

use millrace_control::api::model::{TraceProtocol, TraceReport, TraceRequest, TraceSource};
use millrace_control::explain;
use millrace_control::store::ObjectStore;
use millrace_control::support::{Explainer, SavedState};
use millrace_engine::capture::{CaptureFilter, Captured, Moment};
use millrace_engine::clock::{Clock, Time};
use millrace_engine::packet::Mac;
use millrace_engine::port::memory::WireFrame;
use millrace_engine::testing::{ACK, SYN, describe, frame};
use millrace_tests::objects;
use millrace_tests::service_world::{OUTSIDE, Protocol, ServiceWorld, pod_address};
use serde_json::json;

/// A directory that goes with its value.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A world with a Service of one pod here, one of a pod there, and a policy that closes `local-2`.
fn world() -> ServiceWorld {
    let mut world = ServiceWorld::new();
    for (service, address, pod, node) in [("near", "10.96.0.10", "local", "a"), ("far", "10.96.0.11", "remote", "b")] {
        world.apply(&objects::service(service, &[address], json!({})));
        let endpoint = pod_address(pod, true).to_string();
        world.apply(&objects::slice(service, true, &[(&endpoint, node, json!({}))]));
    }
    world.apply(&json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "closed", "namespace": "default"},
        "spec": {"podSelector": {"matchLabels": {"app": "closed"}}, "policyTypes": ["Ingress"]},
    }));
    world.apply(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "local-2", "namespace": "default", "labels": {"app": "closed"}},
        "spec": {"nodeName": "a"}, "status": {"podIPs": [{"ip": pod_address("local-2", true).to_string()}]},
    }));
    world
}

fn now(world: &ServiceWorld) -> Time {
    Clock::Manual(world.node().switch().clock.clone()).now()
}

/// Writes what a support bundle has of objects and state.
fn bundle(world: &ServiceWorld, name: &str) -> Directory {
    let directory = std::env::temp_dir().join(format!("millrace-explain-{}-{name}", std::process::id()));
    drop(std::fs::remove_dir_all(&directory));
    std::fs::create_dir_all(directory.join("objects")).expect("a directory");
    for object in world.store.objects() {
        let known = world.store.get(&object.key).expect("get").expect("an object");
        let path = directory.join("objects").join(known.key.file_name());
        std::fs::write(path, known.to_json().to_string()).expect("a file");
    }
    let (tables, state) = {
        let node = world.node().switch();
        (node.switch.tables(), node.switch.state().clone())
    };
    let saved = SavedState::of(world.node().control().local(), tables.generation, &state, now(world));
    let text = serde_json::to_vec(&saved).expect("a document");
    std::fs::write(directory.join("state.json"), text).expect("a file");
    Directory(directory)
}

fn live(world: &ServiceWorld, port: &str, frame: &WireFrame) -> TraceReport {
    let (tables, state) = {
        let node = world.node().switch();
        (node.switch.tables(), node.switch.state().clone())
    };
    explain::frame(&tables, &state, port, &frame.bytes, now(world)).expect("a report")
}

fn text(report: &TraceReport) -> String {
    serde_json::to_string_pretty(report).expect("a document")
}

/// Sends a frame in and tells all that was captured of it, with what left by each port.
fn really(world: &ServiceWorld, port: &str, frame: &WireFrame) -> (Vec<Captured>, Vec<(String, WireFrame)>) {
    let mut node = world.node().switch();
    let tables = node.switch.tables();
    let ingress = tables.ports.iter().find(|known| *known.name == *port).expect("a port").index;
    let mut readers = node.switch.capture(CaptureFilter::default());
    node.inject(ingress.0, frame.clone());
    let captured = readers.iter_mut().flat_map(|reader| std::iter::from_fn(move || reader.next())).collect();
    node.switch.end_capture();
    let mut sent = Vec::new();
    for port in tables.ports.iter() {
        sent.extend(node.all_sent(port.index.0).into_iter().map(|frame| (port.name.to_string(), frame)));
    }
    (captured, sent)
}

/// What the frame that left says of an edit that was told.
fn shows(edit: &str, before: &[u8], after: &[u8]) -> bool {
    let is_tunnelled = after.len() >= before.len() + 50 && describe(after).contains("vxlan");
    let inner = if is_tunnelled { &after[50..] } else { after };
    let macs = |bytes: &[u8]| format!("macs {} > {}", Mac::read(&bytes[6..]), Mac::read(bytes));
    if edit.starts_with("ttl one less") {
        return edit.ends_with(&macs(inner)) && inner[22] + 1 == before[22];
    }
    if edit.starts_with("vxlan") {
        return is_tunnelled && edit.ends_with(&macs(after));
    }
    let words: Vec<&str> = edit.split(' ').collect();
    match words.as_slice() {
        ["source", address, "port", port] => describe(inner).contains(&format!("{address}:{port} >")),
        ["destination", address, "port", port] => describe(inner).contains(&format!("> {address}:{port}")),
        _ => panic!("{edit} is not known here"),
    }
}

/// Holds the four against each other; the report.
fn agreed(world: &ServiceWorld, name: &str, port: &str, frame: &WireFrame) -> TraceReport {
    let saved = bundle(world, name);
    let told = live(world, port, frame);
    let offline = Explainer::open(&saved.0).expect("a bundle").frame(port, &frame.bytes).expect("a report");
    assert_eq!(text(&told), text(&offline), "{name}: live and of the saved state");
    let (captured, sent) = really(world, port, frame);
    let Some((came, later)) = captured.split_first() else { panic!("{name}: nothing captured") };
    let Moment::Arrived(decided) = &came.moment else { panic!("{name}: {came:?}") };
    assert_eq!(came.bytes, frame.bytes, "{name}: as it came");
    assert_eq!(text(&told), text(&explain::captured(came, decided)), "{name}: live and carried out");
    let left: Vec<(String, Vec<u8>)> = later
        .iter()
        .filter_map(|captured| match captured.moment {
            Moment::Left(port) => Some((decided.tables.ports.get(port)?.name.to_string(), captured.bytes.clone())),
            _ => None,
        })
        .collect();
    let out: Vec<(String, Vec<u8>)> = sent.into_iter().map(|(port, frame)| (port, frame.bytes)).collect();
    assert_eq!(left, out, "{name}: captured and sent");
    match (told.verdict.strip_prefix("forward to "), &told.drop) {
        (Some(egress), None) => {
            let [(by, after)] = out.as_slice() else { panic!("{name}: {out:?}") };
            assert_eq!(by, egress, "{name}");
            for edit in &told.edits {
                assert!(shows(edit, &frame.bytes, after), "{name}: {edit}: {}", describe(after));
            }
        }
        (None, Some(drop)) => {
            let dropped = |captured: &&Captured| matches!(captured.moment, Moment::Dropped(reason) if reason.name() == drop.reason);
            assert_eq!(later.iter().filter(dropped).count(), 1, "{name}");
        }
        _ => {}
    }
    told
}

#[test]
fn live_and_saved_trace_the_capture_and_the_frame_that_left_agree() {
    let mut world = world();
    let client = "default/client";
    let to = |address: &str| (address.parse().expect("an address"), 80);
    let near = world.opening("client", 4000, to("10.96.0.10"), Protocol::Tcp);
    let report = agreed(&world, "service", client, &near);
    assert_eq!(report.verdict, "forward to default/local");
    assert!(report.edits.iter().any(|edit| edit == "destination 10.1.0.7 port 8080"), "{report:?}");
    assert!(report.steps.iter().any(|step| step.stage == "service" && step.object.starts_with("default/near")));

    let far = world.opening("client", 4001, to("10.96.0.11"), Protocol::Tcp);
    let report = agreed(&world, "encap", client, &far);
    assert!(report.edits.iter().any(|edit| edit.starts_with("vxlan ")), "{report:?}");

    let closed = world.opening("client", 4002, (pod_address("local-2", true), 8080), Protocol::Tcp);
    let report = agreed(&world, "policy", client, &closed);
    assert_eq!(report.verdict, "drop policy_ingress");
    assert!(report.steps.iter().any(|step| step.stage == "policy" && step.object.contains("closed")), "{report:?}");

    // The port of a masquerade is picked by chance; of a connection that is there it is known.
    let outside = (pod_address(OUTSIDE, true), 443);
    let opening = world.opening("client", 4003, outside, Protocol::Tcp);
    world.send("client", opening);
    world.wait(Duration::from_millis(10));
    let next = frame().from(world.mac("client"), pod_address("client", true)).to(world.gateway("client"), outside.0);
    let next = next.tcp(SYN).ports(4003, 443).sequence(4003 * 7, 0).wire();
    let report = agreed(&world, "masquerade", client, &next);
    assert!(report.edits.iter().any(|edit| edit.starts_with("source 192.0.2.1 port ")), "{report:?}");

    let dying = frame()
        .from(world.mac("client"), pod_address("client", true))
        .to(world.gateway("client"), pod_address("second", true));
    let dying = dying.ttl(1).tcp(SYN).ports(4004, 80).wire();
    let report = agreed(&world, "error", client, &dying);
    assert_eq!(report.verdict, "drop time_exceeded");

    let spoofed = frame()
        .from(world.mac("client"), pod_address("second", true))
        .to(world.gateway("client"), pod_address("local", true));
    let report = agreed(&world, "drop", client, &spoofed.tcp(ACK).ports(4005, 80).wire());
    assert_eq!(report.verdict, "drop source_address_spoofed");
}

#[test]
fn an_imagined_packet_is_answered_alike_live_and_of_a_saved_state() {
    let world = world();
    let saved = bundle(&world, "imagined");
    let explainer = Explainer::open(&saved.0).expect("a bundle");
    let (tables, state) = {
        let node = world.node().switch();
        (node.switch.tables(), node.switch.state().clone())
    };
    for (to, port, verdict) in [
        ("10.96.0.10", 80, "forward to default/local"),
        ("10.96.0.10", 81, "drop service_wrong_port"),
        ("10.1.0.8", 80, "drop policy_ingress"),
        ("10.9.9.9", 80, "drop no_route"),
    ] {
        let from = TraceSource::Pod { namespace: "default".into(), name: "client".into() };
        let to_address = to.parse().expect("an address");
        let request = TraceRequest { from, to_address, to_port: port, protocol: TraceProtocol::Tcp };
        let live = explain::imagined(&tables, &state, &request, now(&world)).expect("a report");
        assert_eq!(text(&live), text(&explainer.imagined(&request).expect("a report")), "{to}");
        assert_eq!(live.verdict, verdict, "{to}");
    }
}
