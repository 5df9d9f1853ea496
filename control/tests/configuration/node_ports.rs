//! Ports of the node: which pods have them, and who gets an address with a port that several claim.

use millrace_control::cluster::{ContainerPort, HostPort};
use millrace_control::compile::compile;
use millrace_control::observe::Touched;
use millrace_control::plan::{Planner, plan};

use crate::services::{NODES, lines, owner, planned_with_problems, service};
use crate::support::{attached, cluster, local};

#[test]
fn host_ports_of_one_number_live_beside_each_other() {
    let pod = |name: &str, address: &str, ports: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: a, containers: [{{name: c, ports: \
             [{ports}]}}]}}, status: {{podIP: {address}}}}}\n"
        )
    };
    let text = pod("one", "10.1.0.1", "{containerPort: 80, hostPort: 8000, hostIP: 127.0.0.9}")
        + &pod("two", "10.1.0.2", "{containerPort: 80, hostPort: 8000, hostIP: 192.0.2.1}")
        + &pod("three", "10.1.0.3", "{containerPort: 80, hostPort: 8000, protocol: UDP}")
        + &pod("four", "'fd00:10:1::4'", "{containerPort: 80, hostPort: 8000, hostIP: '::1'}");
    // Nothing that goes to ::1 leaves the node's kernel: it is said, and no packet is taken for it.
    let (plan, problems) = planned_with_problems(&text);
    assert_eq!(problems, ["Pod default/four: hostIP ::1 of hostPort 8000 is not served: it never leaves the node"]);
    assert_eq!(
        lines(&plan),
        [
            "hostPort 127.0.0.9:8000 TCP: pod default/one:8000 cluster [10.1.0.1:80] local [10.1.0.1:80]",
            "hostPort 192.0.2.1:8000 UDP: pod default/three:8000 cluster [10.1.0.3:80] local [10.1.0.3:80]",
            "hostPort 192.0.2.1:8000 TCP: pod default/two:8000 cluster [10.1.0.2:80] local [10.1.0.2:80]",
        ]
    );
}

/// A runtime asks for the very ports that the object has: each leads to the pod once. Without an object the runtime's word is
/// all there is, and the word of a pod that has ended or whose name another has does not count.
#[test]
fn a_runtimes_host_ports_and_the_objects_are_one() {
    let object = |more: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: one, uid: u1}}, spec: {{nodeName: a, containers: [{{name: c, \
             ports: [{{containerPort: 80, hostPort: 8000}}, {{containerPort: 81, hostPort: 8001}}]}}]}}, status: {{{more}}}}}\n"
        )
    };
    let lines_with = |text: &str, uid: Option<&str>, number: u16| {
        let (index, mut pod) = attached(17, "one", &["10.1.0.1"]);
        pod.uid = uid.map(std::sync::Arc::from);
        let host = HostPort { port: number, address: None };
        pod.host_ports = vec![ContainerPort { name: String::new(), protocol: 6, port: 80, host: Some(host) }];
        let view = local(&[(index, pod)], &["192.0.2.1"]);
        let planned = plan(&cluster(&(NODES.to_owned() + text)), &view);
        let of_pods = planned.problems.iter().filter(|problem| problem.to_string().contains("default/one"));
        assert_eq!(of_pods.count(), 0, "{:?}", planned.problems);
        let ports = planned.plan.services.owners.values().map(|plan| plan.ports.len()).sum::<usize>();
        let mut lines = lines(&planned.plan.services);
        lines.sort();
        assert_eq!(ports, lines.len(), "no port without a way to it");
        lines
    };
    let line = |host: u16, port: u16| {
        format!(
            "hostPort 192.0.2.1:{host} TCP: pod default/one:{host} cluster [10.1.0.1:{port}] local [10.1.0.1:{port}]"
        )
    };
    assert_eq!(lines_with("", None, 8000), [line(8000, 80)]);
    for (more, uid) in [("podIP: 10.1.0.1", Some("u1")), ("podIP: 10.1.0.1", None), ("", Some("u1"))] {
        assert_eq!(lines_with(&object(more), uid, 8000), [line(8000, 80), line(8001, 81)], "{more} {uid:?}");
    }
    let three = [line(8000, 80), line(8001, 81), line(8002, 80)];
    assert_eq!(lines_with(&object("podIP: 10.1.0.1"), Some("u1"), 8002), three);
    assert_eq!(lines_with(&object("phase: Succeeded"), Some("u1"), 8000), Vec::<String>::new());
    assert_eq!(lines_with(&object("podIP: 10.1.0.1"), Some("u0"), 8002), three[..2]);
}

#[test]
fn of_two_claims_the_first_by_name_holds_in_tables_too() {
    let spec = |ip: &str| format!("clusterIP: {ip}, externalIPs: [198.51.100.7], ports: [{{port: 80}}]");
    let (first, second) = (service("alpha", &spec("10.96.0.1")), service("beta", &spec("10.96.0.2")));
    let both = cluster(&(NODES.to_owned() + &first + &second));
    let view = local(&[], &["192.0.2.1"]);
    let mut planner = Planner::default();
    let with_both = planner.plan(&both, &view, &Touched::everything(&both));
    let problem = with_both.problems.iter().find(|problem| problem.message.contains("belongs to"));
    let problem = problem.expect("a problem").to_string();
    assert_eq!(problem, "Service default/beta: 198.51.100.7:80 TCP belongs to Service default/alpha already");
    let tables = compile(&with_both.plan, None).expect("tables");
    assert_eq!(owner(&tables, "198.51.100.7", 80), "default/alpha:80");
    let only_second = cluster(&(NODES.to_owned() + &second));
    let without = planner.plan(&only_second, &view, &Touched::default());
    let after = compile(&without.plan, Some((&with_both.plan, &tables))).expect("tables");
    assert_eq!(owner(&after, "198.51.100.7", 80), "default/beta:80");
    assert_eq!(format!("{after:?}"), format!("{:?}", compile(&without.plan, None).expect("tables")));
    assert_eq!(owner(&after, "10.96.0.1", 80), "nothing");
}

/// An address of the node with a port is claimed as such, and as a node port besides: the addresses of Services come first,
/// as kube-proxy looks them up first, then node ports, then host ports. Whoever loses is told by whom.
#[test]
fn addresses_of_services_come_before_node_ports_and_these_before_host_ports() {
    let node_port = service("web", "type: NodePort, clusterIPs: [10.96.0.1], ports: [{port: 80, nodePort: 30080}]");
    let external = service("alpha", "clusterIPs: [10.96.0.2], externalIPs: [192.0.2.1], ports: [{port: 30080}]");
    let pod = "---\n{apiVersion: v1, kind: Pod, metadata: {name: one}, spec: {nodeName: a, containers: [{name: c, ports: \
               [{containerPort: 80, hostPort: 30080}]}]}, status: {podIP: 10.1.0.1}}\n";
    let view = local(&[], &["192.0.2.1"]);
    let mut planner = Planner::default();
    let mut see = |text: &str| {
        let objects = cluster(&(NODES.to_owned() + text));
        let planned = planner.plan(&objects, &view, &Touched::everything(&objects));
        let problems = planned.problems.iter().filter(|problem| {
            problem.object.as_ref().is_some_and(|key| matches!(key.kind.kind.as_ref(), "Service" | "Pod"))
        });
        let tables = compile(&planned.plan, None).expect("tables");
        (owner(&tables, "192.0.2.1", 30080), problems.map(ToString::to_string).collect::<Vec<_>>())
    };
    let lost = |to: &str| format!("Pod default/one: 192.0.2.1:30080 TCP belongs to Service default/{to} already");
    let moved = "Service default/web: its node port does not serve at 192.0.2.1:30080 TCP, which belongs to Service default/alpha";
    let all = node_port.clone() + &external + pod;
    assert_eq!(see(pod), ("pod default/one:30080".into(), vec![]));
    assert_eq!(see(&(node_port.clone() + pod)), ("default/web:80".into(), vec![lost("web")]));
    assert_eq!(see(&all), ("default/alpha:30080".into(), vec![lost("alpha"), moved.to_owned()]));
    assert_eq!(see(&(node_port.clone() + &external)), ("default/alpha:30080".into(), vec![moved.to_owned()]));
    assert_eq!(see(&node_port), ("default/web:80".into(), vec![]));
    assert_eq!(see(pod), ("pod default/one:30080".into(), vec![]), "whatever came before");
}
