//! CHECK, GC and STATUS, the capabilities of ADD, and what DEL leaves when no agent answers.

use std::fs;
use std::path::Path;

use millrace_cni::pending;
use serde_json::{Value, json};

use crate::caller::{Agent, call, configuration, pod, unused_path};

fn add_result() -> Value {
    json!({
        "interfaces": [{"name": "veth0"},
            {"name": "eth0", "mac": "02:00:5e:10:00:05", "mtu": 1400, "sandbox": "/run/netns/c1"},
            {"name": "net1", "mac": "02:00:5e:10:00:06", "sandbox": "/run/netns/c1"}],
        "ips": [{"address": "10.1.0.5/32", "interface": 1}, {"address": "192.0.2.1/24", "interface": 0},
            {"address": "10.2.0.5/32", "interface": 2}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "198.51.100.0/24", "priority": 7}],
    })
}

#[test]
fn check_asks_about_its_own_interface_and_tells_what_else_is_in_the_pod() {
    let (agent, requests) = Agent::answering(200, &json!({}));
    let mut document = configuration("1.1.0", agent.socket());
    document["prevResult"] = add_result();
    let outcome = call(&pod("CHECK"), &document.to_string());
    assert_eq!((outcome.exit_code, outcome.stdout.as_str()), (Some(0), ""), "{outcome:?}");
    let expected = json!({
        "network": "millrace", "container_id": "c1", "interface": "eth0", "network_namespace": "/run/netns/c1",
        "mac": "02:00:5e:10:00:05", "addresses": ["10.1.0.5"], "mtu_bytes": 1400,
        "further": [{"name": "net1", "mac": "02:00:5e:10:00:06", "addresses": ["10.2.0.5"]}],
        "routes": [{"destination": "0.0.0.0/0", "gateway": "169.254.1.1"},
            {"destination": "198.51.100.0/24", "gateway": null}],
    });
    assert_eq!(requests.recv().expect("one request"), ("/v1/cni/check".to_owned(), expected));
}

#[test]
fn verbs_are_refused_where_the_version_or_what_they_need_is_missing() {
    let nobody = unused_path();
    let nobody = nobody.to_str().expect("text");
    let refused = |verb: &str, document: &Value| call(&pod(verb), &document.to_string()).code();
    for (verb, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0")] {
        assert_eq!(refused(verb, &configuration(version, nobody)), Some(1), "{verb} {version}");
    }
    let document = configuration("1.1.0", nobody);
    assert_eq!(refused("CHECK", &document), Some(7), "without prevResult");
    assert_eq!(refused("GC", &document), Some(7), "without a list everything would be lost");
    let mut other = configuration("1.1.0", nobody);
    other["prevResult"] = json!({"interfaces": [{"name": "eth1"}]});
    assert_eq!(refused("CHECK", &other), Some(7), "prevResult without the interface");
    other["prevResult"] = add_result();
    assert_eq!(refused("CHECK", &other), Some(11), "no agent");
    assert_eq!(refused("STATUS", &document), Some(51), "without the agent pods are cut off, too");
}

#[test]
fn collection_passes_the_runtimes_list_on_and_status_the_agents_reason() {
    let (agent, requests) = Agent::answering(200, &json!({}));
    let mut document = configuration("1.1.0", agent.socket());
    document["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    // GC and STATUS come without container, namespace and interface.
    assert_eq!(call(&[("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt")], &document.to_string()).exit_code, Some(0));
    let (path, request) = requests.recv().expect("one request");
    let expected = json!({"network": "millrace", "valid": [{"containerID": "c1", "ifname": "eth0"}]});
    assert_eq!((path.as_str(), request), ("/v1/cni/gc", expected));
    // So libcni writes that no attachment is valid.
    let (agent, requests) = Agent::answering(200, &json!({}));
    let mut document = configuration("1.1.0", agent.socket());
    document["cni.dev/valid-attachments"] = Value::Null;
    assert_eq!(call(&[("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt")], &document.to_string()).exit_code, Some(0));
    let (_, request) = requests.recv().expect("one request");
    assert_eq!(request, json!({"network": "millrace", "valid": []}));

    let (agent, _requests) =
        Agent::answering(503, &json!({"code": 50, "msg": "no pod can be attached: no IpPool exists"}));
    let outcome = call(&[("CNI_COMMAND", "STATUS")], &configuration("1.1.0", agent.socket()).to_string());
    assert_eq!((outcome.exit_code, outcome.code()), (Some(1), Some(50)), "{outcome:?}");
    let (agent, _requests) = Agent::answering(200, &json!({}));
    let outcome = call(&[("CNI_COMMAND", "STATUS")], &configuration("1.1.0", agent.socket()).to_string());
    assert_eq!((outcome.exit_code, outcome.stdout.as_str()), (Some(0), ""));
}

/// The request that reaches the agent, and the resolver part of the result.
fn asked(fill: impl FnOnce(&mut Value), arguments: &str) -> (Value, Value) {
    let answer = json!({"mac": "02:00:5e:10:00:05", "mtu_bytes": 1450, "addresses": [], "routes": []});
    let (agent, requests) = Agent::answering(200, &answer);
    let mut document = configuration("1.1.0", agent.socket());
    fill(&mut document);
    let mut variables = pod("ADD");
    variables.retain(|(name, _)| *name != "CNI_ARGS");
    variables.push(("CNI_ARGS", arguments));
    let outcome = call(&variables, &document.to_string());
    assert_eq!(outcome.exit_code, Some(0), "{outcome:?}");
    (requests.recv().expect("one request").1, outcome.json()["dns"].clone())
}

#[test]
fn the_runtimes_wish_for_addresses_beats_the_arguments_and_those_the_environment() {
    let wish = |capability: bool, argument: bool, environment: bool| {
        let fill = |document: &mut Value| {
            if capability {
                document["runtimeConfig"] = json!({"ips": ["10.1.0.7/24", "fd00::7"], "mac": "02:00:00:00:00:01"});
            }
            if argument {
                document["args"] = json!({"cni": {"ips": ["10.1.0.8"], "mac": "02:00:00:00:00:02"}});
            }
        };
        let (request, _) = asked(fill, if environment { "IP=10.1.0.9,fd00::9/64;MAC=02:00:00:00:00:03" } else { "" });
        (request["addresses"].clone(), request["mac"].clone())
    };
    assert_eq!(wish(true, true, true), (json!(["10.1.0.7", "fd00::7"]), json!("02:00:00:00:00:01")));
    assert_eq!(wish(false, true, true), (json!(["10.1.0.8"]), json!("02:00:00:00:00:02")));
    assert_eq!(wish(false, false, true), (json!(["10.1.0.9", "fd00::9"]), json!("02:00:00:00:00:03")));
    assert_eq!(wish(false, false, false), (Value::Null, Value::Null));
    for wrong in
        [json!({"ips": "10.1.0.7"}), json!({"ips": ["10.1.0"]}), json!({"mac": 5}), json!({"ips": ["10.1.0.7/33"]})]
    {
        let mut document = configuration("1.1.0", "/nonexistent/agent.sock");
        document["runtimeConfig"] = wrong.clone();
        assert_eq!(call(&pod("ADD"), &document.to_string()).code(), Some(7), "{wrong}");
        assert_eq!(call(&pod("DEL"), &document.to_string()).exit_code, Some(0), "DEL does not mind");
    }
}

#[test]
fn the_resolver_comes_from_the_capability_or_the_configuration() {
    let both = |document: &mut Value| {
        document["dns"] = json!({"nameservers": ["192.0.2.53"], "domain": "example.org"});
        document["runtimeConfig"] =
            json!({"dns": {"servers": ["192.0.2.54"], "searches": ["a.example"], "options": []}});
    };
    assert_eq!(asked(both, "").1, json!({"nameservers": ["192.0.2.54"], "search": ["a.example"]}));
    let own = |document: &mut Value| document["dns"] = json!({"nameservers": ["192.0.2.53"]});
    assert_eq!(asked(own, "").1, json!({"nameservers": ["192.0.2.53"]}));
}

#[test]
fn a_delete_without_an_agent_leaves_its_request_once() {
    let directory = unused_path().with_extension("state");
    let mut document = configuration("1.0.0", unused_path().to_str().expect("text"));
    document["stateDirectory"] = json!(directory);
    for _ in 0..3 {
        assert_eq!(call(&pod("DEL"), &document.to_string()).exit_code, Some(0));
    }
    let waiting = pending::waiting(&directory).expect("readable");
    let [(file, Ok(request))] = waiting.as_slice() else { panic!("{waiting:?}") };
    assert_eq!((request.container_id.as_str(), request.interface.as_str()), ("c1", "eth0"));
    assert_eq!(file, &pending::file(&directory, "c1", "eth0").expect("short enough"));
    // Where there is no room, now, the runtime has to ask again; here since too many wait.
    for number in 1..pending::FILES {
        fs::write(pending::directory(&directory).join(number.to_string()), "").expect("written");
    }
    let other: Vec<_> = pod("DEL").into_iter().filter(|(name, _)| *name != "CNI_CONTAINERID").collect();
    let other = [other, vec![("CNI_CONTAINERID", "c2")]].concat();
    let outcome = call(&other, &document.to_string());
    assert_eq!((outcome.exit_code, outcome.code()), (Some(1), Some(11)), "{outcome:?}");
    assert_eq!(call(&pod("DEL"), &document.to_string()).exit_code, Some(0), "its file is there");
    // Where it can never be written DEL succeeds all the same and says so.
    document["stateDirectory"] = json!(Path::new("/proc/nonexistent"));
    let outcome = call(&pod("DEL"), &document.to_string());
    assert_eq!(outcome.exit_code, Some(0));
    assert!(outcome.stderr.contains("could not be left"), "{outcome:?}");
    fs::remove_dir_all(directory).expect("removed");
}
