//! Ports of the node that lead to one pod: a Pod object's `hostPort`s, and what a runtime asked for when it plugged it in
//! (CNI capability `portMappings`).
//!
//! A kubelet's runtime asks for the very ports that the object has, so each place counts once, and the runtime's word comes
//! first: it is what the pod was made with. A runtime without an API server has only its own word.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use millrace_engine::tables::services::{
    Balance, Endpoint, EndpointSet, EndpointState, Frontend, FrontendKind, Scope, ServiceId, ServicePort,
};

use super::endpoints::protocol_name;
use super::{Facts, FrontendKey, Owner, ServicePlan, ServicesPlan};
use crate::cluster::{Cluster, ContainerPort, NetworkName, PodName, PodRecord};
use crate::plan::{AttachedPod, LocalView};
use crate::stable_hash::hash_64;

/// The ports of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodHostPorts {
    pub(super) pod: PodName,
    /// The network it is in: then nobody reaches it by a port of the host.
    network: Option<NetworkName>,
    ports: Vec<PodHostPort>,
}

/// One of them, and where the pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PodHostPort {
    port: ContainerPort,
    addresses: Vec<IpAddr>,
}

impl PodHostPorts {
    fn add(&mut self, port: &ContainerPort, addresses: &[IpAddr]) {
        let is_there = |known: &PodHostPort| known.port.protocol == port.protocol && known.port.host == port.host;
        if port.host.is_some() && !self.ports.iter().any(is_there) {
            self.ports.push(PodHostPort { port: port.clone(), addresses: addresses.to_vec() });
        }
    }

    /// What the ports need: one endpoint each, at one or at every address of the node.
    pub(super) fn plan(&self, facts: &Facts) -> ServicePlan {
        let mut plan = ServicePlan::default();
        if let Some(network) = &self.network {
            let message = format!("its ports of the host are not served: it is in network {network}");
            plan.problems.push(message);
            return plan;
        }
        for PodHostPort { port, addresses } in &self.ports {
            let never_leaves = |address: IpAddr| address.is_ipv6() && address.is_loopback();
            if let Some(host) = port.host.filter(|host| host.address.is_some_and(never_leaves)) {
                // No kernel lets ::1 out by any interface but `lo`, so nothing here would ever see it.
                let message = format!("hostIP ::1 of hostPort {} is not served: it never leaves the node", host.port);
                plan.problems.push(message);
                continue;
            }
            for endpoint in addresses {
                let served = Arc::new(service_port(&self.pod, port, *endpoint));
                for key in keys(port, endpoint.is_ipv4(), &facts.node_addresses) {
                    if plan.frontends.iter().all(|(known, _)| *known != key) {
                        let service = Arc::clone(&served);
                        plan.frontends.push((key, Frontend { kind: FrontendKind::HostPort, service, sources: None }));
                    }
                }
                plan.ports.push(served);
            }
        }
        plan
    }
}

/// Ports of all pods of this node that have any: of pods that are plugged in, and of those that have an object here.
pub(super) fn of_node(cluster: &Cluster, local: &LocalView) -> BTreeMap<PodName, PodHostPorts> {
    let mut published: BTreeMap<PodName, PodHostPorts> = BTreeMap::new();
    let of_pod = |pod: &PodName| {
        let attached = local.pods.values().find(|attached| attached.pod == *pod && !attached.further);
        let by_object = || cluster.memberships.of_pod(pod).cloned();
        let network = attached.map_or_else(by_object, |attached| attached.network.clone());
        PodHostPorts { pod: pod.clone(), network, ports: Vec::new() }
    };
    let asked = local.pods.values().filter(|pod| !pod.host_ports.is_empty() && has_ports(cluster, pod));
    for attached in asked {
        let ports = published.entry(attached.pod.clone()).or_insert_with(|| of_pod(&attached.pod));
        attached.host_ports.iter().for_each(|port| ports.add(port, &attached.addresses));
    }
    let publishes = |pod: &&PodRecord| pod.ports.iter().any(|port| port.host.is_some());
    let here = |pod: &&PodRecord| pod.node.as_ref() == Some(&local.node) && !pod.host_network && !pod.finished;
    for pod in cluster.pods.values().filter(here).filter(publishes) {
        let plugged = local.addresses_of(&pod.name);
        let addresses = if pod.addresses.is_empty() { &plugged } else { &pod.addresses };
        let ports = published.entry(pod.name.clone()).or_insert_with(|| of_pod(&pod.name));
        pod.ports.iter().for_each(|port| ports.add(port, addresses));
    }
    published
}

/// Not of a pod that has ended, and not of one whose name another has by now: its DEL is on its way.
fn has_ports(cluster: &Cluster, attached: &AttachedPod) -> bool {
    cluster.pods.get(&attached.pod).is_none_or(|object| attached.is_of(object) && !object.finished)
}

/// Where a port is reached in one family.
fn keys(port: &ContainerPort, ipv4: bool, node_addresses: &[IpAddr]) -> impl Iterator<Item = FrontendKey> {
    let host = port.host;
    let every = node_addresses.iter().copied().filter(move |_| host.is_some_and(|host| host.address.is_none()));
    let (protocol, number) = (port.protocol, host.map_or(0, |host| host.port));
    let addresses = every.chain(host.and_then(|host| host.address)).filter(move |address| address.is_ipv4() == ipv4);
    addresses.map(move |address| FrontendKey::Address { address, protocol, port: number })
}

fn service_port(pod: &PodName, port: &ContainerPort, address: IpAddr) -> ServicePort {
    let endpoint = Endpoint {
        name: pod.name().into(),
        address,
        port: port.port,
        weight: 1,
        local: true,
        // A host port leads to its pod whatever its readiness says.
        state: EndpointState::Ready,
    };
    let endpoints: Arc<[Endpoint]> = Arc::from([endpoint]);
    let scope = Scope { all: EndpointSet::new(&endpoints, [0], Balance::Random), ..Scope::default() };
    let host_port = port.host.map_or(0, |host| host.port);
    let name = format!("pod {pod}:{host_port}");
    let family = if address.is_ipv4() { 4 } else { 6 };
    // One port at two addresses may lead to two ports of the pod.
    let place = port.host.and_then(|host| host.address).map_or_else(String::new, |address| format!("@{address}"));
    ServicePort {
        id: ServiceId(hash_64(&format!("{name}{place}/{}/{family}", protocol_name(port.protocol)))),
        name: name.into(),
        protocol: port.protocol,
        endpoints,
        cluster: scope.clone(),
        local: scope,
        any_usable: true,
        internal_local: true,
        // The client keeps its address, as with the `portmap` plugin.
        external_local: true,
        affinity: None,
        balance: Balance::Random,
    }
}

impl ServicesPlan {
    /// The first of a pod's wanted ports that is another's already, and whose it is. A walk over all frontends, for a pod
    /// that wants any.
    #[must_use]
    pub fn taken_by_another(
        &self,
        pod: &PodName,
        ports: &[ContainerPort],
        families: &[bool],
    ) -> Option<(FrontendKey, &Owner)> {
        let wanted: Vec<FrontendKey> = self.keys_of(ports, families).collect();
        let meets = |wanted: &FrontendKey, known: &FrontendKey| match (wanted, known) {
            (
                FrontendKey::Address { address, protocol, port },
                FrontendKey::NodePort { ipv4, protocol: of_node, port: number },
            ) => {
                (address.is_ipv4(), protocol, port) == (*ipv4, of_node, number) && self.node_addresses.contains(address)
            }
            (wanted, known) => wanted == known,
        };
        let of_others = self.owners.iter().filter(|(owner, _)| !matches!(owner, Owner::Pod(other) if other == pod));
        let mut claims = of_others.flat_map(|(owner, plan)| plan.frontends.iter().map(move |(key, _)| (key, owner)));
        claims.find_map(|(known, owner)| {
            let key = wanted.iter().find(|wanted| meets(wanted, known))?;
            Some((*key, owner))
        })
    }

    /// Those of a pod's ports that do not lead to it.
    #[must_use]
    pub fn not_leading_to(&self, pod: &PodName, ports: &[ContainerPort], families: &[bool]) -> Vec<FrontendKey> {
        let owner = Owner::Pod(pod.clone());
        let plan = self.owners.get(&owner);
        let has = |key: &FrontendKey| {
            plan.is_some_and(|plan| plan.frontends.iter().any(|(known, _)| known == key)) && self.holds(*key, &owner)
        };
        self.keys_of(ports, families).filter(|key| !has(key)).collect()
    }

    /// `families` are true for IPv4.
    fn keys_of(&self, ports: &[ContainerPort], families: &[bool]) -> impl Iterator<Item = FrontendKey> {
        let of_port = move |port| families.iter().flat_map(move |ipv4| keys(port, *ipv4, &self.node_addresses));
        ports.iter().flat_map(of_port)
    }
}
