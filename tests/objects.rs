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
