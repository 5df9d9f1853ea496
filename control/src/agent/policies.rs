//! `show policies`: what judges the pods of this node, in words, out of the tables in force.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use millrace_engine::tables::policy::{Direction, DirectionPolicy, RuleList};
use millrace_engine::tables::{PortRole, Snapshot};

use crate::api::InspectFailure;
use crate::api::model::{PodPolicyReport, PoliciesReport, PolicyDropReport, PolicyReport};
use crate::policy_preview::words::{Place, lists_of, rules};

/// The policies that judge any pod here, or those of one pod.
pub(super) fn policies(tables: &Snapshot, pod: Option<&str>) -> Result<PoliciesReport, InspectFailure> {
    let mut lists: BTreeMap<(Place, usize, String), (&RuleList, u32)> = BTreeMap::new();
    let mut found = None;
    for port in tables.ports.iter().filter(|port| matches!(port.role, PortRole::Pod(_))) {
        if pod.is_some_and(|pod| pod != &*port.name) {
            continue;
        }
        let policy = tables.policy.pods.get(port.index);
        for (at, (place, list)) in lists_of(policy).into_iter().enumerate() {
            // Of one pod in the order in which they are asked, of many by name.
            let at = if pod.is_some() { at } else { 0 };
            lists.entry((place, at, list.policy.name.to_string())).or_insert((list, 0)).1 += 1;
        }
        found = pod.map(|pod| PodPolicyReport {
            pod: pod.to_owned(),
            ingress: state(&policy.ingress).to_owned(),
            egress: state(&policy.egress).to_owned(),
        });
    }
    if let (Some(pod), None) = (pod, &found) {
        return Err(InspectFailure::NotFound(format!("no pod {pod} is plugged in at this node")));
    }
    let report = |((place, _, name), (list, pods)): ((Place, usize, String), (&RuleList, u32))| PolicyReport {
        policy: name,
        direction: place.direction.name().to_owned(),
        tier: place.tier.name().to_owned(),
        pods,
        denied_packets: list.counts.denied.load(Ordering::Relaxed),
        rules: rules(list),
    };
    Ok(PoliciesReport { pod: found, policies: lists.into_iter().map(report).collect() })
}

/// Packets that each policy denied in a direction, the most first.
pub(super) fn denied(tables: &Snapshot, direction: Direction) -> Vec<PolicyDropReport> {
    let mut denied = BTreeMap::new();
    for (_, policy) in tables.policy.pods.iter() {
        for (place, list) in lists_of(policy).into_iter().filter(|(place, _)| place.direction == direction) {
            let frames = list.counts.denied.load(Ordering::Relaxed);
            denied.insert((place.tier, list.policy.name.to_string()), frames);
        }
    }
    let mut reports: Vec<PolicyDropReport> = denied
        .into_iter()
        .filter(|(_, frames)| *frames > 0)
        .map(|((_, policy), frames)| PolicyDropReport { policy, frames })
        .collect();
    reports.sort_by(|one, two| two.frames.cmp(&one.frames).then_with(|| one.policy.cmp(&two.policy)));
    reports
}

fn state(policy: &DirectionPolicy) -> &'static str {
    match policy {
        DirectionPolicy { unknown: true, .. } => "closed until the pod's object is known",
        DirectionPolicy { isolating, .. } if !isolating.is_empty() => "isolated: what no rule allows is denied",
        policy if policy.is_open() => "open: no policy selects the pod",
        _ => "open, but for rules of cluster policies",
    }
}
