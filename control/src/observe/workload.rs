//! `Pod` and `Namespace` objects.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Namespace, Pod};

use crate::cluster::{NamespaceName, NamespaceRecord, NodeName, PodName, PodRecord};
use crate::store::{FieldError, Object};

pub(super) fn pod(object: &Object) -> Result<PodRecord, FieldError> {
    let pod: Pod = object.content.read()?;
    let content = &object.content;
    let name = PodName::new(object.key.namespace.as_deref().unwrap_or("default"), &object.key.name)
        .map_err(|error| FieldError::at(content, &["metadata", "name"], error.to_string()))?;
    let spec = pod.spec.as_ref();
    let node = spec.and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty());
    let node = node.map(NodeName::new).transpose();
    let node = node.map_err(|error| FieldError::at(content, &["spec", "nodeName"], error.to_string()))?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    let status = pod.status.as_ref();
    let listed = status.iter().flat_map(|status| status.pod_ips.iter().flatten()).map(|entry| ("podIPs", &entry.ip));
    let single = status.and_then(|status| status.pod_ip.as_ref()).map(|address| ("podIP", address));
    for (field, text) in listed.chain(single).filter(|(_, text)| !text.is_empty()) {
        let refused = |_| FieldError::at(content, &["status", field], format!("{text:?} is not an IP address"));
        let address = text.parse().map_err(refused)?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    Ok(PodRecord { name, node, labels: pod.metadata.labels.unwrap_or_default(), addresses, host_network })
}

pub(super) fn namespace(object: &Object) -> Result<NamespaceRecord, FieldError> {
    let namespace: Namespace = object.content.read()?;
    let name = NamespaceName::new(&object.key.name)
        .map_err(|error| FieldError::at(&object.content, &["metadata", "name"], error.to_string()))?;
    Ok(NamespaceRecord { name, labels: namespace.metadata.labels.unwrap_or_default() })
}
