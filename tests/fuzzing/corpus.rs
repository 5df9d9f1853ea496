//! The corpora in `tests/fuzz/corpus/`, and mutations of them without a fuzzer.

use std::path::{Path, PathBuf};

use super::Target;
use crate::random::Random;

/// Longest input that mutations make.
const LONGEST: usize = 4_096;

/// Directory of a target's corpus.
#[must_use]
pub fn directory(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name)
}

/// Writes the inputs that a target begins with.
///
/// # Panics
/// If they cannot be written.
pub fn write_seeds(target: &Target) {
    std::fs::create_dir_all(directory(target)).expect("the directory of the corpus");
    for (name, bytes) in (target.seeds)() {
        std::fs::write(directory(target).join(name), bytes).expect("an input written");
    }
}

/// All inputs of a target, in order of their names.
///
/// # Panics
/// If the corpus cannot be read.
#[must_use]
pub fn inputs(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(directory(target)).expect("the corpus");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files.into_iter().map(|file| (file.clone(), std::fs::read(&file).expect("an input"))).collect()
}

/// An input of the corpus, damaged in a few places as fuzzers do it.
#[must_use]
pub fn mutated(inputs: &[(PathBuf, Vec<u8>)], random: &mut Random) -> Vec<u8> {
    let mut bytes = random.pick(inputs).1.clone();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len() + 1);
        match random.below(9) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            3 if at < bytes.len() => bytes[at] = [0, 1, 4, 0x7f, 0x80, 0xfe, 0xff][random.below(7)],
            4 if at < bytes.len() => bytes[at] = bytes[at].wrapping_add(random.below(17) as u8).wrapping_sub(8),
            5 => bytes.truncate(at),
            6 => {
                let more = 1 + random.below(16);
                let more = random.bytes(more);
                drop(bytes.splice(at..at, more));
            }
            7 => {
                let end = (at + random.below(32)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let other = &random.pick(inputs).1;
                let from = random.below(other.len() + 1);
                let tail = &other[from..];
                bytes.truncate(at);
                bytes.extend_from_slice(tail);
            }
        }
    }
    bytes.truncate(LONGEST);
    bytes
}
