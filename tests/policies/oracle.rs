//! The oracle: who may talk to whom, by the words of the API, without any preparation.
//!
//! It reads the objects as they are stored (`serde_json::Value`), asks every policy about every packet and shares no
//! code with the control plane or the engine. Slow and obvious is the point. What is not known, because an object is
//! missing, makes an answer `Maybe`; what becomes of that is said in the three places where it matters: a pod that a policy
//! may select is closed, an `Accept` wants a `Yes`, a `Deny` or a `Pass` that may match denies.

use std::net::IpAddr;

use serde_json::Value;

use super::{Flow, NodeView, Plugged};

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

fn of_kind<'a>(objects: &[&'a Value], kind: &str) -> impl Iterator<Item = &'a Value> {
    objects.iter().copied().filter(move |object| text(object, "kind") == kind)
}

fn namespace_of(object: &Value) -> &str {
    match text(object, "metadata.namespace") {
        "" => "default",
        name => name,
    }
}

/// An answer; `min` is and, `max` is or.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Says {
    No,
    Maybe,
    Yes,
}

impl From<bool> for Says {
    fn from(yes: bool) -> Self {
        if yes { Says::Yes } else { Says::No }
    }
}

fn any(answers: impl Iterator<Item = Says>) -> Says {
    answers.max().unwrap_or(Says::No)
}

/// Whose an address is.
#[derive(Clone, Copy, Debug)]
enum End<'a> {
    /// A pod's, with its object if there is one; `here` if it is plugged in at the node that judges.
    Pod {
        namespace: &'a str,
        object: Option<&'a Value>,
        here: bool,
    },
    Node(&'a Value),
    /// That of a pod of which nothing is known.
    Unknown,
    Nobody,
}

/// Whether the node lets the packet through.
///
/// # Errors
/// In words which end denies it.
pub fn allowed(objects: &[Value], view: &NodeView, flow: Flow) -> Result<(), String> {
    allowed_of(&objects.iter().collect::<Vec<_>>(), view, flow)
}

/// The same for objects that lie elsewhere. Those of pods and nodes that have neither address may be left out.
///
/// # Errors
/// In words which end denies it.
pub fn allowed_of(objects: &[&Value], view: &NodeView, flow: Flow) -> Result<(), String> {
    Packet { objects, view, flow }.allowed(false)
}

/// Whether both ends' nodes let the packet through, whichever nodes they are.
///
/// # Errors
/// Which end denies it.
pub fn allowed_everywhere(objects: &[Value], view: &NodeView, flow: Flow) -> Result<(), String> {
    Packet { objects: &objects.iter().collect::<Vec<_>>(), view, flow }.allowed(true)
}

/// A packet that is asked of policies, and what is known.
struct Packet<'a> {
    objects: &'a [&'a Value],
    view: &'a NodeView,
    flow: Flow,
}

impl<'a> Packet<'a> {
    fn allowed(&self, everywhere: bool) -> Result<(), String> {
        let Flow { source, destination, .. } = self.flow;
        if source == destination {
            return Ok(());
        }
        let [from, to] = [source, destination].map(|address| self.end(address));
        let is_own = |end| matches!(end, End::Node(node) if text(node, "metadata.name") == self.view.node);
        let judged = |end| match end {
            End::Pod { namespace, object, here } => (here || everywhere).then_some((namespace, object)),
            End::Node(_) | End::Unknown | End::Nobody => None,
        };
        if let Some(pod) = judged(from)
            && !self.direction_allows(pod, "egress", (to, destination), to, is_own(to))
        {
            return Err(format!("egress of {source}"));
        }
        if let Some(pod) = judged(to).filter(|_| !is_own(from))
            && !self.direction_allows(pod, "ingress", (from, source), to, false)
        {
            return Err(format!("ingress of {destination}"));
        }
        Ok(())
    }

    /// What nobody knows counts as nothing, if the node is configured so.
    fn unless_open(&self, answer: Says) -> Says {
        if self.view.open && answer == Says::Maybe { Says::No } else { answer }
    }

    fn end(&self, address: IpAddr) -> End<'a> {
        let has = |entries: &[Value], name| entries.iter().any(|entry| text(entry, name).parse() == Ok(address));
        if let Some(plugged) = self.view.plugged.iter().find(|plugged| plugged.addresses.contains(&address)) {
            return End::Pod { namespace: &plugged.namespace, object: self.object_of(plugged), here: true };
        }
        let mut nodes = of_kind(self.objects, "Node");
        let among_pods = |node: &Value| {
            let blocks = of_kind(self.objects, "IpBlock");
            let mut own = blocks.filter(|block| text(block, "spec.node") == text(node, "metadata.name"));
            own.any(|block| {
                text(block, "spec.cidr").split_once('/').is_some_and(|(first, _)| first.parse() == Ok(address))
            })
        };
        if let Some(node) = nodes.find(|node| has(list(node, "status.addresses"), "address") || among_pods(node)) {
            return End::Node(node);
        }
        let claims = of_kind(self.objects, "Pod")
            .filter(|pod| has_addresses(pod) && !self.is_plugged_in(pod) && has(list(pod, "status.podIPs"), "ip"));
        let order = |pod: &&Value| {
            let created = text(pod, "metadata.creationTimestamp").to_owned();
            let name = (namespace_of(pod).to_owned(), text(pod, "metadata.name").to_owned());
            (!text(pod, "metadata.deletionTimestamp").is_empty(), std::cmp::Reverse(created), name)
        };
        if let Some(pod) = claims.min_by_key(order) {
            return End::Pod { namespace: namespace_of(pod), object: Some(pod), here: false };
        }
        let mut pools = of_kind(self.objects, "IpPool");
        match pools.any(|pool| is_in(address, text(pool, "spec.cidr"))) && !self.view.open {
            true => End::Unknown,
            false => End::Nobody,
        }
    }

    /// The object of a plugged pod: not that of an earlier pod of its name.
    fn object_of(&self, plugged: &Plugged) -> Option<&'a Value> {
        of_kind(self.objects, "Pod").find(|pod| is_object_of(pod, plugged))
    }

    /// Whether the pod is plugged in here, or was before another of its name was.
    fn is_plugged_in(&self, pod: &Value) -> bool {
        let same_name =
            |plugged: &&Plugged| plugged.namespace == namespace_of(pod) && plugged.name == text(pod, "metadata.name");
        let mut same = self.view.plugged.iter().filter(same_name);
        same.any(|plugged| is_object_of(pod, plugged) || text(pod, "spec.nodeName") == self.view.node)
    }

    /// A selector of namespaces; a missing object leaves nothing known but the name.
    fn selects_namespace(&self, selector: &Value, name: &str) -> Says {
        const NAME: &str = "kubernetes.io/metadata.name";
        let object = of_kind(self.objects, "Namespace").find(|object| text(object, "metadata.name") == name);
        let mut labels = object.map_or(NOTHING, |object| field(object, "metadata.labels").clone());
        if !labels.is_object() {
            labels = serde_json::json!({});
        }
        labels[NAME] = name.into();
        if object.is_some() || self.view.open {
            return selects(selector, &labels).into();
        }
        let (of_name, others): (Vec<_>, Vec<_>) = requirements(selector).into_iter().partition(|(key, _)| key == NAME);
        match of_name.iter().all(|(_, requirement)| selects(requirement, &labels)) {
            false => Says::No,
            true if others.is_empty() => Says::Yes,
            true => Says::Maybe,
        }
    }

    /// A selector of pods; a missing object leaves nothing known.
    fn selects_pod(&self, selector: &Value, object: Option<&Value>) -> Says {
        match object {
            Some(object) => selects(selector, field(object, "metadata.labels")).into(),
            None if requirements(selector).is_empty() => Says::Yes,
            None => self.unless_open(Says::Maybe),
        }
    }

    /// One direction of one pod: Admin policies, then NetworkPolicies, then Baseline policies.
    fn direction_allows(
        &self,
        pod: (&str, Option<&Value>),
        direction: &str,
        peer: (End<'_>, IpAddr),
        destination: End<'_>,
        own_node: bool,
    ) -> bool {
        let policies = of_kind(self.objects, "NetworkPolicy").filter(|policy| namespace_of(policy) == pod.0);
        let policies = policies.filter(|policy| concerns(policy, direction));
        let policies = policies.map(|policy| (policy, self.selects_pod(field(policy, "spec.podSelector"), pod.1)));
        let isolating: Vec<(&Value, Says)> = policies.filter(|(_, selects)| *selects != Says::No).collect();
        let cluster = of_kind(self.objects, "ClusterNetworkPolicy")
            .filter(|policy| !list(policy, &format!("spec.{direction}")).is_empty())
            .map(|policy| (policy, self.is_in_pods(field(policy, "spec.subject"), pod)));
        let cluster: Vec<(&Value, Says)> = cluster.filter(|(_, selects)| *selects != Says::No).collect();
        // Closed until it is known which policies select the pod.
        if isolating.iter().chain(&cluster).any(|(_, selects)| *selects == Says::Maybe) {
            return false;
        }
        if let Some(verdict) = self.cluster_tier(&cluster, "Admin", direction, peer, destination) {
            return verdict;
        }
        if !isolating.is_empty() {
            return own_node
                || isolating.iter().any(|(policy, _)| self.policy_allows(policy, direction, peer, destination));
        }
        self.cluster_tier(&cluster, "Baseline", direction, peer, destination).unwrap_or(true)
    }

    fn policy_allows(&self, policy: &Value, direction: &str, peer: (End<'_>, IpAddr), destination: End<'_>) -> bool {
        let (rules, peers) = if direction == "ingress" { ("spec.ingress", "from") } else { ("spec.egress", "to") };
        list(policy, rules).iter().any(|rule| {
            let (peers, ports) = (list(rule, peers), list(rule, "ports"));
            let of_peers = any(peers.iter().map(|one| self.is_peer(one, namespace_of(policy), peer)));
            let of_ports = any(ports.iter().map(|port| self.is_port(port, destination)));
            (peers.is_empty() || of_peers == Says::Yes) && (ports.is_empty() || of_ports == Says::Yes)
        })
    }

    fn is_peer(&self, peer: &Value, own_namespace: &str, (end, address): (End<'_>, IpAddr)) -> Says {
        if let Some(block) = peer.get("ipBlock").filter(|block| !block.is_null()) {
            let except = |except: &Value| is_in(address, except.as_str().unwrap_or(""));
            return (is_in(address, text(block, "cidr")) && !list(block, "except").iter().any(except)).into();
        }
        let End::Pod { namespace, object, .. } = end else { return Says::No };
        if object.is_some_and(|object| !has_addresses(object)) {
            return Says::No;
        }
        let given = |name: &str| peer.get(name).filter(|selector| !selector.is_null());
        let in_namespace = match given("namespaceSelector") {
            Some(selector) => self.selects_namespace(selector, namespace),
            None => (namespace == own_namespace).into(),
        };
        let of_pods = given("podSelector").map_or(Says::Yes, |selector| self.selects_pod(selector, object));
        in_namespace.min(of_pods)
    }

    fn is_port(&self, port: &Value, destination: End<'_>) -> Says {
        let protocol = if text(port, "protocol").is_empty() { "TCP" } else { text(port, "protocol") };
        if protocol != self.flow.protocol {
            return Says::No;
        }
        match field(port, "port") {
            Value::Null => Says::Yes,
            Value::String(name) => self.is_named(name, destination),
            number => {
                let first = number.as_u64().expect("a port");
                let last = field(port, "endPort").as_u64().unwrap_or(first);
                (first..=last).contains(&u64::from(self.flow.port)).into()
            }
        }
    }

    /// Whether the destination pod has a port of this name with the packet's protocol and number.
    fn is_named(&self, name: &str, destination: End<'_>) -> Says {
        if self.flow.protocol == "ICMP" {
            return Says::No;
        }
        let pod = match destination {
            End::Unknown | End::Pod { object: None, .. } => return self.unless_open(Says::Maybe),
            End::Pod { object: Some(pod), .. } if has_addresses(pod) => pod,
            End::Pod { .. } | End::Node(_) | End::Nobody => return Says::No,
        };
        let lasting = list(pod, "spec.initContainers").iter();
        let lasting = lasting.filter(|container| text(container, "restartPolicy") == "Always");
        let containers = list(pod, "spec.containers").iter().chain(lasting);
        let mut ports = containers.flat_map(|container| list(container, "ports"));
        let is_it = |port: &Value| {
            let own = if text(port, "protocol").is_empty() { "TCP" } else { text(port, "protocol") };
            text(port, "name") == name
                && own == self.flow.protocol
                && field(port, "containerPort").as_u64() == Some(u64::from(self.flow.port))
        };
        ports.any(is_it).into()
    }

    /// The verdict of a tier of the cluster policies that select the pod, if it has one.
    fn cluster_tier(
        &self,
        selecting: &[(&Value, Says)],
        tier: &str,
        direction: &str,
        peer: (End<'_>, IpAddr),
        destination: End<'_>,
    ) -> Option<bool> {
        let of_tier = selecting.iter().map(|(policy, _)| *policy).filter(|policy| text(policy, "spec.tier") == tier);
        let mut policies: Vec<&Value> = of_tier.collect();
        policies.sort_by_key(|policy| (field(policy, "spec.priority").as_u64(), text(policy, "metadata.name")));
        let (rules, peers) = if direction == "ingress" { ("spec.ingress", "from") } else { ("spec.egress", "to") };
        for rule in policies.iter().flat_map(|policy| list(policy, rules)) {
            let protocols = list(rule, "protocols");
            let of_ports = any(protocols.iter().map(|protocol| self.is_cluster_port(protocol, destination)));
            let of_ports = if protocols.is_empty() { Says::Yes } else { of_ports };
            let matches = any(list(rule, peers).iter().map(|one| self.is_cluster_peer(one, peer))).min(of_ports);
            match (text(rule, "action"), matches) {
                (_, Says::No) | ("Accept", Says::Maybe) => {}
                ("Accept", Says::Yes) => return Some(true),
                ("Deny", _) | ("Pass", Says::Maybe) => return Some(false),
                ("Pass", Says::Yes) => return None,
                (other, _) => panic!("action {other}"),
            }
        }
        None
    }

    fn is_in_pods(&self, selection: &Value, (namespace, object): (&str, Option<&Value>)) -> Says {
        if let Some(namespaces) = selection.get("namespaces") {
            return self.selects_namespace(namespaces, namespace);
        }
        let pods = field(selection, "pods");
        let in_namespace = self.selects_namespace(field(pods, "namespaceSelector"), namespace);
        in_namespace.min(self.selects_pod(field(pods, "podSelector"), object))
    }

    fn is_cluster_peer(&self, peer: &Value, (end, address): (End<'_>, IpAddr)) -> Says {
        if let Some(networks) = peer.get("networks") {
            let mut networks = networks.as_array().expect("networks").iter();
            return networks.any(|cidr| is_in(address, cidr.as_str().expect("a prefix"))).into();
        }
        match (end, peer.get("nodes")) {
            (End::Unknown, _) => Says::Maybe,
            (End::Node(node), Some(nodes)) => selects(nodes, field(node, "metadata.labels")).into(),
            (End::Pod { object: Some(pod), .. }, None) if !has_addresses(pod) => Says::No,
            (End::Pod { namespace, object, .. }, None) => self.is_in_pods(peer, (namespace, object)),
            (End::Node(_) | End::Pod { .. } | End::Nobody, _) => Says::No,
        }
    }

    fn is_cluster_port(&self, protocol: &Value, destination: End<'_>) -> Says {
        if let Some(name) = protocol.get("destinationNamedPort") {
            return self.is_named(name.as_str().expect("a name"), destination);
        }
        let in_range = ["tcp", "udp", "sctp"].into_iter().any(|name| {
            let Some(port) = protocol.get(name).map(|fields| field(fields, "destinationPort")) else { return false };
            let number = |path: &str| field(port, path).as_u64();
            let range = number("number").map(|port| (port, port)).or(number("range.start").zip(number("range.end")));
            let (first, last) = range.expect("a number or a range");
            name.eq_ignore_ascii_case(self.flow.protocol) && (first..=last).contains(&u64::from(self.flow.port))
        });
        in_range.into()
    }
}

/// Whether a pod has addresses of its own: neither ended nor in its node's network namespace.
fn has_addresses(pod: &Value) -> bool {
    field(pod, "spec.hostNetwork") != &Value::Bool(true) && !matches!(text(pod, "status.phase"), "Succeeded" | "Failed")
}

fn is_object_of(pod: &Value, plugged: &Plugged) -> bool {
    let same_name = plugged.namespace == namespace_of(pod) && plugged.name == text(pod, "metadata.name");
    let uid = text(pod, "metadata.uid");
    same_name && (uid.is_empty() || plugged.uid.as_deref().is_none_or(|told| told == uid))
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

/// What a selector requires, as selectors of one requirement each, with the label it is about.
fn requirements(selector: &Value) -> Vec<(String, Value)> {
    let labels = field(selector, "matchLabels").as_object().into_iter().flatten();
    let labels = labels.map(|(key, value)| (key.clone(), serde_json::json!({"matchLabels": {key: value}})));
    let expressions = list(selector, "matchExpressions")
        .iter()
        .map(|expression| (text(expression, "key").to_owned(), serde_json::json!({"matchExpressions": [expression]})));
    labels.chain(expressions).collect()
}

/// `policyTypes`, or what they are by default.
fn concerns(policy: &Value, direction: &str) -> bool {
    let types = list(policy, "spec.policyTypes");
    if types.is_empty() {
        return direction == "ingress" || !list(policy, "spec.egress").is_empty();
    }
    types.iter().any(|name| name.as_str().is_some_and(|name| name.eq_ignore_ascii_case(direction)))
}

fn is_in(address: IpAddr, cidr: &str) -> bool {
    let (network, length) = cidr.split_once('/').expect("a prefix");
    let length: u32 = length.parse().expect("a length");
    match (network.parse().expect("an address"), address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let shift = 32 - length;
            network.to_bits().checked_shr(shift) == address.to_bits().checked_shr(shift)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let shift = 128 - length;
            network.to_bits().checked_shr(shift) == address.to_bits().checked_shr(shift)
        }
        _ => false,
    }
}
