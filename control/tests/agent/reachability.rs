//! Two nodes of ours, joined by AF_XDP on a veth pair: pods reach each other, and the program can say how.

use millrace_control::api::model::{PortReport, RouteReport, RouteTargetReport};
use serde_json::Value;

use crate::agent_process::AgentOptions;
use crate::cluster::{Cluster, NODES, POOLS, UPLINK, Underlay, node_object, uplink_object, uplink_object_of};
use crate::host;
use crate::pod::Pod;
use crate::traffic::{self, Endpoint};

/// Pods `a1` and `a2` on node a, `b1` on node b.
fn plug(cluster: &Cluster) -> ([Pod; 3], [Endpoint; 3]) {
    let pods = [("a1", "a"), ("a2", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
    let endpoints = [0, 1, 2].map(|number: usize| pods[number].add(cluster.directory()));
    (pods, endpoints)
}

pub(crate) fn two_agents_connect_their_pods() {
    let cluster = Cluster::create(1, AgentOptions::default());
    let (pods, [a1, a2, b1]) = plug(&cluster);
    for (pod, endpoint) in pods.iter().zip([&a1, &a2, &b1]) {
        assert_eq!(endpoint.addresses.len(), 2, "one address of each family");
        let mut held = pod.addresses();
        held.sort();
        assert_eq!(held, endpoint.addresses, "the interface has what the plugin said");
    }
    traffic::check(&a1, &a2);
    traffic::check(&a1, &b1);
    cluster.assert_sound();
    for agent in &cluster.agents {
        let kinds: Vec<String> = agent
            .client()
            .show::<Vec<PortReport>>("ports")
            .expect("ports")
            .into_iter()
            .filter(|port| port.role == "uplink" && port.received_frames > 0 && port.sent_frames > 0)
            .map(|port| port.kind)
            .collect();
        assert_eq!(kinds, ["af_xdp"], "the uplink carried the tunnel");
    }
    pods.iter().for_each(|pod| pod.delete(cluster.directory()));
    cluster.assert_sound();
}

/// As the object of the uplink says.
pub(crate) fn workers_drive_the_card_themselves() {
    let more = ", port: af_xdp, busyPollBudget: 64";
    let cluster = Cluster::with_uplinks(Underlay::create(1), [more; 2], AgentOptions::default());
    let (_pods, [a1, _, b1]) = plug(&cluster);
    traffic::check(&a1, &b1);
    cluster.assert_sound();
    for agent in &cluster.agents {
        let ports: Vec<PortReport> = agent.client().show("ports").expect("ports");
        let uplink = ports.iter().find(|port| port.role == "uplink").expect("an uplink");
        assert_eq!(uplink.queues[0].mode, "native copy need_wakeup busy_poll 64 queue 0");
    }
}

/// Nodes that have IPv6 addresses only: the same pods of both families, the tunnel over IPv6.
pub(crate) fn tunnels_run_over_ipv6() {
    let underlay = Underlay::create(1);
    let over_ipv6 = |number: usize| {
        let (_, [ipv4, ipv6]) = NODES[number];
        node_object(number).replace(ipv4, &format!("'{ipv6}'")) + &uplink_object(number)
    };
    underlay.directory.write_objects("cluster.yaml", &[POOLS.to_owned(), over_ipv6(0), over_ipv6(1)].concat());
    let agents = [0, 1].map(|number| underlay.start(number, AgentOptions::default()));
    let cluster = Cluster { agents, underlay };
    let (pods, [a1, _, b1]) = plug(&cluster);
    assert_eq!(pods[0].interface().map(|link| link.mtu), Some(1430), "20 bytes less than over IPv4");
    traffic::check(&a1, &b1);
    cluster.assert_sound();
}

/// Pools that allow no tunnels, on nodes of one subnet: pods reach pods and the other host as plain IP, in frames of the
/// uplink's full size, by AF_XDP and by packet sockets.
pub(crate) fn nodes_of_one_subnet_need_no_tunnel() {
    for kind in ["automatic", "packet"] {
        let underlay = Underlay::create(1);
        let uplinks = [0, 1].map(|number| uplink_object_of(number, UPLINK, &format!(", port: {kind}")));
        let pools = POOLS.replace("/16}", "/16, tunnel: never}").replace("/64'}", "/64', tunnel: never}");
        let objects = [pools, node_object(0), node_object(1), uplinks.concat()];
        underlay.directory.write_objects("cluster.yaml", &objects.concat());
        let agents = [0, 1].map(|number| underlay.start(number, AgentOptions::default()));
        let cluster = Cluster { agents, underlay };
        let (pods, [a1, _, b1]) = plug(&cluster);
        assert_eq!(pods[0].interface().map(|link| link.mtu), Some(1500), "no tunnel takes any room");
        let directly = |routes: &[RouteReport]| {
            let targets = routes.iter().map(|route| &route.target);
            targets.filter(|target| matches!(target, RouteTargetReport::Direct { .. })).count() == 2
        };
        cluster.agents.iter().for_each(|agent| drop(agent.wait_for_routes(directly)));
        traffic::check(&a1, &b1);
        let hosts = [0, 1].map(|number| host::host(&cluster.underlay, number));
        traffic::check(&hosts[0], &b1);
        traffic::check(&hosts[0], &hosts[1]);
        cluster.assert_sound();
    }
}

pub(crate) fn the_program_shows_and_traces() {
    let cluster = Cluster::create(1, AgentOptions::default());
    let (_pods, [a1, a2, b1]) = plug(&cluster);
    traffic::udp(&a1, &b1, true);
    let agent = &cluster.agents[0];
    let json = |words: &[&str]| -> Value {
        let output = agent.program(&[words, &["-o", "json"]].concat());
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    assert_eq!(json(&["show", "ports"]).as_array().map(Vec::len), Some(4));
    assert_eq!(json(&["show", "workers"]).as_array().map(Vec::len), Some(1));
    assert!(json(&["show", "routes"]).as_array().is_some_and(|routes| routes.len() >= 8));
    assert_eq!(json(&["show", "neighbours"])[0]["nodes"], serde_json::json!(["b"]));
    assert!(json(&["show", "flows"])["total"].as_u64().is_some_and(|flows| flows >= 2));
    assert!(json(&["show", "drops"]).is_array());
    assert_eq!(json(&["show", "status"])["pods"], 2);
    let top = json(&["top", "--interval", "0.2", "--count", "1"]);
    assert_eq!((top["workers"].as_array().map(Vec::len), top["ports"].as_array().map(Vec::len)), (Some(1), Some(4)));
    assert!(top["workers"][0]["asleep"].as_f64().is_some_and(|asleep| asleep > 0.5), "{top}");
    for what in ["ports", "workers", "routes", "neighbours", "flows", "drops", "status"] {
        let output = agent.program(&["show", what]);
        assert!(output.status.success() && !output.stdout.is_empty(), "show {what}");
    }
    for ipv4 in [true, false] {
        for (target, verdict) in [(&a2, "default/a2"), (&b1, UPLINK)] {
            let address = target.address(ipv4);
            let to = if ipv4 { format!("{address}:80/udp") } else { format!("[{address}]:80/udp") };
            let trace = json(&["trace", "--from", "default/a1", "--to", &to]);
            assert!(trace["steps"].as_array().is_some_and(|steps| steps.len() > 2), "{trace}");
            let said = trace["verdict"].as_str().expect("verdict");
            assert!(said.starts_with("forward") && said.contains(verdict), "{said}");
            let plain = agent.program(&["trace", "--from", "default/a1", "--to", &to]);
            assert!(plain.status.success() && !plain.stdout.is_empty());
        }
    }
    let absent = agent.program(&["trace", "--from", "default/nobody", "--to", "10.1.0.1:80"]);
    assert!(!absent.status.success() && !absent.stderr.is_empty());
}
