//! Bytes into the parser, frames into every port of a node.

use std::cell::RefCell;

use millrace_engine::testing::valid_packets;

use crate::anything::{self, AnyNode};

/// Packets beyond are left out of the corpora: they teach no more than shorter ones.
const LONGEST: usize = 200;

thread_local! {
    static NODE: RefCell<AnyNode> = RefCell::new(AnyNode::new());
}

/// Any bytes into the parser: a verdict, and offsets that lie inside the frame.
///
/// # Panics
/// If an offset lies outside.
pub fn parse(bytes: &[u8]) {
    anything::parse(bytes);
}

/// Frames into every port of a node that lives as long as its thread. See [`AnyNode::play`] for the form of the input.
///
/// # Panics
/// If the switch breaks a promise.
pub fn node(bytes: &[u8]) {
    NODE.with_borrow_mut(|node| node.play(bytes));
}

/// One packet of every kind, short ones.
pub(super) fn short_packets() -> impl Iterator<Item = (String, Vec<u8>)> {
    let packets = valid_packets().into_iter().chain(AnyNode::new().own_packets());
    packets.filter(|(_, bytes)| bytes.len() <= LONGEST).map(|(name, bytes)| (name.replace([' ', ','], "-"), bytes))
}

/// Inputs of [`parse`].
#[must_use]
pub fn parse_seeds() -> Vec<(String, Vec<u8>)> {
    short_packets().collect()
}

/// Inputs of [`node`].
#[must_use]
pub fn node_seeds() -> Vec<(String, Vec<u8>)> {
    short_packets().map(|(name, bytes)| (name, AnyNode::input_of(&bytes))).collect()
}
