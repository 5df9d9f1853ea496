//! Which policies judge a pod of this node.

use std::sync::Arc;

use hashbrown::HashMap;
use millrace_engine::tables::policy::{Direction, DirectionPolicy, PodPolicy, RuleList};

use super::label_index::PodIndex;
use crate::cluster::{Labels, NamespaceRecord, PolicyName, PolicyRecord, Tier};

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
    /// What judges a pod with these labels.
    pub(super) fn of_pod(&self, namespace: &NamespaceRecord, labels: &Labels) -> PodPolicy {
        let mut selecting: Vec<&KnownPolicy> = Vec::new();
        self.subjects.for_each_match(namespace, labels, &mut |name| selecting.extend(self.by_name.get(name)));
        selecting.sort_unstable_by(|one, two| one.record.order().cmp(&two.record.order()));
        let direction = |direction: Direction| {
            let mut judges = DirectionPolicy::default();
            let mut isolating = Vec::new();
            for policy in &selecting {
                let Some(list) = policy.list(direction) else { continue };
                match policy.record.tier {
                    Tier::Admin(_) => judges.admin.push(Arc::clone(list)),
                    Tier::Namespace => isolating.push(Arc::clone(list)),
                    Tier::Baseline(_) => judges.baseline.push(Arc::clone(list)),
                }
            }
            judges.isolating = isolating.into();
            judges
        };
        PodPolicy { ingress: direction(Direction::Ingress), egress: direction(Direction::Egress) }
    }

    /// What judges a pod of this namespace whose labels are not known: a direction that some policy may concern is
    /// closed.
    pub(super) fn of_unknown_pod(&self, namespace: &NamespaceRecord) -> PodPolicy {
        let mut concerned = [false; 2];
        self.subjects.for_each_possible(namespace, &mut |name| {
            let lists = self.by_name.get(name).map(|policy| policy.lists.each_ref().map(Option::is_some));
            let lists = lists.unwrap_or_default();
            concerned = [concerned[0] || lists[0], concerned[1] || lists[1]];
        });
        let closed = |unknown| DirectionPolicy { unknown, ..DirectionPolicy::default() };
        PodPolicy { ingress: closed(concerned[0]), egress: closed(concerned[1]) }
    }
}
