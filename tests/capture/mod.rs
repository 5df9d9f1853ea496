//! Golden captures from texts: what goes into one node, written as a scenario without `then`, becomes objects and captures
//! that `millrace replay` takes, and what comes of it is compared with what is checked in.
//!
//! ```text
//! # What it shows.
//! given  node a vtep 192.0.2.1          as in scenarios; the node replayed is a
//!        pod client on a 10.1.0.5
//! when   client sends PACKET            100 µs after the one before
//!        host sends PACKET              at the host's own port
//!        underlay sends PACKET          at the uplink
//!        client sends PACKET ; with the next     at one time with it: one vector
//!        client sends PACKET ; byte 24 99        with this byte, in hexadecimal, at this place
//!        time passes 2 s
//!        no policy web                  lines of given: the objects change
//! ```
//! Each text has a folder: `case.txt`, `objects/` and `objects-N/` for its changes, `in/` with a capture for each port, `out/`
//! with the run as `--out` writes it, ports that sent nothing left out. With `MILLRACE_WRITE_CAPTURES` set all but the text
//! is written anew.

mod objects;
mod packets;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use millrace_control::cluster::NodeName;
use millrace_control::replay::{Conditions, ReplayClock, ReplayOptions, expect, replay_under};
use millrace_engine::port::pcap::Capture;

use crate::scenario::Scenario;
use objects::Objects;
use packets::Packets;

/// Set to write captures and what comes of them anew.
pub const WRITE: &str = "MILLRACE_WRITE_CAPTURES";

/// The folder of all golden captures.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("captures")
}

/// A case, made from its text.
#[derive(Debug)]
pub struct Case {
    /// Files of its folder by name, but for what comes of it.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Ports that frames arrive at.
    pub ports: BTreeSet<String>,
    /// When which folder of objects comes in force.
    pub changes: Vec<(Duration, String)>,
    /// Frames of one time are one vector.
    pub together: bool,
}

impl Case {
    /// Reads a text.
    ///
    /// # Errors
    /// The line that cannot be understood.
    pub fn from_text(text: &str) -> Result<Self, String> {
        let scenario = Scenario::parse(text)?;
        let mut objects = Objects::new(&scenario.given)?;
        let mut packets = Packets::new();
        let mut case = Self {
            files: BTreeMap::from([("objects/cluster.yaml".to_owned(), objects.yaml().into_bytes())]),
            ports: BTreeSet::new(),
            changes: Vec::new(),
            together: false,
        };
        for line in scenario.steps.iter().flat_map(|step| &step.when) {
            if objects.change(line)? {
                let folder = format!("objects-{}", case.changes.len() + 2);
                case.files.insert(format!("{folder}/cluster.yaml"), objects.yaml().into_bytes());
                case.changes.push((packets.time(), folder));
            } else {
                packets.take(line, &objects).map_err(|error| format!("{line}: {error}"))?;
            }
        }
        case.together = packets.together();
        for (port, capture) in packets.captures() {
            case.files.insert(format!("in/{}", file_name(&port)), capture);
            case.ports.insert(port);
        }
        Ok(case)
    }
}

/// The file of a port's capture.
#[must_use]
pub fn file_name(port: &str) -> String {
    format!("{}.pcapng", port.replace('/', "_"))
}

/// Checks the case in this folder: its files are what the text says, and what comes of it is what is checked in.
///
/// # Errors
/// What differs, in words.
pub fn check(path: &Path) -> Result<(), String> {
    let text = fs::read_to_string(path.join("case.txt")).map_err(|error| error.to_string())?;
    let case = Case::from_text(&text)?;
    for (name, bytes) in &case.files {
        let file = path.join(name);
        if std::env::var_os(WRITE).is_some() {
            write(&file, bytes)?;
        }
        if fs::read(&file).ok().as_ref() != Some(bytes) {
            return Err(format!("{name} is not what case.txt says; {WRITE}=1 writes it anew"));
        }
    }
    let options = ReplayOptions {
        objects: path.join("objects"),
        node: NodeName::new("a").map_err(|error| error.to_string())?,
        inputs: case.ports.iter().map(|port| (port.clone(), path.join("in").join(file_name(port)))).collect(),
        out: None,
        workers: 1,
        clock: ReplayClock::Capture,
    };
    let changes = case.changes.iter().map(|(at, folder)| (*at, path.join(folder))).collect();
    golden(&options, &Conditions { changes, together: case.together }, &path.join("out"))
}

/// Replays on one and on three workers and compares with the run checked in at `stored`: words and bytes.
///
/// # Errors
/// What differs, in words.
pub fn golden(options: &ReplayOptions, conditions: &Conditions, stored: &Path) -> Result<(), String> {
    for workers in [1, 3] {
        let out = Directory::new();
        let options = ReplayOptions { out: Some(out.0.clone()), workers, ..options.clone() };
        let summary = replay_under(&options, conditions, |_| {}).map_err(|error| format!("{error:?}"))?;
        if !summary.problems.is_empty() {
            return Err(format!("{:?}", summary.problems));
        }
        let run = files_of_run(&out.0)?;
        if workers == 1 && std::env::var_os(WRITE).is_some() {
            let _ = fs::remove_dir_all(stored);
            run.iter().try_for_each(|(name, bytes)| write(&stored.join(name), bytes))?;
        }
        if files_of_run(stored)? != run {
            let options = ReplayOptions { out: None, ..options.clone() };
            let comparison = expect(&options, conditions, stored).map_err(|error| error.to_string())?;
            let texts = comparison.differences.iter().map(|difference| difference.text("checked in", "now"));
            return Err(format!("on {workers} workers: {comparison}\n{}", texts.collect::<String>()));
        }
    }
    Ok(())
}

fn write(file: &Path, bytes: &[u8]) -> Result<(), String> {
    let folder = file.parent().ok_or("no folder")?;
    fs::create_dir_all(folder).and_then(|()| fs::write(file, bytes)).map_err(|error| error.to_string())
}

/// Files of a run by name, without captures of no frame.
fn files_of_run(directory: &Path) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))? {
        let path = entry.map_err(|error| error.to_string())?.path();
        let is_capture = path.extension().is_some_and(|extension| extension == "pcapng");
        if is_capture && Capture::open(&path).map_err(|error| error.to_string())?.is_empty() {
            continue;
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        files.insert(name, fs::read(&path).map_err(|error| error.to_string())?);
    }
    Ok(files)
}

/// A directory that goes with its value.
#[derive(Debug)]
pub struct Directory(pub PathBuf);

impl Directory {
    /// A name that nothing has.
    #[must_use]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("millrace-capture-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self(std::env::temp_dir().join(name))
    }
}

impl Default for Directory {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
