//! `millrace trace`: an imagined packet of a pod through the live tables.
//!
//! The packet is built as the pod's kernel would build it, parsed as a worker parses it, and decided by the very
//! function that decides packets; that function changes nothing, so a trace leaves no trace.

use std::net::IpAddr;

use etherparse::PacketBuilder;
use millrace_engine::clock::{Clock, Time};
use millrace_engine::drop_reason::DropReason;
use millrace_engine::packet::parse::parse;
use millrace_engine::slow_path::{self, Arrival, Reason, Verdict};
use millrace_engine::state::State;
use millrace_engine::tables::{PodPort, Port, PortRole, SegmentKind, Snapshot};

use crate::api::InspectFailure;
use crate::api::model::{TraceDrop, TraceProtocol, TraceReport, TraceRequest, TraceStep};

/// Source port of imagined packets: the first of the dynamic range.
const SOURCE_PORT: u16 = 49152;
const TTL: u8 = 64;

/// Follows the packet.
pub(super) fn trace(tables: &Snapshot, state: &State, request: &TraceRequest) -> Result<TraceReport, InspectFailure> {
    let (port, pod) = find(tables, request)?;
    let frame = imagine(tables, pod, request)?;
    let headers = parse(&frame, frame.len()).map_err(|reason| InspectFailure::Invalid(reason.sentence().to_owned()))?;
    let arrival = Arrival { port: port.index, tunnel: None, frame: &frame, headers: &headers, gso: None };
    let now: Time = Clock::Monotonic.now();
    let decision = slow_path::decide(tables, state, &arrival, now);
    let steps = decision.trail.steps().iter().map(|step| TraceStep {
        stage: step.stage.name().to_owned(),
        decision: step.reason.to_string(),
        object: object(&step.reason),
    });
    let (verdict, dropped) = verdict(tables, &decision.verdict);
    Ok(TraceReport {
        generation: tables.generation,
        packet: describe(request, headers.source_address()),
        steps: steps.collect(),
        verdict,
        drop: dropped.map(|reason| TraceDrop {
            reason: reason.name().to_owned(),
            sentence: reason.sentence().to_owned(),
            next_step: reason.next_step().to_owned(),
        }),
    })
}

fn find<'a>(tables: &'a Snapshot, request: &TraceRequest) -> Result<(&'a Port, &'a PodPort), InspectFailure> {
    let name = format!("{}/{}", request.from_namespace, request.from_pod);
    let found = tables.ports.iter().find_map(|port| match &port.role {
        PortRole::Pod(pod) if *port.name == *name => Some((port.as_ref(), pod)),
        _ => None,
    });
    found.ok_or_else(|| InspectFailure::NotFound(format!("no pod {name} is plugged in at this node")))
}

fn imagine(tables: &Snapshot, pod: &PodPort, request: &TraceRequest) -> Result<Vec<u8>, InspectFailure> {
    let to = request.to_address;
    let same_family = pod.addresses.iter().find(|address| address.is_ipv4() == to.is_ipv4());
    let from =
        same_family.ok_or_else(|| InspectFailure::Invalid(format!("the pod has no address to reach {to} from")))?;
    let gateway = match tables.segments.get(pod.segment).map(|segment| &segment.kind) {
        Some(SegmentKind::Routed(routed)) => routed.gateway_mac,
        _ => return Err(InspectFailure::Unavailable("the pod's segment is not routed".into())),
    };
    let ethernet = PacketBuilder::ethernet2(pod.mac.0, gateway.0);
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

/// The object a stage went by, if its reason names one.
fn object(reason: &Reason) -> String {
    match reason {
        Reason::Admitted(name, _) | Reason::Leaves(name) | Reason::Routed(_, name) => name.to_string(),
        Reason::AdmittedOutside(name, _) => name.to_string(),
        Reason::AdmittedDirect(name, ..) | Reason::Direct(name) => format!("node {name}"),
        Reason::AdmittedFrom(name, ..) | Reason::Encapsulated(_, name) => format!("node {name}"),
        Reason::Station(_, name) | Reason::HandedBack(_, name) => name.to_string(),
        Reason::Picked(picked) => picked.service.to_string(),
        Reason::Answered(_)
        | Reason::Flooded(_)
        | Reason::Opens
        | Reason::Known(_)
        | Reason::Related(_)
        | Reason::AwaitsFirst => String::new(),
        Reason::Allowed(_, list, _) => list.policy.name.to_string(),
        Reason::Denied(_, denial, _) | Reason::Finishes(_, denial) => {
            denial.lists().first().map_or_else(String::new, |list| list.policy.name.to_string())
        }
        Reason::Masqueraded(_) | Reason::PortTaken(_) | Reason::Dropped(_) | Reason::Rejected(..) => String::new(),
    }
}

fn verdict(tables: &Snapshot, verdict: &Verdict) -> (String, Option<DropReason>) {
    match verdict {
        Verdict::Forward(forward) => {
            let name = tables.ports.get(forward.egress).map_or_else(String::new, |port| port.name.to_string());
            (format!("forward to {name}"), None)
        }
        Verdict::Flood(_, copies) => (format!("flood to {}", copies.len()), None),
        Verdict::Reply(_) => ("answered by the gateway".to_owned(), None),
        Verdict::Hold(..) => ("held until its first fragment comes".to_owned(), None),
        Verdict::HandBack(_) => ("back to the host's kernel".to_owned(), None),
        Verdict::Drop(reason) | Verdict::Reject(reason, _) => (format!("drop {reason}"), Some(*reason)),
    }
}
