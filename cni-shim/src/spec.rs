//! The types of the CNI specification, versions 0.3.0 to 1.1.0: result and error as they appear on standard output.
//!
//! One [`NetworkResult`] serves all versions; [`NetworkResult::for_version`] adds or takes away what a version
//! has or lacks. Keys this program does not know are kept, since a previous plugin's result must pass through
//! unchanged. Source: containernetworking/cni SPEC.md at the tags spec-v0.3.1, spec-v0.4.0, spec-v1.0.0, spec-v1.1.0.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// A version of the specification that this plugin speaks, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.0: rich results, chaining.
    V0_3_0,
    /// 0.3.1: as 0.3.0, a correction of the text.
    V0_3_1,
    /// 0.4.0: CHECK, `prevResult` on DEL.
    V0_4_0,
    /// 1.0.0: addresses no longer name their family.
    V1_0_0,
    /// 1.1.0: GC, STATUS, more fields of interfaces and routes.
    V1_1_0,
}

impl Version {
    /// All versions, oldest first.
    pub const ALL: [Version; 5] = [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0, Version::V1_0_0, Version::V1_1_0];

    /// The version answered when the caller's is unknown.
    pub const NEWEST: Version = Version::V1_1_0;

    /// As written in `cniVersion`.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// The version written so, if this plugin speaks it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Version> {
        Self::ALL.into_iter().find(|version| version.text() == text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.text())
    }
}

/// Error codes of the specification ("Error" section); 100 and above are a plugin's own.
pub mod code {
    /// The `cniVersion` of the configuration is not supported.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field of the configuration asks for something this plugin does not do; the message has key and value.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is not known.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A variable of the environment is missing or wrong; the message names it.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading, writing or the agent's own work on the system failed.
    pub const IO: u32 = 5;
    /// JSON could not be decoded.
    pub const DECODE: u32 = 6;
    /// The configuration is decoded but wrong.
    pub const INVALID_CONFIGURATION: u32 = 7;
    /// A passing condition; the runtime should try again.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: ADD cannot be served.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: ADD cannot be served, and pods that are attached may be cut off.
    pub const NOT_AVAILABLE_AND_LIMITED: u32 = 51;
    /// Our own, of CHECK: the attachment is not as it should be.
    pub const ATTACHMENT_BROKEN: u32 = 101;
    /// Our own, of ADD: a port of the host that is asked for leads elsewhere already.
    pub const HOST_PORT_TAKEN: u32 = 102;
}

/// Why a verb failed, in the words of the specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// One of [`code`].
    pub code: u32,
    /// One sentence.
    #[serde(rename = "msg")]
    pub message: String,
    /// More for the log; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Failure {
    /// A failure without details.
    pub fn new(code: u32, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), details: String::new() }
    }

    /// The same with details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Failure {
        self.details = details.into();
        self
    }

    /// As printed on standard output.
    #[must_use]
    pub fn to_json(&self, version: Version) -> Value {
        let mut object = Map::new();
        object.insert("cniVersion".into(), version.text().into());
        object.insert("code".into(), self.code.into());
        object.insert("msg".into(), self.message.clone().into());
        if !self.details.is_empty() {
            object.insert("details".into(), self.details.clone().into());
        }
        Value::Object(object)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} (code {})", self.message, self.code)?;
        if self.details.is_empty() { Ok(()) } else { write!(formatter, ": {}", self.details) }
    }
}

impl std::error::Error for Failure {}

/// The result of ADD, and what `prevResult` holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkResult {
    /// Interfaces made so far, in the order plugins made them.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses assigned so far.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Address>,
    /// Routes made so far.
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// What the container's resolver should use.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub dns: Dns,
    /// Keys of other plugins.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One interface of a result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its MTU in bytes; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Network namespace it is in; absent for interfaces of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Since 1.1.0: for interfaces behind a socket.
    #[serde(rename = "socketPath", default, skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// Since 1.1.0: for interfaces that are PCI devices.
    #[serde(rename = "pciID", default, skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
    /// Keys of other plugins.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One address of a result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Address {
    /// `4` or `6`; only before 1.0.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Address and prefix length.
    pub address: String,
    /// The gateway, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Index into `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<u64>,
    /// Keys of other plugins.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One route of a result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Destination prefix.
    #[serde(rename = "dst")]
    pub destination: String,
    /// Gateway; absent means the gateway of the address.
    #[serde(rename = "gw", default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Other keys; `mtu`, `advmss`, `priority`, `table` and `scope` are since 1.1.0.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The resolver part of a result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Dns {
    /// `nameservers`, `domain`, `search`, `options`: Millrace sets none, others' pass through.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

/// Keys of a route that came with 1.1.0.
const ROUTE_KEYS_1_1: [&str; 5] = ["mtu", "advmss", "priority", "table", "scope"];

impl NetworkResult {
    /// This result behind `previous`: its interfaces come first, so indexes of ours move up by their number.
    #[must_use]
    pub fn amend(self, mut previous: NetworkResult) -> NetworkResult {
        let offset = previous.interfaces.len() as u64;
        previous.interfaces.extend(self.interfaces);
        previous.ips.extend(self.ips.into_iter().map(|mut address| {
            address.interface = address.interface.map(|index| index.saturating_add(offset));
            address
        }));
        previous.routes.extend(self.routes);
        for (key, value) in self.dns.fields {
            previous.dns.fields.entry(key).or_insert(value);
        }
        for (key, value) in self.other {
            previous.other.entry(key).or_insert(value);
        }
        previous
    }

    /// This result with the fields that `version` has, and none that it lacks.
    #[must_use]
    pub fn for_version(mut self, version: Version) -> NetworkResult {
        for address in &mut self.ips {
            let family = if address.address.contains(':') { "6" } else { "4" };
            address.version = (version < Version::V1_0_0).then(|| family.to_owned());
        }
        if version < Version::V1_1_0 {
            for interface in &mut self.interfaces {
                (interface.mtu, interface.socket_path, interface.pci_id) = (None, None, None);
            }
            for route in &mut self.routes {
                route.other.retain(|key, _| !ROUTE_KEYS_1_1.contains(&key.as_str()));
            }
        }
        self.other.remove("cniVersion");
        self
    }

    /// As printed on standard output.
    ///
    /// # Errors
    /// When a value cannot be written as JSON, which none of these types can cause.
    pub fn to_json(self, version: Version) -> Result<Value, Failure> {
        let mut value = serde_json::to_value(self.for_version(version))
            .map_err(|error| Failure::new(code::DECODE, format!("the result cannot be written as JSON: {error}")))?;
        if let Value::Object(object) = &mut value {
            object.insert("cniVersion".into(), version.text().into());
        }
        Ok(value)
    }
}

/// What VERSION prints.
#[must_use]
pub fn version_result(version: Version) -> Value {
    serde_json::json!({
        "cniVersion": version.text(),
        "supportedVersions": Version::ALL.map(Version::text),
    })
}

/// Runtimes written in Go may print an empty list as null.
pub(crate) fn null_is_empty<'input, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'input>,
    T: Default + Deserialize<'input>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> NetworkResult {
        serde_json::from_value(serde_json::json!({
            "interfaces": [{"name": "eth0", "mtu": 1450}],
            "ips": [{"address": "10.1.0.5/32", "interface": 0}, {"address": "fd00::5/128", "interface": 0}],
            "routes": [{"dst": "0.0.0.0/0", "mtu": 1400}],
        }))
        .expect("a valid result")
    }

    #[test]
    fn each_version_gets_its_own_fields() {
        for version in Version::ALL {
            let value = ours().to_json(version).expect("writable");
            assert_eq!(value["cniVersion"], version.text());
            assert_eq!(value["ips"][1].get("version").is_some(), version < Version::V1_0_0, "{version}");
            assert_eq!(value["interfaces"][0].get("mtu").is_some(), version >= Version::V1_1_0, "{version}");
            assert_eq!(value["routes"][0].get("mtu").is_some(), version >= Version::V1_1_0, "{version}");
            assert_eq!(Version::parse(version.text()), Some(version));
        }
    }

    #[test]
    fn a_previous_result_keeps_its_indexes_and_foreign_keys() {
        let previous: NetworkResult = serde_json::from_value(serde_json::json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "lo", "vendor.example/x": 1}],
            "ips": [{"address": "127.0.0.1/8", "interface": 0}],
            "routes": null,
            "dns": {"nameservers": ["192.0.2.53"]},
            "vendor.example/y": true,
        }))
        .expect("a valid result");
        let value = ours().amend(previous).to_json(Version::V1_0_0).expect("writable");
        assert_eq!(value["interfaces"][0]["vendor.example/x"], 1);
        assert_eq!(value["interfaces"][1]["name"], "eth0");
        assert_eq!(value["ips"][0]["interface"], 0);
        assert_eq!(value["ips"][1]["interface"], 1);
        assert_eq!(value["dns"]["nameservers"][0], "192.0.2.53");
        assert_eq!(value["vendor.example/y"], true);
    }
}
