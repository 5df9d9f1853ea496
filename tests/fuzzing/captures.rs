//! Capture files of any bytes: read with a fault that has a place, or into frames that can be written and read again.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use millrace_engine::port::pcap::{Capture, Recording};

use super::packets;

/// What a recording writes to.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("one thread").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A file.
///
/// # Panics
/// If frames that were read are not the same when they are written and read again.
pub fn run(bytes: &[u8]) {
    let name = Path::new("fuzz.pcapng");
    let capture = match Capture::from_bytes(name, bytes.to_vec()) {
        Ok(capture) => capture,
        Err(error) => return assert!(error.to_string().contains("fuzz.pcapng"), "{error}"),
    };
    let memory = Memory::default();
    let recording = Recording::new(memory.clone());
    for frame in capture.frames() {
        assert!(recording.write(frame.time, std::iter::once(frame.bytes), frame.comment));
    }
    recording.finish().expect("memory takes everything");
    let written = memory.0.lock().expect("one thread").clone();
    let again = Capture::from_bytes(name, written).expect("what was written can be read");
    assert_eq!(again.len(), capture.len());
    for (first, second) in capture.frames().zip(again.frames()) {
        assert_eq!((first.time, first.bytes), (second.time, second.bytes));
        let kept = first.comment.map(|comment| comment.len() <= 1_024);
        assert!(kept != Some(true) || first.comment == second.comment);
    }
}

/// Files of both formats.
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let packets: Vec<(String, Vec<u8>)> = packets::short_packets().step_by(9).collect();
    let memory = Memory::default();
    let recording = Recording::new(memory.clone());
    for (number, (name, packet)) in (0..).zip(&packets) {
        recording.write(number * 1_500_000_000, std::iter::once(&packet[..]), Some(name));
    }
    drop(recording.finish());
    let written = memory.0.lock().expect("one thread").clone();
    let classic = |magic: [u8; 4], big: bool| {
        let number = |number: u32| if big { number.to_be_bytes() } else { number.to_le_bytes() };
        let mut file = magic.to_vec();
        file.extend(if big { [0, 2, 0, 4] } else { [2, 0, 4, 0] });
        [0, 0, 65_535, 1].into_iter().for_each(|word| file.extend(number(word)));
        for (_, packet) in packets.iter().take(4) {
            let length = packet.len() as u32;
            [7, 8, length, length].into_iter().for_each(|word| file.extend(number(word)));
            file.extend_from_slice(packet);
        }
        file
    };
    vec![
        ("pcapng".to_owned(), written),
        ("classic-microseconds".to_owned(), classic([0xd4, 0xc3, 0xb2, 0xa1], false)),
        ("classic-nanoseconds-big".to_owned(), classic([0xa1, 0xb2, 0x3c, 0x4d], true)),
    ]
}
