//! What captures ask and are told.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::TraceReport;
use crate::support::SavedState;

/// Which packets to capture, and how many.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureRequest {
    /// Names of ports by one of which they come or leave: `namespace/pod`, an interface; none for any.
    #[serde(default)]
    pub ports: Vec<String>,
    /// Names of reasons for one of which they drop, none of them for any reason; absent for packets of every fate.
    #[serde(default)]
    pub drops: Option<Vec<String>>,
    /// IP protocol.
    #[serde(default)]
    pub protocol: Option<u8>,
    /// Addresses, each of which is the source or the destination.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Ports of TCP, UDP or SCTP, each of which is the source or the destination.
    #[serde(default)]
    pub transport_ports: Vec<u16>,
    /// Packets, by how they come in; the capture ends after so many.
    pub packets: u64,
    /// Bytes of frames; the capture ends after so many.
    pub bytes: u64,
    /// Seconds after which it ends.
    pub seconds: u64,
}

/// A capture that began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureBegun {
    /// Its number.
    pub capture: u64,
    /// Generation of the tables at that moment.
    pub generation: u64,
}

/// Names a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureName {
    /// Its number.
    pub capture: u64,
}

/// What was captured since the last batch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CaptureBatch {
    /// In order of their times.
    pub frames: Vec<CapturedReport>,
    /// Copies that were lost since the last batch, since nobody read fast enough.
    pub lost: u64,
    /// Why there will be no more.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ended: Option<String>,
}

/// What happened to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FrameEvent {
    /// It came in, and a verdict was found.
    Arrived,
    /// It left.
    Left,
    /// It was dropped.
    Dropped,
}

/// One frame as it was at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CapturedReport {
    /// Which packet: worker and number, the same for all its moments; number 0 for one whose arrival was not captured.
    pub packet: String,
    /// Nanoseconds since 1970.
    pub time_nanoseconds: u64,
    /// The port it came in by or left by.
    pub port: String,
    /// What happened.
    pub event: FrameEvent,
    /// Verdict, stages and objects, in a line.
    pub comment: String,
    /// The frame in hexadecimal digits, as much as was kept of it.
    pub bytes: String,
    /// Bytes of the whole frame.
    pub length_bytes: u64,
    /// Payload bytes of each segment, if it is a unit of several.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub segment_bytes: Option<u16>,
    /// What was decided when it arrived.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trace: Option<TraceReport>,
    /// The reason's stable name, if it was dropped.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub drop_reason: Option<String>,
}

/// What packets can be explained by elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SupportReport {
    /// Every object that the agent watches.
    pub objects: Vec<serde_json::Value>,
    /// What the node knows beside them.
    pub state: SavedState,
}

/// A frame to follow, as if it came in by a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceFrameRequest {
    /// The port's name.
    pub port: String,
    /// The frame in hexadecimal digits.
    pub bytes: String,
}

/// Hexadecimal digits of bytes.
#[must_use]
pub fn to_hexadecimal(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

/// The bytes that hexadecimal digits stand for; `None` if they are none.
#[must_use]
pub fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_the_way_through_text() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hexadecimal(&to_hexadecimal(&all)), Some(all));
        assert_eq!(
            (from_hexadecimal("0"), from_hexadecimal("0g"), from_hexadecimal("Ff")),
            (None, None, Some(vec![255]))
        );
    }
}
