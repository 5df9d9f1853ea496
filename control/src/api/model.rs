//! What the agent tells about itself: the documents of the local API, and of `-o json`.
//!
//! These types are a stable interface: fields are added, never renamed or given another meaning. Units are part of
//! the names. The command line prints its tables from these types alone.

mod fdb;
mod ipam;
mod policy;
mod receipt;
mod trace;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::problem;

pub use fdb::StationReport;
pub use ipam::{AddressReport, AssignedReport, BlockReport, FindingReport, IpamCheckReport, IpamReport, PoolReport};
pub use policy::{
    FlowChangeReport, FlowEndReport, FlowVerdictReport, PolicyDiffReport, PolicyDiffRequest, PolicyReachQuery,
    PolicyReachReport, ReachReport, UnusedRuleReport,
};
pub use receipt::ReceiptReport;
pub use trace::{TraceDrop, TraceProtocol, TraceReport, TraceRequest, TraceSource, TraceStep};

/// Something wrong that an operator should mend; the agent runs on without it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// The file it is in; empty if it is in none.
    pub file: String,
    /// The line in the file, from 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub line: Option<u64>,
    /// The object, as `Kind namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub object: Option<String>,
    /// What is wrong, in a sentence.
    pub message: String,
    /// What kind of problem it is, for programs, where there are such names: `uplink_capability` and the like.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kind: Option<String>,
}

impl From<String> for Problem {
    fn from(message: String) -> Self {
        Self { message, ..Self::default() }
    }
}

impl From<&problem::Problem> for Problem {
    fn from(problem: &problem::Problem) -> Self {
        let field = problem.field.as_ref().map_or_else(String::new, |field| format!("{field}: "));
        Self {
            file: problem.file.as_deref().unwrap_or_default().to_owned(),
            line: problem.line.map(u64::from),
            object: problem.object.as_ref().map(ToString::to_string),
            message: format!("{field}{}", problem.message),
            kind: problem.kind.map(str::to_owned),
        }
    }
}

/// `show status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Name of this node.
    pub node: String,
    /// Version of the agent.
    pub version: String,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// Generation of the tables in force; 0 before the first publish.
    pub generation: u64,
    /// Seconds since the tables were last published.
    pub tables_age_seconds: u64,
    /// Worker threads.
    pub workers: u32,
    /// Ports attached.
    pub ports: u32,
    /// Pods attached.
    pub pods: u32,
    /// Uplinks in use.
    #[serde(default)]
    pub uplinks: u32,
    /// Frames that are neither sent, dropped, consumed, merged nor held; other than 0 is a defect.
    pub unaccounted_frames: i64,
    /// Connections that the agent before left to this one.
    #[serde(default)]
    pub connections_taken_over: u64,
    /// Those that it left and that this one has no room for.
    #[serde(default)]
    pub connections_not_taken_over: u64,
    /// Connections to Services that the kernel had begun, by kube-proxy's rules, and that go on here.
    #[serde(default)]
    pub connections_adopted: u64,
    /// Why connections will end with this agent; `None` if the next one goes on with them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub connections_end: Option<String>,
    /// Microseconds in which nobody forwarded when this agent took over from the one before, for each worker; `None` if it
    /// did not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub takeover_gaps_us: Option<Vec<u64>>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// What became of Kubernetes Events; absent with a directory of files.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub events: Option<EventsReport>,
}

/// What became of Kubernetes Events since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsReport {
    /// Written, or found written by another node.
    pub written: u64,
    /// Refused by the server.
    pub refused: u64,
    /// Never written: no room, or gone before the turn came.
    pub dropped: u64,
    /// Whose turn has not come.
    pub waiting: u64,
}

/// `show ports`: one port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PortReport {
    /// The port's number.
    pub index: u16,
    /// Its name: `namespace/pod`, or the interface.
    pub name: String,
    /// What it is for: `pod`, `host`, `bridged`, `uplink`.
    pub role: String,
    /// What moves its packets: `tap`, `af_xdp`, `udp`, `packet`, `memory`, `pcap`.
    pub kind: String,
    /// Why it is of this kind, of an uplink whose object leaves that to the agent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub chosen: Option<String>,
    /// The segment, of a pod or the host.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub segment: Option<String>,
    /// Its MAC address.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mac: Option<String>,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Longest network-layer packet it carries.
    pub mtu_bytes: u32,
    /// Most bits per second that leave by it: what a pod receives.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ingress_bits_per_second: Option<u64>,
    /// Most bits per second that come in by it: what a pod sends.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub egress_bits_per_second: Option<u64>,
    /// Its queues.
    pub queues: Vec<QueueReport>,
    /// Frames received; a GSO unit counts once.
    pub received_frames: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Frames sent; a GSO unit counts once.
    pub sent_frames: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Frames dropped on their way in or out.
    pub dropped_frames: u64,
}

/// One queue of a port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QueueReport {
    /// The worker that owns it.
    pub worker: u32,
    /// How it works, read back from the kernel.
    pub mode: String,
    /// Frames the kernel dropped before the switch could take them.
    pub kernel_dropped_frames: u64,
}

/// `show workers`: one worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// The worker's number.
    pub worker: u32,
    /// The CPU it is pinned to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu: Option<u32>,
    /// Generation of the tables it last used.
    pub generation: u64,
    /// Nanoseconds it was blocked since the start, its present sleep included.
    pub slept_nanoseconds: u64,
    /// Nanoseconds since the start.
    pub uptime_nanoseconds: u64,
    /// Packets served from the flow cache.
    pub flow_cache_hits: u64,
    /// Packets decided by the slow path.
    pub flow_cache_misses: u64,
    /// Entries in its flow cache.
    pub flows: u64,
    /// Frames it holds, queued for a port or a lane.
    pub held_frames: u64,
    /// Free head frames.
    pub free_frames: u64,
    /// Every event it counts, by name.
    pub events: BTreeMap<String, u64>,
    /// Where its time goes.
    #[serde(default)]
    pub cycles: CyclesReport,
}

/// Where a worker's time goes: cycles of one turn in 31, summed since the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CyclesReport {
    /// Packets of the measured turns.
    pub packets: u64,
    /// Vectors they came in.
    pub vectors: u64,
    /// Cycles by kind of work, of turns that moved packets.
    pub work: BTreeMap<String, u64>,
    /// Cycles of turns that moved none.
    pub idle: u64,
    /// The ports that packets came from, the dearest first.
    pub ports: Vec<PortCyclesReport>,
}

/// What one port's packets cost a worker, from their reception until they lie in the list of another port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PortCyclesReport {
    /// Name of the port.
    pub port: String,
    /// Packets of the measured turns.
    pub packets: u64,
    /// Their cycles.
    pub cycles: u64,
}

/// `show services`: one port of a Service, in one family.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// `namespace/name:port`.
    pub name: String,
    /// `tcp`, `udp`, `sctp`.
    pub protocol: String,
    /// How an endpoint is picked.
    pub balance: String,
    /// How long a client stays with its endpoint, if it does.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub affinity_seconds: Option<u64>,
    /// `Cluster` or `Local`, for the cluster's own clients.
    pub internal_policy: String,
    /// `Cluster` or `Local`, for clients outside.
    pub external_policy: String,
    /// Where it is reached.
    pub frontends: Vec<FrontendReport>,
    /// What stands behind it.
    pub endpoints: Vec<EndpointReport>,
    /// Connections given an endpoint through this node since the agent started.
    pub picks: u64,
    /// Those that have not ended.
    pub live_connections: u32,
}

/// One address and port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FrontendReport {
    /// `ClusterIP`, `NodePort`, `LoadBalancer`, `externalIP`, `hostPort`.
    pub kind: String,
    /// The address; absent for a node port, which is served at the node's own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub address: Option<String>,
    /// The port.
    pub port: u16,
    /// Networks whose clients are let in; empty for all.
    pub source_ranges: Vec<String>,
}

/// One endpoint of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointReport {
    /// The pod, or the address.
    pub name: String,
    /// Its address.
    pub address: String,
    /// The port it listens at.
    pub port: u16,
    /// `ready`, `terminating`, `serving`, `not-ready`.
    pub state: String,
    /// Whether it is on this node.
    pub local: bool,
    /// Its share.
    pub weight: u16,
    /// Whether new connections through this node may get it.
    pub in_use: bool,
    /// Connections that got it through this node since the agent started.
    pub picks: u64,
    /// Those that have not ended.
    pub live_connections: u32,
}

/// `show routes`: one route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RouteReport {
    /// The segment it is in.
    pub segment: String,
    /// Destination prefix.
    pub prefix: String,
    /// Where to.
    pub target: RouteTargetReport,
    /// The object it comes from.
    pub object: String,
}

/// Where a route leads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RouteTargetReport {
    /// A port of this node.
    Port {
        /// The port's name.
        port: String,
        /// The station's MAC address.
        mac: String,
    },
    /// The tunnel to another node.
    Tunnel {
        /// The node's tunnel address.
        peer: String,
        /// Inner destination MAC address.
        mac: String,
    },
    /// Another node on the link of an uplink, without a tunnel.
    Direct {
        /// The node's address on that link.
        peer: String,
    },
    /// An uplink, outside of any tunnel.
    Outside {
        /// The uplink.
        port: String,
        /// The router on the way; absent where the destination is on the link.
        gateway: Option<String>,
        /// The address that connections are masqueraded as.
        source: String,
    },
    /// Nowhere; the sender is told.
    #[default]
    Unreachable,
}

/// `show neighbours`: a next hop on the underlay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NeighbourReport {
    /// The uplink.
    pub interface: String,
    /// The neighbour's address.
    pub address: String,
    /// Its MAC address, if resolved.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mac: Option<String>,
    /// The kernel's state: `reachable`, `stale`, `permanent`, `failed`, `incomplete`.
    pub state: String,
    /// Nodes reached through it.
    pub nodes: Vec<String>,
}

/// `show flows`: the flow caches of all workers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowsReport {
    /// Entries there are.
    pub total: u64,
    /// The first of them, as many as were asked for.
    pub flows: Vec<FlowReport>,
}

/// One entry of a flow cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowReport {
    /// The worker whose cache it is in.
    pub worker: u32,
    /// The segment.
    pub segment: String,
    /// The port its packets arrive on.
    pub ingress: String,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, or the protocol's number.
    pub protocol: String,
    /// Source address.
    pub source: String,
    /// Source port; 0 where the protocol has none.
    pub source_port: u16,
    /// Destination address.
    pub destination: String,
    /// Destination port; 0 where the protocol has none.
    pub destination_port: u16,
    /// What happens: `forward`, or `drop` with the reason's name.
    pub verdict: String,
    /// The port they leave by; empty for a drop.
    pub egress: String,
    /// Packets served.
    pub packets: u64,
    /// Bytes served.
    pub bytes: u64,
    /// Milliseconds since the last packet.
    pub idle_milliseconds: u64,
}

/// `show connections`: what is asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectionsQuery {
    /// How many at most.
    pub limit: Option<usize>,
    /// Only those of this pod, as `NAMESPACE/NAME`.
    pub pod: Option<String>,
    /// Only those in this state, as Linux names it: `ESTABLISHED`, `UNREPLIED`.
    pub state: Option<String>,
    /// Only those opened to this Service, as `NAMESPACE/NAME` or, one port of it, `NAMESPACE/NAME:PORT`.
    pub service: Option<String>,
}

/// `show connections`: the connection table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectionsReport {
    /// Connections there may be.
    pub capacity: u64,
    /// Connections there are.
    pub total: u64,
    /// Those of them that were asked for.
    pub matching: u64,
    /// The first of these, as many as were asked for.
    pub connections: Vec<ConnectionReport>,
}

/// One connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectionReport {
    /// The segment its opener is in.
    pub segment: String,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, or the protocol's number.
    pub protocol: String,
    /// State, as Linux names it.
    pub state: String,
    /// The Service it was opened to, as `show services` names it, if there still is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<String>,
    /// Whether it was answered.
    pub replied: bool,
    /// Packets as the opener sends them.
    pub original: TupleReport,
    /// Packets as the other end sends them.
    pub reply: TupleReport,
    /// Milliseconds since it was opened.
    pub age_milliseconds: u64,
    /// Milliseconds since the last packet, as far as the flow caches have told: a second late at most.
    pub idle_milliseconds: u64,
}

/// Addresses and ports of the packets of one direction.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TupleReport {
    /// Source address.
    pub source: String,
    /// Source port, or the echo identifier; 0 where the protocol has none.
    pub source_port: u16,
    /// Destination address.
    pub destination: String,
    /// Destination port, or the echo identifier; 0 where the protocol has none.
    pub destination_port: u16,
}

/// `show drops`: one reason.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DropReport {
    /// The reason's stable name.
    pub reason: String,
    /// Frames dropped for it.
    pub frames: u64,
    /// What happened, in one sentence.
    pub sentence: String,
    /// What to check next.
    pub next_step: String,
    /// The policies that denied, the busiest first, for reasons that are policies. A packet that several policies
    /// isolate a pod from counts for each.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub policies: Vec<PolicyDropReport>,
}

/// What one policy denied.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyDropReport {
    /// `namespace/name`, or the name of a policy of the whole cluster.
    pub policy: String,
    /// Packets denied because of it.
    pub frames: u64,
}

/// `show policies`: what judges pods of this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoliciesReport {
    /// The pod that was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pod: Option<PodPolicyReport>,
    /// The policies, each direction for itself, in the order in which they are asked.
    pub policies: Vec<PolicyReport>,
}

/// How a pod stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PodPolicyReport {
    /// `namespace/name`.
    pub pod: String,
    /// What holds for what it receives.
    pub ingress: String,
    /// What holds for what it sends.
    pub egress: String,
}

/// One direction of one policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyReport {
    /// `namespace/name`, or the name of a policy of the whole cluster.
    pub policy: String,
    /// `ingress` or `egress`.
    pub direction: String,
    /// `Admin`, `NetworkPolicy` or `Baseline`.
    pub tier: String,
    /// Pods of this node that it selects.
    pub pods: u32,
    /// Packets denied because of it.
    pub denied_packets: u64,
    /// Its rules.
    pub rules: Vec<PolicyRuleReport>,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyRuleReport {
    /// Its place in the object, from 1.
    pub number: u16,
    /// Its own name, if it has one.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub name: String,
    /// `Accept`, `Deny` or `Pass`.
    pub action: String,
    /// Whom it speaks of; any of them.
    pub peers: Vec<String>,
    /// Which destination ports; any of them.
    pub ports: Vec<String>,
    /// Flows that it decided.
    pub used: u64,
}

/// The body of an answer with another status than 200, outside of `/v1/cni`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReport {
    /// What was wrong, in a sentence.
    pub message: String,
}
