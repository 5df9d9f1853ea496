//! What a runtime asks for under `runtimeConfig`: ports of the host, limits of bandwidth, the resolver.
//!
//! Shapes are those of the CONVENTIONS beside the specification. containerd writes the keys with a capital letter
//! (`HostPort`, `Servers`), since Go reads keys in either case; so they are found in either case here. What is asked for and
//! makes no sense is refused with code 7, naming the key.

use std::net::IpAddr;

use serde_json::{Map, Value};

use crate::protocol::{Bandwidth, PortMapping, RateLimit, Transport};
use crate::spec::{Dns, Failure, code};

/// Most ports of the host that one attachment may ask for; each becomes an entry at every address of the node.
pub const PORT_MAPPINGS: usize = 256;

/// Lowest and highest rate, in bits per second: those that Kubernetes takes in its annotations.
pub const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// A burst in bits from which on nobody has chosen it: containerd writes this number beside every rate, CRI-O a larger one.
const NO_BURST_CHOSEN: u64 = u32::MAX as u64;

/// The value of a key, written as given or in another case.
fn field<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let other = || object.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value);
    object.get(key).or_else(other).filter(|value| !value.is_null())
}

/// Reads `portMappings`; the same mapping twice counts once.
///
/// # Errors
/// Code 7, naming the entry.
pub fn port_mappings(value: &Value) -> Result<Vec<PortMapping>, Failure> {
    const KEY: &str = "runtimeConfig.portMappings";
    let list = value.as_array().ok_or_else(|| invalid(KEY, value, "it must be a list"))?;
    if list.len() > PORT_MAPPINGS {
        return Err(invalid(KEY, &list.len().into(), &format!("at most {PORT_MAPPINGS} mappings are possible")));
    }
    let mut mappings: Vec<PortMapping> = Vec::with_capacity(list.len());
    for (number, entry) in list.iter().enumerate() {
        let mapping = port_mapping(&format!("{KEY}[{number}]"), entry)?;
        let same_place = |other: &&PortMapping| {
            (other.host_port, other.transport, other.host_address)
                == (mapping.host_port, mapping.transport, mapping.host_address)
        };
        match mappings.iter().find(same_place) {
            Some(other) if *other == mapping => {}
            Some(other) => {
                let reason = format!("the same port of the host leads to {} already", other.container_port);
                return Err(invalid(&format!("{KEY}[{number}]"), entry, &reason));
            }
            None => mappings.push(mapping),
        }
    }
    Ok(mappings)
}

fn port_mapping(key: &str, entry: &Value) -> Result<PortMapping, Failure> {
    let fields = entry.as_object().ok_or_else(|| invalid(key, entry, "it must be an object"))?;
    let port = |name: &str| {
        let value = field(fields, name).unwrap_or(&Value::Null);
        let number = value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0);
        number.ok_or_else(|| invalid(&format!("{key}.{name}"), value, "it must be a port from 1 to 65535"))
    };
    let transport = match field(fields, "protocol") {
        None => Transport::Tcp,
        Some(value) => value.as_str().and_then(Transport::parse).ok_or_else(|| {
            invalid(&format!("{key}.protocol"), value, "it must be one of \"tcp\", \"udp\" and \"sctp\"")
        })?,
    };
    Ok(PortMapping {
        host_port: port("hostPort")?,
        container_port: port("containerPort")?,
        transport,
        host_address: host_address(key, fields)?,
    })
}

/// The unspecified address means all the node has. No kernel lets ::1 out by any interface but `lo`.
fn host_address(key: &str, fields: &Map<String, Value>) -> Result<Option<IpAddr>, Failure> {
    let Some(value) = field(fields, "hostIP") else { return Ok(None) };
    let wrong = |reason: &str| invalid(&format!("{key}.hostIP"), value, reason);
    let text = value.as_str().ok_or_else(|| wrong("it must be an address"))?;
    if text.is_empty() {
        return Ok(None);
    }
    let address: IpAddr = text.parse().map_err(|_| wrong("it must be an address"))?;
    if address.is_ipv6() && address.is_loopback() {
        return Err(wrong("::1 cannot be served"));
    }
    Ok(Some(address).filter(|address| !address.is_unspecified()))
}

/// Reads `bandwidth`; a rate of 0 or none limits nothing.
///
/// # Errors
/// Code 7, naming the key.
pub fn bandwidth(value: &Value) -> Result<Bandwidth, Failure> {
    const KEY: &str = "runtimeConfig.bandwidth";
    let fields = value.as_object().ok_or_else(|| invalid(KEY, value, "it must be an object"))?;
    Ok(Bandwidth {
        ingress: rate_limit(KEY, fields, "ingressRate", "ingressBurst")?,
        egress: rate_limit(KEY, fields, "egressRate", "egressBurst")?,
    })
}

fn rate_limit(
    key: &str,
    fields: &Map<String, Value>,
    rate_name: &str,
    burst_name: &str,
) -> Result<Option<RateLimit>, Failure> {
    let number = |name: &str| {
        let value = field(fields, name).unwrap_or(&Value::Null);
        let number = if value.is_null() { Some(0) } else { value.as_u64() };
        number.ok_or_else(|| invalid(&format!("{key}.{name}"), value, "it must be a whole number of bits"))
    };
    let (rate, burst) = (number(rate_name)?, number(burst_name)?);
    if rate == 0 {
        let reason = format!("{rate_name} must be set, too");
        let alone = || invalid(&format!("{key}.{burst_name}"), &burst.into(), &reason);
        return if burst == 0 { Ok(None) } else { Err(alone()) };
    }
    if !RATES.contains(&rate) {
        let reason = format!("it must be {} to {} bits per second", RATES.start(), RATES.end());
        return Err(invalid(&format!("{key}.{rate_name}"), &rate.into(), &reason));
    }
    let burst_bits = Some(burst).filter(|burst| (1..NO_BURST_CHOSEN).contains(burst));
    Ok(Some(RateLimit { bits_per_second: rate, burst_bits }))
}

/// Reads `dns`, whose fields have other names than the result's: lists of texts, and the text `domain`.
///
/// # Errors
/// Code 7, naming the key.
pub fn dns(value: &Value) -> Result<Dns, Failure> {
    const KEY: &str = "runtimeConfig.dns";
    let given = value.as_object().ok_or_else(|| invalid(KEY, value, "it must be an object"))?;
    let mut fields = Map::new();
    for (from, to) in [("servers", "nameservers"), ("searches", "search"), ("options", "options"), ("domain", "domain")]
    {
        let Some(value) = field(given, from).filter(|value| !crate::configuration::is_empty(value)) else { continue };
        let fits = if from == "domain" {
            value.is_string()
        } else {
            value.as_array().is_some_and(|list| list.iter().all(Value::is_string))
        };
        if !fits {
            let reason = if from == "domain" { "it must be a text" } else { "it must be a list of texts" };
            return Err(invalid(&format!("{KEY}.{from}"), value, reason));
        }
        fields.insert(to.to_owned(), value.clone());
    }
    Ok(Dns { fields })
}

fn invalid(key: &str, value: &Value, reason: &str) -> Failure {
    let message = format!("{key} {value} of the network configuration is invalid: {reason}");
    Failure::new(code::INVALID_CONFIGURATION, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ports_are_read_as_every_runtime_writes_them() {
        let plain = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"}]);
        let capital = json!([{"HostPort": 8080, "ContainerPort": 80, "Protocol": "TCP", "HostIP": ""},
            {"HostPort": 53, "ContainerPort": 53, "Protocol": "UDP", "HostIP": "192.0.2.1"},
            {"HostPort": 8080, "ContainerPort": 80, "HostIP": "0.0.0.0"}]);
        let mapping = |host_port, container_port, transport, host_address: Option<&str>| PortMapping {
            host_port,
            container_port,
            transport,
            host_address: host_address.map(|text| text.parse().expect("address")),
        };
        let expected =
            vec![mapping(8080, 80, Transport::Tcp, None), mapping(53, 53, Transport::Udp, Some("192.0.2.1"))];
        assert_eq!(port_mappings(&plain).expect("read"), expected);
        assert_eq!(port_mappings(&capital).expect("read"), expected);
    }

    #[test]
    fn a_wrong_port_is_named() {
        let right = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
        for (key, value) in [
            ("hostPort", json!(0)),
            ("hostPort", json!(65_536)),
            ("hostPort", json!(-1)),
            ("containerPort", Value::Null),
            ("containerPort", json!("80")),
            ("protocol", json!("icmp")),
            ("hostIP", json!("node")),
            ("hostIP", json!("::1")),
        ] {
            let mut entry = right.clone();
            entry[key] = value;
            let failure = port_mappings(&json!([right, entry])).expect_err("refused");
            assert_eq!(failure.code, code::INVALID_CONFIGURATION);
            assert!(failure.message.contains(&format!("portMappings[1].{key}")), "{failure}");
        }
        let mut other = right.clone();
        other["containerPort"] = 81.into();
        let failure = port_mappings(&json!([right, other])).expect_err("two pods' ports at one of the host");
        assert!(failure.message.contains("portMappings[1]") && failure.message.contains("80"), "{failure}");
        let many = Value::from(vec![right; PORT_MAPPINGS + 1]);
        assert!(port_mappings(&many).is_err());
    }

    #[test]
    fn rates_have_a_range_and_bursts_may_be_nobodys() {
        let limit = |bits_per_second, burst_bits| Some(RateLimit { bits_per_second, burst_bits });
        for (given, expected) in [
            (json!({"ingressRate": 1_000_000, "ingressBurst": 80_000}), (limit(1_000_000, Some(80_000)), None)),
            (json!({"EgressRate": 1_000, "EgressBurst": 4_294_967_295_u64}), (None, limit(1_000, None))),
            (json!({"egressRate": 1_000, "egressBurst": 34_359_738_359_u64}), (None, limit(1_000, None))),
            (json!({"egressRate": 5_000}), (None, limit(5_000, None))),
            (json!({"ingressRate": 0, "egressRate": null}), (None, None)),
        ] {
            let read = bandwidth(&given).expect("read");
            assert_eq!((read.ingress, read.egress), expected, "{given}");
        }
        for (given, key) in [
            (json!({"ingressRate": 999, "ingressBurst": 1}), "ingressRate"),
            (json!({"egressRate": 1_000_000_000_000_001_u64}), "egressRate"),
            (json!({"egressBurst": 5}), "egressBurst"),
            (json!({"egressRate": -5}), "egressRate"),
            (json!({"ingressRate": "10M"}), "ingressRate"),
        ] {
            let failure = bandwidth(&given).expect_err("refused");
            assert!(failure.message.contains(&format!("bandwidth.{key}")), "{failure}");
        }
    }
}
