//! What is told of a decision: verdict, each stage's reason with its object, each rewrite, the generation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use millrace_engine::drop_reason::DropReason;
use millrace_engine::edit::{Rewrite, Translation};
use millrace_engine::slow_path::{Decision, Reason, Verdict};
use millrace_engine::tables::Snapshot;

use crate::api::model::{TraceDrop, TraceReport, TraceStep};

/// Tells a decision about `packet`; `refused` says why it drops all the same.
pub(super) fn decided(
    tables: &Snapshot,
    packet: String,
    decision: &Decision,
    refused: Option<DropReason>,
) -> TraceReport {
    let steps = decision.trail.steps().iter().map(|step| TraceStep {
        stage: step.stage.name().to_owned(),
        decision: step.reason.to_string(),
        object: object(&step.reason),
    });
    let (verdict, dropped) = match refused {
        Some(reason) => (format!("drop {reason}"), Some(reason)),
        None => verdict(tables, &decision.verdict),
    };
    TraceReport {
        generation: tables.generation,
        packet,
        steps: steps.collect(),
        verdict,
        edits: if refused.is_some() { Vec::new() } else { edits(decision) },
        drop: dropped.map(drop_of),
    }
}

/// Tells of a packet that was refused before any stage saw it.
pub(super) fn refused(tables: &Snapshot, packet: String, reason: DropReason) -> TraceReport {
    TraceReport {
        generation: tables.generation,
        packet,
        verdict: format!("drop {reason}"),
        drop: Some(drop_of(reason)),
        ..TraceReport::default()
    }
}

fn drop_of(reason: DropReason) -> TraceDrop {
    TraceDrop {
        reason: reason.name().to_owned(),
        sentence: reason.sentence().to_owned(),
        next_step: reason.next_step().to_owned(),
    }
}

/// What is done to the packet, in the order in which it is done.
fn edits(decision: &Decision) -> Vec<String> {
    match &decision.verdict {
        Verdict::Forward(forward) => {
            of_forward(&forward.rewrite, &forward.translation, decision.dependencies.source.is_ipv4())
        }
        Verdict::HandBack(target) => vec![format!("destination mac {}", target.mac)],
        Verdict::Flood(..) | Verdict::Reply(_) | Verdict::Hold(..) | Verdict::Drop(_) | Verdict::Reject(..) => {
            Vec::new()
        }
    }
}

fn of_forward(rewrite: &Rewrite, translation: &Translation, ipv4: bool) -> Vec<String> {
    let mut edits = Vec::new();
    if rewrite.decapsulate {
        edits.push("tunnel's headers off".to_owned());
    }
    if rewrite.pop_tags > 0 {
        edits.push(format!("{} vlan tags off", rewrite.pop_tags));
    }
    for (side, end) in [("source", translation.source), ("destination", translation.destination)] {
        edits.extend(end.map(|(address, port)| format!("{side} {} port {port}", address_of(&address, ipv4))));
    }
    if let Some(macs) = rewrite.route {
        edits.push(format!("ttl one less, macs {} > {}", macs.source, macs.destination));
    }
    if let Some(tag) = rewrite.push_tag {
        edits.push(format!("vlan tag {} on", tag.identifier));
    }
    if let Some(outer) = rewrite.encapsulate {
        let (from, to, vni) = (outer.source, outer.destination, outer.vni);
        let macs = outer.macs;
        edits.push(format!(
            "vxlan {vni} on, {from} > {to}:{}, macs {} > {}",
            outer.udp_port, macs.source, macs.destination
        ));
    }
    edits
}

fn address_of(octets: &[u8; 16], ipv4: bool) -> IpAddr {
    match (ipv4, octets) {
        (true, [a, b, c, d, ..]) => IpAddr::V4(Ipv4Addr::new(*a, *b, *c, *d)),
        (false, octets) => IpAddr::V6(Ipv6Addr::from(*octets)),
    }
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
