//! `millrace top`: what workers and ports did in the last interval, until interrupted.
//!
//! The agent counts since its start; this asks twice and shows the difference, the dearest port first, so that a pod which
//! makes the node busy stands at the top. Cycles are of one turn in 31 (`engine/src/cycles.rs`): shares and cycles a
//! packet are estimates, frames and bytes are exact. Costs the agent two requests an interval.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::{Format, Output, print_text, table};
use crate::api::client::Client;
use crate::api::model::{CyclesReport, PortReport, WorkerReport};

/// Clears a terminal and goes to its first line (ECMA-48 sections 8.3.21 and 8.3.39).
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Options of `millrace top`.
#[derive(Debug, Args)]
pub(super) struct TopOptions {
    /// Seconds between two looks
    #[arg(long, default_value_t = 1.0, value_parser = parse_seconds)]
    interval: f64,
    /// How many intervals to show; 0 goes on until interrupted
    #[arg(long, default_value_t = 0)]
    count: u64,
    #[command(flatten)]
    output: Output,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "is not a number of seconds".to_owned())?;
    if (0.05..=3_600.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("lies outside of 0.05 to 3600 seconds".to_owned())
    }
}

/// One interval. With `-o json` a line each.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct TopReport {
    /// Its length.
    pub(super) seconds: f64,
    /// The workers, by number.
    pub(super) workers: Vec<TopWorker>,
    /// The ports, those whose packets cost most first.
    pub(super) ports: Vec<TopPort>,
}

/// One worker in the interval.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct TopWorker {
    pub(super) worker: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu: Option<u32>,
    /// Share of the interval that it slept, 0 to 1.
    pub(super) asleep: f64,
    pub(super) packets_per_second: f64,
    /// Share of packets served by the flow cache, 0 to 1.
    pub(super) flow_cache_hits: f64,
    pub(super) packets_per_vector: f64,
    pub(super) cycles_per_packet: f64,
    /// The same by kind of work.
    pub(super) work: BTreeMap<String, f64>,
}

/// One port in the interval.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct TopPort {
    pub(super) name: String,
    pub(super) role: String,
    pub(super) received_frames_per_second: f64,
    pub(super) received_bits_per_second: f64,
    pub(super) sent_frames_per_second: f64,
    pub(super) sent_bits_per_second: f64,
    pub(super) dropped_frames_per_second: f64,
    /// What a packet that it sent in cost, until it lay in the list of another port.
    pub(super) cycles_per_packet: f64,
    /// Its packets' share of what all ports' packets cost, 0 to 1.
    pub(super) share: f64,
}

/// What the agent had counted at one moment.
#[derive(Debug, Default)]
struct Look {
    workers: Vec<WorkerReport>,
    ports: Vec<PortReport>,
}

impl Look {
    fn take(client: &Client) -> anyhow::Result<(Instant, Self)> {
        let look = Self { workers: client.show("workers")?, ports: client.show("ports")? };
        Ok((Instant::now(), look))
    }

    fn uptime(&self) -> u64 {
        self.workers.iter().map(|worker| worker.uptime_nanoseconds).max().unwrap_or(0)
    }
}

pub(super) fn run(options: &TopOptions) -> anyhow::Result<()> {
    let client = options.output.client();
    let on_screen = io::stdout().is_terminal() && options.output.format == Format::Table;
    let (mut since, mut before) = Look::take(&client)?;
    for number in 1.. {
        std::thread::sleep(Duration::from_secs_f64(options.interval));
        let (now, after) = Look::take(&client)?;
        let report = difference(&before, &after, now - since);
        let text = match options.output.format {
            Format::Json => serde_json::to_string(&report)? + "\n",
            Format::Table if on_screen => format!("{CLEAR}{}", table::top(&report)),
            Format::Table if number > 1 => format!("\n{}", table::top(&report)),
            Format::Table => table::top(&report),
        };
        print_text(&text)?;
        if number == options.count {
            break;
        }
        (since, before) = (now, after);
    }
    Ok(())
}

fn difference(before: &Look, after: &Look, passed: Duration) -> TopReport {
    let nothing = Look::default();
    // An agent that was started anew counts from zero.
    let before = if after.uptime() < before.uptime() { &nothing } else { before };
    let seconds = passed.as_secs_f64().max(1e-6);
    let worker = |after: &WorkerReport| {
        let before = before.workers.iter().find(|before| before.worker == after.worker);
        worker_difference(before.unwrap_or(&WorkerReport::default()), after, seconds)
    };
    let (costs_before, costs) = (port_costs(&before.workers), port_costs(&after.workers));
    let cost = |name: &str| {
        let (packets, cycles) = costs.get(name).copied().unwrap_or_default();
        let (packets_before, cycles_before) = costs_before.get(name).copied().unwrap_or_default();
        (packets.saturating_sub(packets_before), cycles.saturating_sub(cycles_before))
    };
    let total: u64 = costs.keys().map(|name| cost(name).1).sum();
    let port = |after: &PortReport| {
        let before = before.ports.iter().find(|before| before.index == after.index && before.name == after.name);
        let before = before.cloned().unwrap_or_default();
        let per_second = |after: u64, before: u64| after.saturating_sub(before) as f64 / seconds;
        let (packets, cycles) = cost(&after.name);
        TopPort {
            name: after.name.clone(),
            role: after.role.clone(),
            received_frames_per_second: per_second(after.received_frames, before.received_frames),
            received_bits_per_second: 8.0 * per_second(after.received_bytes, before.received_bytes),
            sent_frames_per_second: per_second(after.sent_frames, before.sent_frames),
            sent_bits_per_second: 8.0 * per_second(after.sent_bytes, before.sent_bytes),
            dropped_frames_per_second: per_second(after.dropped_frames, before.dropped_frames),
            cycles_per_packet: ratio(cycles, packets),
            share: ratio(cycles, total),
        }
    };
    let mut ports: Vec<_> = after.ports.iter().map(port).collect();
    ports.sort_by(|one, other| other.share.total_cmp(&one.share).then_with(|| one.name.cmp(&other.name)));
    TopReport { seconds, workers: after.workers.iter().map(worker).collect(), ports }
}

fn worker_difference(before: &WorkerReport, after: &WorkerReport, seconds: f64) -> TopWorker {
    let moved = |of: fn(&WorkerReport) -> u64| of(after).saturating_sub(of(before));
    let cycles = |of: fn(&CyclesReport) -> u64| of(&after.cycles).saturating_sub(of(&before.cycles));
    let (hits, misses) = (moved(|worker| worker.flow_cache_hits), moved(|worker| worker.flow_cache_misses));
    let packets = cycles(|cycles| cycles.packets);
    let work = after.cycles.work.iter().map(|(name, cycles)| {
        let before = before.cycles.work.get(name).copied().unwrap_or(0);
        (name.clone(), ratio(cycles.saturating_sub(before), packets))
    });
    let work: BTreeMap<_, _> = work.collect();
    TopWorker {
        worker: after.worker,
        cpu: after.cpu,
        asleep: ratio(moved(|worker| worker.slept_nanoseconds), moved(|worker| worker.uptime_nanoseconds)).min(1.0),
        packets_per_second: (hits + misses) as f64 / seconds,
        flow_cache_hits: ratio(hits, hits + misses),
        packets_per_vector: ratio(packets, cycles(|cycles| cycles.vectors)),
        cycles_per_packet: work.values().sum(),
        work,
    }
}

/// Packets and cycles of each port's packets, of all workers.
fn port_costs(workers: &[WorkerReport]) -> BTreeMap<&str, (u64, u64)> {
    let mut costs: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for port in workers.iter().flat_map(|worker| &worker.cycles.ports) {
        let cost = costs.entry(&port.port).or_default();
        *cost = (cost.0 + port.packets, cost.1 + port.cycles);
    }
    costs
}

/// Zero where there is nothing to divide by.
fn ratio(of: u64, to: u64) -> f64 {
    if to == 0 { 0.0 } else { of as f64 / to as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::model::PortCyclesReport;

    fn look(scale: u64) -> Look {
        let port = |name: &str, packets, cycles| PortCyclesReport {
            port: name.into(),
            packets: packets * scale,
            cycles: cycles * scale,
        };
        let worker = WorkerReport {
            worker: 0,
            cpu: Some(1),
            slept_nanoseconds: 250_000_000 * scale,
            uptime_nanoseconds: 1_000_000_000 * scale,
            flow_cache_hits: 990 * scale,
            flow_cache_misses: 10 * scale,
            cycles: CyclesReport {
                packets: 32 * scale,
                vectors: 2 * scale,
                work: [("receive", 3_200), ("edit", 640)].map(|(name, cycles)| (name.into(), cycles * scale)).into(),
                idle: 0,
                ports: vec![port("default/calm", 2, 200), port("default/noisy", 30, 1_800)],
            },
            ..WorkerReport::default()
        };
        let port = |index, name: &str, frames| PortReport {
            index,
            name: name.into(),
            role: "pod".into(),
            received_frames: frames * scale,
            received_bytes: 1_000 * frames * scale,
            sent_frames: scale,
            dropped_frames: scale,
            ..PortReport::default()
        };
        Look { workers: vec![worker], ports: vec![port(0, "default/calm", 20), port(1, "default/noisy", 500)] }
    }

    #[test]
    fn the_difference_of_two_looks_is_shown_dearest_port_first() {
        let report = difference(&look(2), &look(4), Duration::from_secs(2));
        let expected = r#"Worker  CPU  Asleep  Packets/s  Hit ratio  Packets/vector  Cycles/packet  receive  read  look up  edit  send  decide  transmit  housekeeping
     0    1  25.0 %      1,000     99.0 %              16            120      100     0        0    20     0       0         0             0

Port           Role  Cycles/packet    Share  Frames/s in   Mbit/s in  Frames/s out  Mbit/s out  Dropped/s
default/noisy  pod              60   90.0 %          500        4.00             1        0.00          1
default/calm   pod             100   10.0 %           20        0.16             1        0.00          1"#;
        let squeezed = |text: &str| {
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(squeezed(&table::top(&report)), squeezed(expected));
    }

    #[test]
    fn an_agent_that_was_started_anew_counts_from_zero() {
        let report = difference(&look(4), &look(1), Duration::from_secs(1));
        assert_eq!(report.workers[0].packets_per_second, 1_000.0);
        assert_eq!(report.ports[0].received_frames_per_second, 500.0);
        assert_eq!(difference(&look(1), &look(1), Duration::ZERO).workers[0].cycles_per_packet, 0.0);
    }
}
