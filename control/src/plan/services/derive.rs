//! Endpoints of a Service derived from its selector and the pods, where nobody writes EndpointSlices for it.
//!
//! What the cluster's controller does where there is one: a directory of files has none. Costs a walk over the pods for
//! each such Service.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::Facts;
use crate::cluster::{
    Cluster, Distribution, EndpointRecord, PodRecord, ServicePortRecord, ServiceRecord, SliceName, SlicePort,
    SliceRecord, TargetPort,
};
use crate::plan::LocalView;

/// Slices as the controller would write them: one for each family and each way its ports resolve.
pub(super) fn slices(
    service: &ServiceRecord,
    cluster: &Cluster,
    local: &LocalView,
    facts: &Facts,
) -> Vec<Arc<SliceRecord>> {
    if service.selector.is_empty() {
        return Vec::new();
    }
    let mut by_ports: BTreeMap<(bool, Vec<SlicePort>), Vec<EndpointRecord>> = BTreeMap::new();
    let same_namespace = |pod: &&PodRecord| pod.name.namespace() == service.name.namespace();
    let selected = |pod: &&PodRecord| service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
    for pod in cluster.pods.values().filter(same_namespace).filter(selected).filter(|pod| !pod.finished) {
        let ports: Vec<SlicePort> = service.ports.iter().filter_map(|port| slice_port(port, pod)).collect();
        for ipv4 in [true, false] {
            let own = local.addresses_of(&pod.name);
            let known = if pod.addresses.is_empty() { &own } else { &pod.addresses };
            let Some(address) = known.iter().find(|address| address.is_ipv4() == ipv4) else { continue };
            let endpoint = endpoint(service, pod, *address, facts);
            by_ports.entry((ipv4, ports.clone())).or_default().push(endpoint);
        }
    }
    let Ok(name) = SliceName::new(service.name.namespace().as_str(), service.name.name()) else { return Vec::new() };
    let slice = |((ipv4, ports), endpoints)| {
        Arc::new(SliceRecord { name: name.clone(), service: Some(service.name.clone()), ipv4, ports, endpoints })
    };
    by_ports.into_iter().map(slice).collect()
}

/// A port name that the pod does not know makes it no endpoint of that port.
fn slice_port(port: &ServicePortRecord, pod: &PodRecord) -> Option<SlicePort> {
    let number = match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => {
            let mut named = pod.ports.iter().filter(|known| known.name == *name && known.protocol == port.protocol);
            named.next().map(|known| known.port)
        }
    };
    number.map(|number| SlicePort { name: port.name.clone(), protocol: port.protocol, port: number })
}

fn endpoint(service: &ServiceRecord, pod: &PodRecord, address: IpAddr, facts: &Facts) -> EndpointRecord {
    let zone = pod.node.as_ref().and_then(|node| facts.zones.get(node)).cloned();
    let node_hints = pod.node.iter().filter(|_| service.distribution == Distribution::SameNode);
    let zone_hints = zone.iter().filter(|_| service.distribution != Distribution::Even);
    EndpointRecord {
        address,
        ready: service.publish_not_ready || (pod.ready && !pod.terminating),
        serving: service.publish_not_ready || pod.ready,
        terminating: pod.terminating,
        node_hints: node_hints.map(ToString::to_string).collect(),
        zone_hints: zone_hints.cloned().collect(),
        node: pod.node.clone(),
        zone,
        pod: Some(pod.name.name().to_owned()),
    }
}
