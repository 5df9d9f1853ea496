//! Replays the corpora of the fuzz targets, so that what a fuzzer once found stays found.
//!
//! The first inputs are one packet of every kind, short ones; `MILLRACE_WRITE_CORPUS=1` writes them anew. Inputs that
//! a fuzzer found are added under names of their own.

use std::path::{Path, PathBuf};

use millrace_engine::testing::valid_packets;
use millrace_tests::anything::{AnyNode, parse};

/// Packets beyond are left out of the corpora: they teach no more than shorter ones.
const LONGEST: usize = 200;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

fn inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    if std::env::var_os("MILLRACE_WRITE_CORPUS").is_some() {
        let packets = valid_packets().into_iter().chain(AnyNode::new().own_packets());
        for (name, bytes) in packets.filter(|(_, bytes)| bytes.len() <= LONGEST) {
            let input = if target == "node" { AnyNode::input_of(&bytes) } else { bytes };
            let name = name.replace([' ', ','], "-");
            std::fs::write(corpus(target).join(name), input).expect("write");
        }
    }
    let entries = std::fs::read_dir(corpus(target)).expect("the corpus");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    files.into_iter().map(|file| (file.clone(), std::fs::read(file).expect("read"))).collect()
}

#[test]
fn the_corpus_of_the_parser() {
    let inputs = inputs("parse");
    assert!(inputs.len() > 30, "{} inputs", inputs.len());
    for (file, bytes) in inputs {
        println!("{}", file.display());
        parse(&bytes);
    }
}

#[test]
fn the_corpus_of_the_node() {
    let inputs = inputs("node");
    assert!(inputs.len() > 30, "{} inputs", inputs.len());
    let mut node = AnyNode::new();
    for (file, bytes) in inputs {
        println!("{}", file.display());
        node.play(&bytes);
        // The same with every sort of offload metadata.
        for sort in 1..=5u8 {
            let mut bytes = bytes.clone();
            bytes.first_mut().into_iter().for_each(|choice| *choice |= sort << 4);
            node.play(&bytes);
        }
    }
}
