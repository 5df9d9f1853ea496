//! An imagined packet of a pod, of the host or from outside, built as the sender's kernel would build it.

use std::net::IpAddr;

use etherparse::PacketBuilder;
use millrace_engine::clock::Time;
use millrace_engine::packet::Mac;
use millrace_engine::packet::parse::parse;
use millrace_engine::slow_path::{self, Arrival};
use millrace_engine::state::State;
use millrace_engine::tables::{Port, PortRole, RoutedSegment, SegmentIndex, SegmentKind, Snapshot};

use super::report;
use crate::api::InspectFailure;
use crate::api::model::{TraceProtocol, TraceReport, TraceRequest, TraceSource};

/// Source port of imagined packets: the first of the dynamic range.
const SOURCE_PORT: u16 = 49152;
const TTL: u8 = 64;
/// MAC address of imagined stations outside: locally administered, and nobody's.
const STATION: Mac = Mac([0x02, 0, 0x5e, 0, 0, 0xfe]);

/// Follows the packet.
///
/// # Errors
/// When there is no such sender, or it cannot send this.
pub fn imagined(
    tables: &Snapshot,
    state: &State,
    request: &TraceRequest,
    now: Time,
) -> Result<TraceReport, InspectFailure> {
    let sender = Sender::find(tables, request)?;
    let (port, frame) = (sender.port, imagine(&sender, request)?);
    let headers = parse(&frame, frame.len()).map_err(|reason| InspectFailure::Invalid(reason.sentence().to_owned()))?;
    let arrival = Arrival { port: port.index, tunnel: None, frame: &frame, headers: &headers, gso: None };
    let decision = slow_path::decide(tables, state, &arrival, now);
    Ok(report::decided(tables, describe(request, headers.source_address()), &decision, None))
}

/// Who sends, as far as the packet shows it.
struct Sender<'a> {
    port: &'a Port,
    mac: Mac,
    address: IpAddr,
    /// Station that the frame is sent to.
    gateway: Mac,
}

impl<'a> Sender<'a> {
    fn find(tables: &'a Snapshot, request: &TraceRequest) -> Result<Self, InspectFailure> {
        let (to, same_family) =
            (request.to_address, |address: &&IpAddr| address.is_ipv4() == request.to_address.is_ipv4());
        let none = || InspectFailure::Invalid(format!("the sender has no address to reach {to} from"));
        let port_of = |wanted: &dyn Fn(&Port) -> bool| tables.ports.iter().map(AsRef::as_ref).find(|port| wanted(port));
        match &request.from {
            TraceSource::Pod { namespace, name } => {
                let name = format!("{namespace}/{name}");
                let port = port_of(&|port| matches!(port.role, PortRole::Pod(_)) && *port.name == *name);
                let absent = || InspectFailure::NotFound(format!("no pod {name} is plugged in at this node"));
                let port = port.ok_or_else(absent)?;
                let PortRole::Pod(pod) = &port.role else { return Err(absent()) };
                let address = *pod.addresses.iter().find(same_family).ok_or_else(none)?;
                Ok(Self { port, mac: pod.mac, address, gateway: routed(tables, pod.segment)?.gateway_mac })
            }
            TraceSource::Host => {
                let port = port_of(&|port| matches!(port.role, PortRole::Host(_)));
                let absent = || InspectFailure::NotFound("the host has no port of its own at this node".into());
                let port = port.ok_or_else(absent)?;
                let PortRole::Host(host) = &port.role else { return Err(absent()) };
                let routed = routed(tables, host.segment)?;
                // Its routes prefer its address among pods.
                let preferred = routed.router_addresses.iter().find(same_family);
                let address = *preferred.or_else(|| host.addresses.iter().find(same_family)).ok_or_else(none)?;
                Ok(Self { port, mac: host.mac, address, gateway: routed.gateway_mac })
            }
            TraceSource::Outside { uplink, address } => {
                let port = port_of(&|port| matches!(port.role, PortRole::Uplink(_)) && *port.name == **uplink);
                let absent = || InspectFailure::NotFound(format!("no uplink {uplink} at this node"));
                let port = port.ok_or_else(absent)?;
                let PortRole::Uplink(own) = &port.role else { return Err(absent()) };
                Ok(Self { port, mac: STATION, address: *address, gateway: own.mac })
            }
        }
    }
}

fn routed(tables: &Snapshot, segment: SegmentIndex) -> Result<&RoutedSegment, InspectFailure> {
    match tables.segments.get(segment).map(|segment| &segment.kind) {
        Some(SegmentKind::Routed(routed)) => Ok(routed),
        _ => Err(InspectFailure::Unavailable("the sender's segment is not routed".into())),
    }
}

fn imagine(sender: &Sender<'_>, request: &TraceRequest) -> Result<Vec<u8>, InspectFailure> {
    let (from, to) = (sender.address, request.to_address);
    let ethernet = PacketBuilder::ethernet2(sender.mac.0, sender.gateway.0);
    let ip = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), TTL),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), TTL),
        _ => return Err(InspectFailure::Invalid("source and destination are of different families".into())),
    };
    let mut frame = Vec::new();
    let written = match request.protocol {
        TraceProtocol::Tcp => ip.tcp(SOURCE_PORT, request.to_port, 1, 64_240).syn().write(&mut frame, &[]),
        TraceProtocol::Udp => ip.udp(SOURCE_PORT, request.to_port).write(&mut frame, &[0; 8]),
        TraceProtocol::Icmp if to.is_ipv4() => ip.icmpv4_echo_request(1, 1).write(&mut frame, &[0; 8]),
        TraceProtocol::Icmp => ip.icmpv6_echo_request(1, 1).write(&mut frame, &[0; 8]),
        TraceProtocol::Sctp => {
            // The common header (RFC 9260 section 3.1) and the head of an INIT chunk; its checksum is not looked at.
            let mut init = Vec::with_capacity(32);
            init.extend_from_slice(&SOURCE_PORT.to_be_bytes());
            init.extend_from_slice(&request.to_port.to_be_bytes());
            init.extend_from_slice(&[0; 8]);
            init.extend_from_slice(&[1, 0, 0, 20]);
            init.extend_from_slice(&[0; 16]);
            ip.write(&mut frame, etherparse::IpNumber::SCTP, &init)
        }
    };
    written.map_err(|error| InspectFailure::Invalid(error.to_string()))?;
    Ok(frame)
}

fn describe(request: &TraceRequest, from: IpAddr) -> String {
    let protocol = request.protocol.text();
    let place = |address: IpAddr, port: u16| match (request.protocol, address) {
        (TraceProtocol::Icmp, address) => address.to_string(),
        (_, IpAddr::V4(address)) => format!("{address}:{port}"),
        (_, IpAddr::V6(address)) => format!("[{address}]:{port}"),
    };
    format!("{protocol} {} > {}", place(from, SOURCE_PORT), place(request.to_address, request.to_port))
}
