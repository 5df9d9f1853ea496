//! What became of one packet, with the bytes that left, and how that is written down.
//!
//! ```text
//! 7 0.000600000 default/client tcp syn 10.1.0.5:40000 > 192.0.2.1:10250
//!   admit default/client in segment pods
//!   route 192.0.2.1/32 this node
//!   => millrace0 tcp syn 10.1.0.5:40000 > 192.0.2.1:10250
//!   => dropped no_route
//! ```
//! Number, time, port and packet; a line for each stage; a line for each frame that left, or each reason of a drop.

use std::fmt;

use millrace_engine::port::memory::WireFrame;
use millrace_engine::testing::describe;

use super::Arrival;
use super::report::{PacketReport, SentReport};

const WITH_NEXT: &str = "with the next";
const DROPPED: &str = "dropped ";

/// What became of one packet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fate {
    /// In words.
    pub report: PacketReport,
    /// The frames that left, in the order of `report.sent`.
    pub frames: Vec<Vec<u8>>,
}

impl Fate {
    pub(super) fn of(arrival: &Arrival<'_>, trail: String) -> Self {
        let report = PacketReport {
            number: arrival.number,
            time_nanoseconds: arrival.elapsed,
            port: arrival.name.to_owned(),
            packet: describe(arrival.bytes),
            trail,
            ..PacketReport::default()
        };
        Self { report, frames: Vec::new() }
    }

    pub(super) fn sends(&mut self, port: String, frame: WireFrame) {
        let mut packet = describe(&frame.bytes);
        if let Some(gso) = frame.gso {
            packet += &format!(" gso {}", gso.size);
        }
        self.report.sent.push(SentReport { port, packet });
        self.frames.push(frame.bytes);
    }
}

/// Nanoseconds as seconds.
pub(super) struct Seconds(pub(super) u64);

impl fmt::Display for Seconds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

impl Seconds {
    fn read(text: &str) -> Option<Self> {
        let (seconds, rest) = text.split_once('.').filter(|(_, rest)| rest.len() == 9)?;
        Some(Self(seconds.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(rest.parse().ok()?)?))
    }
}

/// The report as lines of a file.
pub(super) fn lines_of(report: &PacketReport) -> String {
    let time = Seconds(report.time_nanoseconds);
    let mut text = format!("{} {time} {} {}\n", report.number, report.port, report.packet);
    report.trail.split(" | ").for_each(|step| text += &format!("  {step}\n"));
    let is_told = report.with_next || !report.sent.is_empty() || !report.dropped.is_empty();
    if is_told {
        report.ends().iter().for_each(|end| text += &format!("  => {end}\n"));
    }
    text
}

/// The reports that such lines tell; the number of the line that cannot be read, from 1.
pub(super) fn read_lines(text: &str) -> Result<Vec<PacketReport>, usize> {
    let mut reports: Vec<PacketReport> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        match (line.strip_prefix("  "), reports.last_mut()) {
            _ if line.starts_with('#') => {}
            (None, _) => reports.push(begun(line).ok_or(number)?),
            (Some(rest), Some(report)) => go_on(report, rest).ok_or(number)?,
            (Some(_), None) => return Err(number),
        }
    }
    Ok(reports)
}

fn begun(line: &str) -> Option<PacketReport> {
    let mut words = line.splitn(4, ' ');
    Some(PacketReport {
        number: words.next()?.parse().ok()?,
        time_nanoseconds: Seconds::read(words.next()?)?.0,
        port: words.next()?.to_owned(),
        packet: words.next()?.to_owned(),
        ..PacketReport::default()
    })
}

fn go_on(report: &mut PacketReport, line: &str) -> Option<()> {
    match line.strip_prefix("=> ") {
        Some(WITH_NEXT) => report.with_next = true,
        Some(end) => match end.strip_prefix(DROPPED) {
            Some(reason) => report.dropped.push(reason.to_owned()),
            None => {
                let (port, packet) = end.split_once(' ')?;
                report.sent.push(SentReport { port: port.to_owned(), packet: packet.to_owned() });
            }
        },
        None => {
            let separator = if report.trail.is_empty() { "" } else { " | " };
            report.trail += &format!("{separator}{line}");
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_reads_as_it_was() {
        let sent = |port: &str, packet: &str| SentReport { port: port.to_owned(), packet: packet.to_owned() };
        let reports = [
            PacketReport {
                number: 1,
                time_nanoseconds: 61_000_000_007,
                port: "default/client".to_owned(),
                packet: "nd who-has fe80::1 tell ::".to_owned(),
                trail: "admit default/client in segment pods | route drop no_route".to_owned(),
                sent: vec![sent("eth1", "udp 10.1.0.5:1 > 10.1.0.6:2"), sent("p1", "arp who-has ::")],
                dropped: vec!["no_route".to_owned()],
                with_next: false,
            },
            PacketReport { number: 2, port: "p1".to_owned(), with_next: true, ..PacketReport::default() },
            PacketReport { number: 3, port: "p1".to_owned(), packet: "x".to_owned(), ..PacketReport::default() },
        ];
        let text: String = reports.iter().map(lines_of).collect();
        assert_eq!(read_lines(&format!("# a comment\n{text}")), Ok(reports.to_vec()));
    }

    #[test]
    fn what_is_no_run_is_told_by_its_line() {
        for (text, line) in [("  admit\n", 1), ("1 0.0 p1 x\n", 1), ("1 0.000000000 p1 x\n  => word\n", 2), ("x\n", 1)]
        {
            assert_eq!(read_lines(text), Err(line), "{text}");
        }
    }
}
