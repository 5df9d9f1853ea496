//! `millrace trace`: an imagined packet through the live tables, frames of a file, or packets that really come.
//!
//! Of packets that come (`--pod`, `--port`, `--dropped`) the very decisions are told that the workers carried out.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use millrace_engine::port::pcap::Capture;

use super::capture::{self, Selection};
use super::{Output, table};
use crate::api::model::{TraceFrameRequest, TraceProtocol, TraceRequest, TraceSource, to_hexadecimal};
use crate::support::Explainer;

/// Options of `millrace trace`.
#[derive(Debug, Args)]
pub(super) struct TraceOptions {
    /// Who sends: a pod of this node, the host itself, or a station outside whose packet comes by an uplink
    #[arg(long, value_name = "NAMESPACE/POD|host|uplink:INTERFACE,ADDRESS", value_parser = parse_source)]
    #[arg(requires = "to")]
    from: Option<TraceSource>,
    /// Where to; an IPv6 address with a port is written in brackets; icmp has no port
    #[arg(long, value_name = "ADDRESS[:PORT][/tcp|udp|sctp|icmp]", value_parser = parse_destination)]
    #[arg(requires = "from")]
    to: Option<Destination>,
    /// A capture (pcap or pcapng) whose frames come in by a port, named as in `show ports`
    #[arg(long, value_name = "PORT=FILE", value_parser = super::replay::input, conflicts_with = "from")]
    pcap: Option<(String, PathBuf)>,
    /// Ask a directory of `millrace support-bundle` instead of the agent: for --from and --to, and --pcap
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    #[command(flatten)]
    selection: Selection,
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
    match (&options.from, &options.to, &options.pcap) {
        (Some(from), Some(to), _) => {
            let request =
                TraceRequest { from: from.clone(), to_address: to.address, to_port: to.port, protocol: to.protocol };
            let report = match &options.bundle {
                Some(bundle) => Explainer::open(bundle)?.imagined(&request)?,
                None => options.output.client().trace(&request)?,
            };
            options.output.print(&report, table::trace)
        }
        (_, _, Some((port, file))) => trace_file(options, port, file),
        _ if options.bundle.is_some() => anyhow::bail!("a bundle explains --from and --to, or --pcap"),
        _ if options.selection.is_given() => trace_real(options),
        _ => anyhow::bail!("say which packet: --from and --to, --pcap, --pod, --port or --dropped"),
    }
}

/// Each frame of a capture, as if it came in now.
fn trace_file(options: &TraceOptions, port: &str, file: &Path) -> anyhow::Result<()> {
    let (client, capture) = (options.output.client(), Capture::open(file)?);
    let bundle = options.bundle.as_deref().map(Explainer::open).transpose()?;
    let wanted = usize::try_from(options.selection.packets).unwrap_or(usize::MAX);
    for frame in capture.frames().take(wanted) {
        let report = match &bundle {
            Some(bundle) => bundle.frame(port, frame.bytes)?,
            None => {
                let request = TraceFrameRequest { port: port.to_owned(), bytes: to_hexadecimal(frame.bytes) };
                client.trace_frame(&request)?
            }
        };
        options.output.print(&report, table::trace)?;
    }
    Ok(())
}

/// Packets that come: what was decided of each, and what left or dropped because of it.
fn trace_real(options: &TraceOptions) -> anyhow::Result<()> {
    let client = options.output.client();
    let begun = client.begin_capture(&options.selection.request())?;
    let ending = capture::follow(&client, begun.capture, |frame| options.output.print(frame, table::captured))?;
    writeln!(io::stderr(), "{} frames seen, {} lost: {}.", ending.frames, ending.lost, ending.reason)?;
    Ok(())
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
