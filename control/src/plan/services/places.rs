//! Where the Services of a namespace belong: in the pods' segment, or in that of the tenant whose namespace it is.
//!
//! Only namespaces that are in a network, or have pods that name one themselves, have a place of their own here; all others
//! share one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use millrace_engine::tables::SegmentIndex;

use crate::cluster::{Cluster, NamespaceName, NetworkName};
use crate::plan::POD_SEGMENT;
use crate::plan::tenants::Tenants;

/// What planning a Service asks of its namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// The network; `None` for the pods' segment.
    pub(super) network: Option<NetworkName>,
    /// Its segment; `None` if this node does not have it.
    pub(super) segment: Option<SegmentIndex>,
    /// Why its Services are served nowhere, if they are not.
    pub(super) refused: Option<String>,
    /// Whether clients outside may call.
    pub(super) external: bool,
    /// Pods of the namespace that are elsewhere: their addresses mean something else.
    pub(super) elsewhere: BTreeSet<String>,
}

impl Place {
    /// The pods' segment, where nothing is to be told apart.
    pub(super) fn of_pods() -> Self {
        Self { segment: Some(POD_SEGMENT), external: true, ..Self::default() }
    }
}

/// The places of all namespaces.
#[derive(Clone, Debug)]
pub(super) struct Places {
    of_others: Arc<Place>,
    own: BTreeMap<NamespaceName, Arc<Place>>,
}

impl Places {
    /// `present` are the segments of tenants that this node has.
    pub(super) fn of(cluster: &Cluster, tenants: &Tenants, present: &BTreeSet<NetworkName>) -> Self {
        let of = |namespace: &NamespaceName| (namespace.clone(), Arc::new(place(cluster, tenants, present, namespace)));
        let own = cluster.memberships.concerned().into_iter().map(of).collect();
        Self { of_others: Arc::new(Place::of_pods()), own }
    }

    /// That of a namespace.
    pub(super) fn get(&self, namespace: &NamespaceName) -> &Arc<Place> {
        if self.own.is_empty() { &self.of_others } else { self.own.get(namespace).unwrap_or(&self.of_others) }
    }
}

fn place(cluster: &Cluster, tenants: &Tenants, present: &BTreeSet<NetworkName>, namespace: &NamespaceName) -> Place {
    let network = cluster.memberships.of_namespace(namespace);
    let strays = cluster.memberships.pods_of(namespace).filter(|pod| cluster.memberships.of_pod(pod) != network);
    let of_nodes = cluster.memberships.host_pods_of(namespace).filter(|_| network.is_some());
    let elsewhere = strays.chain(of_nodes).map(|pod| pod.name().to_owned()).collect();
    let Some(network) = network else { return Place { elsewhere, ..Place::of_pods() } };
    let routed = cluster.routed_network(network);
    let refused = match (cluster.networks.get(network), tenants.segment(Some(network))) {
        (None, _) => Some(format!("its namespace is in network {network}, which does not exist")),
        (Some(record), None) if record.routed().is_none() => {
            Some(format!("its namespace is in network {network}, which is not routed and has no Services"))
        }
        (Some(_), None) => Some(format!("its namespace is in network {network}, which has no segment")),
        (Some(_), Some(_)) => None,
    };
    Place {
        network: Some(network.clone()),
        segment: tenants.segment(Some(network)).filter(|_| present.contains(network)),
        refused,
        external: routed.is_some_and(|routed| routed.egress),
        elsewhere,
    }
}
