//! Objects in, validated records out: the only folder that knows Kubernetes types.
//!
//! An object that is not valid becomes a problem, and the record of its last valid version stays in the cluster until
//! the object is valid again or deleted, as if a server had refused the change. What the cluster is thus depends on the
//! present objects alone, except where a present object is invalid: then on its last valid version, and on nothing else.
//! A policy without a valid version is closed: what stands in for it lets nothing pass that it may have been meant to stop.

mod bridging;
mod cluster_policy;
mod definitions;
mod network;
mod node;
mod ours;
mod policy;
mod quantity;
mod schema;
mod service;
mod slice;
mod touched;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::cluster::{
    BlockName, BlockRecord, BridgeName, BridgePortRecord, BridgeRecord, Cluster, NamespaceName, NamespaceRecord,
    NetworkName, NetworkRecord, NodeName, NodeRecord, PodName, PodRecord, PolicyName, PolicyRecord, PoolName,
    PoolRecord, PortName, ServiceName, ServiceRangeName, ServiceRangeRecord, ServiceRecord, SliceName, SliceRecord,
    UplinkName, UplinkRecord,
};
use crate::problem::Problem;
use crate::store::{Event, FieldError, Kind, Object, ObjectKey, Origin};

pub use definitions::{custom_resource_definitions, definitions_text};
pub use ours::{block_object, our_kind};
pub use touched::Touched;

/// `Node` of the core group.
pub const NODE: Kind = Kind::new("v1", "Node");
/// `Pod` of the core group.
pub const POD: Kind = Kind::new("v1", "Pod");
/// `Namespace` of the core group.
pub const NAMESPACE: Kind = Kind::new("v1", "Namespace");
/// `Service` of the core group.
pub const SERVICE: Kind = Kind::new("v1", "Service");
/// `EndpointSlice`.
pub const ENDPOINT_SLICE: Kind = Kind::new("discovery.k8s.io/v1", "EndpointSlice");
/// `ServiceCIDR`.
pub const SERVICE_CIDR: Kind = Kind::new("networking.k8s.io/v1", "ServiceCIDR");
/// `StatefulSet`: read one at a time, not watched.
pub const STATEFUL_SET: Kind = Kind::new("apps/v1", "StatefulSet");
/// `NetworkPolicy` of the networking group.
pub const NETWORK_POLICY: Kind = Kind::new("networking.k8s.io/v1", "NetworkPolicy");
/// `ClusterNetworkPolicy` of the network policy API.
pub const CLUSTER_NETWORK_POLICY: Kind = Kind::new("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy");
/// Our `Uplink`.
pub const UPLINK: Kind = our_kind("Uplink");
/// Our `IpPool`.
pub const IP_POOL: Kind = our_kind("IpPool");
/// Our `IpBlock`.
pub const IP_BLOCK: Kind = our_kind("IpBlock");

/// Our `Bridge`.
pub const BRIDGE: Kind = our_kind("Bridge");
/// Our `Port`.
pub const PORT: Kind = our_kind("Port");
/// Our `Network`.
pub const NETWORK: Kind = our_kind("Network");

/// All kinds to watch.
pub const KINDS: [Kind; 14] = [
    NODE,
    POD,
    NAMESPACE,
    UPLINK,
    IP_POOL,
    IP_BLOCK,
    SERVICE,
    ENDPOINT_SLICE,
    SERVICE_CIDR,
    NETWORK_POLICY,
    CLUSTER_NETWORK_POLICY,
    BRIDGE,
    PORT,
    NETWORK,
];

/// A valid object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A node.
    Node(NodeRecord),
    /// A pod.
    Pod(PodRecord),
    /// A namespace.
    Namespace(NamespaceRecord),
    /// An uplink.
    Uplink(UplinkRecord),
    /// A pool.
    Pool(PoolRecord),
    /// A block.
    Block(BlockRecord),
    /// A Service.
    Service(Box<ServiceRecord>),
    /// Endpoints.
    Slice(SliceRecord),
    /// Ranges of Services' addresses.
    ServiceRange(ServiceRangeName, ServiceRangeRecord),
    /// A policy of either kind.
    Policy(Box<PolicyRecord>),
    /// A bridge.
    Bridge(BridgeRecord),
    /// A port of a standalone switch.
    Port(BridgePortRecord),
    /// A network that pods may be plugged into.
    Network(NetworkRecord),
}

/// Reads an object; `None` if its kind is none of ours to read.
pub fn read(object: &Object) -> Result<Option<Record>, FieldError> {
    let record = match &object.key.kind {
        kind if *kind == NODE => Record::Node(node::read(object)?),
        kind if *kind == POD => Record::Pod(workload::pod(object)?),
        kind if *kind == NAMESPACE => Record::Namespace(workload::namespace(object)?),
        kind if *kind == UPLINK => Record::Uplink(ours::uplink(object)?),
        kind if *kind == IP_POOL => Record::Pool(ours::pool(object)?),
        kind if *kind == IP_BLOCK => Record::Block(ours::block(object)?),
        kind if *kind == SERVICE => Record::Service(Box::new(service::service(object)?)),
        kind if *kind == ENDPOINT_SLICE => Record::Slice(slice::slice(object)?),
        kind if *kind == SERVICE_CIDR => {
            let (name, ranges) = service::service_range(object)?;
            Record::ServiceRange(name, ranges)
        }
        kind if *kind == NETWORK_POLICY => Record::Policy(Box::new(policy::read(object)?)),
        kind if *kind == CLUSTER_NETWORK_POLICY => Record::Policy(Box::new(cluster_policy::read(object)?)),
        kind if *kind == BRIDGE => Record::Bridge(bridging::bridge(object)?),
        kind if *kind == PORT => Record::Port(bridging::port(object)?),
        kind if *kind == NETWORK => Record::Network(network::network(object)?),
        _ => return Ok(None),
    };
    Ok(Some(record))
}

/// The cluster as the events so far have it.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    cluster: Cluster,
    touched: Touched,
    synced: bool,
    origins: BTreeMap<ObjectKey, Origin>,
    invalid: BTreeMap<ObjectKey, Problem>,
    /// Invalid policies without a valid version, for which a closed one stands in.
    closed: BTreeSet<ObjectKey>,
    unreadable: Vec<Problem>,
}

impl Observed {
    /// What was observed of a cluster that is known whole.
    #[must_use]
    pub fn knowing(cluster: Cluster) -> Self {
        Self { cluster, synced: true, ..Self::default() }
    }

    /// Takes one event in.
    pub fn take(&mut self, event: Event) {
        match event {
            Event::Applied(object) => self.apply(&object),
            Event::Deleted(key) => self.delete(&key),
            Event::Synced => self.synced = true,
            Event::Problems(problems) => self.unreadable = problems,
        }
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The cluster, when nothing more is to be observed.
    #[must_use]
    pub fn into_cluster(self) -> Cluster {
        self.cluster
    }

    /// What was applied or deleted since the last time this was asked.
    pub fn take_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    /// Whether all objects that existed at the start are in.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// What is wrong with single objects and files, sorted.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<_> = self.unreadable.iter().chain(self.invalid.values()).cloned().collect();
        problems.sort_unstable();
        problems
    }

    /// The same problem with the place its object was written in, if it has none yet.
    #[must_use]
    pub fn placed(&self, problem: Problem) -> Problem {
        let origin = problem.object.as_ref().filter(|_| problem.file.is_none()).and_then(|key| self.origins.get(key));
        match origin {
            Some(origin) => problem.in_file(&origin.file, Some(origin.line)),
            None => problem,
        }
    }

    fn apply(&mut self, object: &Object) {
        match &object.origin {
            Some(origin) => drop(self.origins.insert(object.key.clone(), origin.clone())),
            None => drop(self.origins.remove(&object.key)),
        }
        match read(object) {
            Ok(record) => {
                self.invalid.remove(&object.key);
                self.closed.remove(&object.key);
                record.into_iter().for_each(|record| self.insert(record));
            }
            Err(error) => {
                let problem = Problem::new(error.message).of(&object.key).at(error.path).kind("invalid_object");
                let problem = match &object.origin {
                    Some(origin) => problem.in_file(&origin.file, error.line.or(Some(origin.line))),
                    None => problem,
                };
                self.invalid.insert(object.key.clone(), problem);
                self.close(object);
            }
        }
    }

    fn close(&mut self, object: &Object) {
        let record = match &object.key.kind {
            kind if *kind == NETWORK_POLICY => policy::closed(object),
            kind if *kind == CLUSTER_NETWORK_POLICY => cluster_policy::closed(object),
            _ => None,
        };
        let Some(record) = record else { return };
        if self.closed.contains(&object.key) || !self.cluster.policies.contains_key(&record.name) {
            self.closed.insert(object.key.clone());
            self.insert(Record::Policy(Box::new(record)));
        }
    }

    fn insert(&mut self, record: Record) {
        let cluster = &mut self.cluster;
        self.touched.note(&record, cluster);
        match record {
            Record::Node(node) => drop(cluster.nodes.insert(node.name.clone(), node)),
            Record::Pod(pod) => {
                cluster.memberships.note_pod(&pod);
                cluster.pods.insert(pod.name.clone(), pod);
            }
            Record::Namespace(namespace) => {
                cluster.memberships.note_namespace(&namespace);
                cluster.namespaces.insert(namespace.name.clone(), namespace);
            }
            Record::Uplink(uplink) => drop(cluster.uplinks.insert(uplink.name.clone(), uplink)),
            Record::Pool(pool) => drop(cluster.pools.insert(pool.name().clone(), pool)),
            Record::Block(block) => drop(cluster.blocks.insert(block.name.clone(), block)),
            Record::Service(service) => insert_service(cluster, *service),
            Record::Slice(slice) => cluster.slices.insert(slice),
            Record::ServiceRange(name, ranges) => drop(cluster.service_ranges.insert(name, ranges)),
            Record::Policy(policy) => drop(cluster.policies.insert(policy.name.clone(), Arc::new(*policy))),
            Record::Bridge(bridge) => drop(cluster.bridges.insert(bridge.name.clone(), bridge)),
            Record::Port(port) => drop(cluster.ports.insert(port.name.clone(), port)),
            Record::Network(network) => drop(cluster.networks.insert(network.name.clone(), network)),
        }
    }

    fn delete(&mut self, key: &ObjectKey) {
        self.invalid.remove(key);
        self.closed.remove(key);
        self.origins.remove(key);
        let cluster = &mut self.cluster;
        let (namespace, name) = (key.namespace.as_deref().unwrap_or(""), key.name.as_str());
        match &key.kind {
            kind if *kind == NODE => {
                self.touched.nodes.extend(NodeName::new(name));
                self.touched.addressing = true;
                remove(&mut cluster.nodes, NodeName::new(name));
            }
            kind if *kind == NAMESPACE => {
                self.touched.namespaces.extend(NamespaceName::new(name));
                NamespaceName::new(name).iter().for_each(|name| cluster.memberships.forget_namespace(name));
                remove(&mut cluster.namespaces, NamespaceName::new(name));
            }
            kind if *kind == UPLINK => remove(&mut cluster.uplinks, UplinkName::new(name)),
            kind if *kind == IP_POOL => {
                self.touched.addressing = true;
                remove(&mut cluster.pools, PoolName::new(name));
            }
            kind if *kind == IP_BLOCK => {
                self.touched.addressing = true;
                remove(&mut cluster.blocks, BlockName::new(name));
            }
            kind if *kind == BRIDGE => remove(&mut cluster.bridges, BridgeName::new(name)),
            kind if *kind == PORT => remove(&mut cluster.ports, PortName::new(name)),
            kind if *kind == NETWORK => {
                self.touched.addressing = true;
                remove(&mut cluster.networks, NetworkName::new(name));
            }
            kind if *kind == SERVICE => remove(&mut cluster.services, ServiceName::new(namespace, name)),
            kind if *kind == SERVICE_CIDR => remove(&mut cluster.service_ranges, ServiceRangeName::new(name)),
            kind if *kind == ENDPOINT_SLICE => {
                SliceName::new(namespace, name).iter().for_each(|slice| cluster.slices.remove(slice));
            }
            kind if *kind == POD => {
                let pod = PodName::new(namespace, name);
                self.touched.pods.extend(pod.clone());
                pod.iter().for_each(|pod| cluster.memberships.forget_pod(pod));
                remove(&mut cluster.pods, pod);
            }
            kind if *kind == NETWORK_POLICY || *kind == CLUSTER_NETWORK_POLICY => {
                let namespace = key.namespace.as_deref().map(NamespaceName::new).transpose();
                let policy = namespace.map(|namespace| PolicyName { namespace, name: name.into() });
                self.touched.policies.extend(policy.clone());
                remove(&mut cluster.policies, policy);
            }
            _ => {}
        }
    }
}

/// An object told again without a change stays the very same record, so that what was planned of it stays too.
fn insert_service(cluster: &mut Cluster, service: ServiceRecord) {
    let known = cluster.services.get(&service.name);
    if known.is_none_or(|known| **known != service) {
        cluster.services.insert(service.name.clone(), Arc::new(service));
    }
}

/// A name that is none has no record.
fn remove<Name: Ord, Value, Error>(map: &mut BTreeMap<Name, Value>, name: Result<Name, Error>) {
    if let Ok(name) = name {
        map.remove(&name);
    }
}
