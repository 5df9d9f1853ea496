//! What the engines counted, as their agents tell it.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Serialize;

use super::cluster::Cluster;
use crate::api::model::{DropReport, PortReport, StatusReport, WorkerReport};

/// The counters of one node.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NodeCounters {
    pub(super) node: String,
    pub(super) status: StatusReport,
    pub(super) ports: Vec<PortReport>,
    pub(super) workers: Vec<WorkerReport>,
    pub(super) drops: Vec<DropReport>,
}

impl NodeCounters {
    /// Every event, summed over the workers.
    pub(super) fn events(&self) -> BTreeMap<&str, u64> {
        let mut sums = BTreeMap::new();
        for (name, count) in self.workers.iter().flat_map(|worker| &worker.events) {
            let sum: &mut u64 = sums.entry(name.as_str()).or_default();
            *sum = sum.saturating_add(*count);
        }
        sums
    }

    /// A number of each worker, summed.
    pub(super) fn sum(&self, of: fn(&WorkerReport) -> u64) -> u64 {
        self.workers.iter().map(of).fold(0, u64::saturating_add)
    }
}

/// Asks all agents.
pub(super) fn read(cluster: &Cluster) -> anyhow::Result<Vec<NodeCounters>> {
    let ask = |node: &super::cluster::Node| {
        let client = node.agent.client();
        anyhow::Ok(NodeCounters {
            node: node.name.to_owned(),
            ports: client.show("ports")?,
            workers: client.show("workers")?,
            drops: client.show("drops")?,
            status: client.show("status")?,
        })
    };
    cluster.nodes.iter().map(|node| ask(node).with_context(|| format!("counters of node {}", node.name))).collect()
}
