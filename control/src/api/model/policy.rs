//! `policy diff` and `policy reach`.

use serde::{Deserialize, Serialize};

use super::{PolicyRuleReport, Problem};

/// What `policy diff` asks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyDiffRequest {
    /// The objects.
    pub objects: Vec<serde_json::Value>,
    /// Whether they are to be deleted; else they are to be applied.
    #[serde(default)]
    pub delete: bool,
    /// Flows told, at most.
    #[serde(default)]
    pub limit: Option<usize>,
}

/// `policy diff`: flows whose verdict would change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyDiffReport {
    /// Flows that were judged by both.
    pub judged: u64,
    /// Those whose verdict would change.
    pub changing: u64,
    /// The first of them.
    pub flows: Vec<FlowChangeReport>,
    /// What of the proposed policies cannot be enforced as written.
    pub problems: Vec<Problem>,
}

/// A flow whose verdict would change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowChangeReport {
    /// `tcp`, `udp`, `sctp`, `icmp`.
    pub protocol: String,
    /// State of the connection, as `show connections` has it; `captured` for a flow of a capture.
    pub state: String,
    /// Who opened it.
    pub source: FlowEndReport,
    /// Who answers.
    pub destination: FlowEndReport,
    /// What policies say of it now.
    pub before: FlowVerdictReport,
    /// What they would say.
    pub after: FlowVerdictReport,
}

/// One end of a flow, by its real address.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowEndReport {
    /// `namespace/name` of a pod, `node NAME`, or empty.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub name: String,
    /// Its address.
    pub address: String,
    /// Its port; the identifier of an echo.
    pub port: u16,
}

/// What policies say of a flow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowVerdictReport {
    /// Whether it may pass.
    pub allowed: bool,
    /// Each direction that was judged: which rule allowed or denied it, or who isolates.
    pub reasons: Vec<String>,
}

/// What `policy reach` asks: pods by `NAMESPACE/POD` or `NAMESPACE/*`, or an address; without one, all pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyReachQuery {
    /// Who opens.
    pub from: Option<String>,
    /// Who answers.
    pub to: Option<String>,
    /// Pairs told, at most.
    pub limit: Option<usize>,
}

/// `policy reach`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyReachReport {
    /// Pairs that were judged.
    pub pairs: u64,
    /// Pairs between which something is open.
    pub open_pairs: u64,
    /// The first of those.
    pub reach: Vec<ReachReport>,
    /// Rules that let something through and that no flow has used, of policies that select pods of this node; absent
    /// where no flows were seen.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unused_rules: Option<Vec<UnusedRuleReport>>,
}

/// What one pod may open to another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReachReport {
    /// Who opens.
    pub source: String,
    /// Who answers.
    pub target: String,
    /// `ipv4`, `ipv6`, or `both` where they do not differ.
    pub family: String,
    /// `tcp/80`, `udp/53-60`, `sctp/all`, `icmp`; `all` for everything.
    pub ports: Vec<String>,
}

/// A rule that nothing has used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UnusedRuleReport {
    /// Its policy.
    pub policy: String,
    /// `ingress` or `egress`.
    pub direction: String,
    /// The rule.
    pub rule: PolicyRuleReport,
    /// Pods of this node that it holds for.
    pub pods: u32,
}
