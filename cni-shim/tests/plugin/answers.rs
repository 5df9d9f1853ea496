//! What the plugin prints when all is well, for each version.

use serde_json::{Value, json};

use crate::caller::{Agent, call, configuration, pod};

fn agents_answer() -> Value {
    json!({
        "mac": "02:00:5e:10:00:05",
        "mtu_bytes": 1450,
        "addresses": [{"address": "10.1.0.5/32", "gateway": "169.254.1.1"}, {"address": "fd00::5/128", "gateway": null}],
        "routes": [{"destination": "169.254.1.1/32", "gateway": null}, {"destination": "0.0.0.0/0", "gateway": "169.254.1.1"}],
    })
}

/// The result of ADD without a previous plugin.
fn expected(version: &str) -> Value {
    let mut result = json!({
        "cniVersion": version,
        "interfaces": [{"name": "eth0", "mac": "02:00:5e:10:00:05", "sandbox": "/run/netns/c1"}],
        "ips": [
            {"address": "10.1.0.5/32", "gateway": "169.254.1.1", "interface": 0},
            {"address": "fd00::5/128", "interface": 0},
        ],
        "routes": [{"dst": "169.254.1.1/32"}, {"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
        "dns": {},
    });
    if matches!(version, "0.3.0" | "0.3.1" | "0.4.0") {
        result["ips"][0]["version"] = "4".into();
        result["ips"][1]["version"] = "6".into();
    }
    if version == "1.1.0" {
        result["interfaces"][0]["mtu"] = 1450.into();
    }
    result
}

#[test]
fn add_prints_the_result_of_the_callers_version() {
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let (agent, requests) = Agent::answering(200, &agents_answer());
        let outcome = call(&pod("ADD"), &configuration(version, agent.socket()).to_string());
        assert_eq!((outcome.exit_code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
        assert_eq!(outcome.json(), expected(version));
        let (path, request) = requests.recv().expect("one request");
        assert_eq!(path, "/v1/cni/add");
        let arguments = json!({"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": "web-0",
            "K8S_POD_INFRA_CONTAINER_ID": "c1"});
        let expected = json!({"network": "millrace", "container_id": "c1", "interface": "eth0",
            "network_namespace": "/run/netns/c1", "arguments": arguments});
        assert_eq!(request, expected);
    }
}

#[test]
fn what_the_runtime_has_for_the_capabilities_reaches_the_agent() {
    // As containerd writes it, and as the conventions have it.
    let capital = json!({
        "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""},
            {"HostPort": 5000, "ContainerPort": 5001, "Protocol": "sctp", "HostIP": "192.0.2.1"}],
        "bandwidth": {"IngressRate": 1_000_000, "IngressBurst": 4_294_967_295_u64, "EgressRate": 2_000_000, "EgressBurst": 80_000},
        "dns": {"Servers": ["10.96.0.10"], "Searches": ["default.svc.cluster.local"], "Options": ["ndots:5"]},
    });
    let plain = json!({
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 5000, "containerPort": 5001, "protocol": "sctp", "hostIP": "192.0.2.1"}],
        "bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 0, "egressRate": 2_000_000, "egressBurst": 80_000},
        "dns": {"servers": ["10.96.0.10"], "searches": ["default.svc.cluster.local"], "options": ["ndots:5"]},
    });
    for given in [capital, plain] {
        let (agent, requests) = Agent::answering(200, &agents_answer());
        let mut configuration = configuration("1.1.0", agent.socket());
        configuration["runtimeConfig"] = given;
        let result = call(&pod("ADD"), &configuration.to_string()).json();
        let dns =
            json!({"nameservers": ["10.96.0.10"], "search": ["default.svc.cluster.local"], "options": ["ndots:5"]});
        assert_eq!(result["dns"], dns);
        let (_, request) = requests.recv().expect("one request");
        let ports = json!([{"host_port": 8080, "container_port": 80, "transport": "tcp"},
            {"host_port": 5000, "container_port": 5001, "transport": "sctp", "host_address": "192.0.2.1"}]);
        assert_eq!(request["port_mappings"], ports);
        let bandwidth = json!({"ingress": {"bits_per_second": 1_000_000},
            "egress": {"bits_per_second": 2_000_000, "burst_bits": 80_000}});
        assert_eq!(request["bandwidth"], bandwidth);
    }
}

#[test]
fn add_in_a_chain_keeps_what_came_before() {
    let (agent, _requests) = Agent::answering(200, &agents_answer());
    let mut configuration = configuration("1.0.0", agent.socket());
    configuration["prevResult"] = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "br0"}, {"name": "lo", "sandbox": "/run/netns/c1"}],
        "ips": [{"address": "127.0.0.1/8", "interface": 1}],
        "dns": {"nameservers": ["192.0.2.53"]},
    });
    let mut expected = expected("1.0.0");
    for address in expected["ips"].as_array_mut().expect("a list") {
        address["interface"] = 2.into();
    }
    let previous = &configuration["prevResult"];
    for key in ["interfaces", "ips"] {
        let mut list = previous[key].as_array().expect("a list").clone();
        list.extend(expected[key].as_array().expect("a list").iter().cloned());
        expected[key] = list.into();
    }
    expected["dns"] = previous["dns"].clone();
    assert_eq!(call(&pod("ADD"), &configuration.to_string()).json(), expected);
}

#[test]
fn add_refuses_to_come_second_to_its_own_interface() {
    let mut configuration = configuration("1.1.0", "/nonexistent/agent.sock");
    configuration["prevResult"] = json!({"interfaces": [{"name": "eth0", "sandbox": "/run/netns/c1"}]});
    let outcome = call(&pod("ADD"), &configuration.to_string());
    assert_eq!(outcome.code(), Some(4), "{outcome:?}");
    assert!(outcome.stdout.contains("CNI_IFNAME") && outcome.stdout.contains("prevResult"), "{outcome:?}");
    // The host's, another container's, and another of this one: the next fault is that no agent is there.
    for other in [
        json!({"name": "eth0"}),
        json!({"name": "eth0", "sandbox": "/run/netns/c2"}),
        json!({"name": "eth1", "sandbox": "/run/netns/c1"}),
    ] {
        configuration["prevResult"] = json!({"interfaces": [other]});
        assert_eq!(call(&pod("ADD"), &configuration.to_string()).code(), Some(11));
    }
}

#[test]
fn delete_prints_nothing() {
    let (agent, requests) = Agent::answering(200, &Value::Null);
    let outcome = call(&pod("DEL"), &configuration("1.0.0", agent.socket()).to_string());
    assert_eq!((outcome.exit_code, outcome.stdout.as_str(), outcome.stderr.as_str()), (Some(0), "", ""));
    let (path, request) = requests.recv().expect("one request");
    let expected =
        json!({"network": "millrace", "container_id": "c1", "interface": "eth0", "network_namespace": "/run/netns/c1"});
    assert_eq!((path.as_str(), request), ("/v1/cni/del", expected));
}

#[test]
fn the_second_delete_of_containerd_has_no_namespace_and_no_previous_result() {
    let (agent, requests) = Agent::answering(200, &Value::Null);
    let mut variables = pod("DEL");
    variables.retain(|(name, _)| *name != "CNI_NETNS");
    variables.push(("CNI_NETNS", ""));
    let mut configuration = configuration("1.0.0", agent.socket());
    configuration["prevResult"] = Value::Null;
    assert_eq!(call(&variables, &configuration.to_string()).exit_code, Some(0));
    assert_eq!(requests.recv().expect("one request").1["network_namespace"], Value::Null);
}

#[test]
fn version_needs_nothing_else() {
    let supported = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    let dummies = [("CNI_COMMAND", "VERSION"), ("CNI_NETNS", "dummy"), ("CNI_IFNAME", "dummy"), ("CNI_PATH", "dummy")];
    for (input, version) in [
        ("", "1.1.0"),
        ("nonsense", "1.1.0"),
        (r#"{"cniVersion":"1.0.0"}"#, "1.0.0"),
        (r#"{"cniVersion":"0.1.0"}"#, "1.1.0"),
        (r#"{"cniVersion":"9.9.9"}"#, "1.1.0"),
    ] {
        for variables in [&dummies[..], &dummies[..1]] {
            let outcome = call(variables, input);
            assert_eq!(outcome.exit_code, Some(0), "{outcome:?}");
            assert_eq!(outcome.json(), json!({"cniVersion": version, "supportedVersions": supported}), "{input}");
        }
    }
}
