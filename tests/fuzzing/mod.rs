//! What the fuzz targets run: one function of bytes for each, which panics when a promise is broken.
//!
//! `tests/fuzz/` gives them to libFuzzer; `tests/tests/fuzz_corpus.rs` runs the corpora and a fixed number of mutations of
//! them in every `cargo test`, without a fuzzer. The form of each target's input is at its function.
//!
//! - [`packets`]: any bytes into the parser; frames into every port of a node.
//! - [`inner_frames`]: what peers may put into a tunnel.
//! - [`segmentation`]: units and what their senders say of them.
//! - [`random_tables`]: the whole slow path with tables that the input chooses; a warm cache beside a fresh node;
//!   policies beside their oracle.
//! - [`flow_cache`]: the cache beside a map.
//! - [`cni`]: what runtimes, plugins and whoever answers at the socket may say.
//! - [`objects`]: text and damaged objects through the control plane into tables.
//! - [`captures`]: capture files.

pub mod captures;
pub mod cni;
pub mod corpus;
pub mod flow_cache;
pub mod inner_frames;
pub mod objects;
pub mod packets;
pub mod random_tables;
pub mod segmentation;

/// A fuzz target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Name of the target and of its corpus.
    pub name: &'static str,
    /// Runs one input.
    pub run: fn(&[u8]),
    /// Inputs to begin with, each with a name.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
    /// Mutations in an ordinary `cargo test`: a few seconds' worth.
    pub mutations: usize,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Target").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All of them.
pub const TARGETS: [Target; 11] = [
    Target { name: "parse", run: packets::parse, seeds: packets::parse_seeds, mutations: 200_000 },
    Target { name: "node", run: packets::node, seeds: packets::node_seeds, mutations: 20_000 },
    Target { name: "vxlan", run: inner_frames::run, seeds: inner_frames::seeds, mutations: 20_000 },
    Target { name: "gso", run: segmentation::run, seeds: segmentation::seeds, mutations: 20_000 },
    Target { name: "slow_path", run: random_tables::slow_path, seeds: random_tables::seeds, mutations: 500 },
    Target { name: "cached", run: random_tables::cached, seeds: random_tables::choices, mutations: 50 },
    Target { name: "policy", run: random_tables::policy, seeds: random_tables::choices, mutations: 200 },
    Target { name: "flow_cache", run: flow_cache::run, seeds: flow_cache::seeds, mutations: 3_000 },
    Target { name: "cni", run: cni::run, seeds: cni::seeds, mutations: 2_000 },
    Target { name: "objects", run: objects::run, seeds: objects::seeds, mutations: 2_000 },
    Target { name: "captures", run: captures::run, seeds: captures::seeds, mutations: 20_000 },
];

/// The target of this name.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn target(name: &str) -> Target {
    *TARGETS.iter().find(|target| target.name == name).expect("a target of this name")
}

/// A frame behind its length in two bytes, cut short with the input; and what is behind it.
fn frame_of(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let [high, low, rest @ ..] = input else { return None };
    let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
    Some(rest.split_at(length))
}

/// The same the other way round.
fn with_length(frame: &[u8]) -> impl Iterator<Item = u8> {
    (frame.len() as u16).to_be_bytes().into_iter().chain(frame.iter().copied())
}
