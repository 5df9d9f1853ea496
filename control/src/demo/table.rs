//! The report as text for people.

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, Table};
use millrace_engine::cycles::Work;

use super::counters::NodeCounters;
use super::reachability::{Row, Way};
use super::report::{CheckKind, Report};
use super::services::{Share, Spread};
use super::traffic::Family;
use super::traffic::stream::StreamResult;
use super::work::NodeWork;

/// Everything, one table below the other.
pub(super) fn text(report: &Report) -> String {
    [
        reachability(report),
        services(report),
        policies(report),
        speed(report),
        work(report),
        by_uplink(report),
        counters(report),
        events(report),
        drops(report),
        checks(report),
    ]
    .join("\n")
}

fn reachability(report: &Report) -> String {
    let mut kinds: Vec<(&str, Way)> = report.reachability.iter().map(|row| (row.what, row.way)).collect();
    kinds.sort_by_key(|(what, way)| (*what != "ping", *what, *way));
    kinds.dedup();
    let count = |what: &str, way: Way, family: Family| {
        let mine = |row: &&Row| row.what == what && row.way == way && row.family == family;
        let (all, reached) = report
            .reachability
            .iter()
            .filter(mine)
            .fold((0, 0), |(all, reached), row| (all + 1, reached + usize::from(row.reached)));
        right(format!("{reached} of {all}"))
    };
    let rows = kinds.into_iter().map(|(what, way)| {
        vec![left(format!("{what} {}", way.text())), count(what, way, Family::Ipv4), count(what, way, Family::Ipv6)]
    });
    let mut text = render(&["Reachability", "IPv4", "IPv6"], rows);
    for row in report.reachability.iter().filter(|row| !row.reached) {
        let failure = row.failure.as_deref().unwrap_or("not reached");
        text += &format!("  {} {} from {} to {}: {failure}\n", row.what, row.family.text(), row.from, row.to);
    }
    text
}

/// What each endpoint of the Service was given.
fn services(report: &Report) -> String {
    let Some(services) = &report.services else { return String::new() };
    let from = |client: &'static str, spread: &[Spread]| -> Vec<Vec<Cell>> {
        let shares = spread.iter().flat_map(|spread| spread.endpoints.iter().map(|share| (spread.family, share)));
        let row = |(family, share): (Family, &Share)| {
            let endpoint = format!("{} on node {}", share.pod, share.node);
            vec![left(endpoint), left(client), left(family.text()), right(share.connections)]
        };
        shares.map(row).collect()
    };
    let rows = [from("pod", &services.spread), from("outside, node port", &services.from_outside)].concat();
    render(&["Endpoint of Service web", "Client", "Family", "Connections"], rows.into_iter())
}

/// How long each change of the policy took to be felt by a flow that was running.
fn policies(report: &Report) -> String {
    let Some(policies) = &report.policies else { return String::new() };
    let rows = policies.changes.iter().map(|change| {
        let effect = change.effect_milliseconds.map_or("never".to_owned(), |effect| format!("{effect:.1} ms"));
        vec![left(change.what), right(effect)]
    });
    let denied = format!("Datagrams denied and counted for the policy: {}.\n", policies.denied_packets);
    render(&["Policy on a live flow", "From writing the object to its effect"], rows) + &denied
}

fn speed(report: &Report) -> String {
    let mut rows = Vec::new();
    if let Some(best) = report.judged() {
        let streams = [
            ("TCP stream, same node", best.same_node),
            ("TCP stream, AF_XDP on veth (reference)", best.reference),
            ("TCP stream, across nodes", best.across_nodes),
            ("TCP stream, across nodes, IPv6", best.across_nodes_ipv6),
        ];
        rows.extend(streams.map(|(name, result)| stream_row(name, &result)));
    }
    for latency in &report.latency {
        let times = &latency.times;
        rows.push(vec![
            left(format!("1 byte there and back, {}, {}", latency.way.text(), latency.family.text())),
            right(format!("p50 {:.0} us", times.p50_microseconds)),
            right(format!("p99 {:.0} us", times.p99_microseconds)),
        ]);
    }
    for first in &report.first_packet_after_idle {
        let way = first.way.text();
        let ends = [
            (&first.to_interface, "in the sender's interface"),
            (&first.to_kernel, "in the pod's kernel"),
            (&first.to_thread, "the pod's thread runs"),
        ];
        for (times, end) in ends {
            let worst = times.microseconds.iter().copied().fold(0.0, f64::max);
            rows.push(vec![
                left(format!("first packet after idle, one way, {way}: {end}")),
                right(format!("median {:.0} us", times.median_microseconds)),
                right(format!("worst {worst:.0} us")),
            ]);
        }
    }
    for idle in &report.idle {
        let share = format!("{:.2} % of a core", idle.share_of_core * 100.0);
        rows.push(vec![left(format!("idle agent of node {}", idle.node)), right(share), left("")]);
    }
    render(&["Speed", "", ""], rows.into_iter())
}

/// Where the workers' time went in the stream across nodes.
fn work(report: &Report) -> String {
    let Some(nodes) = report.judged().map(|best| &best.across_nodes_work) else { return String::new() };
    let per_node = |name: String, of: &dyn Fn(&NodeWork) -> f64| {
        std::iter::once(left(name)).chain(nodes.iter().map(|node| right(format!("{:.0}", of(node))))).collect()
    };
    let kinds = Work::ALL.map(|work| {
        let of = |node: &NodeWork| node.cycles_per_segment.get(work.name()).copied().unwrap_or(0.0);
        per_node(work.name().to_owned(), &of)
    });
    let rows = kinds.into_iter().chain([per_node("together".to_owned(), &NodeWork::total)]);
    let heads: Vec<_> = nodes.iter().map(|node| format!("Node {}", node.node)).collect();
    let first = format!("Cycles a segment, stream across nodes, {} worker(s) each", report.workers);
    let heads: Vec<_> = std::iter::once(first.as_str()).chain(heads.iter().map(String::as_str)).collect();
    render(&heads, rows)
}

/// The way between the nodes, with uplinks of each kind.
fn by_uplink(report: &Report) -> String {
    let rows = report.by_uplink.iter().map(|by| {
        let cycles: Vec<String> = by.work.iter().map(|node| format!("{:.0}", node.total())).collect();
        vec![
            left(by.kind),
            right(format!("{:.2} Gbit/s", by.stream.gigabits_per_second)),
            right(cycles.join(" and ")),
            right(format!("{:.0} us", by.transactions.p50_microseconds)),
            right(format!("{:.0} us", by.transactions.p99_microseconds)),
        ]
    });
    let cycles = "Cycles a segment, by node";
    render(&["Across nodes, uplinks by", "TCP stream", cycles, "1 byte there and back, p50", "p99"], rows)
}

fn stream_row(name: &str, result: &StreamResult) -> Vec<Cell> {
    let again = format!("{} of {} segments sent again", result.retransmitted_segments, result.segments);
    vec![left(name), right(format!("{:.2} Gbit/s", result.gigabits_per_second)), right(again)]
}

fn counters(report: &Report) -> String {
    let rows = report.nodes.iter().map(|node| {
        let dropped = node.drops.iter().map(|drop| drop.frames).fold(0, u64::saturating_add);
        let ports =
            |of: fn(&crate::api::model::PortReport) -> u64| node.ports.iter().map(of).fold(0, u64::saturating_add);
        vec![
            left(&node.node),
            right(ports(|port| port.received_frames)),
            right(ports(|port| port.sent_frames)),
            right(dropped),
            right(node.sum(|worker| worker.held_frames)),
            right(node.status.unaccounted_frames),
            right(node.sum(|worker| worker.flow_cache_hits)),
            right(node.sum(|worker| worker.flow_cache_misses)),
        ]
    });
    render(&["Node", "Received", "Sent", "Dropped", "Held", "Unaccounted", "Cache hits", "Misses"], rows)
}

/// Every event that happened on any node.
fn events(report: &Report) -> String {
    let nodes: Vec<_> = report.nodes.iter().map(NodeCounters::events).collect();
    let names: BTreeSet<&str> = nodes.iter().flat_map(|events| events.keys().copied()).collect();
    let count = |events: &BTreeMap<&str, u64>, name: &str| events.get(name).copied().unwrap_or(0);
    let happened = names.into_iter().filter(|name| nodes.iter().any(|events| count(events, name) > 0));
    let row = |name| std::iter::once(left(name)).chain(nodes.iter().map(|events| right(count(events, name)))).collect();
    let heads: Vec<_> = report.nodes.iter().map(|node| format!("Node {}", node.node)).collect();
    let heads: Vec<_> = std::iter::once("Event").chain(heads.iter().map(String::as_str)).collect();
    render(&heads, happened.map(row))
}

fn drops(report: &Report) -> String {
    let mut rows = Vec::new();
    for node in &report.nodes {
        for drop in node.drops.iter().filter(|drop| drop.frames > 0) {
            rows.push(vec![left(&node.node), left(&drop.reason), right(drop.frames), left(&drop.sentence)]);
        }
    }
    if rows.is_empty() {
        return "Nothing was dropped.\n".to_owned();
    }
    render(&["Node", "Drop reason", "Frames", "What happened"], rows.into_iter())
}

fn checks(report: &Report) -> String {
    let rows = report.checks.iter().map(|check| {
        let verdict = match (check.held, check.kind) {
            (true, _) => "held",
            (false, CheckKind::Requirement) => "FAILED",
            (false, CheckKind::Goal) => "goal MISSED",
        };
        vec![left(check.name), left(&check.expected), left(&check.seen), left(verdict)]
    });
    render(&["Check", "Expected", "Seen", ""], rows)
}

fn render(heads: &[&str], rows: impl Iterator<Item = Vec<Cell>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(heads.to_vec());
    for row in rows {
        table.add_row(row);
    }
    table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned() + "\n").collect()
}

fn left(text: impl ToString) -> Cell {
    Cell::new(text.to_string())
}

fn right(text: impl ToString) -> Cell {
    Cell::new(text.to_string()).set_alignment(CellAlignment::Right)
}
