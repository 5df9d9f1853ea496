//! `millrace replay`: captures through the same engine and the same control plane, offline and without root.
//!
//! A node is built as the agent builds it (objects, plan, compile, publish, switch), but on memory ports and a clock
//! that the captures move, see [`node`]. Frames of all captures are merged by their time stamps; within one capture
//! its own order is kept. One frame at a time goes in, and everything it causes comes out before the next: so nothing
//! but the objects, the captures and the options has a part in the result, and neither the number of simulated workers nor
//! the processor changes a byte of it. Hash keys come from a fixed seed, and hashing is the way that every processor can.
//!
//! [`policies`] asks of captured flows what `millrace policy` asks of live ones. [`comparison`] sets two runs against each
//! other: by other objects, or by what an earlier run stored ([`stored`]).
//!
//! Cost: captures lie in memory whole (`limits::CAPTURE_BYTES` each); each frame is decided twice, once for its trail.

mod comparison;
mod fate;
mod node;
mod offloads;
mod plugging;
pub mod policies;
mod report;
mod stored;
mod surroundings;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_engine::clock::Time;
use millrace_engine::packet::PortIndex;
use millrace_engine::port::pcap::{Capture, CaptureError};

pub use comparison::{ByteDifference, Comparison, Difference, Side, against, expect};
pub use fate::Fate;
use node::ReplayNode;
pub use node::ReplayNodeError;
use report::NO_PORT;
pub use report::{PacketReport, SentReport, Summary};
use stored::Record;

use crate::cluster::NodeName;
use crate::policy_preview::ProposalError;

/// What moves the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplayClock {
    /// The captures' time stamps.
    #[default]
    Capture,
    /// Every frame comes so long after the one before, whatever its time stamp.
    Step(Duration),
}

/// What to replay.
#[derive(Clone, Debug)]
pub struct ReplayOptions {
    /// Directory of objects.
    pub objects: PathBuf,
    /// The node to be.
    pub node: NodeName,
    /// Captures by the name of the port their frames arrive at: `namespace/pod`, or an uplink's interface.
    pub inputs: Vec<(String, PathBuf)>,
    /// Directory for a capture of what leaves by each port.
    pub out: Option<PathBuf>,
    /// Simulated workers.
    pub workers: usize,
    /// What moves the clock.
    pub clock: ReplayClock,
}

/// What else happens in a replay: nothing by default.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// Directories of objects that replace those in force, each so long after the first packet, in order of time. One that
    /// is due at the time of a packet comes before it.
    pub changes: Vec<(Duration, PathBuf)>,
    /// Frames of one port with one time stamp arrive as one vector, so that their segments may be joined. What leaves
    /// because of them is told with the last.
    pub together: bool,
}

/// Why there is no replay.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The node cannot be built.
    #[error(transparent)]
    Node(#[from] ReplayNodeError),
    /// A capture cannot be read.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// A capture names a port that the node does not have.
    #[error("node {node} has no port {port:?}; it has {known}")]
    UnknownPort {
        /// The node.
        node: NodeName,
        /// The name given.
        port: String,
        /// The names there are.
        known: String,
    },
    /// A port is named twice.
    #[error("port {0:?} has two captures; merge them first (mergecap)")]
    PortTwice(String),
    /// What is proposed is not valid.
    #[error(transparent)]
    Proposal(#[from] ProposalError),
    /// The question about policies cannot be answered.
    #[error("{0}")]
    Question(String),
    /// What leaves cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A stored run cannot be read.
    #[error("cannot read the stored run in {}: {reason}", path.display())]
    Stored {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The stored run is of other captures.
    #[error("packet {number} came in otherwise in the stored run: it is of other captures or another clock")]
    OtherCaptures {
        /// Number of the packet.
        number: u64,
    },
    /// The switch lost frames: a defect.
    #[error("after frame {number} of {port} the switch cannot account for {lost} frames: a defect")]
    Lost {
        /// Number of the frame.
        number: u64,
        /// The port it came in by.
        port: String,
        /// How many.
        lost: i64,
    },
}

/// Replays, telling each packet to `tell` in order.
///
/// # Errors
/// See [`ReplayError`]; what was told before is right.
pub fn replay(options: &ReplayOptions, mut tell: impl FnMut(&PacketReport)) -> Result<Summary, ReplayError> {
    replay_under(options, &Conditions::default(), |fate| tell(&fate.report))
}

/// Replays under conditions, telling what became of each packet in order, with the bytes that left.
///
/// # Errors
/// See [`ReplayError`]; what was told before is right.
pub fn replay_under(
    options: &ReplayOptions,
    conditions: &Conditions,
    mut tell: impl FnMut(&Fate),
) -> Result<Summary, ReplayError> {
    let (mut record, mut begun) = (None, None);
    let mut summary = Summary::default();
    walk(options, conditions, &[options.objects.as_path()], |nodes, arrivals| {
        let [node] = nodes else { return Ok(()) };
        if let Some(first) = arrivals.first() {
            let origin = *begun.get_or_insert(first.time);
            for fate in pass(node, arrivals)? {
                summary.count(&fate.report);
                record.iter_mut().for_each(|record: &mut Record| record.write(&fate, origin));
                tell(&fate);
            }
        } else {
            let ports = node.port_names();
            record = options.out.as_deref().map(|out| Record::begin(out, &options.node, &ports)).transpose()?;
        }
        (summary.problems, summary.generation) = (node.problems(), node.generation());
        Ok(())
    })?;
    record.map_or(Ok(()), Record::finish)?;
    Ok(summary)
}

/// Builds the node and calls `each`: once with no frame when the node stands, then with each frame in order, the clock
/// moved to its time.
fn each_frame(
    options: &ReplayOptions,
    mut each: impl FnMut(&mut ReplayNode, Option<&Arrival<'_>>) -> Result<(), ReplayError>,
) -> Result<(), ReplayError> {
    walk(options, &Conditions::default(), &[options.objects.as_path()], |nodes, arrivals| match (nodes, arrivals) {
        ([node], [arrival]) => each(node, Some(arrival)),
        ([node], _) => each(node, None),
        _ => Ok(()),
    })
}

/// Builds a node of each directory of objects and calls `each`: once with no frame when they stand, then with each frame in
/// order, or those that come as one vector, the clocks moved to their time.
fn walk(
    options: &ReplayOptions,
    conditions: &Conditions,
    objects: &[&Path],
    mut each: impl FnMut(&mut [ReplayNode], &[Arrival<'_>]) -> Result<(), ReplayError>,
) -> Result<(), ReplayError> {
    let captures = captures(options)?;
    let built = objects.iter().map(|objects| ReplayNode::build(objects, &options.node, options.workers, &captures));
    let mut nodes: Vec<ReplayNode> = built.collect::<Result<_, _>>()?;
    let mut arrivals = arrivals(options, &nodes, &captures)?;
    each(&mut nodes, &[])?;
    let origin = arrivals.first().map_or(0, |arrival| arrival.time);
    for (number, arrival) in (1..).zip(&mut arrivals) {
        arrival.number = number;
        arrival.elapsed = match options.clock {
            ReplayClock::Capture => arrival.time - origin,
            ReplayClock::Step(step) => nanoseconds(step).saturating_mul(number - 1),
        };
    }
    let mut changes = conditions.changes.iter().peekable();
    let is_one = |one: &Arrival<'_>, next: &Arrival<'_>| {
        conditions.together && one.port == next.port && one.elapsed == next.elapsed
    };
    for vector in arrivals.chunk_by(is_one) {
        let now = vector.first().map_or(0, |arrival| arrival.elapsed);
        while let Some((at, objects)) = changes.next_if(|(at, _)| nanoseconds(*at) <= now) {
            for node in &mut nodes {
                node.set_time(Time::from_nanoseconds(nanoseconds(*at)));
                node.change_to(objects, &captures)?;
            }
        }
        nodes.iter().for_each(|node| node.set_time(Time::from_nanoseconds(now)));
        each(&mut nodes, vector)?;
    }
    Ok(())
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn captures(options: &ReplayOptions) -> Result<BTreeMap<String, Capture>, ReplayError> {
    let mut captures = BTreeMap::new();
    for (port, path) in &options.inputs {
        if captures.insert(port.clone(), Capture::open(path)?).is_some() {
            return Err(ReplayError::PortTwice(port.clone()));
        }
    }
    Ok(captures)
}

/// All frames that some node has a port for, in order.
fn arrivals<'a>(
    options: &ReplayOptions,
    nodes: &[ReplayNode],
    captures: &'a BTreeMap<String, Capture>,
) -> Result<Vec<Arrival<'a>>, ReplayError> {
    let mut ports: Vec<(PortIndex, &str, &Capture)> = Vec::new();
    for (name, capture) in captures {
        let port = nodes.iter().find_map(|node| node.port(name)).ok_or_else(|| ReplayError::UnknownPort {
            node: options.node.clone(),
            port: name.clone(),
            known: nodes.first().map(|node| node.port_names().join(", ")).unwrap_or_default(),
        })?;
        ports.push((port, name, capture));
    }
    Ok(merge(&ports))
}

/// A frame that arrives.
struct Arrival<'a> {
    port: PortIndex,
    name: &'a str,
    /// Nanoseconds since 1970, never less than of the arrival before.
    time: u64,
    /// Its number, from 1.
    number: u64,
    /// Nanoseconds since the first, by the replay's clock.
    elapsed: u64,
    bytes: &'a [u8],
}

/// All frames in order of their time stamps; of two at one time, those of the lower port come first. Each capture keeps
/// its own order: a time stamp that goes back counts as the one before.
fn merge<'a>(ports: &[(PortIndex, &'a str, &'a Capture)]) -> Vec<Arrival<'a>> {
    let mut arrivals: Vec<Arrival<'a>> = Vec::new();
    for (port, name, capture) in ports {
        let mut latest = 0;
        for frame in capture.frames() {
            latest = frame.time.max(latest);
            arrivals.push(Arrival { port: *port, name, time: latest, number: 0, elapsed: 0, bytes: frame.bytes });
        }
    }
    // Stable: within a port the order stays.
    arrivals.sort_by_key(|arrival| (arrival.time, arrival.port));
    arrivals
}

/// Sends the frames of one vector through and says what became of each. What time alone brought about since the one before,
/// as the end of a fragment that waited in vain, is told with the last too.
fn pass(node: &mut ReplayNode, vector: &[Arrival<'_>]) -> Result<Vec<Fate>, ReplayError> {
    let mut fates = Vec::with_capacity(vector.len());
    for arrival in vector {
        let port = node.port(arrival.name);
        let trail = port.map_or_else(|| NO_PORT.to_owned(), |port| node.explain(port, arrival.bytes));
        fates.push(Fate::of(arrival, trail));
        port.into_iter().for_each(|port| node.queue(port, arrival.bytes));
    }
    node.settle();
    if let (lost @ (i64::MIN..0 | 1..), Some(arrival)) = (node.lost_frames(), vector.first()) {
        return Err(ReplayError::Lost { number: arrival.number, port: arrival.name.to_owned(), lost });
    }
    let Some((last, others)) = fates.split_last_mut() else { return Ok(fates) };
    others.iter_mut().for_each(|fate| fate.report.with_next = true);
    for (name, frame) in node.take_sent() {
        last.sends(name, frame);
    }
    last.report.dropped = node.take_drops().iter().map(|reason| reason.name().to_owned()).collect();
    Ok(fates)
}
