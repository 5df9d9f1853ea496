//! `millrace policy` against the production server, and offline.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use millrace_control::api::server::Limits;

use crate::test_agent::{TestAgent, json};

const CLOSED: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: default}
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16}}], ports: [{port: 80}]}]}
";

/// A directory of one test.
struct Files(PathBuf);

impl Files {
    fn new(policy: &str) -> (Self, String) {
        let directory = crate::test_agent::directory();
        let file = directory.join("policy.yaml");
        fs::write(&file, policy).expect("written");
        let name = file.to_str().expect("text").to_owned();
        (Self(directory), name)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[test]
fn the_agent_is_asked_and_answers_as_table_and_as_json() {
    let agent = TestAgent::start(Limits::default());
    let (_files, file) = Files::new(&format!("{CLOSED}---\n{}", CLOSED.replace("closed", "second")));
    let diff = agent.millrace(&["policy", "diff", "-f", &file, "--limit", "1"]);
    let words = text(&diff.stdout);
    assert!(
        diff.status.success() && words.contains("2 of 9 flows would get another verdict; 1 are listed."),
        "{words}"
    );
    let diff = agent.millrace(&["policy", "diff", "-f", &file, "--delete", "--exit-code", "-o", "json"]);
    let document = json(&diff);
    assert_eq!((diff.status.code(), &document["flows"][1]["state"]), (Some(5), &"second".into()));
    assert_eq!(document["flows"][0]["protocol"], "udp");
    let reach = agent.millrace(&["policy", "reach", "--from", "default/*", "--to", "fd00::5"]);
    let words = text(&reach.stdout);
    assert!(words.contains("default/*") && words.contains("fd00::5") && words.contains("tcp/80, icmp"), "{words}");
    assert!(
        words.contains("2 of 3 pairs") && words.contains("Every rule that lets something through was used."),
        "{words}"
    );
    let reach = json(&agent.millrace(&["policy", "reach", "--limit", "1", "-o", "json"]));
    assert_eq!((reach["reach"].as_array().map(Vec::len), &reach["reach"][0]["source"]), (Some(1), &"all".into()));
}

#[test]
fn what_is_wrong_is_said_with_file_and_line() {
    let agent = TestAgent::start(Limits::default());
    let (_files, file) = Files::new(&CLOSED.replace("spec: {podSelector", "spec: {policyTypes: [Up], podSelector"));
    let refused = agent.millrace(&["policy", "diff", "-f", &file]);
    let words = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1));
    assert!(words.contains(&format!("{file}:4: NetworkPolicy default/closed: spec.policyTypes[0]")), "{words}");
    let absent = agent.millrace(&["policy", "diff", "-f", "/nonexistent.yaml"]);
    assert!(text(&absent.stderr).contains("cannot read /nonexistent.yaml"));
    for wrong in [&["policy", "diff"][..], &["policy", "reach", "--to", "web"], &["policy", "reach", "--node", "a"]] {
        assert_eq!(agent.millrace(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

/// The program without an agent, on the captures of two pods of one node.
fn offline(arguments: &[&str]) -> Output {
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/captures");
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.arg("policy").args(arguments).arg("--objects").arg(captures.join("objects")).args(["--node", "a"]);
    for pod in ["client", "web"] {
        let capture = captures.join(format!("same-node/default_{pod}.pcapng"));
        command.arg("--in").arg(format!("default/{pod}={}", capture.display()));
    }
    command.output().expect("ran")
}

#[test]
fn objects_and_captures_do_without_an_agent() {
    let (_files, file) = Files::new(CLOSED);
    let diff = offline(&["diff", "-f", &file]);
    let words = text(&diff.stdout);
    assert!(diff.status.success(), "{words}{}", text(&diff.stderr));
    assert!(words.contains("tcp default/client [fd00:10:1::5]:40000") && words.contains("captured"), "{words}");
    assert!(words.contains("then: ingress drop policy_ingress: isolated by default/closed"), "{words}");
    assert!(words.contains("1 of 2 flows would get another verdict."), "{words}");
    let reach = offline(&["reach", "-o", "json"]);
    assert_eq!(json(&reach)["open_pairs"], 2);
}
