//! Who is in which network, as pods and namespaces say: an index over both, kept by whoever changes them.
//!
//! Nearly all pods and namespaces name no network, so only those that do are here, and nobody has to ask all.

use std::collections::{BTreeMap, BTreeSet};

use super::{NamespaceName, NamespaceRecord, NetworkName, PODS, PodName, PodRecord};

/// Networks that pods and namespaces name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memberships {
    namespaces: BTreeMap<NamespaceName, NetworkName>,
    pods: BTreeMap<PodName, NetworkName>,
    /// Networks of further interfaces.
    further: BTreeMap<PodName, BTreeSet<NetworkName>>,
    /// Pods that live in their node's own network.
    host_pods: BTreeSet<PodName>,
}

impl Memberships {
    /// Takes up what a pod's object says.
    pub fn note_pod(&mut self, pod: &PodRecord) {
        self.forget_pod(&pod.name);
        if pod.host_network {
            self.host_pods.insert(pod.name.clone());
            return;
        }
        if let Some(network) = &pod.address_wishes.network {
            self.pods.insert(pod.name.clone(), network.clone());
        }
        let further = pod.address_wishes.further.iter().map(|interface| interface.network.clone());
        let further: BTreeSet<NetworkName> = further.collect();
        if !further.is_empty() {
            self.further.insert(pod.name.clone(), further);
        }
    }

    /// The pod's object is gone.
    pub fn forget_pod(&mut self, pod: &PodName) {
        self.pods.remove(pod);
        self.further.remove(pod);
        self.host_pods.remove(pod);
    }

    /// Takes up what a namespace's object says.
    pub fn note_namespace(&mut self, namespace: &NamespaceRecord) {
        match &namespace.network {
            Some(network) => drop(self.namespaces.insert(namespace.name.clone(), network.clone())),
            None => self.forget_namespace(&namespace.name),
        }
    }

    /// The namespace's object is gone.
    pub fn forget_namespace(&mut self, namespace: &NamespaceName) {
        self.namespaces.remove(namespace);
    }

    /// The network of a pod's first interface, as the pod says or else its namespace; `None` for the pods' segment.
    #[must_use]
    pub fn of_pod(&self, pod: &PodName) -> Option<&NetworkName> {
        let named = self.pods.get(pod).or_else(|| self.namespaces.get(pod.namespace()));
        named.filter(|network| network.as_str() != PODS)
    }

    /// The network of a namespace: of its pods that say nothing else, and of its Services.
    #[must_use]
    pub fn of_namespace(&self, namespace: &NamespaceName) -> Option<&NetworkName> {
        self.namespaces.get(namespace).filter(|network| network.as_str() != PODS)
    }

    /// Namespaces that are in a network, or that have pods which name one themselves.
    #[must_use]
    pub fn concerned(&self) -> BTreeSet<&NamespaceName> {
        self.namespaces.keys().chain(self.pods.keys().map(PodName::namespace)).collect()
    }

    /// Namespaces that are in this network, and pods that name it themselves, by any interface.
    pub fn naming<'a>(
        &'a self,
        network: &'a NetworkName,
    ) -> (impl Iterator<Item = &'a NamespaceName>, impl Iterator<Item = &'a PodName>) {
        let namespaces = self.namespaces.iter().filter(move |(_, named)| *named == network);
        let pods = self.pods.iter().filter(move |(_, named)| *named == network);
        let further = self.further.iter().filter(move |(_, named)| named.contains(network));
        (namespaces.map(|(name, _)| name), pods.map(|(name, _)| name).chain(further.map(|(name, _)| name)))
    }

    /// Pods of a namespace that name a network themselves.
    pub fn pods_of(&self, namespace: &NamespaceName) -> impl Iterator<Item = &PodName> {
        let (first, namespace) = (PodName::before_all(namespace), namespace.clone());
        self.pods.range(first..).map(|(pod, _)| pod).take_while(move |pod| *pod.namespace() == namespace)
    }

    /// Pods of a namespace that live in their node's own network.
    pub fn host_pods_of(&self, namespace: &NamespaceName) -> impl Iterator<Item = &PodName> {
        let (first, namespace) = (PodName::before_all(namespace), namespace.clone());
        self.host_pods.range(first..).take_while(move |pod| *pod.namespace() == namespace)
    }
}
