//! The documents of the API as text for people: pure functions, full words, units that suit the size.

mod addresses;
mod policies;
mod receipts;
mod stations;
mod top;

use std::fmt::Write as _;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment};
use millrace_engine::cycles::Work;

use crate::api::model::{
    ConnectionsReport, DropReport, EventsReport, FlowsReport, FrontendReport, NeighbourReport, PortReport, Problem,
    QueueReport, RouteReport, RouteTargetReport, ServiceReport, StatusReport, TraceReport, WorkerReport,
};

pub(super) use addresses::{ipam, ipam_check};
pub(super) use policies::{policies, policy_diff, policy_reach};
pub(super) use receipts::receipts;
pub(super) use stations::stations;
pub(super) use top::top;

/// `show ports`.
pub(super) fn ports(list: &[PortReport]) -> String {
    let heads = ["Port", "Name", "Role", "Kind", "Queues", "Addresses", "MTU", "Received", "Sent", "Dropped"];
    let rows = list.iter().map(|port| {
        vec![
            right(port.index.to_string()),
            left(&port.name),
            left(port.segment.as_ref().map_or(port.role.clone(), |segment| format!("{} in {segment}", port.role))),
            left(&port.kind),
            left(queues(&port.queues, port.chosen.as_deref())),
            left(port.addresses.join("\n")),
            right(port.mtu_bytes.to_string()),
            right(traffic(port.received_frames, port.received_bytes, port.egress_bits_per_second)),
            right(traffic(port.sent_frames, port.sent_bytes, port.ingress_bits_per_second)),
            right(number(port.dropped_frames)),
        ]
    });
    render(&heads, rows, "No port is attached.")
}

fn traffic(frames: u64, sum: u64, limit: Option<u64>) -> String {
    let limit = limit.map(|limit| format!("\nat most {} kbit/s", number(limit / 1_000)));
    format!("{}\n{}{}", count(frames, "frame"), bytes(sum), limit.unwrap_or_default())
}

fn queues(list: &[QueueReport], chosen: Option<&str>) -> String {
    let line = |queue: &QueueReport| {
        let lost = queue.kernel_dropped_frames;
        let lost = if lost == 0 { String::new() } else { format!(", kernel dropped {}", number(lost)) };
        format!("worker {}: {}{lost}", queue.worker, queue.mode)
    };
    list.iter().map(line).chain(chosen.map(str::to_owned)).collect::<Vec<_>>().join("\n")
}

/// `show workers`.
pub(super) fn workers(list: &[WorkerReport]) -> String {
    let heads =
        ["Worker", "CPU", "Awake", "Flows", "Flow cache hits", "Misses", "Hit ratio", "Held", "Free frames", "Tables"];
    let rows = list.iter().map(|worker| {
        let awake = worker.uptime_nanoseconds.saturating_sub(worker.slept_nanoseconds);
        let packets = worker.flow_cache_hits.saturating_add(worker.flow_cache_misses);
        vec![
            right(worker.worker.to_string()),
            right(worker.cpu.map_or("any".into(), |cpu| cpu.to_string())),
            right(percent(awake, worker.uptime_nanoseconds)),
            right(number(worker.flows)),
            right(number(worker.flow_cache_hits)),
            right(number(worker.flow_cache_misses)),
            right(percent(worker.flow_cache_hits, packets)),
            right(number(worker.held_frames)),
            right(number(worker.free_frames)),
            right(format!("generation {}", worker.generation)),
        ]
    });
    let mut text = render(&heads, rows, "No worker runs.");
    let measured: Vec<&WorkerReport> = list.iter().filter(|worker| worker.cycles.packets > 0).collect();
    if !measured.is_empty() {
        text.push_str(&work(&measured));
        text.push_str(&work_by_port(&measured));
    }
    text
}

/// Cycles a packet by kind of work.
fn work(list: &[&WorkerReport]) -> String {
    let names = Work::ALL.map(|work| work.name().replace('_', " "));
    let heads = ["Worker", "Packets/vector", "Cycles/packet"].into_iter().chain(names.iter().map(String::as_str));
    let rows = list.iter().map(|worker| {
        let cycles = &worker.cycles;
        let of = |work: Work| cycles.work.get(work.name()).copied().unwrap_or(0);
        let total: u64 = Work::ALL.iter().map(|work| of(*work)).sum();
        let first = [worker.worker.to_string(), ratio(cycles.packets, cycles.vectors), ratio(total, cycles.packets)];
        first.into_iter().chain(Work::ALL.map(|work| ratio(of(work), cycles.packets))).map(right).collect()
    });
    format!("\n{}", render(&heads.collect::<Vec<_>>(), rows, ""))
}

/// What the packets of each port cost.
fn work_by_port(list: &[&WorkerReport]) -> String {
    let rows = list.iter().flat_map(|worker| {
        let total: u64 = worker.cycles.ports.iter().map(|port| port.cycles).sum();
        worker.cycles.ports.iter().map(move |port| {
            vec![
                right(worker.worker.to_string()),
                left(&port.port),
                right(ratio(port.cycles, port.packets)),
                right(percent(port.cycles, total)),
            ]
        })
    });
    let heads = ["Worker", "From port", "Cycles/packet", "Share of cycles"];
    format!("\n{}", render(&heads, rows, "No port was measured."))
}

fn ratio(of: u64, to: u64) -> String {
    (of + to / 2).checked_div(to).map_or("-".into(), number)
}

/// `show routes`.
pub(super) fn routes(list: &[RouteReport]) -> String {
    let rows = list.iter().map(|route| {
        let target = match &route.target {
            RouteTargetReport::Port { port, mac } => format!("port {port}, MAC {mac}"),
            RouteTargetReport::Tunnel { peer, mac } => format!("tunnel to {peer}, MAC {mac}"),
            RouteTargetReport::Direct { peer } => format!("directly to {peer}"),
            RouteTargetReport::Outside { port, gateway: Some(gateway), source } => {
                format!("outside by {port}, router {gateway}, as {source}")
            }
            RouteTargetReport::Outside { port, gateway: None, source } => format!("outside by {port}, as {source}"),
            RouteTargetReport::Unreachable => "unreachable".into(),
        };
        vec![left(&route.segment), left(&route.prefix), left(target), left(&route.object)]
    });
    render(&["Segment", "Prefix", "Target", "Object"], rows, "There is no route.")
}

/// `show services`: a line for each endpoint, those of one Service below each other.
pub(super) fn services(list: &[ServiceReport]) -> String {
    let rows = list.iter().flat_map(|service| {
        let place = |frontend: &FrontendReport| match &frontend.address {
            Some(address) => format!("{} {}", frontend.kind, endpoint(address, frontend.port)),
            None => format!("{} {}", frontend.kind, frontend.port),
        };
        let places = service.frontends.iter().map(place).collect::<Vec<_>>().join(", ");
        let affinity = service.affinity_seconds.map(|seconds| format!(", affinity {seconds} s")).unwrap_or_default();
        let about = [
            left(&service.name),
            left(&service.protocol),
            left(places),
            left(format!("{}{affinity}", service.balance)),
        ];
        let none =
            || [left("none"), left(""), right(number(service.picks)), right(service.live_connections.to_string())];
        let behind = service.endpoints.iter().map(|known| {
            let mut state = known.state.clone();
            state += if known.local { ", local" } else { "" };
            state += if known.in_use { "" } else { ", unused" };
            [
                left(format!("{} {}", known.name, endpoint(&known.address, known.port))),
                left(state),
                right(number(known.picks)),
                right(known.live_connections.to_string()),
            ]
        });
        let mut behind: Vec<_> = behind.collect();
        if behind.is_empty() {
            behind.push(none());
        }
        let blank = || [left(""), left(""), left(""), left("")];
        let first = std::iter::once(about).chain(std::iter::repeat_with(blank));
        first.zip(behind).map(|(about, endpoint)| about.into_iter().chain(endpoint).collect()).collect::<Vec<Vec<_>>>()
    });
    let heads = ["Service", "Protocol", "Reached at", "Balance", "Endpoint", "State", "Picks", "Live"];
    render(&heads, rows, "There is no Service.")
}

/// `show neighbours`.
pub(super) fn neighbours(list: &[NeighbourReport]) -> String {
    let rows = list.iter().map(|neighbour| {
        vec![
            left(&neighbour.interface),
            left(&neighbour.address),
            left(neighbour.mac.as_deref().unwrap_or("unresolved")),
            left(&neighbour.state),
            left(neighbour.nodes.join(", ")),
        ]
    });
    render(&["Interface", "Address", "MAC", "State", "Nodes"], rows, "No other node is known.")
}

/// `show flows`.
pub(super) fn flows(report: &FlowsReport) -> String {
    let heads =
        ["Worker", "Segment", "Protocol", "Source", "Destination", "From port", "Verdict", "Packets", "Bytes", "Idle"];
    let rows = report.flows.iter().map(|flow| {
        let verdict =
            if flow.egress.is_empty() { flow.verdict.clone() } else { format!("{} to {}", flow.verdict, flow.egress) };
        vec![
            right(flow.worker.to_string()),
            left(&flow.segment),
            left(&flow.protocol),
            left(endpoint(&flow.source, flow.source_port)),
            left(endpoint(&flow.destination, flow.destination_port)),
            left(&flow.ingress),
            left(verdict),
            right(number(flow.packets)),
            right(bytes(flow.bytes)),
            right(duration(flow.idle_milliseconds)),
        ]
    });
    let mut text = render(&heads, rows, "No flow is cached.");
    let shown = report.flows.len() as u64;
    if shown < report.total {
        let _ = writeln!(text, "{} of {} flows shown; --limit shows more.", number(shown), number(report.total));
    }
    text
}

/// `show connections`.
pub(super) fn connections(report: &ConnectionsReport) -> String {
    let heads = ["Segment", "Protocol", "State", "From", "To", "Answers from", "Answers to", "Service", "Age", "Idle"];
    let rows = report.connections.iter().map(|connection| {
        let (original, reply) = (&connection.original, &connection.reply);
        vec![
            left(&connection.segment),
            left(&connection.protocol),
            left(&connection.state),
            left(endpoint(&original.source, original.source_port)),
            left(endpoint(&original.destination, original.destination_port)),
            left(endpoint(&reply.source, reply.source_port)),
            left(endpoint(&reply.destination, reply.destination_port)),
            left(connection.service.as_deref().unwrap_or_default()),
            right(duration(connection.age_milliseconds)),
            right(duration(connection.idle_milliseconds)),
        ]
    });
    let mut text = render(&heads, rows, "There is no such connection.");
    let shown = report.connections.len() as u64;
    let _ = writeln!(
        text,
        "{} of {} shown; {} of {} there may be.",
        number(shown),
        number(report.matching),
        number(report.total),
        number(report.capacity)
    );
    text
}

/// `show drops`.
pub(super) fn drops(list: &[DropReport]) -> String {
    let heads = ["Reason", "Frames", "What happened, and what to check next"];
    let rows = list.iter().map(|drop| {
        let denied = drop.policies.iter().map(|of| format!("\n{} by {}", number(of.frames), of.policy));
        let words = format!("{}\n{}{}", drop.sentence, drop.next_step, denied.collect::<String>());
        vec![left(&drop.reason), right(number(drop.frames)), left(words)]
    });
    render(&heads, rows, "Nothing was dropped.")
}

/// `show status`.
pub(super) fn status(report: &StatusReport) -> String {
    let tables = match report.generation {
        0 => "none published yet".into(),
        generation => format!(
            "generation {generation}, published {} ago",
            duration(report.tables_age_seconds.saturating_mul(1000))
        ),
    };
    let connections = match &report.connections_end {
        None => format!("{} of the agent before, kept for the next", report.connections_taken_over),
        Some(_) => format!("{} of the agent before, not kept", report.connections_taken_over),
    };
    let events = report.events.map(|events| {
        let EventsReport { written, refused, dropped, waiting } = events;
        ("Events", format!("{written} written, {refused} refused, {dropped} dropped, {waiting} waiting"))
    });
    let takeover = report.takeover_gaps_us.as_ref().map(|gaps| {
        let longest = gaps.iter().max().copied().unwrap_or(0);
        ("Took over", format!("from the agent before, {longest} us without forwarding"))
    });
    let mut text = String::new();
    for (name, value) in [
        ("Node", report.node.clone()),
        ("Version", report.version.clone()),
        ("Running for", duration(report.uptime_seconds.saturating_mul(1000))),
        ("Tables", tables),
        ("Workers", report.workers.to_string()),
        ("Ports", report.ports.to_string()),
        ("Pods", report.pods.to_string()),
        ("Uplinks", report.uplinks.to_string()),
        ("Connections", connections),
        ("Frames unaccounted for", report.unaccounted_frames.to_string()),
        ("Problems", if report.problems.is_empty() { "none".into() } else { report.problems.len().to_string() }),
    ]
    .into_iter()
    .chain(takeover)
    .chain(events)
    {
        let _ = writeln!(text, "{:<24}{value}", format!("{name}:"));
    }
    for problem in &report.problems {
        let _ = writeln!(text, "  {}", problem_line(problem));
    }
    text
}

/// `file:line: object: message`, without what is not known.
fn problem_line(problem: &Problem) -> String {
    let place = match (problem.file.is_empty(), problem.line) {
        (true, _) => String::new(),
        (false, Some(line)) => format!("{}:{line}: ", problem.file),
        (false, None) => format!("{}: ", problem.file),
    };
    let object = problem.object.as_ref().map_or(String::new(), |object| format!("{object}: "));
    format!("{place}{object}{}", problem.message)
}

/// `trace`.
pub(super) fn trace(report: &TraceReport) -> String {
    let mut text = format!("{}\ntables of generation {}\n", report.packet, report.generation);
    let rows = report.steps.iter().map(|step| vec![left(&step.stage), left(&step.decision), left(&step.object)]);
    text += &render(&["Stage", "Decision", "Object"], rows, "No stage was reached.");
    let _ = writeln!(text, "=> {}", report.verdict);
    if let Some(drop) = &report.drop {
        let _ = writeln!(text, "   {}\n   Next: {}", drop.sentence, drop.next_step);
    }
    text
}

fn render(heads: &[&str], rows: impl Iterator<Item = Vec<Cell>>, nothing: &str) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(heads.to_vec());
    let mut empty = true;
    for row in rows {
        table.add_row(row);
        empty = false;
    }
    if empty {
        return format!("{nothing}\n");
    }
    // Cells are padded on both sides; at the ends of a line the blanks only spoil comparison.
    table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned() + "\n").collect()
}

fn left(text: impl ToString) -> Cell {
    Cell::new(text.to_string())
}

fn right(text: impl ToString) -> Cell {
    Cell::new(text.to_string()).set_alignment(CellAlignment::Right)
}

fn endpoint(address: &str, port: u16) -> String {
    match (port, address.contains(':')) {
        (0, _) => address.into(),
        (_, true) => format!("[{address}]:{port}"),
        (_, false) => format!("{address}:{port}"),
    }
}

fn count(amount: u64, noun: &str) -> String {
    format!("{} {noun}{}", number(amount), if amount == 1 { "" } else { "s" })
}

/// With a comma between thousands.
fn number(amount: u64) -> String {
    let digits = amount.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn bytes(amount: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = amount as f64;
    let mut unit = "B";
    for larger in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "B" { format!("{amount} B") } else { format!("{value:.1} {unit}") }
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".into() } else { format!("{:.1} %", part as f64 * 100.0 / whole as f64) }
}

fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0 => format!("{milliseconds} ms"),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests;
