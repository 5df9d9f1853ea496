//! What policies would do, asked before they do it, and what they let through.
//!
//! - [`Proposal`]: the cluster as it would be with other objects, and the tables that would come of it.
//! - [`diff`]: which connections would get another verdict under those tables; `replay` asks the same of captures.
//! - [`reach`]: who may reach whom on which ports, and which rules no flow has used.
//!
//! Nothing here changes anything: tables are made aside, by the planner that makes those in force, and thrown away.
//! Runs on a thread of the API or of the command line. Cost: the policies of the whole cluster planned once (about a
//! second at 10,000 policies and 100,000 pods), then one judgement for each connection or pair of pods.

pub mod diff;
pub mod proposal;
pub mod reach;
pub(crate) mod words;

use std::collections::HashMap;
use std::net::IpAddr;

use millrace_engine::packet::parse::protocol;
use millrace_engine::slow_path::Reason;

use crate::api::model::FlowVerdictReport;
use crate::cluster::Cluster;

pub use proposal::{Proposal, ProposalError};

/// Whose each address is, for people.
#[derive(Debug, Default)]
pub struct Names(HashMap<IpAddr, String>);

impl Names {
    /// The names in a cluster: of pods that have not ended, then of nodes.
    #[must_use]
    pub fn of(cluster: &Cluster) -> Self {
        let mut names = HashMap::new();
        let mut pods: Vec<_> = cluster.pods.values().filter(|pod| pod.has_addresses()).collect();
        pods.sort_by_key(|pod| pod.precedence());
        for pod in pods {
            for address in &pod.addresses {
                names.entry(*address).or_insert_with(|| pod.name.to_string());
            }
        }
        for node in cluster.nodes.values() {
            for address in &node.addresses {
                names.entry(*address).or_insert_with(|| format!("node {}", node.name));
            }
        }
        Self(names)
    }

    /// The name of an address; empty if it is nobody's.
    #[must_use]
    pub fn get(&self, address: IpAddr) -> String {
        self.0.get(&address).cloned().unwrap_or_default()
    }
}

/// What policies said of a packet, out of a trail or of [`millrace_engine::slow_path::judge_connection`].
pub(crate) fn verdict<'a>(reasons: impl Iterator<Item = &'a Reason>) -> FlowVerdictReport {
    let (mut allowed, mut words) = (true, Vec::new());
    for reason in reasons {
        if matches!(reason, Reason::Allowed(..) | Reason::Denied(..) | Reason::Finishes(..)) {
            allowed &= !matches!(reason, Reason::Denied(..));
            words.push(reason.to_string());
        }
    }
    if words.is_empty() {
        words.push("no policy speaks of it".to_owned());
    }
    FlowVerdictReport { allowed, reasons: words }
}

/// How people call a protocol that rules can name, and `icmp` for those without ports.
pub(crate) fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "tcp".to_owned(),
        protocol::UDP => "udp".to_owned(),
        protocol::SCTP => "sctp".to_owned(),
        protocol::ICMP | protocol::ICMPV6 => "icmp".to_owned(),
        other => format!("protocol {other}"),
    }
}
