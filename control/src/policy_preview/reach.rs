//! Who may reach whom on which ports, and which rules no flow has used.
//!
//! Every pod of the cluster is taken as its own node would judge it: by the same planner, as many pods at a time as a
//! node may have ports. Ports are not tried one by one: between two ports that any rule of either end speaks of all
//! are alike, so one of each such range is judged by the very function that judges packets.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use millrace_engine::limits;
use millrace_engine::packet::parse::protocol;
use millrace_engine::packet::{Mac, PortIndex};
use millrace_engine::tables::policy::{
    Action, Denial, Direction, Judgement, Packet, PeerView, PodPolicy, PolicyTable, PortRange, Ports, RuleList,
};
use millrace_engine::tables::{SegmentIndex, Snapshot};

use super::words;
use crate::api::model::{PolicyReachReport, ReachReport, UnusedRuleReport};
use crate::cluster::{Cluster, InterfaceName, NetworkName, NodeName, NodeRecord, PodName};
use crate::observe::Touched;
use crate::plan::policy::{PolicyPlanner, node_addresses};
use crate::plan::{AttachedPod, LocalView, Tenants, connected_with};

/// Pairs that are judged for one question; more must be narrowed down.
const PAIRS: usize = 1_000_000;

/// Protocols whose ports rules can name.
const PROTOCOLS: [u8; 3] = [protocol::TCP, protocol::UDP, protocol::SCTP];

/// Which pods are asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Selection {
    /// All.
    #[default]
    All,
    /// Those of a namespace.
    Namespace(String),
    /// One, by `namespace/name`.
    Pod(String),
    /// Whoever has this address.
    Address(IpAddr),
}

impl Selection {
    /// Reads `NAMESPACE/POD`, `NAMESPACE/*` or an address.
    ///
    /// # Errors
    /// What it should be.
    pub fn read(text: &str) -> Result<Self, &'static str> {
        if let Ok(address) = text.parse() {
            return Ok(Selection::Address(address));
        }
        match text.split_once('/') {
            Some((namespace, "*")) if !namespace.is_empty() => Ok(Selection::Namespace(namespace.to_owned())),
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Selection::Pod(text.to_owned()))
            }
            _ => Err("it is NAMESPACE/POD, NAMESPACE/* or an address"),
        }
    }
}

/// As it is read; `*` for all.
impl fmt::Display for Selection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selection::All => formatter.write_str("*"),
            Selection::Namespace(name) => write!(formatter, "{name}/*"),
            Selection::Pod(name) => formatter.write_str(name),
            Selection::Address(address) => address.fmt(formatter),
        }
    }
}

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Who opens.
    pub from: Selection,
    /// Who answers.
    pub to: Selection,
    /// Pairs told, at most.
    pub limit: usize,
}

/// One end: a pod, or an address that is nobody's here.
#[derive(Clone)]
struct End {
    name: String,
    addresses: Vec<IpAddr>,
    /// The network it is in; as the other end for an address that is nobody's.
    network: Option<Option<NetworkName>>,
    policy: Option<Arc<PodPolicy>>,
    /// Addresses of the pod's node, which it reaches and which reaches it.
    own_node: Arc<[IpAddr]>,
}

/// Answers a question about a cluster.
///
/// # Errors
/// In words: nobody is meant, or too many.
pub fn reach(cluster: &Cluster, local: &LocalView, question: &Question) -> Result<PolicyReachReport, String> {
    let mut planner = PolicyPlanner::default();
    let (pods, table) = judged_pods(cluster, local, &mut planner);
    let (sources, targets) = (ends(&pods, &question.from)?, ends(&pods, &question.to)?);
    let pairs = sources.len().saturating_mul(targets.len());
    if pairs > PAIRS {
        return Err(format!("these are {pairs} pairs, of which at most {PAIRS} are judged; say from whom or to whom"));
    }
    let mut report = PolicyReachReport::default();
    let networks = Networks(Tenants::of(cluster, local.vni, &mut Vec::new()));
    for source in &sources {
        for target in targets.iter().filter(|target| target.name != source.name) {
            if let Some(segments) = networks.common(cluster, source, target) {
                pair((&table, segments), source, target, question.limit, &mut report);
            }
        }
    }
    Ok(report)
}

/// The networks that pods of a cluster may be in.
struct Networks(Tenants);

impl Networks {
    /// The segments that know the two ends, if their networks are one or connected. Pods in networks that are not routed are
    /// judged by nobody.
    fn common(&self, cluster: &Cluster, source: &End, target: &End) -> Option<[SegmentIndex; 2]> {
        let known = || source.network.as_ref().or(target.network.as_ref()).cloned().flatten();
        let networks = [source, target].map(|end| end.network.clone().unwrap_or_else(known));
        let [one, other] = &networks;
        let is_met = |one: &Option<NetworkName>, other| {
            one.as_ref().is_some_and(|one| connected_with(cluster, one).contains(other))
        };
        let meet = one == other || is_met(one, other) || is_met(other, one);
        let segments = networks.each_ref().map(|network| self.0.segment(network.as_ref()));
        meet.then_some(segments).and_then(|[source, target]| Some([source?, target?]))
    }
}

/// All pods with addresses, each with what judges it, and what is known of all addresses.
fn judged_pods(cluster: &Cluster, local: &LocalView, planner: &mut PolicyPlanner) -> (Vec<End>, PolicyTable) {
    let mut everything = Some(Touched::everything(cluster));
    let mut touched = || everything.take().unwrap_or_default();
    let placed = |pod: &PodName, addresses: &[IpAddr]| {
        let here = local.addresses_of(pod);
        if here.is_empty() { addresses.to_vec() } else { here }
    };
    let known = cluster.pods.values().filter(|pod| pod.has_addresses());
    let mut all: BTreeMap<PodName, Vec<IpAddr>> =
        known.map(|pod| (pod.name.clone(), placed(&pod.name, &pod.addresses))).collect();
    // A pod whose object is not known yet has an address nevertheless.
    for attached in local.pods.values().filter(|attached| !attached.further) {
        all.entry(attached.pod.clone()).or_insert_with(|| attached.addresses.clone());
    }
    all.retain(|_, addresses| !addresses.is_empty());
    let network = |pod: &PodName| {
        let attached = local.pods.values().find(|attached| attached.pod == *pod && !attached.further);
        attached.map_or_else(|| cluster.memberships.of_pod(pod).cloned(), |attached| attached.network.clone())
    };
    let all: Vec<(PodName, Vec<IpAddr>)> = all.into_iter().collect();
    let nodes = addresses_of_nodes(cluster);
    let own_node = |pod: &PodName| {
        let bound = cluster.pods.get(pod).and_then(|pod| pod.node.as_ref());
        nodes.get(bound.unwrap_or(&local.node)).cloned().unwrap_or_default()
    };
    let mut ends = Vec::with_capacity(all.len());
    let mut aside = LocalView { pods: BTreeMap::new(), ..local.clone() };
    for some in all.chunks(limits::PORTS) {
        let port = |at: usize| PortIndex(at as u16);
        aside.pods = some
            .iter()
            .enumerate()
            .map(|(at, (pod, addresses))| (port(at), attached(pod, network(pod), addresses)))
            .collect();
        let table = planner.update(cluster, &aside, &touched());
        ends.extend(some.iter().enumerate().map(|(at, (pod, addresses))| End {
            name: pod.to_string(),
            addresses: addresses.clone(),
            network: Some(network(pod)),
            policy: table.pods.known(port(at)).cloned(),
            // No node is in a tenant's network.
            own_node: if network(pod).is_none() { own_node(pod) } else { Arc::default() },
        }));
    }
    let table = planner.update(cluster, local, &touched());
    (ends, table)
}

/// All addresses of each node: of its object, and among pods.
fn addresses_of_nodes(cluster: &Cluster) -> BTreeMap<NodeName, Arc<[IpAddr]>> {
    let among_pods = node_addresses(cluster);
    let of_node = |(name, node): (&NodeName, &NodeRecord)| {
        let all = node.addresses.iter().chain(among_pods.get(name).into_iter().flatten());
        (name.clone(), all.copied().collect())
    };
    cluster.nodes.iter().map(of_node).collect()
}

fn attached(pod: &PodName, network: Option<NetworkName>, addresses: &[IpAddr]) -> AttachedPod {
    AttachedPod {
        host_ports: Vec::new(),
        bandwidth: Default::default(),
        uid: None,
        network,
        further: false,
        pod: pod.clone(),
        container_id: String::new(),
        interface: InterfaceName::new("eth0").unwrap_or_else(|_| unreachable!("the name is a valid one")),
        mac: Mac::ZERO,
        addresses: addresses.to_vec(),
        mtu: 0,
    }
}

fn ends<'a>(pods: &'a [End], selection: &Selection) -> Result<Vec<Cow<'a, End>>, String> {
    let is_meant = |end: &&End| match selection {
        Selection::All => true,
        Selection::Namespace(name) => end.name.split_once('/').is_some_and(|(namespace, _)| namespace == name),
        Selection::Pod(name) => end.name == *name,
        Selection::Address(address) => end.addresses.contains(address),
    };
    let found: Vec<_> = pods.iter().filter(is_meant).map(Cow::Borrowed).collect();
    match selection {
        Selection::Address(address) if found.is_empty() => {
            let end = End {
                name: address.to_string(),
                addresses: vec![*address],
                network: None,
                policy: None,
                own_node: Arc::default(),
            };
            Ok(vec![Cow::Owned(end)])
        }
        Selection::Pod(name) | Selection::Namespace(name) if found.is_empty() => {
            Err(format!("no pod with an address is known by {name}"))
        }
        _ => Ok(found),
    }
}

/// What one may reach of the other, by family where the two differ.
fn pair(
    (table, segments): (&PolicyTable, [SegmentIndex; 2]),
    source: &End,
    target: &End,
    limit: usize,
    report: &mut PolicyReachReport,
) {
    let of_family = |ipv4: bool| {
        let first = |end: &End| end.addresses.iter().copied().find(|address| address.is_ipv4() == ipv4);
        Some(open_ports((table, segments), (source, first(source)?), (target, first(target)?)))
    };
    let families: Vec<(&str, Vec<String>)> = match (of_family(true), of_family(false)) {
        (Some(ipv4), Some(ipv6)) if ipv4 == ipv6 => vec![("both", ipv4)],
        (ipv4, ipv6) => {
            ipv4.map(|ports| ("ipv4", ports)).into_iter().chain(ipv6.map(|ports| ("ipv6", ports))).collect()
        }
    };
    if families.is_empty() {
        return;
    }
    report.pairs += 1;
    let open: Vec<_> = families.into_iter().filter(|(_, ports)| !ports.is_empty()).collect();
    report.open_pairs += u64::from(!open.is_empty());
    for (family, ports) in open {
        if report.reach.len() < limit {
            let (source, target) = (source.name.clone(), target.name.clone());
            report.reach.push(ReachReport { source, target, family: family.to_owned(), ports });
        }
    }
}

/// The ports that are open from one address to another, as ranges: `tcp/80`, `udp/all`, `icmp`; `all` for everything.
fn open_ports(
    (table, segments): (&PolicyTable, [SegmentIndex; 2]),
    (source, source_address): (&End, IpAddr),
    (target, target_address): (&End, IpAddr),
) -> Vec<String> {
    let views = [table.peer(segments[0], source_address), table.peer(segments[1], target_address)];
    let policies = [
        source.policy.as_deref().map(|policy| (policy, Direction::Egress)),
        target.policy.as_deref().map(|policy| (policy, Direction::Ingress)),
    ];
    let to_node = source.own_node.contains(&target_address);
    let from_node = target.own_node.contains(&source_address);
    // As the stage has it: what a node opens is not judged, what a pod opens to its node no NetworkPolicy denies.
    let is_open = |packet: Packet| {
        policies.iter().flatten().all(|(policy, direction)| {
            let verdict = table.judge(policy.direction(*direction), *direction, packet, views[0], views[1]);
            match (verdict, direction) {
                (Judgement::Denied(_), Direction::Ingress) => from_node,
                (Judgement::Denied(Denial::Isolated(_)), Direction::Egress) => to_node,
                (Judgement::Denied(_), Direction::Egress) => false,
                (Judgement::Allowed(..) | Judgement::NotJudged, _) => true,
            }
        })
    };
    let rules = || {
        let lists = policies.iter().flatten();
        lists.flat_map(|(policy, direction)| words::lists_of_direction(policy.direction(*direction)))
    };
    let mut open = Vec::new();
    for protocol in PROTOCOLS {
        let lists = rules().map(|(_, list)| list);
        open.extend(open_ranges(protocol, &edges(protocol, lists, views[1]), &is_open));
    }
    let words = open.iter().map(words::range);
    let icmp = is_open(Packet { protocol: protocol::ICMP, port: None });
    let words: Vec<String> = words.chain(icmp.then(|| "icmp".to_owned())).collect();
    let everything =
        icmp && open.len() == PROTOCOLS.len() && open.iter().all(|range| (range.first, range.last) == (0, u16::MAX));
    if everything { vec!["all".to_owned()] } else { words }
}

/// Ports at which a verdict may change: the first of each range that any rule speaks of, and the one behind its last.
fn edges<'a>(protocol: u8, lists: impl Iterator<Item = &'a Arc<RuleList>>, target: PeerView<'_>) -> BTreeSet<u16> {
    let mut edges = BTreeSet::from([0]);
    let mut range = |first: u16, last: u16| {
        edges.insert(first);
        edges.extend(last.checked_add(1));
    };
    for rule in lists.flat_map(|list| &list.rules) {
        if let Ports::In { ranges, .. } = &rule.ports {
            let ranges = ranges.iter().filter(|range| range.protocol == protocol);
            ranges.for_each(|known| range(known.first, known.last));
        }
    }
    let named = target.identity.iter().flat_map(|identity| identity.named_ports.iter());
    named.filter(|named| named.protocol == protocol).for_each(|named| range(named.port, named.port));
    edges
}

fn open_ranges(protocol: u8, edges: &BTreeSet<u16>, is_open: &impl Fn(Packet) -> bool) -> Vec<PortRange> {
    let mut open: Vec<PortRange> = Vec::new();
    let ends = edges.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
    for (first, last) in edges.iter().copied().zip(ends) {
        if !is_open(Packet { protocol, port: Some(first) }) {
            continue;
        }
        match open.last_mut() {
            Some(before) if before.last.checked_add(1) == Some(first) => before.last = last,
            _ => open.push(PortRange { protocol, first, last }),
        }
    }
    open
}

/// Rules that let something through and that no flow has needed since they are in force, of policies that select pods
/// of this node.
#[must_use]
pub fn unused(tables: &Snapshot) -> Vec<UnusedRuleReport> {
    let mut found: BTreeMap<(words::Place, String, u16), UnusedRuleReport> = BTreeMap::new();
    for (_, policy) in tables.policy.pods.iter() {
        for (place, list) in words::lists_of(policy) {
            for (rule, words) in list.rules.iter().zip(words::rules(list)) {
                if words.used > 0 || rule.action != Action::Accept {
                    continue;
                }
                let key = (place, list.policy.name.to_string(), rule.number);
                let entry = found.entry(key).or_insert_with(|| UnusedRuleReport {
                    policy: list.policy.name.to_string(),
                    direction: place.direction.name().to_owned(),
                    rule: words,
                    pods: 0,
                });
                entry.pods += 1;
            }
        }
    }
    found.into_values().collect()
}
