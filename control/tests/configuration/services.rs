//! Services: what the plan makes of their objects, and what compiling and changing them costs.

use std::fmt::Write as _;
use std::time::Instant;

use millrace_control::cluster::Cluster;
use millrace_control::compile::compile;
use millrace_control::observe::{Observed, Touched};
use millrace_control::plan::{LocalView, Planner, ServicesPlan, plan};
use millrace_control::store::{Event, Located, Object};
use millrace_engine::tables::services::{Found, Scope, ServicePort};
use millrace_engine::tables::{Change, Snapshot, change};

use crate::support::{address, attached, cluster, local, node, node_name, observe};

/// Nodes a (zone east), b (zone east) and c (zone west); this is a.
pub(super) const NODES: &str = "\
---
{apiVersion: v1, kind: Node, metadata: {name: a, labels: {topology.kubernetes.io/zone: east}}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: '2001:db8::1'}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: b, labels: {topology.kubernetes.io/zone: east}}, status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: c, labels: {topology.kubernetes.io/zone: west}}, status: {addresses: [{type: InternalIP, address: 192.0.2.3}]}}
";

pub(super) fn service(name: &str, spec: &str) -> String {
    format!("---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n")
}

/// A slice of `web` with the port 8080 named `http`; each endpoint is `ADDRESS@NODE` and conditions or hints.
fn slice(endpoints: &[(&str, &str)]) -> String {
    let mut text = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, labels: \
                    {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints:\n"
        .to_owned();
    for (place, more) in endpoints {
        let (address, node) = place.split_once('@').expect("ADDRESS@NODE");
        let more = if more.is_empty() { String::new() } else { format!(", {more}") };
        writeln!(text, "- {{addresses: [{address}], nodeName: {node}{more}}}").expect("text");
    }
    text
}

const CLUSTER_IP: &str = "clusterIPs: [10.96.0.10], ports: [{name: http, port: 80, targetPort: 8080}]";

fn planned(text: &str) -> ServicesPlan {
    let (services, problems) = planned_with_problems(text);
    assert_eq!(problems, Vec::<String>::new());
    services
}

/// The plan, and what is wrong with other objects than nodes.
pub(super) fn planned_with_problems(text: &str) -> (ServicesPlan, Vec<String>) {
    let local = local(&[attached(1, "here", &["10.1.0.1"])], &["192.0.2.1", "198.51.100.1"]);
    let planned = plan(&cluster(&(NODES.to_owned() + text)), &local);
    let own =
        planned.problems.iter().filter(|problem| problem.object.as_ref().is_some_and(|key| key.kind.kind != "Node"));
    let own = own.map(ToString::to_string).collect();
    (planned.plan.services, own)
}

fn addresses(port: &ServicePort, scope: &Scope) -> String {
    let endpoint = |number: &u16| {
        let endpoint = &port.endpoints[usize::from(*number)];
        format!("{}:{}", endpoint.address, endpoint.port)
    };
    scope.all.members().iter().map(endpoint).collect::<Vec<_>>().join(" ")
}

/// Frontends, one a line, with the endpoints of both scopes.
pub(super) fn lines(plan: &ServicesPlan) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, frontend) in plan.owners.values().flat_map(|plan| &plan.frontends) {
        let port = &frontend.service;
        lines.push(format!(
            "{} {key}: {} cluster [{}] local [{}]{}",
            frontend.kind.name(),
            port.name,
            addresses(port, &port.cluster),
            addresses(port, &port.local),
            if port.any_usable { "" } else { " none usable" }
        ));
    }
    lines
}

fn ready(ready: bool) -> String {
    format!("conditions: {{ready: {ready}}}")
}

#[test]
fn endpoints_of_each_scope() {
    let terminating = "conditions: {ready: false, serving: true, terminating: true}";
    let dead = "conditions: {ready: false, serving: false, terminating: true}";
    let not_ready = ready(false);
    let node_hint = |node: &str| format!("hints: {{forNodes: [{{name: {node}}}], forZones: [{{name: east}}]}}");
    let zone_hint = |zone: &str| format!("hints: {{forZones: [{{name: {zone}}}]}}");
    let (node_a, node_b, east, west) = (node_hint("a"), node_hint("b"), zone_hint("east"), zone_hint("west"));
    let local = "internalTrafficPolicy: Local, ";
    type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str, &'a str, bool);
    let rows: &[Row<'_>] = &[
        ("ready", "", &[("10.1.0.1@a", ""), ("10.2.0.1@b", "")], "10.1.0.1:8080 10.2.0.1:8080", "", true),
        (
            "local too",
            local,
            &[("10.1.0.1@a", ""), ("10.2.0.1@b", "")],
            "10.1.0.1:8080 10.2.0.1:8080",
            "10.1.0.1:8080",
            true,
        ),
        ("not ready", local, &[("10.1.0.1@a", &not_ready), ("10.2.0.1@b", "")], "10.2.0.1:8080", "", true),
        (
            "ready before terminating",
            local,
            &[("10.1.0.1@a", ""), ("10.1.0.2@a", terminating)],
            "10.1.0.1:8080",
            "10.1.0.1:8080",
            true,
        ),
        (
            "each scope falls back alone",
            local,
            &[("10.1.0.1@a", terminating), ("10.2.0.1@b", "")],
            "10.2.0.1:8080",
            "10.1.0.1:8080",
            true,
        ),
        (
            "terminating at last",
            local,
            &[("10.1.0.1@a", terminating), ("10.2.0.1@b", terminating)],
            "10.1.0.1:8080 10.2.0.1:8080",
            "10.1.0.1:8080",
            true,
        ),
        ("remote terminating only", local, &[("10.2.0.1@b", terminating)], "10.2.0.1:8080", "", true),
        ("no longer serving", local, &[("10.1.0.1@a", dead)], "", "", false),
        ("none", local, &[], "", "", false),
        (
            "hint by node",
            local,
            &[("10.1.0.1@a", &node_a), ("10.2.0.1@b", &node_b)],
            "10.1.0.1:8080",
            "10.1.0.1:8080",
            true,
        ),
        (
            "node hints elsewhere fall to zones",
            "",
            &[("10.2.0.1@b", &node_b), ("10.2.0.2@b", &node_b)],
            "10.2.0.1:8080 10.2.0.2:8080",
            "",
            true,
        ),
        ("hint by zone", local, &[("10.2.0.1@b", &east), ("10.3.0.1@c", &west)], "10.2.0.1:8080", "", true),
        (
            "one without a hint",
            "",
            &[("10.2.0.1@b", &east), ("10.3.0.1@c", "")],
            "10.2.0.1:8080 10.3.0.1:8080",
            "",
            true,
        ),
        (
            "no hint for here",
            "",
            &[("10.3.0.1@c", &west), ("10.3.0.2@c", &west)],
            "10.3.0.1:8080 10.3.0.2:8080",
            "",
            true,
        ),
        (
            "hints of the unready do not count",
            "",
            &[("10.2.0.1@b", &east), ("10.3.0.1@c", &not_ready)],
            "10.2.0.1:8080",
            "",
            true,
        ),
        (
            "local ignores hints",
            local,
            &[("10.1.0.1@a", &west), ("10.2.0.1@b", &east)],
            "10.2.0.1:8080",
            "10.1.0.1:8080",
            true,
        ),
    ];
    for (name, policy, endpoints, in_cluster, here, usable) in rows {
        let plan = planned(&(service("web", &format!("{policy}{CLUSTER_IP}")) + &slice(endpoints)));
        let suffix = if *usable { "" } else { " none usable" };
        let expected =
            format!("ClusterIP 10.96.0.10:80 TCP: default/web:http cluster [{in_cluster}] local [{here}]{suffix}");
        assert_eq!(lines(&plan), [expected], "{name}");
    }
}

/// What kube-proxy counts as `sync_proxy_rules_no_local_endpoints_total`: Services, not ports, each policy by itself.
#[test]
fn services_without_local_endpoints_are_counted_by_policy() {
    let count = |policies: &str, endpoints: &[(&str, &str)]| {
        let ports = "ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]";
        let spec = format!("type: NodePort, {policies}clusterIPs: [10.96.0.10], {ports}");
        let counted = planned(&(service("web", &spec) + &slice(endpoints))).without_local_endpoints();
        [counted.internal, counted.external]
    };
    let (internal, external) = ("internalTrafficPolicy: Local, ", "externalTrafficPolicy: Local, ");
    let both = format!("{internal}{external}");
    let terminating = "conditions: {ready: false, serving: true, terminating: true}";
    for (policies, endpoints, expected) in [
        ("", &[("10.2.0.1@b", "")][..], [0, 0]),
        (internal, &[("10.2.0.1@b", "")], [1, 0]),
        (external, &[("10.2.0.1@b", "")], [0, 1]),
        (&both, &[("10.2.0.1@b", ""), ("10.3.0.1@c", "")], [1, 1]),
        (&both, &[("10.2.0.1@b", ""), ("10.1.0.1@a", "")], [0, 0]),
        // One that ends still serves; one that does not serve is none.
        (&both, &[("10.2.0.1@b", ""), ("10.1.0.1@a", terminating)], [0, 0]),
        (&both, &[("10.2.0.1@b", ""), ("10.1.0.1@a", &ready(false))], [1, 1]),
        // Without any endpoint clients are told so.
        (&both, &[], [0, 0]),
    ] {
        assert_eq!(count(policies, endpoints), expected, "{policies} {endpoints:?}");
    }
}

#[test]
fn every_address_of_a_service_in_every_family() {
    let spec = "type: LoadBalancer, clusterIPs: [10.96.0.10, 'fd00:96::10'], externalIPs: [198.51.100.7, '2001:db8:7::1'], \
                externalTrafficPolicy: Local, healthCheckNodePort: 32000, loadBalancerSourceRanges: [' 203.0.113.0/24 '], \
                ports: [{name: http, port: 80, nodePort: 30080}, {name: dns, port: 53, protocol: UDP}]";
    let status =
        "status: {loadBalancer: {ingress: [{ip: 198.51.100.9}, {ip: 198.51.100.10, ipMode: Proxy}, {hostname: x}]}}";
    let text = format!("---\n{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{{spec}}}, {status}}}\n");
    let plan = planned(&(text + &slice(&[("10.1.0.1@a", ""), ("10.1.0.2@a", &ready(false)), ("10.2.0.1@b", "")])));
    let four = "default/web:http cluster [10.1.0.1:8080 10.2.0.1:8080] local [10.1.0.1:8080]";
    let none = |port: &str| format!("default/web:{port} cluster [] local [] none usable");
    assert_eq!(
        lines(&plan),
        [
            format!("ClusterIP 10.96.0.10:80 TCP: {four}"),
            format!("externalIP 198.51.100.7:80 TCP: {four}"),
            format!("LoadBalancer 198.51.100.9:80 TCP: {four}"),
            format!("NodePort node port 30080 TCP IPv4: {four}"),
            format!("ClusterIP 10.96.0.10:53 UDP: {}", none("dns")),
            format!("externalIP 198.51.100.7:53 UDP: {}", none("dns")),
            format!("LoadBalancer 198.51.100.9:53 UDP: {}", none("dns")),
            format!("ClusterIP [fd00:96::10]:80 TCP: {}", none("http")),
            format!("externalIP [2001:db8:7::1]:80 TCP: {}", none("http")),
            format!("NodePort node port 30080 TCP IPv6: {}", none("http")),
            format!("ClusterIP [fd00:96::10]:53 UDP: {}", none("dns")),
            format!("externalIP [2001:db8:7::1]:53 UDP: {}", none("dns")),
        ]
    );
    let service = plan.owners.values().next().expect("planned");
    // Each family by itself: of IPv6 there are no endpoints.
    let told = service.health_check.map(|check| (check.port, check.local_ready_ipv4, check.local_ready_ipv6));
    assert_eq!(told, Some((32_000, 1, 0)));
    let sources: Vec<_> = service.frontends.iter().filter_map(|(_, frontend)| frontend.sources.clone()).collect();
    assert_eq!(sources.len(), 2, "only the load balancer's addresses are guarded");
    assert_eq!(sources[0].iter().map(ToString::to_string).collect::<Vec<_>>(), ["203.0.113.0/24"]);
    let steered: Vec<String> =
        plan.steered().iter().map(|at| format!("{} {} {}", at.address, at.protocol, at.port)).collect();
    assert!(
        steered.contains(&"192.0.2.1 6 30080".to_owned()) && steered.contains(&"198.51.100.9 17 53".to_owned()),
        "{steered:?}"
    );
}

#[test]
fn what_is_not_proxied_is_left_alone() {
    for (spec, labels) in [
        ("clusterIP: None, ports: [{port: 80}]", "{}"),
        ("type: ExternalName, externalName: x.example", "{}"),
        (CLUSTER_IP, "{service.kubernetes.io/service-proxy-name: other}"),
        (CLUSTER_IP, "{service.kubernetes.io/headless: ''}"),
    ] {
        let text = format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: web, labels: {labels}}}, spec: {{{spec}}}}}\n"
        );
        assert_eq!(lines(&planned(&(text + &slice(&[("10.1.0.1@a", "")])))), Vec::<String>::new(), "{spec} {labels}");
    }
}

/// Pods name their ports differently; a directory has no slices.
#[test]
fn endpoints_derived_from_pods() {
    let pod = |name: &str, node: &str, address: &str, port: u16, more: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: web}}{more}}}, spec: {{nodeName: {node}, \
             containers: [{{name: c, ports: [{{name: http, containerPort: {port}}}]}}]}}, status: {{podIPs: [{{ip: {address}}}]}}}}\n"
        )
    };
    let text = service("web", "clusterIP: 10.96.0.10, selector: {app: web}, ports: [{port: 80, targetPort: http}]")
        + &pod("one", "a", "10.1.0.1", 8080, "")
        + &pod("two", "b", "10.2.0.1", 9090, "")
        + &pod("going", "b", "10.2.0.2", 9090, ", deletionTimestamp: '2026-01-01T00:00:00Z'")
        + &pod("other", "b", "10.2.0.3", 9090, "").replace("app: web", "app: db");
    let expected = "ClusterIP 10.96.0.10:80 TCP: default/web:80 cluster [10.1.0.1:8080 10.2.0.1:9090] local []";
    assert_eq!(lines(&planned(&text)), [expected]);
}

/// Conditions and hints as the cluster's controller would write them.
#[test]
fn derived_endpoints_have_conditions_and_hints() {
    let pod = |name: &str, node: &str, address: &str, ready: bool, more: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: web}}{more}}}, spec: {{nodeName: {node}}}, \
             status: {{podIPs: [{{ip: {address}}}], conditions: [{{type: Ready, status: '{}'}}]}}}}\n",
            if ready { "True" } else { "False" }
        )
    };
    let going = ", deletionTimestamp: '2026-01-01T00:00:00Z'";
    let spec = |more: &str| {
        service("web", &format!("clusterIP: 10.96.0.10, selector: {{app: web}}, ports: [{{port: 80}}]{more}"))
    };
    let both_here_and_there = pod("here", "a", "10.1.0.1", true, "") + &pod("there", "b", "10.2.0.1", true, "");
    type Row<'a> = (&'a str, &'a str, String, &'a str, &'a str);
    let rows: [Row<'_>; 8] = [
        ("ready ones", "", both_here_and_there.clone(), "10.1.0.1:80 10.2.0.1:80", ""),
        (
            "one not ready",
            "",
            pod("here", "a", "10.1.0.1", false, "") + &pod("there", "b", "10.2.0.1", true, ""),
            "10.2.0.1:80",
            "",
        ),
        (
            "it is published although it is not ready",
            ", publishNotReadyAddresses: true",
            pod("here", "a", "10.1.0.1", false, "") + &pod("there", "b", "10.2.0.1", true, ""),
            "10.1.0.1:80 10.2.0.1:80",
            "",
        ),
        (
            "and although it ends",
            ", publishNotReadyAddresses: true",
            pod("here", "a", "10.1.0.1", false, going) + &pod("there", "b", "10.2.0.1", true, ""),
            "10.1.0.1:80 10.2.0.1:80",
            "",
        ),
        ("all end and serve", "", pod("here", "a", "10.1.0.1", true, going), "10.1.0.1:80", ""),
        (
            "the local one ends and serves",
            ", internalTrafficPolicy: Local",
            pod("here", "a", "10.1.0.1", true, going) + &pod("there", "b", "10.2.0.1", true, ""),
            "10.2.0.1:80",
            "10.1.0.1:80",
        ),
        ("it ends and serves no more", "", pod("here", "a", "10.1.0.1", false, going), "", ""),
        (
            "near ones",
            ", trafficDistribution: PreferSameNode",
            both_here_and_there + &pod("beside", "a", "10.1.0.2", true, ""),
            "10.1.0.1:80 10.1.0.2:80",
            "",
        ),
    ];
    for (name, more, pods, cluster, local) in rows {
        let plan = planned(&(spec(more) + &pods));
        let unusable = if cluster.is_empty() { " none usable" } else { "" };
        let expected =
            format!("ClusterIP 10.96.0.10:80 TCP: default/web:80 cluster [{cluster}] local [{local}]{unusable}");
        assert_eq!(lines(&plan), [expected], "{name}");
    }
}

/// Whose the address and port are, over TCP.
pub(super) fn owner(tables: &Snapshot, at: &str, port: u16) -> String {
    let services = tables.services.get(millrace_control::plan::POD_SEGMENT).expect("services");
    match services.find(address(at), 6, port) {
        Found::Frontend(frontend) => frontend.service.name.to_string(),
        Found::WrongPort => "wrong port".to_owned(),
        Found::Unallocated(range) => format!("unallocated in {range}"),
        Found::Nothing => "nothing".to_owned(),
    }
}

#[test]
fn ranges_are_known_by_configuration_and_by_objects() {
    let text = NODES.to_owned()
        + &service("web", CLUSTER_IP)
        + "---\n{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: kubernetes}, spec: {cidrs: [10.96.0.0/16]}}\n";
    let mut view = local(&[], &["192.0.2.1"]);
    view.services.ranges = vec!["10.97.0.0/16".parse().expect("range")];
    let tables = compile(&plan(&cluster(&text), &view).plan, None).expect("tables");
    assert_eq!(owner(&tables, "10.96.0.10", 80), "default/web:http");
    assert_eq!(owner(&tables, "10.96.0.10", 81), "wrong port");
    assert_eq!(owner(&tables, "10.96.0.11", 80), "unallocated in 10.96.0.0/16");
    assert_eq!(owner(&tables, "10.97.0.11", 80), "unallocated in 10.97.0.0/16");
    assert_eq!(owner(&tables, "10.98.0.11", 80), "nothing");
}

#[test]
fn faults_name_file_line_and_field() {
    let faulty = |metadata: &str, spec: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n{metadata}spec:\n  clusterIP: 10.96.0.1\n{spec}"
        );
        observe(&text).problems().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    for (metadata, spec, expected) in [
        (
            "  annotations:\n    millrace.dev/balance: fastest\n",
            "",
            "objects.yaml:6: Service default/web: metadata.annotations.millrace.dev/balance: \"fastest\" is none of random, \
             round-robin, least-connections, maglev",
        ),
        (
            "  annotations: {millrace.dev/weights: 'web-0=many'}\n",
            "",
            "objects.yaml:5: Service default/web: metadata.annotations.millrace.dev/weights: \"web-0=many\" is not POD=WEIGHT or \
             ADDRESS=WEIGHT with a weight up to 1000",
        ),
        (
            "  annotations: {millrace.dev/client-subnets: '10.0.0.0/8 => zone'}\n",
            "",
            "objects.yaml:5: Service default/web: metadata.annotations.millrace.dev/client-subnets: \"10.0.0.0/8 => zone\" has a group \
             that is neither zone=NAME, node=NAME nor a prefix",
        ),
        ("", "  ports: [{port: 70000}]\n", "objects.yaml:7: Service default/web: spec.ports: 70000 is not a port"),
        (
            "",
            "  sessionAffinity: ClientIP\n  sessionAffinityConfig:\n    clientIP:\n      timeoutSeconds: 90000\n",
            "objects.yaml:10: Service default/web: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 90000 is not between 1 and \
             86400",
        ),
        (
            "",
            "  loadBalancerSourceRanges: [10.0.0.0/40]\n",
            "objects.yaml:7: Service default/web: spec.loadBalancerSourceRanges: \"10.0.0.0/40\" is not a prefix",
        ),
    ] {
        assert_eq!(faulty(metadata, spec), expected);
    }
}

#[test]
fn client_networks_get_their_endpoints_first() {
    let annotations = "{millrace.dev/client-subnets: '10.1.0.0/16 => zone=south, node=b; 10.0.0.0/8 => 10.3.0.0/16; 172.16.0.0/12 => zone=south', \
                       millrace.dev/weights: '10.1.0.1=5'}";
    let text = format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: web, annotations: {annotations}}}, spec: {{{CLUSTER_IP}}}}}\n"
    ) + &slice(&[("10.1.0.1@a", ""), ("10.2.0.1@b", ""), ("10.3.0.1@c", "")]);
    let plan = planned(&text);
    let port = &plan.owners.values().next().expect("planned").ports[0];
    let served = |client: &str| {
        let (set, rule) = port.cluster.of_client(address(client));
        let rule = rule.map_or_else(|| "-".to_owned(), |rule| rule.to_string());
        (
            set.members()
                .iter()
                .map(|number| port.endpoints[usize::from(*number)].address.to_string())
                .collect::<Vec<_>>()
                .join(" "),
            rule,
        )
    };
    let all = "10.1.0.1 10.2.0.1 10.3.0.1";
    for (client, endpoints, rule) in [
        ("10.1.2.3", "10.2.0.1", "10.1.0.0/16"),
        ("10.9.2.3", "10.3.0.1", "10.0.0.0/8"),
        ("172.16.0.1", all, "172.16.0.0/12"),
        ("192.0.2.9", all, "-"),
    ] {
        assert_eq!(served(client), (endpoints.to_owned(), rule.to_owned()), "{client}");
    }
    assert_eq!(port.endpoints.iter().map(|endpoint| endpoint.weight).collect::<Vec<_>>(), [5, 1, 1]);
}

fn many_services(count: usize) -> Cluster {
    let mut observed = Observed::default();
    observed.take(Event::Applied(object(&serde_json::json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    }))));
    for number in 0..count {
        observed.take(Event::Applied(object(&numbered_service(number))));
        observed.take(Event::Applied(object(&numbered_slice(number, 10))));
    }
    assert_eq!(observed.problems(), []);
    observed.cluster().clone()
}

fn object(json: &serde_json::Value) -> Object {
    Object::read(Located::from(json), None).expect("object")
}

fn numbered_service(number: usize) -> serde_json::Value {
    let ip = format!("10.{}.{}.{}", 96 + number / 62_500, number / 250 % 250, number % 250 + 1);
    serde_json::json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{number}")},
        "spec": {"clusterIP": ip, "ports": [{"port": 80}]},
    })
}

fn numbered_slice(number: usize, endpoints: usize) -> serde_json::Value {
    let endpoint = |at: usize| {
        let ip = format!("10.{}.{}.{}", 128 + number / 6_250 % 100, number / 25 % 250, number % 25 * 10 + at);
        serde_json::json!({"addresses": [ip], "nodeName": "a"})
    };
    serde_json::json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("s{number}-x"), "labels": {"kubernetes.io/service-name": format!("s{number}")}},
        "ports": [{"port": 8080}], "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    })
}

/// Figures printed; that only the changed Service is planned and named is asserted.
#[test]
fn one_endpoint_of_ten_thousand_services_is_a_small_change() {
    let before = many_services(10_000);
    let view = LocalView::new(node_name("a"));
    let mut planner = Planner::default();
    let started = Instant::now();
    let first = planner.plan(&before, &view, &Touched::everything(&before)).plan;
    let planned = started.elapsed();
    let tables = compile(&first, None).expect("tables");
    let compiled = started.elapsed() - planned;
    let mut after = before.clone();
    let mut observed = Observed::default();
    observed.take(Event::Applied(object(&numbered_slice(5_000, 9))));
    let name = millrace_control::cluster::ServiceName::new("default", "s5000").expect("name");
    observed.cluster().slices.of(&name).for_each(|slice| after.slices.insert((**slice).clone()));
    let plans = planner.services_planned();
    let started = Instant::now();
    let second = planner.plan(&after, &view, &Touched::default()).plan;
    let planned_again = started.elapsed();
    let new = compile(&second, Some((&first, &tables))).expect("tables");
    let compiled_again = started.elapsed() - planned_again;
    let changes = change::changes(&tables, &new).changes;
    let compared = started.elapsed() - planned_again - compiled_again;
    println!(
        "10,000 Services of 10 endpoints: plan {planned:?}, compile {compiled:?}; one endpoint less: plan {planned_again:?}, \
         compile {compiled_again:?}, change set {compared:?}"
    );
    assert_eq!(planner.services_planned() - plans, 1);
    assert!(matches!(changes.as_slice(), [Change::Service(_)]), "{changes:?}");
    assert_eq!(second, plan(&after, &view).plan);
}

/// A node of this test has no more objects than it needs.
#[test]
fn a_node_without_services_has_none_in_its_tables() {
    let tables = compile(&plan(&cluster(&node("a", &["192.0.2.1"])), &LocalView::new(node_name("a"))).plan, None);
    let tables = tables.expect("tables");
    assert_eq!(tables.services.iter().map(|(_, services)| services.node_addresses().len()).collect::<Vec<_>>(), [1]);
}

/// What the API server would not take is not taken from a file either.
#[test]
fn no_service_and_no_endpoint_has_a_special_address() {
    let service = |fields: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{clusterIP: 10.96.0.9, {fields}}}}}\n"
        )
    };
    let outside = |address: &str| service(&format!("externalIPs: ['{address}'], ports: [{{port: 80}}]"));
    let balancer = |address: &str| {
        service("type: LoadBalancer, ports: [{port: 80}]")
            .replace("}\n", &format!(", status: {{loadBalancer: {{ingress: [{{ip: '{address}'}}]}}}}}}\n"))
    };
    let slice = |address: &str| {
        format!(
            "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: web-1, labels: \
             {{kubernetes.io/service-name: web}}}}, addressType: {}, ports: [{{port: 80}}], endpoints: [{{addresses: \
             ['{address}']}}]}}\n",
            if address.contains(':') { "IPv6" } else { "IPv4" }
        )
    };
    let sorts = [
        ("0.0.0.0", "unspecified"),
        ("127.0.0.1", "a loopback address"),
        ("169.254.1.1", "a link-local address"),
        ("224.0.0.1", "a multicast address"),
        ("255.255.255.255", "the broadcast address"),
        ("::", "unspecified"),
        ("::1", "a loopback address"),
        ("fe80::1", "a link-local address"),
        ("ff02::1", "a multicast address"),
    ];
    for (address, sort) in sorts {
        for (text, rest) in [(outside(address), "leads to no Service"), (slice(address), "no endpoint")] {
            let problems = observe(&text).problems();
            let said = format!("{address} is {sort} and {rest}");
            assert!(problems.len() == 1 && problems[0].message.contains(&said), "{text} {problems:?}");
        }
        let problems = observe(&balancer(address)).problems();
        assert_eq!(problems.is_empty(), sort == "a link-local address", "{address} {problems:?}");
    }
}
