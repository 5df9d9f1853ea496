//! `Network` of `millrace.dev/v1alpha1`: a wire if it has an `interface`, a tenant's segment if it has a `vni`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use millrace_engine::tables::Vni;
use serde::Deserialize;

use super::ours::{field, spec};
use super::schema;
use crate::cluster::{
    Cidr, InterfaceName, NetworkKind, NetworkName, NetworkRecord, NodeName, PODS, RoutedNetwork, SubnetRecord, VlanId,
    WireRecord,
};
use crate::store::{FieldError, Object};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct NetworkSpec {
    /// Of a wire. Absent: every node that has the interface.
    node: Option<String>,
    /// The host's interface at a wire.
    interface: Option<String>,
    /// Of a wire.
    vlan: Option<u16>,
    /// The identifier of a tenant's segment.
    vni: Option<u32>,
    /// Of a tenant's segment: 3 if it is routed, as it is where nothing is said; 2 for one broadcast domain.
    layer: Option<u8>,
    /// Whether a routed segment reaches what is outside of the cluster.
    #[serde(default)]
    egress: bool,
    /// Networks that a routed segment exchanges routes with.
    #[serde(default)]
    connect: Vec<String>,
    #[serde(default)]
    subnets: Vec<SubnetSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SubnetSpec {
    cidr: String,
    gateway: Option<String>,
}

/// Schema of a `Network`'s `spec`.
pub(super) fn network_schema() -> serde_json::Value {
    schema::of::<NetworkSpec>()
}

pub(super) fn network(object: &Object) -> Result<NetworkRecord, FieldError> {
    let spec: NetworkSpec = spec(object)?;
    let content = &object.content;
    let name = field(content, &["metadata", "name"], NetworkName::new(&object.key.name))?;
    if name.as_str() == PODS {
        let message = format!("{PODS:?} stands for the pods' segment");
        return Err(FieldError::at(content, &["metadata", "name"], message));
    }
    Ok(NetworkRecord { kind: kind(object, &name, &spec)?, subnets: subnets(object, &spec)?, name })
}

fn kind(object: &Object, name: &NetworkName, spec: &NetworkSpec) -> Result<NetworkKind, FieldError> {
    let wrong = |path: &str, message: &str| Err(FieldError::at(&object.content, &["spec", path], message.to_owned()));
    let of_wire = [("node", spec.node.is_some()), ("vlan", spec.vlan.is_some())];
    let of_tenant = [("layer", spec.layer.is_some())];
    let of_routed = [("egress", spec.egress), ("connect", !spec.connect.is_empty())];
    let given = |fields: &[(&'static str, bool)]| fields.iter().find(|(_, given)| *given).map(|(field, _)| *field);
    match (&spec.interface, spec.vni) {
        (Some(interface), None) => match given(&of_tenant).or(given(&of_routed)) {
            Some(path) => wrong(path, "only a network with a vni has this"),
            None => wire(object, spec, interface).map(NetworkKind::Wire),
        },
        (None, Some(number)) => {
            if let Some(path) = given(&of_wire) {
                return wrong(path, "only a network with an interface has this");
            }
            let Some(vni) = Vni::new(number).filter(|vni| vni.number() > 0) else {
                return wrong("vni", "a VNI is a number from 1 to 16777215");
            };
            match spec.layer.unwrap_or(3) {
                3 if !spec.subnets.is_empty() => {
                    wrong("subnets", "a routed network has its addresses from IpPools that name it")
                }
                3 => Ok(NetworkKind::Routed(RoutedNetwork {
                    vni,
                    egress: spec.egress,
                    connect: connect(object, name, spec)?,
                })),
                2 => match given(&of_routed) {
                    Some(path) => wrong(path, "only a routed network (layer 3) has this"),
                    None => Ok(NetworkKind::Bridged(vni)),
                },
                _ => wrong("layer", "a network is of layer 2, bridged, or 3, routed"),
            }
        }
        (Some(_), Some(_)) => wrong("vni", "a network has an interface (a wire) or a vni (a tenant's), not both"),
        (None, None) => wrong("interface", "a network has an interface (a wire) or a vni (a tenant's)"),
    }
}

fn wire(object: &Object, spec: &NetworkSpec, interface: &str) -> Result<WireRecord, FieldError> {
    let content = &object.content;
    Ok(WireRecord {
        node: field(content, &["spec", "node"], spec.node.as_deref().map(NodeName::new).transpose())?,
        interface: field(content, &["spec", "interface"], InterfaceName::new(interface))?,
        vlan: field(content, &["spec", "vlan"], spec.vlan.map(VlanId::new).transpose())?,
    })
}

fn connect(object: &Object, own: &NetworkName, spec: &NetworkSpec) -> Result<BTreeSet<NetworkName>, FieldError> {
    let names = spec.connect.iter().map(|text| field(&object.content, &["spec", "connect"], NetworkName::new(text)));
    let names = names.collect::<Result<BTreeSet<_>, _>>()?;
    if names.contains(own) {
        let message = "a network is not connected with itself".to_owned();
        return Err(FieldError::at(&object.content, &["spec", "connect"], message));
    }
    Ok(names)
}

fn subnets(object: &Object, spec: &NetworkSpec) -> Result<Vec<SubnetRecord>, FieldError> {
    let content = &object.content;
    let mut subnets: Vec<SubnetRecord> = Vec::new();
    for entry in &spec.subnets {
        let subnet = field(content, &["spec", "subnets"], subnet(entry))?;
        if let Some(other) = subnets.iter().find(|other| other.cidr.overlaps(subnet.cidr)) {
            let message = format!("{} overlaps {}", subnet.cidr, other.cidr);
            return Err(FieldError::at(content, &["spec", "subnets"], message));
        }
        subnets.push(subnet);
    }
    Ok(subnets)
}

fn subnet(entry: &SubnetSpec) -> Result<SubnetRecord, String> {
    let cidr: Cidr = entry.cidr.parse().map_err(|error: crate::cluster::CidrError| error.to_string())?;
    let gateway = entry.gateway.as_ref().map(|text| {
        let address = text.parse::<IpAddr>().ok().filter(|address| cidr.has(*address));
        address.ok_or_else(|| format!("the gateway {text:?} is no address of {cidr}"))
    });
    Ok(SubnetRecord { cidr, gateway: gateway.transpose()? })
}
