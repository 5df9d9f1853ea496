//! What one node's agent has been told, object by object, kept beside the agent and without its code: the state of objects
//! by which the node may lawfully judge.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use millrace_control::observe::{NODE, POD};
use millrace_control::store::ObjectKey;
use millrace_tests::policies::{NodeView, Plugged};
use serde_json::Value;

use crate::store::Change;
use crate::tenancy::{NETWORKS, network_of_namespace};

/// Objects with an index of the addresses they speak of.
#[derive(Clone, Debug)]
pub(crate) struct View {
    node: String,
    objects: BTreeMap<ObjectKey, Arc<Value>>,
    by_address: BTreeMap<IpAddr, BTreeSet<ObjectKey>>,
    /// Policies, namespaces and pools: asked about every packet.
    everywhere: BTreeSet<ObjectKey>,
    plugged: BTreeMap<u32, (usize, Plugged)>,
}

fn addresses_of(value: &Value) -> Vec<IpAddr> {
    let text = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
    let list = |value: &Value, name: &str| -> Vec<IpAddr> {
        value.as_array().into_iter().flatten().filter_map(|entry| text(&entry[name])).collect()
    };
    match value["kind"].as_str() {
        Some("Pod") => list(&value["status"]["podIPs"], "ip"),
        Some("Node") => list(&value["status"]["addresses"], "address"),
        Some("IpBlock") => {
            let first = value["spec"]["cidr"].as_str().and_then(|cidr| cidr.split_once('/')?.0.parse().ok());
            first.into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// The key of a pod's object.
pub(crate) fn pod_key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey { kind: POD, namespace: Some(namespace.to_owned()), name: name.to_owned() }
}

fn is_everywhere(key: &ObjectKey) -> bool {
    matches!(&*key.kind.kind, "NetworkPolicy" | "ClusterNetworkPolicy" | "Namespace" | "IpPool")
}

impl View {
    pub(crate) fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            objects: BTreeMap::new(),
            by_address: BTreeMap::new(),
            everywhere: BTreeSet::new(),
            plugged: BTreeMap::new(),
        }
    }

    /// A view of everything there is, at one node.
    pub(crate) fn of(node: &str, objects: &[(ObjectKey, Arc<Value>)]) -> Self {
        let mut view = Self::new(node);
        objects.iter().for_each(|(key, value)| view.set(key, Some(value)));
        view
    }

    /// The same objects as another node has them, which has nothing plugged in.
    pub(crate) fn at(&self, node: &str) -> Self {
        Self { node: node.to_owned(), plugged: BTreeMap::new(), ..self.clone() }
    }

    pub(crate) fn apply(&mut self, change: &Change) {
        self.set(&change.key, change.present.as_ref().map(|stored| &stored.value));
    }

    fn set(&mut self, key: &ObjectKey, value: Option<&Arc<Value>>) {
        if let Some(before) = self.objects.remove(key) {
            for address in addresses_of(&before) {
                self.by_address.get_mut(&address).map(|keys| keys.remove(key));
            }
            self.everywhere.remove(key);
        }
        let Some(value) = value else { return };
        for address in addresses_of(value) {
            self.by_address.entry(address).or_default().insert(key.clone());
        }
        if is_everywhere(key) {
            self.everywhere.insert(key.clone());
        }
        self.objects.insert(key.clone(), Arc::clone(value));
    }

    pub(crate) fn plug_in(&mut self, pod: u32, network: usize, plugged: Plugged) {
        self.plugged.insert(pod, (network, plugged));
    }

    pub(crate) fn pull_out(&mut self, pod: u32) {
        self.plugged.remove(&pod);
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&Value> {
        self.objects.get(key).map(|value| &**value)
    }

    fn key(&self, key: &ObjectKey) -> Option<&ObjectKey> {
        self.objects.get_key_value(key).map(|(known, _)| known)
    }

    /// Objects that matter to a packet between these addresses in a network, and what is plugged in there.
    pub(crate) fn about(&self, network: usize, ends: [IpAddr; 2]) -> (Vec<&Value>, NodeView) {
        let mut keys: BTreeSet<&ObjectKey> = self.everywhere.iter().collect();
        for address in ends {
            for key in self.by_address.get(&address).into_iter().flatten() {
                keys.insert(key);
                // A block speaks of its node.
                let node = self.objects.get(key).and_then(|object| object["spec"]["node"].as_str());
                if let Some(node) = node.filter(|_| key.kind.kind == "IpBlock") {
                    keys.extend(self.key(&ObjectKey::cluster_scoped(NODE, node)));
                }
            }
        }
        let here = self.plugged.values().filter(|(own, _)| *own == network).map(|(_, plugged)| plugged);
        let here: Vec<&Plugged> = here.collect();
        let at_end = |plugged: &&&Plugged| plugged.addresses.iter().any(|address| ends.contains(address));
        for plugged in here.iter().filter(at_end) {
            keys.extend(self.key(&pod_key(&plugged.namespace, &plugged.name)));
        }
        let found = keys.into_iter().filter_map(|key| self.objects.get(key)).map(|value| &**value);
        let view = NodeView { node: self.node.clone(), plugged: here.into_iter().cloned().collect(), open: false };
        (found.filter(|value| is_of(value, network)).collect(), view)
    }
}

/// Whether an object means something in a network.
fn is_of(value: &Value, network: usize) -> bool {
    match value["kind"].as_str() {
        Some("Pod") => network_of_namespace(value["metadata"]["namespace"].as_str().unwrap_or("default")) == network,
        Some("IpPool" | "IpBlock") => value["spec"]["network"].as_str() == NETWORKS[network].object,
        _ => true,
    }
}
