//! The network configuration on standard input: decoded, then checked.
//!
//! Keys nobody here knows are ignored, since runtimes add their own; keys that ask for something Millrace does
//! not do are refused with code 2 at ADD rather than silently left out. DEL is lenient: it reads only where the
//! agent is.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::spec::{Failure, NetworkResult, Version, code};

/// Where the agent listens unless the key `socket` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/millrace/agent.sock";

/// How long a verb waits for the agent unless the key `timeoutSeconds` says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest path of a unix socket, without the final NUL (`sockaddr_un` in include/uapi/linux/un.h).
const SOCKET_PATH_BYTES: usize = 107;

/// Keys under `runtimeConfig` that change what a pod gets, so that leaving them out would be a lie.
const UNSUPPORTED_CAPABILITIES: [&str; 6] = ["portMappings", "bandwidth", "ips", "ipRanges", "mac", "deviceID"];

/// The document as written.
#[derive(Debug, Deserialize)]
struct Document {
    #[serde(rename = "cniVersion")]
    cni_version: Option<String>,
    name: Option<String>,
    socket: Option<PathBuf>,
    #[serde(rename = "timeoutSeconds")]
    timeout_seconds: Option<u64>,
    ipam: Option<Value>,
    #[serde(rename = "runtimeConfig")]
    runtime_config: Option<Map<String, Value>>,
    #[serde(rename = "prevResult")]
    previous_result: Option<Value>,
}

/// A checked network configuration.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The version to answer in.
    pub version: Version,
    /// Name of the network.
    pub network: String,
    /// Where the agent listens.
    pub socket: PathBuf,
    /// How long to wait for it.
    pub timeout: Duration,
    /// What plugins before this one in the chain did.
    pub previous_result: Option<NetworkResult>,
}

/// A failure and the version to report it in.
pub type Versioned<T> = Result<T, (Version, Failure)>;

/// Reads the configuration of ADD.
///
/// # Errors
/// Codes 1, 2, 6 and 7, each naming the key.
pub fn for_add(input: &[u8]) -> Versioned<Configuration> {
    let (version, document) = decode(input)?;
    check_unsupported(&document).map_err(|failure| (version, failure))?;
    let previous = document.previous_result.clone().filter(|value| !value.is_null());
    let previous_result = previous.map(serde_json::from_value).transpose().map_err(|error| {
        (version, Failure::new(code::DECODE, "prevResult cannot be decoded").with_details(error.to_string()))
    })?;
    let configuration = check(version, document).map_err(|failure| (version, failure))?;
    Ok(Configuration { previous_result, ..configuration })
}

/// Reads the configuration of DEL; `prevResult` and unsupported keys are not looked at.
///
/// # Errors
/// Codes 1, 6 and 7.
pub fn for_delete(input: &[u8]) -> Versioned<Configuration> {
    let (version, document) = decode(input)?;
    check(version, document).map_err(|failure| (version, failure))
}

/// The version VERSION answers in: the caller's if it says one that is spoken here, else the newest.
#[must_use]
pub fn version_of(input: &[u8]) -> Version {
    let value: Option<Value> = serde_json::from_slice(input).ok();
    let text = value.as_ref().and_then(|value| value.get("cniVersion")).and_then(Value::as_str);
    text.and_then(Version::parse).unwrap_or(Version::NEWEST)
}

fn decode(input: &[u8]) -> Versioned<(Version, Document)> {
    let failed = |version, error: serde_json::Error| {
        let failure = Failure::new(code::DECODE, "the network configuration on standard input cannot be decoded");
        (version, failure.with_details(error.to_string()))
    };
    let document: Document = serde_json::from_slice(input).map_err(|error| failed(version_of(input), error))?;
    // The specification reads a missing version as 0.1.0 or 0.2.0; neither has the results spoken here.
    let written = document.cni_version.as_deref().unwrap_or("");
    let version = Version::parse(written).ok_or_else(|| {
        let spoken = Version::ALL.map(Version::text).join(", ");
        let message = format!("cniVersion {written:?} is not supported; supported are {spoken}");
        (Version::NEWEST, Failure::new(code::INCOMPATIBLE_VERSION, message))
    })?;
    Ok((version, document))
}

fn check(version: Version, document: Document) -> Result<Configuration, Failure> {
    let network = document.name.unwrap_or_default();
    crate::environment::check_container_id(&network).map_err(|reason| invalid("name", &network, reason))?;
    let socket = document.socket.unwrap_or_else(|| DEFAULT_SOCKET.into());
    let bytes = socket.as_os_str().len();
    if !socket.is_absolute() || bytes > SOCKET_PATH_BYTES || socket.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(invalid("socket", &socket.to_string_lossy(), "it must be an absolute path of at most 107 bytes"));
    }
    let timeout = document.timeout_seconds.map_or(DEFAULT_TIMEOUT, Duration::from_secs);
    if !(Duration::from_secs(1)..=Duration::from_secs(90)).contains(&timeout) {
        return Err(invalid("timeoutSeconds", &timeout.as_secs().to_string(), "it must be 1 to 90"));
    }
    Ok(Configuration { version, network, socket, timeout, previous_result: None })
}

fn check_unsupported(document: &Document) -> Result<(), Failure> {
    if let Some(value) = document.ipam.as_ref().filter(|value| !is_empty(value)) {
        return Err(unsupported("ipam", value, "Millrace assigns addresses from IpPool objects itself"));
    }
    for (key, value) in document.runtime_config.iter().flatten() {
        if UNSUPPORTED_CAPABILITIES.contains(&key.as_str()) && !is_empty(value) {
            return Err(unsupported(&format!("runtimeConfig.{key}"), value, "take the capability out of the list"));
        }
    }
    Ok(())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn unsupported(key: &str, value: &Value, advice: &str) -> Failure {
    let message = format!("{key} with the value {value} is not supported: {advice}");
    Failure::new(code::UNSUPPORTED_FIELD, message)
}

fn invalid(key: &str, value: &str, reason: &str) -> Failure {
    Failure::new(
        code::INVALID_CONFIGURATION,
        format!("{key} {value:?} of the network configuration is invalid: {reason}"),
    )
}
