//! Policies into what this node's switch needs: identities of addresses, rules of its own pods.
//!
//! [`PolicyPlanner`] remembers what it computed, so that a change costs what depends on it: a pod's labels concern
//! that pod, a namespace's its pods, a policy the pods it selects and, if it speaks of a set that no other does, the
//! pods that may be in it. What it gives is a function of the present cluster alone; a planner that has seen every
//! step and one that sees the cluster for the first time give equal tables, which a test holds against each other.
//!
//! Labels that are not known yet, of a pod, of its namespace or of a peer, count against a packet, unless the configuration
//! says otherwise: the tables say what may be, and `judge` takes the worst of it.
//!
//! Cost: one label change of one pod among 100,000 is some tens of microseconds; the whole at first about 2 us a pod and
//! 30 us a policy (`benches/policies.rs`). A network that comes or goes makes the list of all networks anew.

mod addresses;
mod label_index;
mod networks;
mod peer_sets;
mod ranges;
mod rules;
mod subjects;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use ipnet::IpNet;
use millrace_engine::limits;
use millrace_engine::packet::PortIndex;
use millrace_engine::tables::policy::{Direction, Identity, NamedPort, PeerSet, PodPolicies, PodPolicy, PolicyTable};
use millrace_engine::tables::{SegmentIndex, address_bits};

pub(crate) use self::ranges::node_addresses;
pub(in crate::plan) use self::ranges::ranges_of;

use self::addresses::{Addresses, Claimant};
use self::label_index::Scope;
use self::peer_sets::{PeerSets, SetChanges};
use self::subjects::{KnownPolicy, Policies};
use super::local::same_pod;
use super::tenants::Tenants;
use super::{LocalView, POD_SEGMENT};
use crate::cluster::{
    Cluster, ContainerPort, NamespaceName, NamespaceRecord, Namespaces, NetworkName, NodeName, PodName, PodPrecedence,
    PodRecord, PodSelection, PolicyName,
};
use crate::observe::{CLUSTER_NETWORK_POLICY, NETWORK_POLICY, Touched};
use crate::problem::Problem;
use crate::store::ObjectKey;

/// No address of any segment.
const NOWHERE: (SegmentIndex, &[IpAddr]) = (POD_SEGMENT, &[]);

/// Pods that may be asked one by one about changed sets, for each pod there is; beyond it all are asked about all.
const ASKED_EACH: usize = 2;

/// Plans policies, remembering what did not change.
#[derive(Clone, Debug)]
pub struct PolicyPlanner {
    table: PolicyTable,
    policies: Policies,
    sets: PeerSets,
    addresses: Addresses,
    /// Namespaces as they were when their pods were last looked at.
    namespaces: BTreeMap<NamespaceName, NamespaceRecord>,
    /// Pods plugged in here, by port.
    attached: BTreeMap<PortIndex, Attachment>,
    /// Their ports by name.
    ports: HashMap<PodName, Vec<PortIndex>>,
    /// Tenants with a segment.
    tenants: Tenants,
    /// The segment that members of each network are known in.
    networks_known: BTreeMap<NetworkName, Option<SegmentIndex>>,
    /// Addresses of nodes among pods, and in tenants' segments.
    node_addresses: BTreeMap<NodeName, NodeAddresses>,
    /// Networks in the table.
    networks: BTreeMap<IpNet, Arc<[PeerSet]>>,
    /// Whether what is not known yet counts as nothing, instead of against a packet.
    unknown_pods_open: bool,
    problems: BTreeMap<PolicyName, Vec<Problem>>,
}

/// A pod that is plugged in, with the addresses it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attachment {
    pod: PodName,
    uid: Option<Arc<str>>,
    /// Where its addresses mean something to policies, if anywhere.
    segment: Option<SegmentIndex>,
    addresses: Vec<IpAddr>,
}

/// Addresses of a node by segment.
type NodeAddresses = BTreeMap<SegmentIndex, Vec<IpAddr>>;

/// What one update has to look at.
#[derive(Default)]
struct Dirty {
    pods: BTreeSet<PodName>,
    ports: BTreeSet<PortIndex>,
    /// Pods that policies which came, went or changed select.
    subjects: Vec<PodSelection>,
}

impl Default for PolicyPlanner {
    fn default() -> Self {
        let mut table = PolicyTable::default();
        table.pods = PodPolicies::closed();
        Self {
            table,
            policies: Policies::default(),
            sets: PeerSets::default(),
            addresses: Addresses::default(),
            namespaces: BTreeMap::new(),
            attached: BTreeMap::new(),
            ports: HashMap::new(),
            tenants: Tenants::default(),
            networks_known: BTreeMap::new(),
            node_addresses: BTreeMap::new(),
            networks: BTreeMap::new(),
            unknown_pods_open: false,
            problems: BTreeMap::new(),
        }
    }
}

impl PolicyPlanner {
    /// What the policies say of the cluster as it is now. `touched` names every object that was applied or deleted
    /// since the last call; everything the first time.
    pub fn update(&mut self, cluster: &Cluster, local: &LocalView, touched: &Touched) -> PolicyTable {
        if self.unknown_pods_open != local.unknown_pods_open {
            *self = Self { unknown_pods_open: local.unknown_pods_open, ..Self::default() };
            return self.update(cluster, local, &Touched::everything(cluster));
        }
        let mut dirty = Dirty { pods: touched.pods.clone(), ..Dirty::default() };
        self.tenants(cluster, local, touched, &mut dirty);
        self.plugged(cluster, local, &mut dirty);
        self.namespaces(cluster, touched, &mut dirty);
        self.policies(cluster, touched, &mut dirty);
        let changes = self.sets.take_changes();
        self.pods_asked_again(cluster, &changes, &mut dirty);
        for pod in &dirty.pods {
            self.claim_by_status(cluster, local, pod);
            dirty.ports.extend(self.ports.get(pod).into_iter().flatten());
        }
        self.nodes(cluster, touched, &changes);
        dirty.ports.iter().for_each(|port| self.claim_at_port(cluster, *port));
        self.addresses.apply(&mut self.table.identities);
        if changes.networks {
            self.networks_anew();
        }
        if changes.any_set() {
            self.table.sets = self.sets.all();
        }
        self.judges(cluster, &dirty);
        self.table.clone()
    }

    /// What cannot be enforced as written, sorted.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values().flatten()
    }

    /// Takes up which networks have a segment, and which another than before.
    fn tenants(&mut self, cluster: &Cluster, local: &LocalView, touched: &Touched, dirty: &mut Dirty) {
        if !touched.addressing {
            return;
        }
        self.tenants = Tenants::of(cluster, local.vni, &mut Vec::new());
        let segment = |name: &NetworkName| self.tenants.segment_of_policies(cluster, Some(name));
        let now = cluster.networks.keys().map(|name| (name.clone(), segment(name))).collect();
        let before = std::mem::replace(&mut self.networks_known, now);
        let names: BTreeSet<&NetworkName> = before.keys().chain(self.networks_known.keys()).collect();
        for name in names.into_iter().filter(|name| before.get(*name) != self.networks_known.get(*name)) {
            let (namespaces, pods) = cluster.memberships.naming(name);
            let of_namespaces = namespaces.flat_map(|namespace| pods_of(cluster, namespace)).map(|pod| &pod.name);
            dirty.pods.extend(of_namespaces.chain(pods).cloned());
        }
    }

    fn namespaces(&mut self, cluster: &Cluster, touched: &Touched, dirty: &mut Dirty) {
        for name in &touched.namespaces {
            let (before, now) = (self.namespaces.get(name), cluster.namespaces.get(name));
            let labels = |record: Option<&NamespaceRecord>| {
                record.map_or_else(
                    || NamespaceRecord::unlabelled(name.clone()).labels,
                    |record| Arc::clone(&record.labels),
                )
            };
            let network = |record: Option<&NamespaceRecord>| record.and_then(|record| record.network.clone());
            let differs = labels(before) != labels(now) || network(before) != network(now);
            if before.is_some() != now.is_some() || differs {
                dirty.pods.extend(pods_of(cluster, name).map(|pod| pod.name.clone()));
                let of_namespace = |(_, attached): &(&PortIndex, &Attachment)| attached.pod.namespace() == name;
                dirty.ports.extend(self.attached.iter().filter(of_namespace).map(|(port, _)| *port));
            }
            let logs = |record: Option<&NamespaceRecord>| record.is_some_and(|record| record.logs_denied);
            if logs(before) != logs(now) {
                let of_namespace = |policy: &&PolicyName| policy.namespace.as_ref() == Some(name);
                let policies: Vec<PolicyName> = self.policies.by_name.keys().filter(of_namespace).cloned().collect();
                policies.iter().for_each(|policy| self.compile(cluster, policy, dirty));
            }
            match now {
                Some(now) => drop(self.namespaces.insert(name.clone(), now.clone())),
                None => drop(self.namespaces.remove(name)),
            }
        }
    }

    fn policies(&mut self, cluster: &Cluster, touched: &Touched, dirty: &mut Dirty) {
        for name in &touched.policies {
            let known = self.policies.by_name.get(name).map(|known| Arc::clone(&known.record));
            let now = cluster.policies.get(name);
            if known.as_ref() == now {
                continue;
            }
            // First what is new, so that what both speak of stays.
            if let Some(now) = now {
                self.sets.acquire(now);
                self.policies.subjects.insert(&now.subject, name.clone());
            }
            if let Some(known) = &known {
                self.sets.release(known);
                self.policies.subjects.remove(&known.subject, name);
                dirty.subjects.push(known.subject.clone());
            }
            match now {
                Some(_) => self.compile(cluster, name, dirty),
                None => drop(self.policies.by_name.remove(name)),
            }
            self.problems.remove(name);
            let notes: Vec<Problem> = now.iter().flat_map(|now| &now.notes).map(|note| problem(name, note)).collect();
            if !notes.is_empty() {
                self.problems.insert(name.clone(), notes);
            }
        }
    }

    fn compile(&mut self, cluster: &Cluster, name: &PolicyName, dirty: &mut Dirty) {
        let Some(record) = cluster.policies.get(name) else { return };
        let namespace = name.namespace.as_ref().and_then(|namespace| cluster.namespaces.get(namespace));
        let logs = record.logs_denied || namespace.is_some_and(|namespace| namespace.logs_denied);
        let before = self.policies.by_name.remove(name);
        let lists = [Direction::Ingress, Direction::Egress].map(|direction| {
            rules::compile(record, direction, logs, before.as_ref().and_then(|before| before.list(direction)))
        });
        dirty.subjects.push(record.subject.clone());
        self.policies.by_name.insert(name.clone(), KnownPolicy { record: Arc::clone(record), lists });
    }

    /// Pods that may have come into a set or left one, or whose named ports came or went.
    fn pods_asked_again(&self, cluster: &Cluster, changes: &SetChanges, dirty: &mut Dirty) {
        if !changes.pods.is_empty() {
            let without_object = |(_, attached): &(&PortIndex, &Attachment)| object_of(cluster, attached).is_none();
            dirty.ports.extend(self.attached.iter().filter(without_object).map(|(port, _)| *port));
        }
        if !changes.names.is_empty() {
            let asked = |pod: &&PodRecord| pod.ports.iter().any(|port| changes.names.contains(port.name.as_str()));
            dirty.pods.extend(cluster.pods.values().filter(asked).map(|pod| pod.name.clone()));
        }
        let mut budget = cluster.pods.len() * ASKED_EACH;
        for selection in &changes.pods {
            let named = match &selection.namespaces {
                Namespaces::Named(name) => Some(name),
                Namespaces::Matching(_) => None,
            };
            let one = named.map(|name| pods_of(cluster, name));
            let all = named.is_none().then(|| cluster.pods.values());
            let asked = one.into_iter().flatten().chain(all.into_iter().flatten());
            for pod in asked {
                let Some(left) = budget.checked_sub(1) else {
                    return dirty.pods.extend(cluster.pods.keys().cloned());
                };
                budget = left;
                if selection.pods.selects(&pod.labels) {
                    dirty.pods.insert(pod.name.clone());
                }
            }
        }
    }

    fn scope<'a>(&self, cluster: &'a Cluster, name: &NamespaceName) -> Scope<'a> {
        match cluster.namespaces.get(name) {
            Some(record) => Scope { record: Cow::Borrowed(record), labels_known: true },
            None => Scope {
                record: Cow::Owned(NamespaceRecord::unlabelled(name.clone())),
                labels_known: self.unknown_pods_open,
            },
        }
    }

    /// The addresses that a pod has by its status: none of a pod that is gone, has ended, or lives in its node's namespace,
    /// nor of one that is plugged in here, whose addresses the switch knows better.
    fn claim_by_status(&mut self, cluster: &Cluster, local: &LocalView, name: &PodName) {
        let claimant = Claimant::Pod(name.clone());
        let counts = |pod: &&PodRecord| pod.has_addresses() && !self.is_plugged_in(local, pod);
        let segment = self.tenants.segment_of_policies(cluster, cluster.memberships.of_pod(name));
        match cluster.pods.get(name).filter(counts).zip(segment) {
            Some((pod, segment)) => {
                let identity = self.identity(cluster, name, Some(pod));
                self.addresses.set(&claimant, (segment, &pod.addresses), pod.precedence(), identity);
            }
            None => self.addresses.set(&claimant, NOWHERE, PodPrecedence::default(), Identity::default()),
        }
    }

    /// Whether a pod's object is that of a pod plugged in here, or of an earlier one of that name at this node.
    fn is_plugged_in(&self, local: &LocalView, pod: &PodRecord) -> bool {
        let ports = self.ports.get(&pod.name).into_iter().flatten();
        let mut attached = ports.filter_map(|port| self.attached.get(port));
        attached.any(|attached| is_object_of(pod, attached) || pod.node.as_ref() == Some(&local.node))
    }

    /// What is known of a pod; of one without an object that it is of its namespace.
    fn identity(&self, cluster: &Cluster, name: &PodName, object: Option<&PodRecord>) -> Identity {
        let scope = self.scope(cluster, name.namespace());
        let [sets, possible] = self.sets.of_pod(&scope, object.map(|pod| pod.labels.as_ref()));
        let closed = !self.unknown_pods_open;
        let asked = object.into_iter().flat_map(|pod| &pod.ports).filter(|port| self.sets.has_name(&port.name));
        let named = |port: &ContainerPort| NamedPort {
            name: port.name.as_str().into(),
            protocol: port.protocol,
            port: port.port,
        };
        let mut named_ports: Vec<NamedPort> = asked.map(named).collect();
        named_ports.sort_unstable();
        named_ports.dedup();
        Identity {
            sets,
            possible: if closed { possible } else { Box::default() },
            named_ports: named_ports.into(),
            ports_unknown: closed && object.is_none(),
        }
    }

    /// Where pods and nodes have their addresses; says of which nodes they are others now, and in which segments.
    fn addressing(&mut self, cluster: &Cluster) -> BTreeMap<NodeName, BTreeSet<SegmentIndex>> {
        let ranges = if self.unknown_pods_open { Vec::new() } else { ranges::pod_ranges(cluster, &self.tenants) };
        if *self.table.pod_ranges != *ranges {
            self.table.pod_ranges = ranges.into();
        }
        let mut now = ranges::router_addresses(cluster, &self.tenants);
        for (node, addresses) in ranges::node_addresses(cluster) {
            now.entry(node).or_default().insert(POD_SEGMENT, addresses);
        }
        let before = std::mem::replace(&mut self.node_addresses, now);
        let names: BTreeSet<&NodeName> = before.keys().chain(self.node_addresses.keys()).collect();
        let segments = |name: &NodeName| {
            let both = [before.get(name), self.node_addresses.get(name)];
            both.into_iter().flatten().flat_map(|addresses| addresses.keys().copied()).collect()
        };
        let moved = names.into_iter().filter(|name| before.get(*name) != self.node_addresses.get(*name));
        moved.map(|name| (name.clone(), segments(name))).collect()
    }

    fn nodes(&mut self, cluster: &Cluster, touched: &Touched, changes: &SetChanges) {
        let moved = if touched.addressing { self.addressing(cluster) } else { BTreeMap::new() };
        let all = if changes.nodes { Some(cluster.nodes.keys()) } else { None };
        let names: BTreeSet<_> = touched.nodes.iter().chain(moved.keys()).chain(all.into_iter().flatten()).collect();
        for name in names {
            let node = cluster.nodes.get(name);
            let sets = node.map(|node| self.sets.of_node(&node.labels)).unwrap_or_default();
            let among_pods = node.and_then(|node| self.node_addresses.get(&node.name));
            let known = among_pods.into_iter().flat_map(|addresses| addresses.keys().copied());
            let mut segments: BTreeSet<SegmentIndex> = moved.get(name).cloned().unwrap_or_default();
            segments.extend(known.chain([POD_SEGMENT]));
            let identity = Identity { sets, ..Identity::default() };
            for segment in segments {
                let own = node.filter(|_| segment == POD_SEGMENT).into_iter().flat_map(|node| &node.addresses);
                let among = among_pods.and_then(|addresses| addresses.get(&segment)).into_iter().flatten();
                let addresses: Vec<IpAddr> = own.chain(among).copied().collect();
                let (claimant, none) = (Claimant::Node(name.clone(), segment), PodPrecedence::default());
                self.addresses.set(&claimant, (segment, &addresses), none, identity.clone());
            }
        }
    }

    /// Takes up what was plugged in or out.
    fn plugged(&mut self, cluster: &Cluster, local: &LocalView, dirty: &mut Dirty) {
        let segment = |pod: &super::AttachedPod| self.tenants.segment_of_policies(cluster, pod.network.as_ref());
        let planned = local.pods.iter().filter(|(port, _)| usize::from(port.0) < limits::PORTS);
        let is_same = |(port, attached): &(&PortIndex, &super::AttachedPod)| {
            self.attached.get(*port).is_some_and(|known| {
                (&known.pod, &known.uid, &known.addresses) == (&attached.pod, &attached.uid, &attached.addresses)
                    && known.segment == segment(attached)
            })
        };
        // Nearly always nothing was plugged in or out.
        if self.attached.len() == planned.clone().count() && planned.clone().all(|entry| is_same(&entry)) {
            return;
        }
        let attachment = |(port, attached): (&PortIndex, &super::AttachedPod)| {
            let (pod, uid, addresses) = (attached.pod.clone(), attached.uid.clone(), attached.addresses.clone());
            (*port, Attachment { pod, uid, segment: segment(attached), addresses })
        };
        let now: BTreeMap<PortIndex, Attachment> = planned.map(attachment).collect();
        for port in self.attached.keys().chain(now.keys()) {
            let (before, after) = (self.attached.get(port), now.get(port));
            if before != after {
                dirty.ports.insert(*port);
                dirty.pods.extend(before.into_iter().chain(after).map(|attached| attached.pod.clone()));
            }
        }
        self.attached = now;
        self.ports.clear();
        for (port, attached) in &self.attached {
            self.ports.entry_ref(&attached.pod).or_default().push(*port);
        }
    }

    /// Pods plugged in here have their addresses before any status says so.
    fn claim_at_port(&mut self, cluster: &Cluster, port: PortIndex) {
        let (claimant, none) = (Claimant::Attached(port), PodPrecedence::default());
        match self.attached.get(&port).and_then(|attached| Some((attached, attached.segment?))) {
            Some((attached, segment)) => {
                let identity = match object_of(cluster, attached) {
                    Some(pod) if !pod.has_addresses() => Identity::default(),
                    object => self.identity(cluster, &attached.pod, object),
                };
                self.addresses.set(&claimant, (segment, &attached.addresses), none, identity);
            }
            None => self.addresses.set(&claimant, NOWHERE, none, Identity::default()),
        }
    }

    fn networks_anew(&mut self) {
        let now = networks::by_prefix(self.sets.networks());
        for prefix in self.networks.keys().filter(|prefix| !now.contains_key(*prefix)) {
            let tree = self.table.networks_mut(prefix.addr());
            tree.remove(address_bits(prefix.addr()), prefix.prefix_len());
        }
        for (prefix, sets) in now.iter().filter(|(prefix, sets)| self.networks.get(*prefix) != Some(*sets)) {
            let tree = self.table.networks_mut(prefix.addr());
            tree.insert(address_bits(prefix.addr()), prefix.prefix_len(), Arc::clone(sets));
        }
        self.networks = now;
    }

    /// Says anew what judges the pods of this node that something of this update concerns.
    fn judges(&mut self, cluster: &Cluster, dirty: &Dirty) {
        let selected = |attached: &Attachment| {
            let scope = self.scope(cluster, attached.pod.namespace());
            let labels = object_of(cluster, attached).map(|pod| &pod.labels);
            dirty.subjects.iter().any(|subject| {
                scope.is_among(&subject.namespaces) != Some(false)
                    && labels.is_none_or(|labels| subject.pods.selects(labels))
            })
        };
        let mut ports = dirty.ports.clone();
        if !dirty.subjects.is_empty() {
            ports.extend(self.attached.iter().filter(|(_, attached)| selected(attached)).map(|(port, _)| *port));
        }
        for port in ports {
            let policy = self.attached.get(&port).map(|attached| self.judge(cluster, attached));
            let known = self.table.pods.known(port);
            if known.map(Arc::as_ref) != policy.as_ref() {
                self.table.pods.set(port, policy.map(Arc::new));
            }
        }
    }

    fn judge(&self, cluster: &Cluster, attached: &Attachment) -> PodPolicy {
        let scope = self.scope(cluster, attached.pod.namespace());
        let labels = object_of(cluster, attached).map(|pod| pod.labels.as_ref());
        self.policies.of_pod(&scope, labels, !self.unknown_pods_open)
    }
}

/// The object of a pod that is plugged in: that of an earlier pod of its name is not its own.
fn object_of<'a>(cluster: &'a Cluster, attached: &Attachment) -> Option<&'a PodRecord> {
    cluster.pods.get(&attached.pod).filter(|pod| is_object_of(pod, attached))
}

fn is_object_of(pod: &PodRecord, attached: &Attachment) -> bool {
    same_pod(pod.uid.as_deref(), attached.uid.as_deref())
}

fn problem(name: &PolicyName, (field, message): (&String, &String)) -> Problem {
    let kind = if name.namespace.is_some() { NETWORK_POLICY } else { CLUSTER_NETWORK_POLICY };
    let namespace = name.namespace.as_ref().map(ToString::to_string);
    Problem::new(message)
        .of(&ObjectKey { kind, namespace, name: name.name.to_string() })
        .at(field)
        .kind("policy_not_enforced")
}

fn pods_of<'a>(cluster: &'a Cluster, namespace: &NamespaceName) -> impl Iterator<Item = &'a PodRecord> {
    let first = PodName::before_all(namespace);
    let namespace = namespace.clone();
    cluster.pods.range(first..).map(|(_, pod)| pod).take_while(move |pod| *pod.name.namespace() == namespace)
}
