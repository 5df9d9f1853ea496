//! `Node` objects: addresses, tunnel ends, assigned prefixes.
//!
//! A node that runs flannel tells the MAC address of its VXLAN device, and with it where its tunnel ends, in
//! annotations; nodes of ours may do so in theirs and otherwise have an address computed from the name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::Node;
use serde::Deserialize;

use crate::cluster::{Cidr, NodeName, NodeRecord, StationMac, TunnelEnd};
use crate::store::{FieldError, Object};

/// Annotation of ours: MAC address of the node's tunnel end.
const VTEP_MAC: &str = "millrace.dev/vtep-mac";
/// Well-known label: the zone.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Taint of a node that the cluster's autoscaler is about to take away (KEP-3836).
const LEAVING: &str = "ToBeDeletedByClusterAutoscaler";
/// Type of the condition that says whether a node is up.
const READY: &str = "Ready";
/// Annotations of flannel (`pkg/subnet/kube` there).
const FLANNEL_TYPE: &str = "flannel.alpha.coreos.com/backend-type";
const FLANNEL_DATA: &str = "flannel.alpha.coreos.com/backend-data";
const FLANNEL_DATA_V6: &str = "flannel.alpha.coreos.com/backend-v6-data";
const FLANNEL_ADDRESS: &str = "flannel.alpha.coreos.com/public-ip";
const FLANNEL_ADDRESS_V6: &str = "flannel.alpha.coreos.com/public-ipv6";

/// Content of flannel's `backend-data`.
#[derive(Deserialize)]
struct BackendData {
    #[serde(rename = "VNI", default = "one")]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    vtep_mac: String,
}

const fn one() -> u32 {
    1
}

pub(super) fn read(object: &Object) -> Result<NodeRecord, FieldError> {
    let node: Node = object.content.read()?;
    let content = &object.content;
    let name = NodeName::new(&object.key.name)
        .map_err(|error| FieldError::at(content, &["metadata", "name"], error.to_string()))?;
    let addresses = internal_addresses(object, &node)?;
    let own = mac_annotation(object, VTEP_MAC, |text| Ok(text.to_owned()))?;
    let flannel = is_flannel_vxlan(object);
    let flannel_mac = if flannel { mac_annotation(object, FLANNEL_DATA, backend_mac)? } else { None };
    let flannel_mac_v6 = if flannel { mac_annotation(object, FLANNEL_DATA_V6, backend_mac)? } else { None };
    let mac = own.or(flannel_mac).unwrap_or_else(|| StationMac::of_node(&name));
    let first = |ipv4: bool| addresses.iter().copied().find(|address| address.is_ipv4() == ipv4);
    let given = |key| if flannel { address_annotation(object, key) } else { Ok(None) };
    let ipv4 = given(FLANNEL_ADDRESS)?.or(first(true));
    let ipv6 = given(FLANNEL_ADDRESS_V6)?.or(first(false));
    let pod_cidrs = pod_cidrs(object, &node)?;
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.filter(|condition| condition.type_ == READY).all(|condition| condition.status == "True");
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let leaving = node.metadata.deletion_timestamp.is_some() || taints.into_iter().any(|taint| taint.key == LEAVING);
    let labels = node.metadata.labels.unwrap_or_default();
    Ok(NodeRecord {
        ipv4_end: ipv4.map(|address| TunnelEnd { address, mac }),
        ipv6_end: ipv6.map(|address| TunnelEnd { address, mac: own.or(flannel_mac_v6).unwrap_or(mac) }),
        ends_by_family: own.is_none() && flannel_mac_v6.is_some(),
        pod_cidrs,
        addresses,
        name,
        zone: labels.get(ZONE).cloned(),
        labels,
        ready,
        leaving,
    })
}

/// The first internal address of each family.
fn internal_addresses(object: &Object, node: &Node) -> Result<Vec<IpAddr>, FieldError> {
    let listed = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let mut addresses: Vec<IpAddr> = Vec::new();
    for entry in listed.filter(|entry| entry.type_ == "InternalIP") {
        let refused =
            |why: &str| FieldError::at(&object.content, &["status", "addresses"], format!("{:?} {why}", entry.address));
        let address: IpAddr = entry.address.parse().map_err(|_| refused("is not an IP address"))?;
        if !is_host_address(address) {
            return Err(refused("cannot be the address of a node"));
        }
        if !addresses.iter().any(|known| known.is_ipv4() == address.is_ipv4()) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// Whether a tunnel can end at the address.
fn is_host_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !address.is_multicast()
                && !address.is_broadcast()
                && !address.is_loopback()
                && address != Ipv4Addr::UNSPECIFIED
        }
        IpAddr::V6(address) => {
            !address.is_multicast()
                && !address.is_loopback()
                && !address.is_unicast_link_local()
                && address.to_ipv4_mapped().is_none()
                && address != Ipv6Addr::UNSPECIFIED
        }
    }
}

fn is_flannel_vxlan(object: &Object) -> bool {
    annotation(object, FLANNEL_TYPE).is_none_or(|backend| backend == "vxlan")
}

fn annotation<'a>(object: &'a Object, key: &str) -> Option<&'a str> {
    object.content.at(&["metadata", "annotations", key])?.text()
}

fn annotation_error(object: &Object, key: &str, message: String) -> FieldError {
    FieldError::at(&object.content, &["metadata", "annotations", key], message)
}

fn mac_annotation(
    object: &Object,
    key: &str,
    extract: fn(&str) -> Result<String, String>,
) -> Result<Option<StationMac>, FieldError> {
    // Flannel writes "null" where it has no data for a family.
    let Some(text) = annotation(object, key).filter(|text| *text != "null") else { return Ok(None) };
    let mac = extract(text).and_then(|mac| mac.parse::<StationMac>().map_err(|error| error.to_string()));
    mac.map(Some).map_err(|message| annotation_error(object, key, message))
}

fn backend_mac(text: &str) -> Result<String, String> {
    let data: BackendData = serde_json::from_str(text).map_err(|error| format!("is not backend data: {error}"))?;
    if data.vni == 1 { Ok(data.vtep_mac) } else { Err(format!("VNI {} is not the pods' VNI 1", data.vni)) }
}

fn address_annotation(object: &Object, key: &str) -> Result<Option<IpAddr>, FieldError> {
    let Some(text) = annotation(object, key) else { return Ok(None) };
    let address = text.parse().ok().filter(|address| is_host_address(*address));
    address.map(Some).ok_or_else(|| annotation_error(object, key, format!("{text:?} cannot be the address of a node")))
}

fn pod_cidrs(object: &Object, node: &Node) -> Result<Vec<Cidr>, FieldError> {
    let Some(spec) = &node.spec else { return Ok(Vec::new()) };
    let listed = spec.pod_cidrs.iter().flatten();
    let (path, single) = match &spec.pod_cidrs {
        Some(listed) if !listed.is_empty() => ("podCIDRs", None),
        _ => ("podCIDR", spec.pod_cidr.as_ref()),
    };
    let mut cidrs = Vec::new();
    for text in listed.chain(single).filter(|text| !text.is_empty()) {
        let error =
            |error: crate::cluster::CidrError| FieldError::at(&object.content, &["spec", path], error.to_string());
        cidrs.push(text.parse().map_err(error)?);
    }
    Ok(cidrs)
}
