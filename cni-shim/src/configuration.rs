//! The network configuration on standard input: decoded, then checked.
//!
//! Keys nobody here knows are ignored, since runtimes add their own; keys that ask for something Millrace does
//! not do are refused with code 2 at ADD rather than silently left out. DEL is lenient: it reads only where the
//! agent is.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::capabilities;
use crate::protocol::{Bandwidth, PortMapping, ValidAttachment};
use crate::spec::{Dns, Failure, NetworkResult, Version, code};

/// The agent's state directory unless the key `stateDirectory` says otherwise.
pub const DEFAULT_STATE_DIRECTORY: &str = "/var/lib/millrace";

/// Where the agent listens unless the key `socket` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/millrace/agent.sock";

/// How long a verb waits for the agent unless the key `timeoutSeconds` says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest path of a unix socket, without the final NUL (`sockaddr_un` in include/uapi/linux/un.h).
const SOCKET_PATH_BYTES: usize = 107;

/// Keys under `runtimeConfig` that change what a pod gets, so that leaving them out would be a lie.
const UNSUPPORTED_CAPABILITIES: [&str; 2] = ["ipRanges", "deviceID"];

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
    #[serde(rename = "stateDirectory")]
    state_directory: Option<PathBuf>,
    args: Option<Value>,
    dns: Option<Map<String, Value>>,
    #[serde(rename = "cni.dev/valid-attachments", default, deserialize_with = "listed")]
    valid_attachments: Option<Vec<ValidAttachment>>,
    #[serde(rename = "cni.dev/attachments", default, deserialize_with = "listed")]
    attachments: Option<Vec<ValidAttachment>>,
}

/// A list whose key is there; libcni writes an empty one as null.
fn listed<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Vec<ValidAttachment>>, D::Error> {
    Ok(Some(Option::deserialize(value)?.unwrap_or_default()))
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
    /// The agent's state directory, where a DEL leaves its request when no agent answers.
    pub state_directory: PathBuf,
    /// The very addresses that the runtime asks for; empty if it does not by configuration.
    pub addresses: Vec<IpAddr>,
    /// The very hardware address.
    pub mac: Option<String>,
    /// What the container's resolver should use.
    pub dns: Dns,
    /// Ports of the host that lead to the container.
    pub port_mappings: Vec<PortMapping>,
    /// How much the container may send and receive.
    pub bandwidth: Bandwidth,
    /// GC: what the runtime knows.
    pub valid_attachments: Vec<ValidAttachment>,
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
    let document = Document { runtime_config: None, args: None, ..document };
    check(version, document).map_err(|failure| (version, failure))
}

/// Reads the configuration of CHECK, which must have the result of ADD.
///
/// # Errors
/// Codes 1, 6 and 7, each naming the key.
pub fn for_check(input: &[u8]) -> Versioned<Configuration> {
    let (version, document) = decode(input)?;
    let old = (version < Version::V0_4_0).then(|| too_old("CHECK", version));
    old.map_or(Ok(()), |failure| Err((version, failure)))?;
    let configuration = for_add(input)?;
    if document.previous_result.is_none_or(|previous| previous.is_null()) {
        let failure = Failure::new(code::INVALID_CONFIGURATION, "prevResult is missing: CHECK compares with it");
        return Err((version, failure));
    }
    Ok(configuration)
}

/// Reads the configuration of GC and STATUS.
///
/// # Errors
/// Codes 1, 6 and 7, each naming the key.
pub fn for_network(input: &[u8], verb: &str) -> Versioned<Configuration> {
    let (version, document) = decode(input)?;
    if version < Version::V1_1_0 {
        return Err((version, too_old(verb, version)));
    }
    if verb == "GC" && document.valid_attachments.is_none() && document.attachments.is_none() {
        // Without the list everything would be taken for lost.
        let message = "cni.dev/valid-attachments is missing: GC removes what is not in it";
        return Err((version, Failure::new(code::INVALID_CONFIGURATION, message)));
    }
    check(version, document).map_err(|failure| (version, failure))
}

fn too_old(verb: &str, version: Version) -> Failure {
    Failure::new(code::INCOMPATIBLE_VERSION, format!("{verb} does not exist in version {version} of the specification"))
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
    let network = document.name.clone().unwrap_or_default();
    crate::environment::check_container_id(&network).map_err(|reason| invalid("name", &network, reason))?;
    let socket = document.socket.clone().unwrap_or_else(|| DEFAULT_SOCKET.into());
    let bytes = socket.as_os_str().len();
    if !socket.is_absolute() || bytes > SOCKET_PATH_BYTES || socket.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(invalid("socket", &socket.to_string_lossy(), "it must be an absolute path of at most 107 bytes"));
    }
    let timeout = document.timeout_seconds.map_or(DEFAULT_TIMEOUT, Duration::from_secs);
    if !(Duration::from_secs(1)..=Duration::from_secs(90)).contains(&timeout) {
        return Err(invalid("timeoutSeconds", &timeout.as_secs().to_string(), "it must be 1 to 90"));
    }
    let state_directory = document.state_directory.clone().unwrap_or_else(|| DEFAULT_STATE_DIRECTORY.into());
    if !state_directory.is_absolute() {
        return Err(invalid("stateDirectory", &state_directory.to_string_lossy(), "it must be an absolute path"));
    }
    Ok(Configuration {
        version,
        network,
        socket,
        timeout,
        previous_result: None,
        state_directory,
        addresses: addresses(&document)?,
        mac: mac(&document)?,
        dns: dns(&document)?,
        port_mappings: capability(&document, "portMappings").map_or(Ok(Vec::new()), capabilities::port_mappings)?,
        bandwidth: capability(&document, "bandwidth").map_or(Ok(Bandwidth::default()), capabilities::bandwidth)?,
        valid_attachments: document.valid_attachments.or(document.attachments).unwrap_or_default(),
    })
}

/// A key that a runtime fills in: of `runtimeConfig` first, then of `args.cni` (CONVENTIONS of the specification).
fn asked<'a>(document: &'a Document, capability: &str) -> Option<(&'static str, &'a Value)> {
    let capabilities = document.runtime_config.as_ref();
    let by_capability = capabilities.and_then(|config| config.get(capability)).map(|value| ("runtimeConfig", value));
    let arguments = document.args.as_ref().and_then(|args| args.get("cni"));
    let by_argument = arguments.and_then(|cni| cni.get(capability)).map(|value| ("args.cni", value));
    let given = |asked: &(&'static str, &Value)| !is_empty(asked.1);
    by_capability.filter(given).or(by_argument.filter(given))
}

fn addresses(document: &Document) -> Result<Vec<IpAddr>, Failure> {
    let Some((place, value)) = asked(document, "ips") else { return Ok(Vec::new()) };
    let wrong = |value: &Value| invalid(&format!("{place}.ips"), &value.to_string(), "it must be a list of addresses");
    let list = value.as_array().ok_or_else(|| wrong(value))?;
    list.iter().map(|item| item.as_str().and_then(parse_address).ok_or_else(|| wrong(item))).collect()
}

/// An address, with or without a prefix length; pods' addresses stand alone, so that the length has no meaning.
#[must_use]
pub fn parse_address(text: &str) -> Option<IpAddr> {
    let (address, length) = text.trim().split_once('/').map_or((text.trim(), None), |(at, rest)| (at, Some(rest)));
    let address: IpAddr = address.parse().ok()?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let fits = length.is_none_or(|length| length.parse::<u8>().is_ok_and(|length| length <= bits));
    fits.then_some(address)
}

fn mac(document: &Document) -> Result<Option<String>, Failure> {
    let Some((place, value)) = asked(document, "mac") else { return Ok(None) };
    let wrong = || invalid(&format!("{place}.mac"), &value.to_string(), "it must be a text");
    value.as_str().map(|text| Some(text.to_owned())).ok_or_else(wrong)
}

/// What the runtime gave for a capability; an empty value asks for nothing.
fn capability<'a>(document: &'a Document, name: &str) -> Option<&'a Value> {
    let given = document.runtime_config.as_ref().and_then(|config| config.get(name));
    given.filter(|value| !is_empty(value))
}

/// The capability `dns` beats the configuration's own key.
fn dns(document: &Document) -> Result<Dns, Failure> {
    match capability(document, "dns") {
        Some(given) => capabilities::dns(given),
        None => Ok(Dns { fields: document.dns.clone().unwrap_or_default() }),
    }
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

pub(crate) fn is_empty(value: &Value) -> bool {
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
