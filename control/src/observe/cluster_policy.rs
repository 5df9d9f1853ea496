//! `ClusterNetworkPolicy` objects of `policy.networking.k8s.io/v1alpha2` (network-policy-api v0.2).
//!
//! Read into types of our own, since no crate at hand has them. A newer version of the API may have fields, actions and
//! peers that are not known here, or the API server may have dropped one and left a peer or a protocol that names
//! nothing. Then, and where a field is known but cannot be enforced (`domainNames`), the rule fails closed as the API
//! demands: an `Accept` matches nothing, a `Deny` or `Pass` denies everything. An unknown action denies everything, an
//! unknown field beside the rules closes all of them. Whom the policy concerns, and when, must be known: an unknown field
//! of the subject or an unknown tier is refused.
//!
//! What the API server would have refused is closed by [`closed`].

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use millrace_engine::packet::parse::protocol;
use millrace_engine::tables::policy::{Action, PortRange};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::policy::{Refused, options, placed, port_number, prefix, refuse, selector, shared_port_name};
use crate::cluster::{
    Namespaces, NetworkBlock, Peer, PodSelection, PolicyName, PolicyRecord, PortRecord, RuleRecord, Tier,
};
use crate::store::{Document, FieldError, Located, Object};

/// Rules of a direction, peers of a rule, protocols of a rule, networks of a peer: at most so many of each.
const ITEMS: usize = 25;

/// Highest priority number.
const PRIORITY: u16 = 1000;

/// Fields that are not known here.
type Unknown = BTreeMap<String, IgnoredAny>;

#[derive(Deserialize)]
struct Spec {
    tier: TierName,
    priority: i32,
    subject: Subject,
    #[serde(default)]
    ingress: Option<Vec<IngressRule>>,
    #[serde(default)]
    egress: Option<Vec<EgressRule>>,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Deserialize)]
enum TierName {
    Admin,
    Baseline,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Subject {
    namespaces: Option<LabelSelector>,
    pods: Option<NamespacedPod>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct NamespacedPod {
    #[serde(default)]
    namespace_selector: LabelSelector,
    pod_selector: LabelSelector,
}

#[derive(Deserialize)]
struct IngressRule {
    name: Option<String>,
    action: String,
    from: Vec<PeerFields>,
    protocols: Option<Vec<ProtocolFields>>,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Deserialize)]
struct EgressRule {
    name: Option<String>,
    action: String,
    to: Vec<PeerFields>,
    protocols: Option<Vec<ProtocolFields>>,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PeerFields {
    namespaces: Option<LabelSelector>,
    pods: Option<PeerPods>,
    nodes: Option<LabelSelector>,
    networks: Option<Vec<String>>,
    domain_names: Option<Vec<String>>,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PeerPods {
    #[serde(default)]
    namespace_selector: LabelSelector,
    pod_selector: LabelSelector,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProtocolFields {
    tcp: Option<Transport>,
    udp: Option<Transport>,
    sctp: Option<Transport>,
    destination_named_port: Option<String>,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Transport {
    destination_port: Option<PortFields>,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Deserialize)]
struct PortFields {
    number: Option<i32>,
    range: Option<RangeFields>,
    #[serde(flatten)]
    unknown: Unknown,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeFields {
    start: i32,
    end: i32,
}

/// What a peer or a protocol turned out to be.
enum Found<T> {
    Some(Vec<T>),
    /// Nothing that is known: the rule fails closed.
    Unknown(String),
}

pub(super) fn read(object: &Object) -> Result<PolicyRecord, FieldError> {
    let spec: Spec = super::ours::spec(object)?;
    record(object, &spec).map_err(|refused| placed(&object.content, refused))
}

fn record(object: &Object, spec: &Spec) -> Result<PolicyRecord, Refused> {
    let priority = u16::try_from(spec.priority).ok().filter(|priority| *priority <= PRIORITY);
    let Some(priority) = priority else {
        return refuse("spec.priority", format!("{} is not from 0 to {PRIORITY}", spec.priority));
    };
    let mut notes = BTreeMap::new();
    let ingress = spec.ingress.as_deref().unwrap_or_default();
    let egress = spec.egress.as_deref().unwrap_or_default();
    count(ingress.len(), 0, "spec.ingress")?;
    count(egress.len(), 0, "spec.egress")?;
    let beside = unknown(&spec.unknown).map(|why| ("spec".to_owned(), why));
    let mut rules = [Vec::new(), Vec::new()];
    for (index, rule) in ingress.iter().enumerate() {
        let IngressRule { name, action, from, protocols, unknown } = rule;
        let place = Place { path: format!("spec.ingress[{index}]"), peers: "from", closed: &beside };
        let fields =
            RuleFields { name: name.as_deref(), action, peers: from, protocols: protocols.as_deref(), unknown };
        rules[0].push(self::rule(&place, &fields, &mut notes)?);
    }
    for (index, rule) in egress.iter().enumerate() {
        let EgressRule { name, action, to, protocols, unknown } = rule;
        let place = Place { path: format!("spec.egress[{index}]"), peers: "to", closed: &beside };
        let fields = RuleFields { name: name.as_deref(), action, peers: to, protocols: protocols.as_deref(), unknown };
        rules[1].push(self::rule(&place, &fields, &mut notes)?);
    }
    let [ingress, egress] = rules;
    let (keeps_established, logs_denied) = options(&object.content, &mut notes);
    Ok(PolicyRecord {
        name: PolicyName { namespace: None, name: object.key.name.as_str().into() },
        tier: match spec.tier {
            TierName::Admin => Tier::Admin(priority),
            TierName::Baseline => Tier::Baseline(priority),
        },
        subject: subject(&spec.subject)?,
        ingress: (!ingress.is_empty()).then_some(ingress),
        egress: (!egress.is_empty()).then_some(egress),
        keeps_established,
        logs_denied,
        notes,
    })
}

struct Place<'a> {
    path: String,
    peers: &'static str,
    /// What closes every rule.
    closed: &'a Option<(String, String)>,
}

/// A rule of either direction.
struct RuleFields<'a> {
    name: Option<&'a str>,
    action: &'a str,
    peers: &'a [PeerFields],
    protocols: Option<&'a [ProtocolFields]>,
    unknown: &'a Unknown,
}

/// Why fields close a rule, if there are any.
fn unknown(fields: &Unknown) -> Option<String> {
    let names: Vec<String> = fields.keys().map(|name| format!("`{name}`")).collect();
    (!names.is_empty()).then(|| format!("{} not known here", names.join(", ")))
}

fn subject(subject: &Subject) -> Result<PodSelection, Refused> {
    match (&subject.namespaces, &subject.pods) {
        (Some(namespaces), None) => all_pods(namespaces, "spec.subject.namespaces"),
        (None, Some(pods)) => pods_of(&pods.namespace_selector, &pods.pod_selector, "spec.subject.pods"),
        _ => refuse("spec.subject", "must have one of namespaces and pods"),
    }
}

fn all_pods(namespaces: &LabelSelector, path: &str) -> Result<PodSelection, Refused> {
    let namespaces = Namespaces::Matching(selector(namespaces, path)?);
    Ok(PodSelection { namespaces, pods: crate::cluster::Selector::default() })
}

fn pods_of(namespaces: &LabelSelector, pods: &LabelSelector, path: &str) -> Result<PodSelection, Refused> {
    Ok(PodSelection {
        namespaces: Namespaces::Matching(selector(namespaces, &format!("{path}.namespaceSelector"))?),
        pods: selector(pods, &format!("{path}.podSelector"))?,
    })
}

fn rule(
    place: &Place<'_>,
    fields: &RuleFields<'_>,
    notes: &mut BTreeMap<String, String>,
) -> Result<RuleRecord, Refused> {
    let Place { path, peers: peers_name, closed } = place;
    let RuleFields { name, action, peers, protocols, unknown: rest } = fields;
    if name.is_some_and(|name| name.len() > 100) {
        return refuse(format!("{path}.name"), "is longer than 100 characters");
    }
    let action = action_of(action);
    let unknown_action = action.is_none().then(|| (format!("{path}.action"), "is not known here".to_owned()));
    let mut closed = (*closed).clone().or(unknown(rest).map(|why| (path.clone(), why))).or(unknown_action);
    let peers_path = format!("{path}.{peers_name}");
    count(peers.len(), 1, &peers_path)?;
    let mut found_peers = Vec::new();
    for (index, fields) in peers.iter().enumerate() {
        let path = format!("{peers_path}[{index}]");
        match peer(fields, *peers_name == "to", &path)? {
            Found::Some(more) => found_peers.extend(more),
            Found::Unknown(why) => closed = Some((path, why)),
        }
    }
    let mut found_ports = None;
    if let Some(protocols) = protocols {
        let protocols_path = format!("{path}.protocols");
        count(protocols.len(), 1, &protocols_path)?;
        let ports = found_ports.insert(Vec::new());
        for (index, fields) in protocols.iter().enumerate() {
            let path = format!("{protocols_path}[{index}]");
            match protocol_ports(fields, &path)? {
                Found::Some(more) => ports.extend(more),
                Found::Unknown(why) => closed = Some((path, why)),
            }
        }
    }
    let names_ports = found_ports.iter().flatten().any(|port| matches!(port, PortRecord::Named(..)));
    if names_ports && found_peers.iter().any(|peer| !matches!(peer, Peer::Pods(_))) {
        return refuse(path, "has destinationNamedPort beside networks or nodes, whose ports have no names");
    }
    let name = name.filter(|name| !name.is_empty()).map(Arc::from);
    let rule = |action, peers, ports| RuleRecord { name: name.clone(), action, peers, ports };
    Ok(match (closed, action) {
        (None, Some(action)) => rule(action, Some(found_peers), found_ports),
        (Some((path, why)), Some(Action::Accept)) => {
            notes.insert(path, format!("{why}: the rule accepts nothing"));
            rule(Action::Accept, Some(Vec::new()), found_ports)
        }
        // An unknown action has closed the rule, too.
        (closed, _) => {
            notes.extend(closed.map(|(path, why)| (path, format!("{why}: the rule denies everything"))));
            rule(Action::Deny, None, None)
        }
    })
}

fn action_of(name: &str) -> Option<Action> {
    [Action::Accept, Action::Deny, Action::Pass].into_iter().find(|action| action.name() == name)
}

fn count(items: usize, least: usize, path: &str) -> Result<(), Refused> {
    if (least..=ITEMS).contains(&items) {
        Ok(())
    } else {
        refuse(path, format!("has {items} items; {least} to {ITEMS} are possible"))
    }
}

fn peer(fields: &PeerFields, egress: bool, path: &str) -> Result<Found<Peer>, Refused> {
    let PeerFields { namespaces, pods, nodes, networks, domain_names, unknown: rest } = fields;
    let of_pods = pods.as_ref().and_then(|pods| unknown(&pods.unknown));
    if let Some(why) = unknown(rest).or(of_pods) {
        return Ok(Found::Unknown(why));
    }
    let given = [namespaces.is_some(), pods.is_some(), nodes.is_some(), networks.is_some(), domain_names.is_some()];
    if given.iter().filter(|given| **given).count() > 1 {
        return refuse(
            path,
            "has several of namespaces, pods, nodes, networks and domainNames; one peer is one of them",
        );
    }
    if !egress && (nodes.is_some() || networks.is_some() || domain_names.is_some()) {
        return refuse(path, "nodes, networks and domainNames are for egress only");
    }
    if let Some(namespaces) = namespaces {
        return Ok(Found::Some(vec![Peer::Pods(all_pods(namespaces, &format!("{path}.namespaces"))?)]));
    }
    if let Some(pods) = pods {
        return Ok(Found::Some(vec![Peer::Pods(pods_of(
            &pods.namespace_selector,
            &pods.pod_selector,
            &format!("{path}.pods"),
        )?)]));
    }
    if let Some(nodes) = nodes {
        return Ok(Found::Some(vec![Peer::Nodes(selector(nodes, &format!("{path}.nodes"))?)]));
    }
    if let Some(networks) = networks {
        let path = format!("{path}.networks");
        count(networks.len(), 1, &path)?;
        let block = |(index, text): (usize, &String)| {
            let cidr = prefix(text, &format!("{path}[{index}]"))?;
            Ok(Peer::Network(NetworkBlock { cidr, except: Vec::new() }))
        };
        return networks.iter().enumerate().map(block).collect::<Result<_, _>>().map(Found::Some);
    }
    let why = if domain_names.is_some() { "domainNames are not enforced" } else { "names nobody" };
    Ok(Found::Unknown(why.to_owned()))
}

fn protocol_ports(fields: &ProtocolFields, path: &str) -> Result<Found<PortRecord>, Refused> {
    let ProtocolFields { tcp, udp, sctp, destination_named_port, unknown: rest } = fields;
    if let Some(why) = unknown(rest) {
        return Ok(Found::Unknown(why));
    }
    let transports = [(tcp, protocol::TCP, "tcp"), (udp, protocol::UDP, "udp"), (sctp, protocol::SCTP, "sctp")];
    let given = transports.iter().filter(|(fields, ..)| fields.is_some()).count();
    if given + usize::from(destination_named_port.is_some()) > 1 {
        return refuse(path, "has several of tcp, udp, sctp and destinationNamedPort; give each an entry of its own");
    }
    if let Some(name) = destination_named_port {
        let name = shared_port_name(name, &format!("{path}.destinationNamedPort"))?;
        return Ok(Found::Some(vec![PortRecord::Named(name, None)]));
    }
    for (fields, number, name) in transports {
        let Some(fields) = fields else { continue };
        if let Some(why) = unknown(&fields.unknown) {
            return Ok(Found::Unknown(why));
        }
        let Some(port) = &fields.destination_port else { return Ok(Found::Unknown("names no port".to_owned())) };
        if let Some(why) = unknown(&port.unknown) {
            return Ok(Found::Unknown(why));
        }
        let (first, last) = range(port, &format!("{path}.{name}.destinationPort"))?;
        return Ok(Found::Some(vec![PortRecord::Range(PortRange { protocol: number, first, last })]));
    }
    Ok(Found::Unknown("names no protocol".to_owned()))
}

fn range(port: &PortFields, path: &str) -> Result<(u16, u16), Refused> {
    match (port.number, &port.range) {
        (Some(number), None) => port_number(number, &format!("{path}.number")).map(|port| (port, port)),
        (None, Some(range)) => {
            let first = port_number(range.start, &format!("{path}.range.start"))?;
            let last = port_number(range.end, &format!("{path}.range.end"))?;
            if first < last { Ok((first, last)) } else { refuse(format!("{path}.range"), "start is not below end") }
        }
        _ => refuse(path, "must have one of number and range"),
    }
}

/// What stands in for a policy that the API server would have refused, and of which no valid version is known: its subject's
/// directions that have a rule which is no `Accept` are denied. `None` where its tier, its priority or its subject cannot
/// be told: then nobody knows whom to close.
pub(super) fn closed(object: &Object) -> Option<PolicyRecord> {
    let spec = object.content.field("spec")?;
    let priority = match spec.field("priority")?.value {
        Document::Integer(number) => u16::try_from(number).ok().filter(|priority| *priority <= PRIORITY)?,
        _ => return None,
    };
    let tier = match spec.field("tier")?.text()? {
        "Admin" => Tier::Admin(priority),
        "Baseline" => Tier::Baseline(priority),
        _ => return None,
    };
    let subject = subject(&spec.field("subject")?.read().ok()?).ok()?;
    let direction = |name: &str| {
        let denies = match &spec.field(name)?.value {
            Document::Null => false,
            Document::List(rules) => {
                rules.iter().any(|rule| rule.field("action").and_then(Located::text) != Some(Action::Accept.name()))
            }
            _ => true,
        };
        denies.then(|| vec![RuleRecord { name: None, action: Action::Deny, peers: None, ports: None }])
    };
    let (_, logs_denied) = options(&object.content, &mut BTreeMap::new());
    Some(PolicyRecord {
        name: PolicyName { namespace: None, name: object.key.name.as_str().into() },
        tier,
        subject,
        ingress: direction("ingress"),
        egress: direction("egress"),
        keeps_established: false,
        logs_denied,
        notes: BTreeMap::new(),
    })
}
