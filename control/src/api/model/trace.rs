//! What `millrace trace` asks and is told.

use serde::{Deserialize, Serialize};

/// Protocol of an imagined packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TraceProtocol {
    /// A SYN.
    #[default]
    Tcp,
    /// A datagram.
    Udp,
    /// An INIT.
    Sctp,
    /// An echo request.
    Icmp,
}

impl TraceProtocol {
    /// As written on the command line.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            TraceProtocol::Tcp => "tcp",
            TraceProtocol::Udp => "udp",
            TraceProtocol::Sctp => "sctp",
            TraceProtocol::Icmp => "icmp",
        }
    }
}

/// What `trace` asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRequest {
    /// Who sends it.
    pub from: TraceSource,
    /// Destination address.
    pub to_address: std::net::IpAddr,
    /// Destination port; 0 for ICMP.
    pub to_port: u16,
    /// Protocol.
    pub protocol: TraceProtocol,
}

/// Who sends an imagined packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceSource {
    /// A pod of this node.
    Pod {
        /// Its Kubernetes namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The node's own kernel, by `millrace0`.
    Host,
    /// A station outside, whose packet comes by an uplink.
    Outside {
        /// The uplink's interface.
        uplink: String,
        /// The station's address.
        address: std::net::IpAddr,
    },
}

/// What would happen to the packet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TraceReport {
    /// Generation of the tables it was decided by.
    pub generation: u64,
    /// The packet, in one line.
    pub packet: String,
    /// Every stage it passed, in order.
    pub steps: Vec<TraceStep>,
    /// The end: `forward to default/web-0`, `drop no_route`.
    pub verdict: String,
    /// What is done to it before it leaves, in order.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub edits: Vec<String>,
    /// The reason, if it would be dropped.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub drop: Option<TraceDrop>,
}

/// One stage's say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TraceStep {
    /// The stage, named as its file in `slow_path/`.
    pub stage: String,
    /// What it decided and why.
    pub decision: String,
    /// The object it went by; empty if none.
    pub object: String,
}

/// Why a traced packet would be dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceDrop {
    /// The reason's stable name.
    pub reason: String,
    /// What happened, in one sentence.
    pub sentence: String,
    /// What to check next.
    pub next_step: String,
}
