//! Compiled policies in words, for `show policies` and `policy reach`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use millrace_engine::tables::policy::{Direction, DirectionPolicy, Peers, PodPolicy, PortRange, Ports, Rule, RuleList};

use super::protocol_name;
use crate::api::model::PolicyRuleReport;

/// Which rules are asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tier {
    /// Cluster policies of the tier Admin.
    Admin,
    /// Policies of namespaces.
    NetworkPolicy,
    /// Cluster policies of the tier Baseline.
    Baseline,
}

impl Tier {
    /// Its name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Tier::Admin => "Admin",
            Tier::NetworkPolicy => "NetworkPolicy",
            Tier::Baseline => "Baseline",
        }
    }
}

/// Where rules stand, in the order in which they are shown and asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) direction: Direction,
    pub(crate) tier: Tier,
}

/// Everything that judges one direction of a pod, in the order in which it is asked.
pub(crate) fn lists_of_direction(policy: &DirectionPolicy) -> impl Iterator<Item = (Tier, &Arc<RuleList>)> {
    let DirectionPolicy { admin, isolating, baseline, .. } = policy;
    let tiers: [(Tier, &[Arc<RuleList>]); 3] =
        [(Tier::Admin, admin), (Tier::NetworkPolicy, isolating), (Tier::Baseline, baseline)];
    tiers.into_iter().flat_map(|(tier, lists)| lists.iter().map(move |list| (tier, list)))
}

/// Everything that judges a pod, ingress first.
pub(crate) fn lists_of(policy: &PodPolicy) -> Vec<(Place, &RuleList)> {
    let of = |direction| {
        let lists = lists_of_direction(policy.direction(direction));
        lists.map(move |(tier, list)| (Place { direction, tier }, list.as_ref()))
    };
    of(Direction::Ingress).chain(of(Direction::Egress)).collect()
}

/// The rules of a policy with what each decided.
pub(crate) fn rules(list: &RuleList) -> Vec<PolicyRuleReport> {
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

/// `tcp/80`, `tcp/80-90`, `tcp/all`.
pub(crate) fn range(range: &PortRange) -> String {
    let protocol = protocol_name(range.protocol);
    match (range.first, range.last) {
        (0, u16::MAX) => format!("{protocol}/all"),
        (first, last) if first == last => format!("{protocol}/{first}"),
        (first, last) => format!("{protocol}/{first}-{last}"),
    }
}
