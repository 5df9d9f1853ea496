//! The blocks of a pcapng file (draft-ietf-opsawg-pcapng): section header, interface description, enhanced and simple
//! packet. Others are passed over, as the format asks.

use std::ops::Range;

use super::capture::{Bytes, CaptureFault, ETHERNET, Fault, Record, frame_length};

pub(super) const SECTION_HEADER: u32 = 0x0a0d_0d0a;
pub(super) const INTERFACE_DESCRIPTION: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
pub(super) const ENHANCED_PACKET: u32 = 6;
pub(super) const BYTE_ORDER: u32 = 0x1a2b_3c4d;

pub(super) const OPTION_END: u16 = 0;
pub(super) const OPTION_COMMENT: u16 = 1;
pub(super) const OPTION_TIME_RESOLUTION: u16 = 9;
const OPTION_TIME_OFFSET: u16 = 14;

/// Type, length, and the length again at the end.
const FRAMING_BYTES: usize = 12;

/// What a packet block must know of its interface.
#[derive(Clone, Copy)]
struct Interface {
    units_per_second: u128,
    /// Seconds to add to every time stamp.
    offset: i64,
    /// Longest captured frame; 0 for no bound.
    snap_length: u32,
}

impl Interface {
    fn nanoseconds(&self, stamp: u64) -> Option<u64> {
        let since = u128::from(stamp) * 1_000_000_000 / self.units_per_second;
        u64::try_from(i128::try_from(since).ok()? + i128::from(self.offset) * 1_000_000_000).ok()
    }
}

struct Reader<'a> {
    bytes: Bytes<'a>,
    interfaces: Vec<Interface>,
    records: Vec<Record>,
}

/// The frames of a file that begins with a section header.
pub(super) fn records(file: &[u8]) -> Result<Vec<Record>, Fault> {
    let mut reader = Reader { bytes: Bytes { file, big: false }, interfaces: Vec::new(), records: Vec::new() };
    let mut at = 0;
    while at < file.len() {
        at += reader.block(at).map_err(|fault| (at, fault))?;
    }
    Ok(reader.records)
}

impl Reader<'_> {
    /// Reads the block at `at`; returns its length.
    fn block(&mut self, at: usize) -> Result<usize, CaptureFault> {
        let kind = self.field(at)?;
        if kind == SECTION_HEADER {
            // The byte order of a section is told by its header, and holds for the header's own length too.
            self.bytes.big = false;
            self.bytes.big = match self.field(at + 8)? {
                BYTE_ORDER => false,
                order if order.swap_bytes() == BYTE_ORDER => true,
                _ => return Err(CaptureFault::NotACapture),
            };
        }
        let length = self.field(at + 4)?;
        let end = at.checked_add(length as usize).ok_or(CaptureFault::Truncated)?;
        if end > self.bytes.file.len() {
            return Err(CaptureFault::Truncated);
        }
        let well_formed = length.is_multiple_of(4) && length as usize >= FRAMING_BYTES;
        if !well_formed || self.field(end - 4)? != length {
            return Err(CaptureFault::BlockLength(length));
        }
        self.body(kind, at + 8..end - 4, length)?;
        Ok(length as usize)
    }

    fn body(&mut self, kind: u32, body: Range<usize>, length: u32) -> Result<(), CaptureFault> {
        let least = match kind {
            SECTION_HEADER => 16,
            INTERFACE_DESCRIPTION => 8,
            SIMPLE_PACKET => 4,
            ENHANCED_PACKET => 20,
            OBSOLETE_PACKET => return Err(CaptureFault::ObsoletePacketBlock),
            _ => return Ok(()),
        };
        if body.len() < least {
            return Err(CaptureFault::BlockLength(length));
        }
        match kind {
            SECTION_HEADER => self.section(body.start),
            INTERFACE_DESCRIPTION => self.interface(body),
            SIMPLE_PACKET => self.simple_packet(body, length),
            _ => self.enhanced_packet(body, length),
        }
    }

    fn field(&self, at: usize) -> Result<u32, CaptureFault> {
        self.bytes.u32(at).ok_or(CaptureFault::Truncated)
    }

    fn section(&mut self, at: usize) -> Result<(), CaptureFault> {
        self.interfaces.clear();
        let version = |at| self.bytes.u16(at).ok_or(CaptureFault::Truncated);
        match (version(at + 4)?, version(at + 6)?) {
            (1, _) => Ok(()),
            (major, minor) => Err(CaptureFault::Version(major, minor)),
        }
    }

    fn interface(&mut self, body: Range<usize>) -> Result<(), CaptureFault> {
        let link_type = self.bytes.u16(body.start).ok_or(CaptureFault::Truncated)?;
        if u32::from(link_type) != ETHERNET {
            return Err(CaptureFault::LinkType(u32::from(link_type)));
        }
        let snap_length = self.field(body.start + 4)?;
        let mut interface = Interface { units_per_second: 1_000_000, offset: 0, snap_length };
        for (code, value) in self.options(body.start + 8..body.end) {
            match (code, value.len()) {
                (OPTION_TIME_RESOLUTION, 1) => interface.units_per_second = resolution(self.bytes.file[value.start])?,
                (OPTION_TIME_OFFSET, 8) => interface.offset = self.bytes.u64(value.start).unwrap_or(0) as i64,
                _ => {}
            }
        }
        self.interfaces.push(interface);
        Ok(())
    }

    fn enhanced_packet(&mut self, body: Range<usize>, length: u32) -> Result<(), CaptureFault> {
        let number = self.field(body.start)?;
        let interface = self.interfaces.get(number as usize).ok_or(CaptureFault::Interface(number))?;
        let stamp = u64::from(self.field(body.start + 4)?) << 32 | u64::from(self.field(body.start + 8)?);
        let time = interface.nanoseconds(stamp).ok_or(CaptureFault::TimeStamp)?;
        let captured = frame_length(self.field(body.start + 12)?, self.field(body.start + 16)?)?;
        let bytes = body.start + 20..body.start + 20 + captured;
        let options = bytes.start + captured.next_multiple_of(4)..body.end;
        if options.start > options.end {
            return Err(CaptureFault::BlockLength(length));
        }
        let comment = self.options(options).find(|(code, _)| *code == OPTION_COMMENT).map_or(0..0, |(_, value)| value);
        self.records.push(Record { time, bytes, comment });
        Ok(())
    }

    /// A simple packet is the first interface's and has no time stamp: it counts as simultaneous with the one before.
    fn simple_packet(&mut self, body: Range<usize>, length: u32) -> Result<(), CaptureFault> {
        let original = self.field(body.start)?;
        let interface = self.interfaces.first().ok_or(CaptureFault::Interface(0))?;
        let bound = if interface.snap_length == 0 { original } else { interface.snap_length };
        let captured = frame_length(original.min(bound), original)?;
        let bytes = body.start + 4..body.start + 4 + captured;
        if bytes.end > body.end {
            return Err(CaptureFault::BlockLength(length));
        }
        let time = self.records.last().map_or(0, |record| record.time);
        self.records.push(Record { time, bytes, comment: 0..0 });
        Ok(())
    }

    /// Code and place of each option; one that does not fit ends the list.
    fn options(&self, range: Range<usize>) -> impl Iterator<Item = (u16, Range<usize>)> + use<'_> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let (code, length) = (self.bytes.u16(at)?, usize::from(self.bytes.u16(at + 2)?));
            let value = at + 4..at + 4 + length;
            if code == OPTION_END || value.end > range.end {
                return None;
            }
            at = value.start + length.next_multiple_of(4);
            Some((code, value))
        })
    }
}

/// Units a second: ten to the power of seven bits, or two to their power if the highest bit is set.
fn resolution(option: u8) -> Result<u128, CaptureFault> {
    let (power, binary) = (u32::from(option & 0x7f), option & 0x80 != 0);
    match (power, binary) {
        (0..=63, true) => Ok(1 << power),
        (0..=19, false) => Ok(10u128.pow(power)),
        _ => Err(CaptureFault::TimeResolution(option)),
    }
}
