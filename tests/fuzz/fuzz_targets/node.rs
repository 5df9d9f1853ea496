//! Frames into every port of a node: none is lost track of. See `AnyNode::play` for the form of the input.
#![no_main]

use std::cell::RefCell;

use millrace_tests::anything::AnyNode;

thread_local! {
    static NODE: RefCell<AnyNode> = RefCell::new(AnyNode::new());
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| NODE.with_borrow_mut(|node| node.play(bytes)));
