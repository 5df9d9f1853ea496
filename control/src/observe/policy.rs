//! `NetworkPolicy` objects of `networking.k8s.io/v1`, and what both kinds of policies share.
//!
//! Checked as the API server checks them (`pkg/apis/networking/validation` there): an object it would refuse is a
//! problem here, and [`closed`] stands in for it. Fields it does not know it drops, and so does the type they are read
//! into; what is then left of a peer names nobody and is refused. Host bits of prefixes are accepted and cut off, as it
//! does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use millrace_engine::packet::parse::protocol;
use millrace_engine::tables::policy::{Action, PortRange};

use crate::cluster::{
    NamespaceName, Namespaces, NetworkBlock, Peer, PodSelection, PolicyName, PolicyRecord, PortRecord, Requirement,
    RuleRecord, Selector, Tier,
};
use crate::store::{Document, FieldError, Located, Object};

/// Annotation: `keep` lets connections go on that the policy begins to deny.
const ESTABLISHED: &str = "millrace.dev/established";

/// Annotation of policies and namespaces: `denied` logs what is denied.
const LOG: &str = "millrace.dev/log";

/// What is wrong, and at which field.
pub(super) type Refused = (String, String);

pub(super) fn refuse<T>(path: impl Into<String>, message: impl Into<String>) -> Result<T, Refused> {
    Err((path.into(), message.into()))
}

/// The refusal as an error with the line of the field, or of the nearest one above it that was written.
pub(super) fn placed(content: &Located, (path, message): Refused) -> FieldError {
    let mut value = content;
    for step in path.split(['.', '[', ']']).filter(|step| !step.is_empty()) {
        let inner = match (&value.value, step.parse::<usize>()) {
            (Document::List(items), Ok(index)) => items.get(index),
            _ => value.field(step),
        };
        let Some(inner) = inner else { break };
        value = inner;
    }
    FieldError { path, line: (value.line != 0).then_some(value.line), message }
}

pub(super) fn read(object: &Object) -> Result<PolicyRecord, FieldError> {
    let policy: NetworkPolicy = object.content.read()?;
    record(object, policy).map_err(|refused| placed(&object.content, refused))
}

fn record(object: &Object, policy: NetworkPolicy) -> Result<PolicyRecord, Refused> {
    let namespace = object.key.namespace.as_deref().unwrap_or("default");
    let namespace = NamespaceName::new(namespace).or_else(|error| refuse("metadata.namespace", error.to_string()))?;
    let spec = policy.spec.unwrap_or_default();
    let pods = selector(&spec.pod_selector.unwrap_or_default(), "spec.podSelector")?;
    let types = policy_types(spec.policy_types.as_deref().unwrap_or_default(), spec.egress.is_some_and_filled())?;
    let rules = |at: &str, index, peers: Option<Vec<_>>, peers_name, ports: Option<Vec<_>>| {
        let path = format!("spec.{at}[{index}]");
        Ok(RuleRecord {
            name: None,
            action: Action::Accept,
            peers: list(peers, &format!("{path}.{peers_name}"), |peer, path| self::peer(peer, &namespace, path))?,
            ports: list(ports, &format!("{path}.ports"), port)?,
        })
    };
    // What a policy does not concern is still checked: the API server would refuse the object.
    let ingress = spec.ingress.unwrap_or_default().into_iter().enumerate();
    let ingress = ingress.map(|(index, rule)| rules("ingress", index, rule.from, "from", rule.ports));
    let ingress: Vec<RuleRecord> = ingress.collect::<Result<_, Refused>>()?;
    let egress = spec.egress.unwrap_or_default().into_iter().enumerate();
    let egress = egress.map(|(index, rule)| rules("egress", index, rule.to, "to", rule.ports));
    let egress: Vec<RuleRecord> = egress.collect::<Result<_, Refused>>()?;
    let mut notes = BTreeMap::new();
    let (keeps_established, logs_denied) = options(&object.content, &mut notes);
    Ok(PolicyRecord {
        name: PolicyName { namespace: Some(namespace.clone()), name: object.key.name.as_str().into() },
        tier: Tier::Namespace,
        subject: PodSelection { namespaces: Namespaces::Named(namespace), pods },
        ingress: types.0.then_some(ingress),
        egress: types.1.then_some(egress),
        keeps_established,
        logs_denied,
        notes,
    })
}

/// What stands in for a policy that the API server would have refused, and of which no valid version is known: it isolates
/// the pods it selects in the directions it is about, and allows nothing. What of these cannot be told is everything.
pub(super) fn closed(object: &Object) -> Option<PolicyRecord> {
    let namespace = NamespaceName::new(object.key.namespace.as_deref().unwrap_or("default")).ok()?;
    let spec = |field: &str| object.content.at(&["spec", field]);
    let pods = match spec("podSelector") {
        Some(fields) => fields.read().ok().and_then(|fields| selector(&fields, "").ok()).unwrap_or_default(),
        None => Selector::default(),
    };
    let has_egress = match spec("egress").map(|egress| &egress.value) {
        None | Some(Document::Null) => false,
        Some(Document::List(rules)) => !rules.is_empty(),
        Some(_) => true,
    };
    let types = spec("policyTypes").map_or(Ok(None), |types| types.read::<Option<Vec<String>>>());
    let types = types.ok().and_then(|types| policy_types(&types.unwrap_or_default(), has_egress).ok());
    let types = types.unwrap_or((true, true));
    let (_, logs_denied) = options(&object.content, &mut BTreeMap::new());
    Some(PolicyRecord {
        name: PolicyName { namespace: Some(namespace.clone()), name: object.key.name.as_str().into() },
        tier: Tier::Namespace,
        subject: PodSelection { namespaces: Namespaces::Named(namespace), pods },
        ingress: types.0.then(Vec::new),
        egress: types.1.then(Vec::new),
        keeps_established: false,
        logs_denied,
        notes: BTreeMap::new(),
    })
}

trait Filled {
    fn is_some_and_filled(&self) -> bool;
}

impl<T> Filled for Option<Vec<T>> {
    fn is_some_and_filled(&self) -> bool {
        self.as_ref().is_some_and(|list| !list.is_empty())
    }
}

/// Whether the policy concerns ingress and egress. Without `policyTypes` it concerns ingress, and egress if it has
/// egress rules.
fn policy_types(types: &[String], has_egress: bool) -> Result<(bool, bool), Refused> {
    if types.is_empty() {
        return Ok((true, has_egress));
    }
    for (index, name) in types.iter().enumerate() {
        if !matches!(name.as_str(), "Ingress" | "Egress") {
            return refuse(format!("spec.policyTypes[{index}]"), format!("{name:?} is neither Ingress nor Egress"));
        }
    }
    let has = |wanted: &str| types.iter().any(|name| name == wanted);
    Ok((has("Ingress"), has("Egress")))
}

/// A list whose absence and whose emptiness both mean "all".
fn list<T, U>(
    items: Option<Vec<T>>,
    path: &str,
    read: impl Fn(&T, &str) -> Result<U, Refused>,
) -> Result<Option<Vec<U>>, Refused> {
    let items = items.unwrap_or_default();
    if items.is_empty() {
        return Ok(None);
    }
    let read = items.iter().enumerate().map(|(index, item)| read(item, &format!("{path}[{index}]")));
    read.collect::<Result<_, _>>().map(Some)
}

fn peer(peer: &NetworkPolicyPeer, own: &NamespaceName, path: &str) -> Result<Peer, Refused> {
    let NetworkPolicyPeer { ip_block, namespace_selector, pod_selector } = peer;
    match (ip_block, namespace_selector, pod_selector) {
        (None, None, None) => refuse(path, "names nobody: give ipBlock, podSelector or namespaceSelector"),
        (Some(block), None, None) => network(block, &format!("{path}.ipBlock")).map(Peer::Network),
        (Some(_), ..) => refuse(path, "has ipBlock beside a selector; one peer is either"),
        (None, namespaces, pods) => {
            let pods = pods.as_ref().map(|pods| selector(pods, &format!("{path}.podSelector"))).transpose()?;
            let namespaces = match namespaces {
                Some(namespaces) => Namespaces::Matching(selector(namespaces, &format!("{path}.namespaceSelector"))?),
                None => Namespaces::Named(own.clone()),
            };
            Ok(Peer::Pods(PodSelection { namespaces, pods: pods.unwrap_or_default() }))
        }
    }
}

fn network(block: &IPBlock, path: &str) -> Result<NetworkBlock, Refused> {
    let cidr = prefix(&block.cidr, &format!("{path}.cidr"))?;
    let mut except = Vec::new();
    for (index, text) in block.except.iter().flatten().enumerate() {
        let path = format!("{path}.except[{index}]");
        let inner = prefix(text, &path)?;
        if !cidr.contains(&inner) || inner.prefix_len() <= cidr.prefix_len() {
            return refuse(path, format!("{inner} is not a smaller part of {cidr}"));
        }
        except.push(inner);
    }
    except.sort_unstable();
    except.dedup();
    Ok(NetworkBlock { cidr, except })
}

pub(super) fn prefix(text: &str, path: &str) -> Result<IpNet, Refused> {
    match text.parse::<IpNet>() {
        Ok(prefix) => Ok(prefix.trunc()),
        Err(_) => refuse(path, format!("{text:?} is not a prefix such as 10.0.0.0/8 or fd00::/8")),
    }
}

fn port(port: &NetworkPolicyPort, path: &str) -> Result<PortRecord, Refused> {
    let number = protocol_number(port.protocol.as_deref().unwrap_or("TCP"), &format!("{path}.protocol"))?;
    let end_path = format!("{path}.endPort");
    match (&port.port, port.end_port) {
        (None, None) => Ok(PortRecord::Range(PortRange { protocol: number, first: 0, last: u16::MAX })),
        (None, Some(_)) => refuse(end_path, "needs port, where the range begins"),
        (Some(IntOrString::String(_)), Some(_)) => refuse(end_path, "cannot go with a port that is named"),
        (Some(IntOrString::String(name)), None) => {
            port_name(name, &format!("{path}.port"))?;
            Ok(PortRecord::Named(name.as_str().into(), Some(number)))
        }
        (Some(IntOrString::Int(first)), end) => {
            let first = port_number(*first, &format!("{path}.port"))?;
            let last = end.map(|end| port_number(end, &end_path)).transpose()?.unwrap_or(first);
            if last < first {
                return refuse(end_path, format!("{last} is below port {first}"));
            }
            Ok(PortRecord::Range(PortRange { protocol: number, first, last }))
        }
    }
}

pub(super) fn port_number(number: i32, path: &str) -> Result<u16, Refused> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => refuse(path, format!("{number} is not a port from 1 to 65535")),
    }
}

/// `IsValidPortName` of the API server.
pub(super) fn port_name(name: &str, path: &str) -> Result<(), Refused> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let edges = !name.starts_with('-') && !name.ends_with('-') && !name.contains("--");
    let letters = name.bytes().any(|byte| byte.is_ascii_lowercase());
    if !name.is_empty() && name.len() <= 15 && name.bytes().all(allowed) && edges && letters {
        return Ok(());
    }
    refuse(path, format!("{name:?} is not the name of a port (at most 15 of a-z, 0-9 and '-', with a letter)"))
}

pub(super) fn protocol_number(name: &str, path: &str) -> Result<u8, Refused> {
    match name {
        "TCP" => Ok(protocol::TCP),
        "UDP" => Ok(protocol::UDP),
        "SCTP" => Ok(protocol::SCTP),
        _ => refuse(path, format!("{name:?} is none of TCP, UDP and SCTP")),
    }
}

/// A label selector in canonical form.
pub(super) fn selector(selector: &LabelSelector, path: &str) -> Result<Selector, Refused> {
    let mut requirements = Vec::new();
    for (key, value) in selector.match_labels.iter().flatten() {
        label_key(key, &format!("{path}.matchLabels"))?;
        requirements.push(Requirement::In(key.clone(), BTreeSet::from([value.clone()])));
    }
    for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        label_key(&expression.key, &format!("{path}.key"))?;
        let values: BTreeSet<String> = expression.values.iter().flatten().cloned().collect();
        let key = expression.key.clone();
        let requirement = match (expression.operator.as_str(), values.is_empty()) {
            ("In", false) => Requirement::In(key, values),
            ("NotIn", false) => Requirement::NotIn(key, values),
            ("Exists", true) => Requirement::Exists(key),
            ("DoesNotExist", true) => Requirement::DoesNotExist(key),
            ("In" | "NotIn", true) => return refuse(format!("{path}.values"), "must not be empty for In and NotIn"),
            ("Exists" | "DoesNotExist", false) => {
                return refuse(format!("{path}.values"), "must be empty for Exists and DoesNotExist");
            }
            (operator, _) => {
                let message = format!("{operator:?} is none of In, NotIn, Exists and DoesNotExist");
                return refuse(format!("{path}.operator"), message);
            }
        };
        requirements.push(requirement);
    }
    Ok(Selector::new(requirements))
}

/// A qualified name: an optional DNS prefix and a name of at most 63 characters.
fn label_key(key: &str, path: &str) -> Result<(), Refused> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let bytes = name.as_bytes();
    let sound =
        bytes.len() <= 63 && bytes.iter().all(|byte| allowed(*byte)) && edge(bytes.first()) && edge(bytes.last());
    if sound && prefix.is_none_or(|prefix| crate::store::dns_subdomain(prefix).is_ok()) {
        return Ok(());
    }
    refuse(path, format!("{key:?} is not the key of a label"))
}

/// Whether connections are kept and denials logged. A value that nobody knows is noted and counts as none: the API server took
/// the object, and to leave a policy out for it would open what it closes.
pub(super) fn options(content: &Located, notes: &mut BTreeMap<String, String>) -> (bool, bool) {
    let annotation = |key: &str| content.at(&["metadata", "annotations", key]).and_then(Located::text);
    let mut one_of = |key: &str, word: &str| {
        let unknown = annotation(key).filter(|text| *text != word);
        if let Some(text) = unknown {
            let note = format!("{text:?} has no effect; the one value it knows is {word:?}");
            notes.insert(format!("metadata.annotations.{key}"), note);
        }
        annotation(key).is_some() && unknown.is_none()
    };
    (one_of(ESTABLISHED, "keep"), one_of(LOG, "denied"))
}

/// The name of a port as an `Arc`, checked.
pub(super) fn shared_port_name(name: &str, path: &str) -> Result<Arc<str>, Refused> {
    port_name(name, path).map(|()| name.into())
}
