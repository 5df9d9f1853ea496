//! `millrace replay`: captures through the same engine and the same control plane, offline and without root.
//!
//! A node is built as the agent builds it (objects, plan, compile, publish, switch), but on memory ports and a clock
//! that the captures move, see [`node`]. Frames of all captures are merged by their time stamps; within one capture
//! its own order is kept. One frame at a time goes in, and everything it causes comes out before the next: so nothing
//! but the objects, the captures and the options has a part in the result, and the number of simulated workers changes
//! no byte of it. Hash keys come from a fixed seed.
//!
//! [`policies`] asks of captured flows what `millrace policy` asks of live ones.
//!
//! Cost: captures lie in memory whole (`limits::CAPTURE_BYTES` each); each frame is decided twice, once for its trail.

mod node;
pub mod policies;
mod report;
mod surroundings;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_engine::clock::Time;
use millrace_engine::drop_reason::DropReason;
use millrace_engine::packet::PortIndex;
use millrace_engine::port::memory::WireFrame;
use millrace_engine::port::pcap::{Capture, CaptureError, Recording};
use millrace_engine::testing::describe;

use node::ReplayNode;
pub use node::ReplayNodeError;
pub use report::{PacketReport, SentReport, Summary};

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
    let (mut recordings, mut begun) = (None, None);
    let mut summary = Summary::default();
    each_frame(options, |node, arrival| {
        let Some(arrival) = arrival else {
            recordings = options.out.as_deref().map(|out| record_to(out, node)).transpose()?;
            summary = Summary { problems: node.problems(), generation: node.generation(), ..Summary::default() };
            return Ok(());
        };
        let origin = *begun.get_or_insert(arrival.time);
        let report = pass(node, arrival, recordings.as_ref(), origin)?;
        summary.count(&report);
        tell(&report);
        Ok(())
    })?;
    for (path, recording) in recordings.into_iter().flatten().map(|(_, recording)| recording) {
        recording.finish().map_err(|source| ReplayError::Write { path, source })?;
    }
    Ok(summary)
}

/// Builds the node and calls `each`: once with no frame when the node stands, then with each frame in order, the clock
/// moved to its time.
fn each_frame(
    options: &ReplayOptions,
    mut each: impl FnMut(&mut ReplayNode, Option<&Arrival<'_>>) -> Result<(), ReplayError>,
) -> Result<(), ReplayError> {
    let mut captures: BTreeMap<String, Capture> = BTreeMap::new();
    for (port, path) in &options.inputs {
        if captures.insert(port.clone(), Capture::open(path)?).is_some() {
            return Err(ReplayError::PortTwice(port.clone()));
        }
    }
    let mut node = ReplayNode::build(&options.objects, &options.node, options.workers, &captures)?;
    let mut ports: Vec<(PortIndex, &str, &Capture)> = Vec::new();
    for (name, capture) in &captures {
        let port = node.port(name).ok_or_else(|| ReplayError::UnknownPort {
            node: options.node.clone(),
            port: name.clone(),
            known: node.port_names().join(", "),
        })?;
        ports.push((port, name, capture));
    }
    let mut arrivals = merge(&ports);
    let origin = arrivals.first().map_or(0, |arrival| arrival.time);
    each(&mut node, None)?;
    for (number, arrival) in (1..).zip(&mut arrivals) {
        arrival.number = number;
        arrival.elapsed = match options.clock {
            ReplayClock::Capture => arrival.time - origin,
            ReplayClock::Step(step) => u64::try_from(step.as_nanos()).unwrap_or(u64::MAX).saturating_mul(number - 1),
        };
        node.set_time(Time::from_nanoseconds(arrival.elapsed));
        each(&mut node, Some(arrival))?;
    }
    Ok(())
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

type Recordings = BTreeMap<PortIndex, (PathBuf, Recording)>;

fn record_to(out: &Path, node: &ReplayNode) -> Result<Recordings, ReplayError> {
    let failed = |path: &Path, source| ReplayError::Write { path: path.to_owned(), source };
    std::fs::create_dir_all(out).map_err(|source| failed(out, source))?;
    let mut recordings = BTreeMap::new();
    for (port, name) in node.ports() {
        let path = out.join(format!("{}.pcapng", name.replace('/', "_")));
        let file = File::create(&path).map_err(|source| failed(&path, source))?;
        recordings.insert(port, (path, Recording::new(BufWriter::new(file))));
    }
    Ok(recordings)
}

/// Sends one frame through and says what became of it.
fn pass(
    node: &mut ReplayNode,
    arrival: &Arrival<'_>,
    recordings: Option<&Recordings>,
    origin: u64,
) -> Result<PacketReport, ReplayError> {
    let (number, elapsed) = (arrival.number, arrival.elapsed);
    let trail = node.explain(arrival.port, arrival.bytes);
    let before = node.drops();
    node.inject(arrival.port, WireFrame::plain(arrival.bytes.to_vec()));
    let after = node.drops();
    let lost = node.lost_frames();
    if lost != 0 {
        return Err(ReplayError::Lost { number, port: arrival.name.to_owned(), lost });
    }
    let mut sent = Vec::new();
    for (port, name, frame) in node.take_sent() {
        if let Some((_, recording)) = recordings.and_then(|recordings| recordings.get(&port)) {
            // A write that failed is told by `finish`.
            recording.write(origin + elapsed, std::iter::once(frame.bytes.as_slice()), None);
        }
        sent.push(SentReport { port: name, packet: describe(&frame.bytes) });
    }
    let changed = |reason: &&DropReason| after[**reason as usize] > before[**reason as usize];
    let dropped = DropReason::ALL.iter().filter(changed).map(|reason| reason.name().to_owned()).collect();
    Ok(PacketReport {
        number,
        time_nanoseconds: elapsed,
        port: arrival.name.to_owned(),
        packet: describe(arrival.bytes),
        trail,
        sent,
        dropped,
    })
}
