//! Pages of `docs/` that are made from the code, and whether the others still agree with it.
//!
//! `MILLRACE_WRITE_DOCS=1 cargo test -p millrace-engine --test docs` writes the generated pages anew.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use millrace_engine::clock::Time;
use millrace_engine::counters::Event;
use millrace_engine::drop_reason::DropReason;
use millrace_engine::flow_cache::HashKey;
use millrace_engine::packet::parse::parse;
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::slow_path::{Arrival, Tunnelled, decide};
use millrace_engine::state::State;
use millrace_engine::tables::{
    Peer, Route, RouteTarget, Segment, SegmentIndex, SegmentKind, Snapshot, Vni, address_bits,
};
use millrace_engine::testing::node::{GATEWAY_MAC, TestPeer, TestPod, pods_snapshot};
use millrace_engine::testing::{ACK, frame};

const GENERATED: &str = "Generated; `MILLRACE_WRITE_DOCS=1 cargo test -p millrace-engine --test docs` writes it anew.";

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Compares a page with what it must say, or writes it if asked to.
fn hold(name: &str, expected: &str) {
    let path = docs().join(name);
    if std::env::var_os("MILLRACE_WRITE_DOCS").is_some_and(|value| value == "1") {
        fs::write(&path, expected).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let present = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(present, expected, "docs/{name} does not say what the code says. {GENERATED}");
}

/// A cell's text: a bar would end the cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[test]
fn drop_reasons_page_is_the_enum() {
    let mut page = format!(
        "# Drop reasons\n\nEvery packet that goes no further is counted under exactly one of these {} names. `millrace show \
         drops`,\n`millrace trace`, the tests and this page use the same names and sentences: they stand once, in\n\
         `engine/src/drop_reason.rs`. {GENERATED}\n\n| name | what happened | what to check next |\n|---|---|---|\n",
        DropReason::COUNT
    );
    for reason in DropReason::ALL {
        let (sentence, next) = (cell(reason.sentence()), cell(reason.next_step()));
        writeln!(page, "| `{}` | {sentence} | {next} |", reason.name()).expect("a string takes all");
    }
    hold("drop-reasons.md", &page);
}

#[test]
fn counters_page_is_the_enum() {
    let mut page = format!(
        "# Counters\n\nEach worker counts for itself; only it writes, so a count costs a load and a store. Drops are counted \
         by\n[reason](drop-reasons.md), frames and bytes by port (received, sent, dropped), and beside these the \
         events below.\nThey stand in `engine/src/counters.rs`. {GENERATED}\n\n| name | what it counts |\n|---|---|\n"
    );
    for event in Event::ALL {
        writeln!(page, "| `{}` | {} |", event.name(), cell(event.sentence())).expect("a string takes all");
    }
    page.push_str(
        "\n## Frames are conserved\nFor each worker, at rest: received + made + taken from lanes = sent + dropped + \
         consumed + merged + handed to lanes + held.\n`WorkerCounters::unaccounted` computes the difference; every test \
         on a whole switch expects zero.\n",
    );
    hold("counters.md", &page);
}

/// `docs/limits.md` has a row for each constant, with the value as the code writes it.
#[test]
fn limits_page_has_every_constant() {
    let source = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/limits.rs"));
    let page = read(&docs().join("limits.md"));
    let mut constants = 0;
    for line in source.lines() {
        let Some(rest) = line.strip_prefix("pub const ") else { continue };
        let (name, rest) = rest.split_once(':').expect("a constant has a type");
        let (_, value) = rest.split_once('=').expect("a constant has a value");
        let row = format!("| `{name}` | {} |", value.trim().trim_end_matches(';'));
        assert!(page.contains(&row), "docs/limits.md has no row that begins {row}");
        constants += 1;
    }
    assert!(constants > 30, "only {constants} constants found: is limits.rs read rightly?");
    let rows = page.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, constants, "docs/limits.md has rows for constants that are gone");
}

/// The pages people write: README and everything in `docs/`.
fn pages() -> Vec<(PathBuf, String)> {
    let mut paths = vec![docs().join("../README.md")];
    for folder in [docs(), docs().join("decisions")] {
        let entries = fs::read_dir(&folder).expect("docs").map(|entry| entry.expect("docs").path());
        paths.extend(entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    paths.into_iter().map(|path| (path.clone(), read(&path))).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut links = 0;
    for (path, text) in pages() {
        for rest in text.split("](").skip(1) {
            let target = rest.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let place = path.parent().expect("a page lies in a folder").join(target);
            assert!(place.exists(), "{}: the link to {target} leads nowhere", path.display());
            links += 1;
        }
    }
    assert!(links > 10, "only {links} links found");
}

/// A source file or folder that a page names must exist.
#[test]
fn files_named_exist() {
    let root = docs().join("..");
    let mut files = 0;
    for (path, text) in pages() {
        for name in text.split('`').skip(1).step_by(2) {
            let ours = ["engine/", "control/", "cni-shim/"].iter().any(|member| name.starts_with(member));
            if !ours || name.contains([' ', '*', '{']) {
                continue;
            }
            assert!(root.join(name).exists(), "{}: {name} does not exist", path.display());
            files += 1;
        }
    }
    assert!(files > 50, "only {files} files found");
}

const UPLINK: u16 = 100;

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

/// Tables of node `node` with one pod, and a route to the pods of node `other`, named as the control plane names them.
fn tables(node: u8, other: u8, name: &str) -> Snapshot {
    let address = |text: String| text.parse().expect("address");
    let pod = TestPod { port: 1, mac: mac(1), addresses: vec![address(format!("10.{node}.0.1"))] };
    let end = address(format!("192.0.2.{other}"));
    let prefix = address(format!("10.{other}.0.0"));
    let own = address(format!("192.0.2.{node}"));
    let peer = TestPeer { address: end, source: own, tunnel_mac: mac(200 + other), prefixes: Vec::new() };
    let mut snapshot = pods_snapshot(&[pod], UPLINK, mac(200 + node), &[peer]);
    let peer = Peer::clone(snapshot.tunnels.peer(end).expect("peer"));
    snapshot.tunnels.insert_peer(Peer { name: name.into(), ..peer });
    let mut segment = Segment::clone(snapshot.segments.get(SegmentIndex(0)).expect("segment"));
    let SegmentKind::Routed(routed) = &mut segment.kind else { panic!("the pods' segment is routed") };
    let route = Route {
        name: format!("block 10-{other}-0-0-24 of node {name}").into(),
        target: RouteTarget::Tunnel { peer: end, mac: mac(200 + other) },
    };
    routed.routes_mut(prefix).insert(address_bits(prefix), 24, route);
    snapshot.segments.insert(segment);
    snapshot
}

/// The trails that packet-path.md quotes are those of `decide`.
#[test]
fn trails_of_the_packet_path_are_real() {
    let page = read(&docs().join("packet-path.md"));
    let leaving = frame().from(mac(1), "10.1.0.1").to(GATEWAY_MAC, "10.2.0.1").tcp(ACK).ports(4000, 80).build();
    let arriving = frame().from(mac(201), "10.1.0.1").to(mac(202), "10.2.0.1").tcp(ACK).ports(4000, 80).build();
    let state = State::new(64, 1, HashKey::from_seed(1)).expect("memory");
    let tunnel = Tunnelled { peer: "192.0.2.1".parse().expect("address"), vni: Vni::new(1).expect("vni") };
    for (tables, bytes, port, tunnel) in
        [(tables(1, 2, "b"), leaving, 1, None), (tables(2, 1, "a"), arriving, UPLINK, Some(tunnel))]
    {
        let headers = parse(&bytes, bytes.len()).expect("a valid frame");
        let arrival = Arrival { port: PortIndex(port), tunnel, frame: &bytes, headers: &headers, gso: None };
        let trail = decide(&tables, &state, &arrival, Time::ZERO).trail.to_string();
        assert!(page.lines().any(|line| line.trim() == trail), "docs/packet-path.md does not quote this: {trail}");
    }
}
