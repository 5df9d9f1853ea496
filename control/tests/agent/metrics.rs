//! What a monitoring system reads off an agent.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};

use millrace_control::api::model::{PortReport, StatusReport};

use crate::agent_process::AgentOptions;
use crate::cluster::{Cluster, Underlay};
use crate::health::get;
use crate::pod::Pod;
use crate::traffic;

/// Values by name and labels.
fn series(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let parsed = lines.map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line:?} has no number")))
    });
    parsed.collect()
}

/// kube-proxy has both ports of a node that it still serves. They are named while they are missing, and no longer.
pub(crate) fn ports_that_another_has_are_named_until_it_goes() {
    let underlay = Underlay::create(1);
    let taken = underlay.nodes[0].handle().enter(|| {
        [("127.0.0.1", 10_249), ("0.0.0.0", 10_256)].map(|place| TcpListener::bind(place).expect("a listener"))
    });
    let cluster = Cluster::on(underlay, AgentOptions::default());
    let agent = &cluster.agents[0];
    let of_ports = |status: &StatusReport| {
        let named = |text: &str| status.problems.iter().any(|problem| problem.message.contains(text));
        [named("metrics at 127.0.0.1:10249 cannot be served"), named(":10256 cannot be served")]
    };
    agent.wait_for_status(|status| of_ports(status) == [true, true]);
    drop(taken.expect("entered"));
    agent.wait_for_status(|status| of_ports(status) == [false, false]);
    cluster.assert_sound();
    let node = cluster.underlay.nodes[0].handle();
    for (port, path) in [(10_249, "/metrics"), (10_256, "/readyz")] {
        let answer = get(node, SocketAddr::from(([127, 0, 0, 1], port)), path);
        assert_eq!(answer.map(|(status, _)| status), Some(200), "{port}");
    }
}

pub(crate) fn metrics_say_what_show_says() {
    let cluster = Cluster::create(1, AgentOptions::default());
    let pods = [("a1", "a"), ("b1", "b")].map(|(name, node)| Pod::create(name, node));
    let [a1, b1] = [0, 1].map(|number: usize| pods[number].add(cluster.directory()));
    traffic::udp(&a1, &b1, true);
    let (agent, node) = (&cluster.agents[0], cluster.underlay.nodes[0].handle().clone());
    let to: SocketAddr = "127.0.0.1:10249".parse().expect("address");
    let before: Vec<PortReport> = agent.client().show("ports").expect("ports");
    let (status, text) = get(&node, to, "/metrics").expect("an answer");
    assert_eq!(status, 200);
    assert!(text.ends_with("# EOF\n"), "{text}");
    let seen = series(&text);
    let value = |name: &str| *seen.get(name).unwrap_or_else(|| panic!("no {name} in {text}"));
    let told: StatusReport = agent.client().show("status").expect("status");
    assert_eq!(value("millrace_pods"), f64::from(told.pods));
    assert_eq!(value("millrace_unaccounted_frames"), 0.0);
    assert_eq!(value(&format!("millrace_build_info{{version=\"{}\",node=\"a\"}}", told.version)), 1.0);
    assert!(value("millrace_tables_generation") >= 1.0);
    assert!(value("kubeproxy_sync_proxy_rules_duration_seconds_count") >= 1.0);
    assert!(value("kubeproxy_sync_proxy_rules_last_timestamp_seconds") > 1.7e9);
    let lacking =
        |policy| value(&format!("kubeproxy_sync_proxy_rules_no_local_endpoints_total{{traffic_policy=\"{policy}\"}}"));
    assert_eq!(["internal", "external"].map(lacking), [0.0, 0.0]);
    assert!(value("millrace_events_total{worker=\"0\",event=\"connections.new\"}") >= 1.0);
    assert!(value("millrace_worker_slept_seconds_total{worker=\"0\"}") > 0.0);
    for port in before {
        let name = |what: &str| {
            format!(
                "millrace_port_{what}_total{{port=\"{}\",role=\"{}\",kind=\"{}\"}}",
                port.name, port.role, port.kind
            )
        };
        assert!(value(&name("received_frames")) >= port.received_frames as f64);
        assert!(value(&name("sent_bytes")) >= port.sent_bytes as f64);
    }
    assert!(seen.keys().any(|name| name.starts_with("millrace_dropped_frames_total{reason=")), "{text}");
    assert_eq!(get(&node, to, "/").map(|(status, _)| status), Some(404));
    cluster.assert_sound();
}
