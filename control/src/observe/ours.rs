//! Our own kinds: `Uplink`, `IpPool`, `IpBlock` of `millrace.dev/v1alpha1`.
//!
//! Unknown fields are refused: a misspelt field that is ignored in silence costs its author an afternoon.

use serde::Deserialize;
use serde_json::json;

use crate::cluster::{
    BlockName, BlockRecord, Cidr, InterfaceName, NodeName, PoolName, PoolRecord, UplinkName, UplinkRecord,
};
use crate::store::{FieldError, Kind, Located, Object};

const API_VERSION: &str = "millrace.dev/v1alpha1";

/// A kind of the project.
#[must_use]
pub const fn our_kind(kind: &'static str) -> Kind {
    Kind::new(API_VERSION, kind)
}

/// What every object of ours consists of.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Envelope<Spec> {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "metadata")]
    _metadata: serde::de::IgnoredAny,
    spec: Spec,
    #[serde(rename = "status", default)]
    _status: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct UplinkSpec {
    /// Absent: every node that has the interface.
    node: Option<String>,
    interface: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct IpPoolSpec {
    cidr: String,
    /// Prefix length of a block.
    block_size: Option<u8>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct IpBlockSpec {
    cidr: String,
    pool: String,
    node: String,
}

fn spec<'de, Spec: Deserialize<'de>>(object: &'de Object) -> Result<Spec, FieldError> {
    object.content.read::<Envelope<Spec>>().map(|envelope| envelope.spec)
}

/// Reads one field with an error that names it.
fn field<T, E: std::fmt::Display>(content: &Located, path: &[&str], value: Result<T, E>) -> Result<T, FieldError> {
    value.map_err(|error| FieldError::at(content, path, error.to_string()))
}

pub(super) fn uplink(object: &Object) -> Result<UplinkRecord, FieldError> {
    let spec: UplinkSpec = spec(object)?;
    let content = &object.content;
    Ok(UplinkRecord {
        name: field(content, &["metadata", "name"], UplinkName::new(&object.key.name))?,
        node: field(content, &["spec", "node"], spec.node.as_deref().map(NodeName::new).transpose())?,
        interface: field(content, &["spec", "interface"], InterfaceName::new(&spec.interface))?,
    })
}

pub(super) fn pool(object: &Object) -> Result<PoolRecord, FieldError> {
    let spec: IpPoolSpec = spec(object)?;
    let content = &object.content;
    let name = field(content, &["metadata", "name"], PoolName::new(&object.key.name))?;
    let cidr = field(content, &["spec", "cidr"], spec.cidr.parse::<Cidr>())?;
    field(content, &["spec", "blockSize"], PoolRecord::new(name, cidr, spec.block_size))
}

pub(super) fn block(object: &Object) -> Result<BlockRecord, FieldError> {
    let spec: IpBlockSpec = spec(object)?;
    let content = &object.content;
    Ok(BlockRecord {
        name: field(content, &["metadata", "name"], BlockName::new(&object.key.name))?,
        cidr: field(content, &["spec", "cidr"], spec.cidr.parse::<Cidr>())?,
        pool: field(content, &["spec", "pool"], PoolName::new(&spec.pool))?,
        node: field(content, &["spec", "node"], NodeName::new(&spec.node))?,
        resource_version: object.resource_version.clone(),
    })
}

/// The object of a block that `node` claims.
#[must_use]
pub fn block_object(name: &BlockName, cidr: Cidr, pool: &PoolName, node: &NodeName) -> serde_json::Value {
    json!({
        "apiVersion": API_VERSION,
        "kind": "IpBlock",
        "metadata": {"name": name.as_str()},
        "spec": {"cidr": cidr.to_string(), "pool": pool.as_str(), "node": node.as_str()},
    })
}
