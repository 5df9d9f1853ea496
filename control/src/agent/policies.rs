//! `show policies`: what judges the pods of this node, in words, out of the tables in force.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use millrace_engine::packet::parse::protocol;
use millrace_engine::tables::policy::{Direction, DirectionPolicy, Peers, PodPolicy, PortRange, Ports, Rule, RuleList};
use millrace_engine::tables::{PortRole, Snapshot};

use crate::api::InspectFailure;
use crate::api::model::{PodPolicyReport, PoliciesReport, PolicyDropReport, PolicyReport, PolicyRuleReport};

/// The policies that judge any pod here, or those of one pod.
pub(super) fn policies(tables: &Snapshot, pod: Option<&str>) -> Result<PoliciesReport, InspectFailure> {
    let mut lists: BTreeMap<(Place, String), (&RuleList, u32)> = BTreeMap::new();
    let mut found = None;
    for port in tables.ports.iter().filter(|port| matches!(port.role, PortRole::Pod(_))) {
        if pod.is_some_and(|pod| pod != &*port.name) {
            continue;
        }
        let policy = tables.policy.pods.get(port.index);
        for (place, list) in lists_of(policy) {
            lists.entry((place, list.policy.name.to_string())).or_insert((list, 0)).1 += 1;
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
    let report = |((place, name), (list, pods)): ((Place, String), (&RuleList, u32))| PolicyReport {
        policy: name,
        direction: place.0.name().to_owned(),
        tier: place.1.to_owned(),
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
        for (place, list) in lists_of(policy).into_iter().filter(|(place, _)| place.0 == direction) {
            let frames = list.counts.denied.load(Ordering::Relaxed);
            denied.insert((place.1, list.policy.name.to_string()), frames);
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

/// A direction and a tier, in the order in which they are shown.
type Place = (Direction, &'static str);

fn lists_of(policy: &PodPolicy) -> Vec<(Place, &RuleList)> {
    let mut lists = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        let DirectionPolicy { admin, isolating, baseline, .. } = policy.direction(direction);
        let tiers: [(&'static str, &[Arc<RuleList>]); 3] =
            [("Admin", admin), ("NetworkPolicy", isolating), ("Baseline", baseline)];
        for (tier, tier_lists) in tiers {
            lists.extend(tier_lists.iter().map(|list| ((direction, tier), list.as_ref())));
        }
    }
    lists
}

fn state(policy: &DirectionPolicy) -> &'static str {
    match policy {
        DirectionPolicy { unknown: true, .. } => "closed until the pod's object is known",
        DirectionPolicy { isolating, .. } if !isolating.is_empty() => "isolated: what no rule allows is denied",
        policy if policy.is_open() => "open: no policy selects the pod",
        _ => "open, but for rules of cluster policies",
    }
}

fn rules(list: &RuleList) -> Vec<PolicyRuleReport> {
    let report = |(place, rule): (usize, &Rule)| PolicyRuleReport {
        number: rule.number,
        name: rule.name.as_deref().unwrap_or_default().to_owned(),
        action: rule.action.name().to_owned(),
        peers: peers(&rule.peers),
        ports: ports(&rule.ports),
        used: list.counts.used.get(place).map_or(0, |used| used.load(Ordering::Relaxed)),
    };
    list.rules.iter().enumerate().map(report).collect()
}

fn peers(peers: &Peers) -> Vec<String> {
    match peers {
        Peers::Any => vec!["everybody".to_owned()],
        Peers::In { pods, networks } if pods.is_empty() && networks.is_empty() => vec!["nobody".to_owned()],
        Peers::In { pods, networks } => pods.iter().chain(networks).map(|set| set.text().to_owned()).collect(),
    }
}

fn ports(ports: &Ports) -> Vec<String> {
    match ports {
        Ports::Any => vec!["all".to_owned()],
        Ports::In { ranges, named } => {
            let named = named.iter().map(|(name, number)| match number {
                Some(number) => format!("{}/{name}", protocol_name(*number)),
                None => format!("named {name}"),
            });
            ranges.iter().map(range).chain(named).collect()
        }
    }
}

fn range(range: &PortRange) -> String {
    let protocol = protocol_name(range.protocol);
    match (range.first, range.last) {
        (0, u16::MAX) => format!("{protocol}/all"),
        (first, last) if first == last => format!("{protocol}/{first}"),
        (first, last) => format!("{protocol}/{first}-{last}"),
    }
}

fn protocol_name(number: u8) -> &'static str {
    match number {
        protocol::TCP => "tcp",
        protocol::UDP => "udp",
        protocol::SCTP => "sctp",
        _ => "other",
    }
}
