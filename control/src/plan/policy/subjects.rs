//! Which policies judge a pod of this node.

use std::sync::Arc;

use hashbrown::HashMap;
use millrace_engine::tables::policy::{Direction, DirectionPolicy, PodPolicy, RuleList};

use super::label_index::{Certainty, PodIndex, Scope};
use crate::cluster::{Labels, PolicyName, PolicyRecord, Tier};

/// A policy and its compiled rules, ingress first.
#[derive(Clone, Debug)]
pub(super) struct KnownPolicy {
    pub(super) record: Arc<PolicyRecord>,
    pub(super) lists: [Option<Arc<RuleList>>; 2],
}

impl KnownPolicy {
    pub(super) fn list(&self, direction: Direction) -> Option<&Arc<RuleList>> {
        match direction {
            Direction::Ingress => self.lists[0].as_ref(),
            Direction::Egress => self.lists[1].as_ref(),
        }
    }
}

/// All policies, by name and by whom they select.
#[derive(Clone, Debug, Default)]
pub(super) struct Policies {
    pub(super) by_name: HashMap<PolicyName, KnownPolicy>,
    pub(super) subjects: PodIndex<PolicyName>,
}

impl Policies {
    /// What judges a pod, whose labels may not be known. A direction is closed that a policy concerns of which it cannot be
    /// told yet whether it selects the pod, if `closed_until_known`; else such a policy counts as selecting others.
    pub(super) fn of_pod(&self, scope: &Scope<'_>, labels: Option<&Labels>, closed_until_known: bool) -> PodPolicy {
        let mut found: Vec<(&KnownPolicy, Certainty)> = Vec::new();
        self.subjects.for_each_match(scope, labels, &mut |name, certainty| {
            found.extend(self.by_name.get(name).map(|policy| (policy, certainty)));
        });
        found.sort_unstable_by(|(one, _), (two, _)| one.record.order().cmp(&two.record.order()));
        found.dedup_by(|(one, _), (two, _)| one.record.name == two.record.name);
        let with = |wanted| found.iter().filter(move |(_, certainty)| *certainty == wanted).map(|(policy, _)| *policy);
        let direction = |direction: Direction| {
            let possible: Arc<[Arc<RuleList>]> =
                with(Certainty::Possible).filter_map(|policy| policy.list(direction).cloned()).collect();
            if closed_until_known && !possible.is_empty() {
                return DirectionPolicy { unknown: Some(possible), ..DirectionPolicy::default() };
            }
            in_order(with(Certainty::Certain), direction)
        };
        PodPolicy { ingress: direction(Direction::Ingress), egress: direction(Direction::Egress) }
    }
}

/// The rules of policies that select a pod, which are in order.
fn in_order<'a>(selecting: impl Iterator<Item = &'a KnownPolicy>, direction: Direction) -> DirectionPolicy {
    let mut judges = DirectionPolicy::default();
    let mut isolating = Vec::new();
    for policy in selecting {
        let Some(list) = policy.list(direction) else { continue };
        match policy.record.tier {
            Tier::Admin(_) => judges.admin.push(Arc::clone(list)),
            Tier::Namespace => isolating.push(Arc::clone(list)),
            Tier::Baseline(_) => judges.baseline.push(Arc::clone(list)),
        }
    }
    judges.isolating = isolating.into();
    judges
}
