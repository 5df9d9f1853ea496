//! The plugin, run as a runtime runs it, against the production server.

use std::time::Instant;

use millrace_control::api::server::Limits;

use crate::test_agent::{SLOW, TestAgent, json, recorded};

#[test]
fn a_pod_is_attached_once_and_detached_as_often_as_asked() {
    let agent = TestAgent::start(Limits::default());
    let added = agent.plugin("ADD", "c1", 10);
    assert_eq!(added.status.code(), Some(0), "{added:?}");
    let sandbox = agent.directory.join("namespace-c1");
    let expected = serde_json::json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": sandbox}],
        "ips": [{"address": "10.1.0.1/32", "gateway": "169.254.1.1", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
        "dns": {},
    });
    assert_eq!(json(&added), expected);
    assert_eq!(recorded(&agent.directory), ["c1"]);

    // A refused ADD may rewrite the namespace's file, but not replace it: the inode is the same.
    let again = agent.plugin("ADD", "c1", 10);
    assert_eq!((again.status.code(), &json(&again)["code"]), (Some(1), &4.into()), "{again:?}");

    for _ in 0..2 {
        let deleted = agent.plugin("DEL", "c1", 10);
        assert_eq!((deleted.status.code(), deleted.stdout.as_slice()), (Some(0), b"".as_slice()), "{deleted:?}");
    }
    assert!(recorded(&agent.directory).is_empty());
}

#[test]
fn many_pods_are_attached_at_once() {
    let agent = TestAgent::start(Limits::default());
    let names: Vec<String> = (0..24).map(|number| format!("c{number:02}")).collect();
    std::thread::scope(|scope| {
        for name in &names {
            let agent = &agent;
            scope.spawn(move || assert!(agent.plugin("ADD", name, 30).status.success()));
        }
    });
    assert_eq!(recorded(&agent.directory), names);
}

#[test]
fn a_runtime_that_gave_up_on_add_gets_its_delete() {
    let agent = TestAgent::start(Limits::default());
    let added = agent.plugin("ADD", "slow", 1);
    assert_eq!((added.status.code(), &json(&added)["code"]), (Some(1), &11.into()), "{added:?}");
    let began = Instant::now();
    assert!(agent.plugin("DEL", "slow", 10).status.success());
    assert!(began.elapsed() < SLOW, "DEL waits for the rest of ADD only");
    assert!(recorded(&agent.directory).is_empty() && agent.network.attached.lock().expect("whole").is_empty());
}

#[test]
fn a_defect_in_the_agent_is_an_error_for_one_pod_only() {
    let agent = TestAgent::start(Limits::default());
    let broken = agent.plugin("ADD", "panic", 10);
    assert_eq!((broken.status.code(), &json(&broken)["code"]), (Some(1), &5.into()), "{broken:?}");
    assert!(agent.plugin("ADD", "c1", 10).status.success());
    assert!(agent.plugin("DEL", "panic", 10).status.success());
    assert_eq!(recorded(&agent.directory), ["c1"]);
}
