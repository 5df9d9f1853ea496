//! What a replay tells: one report a packet, one line each for people.

use std::fmt;

use serde::Serialize;

use crate::problem::Problem;

/// What became of one packet.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PacketReport {
    /// Its number, from 1.
    pub number: u64,
    /// Nanoseconds since the first packet, by the replay's clock.
    pub time_nanoseconds: u64,
    /// The port it came in by.
    pub port: String,
    /// The packet.
    pub packet: String,
    /// Each stage's decision with its reason, as `millrace trace` words it.
    pub trail: String,
    /// What left because of it, in order of the ports: with all rewrites done.
    pub sent: Vec<SentReport>,
    /// Reasons for which frames were dropped.
    pub dropped: Vec<String>,
}

/// A packet that left.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SentReport {
    /// The port it left by.
    pub port: String,
    /// The packet.
    pub packet: String,
}

impl fmt::Display for PacketReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, rest) = (self.time_nanoseconds / 1_000_000_000, self.time_nanoseconds % 1_000_000_000);
        write!(formatter, "{} {seconds}.{rest:09} {} {}", self.number, self.port, self.packet)?;
        write!(formatter, " :: {}", self.trail)?;
        let mut ends: Vec<String> = self.sent.iter().map(|sent| format!("{} {}", sent.port, sent.packet)).collect();
        ends.extend(self.dropped.iter().map(|reason| format!("dropped {reason}")));
        let end = if ends.is_empty() { "consumed".to_owned() } else { ends.join(" ; ") };
        write!(formatter, " => {end}")
    }
}

/// What a replay came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Packets that came in.
    pub packets: u64,
    /// Packets that left.
    pub sent: u64,
    /// Packets for which something was dropped.
    pub dropped: u64,
    /// Generation of the tables.
    pub generation: u64,
    /// What is wrong with the objects.
    pub problems: Vec<Problem>,
}

impl Summary {
    pub(super) fn count(&mut self, report: &PacketReport) {
        self.packets += 1;
        self.sent += report.sent.len() as u64;
        self.dropped += u64::from(!report.dropped.is_empty());
    }
}
