//! What the plugin prints when something is wrong: one JSON object, the code of the specification, exit code 1.

use serde_json::{Value, json};

use crate::caller::{Agent, Outcome, call, configuration, pod, unused_path};

fn check(outcome: &Outcome, code: u64, version: &str, words: &[&str]) {
    assert_eq!(outcome.exit_code, Some(1), "{outcome:?}");
    let error = outcome.json();
    assert_eq!((error["code"].as_u64(), error["cniVersion"].as_str()), (Some(code), Some(version)), "{outcome:?}");
    let message = error["msg"].as_str().expect("a message");
    assert!(words.iter().all(|word| message.contains(word)), "{outcome:?}");
    assert!(outcome.stderr.contains(message), "the log says it too: {outcome:?}");
    let keys: Vec<&str> = error.as_object().expect("an object").keys().map(String::as_str).collect();
    assert!(keys.iter().all(|key| matches!(*key, "cniVersion" | "code" | "msg" | "details")), "{keys:?}");
}

/// ADD with one key of the configuration changed; nobody listens, so that a fault is found before the agent is asked.
fn add_with(key: &str, value: Value) -> Outcome {
    let mut document = configuration("1.0.0", "/nonexistent/agent.sock");
    document[key] = value;
    call(&pod("ADD"), &document.to_string())
}

#[test]
fn code_1_versions() {
    check(&add_with("cniVersion", "0.2.0".into()), 1, "1.1.0", &["0.2.0", "0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"]);
    check(&add_with("cniVersion", Value::Null), 1, "1.1.0", &["cniVersion"]);
    check(&call(&pod("DEL"), r#"{"cniVersion":"2.0.0","name":"x"}"#), 1, "1.1.0", &["2.0.0"]);
}

#[test]
fn code_2_fields_that_ask_for_what_is_not_done() {
    check(&add_with("ipam", json!({"type": "host-local"})), 2, "1.0.0", &["ipam", "host-local"]);
    let ranges = json!({"ipRanges": [[{"subnet": "10.9.0.0/24"}]]});
    check(&add_with("runtimeConfig", ranges), 2, "1.0.0", &["runtimeConfig.ipRanges", "10.9.0.0/24"]);
    let device = json!({"deviceID": "0000:3b:00.1"});
    check(&add_with("runtimeConfig", device), 2, "1.0.0", &["runtimeConfig.deviceID", "0000:3b:00.1"]);
    // Empty ones ask for nothing: the next fault is that no agent is there.
    let empty = json!({"portMappings": [], "bandwidth": null, "ips": [], "dns": {"servers": ["192.0.2.53"]}});
    check(&add_with("runtimeConfig", empty), 11, "1.0.0", &[]);
    check(&add_with("ipam", json!({})), 11, "1.0.0", &[]);
}

#[test]
fn code_4_variables() {
    for (name, value) in [
        ("CNI_COMMAND", ""),
        ("CNI_COMMAND", "add"),
        ("CNI_COMMAND", "UPDATE"),
        ("CNI_CONTAINERID", ""),
        ("CNI_CONTAINERID", "../c1"),
        ("CNI_NETNS", ""),
        ("CNI_IFNAME", "eth0/1"),
        ("CNI_ARGS", "K8S_POD_NAME"),
    ] {
        let mut variables = pod("ADD");
        variables.retain(|(other, _)| *other != name);
        variables.push((name, value));
        let version = if name == "CNI_COMMAND" { "1.1.0" } else { "1.0.0" };
        let outcome = call(&variables, &configuration("1.0.0", "/nonexistent/agent.sock").to_string());
        check(&outcome, 4, version, &[name]);
    }
    check(&call(&[], ""), 4, "1.1.0", &["CNI_COMMAND"]);
}

#[test]
fn code_6_what_cannot_be_decoded() {
    for input in ["", "{", "[]", "null", r#"{"cniVersion":1}"#, "\u{0}"] {
        check(&call(&pod("ADD"), input), 6, "1.1.0", &["configuration"]);
        check(&call(&pod("DEL"), input), 6, "1.1.0", &["configuration"]);
    }
    check(&add_with("name", 5.into()), 6, "1.0.0", &["configuration"]);
    check(&add_with("prevResult", json!({"ips": [{"address": 5}]})), 6, "1.0.0", &["prevResult"]);
    check(&add_with("padding", "x".repeat(2 << 20).into()), 6, "1.1.0", &["1 MiB"]);
}

#[test]
fn code_7_configurations_that_are_wrong() {
    for (key, value) in [
        ("name", json!("")),
        ("name", Value::Null),
        ("name", json!("a/b")),
        ("socket", json!("agent.sock")),
        ("socket", json!(format!("/{}", "x".repeat(107)))),
        ("timeoutSeconds", json!(0)),
        ("timeoutSeconds", json!(91)),
    ] {
        check(&add_with(key, value), 7, "1.0.0", &[key]);
    }
    for (capability, value, word) in [
        (
            "portMappings",
            json!([{"HostPort": 80, "ContainerPort": 0, "Protocol": "tcp", "HostIP": ""}]),
            "[0].containerPort 0",
        ),
        ("portMappings", json!({"hostPort": 80}), "list"),
        ("bandwidth", json!({"IngressRate": 10}), "ingressRate 10"),
        ("bandwidth", json!([1]), "object"),
        ("dns", json!({"Servers": "192.0.2.53"}), "servers"),
        ("dns", json!([1]), "object"),
    ] {
        let words = [&format!("runtimeConfig.{capability}"), word];
        check(&add_with("runtimeConfig", json!({capability: value.clone()})), 7, "1.0.0", &words);
        // A DEL must not fail for what an ADD refused.
        let mut document = configuration("1.0.0", "/nonexistent/agent.sock");
        document["runtimeConfig"] = json!({capability: value});
        assert_eq!(call(&pod("DEL"), &document.to_string()).exit_code, Some(0));
    }
}

#[test]
fn code_11_no_agent_at_add_and_success_at_delete() {
    let nothing = unused_path();
    let stale = Agent::new(drop);
    drop(std::os::unix::net::UnixStream::connect(stale.socket()).expect("served once"));
    for socket in [nothing.to_str().expect("text"), stale.socket()] {
        // A stale socket refuses as soon as the thread that served it has closed its listener.
        let document = configuration("0.4.0", socket).to_string();
        let refused = std::iter::repeat_with(|| call(&pod("ADD"), &document))
            .take(50)
            .find(|outcome| outcome.code() == Some(11))
            .expect("refused in the end");
        check(&refused, 11, "0.4.0", &[socket]);
        let deleted = call(&pod("DEL"), &document);
        assert_eq!((deleted.exit_code, deleted.stdout.as_str()), (Some(0), ""), "{deleted:?}");
        assert!(deleted.stderr.contains(socket), "the log says why: {deleted:?}");
    }
}

#[test]
fn the_agents_own_failures_pass_through_unchanged() {
    for command in ["ADD", "DEL"] {
        let failure = json!({"code": 5, "msg": "could not make the interface", "details": "EPERM"});
        let (agent, _requests) = Agent::answering(500, &failure);
        let outcome = call(&pod(command), &configuration("1.0.0", agent.socket()).to_string());
        check(&outcome, 5, "1.0.0", &["could not make the interface"]);
        assert_eq!(outcome.json()["details"], "EPERM");
    }
}
