//! The capture that runs at this node: at most one, since each worker copies for one reader.
//!
//! A caller begins it, then fetches batches. It ends when it has its packets, bytes or seconds, when its caller says so, or
//! [`SILENCE`] after the caller last asked: a thread looks, so that a caller that was killed leaves no capture behind.
//! Bounds: a batch holds what the workers' rings hold, `limits::CAPTURE_SLOTS` copies of each.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use millrace_engine::capture::{CaptureFilter, CaptureReader, Captured, FlowFilter, Moment};
use millrace_engine::clock::{Clock, Time};
use millrace_engine::drop_reason::DropReason;
use millrace_engine::packet::PortIndex;
use millrace_engine::tables::Snapshot;

use super::SharedSwitch;
use crate::api::InspectFailure;
use crate::api::model::{
    CaptureBatch, CaptureBegun, CaptureRequest, CapturedReport, FrameEvent, TraceReport, to_hexadecimal,
};
use crate::explain;

/// How long a capture goes on when nobody fetches.
const SILENCE: Duration = Duration::from_secs(3);
/// How long a batch waits for a first frame.
const PATIENCE: Duration = Duration::from_millis(250);
const LOOK: Duration = Duration::from_millis(5);
/// Longest capture.
const LONGEST: Duration = Duration::from_secs(3_600);

/// The capture of this node.
pub(super) struct Captures {
    switch: SharedSwitch,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    running: Option<Running>,
}

struct Running {
    number: u64,
    readers: Vec<CaptureReader>,
    until: Instant,
    asked: Instant,
    packets: u64,
    bytes: u64,
}

impl Captures {
    pub(super) fn new(switch: SharedSwitch) -> Arc<Self> {
        Arc::new(Self { switch, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one.
    pub(super) fn begin(self: &Arc<Self>, request: &CaptureRequest) -> Result<CaptureBegun, InspectFailure> {
        let tables = self.switch.with(|switch| switch.tables());
        let filter = filter(&tables, request)?;
        let mut state = self.lock();
        if state.running.is_some() {
            return Err(InspectFailure::Unavailable("another capture runs; one runs at a time".into()));
        }
        state.last += 1;
        let (number, now) = (state.last, Instant::now());
        let watch = Arc::downgrade(self);
        let watching =
            std::thread::Builder::new().name("capture".into()).spawn(move || end_when_silent(&watch, number));
        watching.map_err(|error| InspectFailure::Unavailable(format!("no thread: {error}")))?;
        let readers = self.switch.with(|switch| switch.capture(filter));
        let until = now + Duration::from_secs(request.seconds).min(LONGEST);
        let (packets, bytes) = (request.packets, request.bytes);
        state.running = Some(Running { number, readers, until, asked: now, packets, bytes });
        Ok(CaptureBegun { capture: number, generation: tables.generation })
    }

    /// What was captured since the last call; waits a moment for something.
    pub(super) fn next(&self, number: u64) -> Result<CaptureBatch, InspectFailure> {
        let wait = Instant::now() + PATIENCE;
        loop {
            let batch = self.take(number)?;
            if !batch.frames.is_empty() || batch.ended.is_some() || Instant::now() >= wait {
                return Ok(batch);
            }
            std::thread::sleep(LOOK);
        }
    }

    fn take(&self, number: u64) -> Result<CaptureBatch, InspectFailure> {
        let tables = self.switch.with(|switch| switch.tables());
        let mut state = self.lock();
        let running = state.running.as_mut().filter(|running| running.number == number);
        let running = running.ok_or_else(|| InspectFailure::NotFound("this capture has ended".into()))?;
        running.asked = Instant::now();
        let mut batch = running.drain(&tables);
        batch.ended = running.over(batch.ended.take(), batch.frames.is_empty());
        if batch.ended.is_some() {
            state.running = None;
            drop(state);
            self.switch.with(|switch| switch.end_capture());
        }
        Ok(batch)
    }

    /// Ends it, if it runs.
    pub(super) fn end(&self, number: u64) {
        let mut state = self.lock();
        if state.running.take_if(|running| running.number == number).is_some() {
            // Under the lock: the next one begins when this one is over.
            self.switch.with(|switch| switch.end_capture());
        }
    }
}

/// Ends the capture when its caller has gone.
fn end_when_silent(captures: &Weak<Captures>, number: u64) {
    loop {
        std::thread::sleep(PATIENCE);
        let Some(captures) = captures.upgrade() else { return };
        let asked = captures.lock().running.as_ref().filter(|running| running.number == number).map(|one| one.asked);
        match asked {
            // `begin` holds the lock until the capture is there, so one that is not there is over.
            None => return,
            Some(asked) if asked.elapsed() > SILENCE => return captures.end(number),
            Some(_) => {}
        }
    }
}

fn filter(tables: &Snapshot, request: &CaptureRequest) -> Result<CaptureFilter, InspectFailure> {
    let mut ports = Vec::new();
    for name in &request.ports {
        // A pod's further interfaces are ports too: its name, a blank, the interface.
        let is_its =
            |known: &str| known == name || known.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with(' '));
        let found: Vec<PortIndex> =
            tables.ports.iter().filter(|port| is_its(&port.name)).map(|port| port.index).collect();
        if found.is_empty() {
            return Err(InspectFailure::NotFound(format!("no port {name} at this node; see `millrace show ports`")));
        }
        ports.extend(found);
    }
    let unknown =
        |name: &String| InspectFailure::Invalid(format!("{name} is no drop reason; see docs/drop-reasons.md"));
    let reason = |name: &String| DropReason::from_name(name).ok_or_else(|| unknown(name));
    let drops =
        request.drops.as_ref().map(|names| names.iter().map(reason).collect::<Result<Vec<_>, _>>()).transpose()?;
    let (addresses, transport) = (request.addresses.clone(), request.transport_ports.clone());
    Ok(CaptureFilter { ports, drops, flow: FlowFilter { protocol: request.protocol, addresses, ports: transport } })
}

impl Running {
    fn drain(&mut self, tables: &Snapshot) -> CaptureBatch {
        let wall = WallClock::now();
        let mut batch = CaptureBatch::default();
        let mut frames = Vec::new();
        for (worker, reader) in self.readers.iter_mut().enumerate() {
            frames.extend(std::iter::from_fn(|| reader.next()).map(|captured| (worker, captured)));
            batch.lost += reader.take_lost();
        }
        // Stable: a packet's moments stay in their order.
        frames.sort_by_key(|(_, captured)| captured.time);
        for (worker, captured) in frames {
            let begins = matches!(captured.moment, Moment::Arrived(_)) || captured.packet == 0;
            if begins && self.packets == 0 {
                batch.ended = Some("it has its packets".into());
                // What comes behind is of packets that are too many.
                break;
            }
            self.packets -= u64::from(begins);
            self.bytes = self.bytes.saturating_sub(captured.bytes.len() as u64);
            batch.frames.push(told(tables, worker, &captured, wall.at(captured.time)));
        }
        batch
    }

    /// Why it is over. The moments of the last packet come in one turn of its worker: it is over with the look after.
    fn over(&self, packets: Option<String>, is_quiet: bool) -> Option<String> {
        packets
            .or_else(|| (self.packets == 0 && is_quiet).then(|| "it has its packets".into()))
            .or_else(|| (self.bytes == 0).then(|| "it has its bytes".into()))
            .or_else(|| (Instant::now() >= self.until).then(|| "its time is over".into()))
    }
}

/// What a worker's clock means to people.
struct WallClock {
    clock: Time,
    since_1970: u64,
}

impl WallClock {
    fn now() -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { clock: Clock::Monotonic.now(), since_1970: since_1970.as_nanos() as u64 }
    }

    fn at(&self, time: Time) -> u64 {
        self.since_1970.saturating_sub(self.clock.nanoseconds().saturating_sub(time.nanoseconds()))
    }
}

fn told(tables: &Snapshot, worker: usize, captured: &Captured, time_nanoseconds: u64) -> CapturedReport {
    let name = |port: PortIndex| {
        tables.ports.get(port).map_or_else(|| format!("port {}", port.0), |port| port.name.to_string())
    };
    let packet = format!("{worker}.{}", captured.packet);
    let ingress = name(captured.ingress);
    let (event, port, comment, trace, drop) = match &captured.moment {
        Moment::Arrived(decided) => {
            let report = explain::captured(captured, decided);
            (FrameEvent::Arrived, ingress, format!("{packet} in: {}", in_a_line(&report)), Some(report), None)
        }
        Moment::Left(port) => (FrameEvent::Left, name(*port), format!("{packet} out, came by {ingress}"), None, None),
        Moment::Dropped(reason) => {
            (FrameEvent::Dropped, ingress, format!("{packet} drop {reason}: {}", reason.sentence()), None, Some(reason))
        }
    };
    CapturedReport {
        packet,
        time_nanoseconds,
        port,
        event,
        comment,
        bytes: to_hexadecimal(&captured.bytes),
        length_bytes: captured.length as u64,
        segment_bytes: captured.gso.map(|gso| gso.size),
        trace,
        drop_reason: drop.map(|reason| reason.name().to_owned()),
    }
}

/// Verdict, generation, each stage's reason, each rewrite.
fn in_a_line(report: &TraceReport) -> String {
    let steps: Vec<String> = report.steps.iter().map(|step| format!("{} {}", step.stage, step.decision)).collect();
    let edits = if report.edits.is_empty() { String::new() } else { format!(" [{}]", report.edits.join("; ")) };
    format!("{} (generation {}) {}{edits}", report.verdict, report.generation, steps.join(" | "))
}
