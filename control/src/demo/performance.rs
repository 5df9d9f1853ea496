//! How fast: TCP on one node, across nodes, and over the reference; times of transactions.
//!
//! A machine with other work gives one bad measurement easily, so what is missed is measured again, a few times; the
//! report has every attempt. The reference is measured right beside the stream it is compared with.

use std::time::Duration;

use serde::Serialize;

use super::cluster::{Cluster, cores};
use super::counters;
use super::interruption::Interruption;
use super::reachability::Way;
use super::reference::Reference;
use super::say;
use super::traffic::Family;
use super::traffic::request_response::{TransactionTimes, request_response};
use super::traffic::stream::{StreamResult, stream};
use super::work::{self, NodeWork};

/// Most times a missed measurement is repeated, the first included.
pub(super) const ATTEMPTS: usize = 3;

/// Same-node TCP is at least so many times the reference.
pub(super) const RATIO: f64 = 5.0;

/// Less than this share of the segments across nodes is sent again.
pub(super) const RETRANSMITTED_SHARE: f64 = 0.001;

/// One attempt at everything about throughput.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Throughput {
    pub(super) same_node: StreamResult,
    pub(super) reference: StreamResult,
    /// The first divided by the second.
    pub(super) ratio: f64,
    pub(super) across_nodes: StreamResult,
    pub(super) across_nodes_ipv6: StreamResult,
    /// What both nodes' workers did during `across_nodes`.
    pub(super) across_nodes_work: Vec<NodeWork>,
    /// The larger of both families.
    pub(super) retransmitted_share: f64,
}

/// Transactions on one way.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Latency {
    pub(super) way: Way,
    pub(super) family: Family,
    pub(super) times: TransactionTimes,
}

impl Throughput {
    /// Whether nothing has to be measured again.
    pub(super) fn is_as_expected(&self) -> bool {
        self.ratio >= RATIO && self.retransmitted_share < RETRANSMITTED_SHARE
    }

    fn measure(cluster: &Cluster, duration: Duration, interruption: &Interruption) -> anyhow::Result<Throughput> {
        let ends = |to: usize| anyhow::Ok((&cluster.pod(0)?.endpoint, &cluster.pod(to)?.endpoint));
        let run = |to: usize, family: Family| {
            let (client, server) = ends(to)?;
            stream(client, server, family, duration, interruption)
        };
        let same_node = run(1, Family::Ipv4)?;
        let core = cores()?.first().copied().unwrap_or(0);
        let reference = Reference::build(core)?.measure(duration, interruption)?;
        let before = counters::read(cluster)?;
        let across_nodes = run(2, Family::Ipv4)?;
        let across_nodes_work = work::between(&before, &counters::read(cluster)?);
        let across_nodes_ipv6 = run(2, Family::Ipv6)?;
        let measured = Throughput {
            same_node,
            reference,
            ratio: same_node.gigabits_per_second / reference.gigabits_per_second.max(1e-9),
            across_nodes,
            across_nodes_ipv6,
            across_nodes_work,
            retransmitted_share: across_nodes.retransmitted_share().max(across_nodes_ipv6.retransmitted_share()),
        };
        say(&format!(
            "  same node {:.1} Gbit/s, AF_XDP on veth {:.1}, across nodes {:.1} (IPv6 {:.1})",
            measured.same_node.gigabits_per_second,
            measured.reference.gigabits_per_second,
            measured.across_nodes.gigabits_per_second,
            measured.across_nodes_ipv6.gigabits_per_second
        ));
        Ok(measured)
    }
}

/// Measures until everything is as expected, at most [`ATTEMPTS`] times.
pub(super) fn throughput(
    cluster: &Cluster,
    duration: Duration,
    interruption: &Interruption,
) -> anyhow::Result<Vec<Throughput>> {
    let mut attempts: Vec<Throughput> = Vec::new();
    while attempts.len() < ATTEMPTS && !attempts.last().is_some_and(Throughput::is_as_expected) {
        attempts.push(Throughput::measure(cluster, duration, interruption)?);
    }
    Ok(attempts)
}

/// Transactions on one node and across nodes.
pub(super) fn latency(
    cluster: &Cluster,
    duration: Duration,
    interruption: &Interruption,
) -> anyhow::Result<Vec<Latency>> {
    let mut measured = Vec::new();
    for (to, way) in [(1, Way::SameNode), (2, Way::AcrossNodes)] {
        for family in Family::BOTH {
            let (client, server) = (&cluster.pod(0)?.endpoint, &cluster.pod(to)?.endpoint);
            let times = request_response(client, server, family, duration, interruption)?;
            measured.push(Latency { way, family, times });
        }
    }
    Ok(measured)
}
