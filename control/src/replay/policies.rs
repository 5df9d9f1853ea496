//! What `millrace policy` asks, of captures instead of a live node.
//!
//! Each frame goes through the node as in a replay. Before it does, the slow path is asked twice what it decides of the
//! frame: by the tables of the objects, and by those of the proposal. A flow is named by its connection where the frame
//! opens one or belongs to one, else by the frame itself; its first difference is told.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_engine::packet::Headers;
use millrace_engine::slow_path::{Decision, Lesson, Stage};
use millrace_engine::state::Tuple;
use millrace_engine::tables::{SegmentIndex, Snapshot};

use super::node::ReplayNode;
use super::{Arrival, ReplayError, ReplayOptions, each_frame, pass};
use crate::api::model::{FlowVerdictReport, PolicyDiffReport, PolicyReachReport};
use crate::policy_preview::diff::{Differences, FlowTuples};
use crate::policy_preview::reach::{self, Question};
use crate::policy_preview::{Names, Proposal, verdict};
use crate::problem::Problem;

/// A tuple without its direction, so that both directions of a flow are one.
type FlowKey = (u8, [([u8; 16], u16); 2]);

/// Flows of the captures whose verdict would change with the proposal; at most `limit` are listed.
///
/// # Errors
/// See [`ReplayError`].
pub fn diff(
    options: &ReplayOptions,
    proposal: &Proposal,
    limit: usize,
) -> Result<(PolicyDiffReport, Vec<Problem>), ReplayError> {
    let (mut proposed, mut names, mut problems) = (Snapshot::default(), Names::default(), Vec::new());
    let mut flows = HashMap::<FlowKey, Option<Change>>::new();
    let mut order = Vec::new();
    each_frame(options, |node, arrival| {
        let Some(arrival) = arrival else {
            names = Names::of(&node.cluster);
            (proposed, problems) = proposal.tables(&node.tables(), &node.cluster, &node.local)?;
            return Ok(());
        };
        if let Some((key, change)) = compare(node, &proposed, arrival) {
            let known = flows.entry(key).or_insert_with(|| {
                order.push(key);
                None
            });
            if known.is_none() {
                *known = change;
            }
        }
        pass(node, std::slice::from_ref(arrival)).map(drop)
    })?;
    let mut differences = Differences::new(&names, limit);
    for key in order {
        differences.judged();
        if let Some(Some((tuples, before, after))) = flows.remove(&key) {
            differences.changing(&tuples, "captured", before, after);
        }
    }
    Ok((differences.into_report(), problems))
}

/// A flow, what is said of it now, and what would be.
type Change = (FlowTuples, FlowVerdictReport, FlowVerdictReport);

/// The flow a frame belongs to, and whether its verdict would change; `None` for what is no packet of a flow.
fn compare(node: &mut ReplayNode, proposed: &Snapshot, arrival: &Arrival<'_>) -> Option<(FlowKey, Option<Change>)> {
    let tables = node.tables();
    let mut decide = |tables: &Snapshot| node.decide(tables, arrival.port, arrival.bytes)?.ok();
    let (headers, before) = decide(&tables)?;
    let (_, after) = decide(proposed)?;
    let tuples = of_lesson(node, &before).or_else(|| of_lesson(node, &after)).or_else(|| of_headers(&headers))?;
    let said = |decision: &Decision| {
        verdict(decision.trail.steps().iter().filter(|step| step.stage == Stage::Policy).map(|step| &step.reason))
    };
    let (was, would_be) = (said(&before), said(&after));
    let change = (was.allowed != would_be.allowed).then_some((tuples, was, would_be));
    Some((key(&tuples.original), change))
}

fn key(tuple: &Tuple) -> FlowKey {
    let mut ends = [(tuple.source, tuple.ports[0]), (tuple.destination, tuple.ports[1])];
    ends.sort_unstable();
    (tuple.protocol, ends)
}

fn of_lesson(node: &ReplayNode, decision: &Decision) -> Option<FlowTuples> {
    match decision.lesson? {
        Lesson::Open(new) => Some(FlowTuples { original: new.original, reply: new.reply }),
        Lesson::Advance { connection, .. } => node.connection(connection).as_ref().map(FlowTuples::from),
        Lesson::Station { .. } | Lesson::Wants { .. } => None,
    }
}

fn of_headers(headers: &Headers) -> Option<FlowTuples> {
    let is_ip =
        matches!(headers.network, millrace_engine::packet::Network::Ipv4 | millrace_engine::packet::Network::Ipv6);
    let original = Tuple::of(headers, SegmentIndex::default());
    is_ip.then(|| FlowTuples { original, reply: original.mirrored() })
}

/// Who may reach whom by the objects; with captures also the rules that no captured flow used.
///
/// # Errors
/// See [`ReplayError`].
pub fn reach(options: &ReplayOptions, question: &Question) -> Result<PolicyReachReport, ReplayError> {
    let (mut tables, mut report) = (Arc::default(), PolicyReachReport::default());
    each_frame(options, |node, arrival| {
        if let Some(arrival) = arrival {
            return pass(node, std::slice::from_ref(arrival)).map(drop);
        }
        tables = node.tables();
        report = reach::reach(&node.cluster, &node.local, question).map_err(ReplayError::Question)?;
        Ok(())
    })?;
    report.unused_rules = (!options.inputs.is_empty()).then(|| reach::unused(&tables));
    Ok(report)
}
