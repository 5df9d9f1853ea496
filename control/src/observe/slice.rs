//! `EndpointSlice` objects.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};

use super::service::{port_number, protocol_number, special};
use crate::cluster::{EndpointRecord, NodeName, ServiceName, SliceName, SlicePort, SliceRecord};
use crate::store::{FieldError, Object};

/// Label that names the Service of a slice.
const SERVICE: &str = "kubernetes.io/service-name";

pub(super) fn slice(object: &Object) -> Result<SliceRecord, FieldError> {
    let slice: EndpointSlice = object.content.read()?;
    let wrong = |path: &[&str], message: String| FieldError::at(&object.content, path, message);
    let namespace = object.key.namespace.as_deref().unwrap_or("default");
    let name =
        SliceName::new(namespace, &object.key.name).map_err(|error| wrong(&["metadata", "name"], error.to_string()))?;
    let ipv4 = match slice.address_type.as_str() {
        "IPv4" => Some(true),
        "IPv6" => Some(false),
        // Names are for nobody who forwards packets.
        "FQDN" => None,
        other => return Err(wrong(&["addressType"], format!("{other:?} is none of IPv4, IPv6, FQDN"))),
    };
    let labels = slice.metadata.labels.unwrap_or_default();
    let service = labels.get(SERVICE).filter(|service| !service.is_empty() && ipv4.is_some());
    let service = service.map(|service| ServiceName::new(namespace, service)).transpose();
    let service = service.map_err(|error| wrong(&["metadata", "labels", SERVICE], error.to_string()))?;
    let (Some(service), Some(ipv4)) = (service, ipv4) else {
        return Ok(SliceRecord { name, service: None, ipv4: true, ports: Vec::new(), endpoints: Vec::new() });
    };
    let ports = slice.ports.iter().flatten().map(|port| slice_port(port).map_err(|message| wrong(&["ports"], message)));
    let ports = ports.collect::<Result<Vec<_>, _>>()?;
    let endpoints =
        slice.endpoints.iter().map(|listed| endpoint(listed, ipv4).map_err(|message| wrong(&["endpoints"], message)));
    let endpoints = endpoints.collect::<Result<Vec<_>, _>>()?;
    let ports = ports.into_iter().flatten().collect();
    Ok(SliceRecord { name, service: Some(service), ipv4, ports, endpoints: endpoints.into_iter().flatten().collect() })
}

/// `None` for a slice port without a number, which stands for all ports and which no proxy serves.
fn slice_port(port: &EndpointPort) -> Result<Option<SlicePort>, String> {
    let Some(number) = port.port else { return Ok(None) };
    let protocol = protocol_number(port.protocol.as_deref());
    let protocol = protocol.ok_or_else(|| format!("protocol {:?} is none of TCP, UDP, SCTP", port.protocol))?;
    let port_number = port_number(number).ok_or_else(|| format!("{number} is not a port"))?;
    Ok(Some(SlicePort { name: port.name.clone().unwrap_or_default(), protocol, port: port_number }))
}

/// The first address counts, as for kube-proxy; `None` without one.
fn endpoint(endpoint: &Endpoint, ipv4: bool) -> Result<Option<EndpointRecord>, String> {
    let Some(text) = endpoint.addresses.first() else { return Ok(None) };
    let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is not an IP address"))?;
    if address.is_ipv4() != ipv4 {
        return Err(format!("{text:?} cannot be an endpoint of a slice of this addressType"));
    }
    if let Some(sort) = special(address) {
        return Err(format!("{address} is {sort} and no endpoint"));
    }
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let node = endpoint.node_name.as_deref().filter(|node| !node.is_empty()).map(NodeName::new).transpose();
    let hints = endpoint.hints.clone().unwrap_or_default();
    Ok(Some(EndpointRecord {
        address,
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        node: node.map_err(|error| error.to_string())?,
        zone: endpoint.zone.clone(),
        zone_hints: hints.for_zones.into_iter().flatten().map(|zone| zone.name).collect(),
        node_hints: hints.for_nodes.into_iter().flatten().map(|node| node.name).collect(),
        pod: endpoint.target_ref.as_ref().and_then(|target| target.name.clone()),
    }))
}
