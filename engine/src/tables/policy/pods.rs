//! Which policies select each pod of this node, by its port.

use std::sync::{Arc, LazyLock};

use super::RuleList;
use crate::packet::PortIndex;

/// Direction of traffic, as the pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Its name as the API, trace and tests write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }
}

/// Everything that judges one direction of a pod, in the order in which it is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirectionPolicy {
    /// Cluster policies of the tier Admin: the first rule that matches decides.
    pub admin: Vec<Arc<RuleList>>,
    /// NetworkPolicies that select the pod. If there is any, the pod is isolated: what no rule allows is denied.
    pub isolating: Arc<[Arc<RuleList>]>,
    /// Cluster policies of the tier Baseline: the first rule that matches decides.
    pub baseline: Vec<Arc<RuleList>>,
    /// These policies may select the pod, but labels that decide are not known yet: closed, whatever else is here.
    pub unknown: Option<Arc<[Arc<RuleList>]>>,
}

impl DirectionPolicy {
    /// Whether nothing judges this direction: everything is allowed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.admin.is_empty() && self.isolating.is_empty() && self.baseline.is_empty() && self.unknown.is_none()
    }
}

/// Both directions of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodPolicy {
    /// What it may receive.
    pub ingress: DirectionPolicy,
    /// What it may send.
    pub egress: DirectionPolicy,
}

impl PodPolicy {
    /// Whether nothing judges the pod.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.ingress.is_open() && self.egress.is_open()
    }

    /// One direction.
    #[must_use]
    pub fn direction(&self, direction: Direction) -> &DirectionPolicy {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// What a pod has that the tables do not know: everything closed.
static CLOSED: LazyLock<PodPolicy> = LazyLock::new(|| {
    let closed = DirectionPolicy { unknown: Some(Arc::default()), ..DirectionPolicy::default() };
    PodPolicy { ingress: closed.clone(), egress: closed }
});

/// What a pod has in tables of a switch without policies.
static OPEN: LazyLock<PodPolicy> = LazyLock::new(PodPolicy::default);

/// Policies by port. A change copies one pointer for each port.
#[derive(Clone, Debug, Default)]
pub struct PodPolicies {
    entries: Arc<Vec<Option<Arc<PodPolicy>>>>,
    closed_unless_known: bool,
}

impl PodPolicies {
    /// No pods yet, and whoever is not spoken of is closed.
    #[must_use]
    pub fn closed() -> Self {
        Self { closed_unless_known: true, ..Self::default() }
    }

    /// What judges the pod at `port`.
    #[must_use]
    pub fn get(&self, port: PortIndex) -> &PodPolicy {
        let unspoken = if self.closed_unless_known { &*CLOSED } else { &*OPEN };
        self.known(port).map_or(unspoken, Arc::as_ref)
    }

    /// The same, if the tables know the pod.
    #[must_use]
    pub fn known(&self, port: PortIndex) -> Option<&Arc<PodPolicy>> {
        self.entries.get(usize::from(port.0))?.as_ref()
    }

    /// Says what judges the pod at `port`; `None` takes it away without a trace.
    pub fn set(&mut self, port: PortIndex, policy: Option<Arc<PodPolicy>>) {
        let at = usize::from(port.0);
        if policy.is_none() && self.known(port).is_none() {
            return;
        }
        let entries = Arc::make_mut(&mut self.entries);
        if entries.len() <= at {
            entries.resize(at + 1, None);
        }
        entries[at] = policy;
        while matches!(entries.last(), Some(None)) {
            entries.pop();
        }
    }

    /// All ports with what judges them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (PortIndex, &Arc<PodPolicy>)> {
        let numbered = self.entries.iter().enumerate();
        numbered.filter_map(|(at, policy)| policy.as_ref().map(|policy| (PortIndex(at as u16), policy)))
    }

    /// Whether this is the very table `other` is, without looking inside.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.entries, &other.entries)
    }
}
