//! `show fdb`.

use serde::{Deserialize, Serialize};

/// One station of a bridged segment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StationReport {
    /// The segment.
    pub segment: String,
    /// VLAN of the frames it was learned from; absent for untagged ones.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vlan: Option<u16>,
    /// The station's MAC address.
    pub mac: String,
    /// Where it lives: the name of a port, or `tunnel to` a node.
    pub location: String,
    /// Milliseconds since its last frame; absent for a static entry.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub age_milliseconds: Option<u64>,
    /// Whether it was configured and does not age.
    #[serde(rename = "static")]
    pub is_static: bool,
}
