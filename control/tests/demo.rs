//! `millrace demo` as a newcomer runs it: it works, and whatever ends it, nothing of it is left.
//!
//! The measurements are cut short and their goals not asserted: how fast a machine is, is no matter of a test.

#[path = "../../engine/tests/support/root_tests.rs"]
#[macro_use]
mod root_tests;
#[path = "support/traffic_tools.rs"]
mod traffic_tools;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use traffic_tools::{an_address_nobody_has_is_not_reached, every_tool_works_over_both_families};

/// Runs measure and remove each other's remains: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.arg("demo").args(["--seconds", "0.1"]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a run may leave: its directory, its namespaces, processes that work with its files.
fn remains(process: u32) -> Vec<String> {
    let name = format!("millrace-demo-{process}");
    let names = |directory: &str| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let of_run = |found: &String| *found == name || found.starts_with(&format!("{name}-"));
    let mut remains: Vec<String> = names("/run").into_iter().filter(of_run).collect();
    remains.extend(names("/run/netns").into_iter().filter(of_run));
    remains.extend(names("/proc").into_iter().filter(|process| {
        let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&format!("/run/{name}/"))
    }));
    remains
}

/// Starts a run and waits until it says `line`.
fn start_until(line: &str) -> Child {
    let mut child = demo(&[]).spawn().expect("start");
    let mut seen = String::new();
    let mut reader = BufReader::new(child.stderr.take().expect("standard error"));
    while !seen.contains(line) {
        assert_ne!(reader.read_line(&mut seen).expect("standard error"), 0, "it ended early: {seen}");
    }
    // Somebody must go on reading, or the run would end by a broken pipe and not by what the test does.
    std::thread::spawn(move || reader.read_to_string(&mut seen));
    child
}

fn run(arguments: &[&str]) -> (u32, Output) {
    let child = demo(arguments).spawn().expect("start");
    let process = child.id();
    (process, child.wait_with_output().expect("the demo's output"))
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().expect("checks");
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check {name}: {checks:?}"))
}

/// What must hold on any machine.
fn assert_works(report: &Value) {
    let rows = report["reachability"].as_array().expect("rows");
    assert_eq!(rows.len(), 44);
    for row in rows {
        assert_eq!(row["reached"], true, "{row}");
    }
    let services = [
        "Service: connections spread",
        "Service: a node port from outside",
        "Service: an affine client",
        "Service: an endpoint leaves",
        "policy on a live flow",
    ];
    for name in services.into_iter().chain(["reachability", "frames unaccounted for", "unplugging all pods"]) {
        assert_eq!(check(report, name)["held"], true, "{}", check(report, name));
    }
    for attempt in report["throughput"].as_array().expect("throughput") {
        for stream in ["same_node", "reference", "across_nodes", "across_nodes_ipv6"] {
            assert!(attempt[stream]["gigabits_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{attempt}");
        }
    }
    assert_eq!(report["latency"].as_array().map(Vec::len), Some(4));
    let by_uplink = report["by_uplink"].as_array().expect("kinds of uplinks");
    let kinds: Vec<&str> = by_uplink.iter().filter_map(|by| by["kind"].as_str()).collect();
    assert_eq!(kinds, ["af_xdp", "udp", "packet"]);
    assert!(by_uplink.iter().all(|by| by["stream"]["bytes"].as_u64().is_some_and(|bytes| bytes > 0)), "{by_uplink:?}");
    assert_eq!(report["nodes"].as_array().map(Vec::len), Some(2));
    let all_held = report["checks"].as_array().expect("checks").iter().all(|check| check["held"] == true);
    assert_eq!(report["held"], all_held);
}

/// What a run that works ends with: 4 if it was slower than it should be.
fn expected_code(report: &Value) -> i32 {
    if report["held"] == true { 0 } else { 4 }
}

fn a_run_works_also_after_one_that_was_killed_and_neither_leaves_anything() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut killed = start_until("checking who reaches whom");
    killed.kill().expect("kill");
    killed.wait().expect("wait");
    assert!(remains(killed.id()).len() > 6, "a killed run cannot clean up: {:?}", remains(killed.id()));

    let (process, output) = run(&["-o", "json"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {errors}"));
    assert_works(&report);
    assert_eq!(output.status.code(), Some(expected_code(&report)), "{errors}");
    assert_eq!(remains(process), [""; 0]);
    assert_eq!(remains(killed.id()), [""; 0]);
}

fn an_interrupted_run_leaves_nothing() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for (line, signal) in
        [("building two nodes", Signal::INT), ("plugging in", Signal::TERM), ("measuring TCP streams", Signal::INT)]
    {
        let mut child = start_until(line);
        let process = child.id();
        kill_process(Pid::from_child(&child), signal).expect("signal");
        let start = Instant::now();
        let status = child.wait().expect("wait");
        assert_eq!(status.code(), Some(1), "{line}");
        assert!(start.elapsed() < Duration::from_secs(20), "{line}: {:?}", start.elapsed());
        assert_eq!(remains(process), [""; 0], "{line}");
    }
}

fn a_kept_cluster_stands_until_it_is_removed() {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (process, output) = run(&["--keep"]);
    let guide = String::from_utf8_lossy(&output.stdout);
    assert!(remains(process).len() > 6, "{guide}");
    // What the guide says to type works.
    let line = guide.lines().find(|line| line.contains("millrace trace")).expect("a line about trace");
    let mut trace = Command::new(env!("CARGO_BIN_EXE_millrace"));
    let traced = trace.args(line.split_whitespace().skip(1)).output().expect("trace");
    let text = String::from_utf8_lossy(&traced.stdout);
    assert!(
        traced.status.success() && text.contains("=> forward"),
        "{text}{}",
        String::from_utf8_lossy(&traced.stderr)
    );
    let directory: PathBuf = Path::new("/run").join(format!("millrace-demo-{process}"));
    assert!(directory.join("objects/cluster.yaml").exists());

    let (_, output) = run(&["--remove"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(remains(process), [""; 0]);
}

root_tests! {
    every run [
        every_tool_works_over_both_families,
        an_address_nobody_has_is_not_reached,
        a_run_works_also_after_one_that_was_killed_and_neither_leaves_anything,
        an_interrupted_run_leaves_nothing,
        a_kept_cluster_stands_until_it_is_removed,
    ],
}
