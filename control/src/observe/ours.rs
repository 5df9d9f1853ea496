//! Our own kinds: `Uplink`, `IpPool`, `IpBlock` of `millrace.dev/v1alpha1`, and what all our kinds have in common.
//!
//! Unknown fields are refused: a misspelt field that is ignored in silence costs its author an afternoon.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::json;

use super::schema;
use crate::cluster::{
    AssignedAddress, BlockName, BlockRecord, Cidr, InterfaceName, KeptFor, NetworkName, NodeName, Offsets, PodName,
    PoolName, PoolRecord, TunnelUse, UplinkName, UplinkPort, UplinkPortKind, UplinkRecord,
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
    #[serde(default)]
    port: PortKindSpec,
    /// For `port: af_xdp`: packets that one call of a worker takes from the driver, instead of an interrupt.
    busy_poll_budget: Option<u16>,
}

/// How the frames of an uplink are moved, in the words of `show ports`.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PortKindSpec {
    #[default]
    Automatic,
    AfXdp,
    Udp,
    Packet,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct IpPoolSpec {
    cidr: String,
    /// Prefix length of a block.
    block_size: Option<u8>,
    /// When its addresses go through tunnels.
    #[serde(default)]
    tunnel: TunnelSpec,
    /// Only for pods of this network.
    network: Option<String>,
    /// Only for pods that ask for this pool by name.
    #[serde(default)]
    only_on_request: bool,
    /// Addresses and prefixes given only to who asks for the very address.
    #[serde(default)]
    reserved: Vec<String>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
enum TunnelSpec {
    #[default]
    Always,
    AcrossSubnets,
    Never,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct IpBlockSpec {
    cidr: String,
    pool: String,
    /// The network of the pool when it was claimed.
    network: Option<String>,
    node: String,
    /// Places that any node may take by compare-and-swap.
    #[serde(default)]
    lendable: String,
    #[serde(default)]
    assigned: Vec<AssignedSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct AssignedSpec {
    address: IpAddr,
    node: String,
    /// `namespace/name` of the pod it is kept for.
    pod: Option<String>,
    /// The StatefulSet of that pod.
    stateful_set: Option<String>,
}

pub(super) fn spec<'de, Spec: Deserialize<'de>>(object: &'de Object) -> Result<Spec, FieldError> {
    object.content.read::<Envelope<Spec>>().map(|envelope| envelope.spec)
}

/// Reads one field with an error that names it.
pub(super) fn field<T, E: std::fmt::Display>(
    content: &Located,
    path: &[&str],
    value: Result<T, E>,
) -> Result<T, FieldError> {
    value.map_err(|error| FieldError::at(content, path, error.to_string()))
}

/// Schema of an `Uplink`'s `spec`.
pub(super) fn uplink_schema() -> serde_json::Value {
    schema::of::<UplinkSpec>()
}

/// Schema of an `IpPool`'s `spec`.
pub(super) fn pool_schema() -> serde_json::Value {
    schema::of::<IpPoolSpec>()
}

/// Schema of an `IpBlock`'s `spec`.
pub(super) fn block_schema() -> serde_json::Value {
    schema::of::<IpBlockSpec>()
}

pub(super) fn uplink(object: &Object) -> Result<UplinkRecord, FieldError> {
    let spec: UplinkSpec = spec(object)?;
    let content = &object.content;
    let wrong = |message: &str| FieldError::at(content, &["spec", "busyPollBudget"], message.to_owned());
    if spec.busy_poll_budget.is_some() && !matches!(spec.port, PortKindSpec::AfXdp) {
        return Err(wrong("only AF_XDP sockets poll the card's driver: it needs `port: af_xdp`"));
    }
    let busy_poll_budget = spec.busy_poll_budget.map(NonZeroU16::try_from).transpose();
    Ok(UplinkRecord {
        name: field(content, &["metadata", "name"], UplinkName::new(&object.key.name))?,
        node: field(content, &["spec", "node"], spec.node.as_deref().map(NodeName::new).transpose())?,
        interface: field(content, &["spec", "interface"], InterfaceName::new(&spec.interface))?,
        port: UplinkPort {
            kind: match spec.port {
                PortKindSpec::Automatic => UplinkPortKind::Automatic,
                PortKindSpec::AfXdp => UplinkPortKind::AfXdp,
                PortKindSpec::Udp => UplinkPortKind::Udp,
                PortKindSpec::Packet => UplinkPortKind::Packet,
            },
            busy_poll_budget: busy_poll_budget.map_err(|_| wrong("a call must take one packet at least"))?,
        },
    })
}

pub(super) fn pool(object: &Object) -> Result<PoolRecord, FieldError> {
    let spec: IpPoolSpec = spec(object)?;
    let content = &object.content;
    let name = field(content, &["metadata", "name"], PoolName::new(&object.key.name))?;
    let cidr = field(content, &["spec", "cidr"], spec.cidr.parse::<Cidr>())?;
    let mut pool = field(content, &["spec", "blockSize"], PoolRecord::new(name, cidr, spec.block_size))?;
    let reserved = spec.reserved.iter().map(|text| field(content, &["spec", "reserved"], prefix(text)));
    pool.reserved = reserved.collect::<Result<_, _>>()?;
    pool.tunnel = match spec.tunnel {
        TunnelSpec::Always => TunnelUse::Always,
        TunnelSpec::AcrossSubnets => TunnelUse::AcrossSubnets,
        TunnelSpec::Never => TunnelUse::Never,
    };
    pool.network = field(content, &["spec", "network"], spec.network.as_deref().map(NetworkName::new).transpose())?;
    pool.only_on_request = spec.only_on_request;
    Ok(pool)
}

/// A prefix, or an address alone.
fn prefix(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>().or(address).map_err(|_| format!("{text:?} is neither a prefix nor an address"))
}

pub(super) fn block(object: &Object) -> Result<BlockRecord, FieldError> {
    let spec: IpBlockSpec = spec(object)?;
    let content = &object.content;
    let cidr = field(content, &["spec", "cidr"], spec.cidr.parse::<Cidr>())?;
    let mut assigned = BTreeMap::new();
    for entry in &spec.assigned {
        let (address, entry) = field(content, &["spec", "assigned"], assignment(cidr, entry))?;
        assigned.insert(address, entry);
    }
    Ok(BlockRecord {
        name: field(content, &["metadata", "name"], BlockName::new(&object.key.name))?,
        cidr,
        lendable: field(content, &["spec", "lendable"], spec.lendable.parse::<Offsets>())?,
        assigned,
        pool: field(content, &["spec", "pool"], PoolName::new(&spec.pool))?,
        network: field(content, &["spec", "network"], spec.network.as_deref().map(NetworkName::new).transpose())?,
        node: field(content, &["spec", "node"], NodeName::new(&spec.node))?,
        resource_version: object.resource_version.clone(),
    })
}

fn assignment(cidr: Cidr, entry: &AssignedSpec) -> Result<(IpAddr, AssignedAddress), String> {
    if !cidr.has(entry.address) {
        return Err(format!("{} is not an address of {cidr}", entry.address));
    }
    let kept_for = match (&entry.pod, &entry.stateful_set) {
        (None, None) => None,
        (Some(pod), Some(set)) => {
            let (namespace, name) = pod.split_once('/').ok_or_else(|| format!("{pod:?} is not namespace/name"))?;
            let pod = PodName::new(namespace, name).map_err(|error| error.to_string())?;
            Some(KeptFor { pod, stateful_set: Arc::from(set.as_str()) })
        }
        _ => return Err("pod and statefulSet come together".to_owned()),
    };
    let node = NodeName::new(&entry.node).map_err(|error| error.to_string())?;
    Ok((entry.address, AssignedAddress { node, kept_for }))
}

/// The object of a block; its resource version is not part of it.
#[must_use]
pub fn block_object(block: &BlockRecord) -> serde_json::Value {
    let mut spec = json!({
        "cidr": block.cidr.to_string(),
        "pool": block.pool.as_str(),
        "node": block.node.as_str(),
    });
    if let Some(network) = &block.network {
        spec["network"] = json!(network.as_str());
    }
    if !block.lendable.is_empty() {
        spec["lendable"] = json!(block.lendable.to_string());
    }
    let entry = |(address, entry): (&IpAddr, &AssignedAddress)| {
        let mut object = json!({"address": address.to_string(), "node": entry.node.as_str()});
        if let Some(kept) = &entry.kept_for {
            object["pod"] = json!(kept.pod.to_string());
            object["statefulSet"] = json!(&*kept.stateful_set);
        }
        object
    };
    if !block.assigned.is_empty() {
        spec["assigned"] = block.assigned.iter().map(entry).collect();
    }
    json!({"apiVersion": API_VERSION, "kind": "IpBlock", "metadata": {"name": block.name.as_str()}, "spec": spec})
}
