//! Policies: who may talk to whom, as the objects say it.
//!
//! `NetworkPolicy` and `ClusterNetworkPolicy` become one kind of record, which differ in their tier and in what their
//! rules may do. Everything that the API leaves to defaults is spelled out here: which directions a policy concerns,
//! that a missing protocol is TCP, that a missing list of peers means everybody.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use millrace_engine::tables::policy::{Action, Direction, PortRange};

use super::{NamespaceName, PodSelection, Selector};

/// A policy's name; without a namespace it is one of the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyName {
    /// Its namespace.
    pub namespace: Option<NamespaceName>,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(formatter, "{namespace}/{}", self.name),
            None => formatter.write_str(&self.name),
        }
    }
}

/// When a policy is asked. The order is that of evaluation; inside a tier the lower number comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// Before all others, by priority.
    Admin(u16),
    /// A `NetworkPolicy`.
    Namespace,
    /// After all others, by priority.
    Baseline(u16),
}

/// Whom a rule speaks of: one of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Pods.
    Pods(PodSelection),
    /// Nodes with such labels, by the addresses of their objects.
    Nodes(Selector),
    /// Addresses, whoever has them.
    Network(NetworkBlock),
}

/// Addresses of a prefix without those of some others inside it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkBlock {
    /// The prefix, without host bits.
    pub cidr: IpNet,
    /// What is left out, sorted; each lies inside.
    pub except: Vec<IpNet>,
}

impl fmt::Display for NetworkBlock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "network {}", self.cidr)?;
        for (at, except) in self.except.iter().enumerate() {
            let word = if at == 0 { " except " } else { "," };
            write!(formatter, "{word}{except}")?;
        }
        Ok(())
    }
}

/// Which destination ports a rule speaks of: one of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRecord {
    /// By number.
    Range(PortRange),
    /// By the name that the destination pod gives it, of this protocol or of any.
    Named(Arc<str>, Option<u8>),
}

/// One rule of one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleRecord {
    /// Its own name, if it has one.
    pub name: Option<Arc<str>>,
    /// What it does.
    pub action: Action,
    /// Whom it speaks of; `None`: everybody.
    pub peers: Option<Vec<Peer>>,
    /// Which ports; `None`: all, and protocols without ports.
    pub ports: Option<Vec<PortRecord>>,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRecord {
    /// Its name.
    pub name: PolicyName,
    /// When it is asked.
    pub tier: Tier,
    /// The pods it concerns.
    pub subject: PodSelection,
    /// Its rules for what those pods receive; `None` if it does not concern that.
    pub ingress: Option<Vec<RuleRecord>>,
    /// Its rules for what those pods send; `None` if it does not concern that.
    pub egress: Option<Vec<RuleRecord>>,
    /// Whether connections that it begins to deny may go on.
    pub keeps_established: bool,
    /// Whether what it denies is logged.
    pub logs_denied: bool,
    /// What cannot be enforced as written, by field: the rule concerned is closed, and the author told.
    pub notes: BTreeMap<String, String>,
}

impl PolicyRecord {
    /// Its rules of one direction, if it concerns that.
    #[must_use]
    pub fn rules(&self, direction: Direction) -> Option<&[RuleRecord]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// Position among the policies that select one pod.
    #[must_use]
    pub fn order(&self) -> (Tier, &PolicyName) {
        (self.tier, &self.name)
    }
}
