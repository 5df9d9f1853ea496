//! `show receipts`.

use serde::{Deserialize, Serialize};

/// `show receipts`: one object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReceiptReport {
    /// `Service`, `EndpointSlice`, `NetworkPolicy`, `ClusterNetworkPolicy`.
    pub kind: String,
    /// `namespace/name`, or the name alone.
    pub name: String,
    /// Its resource version, as the store told it last.
    pub resource_version: String,
    /// Its `metadata.generation`, where it has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub generation: Option<u64>,
    /// Whether this version is in force.
    pub in_force: bool,
    /// Why not: the last valid version is in force, if there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<String>,
    /// Generation of the tables that hold it, or were made without it.
    pub tables_generation: u64,
    /// Since when every worker decides by them (RFC 3339).
    pub since: String,
    /// Milliseconds from its arrival at this node until then; `None` for what there was when the agent started.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub took_milliseconds: Option<f64>,
}
