//! Where the workers' time goes while a stream crosses the nodes: cycles for each segment on the wire, by kind of work.
//!
//! Taken from what the agents tell of themselves before and after (`show workers`, `show ports`): the workers measure one
//! turn in [`SAMPLED_TURNS`], so the sums are multiplied by it. A segment is a frame of the uplink; between the uplink and
//! a pod many of them are one unit. Cycles are those of the time-stamp counter, and include the system calls that
//! move frames: on a veth underlay `transmit` is nearly all the kernel's, whose way to the other node runs within it.

use std::collections::BTreeMap;

use millrace_engine::cycles::SAMPLED_TURNS;
use serde::Serialize;

use super::counters::NodeCounters;
use super::objects::UPLINK;

/// What one node spent.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NodeWork {
    pub(super) node: String,
    /// Frames of the uplink, in both directions.
    pub(super) segments: u64,
    /// Cycles for each of them by kind of work; 0 of everything if there was none.
    pub(super) cycles_per_segment: BTreeMap<String, f64>,
}

impl NodeWork {
    /// All kinds together.
    pub(super) fn total(&self) -> f64 {
        self.cycles_per_segment.values().sum()
    }
}

/// What happened between two readings of the same nodes.
pub(super) fn between(before: &[NodeCounters], after: &[NodeCounters]) -> Vec<NodeWork> {
    before.iter().zip(after).map(|(before, after)| of_node(before, after)).collect()
}

fn of_node(before: &NodeCounters, after: &NodeCounters) -> NodeWork {
    let segments = uplink_frames(after).saturating_sub(uplink_frames(before));
    let (earlier, mut cycles) = (cycles_by_work(before), cycles_by_work(after));
    for (work, sum) in &mut cycles {
        *sum = sum.saturating_sub(earlier.get(work).copied().unwrap_or(0));
    }
    let per_segment = |sum: u64| (sum * u64::from(SAMPLED_TURNS)) as f64 / segments.max(1) as f64;
    NodeWork {
        node: after.node.clone(),
        segments,
        cycles_per_segment: cycles.into_iter().map(|(work, sum)| (work, per_segment(sum))).collect(),
    }
}

fn uplink_frames(node: &NodeCounters) -> u64 {
    let uplinks = node.ports.iter().filter(|port| port.name == UPLINK);
    uplinks.map(|port| port.received_frames + port.sent_frames).sum()
}

fn cycles_by_work(node: &NodeCounters) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (work, cycles) in node.workers.iter().flat_map(|worker| &worker.cycles.work) {
        *sums.entry(work.clone()).or_default() += cycles;
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::model::{CyclesReport, PortReport, StatusReport, WorkerReport};

    fn reading(frames: u64, edit: u64) -> NodeCounters {
        let cycles = CyclesReport { work: BTreeMap::from([("edit".to_owned(), edit)]), ..CyclesReport::default() };
        let worker = WorkerReport { cycles, ..WorkerReport::default() };
        let uplink = PortReport { name: UPLINK.to_owned(), sent_frames: frames, ..PortReport::default() };
        let pod = PortReport { name: "pod".to_owned(), sent_frames: 1_000_000, ..PortReport::default() };
        NodeCounters {
            node: "a".to_owned(),
            status: StatusReport::default(),
            ports: vec![uplink, pod],
            workers: vec![worker.clone(), worker],
            drops: Vec::new(),
        }
    }

    #[test]
    fn a_segment_is_a_frame_of_the_uplink_and_all_workers_count() {
        let work = between(&[reading(10, 100)], &[reading(41, 150)]);
        assert_eq!((work[0].segments, work[0].total()), (31, 100.0));
    }

    #[test]
    fn without_a_segment_nothing_is_divided_by_zero() {
        let work = between(&[reading(10, 100)], &[reading(10, 100)]);
        assert_eq!((work[0].segments, work[0].total()), (0, 0.0));
    }
}
