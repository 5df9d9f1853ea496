//! Policies into what this node's switch needs: identities of addresses, rules of its own pods.
//!
//! [`PolicyPlanner`] remembers what it computed, so that a change costs what depends on it: a pod's labels concern
//! that pod, a namespace's its pods, a policy the pods it selects and, if it speaks of a set that no other does, the
//! pods that may be in it. What it gives is a function of the present cluster alone; a planner that has seen every
//! step and one that sees the cluster for the first time give equal tables, which a test holds against each other.
//!
//! Cost: one label change of one pod among 100,000 is some tens of microseconds; the whole at first about 2 us a pod and
//! 30 us a policy (`benches/policies.rs`). A network that comes or goes makes the list of all networks anew.

mod addresses;
mod label_index;
mod networks;
mod peer_sets;
mod rules;
mod subjects;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashSet;
use ipnet::IpNet;
use millrace_engine::limits;
use millrace_engine::packet::PortIndex;
use millrace_engine::tables::address_bits;
use millrace_engine::tables::policy::{Direction, Identity, NamedPort, PeerSet, PodPolicies, PodPolicy, PolicyTable};

use self::addresses::{Addresses, Claimant};
use self::peer_sets::{PeerSets, SetChanges};
use self::subjects::{KnownPolicy, Policies};
use super::{AttachedPod, LocalView};
use crate::cluster::{
    Cluster, ContainerPort, NamespaceName, NamespaceRecord, Namespaces, PodName, PodRecord, PodSelection, PolicyName,
};
use crate::observe::{CLUSTER_NETWORK_POLICY, NETWORK_POLICY, Touched};
use crate::problem::Problem;
use crate::store::ObjectKey;

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
    /// Networks in the table.
    networks: BTreeMap<IpNet, Arc<[PeerSet]>>,
    /// Whether pods without an object are open.
    unknown_pods_open: bool,
    problems: BTreeMap<PolicyName, Vec<Problem>>,
}

/// A pod that is plugged in, with the addresses it was given.
type Attachment = (PodName, Vec<IpAddr>);

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
        let mut dirty = Dirty { pods: touched.pods.clone(), ..Dirty::default() };
        self.namespaces(cluster, touched, &mut dirty);
        self.policies(cluster, touched, &mut dirty);
        let changes = self.sets.take_changes();
        self.pods_asked_again(cluster, &changes, &mut dirty);
        for pod in &dirty.pods {
            let (addresses, identity) = self.identify(cluster, pod);
            self.addresses.set(&Claimant::Pod(pod.clone()), &addresses, identity);
        }
        self.nodes(cluster, touched, &changes);
        self.attached(cluster, local, &mut dirty);
        self.addresses.apply(&mut self.table.identities);
        if changes.networks {
            self.networks_anew();
        }
        if changes.any_set() {
            self.table.sets = self.sets.all();
        }
        self.judges(cluster, local, &dirty);
        self.table.clone()
    }

    /// What cannot be enforced as written, sorted.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values().flatten()
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
            if labels(before) != labels(now) {
                dirty.pods.extend(pods_of(cluster, name).map(|pod| pod.name.clone()));
                let of_namespace = |(_, (pod, _)): &(&PortIndex, &Attachment)| pod.namespace() == name;
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

    fn namespace<'a>(&self, cluster: &'a Cluster, name: &NamespaceName) -> Cow<'a, NamespaceRecord> {
        match cluster.namespaces.get(name) {
            Some(record) => Cow::Borrowed(record),
            None => Cow::Owned(NamespaceRecord::unlabelled(name.clone())),
        }
    }

    /// A pod's addresses and identity; nothing of a pod that is gone, has ended, or lives in its node's namespace.
    fn identify(&self, cluster: &Cluster, name: &PodName) -> (Vec<IpAddr>, Identity) {
        match cluster.pods.get(name).filter(|pod| !pod.host_network && !pod.finished) {
            Some(pod) => (pod.addresses.clone(), self.identity(cluster, pod)),
            None => (Vec::new(), Identity::default()),
        }
    }

    fn identity(&self, cluster: &Cluster, pod: &PodRecord) -> Identity {
        let sets = self.sets.of_pod(&self.namespace(cluster, pod.name.namespace()), &pod.labels);
        let asked = pod.ports.iter().filter(|port| self.sets.has_name(&port.name));
        let named = |port: &ContainerPort| NamedPort {
            name: port.name.as_str().into(),
            protocol: port.protocol,
            port: port.port,
        };
        let mut named_ports: Vec<NamedPort> = asked.map(named).collect();
        named_ports.sort_unstable();
        named_ports.dedup();
        Identity { sets, named_ports: named_ports.into() }
    }

    fn nodes(&mut self, cluster: &Cluster, touched: &Touched, changes: &SetChanges) {
        let all = if changes.nodes { Some(cluster.nodes.keys()) } else { None };
        let names: BTreeSet<_> = touched.nodes.iter().chain(all.into_iter().flatten()).collect();
        for name in names {
            let node = cluster.nodes.get(name);
            let sets = node.map(|node| self.sets.of_node(&node.labels)).unwrap_or_default();
            let addresses = node.map(|node| node.addresses.as_slice()).unwrap_or_default();
            let identity = Identity { sets, named_ports: Box::default() };
            self.addresses.set(&Claimant::Node(name.clone()), addresses, identity);
        }
    }

    /// Pods plugged in here have their addresses before any status says so.
    fn attached(&mut self, cluster: &Cluster, local: &LocalView, dirty: &mut Dirty) {
        if self.unknown_pods_open != local.unknown_pods_open {
            self.unknown_pods_open = local.unknown_pods_open;
            dirty.ports.extend(local.pods.keys());
        }
        let planned = || local.pods.iter().filter(|(port, _)| usize::from(port.0) < limits::PORTS);
        let is_same = |((known_port, (pod, addresses)), (port, attached)): (
            (&PortIndex, &Attachment),
            (&PortIndex, &AttachedPod),
        )| { known_port == port && *pod == attached.pod && *addresses == attached.addresses };
        let mut names: HashSet<PodName> = HashSet::new();
        // Nearly always nothing was plugged in or out.
        if self.attached.len() != planned().count() || !self.attached.iter().zip(planned()).all(is_same) {
            let now: BTreeMap<PortIndex, Attachment> =
                planned().map(|(port, attached)| (*port, (attached.pod.clone(), attached.addresses.clone()))).collect();
            for port in self.attached.keys().chain(now.keys()) {
                let (before, after) = (self.attached.get(port), now.get(port));
                if before != after {
                    dirty.ports.insert(*port);
                    names.extend(before.into_iter().chain(after).map(|(pod, _)| pod.clone()));
                }
            }
            self.attached = now;
        }
        for (port, (pod, _)) in &self.attached {
            if dirty.pods.contains(pod) {
                dirty.ports.insert(*port);
                names.insert(pod.clone());
            }
        }
        for name in names {
            let ports = self.attached.values().filter(|(pod, _)| *pod == name);
            let addresses: Vec<IpAddr> = ports.flat_map(|(_, addresses)| addresses.iter().copied()).collect();
            let (_, identity) = self.identify(cluster, &name);
            self.addresses.set(&Claimant::Attached(name), &addresses, identity);
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
    fn judges(&mut self, cluster: &Cluster, local: &LocalView, dirty: &Dirty) {
        let selected = |pod: &PodName| {
            let namespace = self.namespace(cluster, pod.namespace());
            let labels = cluster.pods.get(pod).map(|pod| &pod.labels);
            dirty.subjects.iter().any(|subject| {
                let in_scope = match &subject.namespaces {
                    Namespaces::Named(name) => name == pod.namespace(),
                    Namespaces::Matching(selector) => selector.selects(&namespace.labels),
                };
                in_scope && labels.is_none_or(|labels| subject.pods.selects(labels))
            })
        };
        let mut ports = dirty.ports.clone();
        if !dirty.subjects.is_empty() {
            ports.extend(self.attached.iter().filter(|(_, (pod, _))| selected(pod)).map(|(port, _)| *port));
        }
        for port in ports {
            let policy = self.attached.get(&port).map(|(pod, _)| self.judge(cluster, local, pod));
            let known = self.table.pods.known(port);
            if known.map(Arc::as_ref) != policy.as_ref() {
                self.table.pods.set(port, policy.map(Arc::new));
            }
        }
    }

    fn judge(&self, cluster: &Cluster, local: &LocalView, pod: &PodName) -> PodPolicy {
        let namespace = self.namespace(cluster, pod.namespace());
        match cluster.pods.get(pod) {
            Some(record) => self.policies.of_pod(&namespace, &record.labels),
            None if local.unknown_pods_open => PodPolicy::default(),
            None => self.policies.of_unknown_pod(&namespace),
        }
    }
}

fn problem(name: &PolicyName, (field, message): (&String, &String)) -> Problem {
    let kind = if name.namespace.is_some() { NETWORK_POLICY } else { CLUSTER_NETWORK_POLICY };
    let namespace = name.namespace.as_ref().map(ToString::to_string);
    Problem::new(message).of(&ObjectKey { kind, namespace, name: name.name.to_string() }).at(field)
}

fn pods_of<'a>(cluster: &'a Cluster, namespace: &NamespaceName) -> impl Iterator<Item = &'a PodRecord> {
    let first = PodName::before_all(namespace);
    let namespace = namespace.clone();
    cluster.pods.range(first..).map(|(_, pod)| pod).take_while(move |pod| *pod.name.namespace() == namespace)
}
