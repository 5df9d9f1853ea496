//! Objects of a test cluster as an API server would hold them.

use std::net::IpAddr;

use serde_json::{Value, json};

/// A node with these internal addresses.
#[must_use]
pub fn node(name: &str, addresses: &[IpAddr]) -> Value {
    let listed: Vec<Value> =
        addresses.iter().map(|address| json!({"type": "InternalIP", "address": address.to_string()})).collect();
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"addresses": listed}})
}

/// A pool of addresses with blocks of this prefix length.
#[must_use]
pub fn pool(name: &str, cidr: &str, block_size: u8) -> Value {
    json!({
        "apiVersion": "millrace.dev/v1alpha1", "kind": "IpPool", "metadata": {"name": name},
        "spec": {"cidr": cidr, "blockSize": block_size},
    })
}

/// A block that belongs to a node.
#[must_use]
pub fn block(cidr: &str, pool: &str, node: &str) -> Value {
    json!({
        "apiVersion": "millrace.dev/v1alpha1", "kind": "IpBlock",
        "metadata": {"name": cidr.replace(['.', ':', '/'], "-").replace("--", "-")},
        "spec": {"cidr": cidr, "pool": pool, "node": node},
    })
}

/// A Service with these addresses and TCP port 80, at pods' port 8080; `spec` adds to its spec.
#[must_use]
pub fn service(name: &str, cluster_ips: &[&str], spec: Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"clusterIPs": cluster_ips, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    if let (Some(fields), Value::Object(more)) = (service["spec"].as_object_mut(), spec) {
        fields.extend(more);
    }
    service
}

/// The slice of a Service's endpoints of one family, at port 8080; each an address, the name of its node and fields more.
#[must_use]
pub fn slice(service: &str, ipv4: bool, endpoints: &[(&str, &str, Value)]) -> Value {
    let listed = endpoints.iter().map(|(address, node, more)| {
        let mut endpoint = json!({"addresses": [address], "nodeName": node});
        if let (Some(fields), Value::Object(more)) = (endpoint.as_object_mut(), more) {
            fields.extend(more.clone());
        }
        endpoint
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "addressType": if ipv4 { "IPv4" } else { "IPv6" },
        "metadata": {
            "name": format!("{service}-{}", if ipv4 { "four" } else { "six" }),
            "labels": {"kubernetes.io/service-name": service},
        },
        "ports": [{"port": 8080}], "endpoints": listed.collect::<Vec<Value>>(),
    })
}
