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
        DirectionPolicy { unknown: Some(_), .. } => "closed until the labels of the pod and its namespace are known",
        DirectionPolicy { isolating, .. } if !isolating.is_empty() => "isolated: what no rule allows is denied",
        policy if policy.is_open() => "open: no policy selects the pod",
        _ => "open, but for rules of cluster policies",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use millrace_engine::packet::{Mac, PortIndex};
    use millrace_engine::tables::policy::{Action, Peers, PodPolicy, PolicyInfo, Ports, Rule, RuleCounts};
    use millrace_engine::tables::{PodPort, Port, SegmentIndex};

    use super::*;

    fn list(name: &str) -> Arc<RuleList> {
        let policy = PolicyInfo { name: name.into(), keeps_established: false, logs_denied: false };
        let rule = Rule { number: 1, name: None, action: Action::Accept, peers: Peers::Any, ports: Ports::Any };
        Arc::new(RuleList { policy, rules: vec![rule], counts: Arc::new(RuleCounts::new(1)) })
    }

    /// `web` is isolated by `default/shared` and judged by two of the tier Admin; `new` is not known yet.
    fn tables() -> Snapshot {
        let mut tables = Snapshot::default();
        for (index, name) in [(1, "default/web"), (2, "default/new"), (3, "default/free")] {
            let pod = PodPort { segment: SegmentIndex(0), mac: Mac([2, 0, 0, 0, 0, 1]), addresses: Vec::new() };
            let port = Port { index: PortIndex(index), name: name.into(), mtu: 1450, role: PortRole::Pod(pod) };
            tables.ports.insert(port);
        }
        let shared = list("default/shared");
        shared.counts.count_denied();
        let ingress = DirectionPolicy {
            admin: vec![list("z-first"), list("a-second")],
            isolating: [Arc::clone(&shared)].into(),
            ..DirectionPolicy::default()
        };
        let web =
            PodPolicy { ingress, egress: DirectionPolicy { admin: vec![list("out")], ..DirectionPolicy::default() } };
        let closed = DirectionPolicy { unknown: Some([shared].into()), ..DirectionPolicy::default() };
        let new = PodPolicy { ingress: closed, egress: DirectionPolicy::default() };
        tables.policy.pods.set(PortIndex(1), Some(Arc::new(web)));
        tables.policy.pods.set(PortIndex(2), Some(Arc::new(new)));
        tables
    }

    #[test]
    fn a_pod_has_its_policies_in_the_order_in_which_they_are_asked() {
        let report = policies(&tables(), Some("default/web")).expect("a report");
        let told: Vec<String> =
            report.policies.iter().map(|of| format!("{} {} {}", of.direction, of.tier, of.policy)).collect();
        let expected = [
            "ingress Admin z-first",
            "ingress Admin a-second",
            "ingress NetworkPolicy default/shared",
            "egress Admin out",
        ];
        assert_eq!(told, expected);
        let states = |pod: &str| {
            let pod = policies(&tables(), Some(pod)).expect("a report").pod.expect("the pod");
            [pod.ingress, pod.egress]
        };
        assert_eq!(states("default/web")[0], "isolated: what no rule allows is denied");
        assert_eq!(states("default/web")[1], "open, but for rules of cluster policies");
        assert_eq!(states("default/new")[0], "closed until the labels of the pod and its namespace are known");
        assert_eq!(states("default/free"), ["open: no policy selects the pod"; 2]);
        assert!(policies(&tables(), Some("default/none")).is_err());
    }

    #[test]
    fn drops_are_told_by_policy_and_direction() {
        let of =
            |direction| denied(&tables(), direction).into_iter().map(|of| (of.policy, of.frames)).collect::<Vec<_>>();
        assert_eq!(of(Direction::Ingress), [("default/shared".to_owned(), 1)]);
        assert_eq!(of(Direction::Egress), []);
    }
}
