//! The way between the nodes by each kind of port that an uplink can have.
//!
//! The objects of the uplinks are written anew, the agents give the interface back and take it in the other way, and what
//! is measured is one stream, with what both nodes' workers spent on it, and transactions.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use super::cluster::Cluster;
use super::counters::{self, NodeCounters};
use super::interruption::Interruption;
use super::objects::{self, UPLINK};
use super::say;
use super::traffic::request_response::{TransactionTimes, request_response};
use super::traffic::stream::{StreamResult, stream};
use super::traffic::{Family, exchange};
use super::work::{self, NodeWork};

/// As an `Uplink` object and `show ports` name them.
const KINDS: [&str; 3] = ["af_xdp", "udp", "packet"];

/// How long the agents may take to change.
const CHANGE_TIME: Duration = Duration::from_secs(10);
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// What was measured with uplinks of one kind.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ByKind {
    pub(super) kind: &'static str,
    pub(super) stream: StreamResult,
    pub(super) work: Vec<NodeWork>,
    pub(super) transactions: TransactionTimes,
}

/// Measures with each kind and goes back to AF_XDP.
pub(super) fn compare(
    cluster: &Cluster,
    duration: Duration,
    interruption: &Interruption,
) -> anyhow::Result<Vec<ByKind>> {
    let mut measured = Vec::new();
    // Sockets live by it; AF_XDP takes frames before it and only pays for it, so all else is measured without.
    cluster.gather_on_link(true)?;
    for kind in KINDS {
        objects::write_uplinks(&cluster.objects(), kind)?;
        wait_until(cluster, interruption, |port| port == kind).with_context(|| format!("uplinks of kind {kind}"))?;
        let (client, server) = (&cluster.pod(0)?.endpoint, &cluster.pod(2)?.endpoint);
        let before = counters::read(cluster)?;
        let stream = stream(client, server, Family::Ipv4, duration, interruption)?;
        let work = work::between(&before, &counters::read(cluster)?);
        let transactions = request_response(client, server, Family::Ipv4, duration, interruption)?;
        say(&format!(
            "  by {kind}: {:.1} Gbit/s, p50 {:.0} us",
            stream.gigabits_per_second, transactions.p50_microseconds
        ));
        measured.push(ByKind { kind, stream, work, transactions });
    }
    cluster.gather_on_link(false)?;
    objects::write_uplinks(&cluster.objects(), objects::AF_XDP)?;
    wait_until(cluster, interruption, |port| port == objects::AF_XDP)?;
    Ok(measured)
}

/// Waits until the uplinks of all nodes are of a kind, and pods of both nodes speak again.
fn wait_until(cluster: &Cluster, interruption: &Interruption, is_wanted: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let end = Instant::now() + CHANGE_TIME;
    let (client, server) = (&cluster.pod(0)?.endpoint, &cluster.pod(2)?.endpoint);
    loop {
        interruption.check()?;
        let nodes = counters::read(cluster)?;
        let found: Vec<&str> = nodes.iter().filter_map(uplink_kind).collect();
        let all = found.len() == nodes.len() && found.iter().all(|kind| is_wanted(kind));
        if all && exchange::udp(client, server, Family::Ipv4).is_ok() {
            return Ok(());
        }
        if Instant::now() >= end {
            let problems: Vec<_> = nodes.iter().flat_map(|node| &node.status.problems).collect();
            bail!("the agents did not change: uplinks of kind {found:?}, problems {problems:?}");
        }
        interruption.pause(LOOK_PAUSE)?;
    }
}

/// The kind of a node's uplink; empty while it is given back.
fn uplink_kind(node: &NodeCounters) -> Option<&str> {
    node.ports.iter().find(|port| port.name == UPLINK).map(|port| port.kind.as_str())
}
