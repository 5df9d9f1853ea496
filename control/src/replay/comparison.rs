//! Two runs of the same captures, set against each other packet by packet.
//!
//! | question | one side | the other side |
//! |---|---|---|
//! | [`against`]: what would other objects do | the objects | the other objects, in lockstep |
//! | [`expect`]: does this version still do the same | what a run stored | the objects |
//!
//! A packet has another fate if other frames leave, by other ports or with other bytes, or if something is dropped for
//! another reason. That other stages or objects say so, while the same leaves, is only counted. Other objects give ports
//! other numbers, and with them tunnels other source ports (RFC 7348 section 5: any will do), so [`against`] does not look
//! at those; [`expect`] looks at every byte.
//!
//! Cost: as a replay of each; differences lie in memory, at most one a packet.

use std::fmt;
use std::path::Path;

use millrace_engine::packet::parse::parse;
use millrace_engine::tables::Tunnels;
use serde::Serialize;

use super::fate::{Fate, Seconds};
use super::report::SentReport;
use super::stored::StoredRun;
use super::{Conditions, ReplayError, ReplayOptions, pass, replay_under, walk};
use crate::problem::Problem;

/// Bytes of a frame shown where it differs.
const SHOWN: usize = 16;
const UDP: u8 = 17;

/// What differs between two runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// Packets that came in.
    pub packets: u64,
    /// Packets with another fate.
    pub differing: u64,
    /// Packets with the same fate, decided for other reasons.
    pub other_reasons: u64,
    /// Those with another fate, in order.
    pub differences: Vec<Difference>,
    /// What is wrong with either's objects.
    #[serde(skip)]
    pub problems: Vec<Problem>,
}

/// A packet with another fate.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Difference {
    /// Its number, from 1.
    pub number: u64,
    /// Nanoseconds since the first packet.
    pub time_nanoseconds: u64,
    /// The port it came in by.
    pub port: String,
    /// The packet.
    pub packet: String,
    /// The first stage that decides otherwise; empty if the difference lies behind the stages.
    pub stage: String,
    /// On the one side: the objects, or the stored run.
    pub one: Side,
    /// On the other: the other objects, or the objects now.
    pub other: Side,
    /// Frames that leave on both sides, with other bytes.
    pub bytes: Vec<ByteDifference>,
}

/// A packet's fate on one side.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Side {
    /// What that stage says, with the names of objects.
    pub reason: String,
    /// All stages.
    pub trail: String,
    /// What left.
    pub sent: Vec<SentReport>,
    /// Reasons of drops.
    pub dropped: Vec<String>,
    /// All of that in phrases.
    #[serde(skip)]
    ends: Vec<String>,
}

/// Where a frame differs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ByteDifference {
    /// The port it left by.
    pub port: String,
    /// Which of the frames that left, from 1.
    pub frame: usize,
    /// First byte that differs.
    pub offset: usize,
    /// Bytes from there on, in hexadecimal; at most 16.
    pub one: String,
    /// The same of the other side.
    pub other: String,
}

/// Replays against other objects, a directory as the options'.
///
/// # Errors
/// See [`ReplayError`].
pub fn against(options: &ReplayOptions, conditions: &Conditions, other: &Path) -> Result<Comparison, ReplayError> {
    let mut comparison = Comparison::default();
    walk(options, conditions, &[options.objects.as_path(), other], |nodes, arrivals| {
        let [one, other] = nodes else { return Ok(()) };
        if arrivals.is_empty() {
            comparison.problems = one.problems();
            comparison.problems.extend(other.problems());
            return Ok(());
        }
        for (one, other) in pass(one, arrivals)?.into_iter().zip(pass(other, arrivals)?) {
            comparison.take(&one, &other, without_entropy);
        }
        Ok(())
    })?;
    Ok(comparison)
}

/// Replays against what an earlier run stored with [`ReplayOptions::out`].
///
/// # Errors
/// See [`ReplayError`]; [`ReplayError::OtherCaptures`] if other packets came in then.
pub fn expect(options: &ReplayOptions, conditions: &Conditions, stored: &Path) -> Result<Comparison, ReplayError> {
    let mut stored = StoredRun::open(stored)?;
    let (mut comparison, mut failed, mut number) = (Comparison::default(), None, 0);
    let summary = replay_under(options, conditions, |now| {
        number = now.report.number;
        if failed.is_some() {
            return;
        }
        let came = |fate: &Fate| (fate.report.time_nanoseconds, fate.report.port.clone(), fate.report.packet.clone());
        match stored.next() {
            Ok(Some(then)) if came(&then) == came(now) => comparison.take(&then, now, |frame| frame.to_vec()),
            Ok(_) => failed = Some(ReplayError::OtherCaptures { number }),
            Err(error) => failed = Some(error),
        }
    })?;
    let surplus = failed.is_none() && stored.next()?.is_some();
    if let Some(error) = failed.or(surplus.then_some(ReplayError::OtherCaptures { number: number + 1 })) {
        return Err(error);
    }
    comparison.problems = summary.problems;
    Ok(comparison)
}

/// The frame with a tunnel's source port, and the checksum over it, set to zero.
fn without_entropy(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Ok(headers) = parse(&frame, frame.len())
        && headers.protocol == UDP
        && headers.ports[1] == Tunnels::UDP_PORT
    {
        let at = usize::from(headers.transport_offset);
        for byte in [at, at + 1, at + 6, at + 7] {
            if let Some(byte) = frame.get_mut(byte) {
                *byte = 0;
            }
        }
    }
    frame
}

impl Comparison {
    fn take(&mut self, one: &Fate, other: &Fate, seen: impl Fn(&[u8]) -> Vec<u8>) {
        self.packets += 1;
        let frames = |fate: &Fate| -> Vec<Vec<u8>> { fate.frames.iter().map(|frame| seen(frame)).collect() };
        let (left, right) = (frames(one), frames(other));
        let ends = |fate: &Fate| {
            let ports: Vec<String> = fate.report.sent.iter().map(|sent| sent.port.clone()).collect();
            (ports, fate.report.dropped.clone())
        };
        if ends(one) == ends(other) && left == right {
            self.other_reasons += u64::from(one.report.trail != other.report.trail);
            return;
        }
        self.differing += 1;
        self.differences.push(Difference::between(one, other, bytes_between(one, other, &left, &right)));
    }
}

/// Frames that leave by the same port at the same place in order, with other bytes.
fn bytes_between(one: &Fate, other: &Fate, left: &[Vec<u8>], right: &[Vec<u8>]) -> Vec<ByteDifference> {
    let ports = one.report.sent.iter().zip(&other.report.sent);
    let pairs = (1..).zip(ports.zip(left.iter().zip(right)));
    let differing =
        |(frame, ((one, other), (left, right))): (usize, ((&SentReport, &SentReport), (&Vec<u8>, &Vec<u8>)))| {
            if one.port != other.port || left == right {
                return None;
            }
            let same = left.iter().zip(right).take_while(|(one, other)| one == other).count();
            let shown = |bytes: &[u8]| -> String {
                bytes[same..].iter().take(SHOWN).map(|byte| format!("{byte:02x}")).collect()
            };
            let port = one.port.clone();
            Some(ByteDifference { port, frame, offset: same, one: shown(left), other: shown(right) })
        };
    pairs.filter_map(differing).collect()
}

impl Difference {
    fn between(one: &Fate, other: &Fate, bytes: Vec<ByteDifference>) -> Self {
        let steps = |fate: &Fate| -> Vec<String> { fate.report.trail.split(" | ").map(str::to_owned).collect() };
        let (left, right) = (steps(one), steps(other));
        let same = left.iter().zip(&right).take_while(|(one, other)| one == other).count();
        let step = |steps: &[String]| steps.get(same).cloned().unwrap_or_default();
        let name = |step: String| step.split(' ').next().unwrap_or_default().to_owned();
        let stage = Some(name(step(&left))).filter(|name| !name.is_empty()).unwrap_or_else(|| name(step(&right)));
        let side = |fate: &Fate, reason: String| Side {
            reason,
            trail: fate.report.trail.clone(),
            sent: fate.report.sent.clone(),
            dropped: fate.report.dropped.clone(),
            ends: fate.report.ends(),
        };
        Self {
            number: one.report.number,
            time_nanoseconds: one.report.time_nanoseconds,
            port: one.report.port.clone(),
            packet: one.report.packet.clone(),
            stage,
            one: side(one, step(&left)),
            other: side(other, step(&right)),
            bytes,
        }
    }

    /// The difference for people, the sides called by these names.
    #[must_use]
    pub fn text(&self, one: &str, other: &str) -> String {
        let mut text = format!("{} {} {} {}\n", self.number, Seconds(self.time_nanoseconds), self.port, self.packet);
        for (name, side) in [(one, &self.one), (other, &self.other)] {
            let reason = if side.reason.is_empty() { "the stages say the same" } else { &side.reason };
            text += &format!("  {name}: {reason}\n");
            side.ends.iter().for_each(|end| text += &format!("    => {end}\n"));
        }
        for ByteDifference { port, frame, offset, one: left, other: right } in &self.bytes {
            text += &format!("  frame {frame} by {port} from byte {offset} on, {one}: {left}, {other}: {right}\n");
        }
        text
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packets, differing, other_reasons, .. } = self;
        let verb = if *differing == 1 { "has" } else { "have" };
        write!(formatter, "{differing} of {packets} packets {verb} another fate")?;
        match other_reasons {
            0 => Ok(()),
            1 => write!(formatter, "; 1 comes to the same for other reasons"),
            count => write!(formatter, "; {count} come to the same for other reasons"),
        }
    }
}
