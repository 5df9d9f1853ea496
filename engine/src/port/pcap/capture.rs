//! A capture file in memory: classic pcap and pcapng, read whole and checked whole before the first frame is used.
//!
//! So a replay never meets a malformed file half way, and delivering a frame allocates nothing. Formats: the libpcap
//! file format (`pcap-savefile(5)`: both byte orders, micro- and nanoseconds) and draft-ietf-opsawg-pcapng. Bounds:
//! `limits::CAPTURE_BYTES` a file, `limits::PACKET_BYTES` a frame; 48 B of index a frame. Runs off the workers.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::pcapng;
use crate::limits;

/// `LINKTYPE_ETHERNET`, the only one a switch can use.
pub(super) const ETHERNET: u32 = 1;
const FILE_HEADER_BYTES: usize = 24;
const RECORD_HEADER_BYTES: usize = 16;
const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;

/// Why a file is no capture that can be replayed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The system did not give the file's bytes.
    #[error("{}: cannot be read", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file's content is wrong.
    #[error("{}: at byte {offset}: {fault}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// Where the faulty header or block begins.
        offset: usize,
        /// What is wrong there.
        fault: CaptureFault,
    },
}

/// What is wrong at one place of a capture file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaptureFault {
    /// Longer than [`limits::CAPTURE_BYTES`].
    #[error("the file is longer than {} bytes", limits::CAPTURE_BYTES)]
    TooLong,
    /// Neither pcap nor pcapng.
    #[error("neither a pcap nor a pcapng file begins like this")]
    NotACapture,
    /// The file ends inside a header, block or frame.
    #[error("the file ends too early")]
    Truncated,
    /// No Ethernet frames.
    #[error("link type {0} is not Ethernet (1)")]
    LinkType(u32),
    /// A version of the format that is not known.
    #[error("format version {0}.{1} is not known")]
    Version(u16, u16),
    /// A pcapng block whose length is no multiple of four, too short, or not repeated at its end.
    #[error("a block of {0} bytes is malformed")]
    BlockLength(u32),
    /// A packet of an interface that no block described.
    #[error("interface {0} is not described")]
    Interface(u32),
    /// A time resolution beyond what 64 bits of nanoseconds can be made of.
    #[error("time resolution {0:#04x} cannot be used")]
    TimeResolution(u8),
    /// A time stamp beyond the year 2554.
    #[error("the time stamp is out of range")]
    TimeStamp,
    /// A frame longer than [`limits::PACKET_BYTES`] or than the packet it is from.
    #[error("a frame of {0} bytes is out of range")]
    FrameLength(u32),
    /// The packet block of old pcapng drafts.
    #[error("packet blocks (type 2) are obsolete and not read")]
    ObsoletePacketBlock,
}

/// A fault and where it is.
pub(super) type Fault = (usize, CaptureFault);

/// One frame of a capture.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// Nanoseconds since 1970, never less than those of the record before.
    pub(super) time: u64,
    /// Where its bytes lie in the file.
    pub(super) bytes: Range<usize>,
    /// Where its comment lies; empty without one.
    pub(super) comment: Range<usize>,
}

/// A frame as a capture has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapturedFrame<'a> {
    /// Nanoseconds since 1970, never less than those of the frame before.
    pub time: u64,
    /// The bytes that were captured, from the Ethernet header on.
    pub bytes: &'a [u8],
    /// What somebody noted.
    pub comment: Option<&'a str>,
}

/// A capture file, read and checked.
#[derive(Clone, Debug, Default)]
pub struct Capture {
    file: Vec<u8>,
    records: Vec<Record>,
}

impl Capture {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        let mut bytes = Vec::new();
        let limit = limits::CAPTURE_BYTES as u64 + 1;
        File::open(path)
            .and_then(|file| file.take(limit).read_to_end(&mut bytes))
            .map_err(|source| CaptureError::Read { file: path.to_owned(), source })?;
        Self::from_bytes(path, bytes)
    }

    /// Checks a file whose bytes are at hand; `name` is for messages.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn from_bytes(name: &Path, bytes: Vec<u8>) -> Result<Self, CaptureError> {
        let read = if bytes.len() > limits::CAPTURE_BYTES {
            Err((limits::CAPTURE_BYTES, CaptureFault::TooLong))
        } else {
            records(&bytes)
        };
        match read {
            Ok(mut records) => {
                // Captures of several processors may step back a little; a clock must not.
                let mut latest = 0;
                for record in &mut records {
                    latest = record.time.max(latest);
                    record.time = latest;
                }
                Ok(Self { file: bytes, records })
            }
            Err((offset, fault)) => Err(CaptureError::Malformed { file: name.to_owned(), offset, fault }),
        }
    }

    /// How many frames it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Frame `number`, from zero.
    #[must_use]
    pub fn frame(&self, number: usize) -> Option<CapturedFrame<'_>> {
        let record = self.records.get(number)?;
        let comment = self.file.get(record.comment.clone()).and_then(|text| std::str::from_utf8(text).ok());
        Some(CapturedFrame {
            time: record.time,
            bytes: self.file.get(record.bytes.clone()).unwrap_or_default(),
            comment: comment.filter(|text| !text.is_empty()),
        })
    }

    /// All frames in order.
    pub fn frames(&self) -> impl Iterator<Item = CapturedFrame<'_>> {
        (0..self.len()).filter_map(|number| self.frame(number))
    }
}

fn records(file: &[u8]) -> Result<Vec<Record>, Fault> {
    let Some(first) = file.first_chunk::<4>() else { return Err((0, CaptureFault::Truncated)) };
    let (little, big) = (u32::from_le_bytes(*first), u32::from_be_bytes(*first));
    match (little, big) {
        (pcapng::SECTION_HEADER, _) => pcapng::records(file),
        (MICROSECONDS, _) => classic(&Bytes { file, big: false }, 1_000),
        (NANOSECONDS, _) => classic(&Bytes { file, big: false }, 1),
        (_, MICROSECONDS) => classic(&Bytes { file, big: true }, 1_000),
        (_, NANOSECONDS) => classic(&Bytes { file, big: true }, 1),
        _ => Err((0, CaptureFault::NotACapture)),
    }
}

/// The records of a classic file, whose fractions of seconds are `unit` nanoseconds each.
fn classic(bytes: &Bytes<'_>, unit: u64) -> Result<Vec<Record>, Fault> {
    let truncated = |offset| (offset, CaptureFault::Truncated);
    let version = (bytes.u16(4).ok_or(truncated(0))?, bytes.u16(6).ok_or(truncated(0))?);
    let link_type = bytes.u32(20).ok_or(truncated(0))?;
    if version.0 != 2 {
        return Err((0, CaptureFault::Version(version.0, version.1)));
    }
    if link_type != ETHERNET {
        return Err((0, CaptureFault::LinkType(link_type)));
    }
    let mut records = Vec::new();
    let mut at = FILE_HEADER_BYTES;
    while at < bytes.file.len() {
        let [seconds, fraction, captured, original] =
            [0, 4, 8, 12].map(|offset| bytes.u32(at + offset)).map(|field| field.ok_or(truncated(at)));
        let time = u64::from(seconds?) * 1_000_000_000 + u64::from(fraction?) * unit;
        let length = frame_length(captured?, original?).map_err(|fault| (at, fault))?;
        let start = at + RECORD_HEADER_BYTES;
        let end = start + length;
        if end > bytes.file.len() {
            return Err(truncated(at));
        }
        records.push(Record { time, bytes: start..end, comment: 0..0 });
        at = end;
    }
    Ok(records)
}

/// The captured length, if a frame may have it.
pub(super) fn frame_length(captured: u32, original: u32) -> Result<usize, CaptureFault> {
    let length = captured as usize;
    if length > limits::PACKET_BYTES || captured > original {
        return Err(CaptureFault::FrameLength(captured));
    }
    Ok(length)
}

/// Numbers of a file in its byte order.
pub(super) struct Bytes<'a> {
    pub(super) file: &'a [u8],
    pub(super) big: bool,
}

impl Bytes<'_> {
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.file.get(at..)?.first_chunk().copied()
    }

    pub(super) fn u16(&self, at: usize) -> Option<u16> {
        let bytes = self.array(at)?;
        Some(if self.big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    pub(super) fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.array(at)?;
        Some(if self.big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    pub(super) fn u64(&self, at: usize) -> Option<u64> {
        let bytes = self.array(at)?;
        Some(if self.big { u64::from_be_bytes(bytes) } else { u64::from_le_bytes(bytes) })
    }
}
