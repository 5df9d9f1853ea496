//! `millrace trace`: an imagined packet through the live tables.

use std::net::IpAddr;

use clap::Args;

use super::{Output, table};
use crate::api::model::{TraceProtocol, TraceRequest, TraceSource};

/// Options of `millrace trace`.
#[derive(Debug, Args)]
pub(super) struct TraceOptions {
    /// Who sends: a pod of this node, the host itself, or a station outside whose packet comes by an uplink
    #[arg(long, value_name = "NAMESPACE/POD|host|uplink:INTERFACE,ADDRESS", value_parser = parse_source)]
    from: TraceSource,
    /// Where to; an IPv6 address with a port is written in brackets; icmp has no port
    #[arg(long, value_name = "ADDRESS[:PORT][/tcp|udp|sctp|icmp]", value_parser = parse_destination)]
    to: Destination,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Destination {
    address: IpAddr,
    port: u16,
    protocol: TraceProtocol,
}

pub(super) fn run(options: &TraceOptions) -> anyhow::Result<()> {
    let request = TraceRequest {
        from: options.from.clone(),
        to_address: options.to.address,
        to_port: options.to.port,
        protocol: options.to.protocol,
    };
    options.output.print(&options.output.client().trace(&request)?, table::trace)
}

fn parse_source(text: &str) -> Result<TraceSource, &'static str> {
    if text == "host" {
        return Ok(TraceSource::Host);
    }
    if let Some(outside) = text.strip_prefix("uplink:") {
        let (uplink, address) = outside.split_once(',').unwrap_or((outside, ""));
        let address = address.parse().map_err(|_| "a station outside is written uplink:INTERFACE,ADDRESS")?;
        return Ok(TraceSource::Outside { uplink: uplink.to_owned(), address });
    }
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(TraceSource::Pod { namespace: namespace.to_owned(), name: name.to_owned() })
        }
        _ => Err("a pod is written NAMESPACE/POD, the node itself host, a station outside uplink:INTERFACE,ADDRESS"),
    }
}

fn parse_destination(text: &str) -> Result<Destination, &'static str> {
    let (socket, protocol) = match text.rsplit_once('/') {
        None => (text, TraceProtocol::Tcp),
        Some((socket, "tcp")) => (socket, TraceProtocol::Tcp),
        Some((socket, "udp")) => (socket, TraceProtocol::Udp),
        Some((socket, "sctp")) => (socket, TraceProtocol::Sctp),
        Some((socket, "icmp")) => (socket, TraceProtocol::Icmp),
        Some(_) => return Err("the protocol is tcp, udp, sctp or icmp"),
    };
    let bare = socket.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(socket);
    match (bare.parse::<IpAddr>(), socket.parse::<std::net::SocketAddr>(), protocol) {
        (Ok(address), _, TraceProtocol::Icmp) => Ok(Destination { address, port: 0, protocol }),
        (_, Ok(_), TraceProtocol::Icmp) => Err("icmp has no ports: write ADDRESS/icmp"),
        (_, Ok(socket), _) => Ok(Destination { address: socket.ip(), port: socket.port(), protocol }),
        (Ok(_), _, _) => Err("the port is missing: write ADDRESS:PORT or [ADDRESS]:PORT"),
        (Err(_), Err(_), _) => Err("this is no IP address with a port, such as 10.1.0.5:80 or [fd00::5]:80"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_or_refused_with_the_reason() {
        for (text, address, port, protocol) in [
            ("10.1.0.5:80", "10.1.0.5", 80, TraceProtocol::Tcp),
            ("10.1.0.5:53/udp", "10.1.0.5", 53, TraceProtocol::Udp),
            ("[fd00::5]:80/sctp", "fd00::5", 80, TraceProtocol::Sctp),
            ("fd00::5/icmp", "fd00::5", 0, TraceProtocol::Icmp),
            ("[fd00::5]/icmp", "fd00::5", 0, TraceProtocol::Icmp),
        ] {
            let expected = Destination { address: address.parse().expect("an address"), port, protocol };
            assert_eq!(parse_destination(text), Ok(expected), "{text}");
        }
        for text in ["10.1.0.5", "fd00::5", "10.1.0.5:80/icmp", "10.1.0.5:80/ip", "web:80", "10.1.0.5:99999", ""] {
            assert!(parse_destination(text).is_err(), "{text}");
        }
    }

    #[test]
    fn senders_are_pods_the_host_and_stations_outside() {
        let pod = TraceSource::Pod { namespace: "default".into(), name: "web-0".into() };
        let outside = |address: &str| TraceSource::Outside {
            uplink: "eth0".into(),
            address: address.parse().expect("an address"),
        };
        for (text, expected) in [
            ("default/web-0", pod),
            ("host", TraceSource::Host),
            ("uplink:eth0,198.51.100.7", outside("198.51.100.7")),
            ("uplink:eth0,2001:db8::7", outside("2001:db8::7")),
        ] {
            assert_eq!(parse_source(text), Ok(expected), "{text}");
        }
        for text in ["web-0", "/web-0", "default/", "a/b/c", "uplink:eth0", "uplink:eth0,", "uplink:198.51.100.7"] {
            assert!(parse_source(text).is_err(), "{text}");
        }
    }
}
