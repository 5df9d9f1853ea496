//! What a replay tells: one report a packet, one line each for people.

use std::fmt;

use serde::Serialize;

use super::fate::Seconds;

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
    /// It came in one vector with the next packet, where what left because of both is told.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub with_next: bool,
}

/// In place of a trail where objects have no such port.
pub(super) const NO_PORT: &str = "no port of this name here";

impl PacketReport {
    /// What became of it, a phrase each: frames that left, reasons of drops, or that there was neither.
    #[must_use]
    pub fn ends(&self) -> Vec<String> {
        let mut ends: Vec<String> = self.sent.iter().map(|sent| format!("{} {}", sent.port, sent.packet)).collect();
        ends.extend(self.dropped.iter().map(|reason| format!("dropped {reason}")));
        if ends.is_empty() {
            let end = match (self.with_next, self.trail == NO_PORT) {
                (true, _) => "with the next",
                (_, true) => "not taken in",
                _ => "consumed",
            };
            ends.push(end.to_owned());
        }
        ends
    }
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
        let time = Seconds(self.time_nanoseconds);
        write!(formatter, "{} {time} {} {} :: {}", self.number, self.port, self.packet, self.trail)?;
        write!(formatter, " => {}", self.ends().join(" ; "))
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
