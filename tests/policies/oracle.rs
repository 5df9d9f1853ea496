//! The oracle: who may talk to whom, by the words of the API, without any preparation.
//!
//! It reads the objects as they are stored (`serde_json::Value`), asks every policy about every packet and shares no
//! code with the control plane or the engine. Slow and obvious is the point.

use std::net::IpAddr;

use serde_json::Value;

use super::{Flow, NODE};

/// Nothing, for fields that are absent.
const NOTHING: Value = Value::Null;

fn field<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(value, |value, name| value.get(name).unwrap_or(&NOTHING))
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    field(value, path).as_str().unwrap_or("")
}

fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    field(value, path).as_array().map_or(&[], Vec::as_slice)
}

/// Whether the node lets the packet through, and in words why not.
///
/// # Errors
/// Which end denies it.
pub fn allowed(objects: &[Value], flow: Flow) -> Result<(), String> {
    allowed_where(objects, flow, |pod| text(pod, "spec.nodeName") == NODE)
}

/// Whether both ends' nodes let the packet through, whichever nodes they are.
///
/// # Errors
/// Which end denies it.
pub fn allowed_everywhere(objects: &[Value], flow: Flow) -> Result<(), String> {
    allowed_where(objects, flow, |_| true)
}

fn allowed_where(objects: &[Value], flow: Flow, judges: impl Fn(&Value) -> bool) -> Result<(), String> {
    let source = pod_with(objects, flow.source);
    let destination = pod_with(objects, flow.destination);
    let is_here = |pod: Option<&Value>| pod.is_some_and(&judges);
    if flow.source == flow.destination {
        return Ok(());
    }
    if let Some(pod) = source.filter(|pod| is_here(Some(pod)))
        && !direction_allows(objects, pod, "egress", flow, flow.destination, destination)
    {
        return Err(format!("egress of {}", text(pod, "metadata.name")));
    }
    if let Some(pod) = destination.filter(|pod| is_here(Some(pod)))
        && !direction_allows(objects, pod, "ingress", flow, flow.source, destination)
    {
        return Err(format!("ingress of {}", text(pod, "metadata.name")));
    }
    Ok(())
}

/// The pod that has this address: neither ended nor in its node's network namespace.
fn pod_with(objects: &[Value], address: IpAddr) -> Option<&Value> {
    of_kind(objects, "Pod").find(|pod| {
        field(pod, "spec.hostNetwork") != &Value::Bool(true)
            && !matches!(text(pod, "status.phase"), "Succeeded" | "Failed")
            && list(pod, "status.podIPs").iter().any(|entry| text(entry, "ip").parse() == Ok(address))
    })
}

fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| text(object, "kind") == kind)
}

fn namespace_of(object: &Value) -> &str {
    match text(object, "metadata.namespace") {
        "" => "default",
        name => name,
    }
}

/// Labels of a namespace; the API server adds its name.
fn namespace_labels(objects: &[Value], name: &str) -> Value {
    let object = of_kind(objects, "Namespace").find(|object| text(object, "metadata.name") == name);
    let mut labels = object.map_or(NOTHING, |object| field(object, "metadata.labels").clone());
    if !labels.is_object() {
        labels = serde_json::json!({});
    }
    labels["kubernetes.io/metadata.name"] = name.into();
    labels
}

/// A label selector; a missing one has been dealt with by the caller.
fn selects(selector: &Value, labels: &Value) -> bool {
    let equal = |(key, value): (&String, &Value)| labels.get(key) == Some(value);
    let labels_match = field(selector, "matchLabels").as_object().is_none_or(|wanted| wanted.iter().all(equal));
    let expressions_match = list(selector, "matchExpressions").iter().all(|expression| {
        let present = labels.get(text(expression, "key"));
        let listed = present.is_some_and(|value| list(expression, "values").contains(value));
        match text(expression, "operator") {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => present.is_some(),
            "DoesNotExist" => present.is_none(),
            other => panic!("operator {other}"),
        }
    });
    labels_match && expressions_match
}

fn pod_labels(pod: &Value) -> &Value {
    field(pod, "metadata.labels")
}

/// One direction of one pod: Admin policies, then NetworkPolicies, then Baseline policies.
fn direction_allows(
    objects: &[Value],
    pod: &Value,
    direction: &str,
    flow: Flow,
    peer: IpAddr,
    destination: Option<&Value>,
) -> bool {
    let packet = Packet { objects, flow, peer, destination };
    if let Some(verdict) = packet.cluster_tier("Admin", pod, direction) {
        return verdict;
    }
    let isolating: Vec<&Value> = of_kind(objects, "NetworkPolicy")
        .filter(|policy| namespace_of(policy) == namespace_of(pod))
        .filter(|policy| selects(field(policy, "spec.podSelector"), pod_labels(pod)))
        .filter(|policy| concerns(policy, direction))
        .collect();
    if !isolating.is_empty() {
        return isolating.iter().any(|policy| packet.policy_allows(policy, direction));
    }
    packet.cluster_tier("Baseline", pod, direction).unwrap_or(true)
}

/// `policyTypes`, or what they are by default.
fn concerns(policy: &Value, direction: &str) -> bool {
    let types = list(policy, "spec.policyTypes");
    if types.is_empty() {
        return direction == "ingress" || !list(policy, "spec.egress").is_empty();
    }
    types.iter().any(|name| name.as_str().is_some_and(|name| name.eq_ignore_ascii_case(direction)))
}

/// A packet and its other end, asked of rules.
struct Packet<'a> {
    objects: &'a [Value],
    flow: Flow,
    peer: IpAddr,
    destination: Option<&'a Value>,
}

impl Packet<'_> {
    fn policy_allows(&self, policy: &Value, direction: &str) -> bool {
        let (rules, peers) = if direction == "ingress" { ("spec.ingress", "from") } else { ("spec.egress", "to") };
        list(policy, rules).iter().any(|rule| {
            let peers = list(rule, peers);
            let ports = list(rule, "ports");
            (peers.is_empty() || peers.iter().any(|peer| self.is_peer(peer, namespace_of(policy))))
                && (ports.is_empty() || ports.iter().any(|port| self.is_port(port)))
        })
    }

    fn is_peer(&self, peer: &Value, own_namespace: &str) -> bool {
        if let Some(block) = peer.get("ipBlock") {
            return self.is_in(text(block, "cidr"))
                && !list(block, "except").iter().any(|except| self.is_in(except.as_str().unwrap_or("")));
        }
        let Some(pod) = pod_with(self.objects, self.peer) else { return false };
        let in_namespace = match peer.get("namespaceSelector") {
            Some(selector) => selects(selector, &namespace_labels(self.objects, namespace_of(pod))),
            None => namespace_of(pod) == own_namespace,
        };
        in_namespace && peer.get("podSelector").is_none_or(|selector| selects(selector, pod_labels(pod)))
    }

    fn is_in(&self, cidr: &str) -> bool {
        let (network, length) = cidr.split_once('/').expect("a prefix");
        let length: u32 = length.parse().expect("a length");
        match (network.parse().expect("an address"), self.peer) {
            (IpAddr::V4(network), IpAddr::V4(peer)) => {
                let shift = 32 - length;
                network.to_bits().checked_shr(shift) == peer.to_bits().checked_shr(shift)
            }
            (IpAddr::V6(network), IpAddr::V6(peer)) => {
                let shift = 128 - length;
                network.to_bits().checked_shr(shift) == peer.to_bits().checked_shr(shift)
            }
            _ => false,
        }
    }

    fn is_port(&self, port: &Value) -> bool {
        let protocol = if text(port, "protocol").is_empty() { "TCP" } else { text(port, "protocol") };
        if protocol != self.flow.protocol {
            return false;
        }
        match field(port, "port") {
            Value::Null => true,
            Value::String(name) => self.is_named(name, Some(protocol)),
            number => {
                let first = number.as_u64().expect("a port");
                let last = field(port, "endPort").as_u64().unwrap_or(first);
                (first..=last).contains(&u64::from(self.flow.port))
            }
        }
    }

    /// Whether the destination pod has a port of this name with the packet's protocol and number.
    fn is_named(&self, name: &str, protocol: Option<&str>) -> bool {
        let Some(pod) = self.destination else { return false };
        if protocol.is_some_and(|protocol| protocol != self.flow.protocol) {
            return false;
        }
        list(pod, "spec.containers").iter().flat_map(|container| list(container, "ports")).any(|port| {
            let own = if text(port, "protocol").is_empty() { "TCP" } else { text(port, "protocol") };
            text(port, "name") == name
                && own == self.flow.protocol
                && field(port, "containerPort").as_u64() == Some(u64::from(self.flow.port))
        })
    }

    /// The verdict of a tier of cluster policies, if it has one.
    fn cluster_tier(&self, tier: &str, pod: &Value, direction: &str) -> Option<bool> {
        let mut policies: Vec<&Value> = of_kind(self.objects, "ClusterNetworkPolicy")
            .filter(|policy| text(policy, "spec.tier") == tier)
            .filter(|policy| self.is_in_pods(field(policy, "spec.subject"), pod))
            .collect();
        policies.sort_by_key(|policy| (field(policy, "spec.priority").as_u64(), text(policy, "metadata.name")));
        let (rules, peers) = if direction == "ingress" { ("spec.ingress", "from") } else { ("spec.egress", "to") };
        for rule in policies.iter().flat_map(|policy| list(policy, rules)) {
            let protocols = list(rule, "protocols");
            let matches = list(rule, peers).iter().any(|peer| self.is_cluster_peer(peer))
                && (protocols.is_empty() || protocols.iter().any(|protocol| self.is_cluster_port(protocol)));
            match text(rule, "action") {
                _ if !matches => {}
                "Accept" => return Some(true),
                "Deny" => return Some(false),
                "Pass" => return None,
                other => panic!("action {other}"),
            }
        }
        None
    }

    fn is_in_pods(&self, selection: &Value, pod: &Value) -> bool {
        let labels = namespace_labels(self.objects, namespace_of(pod));
        if let Some(namespaces) = selection.get("namespaces") {
            return selects(namespaces, &labels);
        }
        selection.get("pods").is_some_and(|pods| {
            selects(field(pods, "namespaceSelector"), &labels) && selects(field(pods, "podSelector"), pod_labels(pod))
        })
    }

    fn is_cluster_peer(&self, peer: &Value) -> bool {
        if let Some(networks) = peer.get("networks") {
            return networks
                .as_array()
                .expect("networks")
                .iter()
                .any(|cidr| self.is_in(cidr.as_str().expect("a prefix")));
        }
        if let Some(nodes) = peer.get("nodes") {
            // An address that is both a node's and a pod's is the node's, unless the pod is plugged in here.
            return of_kind(self.objects, "Node").filter(|node| selects(nodes, field(node, "metadata.labels"))).any(
                |node| {
                    list(node, "status.addresses").iter().any(|entry| text(entry, "address").parse() == Ok(self.peer))
                },
            );
        }
        pod_with(self.objects, self.peer).is_some_and(|pod| self.is_in_pods(peer, pod))
    }

    fn is_cluster_port(&self, protocol: &Value) -> bool {
        if let Some(name) = protocol.get("destinationNamedPort") {
            return self.is_named(name.as_str().expect("a name"), None);
        }
        ["tcp", "udp", "sctp"].into_iter().any(|name| {
            let Some(port) = protocol.get(name).map(|fields| field(fields, "destinationPort")) else { return false };
            let number = |path: &str| field(port, path).as_u64();
            let range = number("number").map(|port| (port, port)).or(number("range.start").zip(number("range.end")));
            let (first, last) = range.expect("a number or a range");
            name.eq_ignore_ascii_case(self.flow.protocol) && (first..=last).contains(&u64::from(self.flow.port))
        })
    }
}
