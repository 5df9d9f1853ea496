//! `millrace show` and `millrace trace` against the production server, and the exit codes.

use std::process::Command;

use millrace_control::api::server::Limits;
use millrace_control::configuration::Configuration;

use crate::test_agent::{TestAgent, json};

#[test]
fn every_document_is_shown_as_table_and_as_json() {
    let agent = TestAgent::start(Limits::default());
    assert!(agent.plugin("ADD", "c1", 10).status.success());
    for (what, in_table, pointer, in_json) in [
        ("ports", "c1", "/0/name", "c1".into()),
        ("workers", "generation 0", "/0/worker", 1.into()),
        ("routes", "unreachable", "/0/target/kind", "unreachable".into()),
        ("services", "ClusterIP 10.96.0.1:80, NodePort 80", "/0/endpoints/1/state", "not-ready".into()),
        ("services", "not-ready, unused", "/1/name", "default/none".into()),
        ("neighbours", "192.0.2.2", "/0/address", "192.0.2.2".into()),
        ("flows", "1,000 of 5,000 flows", "/total", 5000.into()),
        ("connections", "5 of 0 shown; 7 of 0 there may be.", "/total", 7.into()),
        ("fdb", "02:00:00:00:00:09", "/0/mac", "02:00:00:00:00:09".into()),
        ("ipam", "There is no IpPool.", "/node", "a".into()),
        ("receipts", "1.5 ms", "/1/name", "default/db".into()),
        ("status", "Problems:", "/node", serde_json::Value::from("a")),
    ] {
        let table = agent.millrace(&["show", what]);
        let text = String::from_utf8(table.stdout).expect("text");
        assert!(table.status.success() && text.contains(in_table), "{what}: {text}");
        let document = agent.millrace(&["show", what, "-o", "json"]);
        assert_eq!(json(&document).pointer(pointer), Some(&in_json), "{what}");
    }
    let receipts = json(&agent.millrace(&["show", "receipts", "default/web", "-o", "json"]));
    assert_eq!(receipts.as_array().map(Vec::len), Some(1));
    let flows = agent.millrace(&["show", "-o", "json", "flows", "--limit", "3"]);
    assert_eq!(json(&flows)["flows"].as_array().map(Vec::len), Some(3));
    let filters =
        ["show", "connections", "--pod", "default/we b&", "--state", "SYN_SENT", "--limit", "2", "-o", "json"];
    let connections = json(&agent.millrace(&filters));
    assert_eq!(connections["connections"].as_array().map(Vec::len), Some(2));
    assert_eq!(connections["connections"][0]["segment"], "default/we b&");
    assert_eq!(connections["connections"][0]["state"], "SYN_SENT");
    let policies = agent.millrace(&["show", "policies", "--pod", "default/web-0"]);
    let text = String::from_utf8(policies.stdout).expect("text");
    assert!(text.contains("default/web-0") && text.contains("No policy selects a pod of this node."), "{text}");
    let trace = agent.millrace(&["trace", "--from", "default/web-0", "--to", "[fd00::5]:53/udp", "-o", "json"]);
    assert_eq!(json(&trace)["packet"], "udp to fd00::5:53");
    for from in ["host", "uplink:eth0,198.51.100.7"] {
        let trace = agent.millrace(&["trace", "--from", from, "--to", "192.0.2.1:30080", "-o", "json"]);
        assert_eq!(json(&trace)["packet"], "tcp to 192.0.2.1:30080", "{from}");
    }
}

#[test]
fn exit_codes_are_as_documented() {
    let mut agent = TestAgent::start(Limits::default());
    let refused = agent.millrace(&["trace", "--from", "default/none", "--to", "10.1.0.1:80"]);
    let words = String::from_utf8(refused.stderr).expect("text");
    assert_eq!((refused.status.code(), words.as_str()), (Some(1), "millrace: no pod default/none on this node\n"));
    let refused = agent.millrace(&["show", "drops"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("worker 1 does not answer"));
    assert_eq!(agent.millrace(&["check", "ipam"]).status.code(), Some(0));
    assert!(agent.plugin("ADD", "c1", 10).status.success());
    let found = agent.millrace(&["check", "ipam", "-o", "json"]);
    assert_eq!((found.status.code(), &json(&found)["findings"][0]["subject"]), (Some(5), &"10.1.0.9".into()));
    for wrong in [&["show", "nothing"][..], &["show"], &["trace", "--from", "web-0", "--to", "10.1.0.1:80"], &["trace"]]
    {
        assert_eq!(agent.millrace(wrong).status.code(), Some(2), "{wrong:?}");
    }
    agent.stop();
    let absent = agent.millrace(&["show", "status"]);
    assert_eq!(absent.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&absent.stderr).contains("agent.sock"), "the message names the socket");
}

#[test]
fn the_agent_prints_and_checks_its_configuration() {
    let run = |arguments: &[&str]| Command::new(env!("CARGO_BIN_EXE_millrace")).args(arguments).output().expect("ran");
    let printed = run(&["agent", "--print-default"]);
    assert!(printed.status.success());
    assert_eq!(String::from_utf8(printed.stdout).expect("text"), Configuration::default_text());
    let directory = crate::test_agent::directory();
    let file = directory.join("agent.toml");
    let name = file.to_str().expect("text");
    std::fs::write(&file, Configuration::default_text()).expect("written");
    assert_eq!(run(&["agent", "--config", name, "--check"]).status.code(), Some(0));
    std::fs::write(&file, "workers = 1\nworker = 2\n").expect("written");
    let refused = run(&["agent", "--config", name, "--check"]);
    let words = String::from_utf8(refused.stderr).expect("text");
    assert_eq!(refused.status.code(), Some(1));
    assert!(words.contains(name) && words.contains("`worker`") && words.contains("line 2"), "{words}");
    std::fs::remove_dir_all(directory).expect("removed");
}
