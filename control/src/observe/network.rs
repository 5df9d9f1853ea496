//! `Network` of `millrace.dev/v1alpha1`.

use std::net::IpAddr;

use serde::Deserialize;

use super::ours::{field, spec};
use super::schema;
use crate::cluster::{Cidr, InterfaceName, NetworkName, NetworkRecord, NodeName, SubnetRecord, VlanId};
use crate::store::{FieldError, Object};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct NetworkSpec {
    /// Absent: every node that has the interface.
    node: Option<String>,
    interface: String,
    vlan: Option<u16>,
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
    let mut subnets: Vec<SubnetRecord> = Vec::new();
    for entry in &spec.subnets {
        let subnet = field(content, &["spec", "subnets"], subnet(entry))?;
        if let Some(other) = subnets.iter().find(|other| other.cidr.overlaps(subnet.cidr)) {
            let message = format!("{} overlaps {}", subnet.cidr, other.cidr);
            return Err(FieldError::at(content, &["spec", "subnets"], message));
        }
        subnets.push(subnet);
    }
    Ok(NetworkRecord {
        name: field(content, &["metadata", "name"], NetworkName::new(&object.key.name))?,
        node: field(content, &["spec", "node"], spec.node.as_deref().map(NodeName::new).transpose())?,
        interface: field(content, &["spec", "interface"], InterfaceName::new(&spec.interface))?,
        vlan: field(content, &["spec", "vlan"], spec.vlan.map(VlanId::new).transpose())?,
        subnets,
    })
}

fn subnet(entry: &SubnetSpec) -> Result<SubnetRecord, String> {
    let cidr: Cidr = entry.cidr.parse().map_err(|error: crate::cluster::CidrError| error.to_string())?;
    let gateway = entry.gateway.as_ref().map(|text| {
        let address = text.parse::<IpAddr>().ok().filter(|address| cidr.has(*address));
        address.ok_or_else(|| format!("the gateway {text:?} is no address of {cidr}"))
    });
    Ok(SubnetRecord { cidr, gateway: gateway.transpose()? })
}
