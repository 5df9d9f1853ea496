//! A run in a directory: `fates.txt`, and what left by each port as `PORT.pcapng`.
//!
//! The frames of one port stand in its file in the order in which `fates.txt` tells them; a `/` in a port's name is written `_`.
//! A port without a file sent nothing. Files are kept in memory whole when they are read: `limits::CAPTURE_BYTES` each.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use millrace_engine::limits::CAPTURE_BYTES;
use millrace_engine::port::pcap::{Capture, Recording};

use super::ReplayError;
use super::fate::{Fate, lines_of, read_lines};
use super::report::PacketReport;
use crate::cluster::NodeName;

const FATES: &str = "fates.txt";
/// First line of a run: its form, to be counted on when it changes.
const FORM: &str = "# millrace replay 1";

fn file_of(directory: &Path, port: &str) -> PathBuf {
    directory.join(format!("{}.pcapng", port.replace('/', "_")))
}

/// A run being written.
pub(super) struct Record {
    ports: BTreeMap<String, (PathBuf, Recording)>,
    directory: PathBuf,
    fates: BufWriter<File>,
    failed: Option<io::Error>,
}

impl Record {
    /// Begins a run; the files of an earlier one are written over.
    pub(super) fn begin(directory: &Path, node: &NodeName, ports: &[&str]) -> Result<Self, ReplayError> {
        let failed = |path: &Path, source| ReplayError::Write { path: path.to_owned(), source };
        std::fs::create_dir_all(directory).map_err(|source| failed(directory, source))?;
        let path = directory.join(FATES);
        let mut fates = BufWriter::new(File::create(&path).map_err(|source| failed(&path, source))?);
        writeln!(fates, "{FORM}, node {node}").map_err(|source| failed(&path, source))?;
        let mut record = Self { ports: BTreeMap::new(), directory: directory.to_owned(), fates, failed: None };
        ports
            .iter()
            .try_for_each(|port| record.open(port).map_err(|source| failed(&file_of(directory, port), source)))?;
        Ok(record)
    }

    fn open(&mut self, port: &str) -> io::Result<()> {
        if !self.ports.contains_key(port) {
            let path = file_of(&self.directory, port);
            let recording = Recording::new(BufWriter::new(File::create(&path)?));
            self.ports.insert(port.to_owned(), (path, recording));
        }
        Ok(())
    }

    /// Writes a packet's fate; `origin` is the time of the first packet. What fails is told by [`Record::finish`].
    pub(super) fn write(&mut self, fate: &Fate, origin: u64) {
        let written = self.fates.write_all(lines_of(&fate.report).as_bytes());
        self.failed = self.failed.take().or(written.err());
        for (sent, frame) in fate.report.sent.iter().zip(&fate.frames) {
            // A port that came with a change of the objects.
            let opened = self.open(&sent.port);
            self.failed = self.failed.take().or(opened.err());
            if let Some((_, recording)) = self.ports.get(&sent.port) {
                recording.write(origin + fate.report.time_nanoseconds, std::iter::once(frame.as_slice()), None);
            }
        }
    }

    pub(super) fn finish(mut self) -> Result<(), ReplayError> {
        let failed = |path, source| ReplayError::Write { path, source };
        let told = self.failed.take().map_or_else(|| self.fates.flush(), Err);
        told.map_err(|source| failed(self.directory.join(FATES), source))?;
        for (path, recording) in self.ports.into_values() {
            recording.finish().map_err(|source| failed(path, source))?;
        }
        Ok(())
    }
}

/// A run that is read.
pub(super) struct StoredRun {
    directory: PathBuf,
    reports: std::vec::IntoIter<PacketReport>,
    /// What left by each port, and how many of the frames were told.
    ports: BTreeMap<String, (Option<Capture>, usize)>,
}

impl StoredRun {
    pub(super) fn open(directory: &Path) -> Result<Self, ReplayError> {
        let path = directory.join(FATES);
        let wrong = |reason: String| ReplayError::Stored { path: path.clone(), reason };
        let (mut text, bound) = (String::new(), CAPTURE_BYTES as u64);
        let opened = File::open(&path).and_then(|file| file.take(bound + 1).read_to_string(&mut text));
        if opened.map_err(|error| wrong(error.to_string()))? as u64 > bound {
            return Err(wrong(format!("it is longer than {bound} bytes")));
        }
        if !text.starts_with(FORM) {
            return Err(wrong(format!("it does not begin with {FORM:?}")));
        }
        let reports = read_lines(&text).map_err(|line| wrong(format!("line {line} tells nothing of a packet")))?;
        Ok(Self { directory: directory.to_owned(), reports: reports.into_iter(), ports: BTreeMap::new() })
    }

    /// The fate of the next packet; `None` behind the last.
    pub(super) fn next(&mut self) -> Result<Option<Fate>, ReplayError> {
        let Some(report) = self.reports.next() else { return Ok(None) };
        let mut frames = Vec::with_capacity(report.sent.len());
        for sent in &report.sent {
            frames.push(self.frame(&sent.port)?);
        }
        Ok(Some(Fate { report, frames }))
    }

    fn frame(&mut self, port: &str) -> Result<Vec<u8>, ReplayError> {
        let path = file_of(&self.directory, port);
        if !self.ports.contains_key(port) {
            let capture = if path.exists() { Some(Capture::open(&path)?) } else { None };
            self.ports.insert(port.to_owned(), (capture, 0));
        }
        let told = self.ports.get_mut(port).and_then(|(capture, told)| {
            *told += 1;
            Some(capture.as_ref()?.frame(*told - 1)?.bytes.to_vec())
        });
        let reason = || format!("it has fewer frames than {FATES} tells");
        told.ok_or_else(|| ReplayError::Stored { path, reason: reason() })
    }
}
