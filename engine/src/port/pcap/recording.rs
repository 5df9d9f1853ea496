//! Writes pcapng: one section, Ethernet interfaces with nanoseconds, one enhanced packet block a frame. A file begins with
//! one interface without a name, or with none: then each is described when it is first needed.
//!
//! A write that fails ends the recording; the error is kept for [`Recording::finish`], since the packet path cannot
//! report it. Little-endian whatever the machine, so that the same packets give the same bytes everywhere.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use super::pcapng::{
    BYTE_ORDER, ENHANCED_PACKET, INTERFACE_DESCRIPTION, OPTION_COMMENT, OPTION_END, OPTION_TIME_RESOLUTION,
    SECTION_HEADER,
};

const OPTION_INTERFACE_NAME: u16 = 2;
const OPTION_PACKET_FLAGS: u16 = 2;
const NANOSECONDS: u8 = 9;
const LONGEST_COMMENT: usize = 1_024;

/// A frame for a file with several interfaces.
#[derive(Clone, Copy, Debug)]
pub struct RecordedFrame<'a> {
    /// Name of the interface it was seen at.
    pub interface: &'a str,
    /// Whether it left by it; else it came in.
    pub outbound: bool,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// The frame, as much as there is of it.
    pub bytes: &'a [u8],
    /// Bytes of the whole frame.
    pub length: usize,
    /// What is to be said of it; kept up to 1,024 bytes.
    pub comment: &'a str,
}

struct State {
    /// Names of the interfaces that were described, in their order.
    interfaces: Vec<String>,
    sink: Box<dyn Write + Send>,
    block: Vec<u8>,
    frames: u64,
    error: Option<io::Error>,
}

/// A pcapng file being written; clones write to the same file.
#[derive(Clone)]
pub struct Recording(Arc<Mutex<State>>);

impl std::fmt::Debug for Recording {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Recording").field("frames", &self.frames()).finish_non_exhaustive()
    }
}

impl Recording {
    /// Begins a file in `sink`; give it a `BufWriter` or memory.
    #[must_use]
    pub fn new(sink: impl Write + Send + 'static) -> Self {
        let recording = Self::with_named_interfaces(sink);
        recording.with(|state| state.interface(""));
        recording
    }

    /// The same for frames of several interfaces, written with [`Recording::write_frame`] alone.
    #[must_use]
    pub fn with_named_interfaces(sink: impl Write + Send + 'static) -> Self {
        let interfaces = Vec::new();
        let mut state = State { interfaces, sink: Box::new(sink), block: Vec::new(), frames: 0, error: None };
        state.header();
        Self(Arc::new(Mutex::new(state)))
    }

    /// Writes one frame of an interface. False if this or an earlier write failed.
    pub fn write_frame(&self, frame: &RecordedFrame<'_>) -> bool {
        self.with(|state| state.frame_of(frame))
    }

    /// Writes out what is buffered: the file is whole up to here.
    ///
    /// # Errors
    /// What the sink says.
    pub fn flush(&self) -> io::Result<()> {
        self.with(|state| state.sink.flush())
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes one frame, given in parts, at `time` nanoseconds since 1970. False if this or an earlier write failed.
    /// A comment is kept up to 1,024 bytes.
    pub fn write<'a>(&self, time: u64, parts: impl Iterator<Item = &'a [u8]>, comment: Option<&str>) -> bool {
        self.with(|state| state.frame(time, parts, comment))
    }

    /// Frames written.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.with(|state| state.frames)
    }

    /// Writes out what is buffered; returns how many frames the file has.
    ///
    /// # Errors
    /// The first write that failed.
    pub fn finish(&self) -> io::Result<u64> {
        self.with(|state| {
            if let Some(error) = state.error.take() {
                return Err(error);
            }
            state.sink.flush()?;
            Ok(state.frames)
        })
    }
}

impl State {
    fn header(&mut self) {
        self.begin(SECTION_HEADER);
        self.put(&BYTE_ORDER.to_le_bytes());
        self.put(&[1, 0, 0, 0]);
        self.put(&u64::MAX.to_le_bytes());
        self.end();
    }

    /// Describes one more interface.
    fn interface(&mut self, name: &str) {
        self.interfaces.push(name.to_owned());
        self.begin(INTERFACE_DESCRIPTION);
        self.put(&[1, 0, 0, 0, 0, 0, 0, 0]);
        if !name.is_empty() {
            self.option(OPTION_INTERFACE_NAME, name.as_bytes());
        }
        self.option(OPTION_TIME_RESOLUTION, &[NANOSECONDS]);
        self.option(OPTION_END, &[]);
        self.end();
    }

    fn frame<'a>(&mut self, time: u64, parts: impl Iterator<Item = &'a [u8]>, comment: Option<&str>) -> bool {
        self.begin(ENHANCED_PACKET);
        self.put(&0u32.to_le_bytes());
        self.put(&((time >> 32) as u32).to_le_bytes());
        self.put(&(time as u32).to_le_bytes());
        let lengths = self.block.len();
        self.put(&[0; 8]);
        let start = self.block.len();
        parts.for_each(|part| self.put(part));
        let length = ((self.block.len() - start) as u32).to_le_bytes();
        self.block[lengths..lengths + 4].copy_from_slice(&length);
        self.block[lengths + 4..start].copy_from_slice(&length);
        self.pad();
        if let Some(text) = comment {
            self.option(OPTION_COMMENT, &text.as_bytes()[..text.floor_char_boundary(LONGEST_COMMENT)]);
            self.option(OPTION_END, &[]);
        }
        let written = self.end();
        self.frames += u64::from(written);
        written
    }

    fn frame_of(&mut self, frame: &RecordedFrame<'_>) -> bool {
        let known = self.interfaces.iter().position(|name| name == frame.interface);
        let number = known.unwrap_or_else(|| {
            self.interface(frame.interface);
            self.interfaces.len() - 1
        });
        self.begin(ENHANCED_PACKET);
        self.put(&(number as u32).to_le_bytes());
        self.put(&((frame.time >> 32) as u32).to_le_bytes());
        self.put(&(frame.time as u32).to_le_bytes());
        self.put(&(frame.bytes.len() as u32).to_le_bytes());
        self.put(&(frame.length as u32).to_le_bytes());
        self.put(frame.bytes);
        self.pad();
        let comment = frame.comment;
        self.option(OPTION_COMMENT, &comment.as_bytes()[..comment.floor_char_boundary(LONGEST_COMMENT)]);
        self.option(OPTION_PACKET_FLAGS, &(1 + u32::from(frame.outbound)).to_le_bytes());
        self.option(OPTION_END, &[]);
        let written = self.end();
        self.frames += u64::from(written);
        written
    }

    fn begin(&mut self, kind: u32) {
        self.block.clear();
        self.put(&kind.to_le_bytes());
        self.put(&[0; 4]);
    }

    fn put(&mut self, bytes: &[u8]) {
        self.block.extend_from_slice(bytes);
    }

    fn pad(&mut self) {
        self.block.resize(self.block.len().next_multiple_of(4), 0);
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        self.put(&code.to_le_bytes());
        self.put(&(value.len() as u16).to_le_bytes());
        self.put(value);
        self.pad();
    }

    /// Writes the block's length at both ends, and the block; false if this or an earlier write failed.
    fn end(&mut self) -> bool {
        let length = (self.block.len() as u32 + 4).to_le_bytes();
        self.block[4..8].copy_from_slice(&length);
        self.put(&length);
        if self.error.is_none() {
            self.error = self.sink.write_all(&self.block).err();
        }
        self.error.is_none()
    }
}
