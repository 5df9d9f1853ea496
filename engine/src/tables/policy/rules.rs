//! Compiled rules: which peers, which ports, and what follows.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::PeerSet;

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Lets it through. A rule of a NetworkPolicy always does.
    Accept,
    /// Drops it.
    Deny,
    /// Leaves it to the next tier.
    Pass,
}

impl Action {
    /// As the API writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Action::Accept => "Accept",
            Action::Deny => "Deny",
            Action::Pass => "Pass",
        }
    }
}

/// Whom a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Everybody, also addresses that are nobody's.
    Any,
    /// Members of at least one of these sets; of none if there is none.
    In {
        /// Sets of pods and nodes.
        pods: Box<[PeerSet]>,
        /// Sets of networks.
        networks: Box<[PeerSet]>,
    },
}

/// Ports of one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// IP protocol number.
    pub protocol: u8,
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

/// Which destination ports a rule speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// All ports of all protocols, also of those without ports.
    Any,
    /// These.
    In {
        /// By number.
        ranges: Box<[PortRange]>,
        /// By the name that the destination pod gives it; the protocol is `None` where any will do.
        named: Box<[(Arc<str>, Option<u8>)]>,
    },
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its place in the object, from 1.
    pub number: u16,
    /// Its own name, where the object gives one.
    pub name: Option<Arc<str>>,
    /// What it does.
    pub action: Action,
    /// Whom it speaks of.
    pub peers: Peers,
    /// Which ports.
    pub ports: Ports,
}

/// The policy that rules come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyInfo {
    /// `namespace/name`, or the name alone of a policy of the whole cluster.
    pub name: Arc<str>,
    /// Whether a connection that was open when the policy began to deny it may go on.
    pub keeps_established: bool,
    /// Whether what it denies is logged.
    pub logs_denied: bool,
}

/// What a policy's rules of one direction did, counted on the slow path by all workers.
#[derive(Debug, Default)]
pub struct RuleCounts {
    /// Packets that were denied because of the policy.
    pub denied: AtomicU64,
    /// For each rule, decisions that it made.
    pub used: Box<[AtomicU64]>,
}

impl RuleCounts {
    /// Counts of a list of so many rules.
    #[must_use]
    pub fn new(rules: usize) -> Self {
        Self { denied: AtomicU64::new(0), used: (0..rules).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Counts a denied packet.
    pub fn count_denied(&self) {
        self.denied.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a decision of the rule at this place in the list.
    pub fn count_used(&self, place: usize) {
        if let Some(used) = self.used.get(place) {
            used.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The rules of one policy for one direction, in their order. Shared by all pods that the policy selects.
pub struct RuleList {
    /// Where they come from.
    pub policy: PolicyInfo,
    /// The rules.
    pub rules: Vec<Rule>,
    /// What they did; no part of what the list is.
    pub counts: Arc<RuleCounts>,
}

impl RuleList {
    /// How people call the rule at this place: `default/allow-web rule 2`.
    #[must_use]
    pub fn rule_name(&self, place: usize) -> String {
        match self.rules.get(place) {
            Some(Rule { number, name: Some(name), .. }) => format!("{} rule {number} ({name})", self.policy.name),
            Some(rule) => format!("{} rule {}", self.policy.name, rule.number),
            None => self.policy.name.to_string(),
        }
    }
}

impl PartialEq for RuleList {
    fn eq(&self, other: &Self) -> bool {
        self.policy == other.policy && self.rules == other.rules
    }
}

impl Eq for RuleList {}

impl fmt::Debug for RuleList {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("RuleList").field("policy", &self.policy).field("rules", &self.rules).finish()
    }
}
