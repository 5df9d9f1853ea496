//! `millrace top` as text.

use millrace_engine::cycles::Work;

use super::{left, number, render, right};
use crate::cli::top::TopReport;

/// Workers, and below them ports.
pub(crate) fn top(report: &TopReport) -> String {
    let names = Work::ALL.map(|work| work.name().replace('_', " "));
    let heads = ["Worker", "CPU", "Asleep", "Packets/s", "Hit ratio", "Packets/vector", "Cycles/packet"];
    let heads: Vec<&str> = heads.into_iter().chain(names.iter().map(String::as_str)).collect();
    let rows = report.workers.iter().map(|worker| {
        let first = [
            worker.worker.to_string(),
            worker.cpu.map_or("any".into(), |cpu| cpu.to_string()),
            share(worker.asleep),
            whole(worker.packets_per_second),
            share(worker.flow_cache_hits),
            whole(worker.packets_per_vector),
            whole(worker.cycles_per_packet),
        ];
        let work = Work::ALL.map(|work| whole(worker.work.get(work.name()).copied().unwrap_or(0.0)));
        first.into_iter().chain(work).map(right).collect()
    });
    let workers = render(&heads, rows, "No worker runs.");
    let rows = report.ports.iter().map(|port| {
        let numbers = [
            whole(port.cycles_per_packet),
            share(port.share),
            whole(port.received_frames_per_second),
            megabits(port.received_bits_per_second),
            whole(port.sent_frames_per_second),
            megabits(port.sent_bits_per_second),
            whole(port.dropped_frames_per_second),
        ];
        [left(&port.name), left(&port.role)].into_iter().chain(numbers.map(right)).collect()
    });
    let heads = [
        "Port",
        "Role",
        "Cycles/packet",
        "Share",
        "Frames/s in",
        "Mbit/s in",
        "Frames/s out",
        "Mbit/s out",
        "Dropped/s",
    ];
    format!("{workers}\n{}", render(&heads, rows, "No port is attached."))
}

fn whole(value: f64) -> String {
    number(value.round() as u64)
}

fn share(value: f64) -> String {
    format!("{:.1} %", 100.0 * value)
}

fn megabits(bits: f64) -> String {
    format!("{:.2}", bits / 1e6)
}
