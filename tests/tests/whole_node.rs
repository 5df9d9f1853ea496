//! A node survives anything that a port gives it: every prefix of every kind of packet, and packets damaged at random.
//!
//! The node has every kind of port (pods of both families, access and trunk ports, uplink), two workers and peers of
//! both families. After each batch every frame is accounted for; at the end no frame memory is missing. The full
//! measure is `MILLRACE_MUTATIONS=10000000 cargo test --release -p millrace-tests --test whole_node`.

use std::time::Duration;

use millrace_engine::port::memory::WireFrame;
use millrace_engine::testing::{Mutator, gso_units, valid_packets};
use millrace_tests::anything::AnyNode;

/// Damaged frames in an ordinary run.
const MUTATIONS: usize = 100_000;
/// Frames that are before the ports at a time.
const BATCH: usize = 64;

#[test]
fn every_prefix_of_every_packet_is_forwarded_or_dropped_with_a_reason() {
    let mut node = AnyNode::new();
    let mut frames = 0;
    for (_, packet) in valid_packets().into_iter().chain(node.own_packets()) {
        for length in 0..=packet.len() {
            for port in AnyNode::PORTS {
                node.queue(port, WireFrame::plain(packet[..length].to_vec()));
                frames += 1;
            }
            node.rest();
        }
    }
    node.finish(frames);
}

#[test]
fn damaged_frames_are_forwarded_or_dropped_with_a_reason() {
    let count = std::env::var("MILLRACE_MUTATIONS").map_or(MUTATIONS, |text| text.parse().expect("a number"));
    let seed = std::env::var("MILLRACE_SEED").map_or(1, |text| text.parse().expect("a number"));
    println!("seed {seed}, {count} frames");
    let mut node = AnyNode::new();
    let own: Vec<Vec<u8>> = node.own_packets().into_iter().map(|(_, bytes)| bytes).collect();
    let mut mutator = Mutator::with_packets(seed, own);
    let mut sent = 0;
    while sent < count {
        for _ in 0..BATCH {
            let frame = node.damaged(&mut mutator);
            let port = AnyNode::PORTS[mutator.below(AnyNode::PORTS.len())];
            node.queue(port, frame);
        }
        sent += BATCH;
        node.rest();
        if mutator.below(64) == 0 {
            node.pass(Duration::from_millis(mutator.below(4000) as u64));
        }
    }
    node.finish(sent as u64);
}

#[test]
fn units_of_every_kind_and_size_are_cut_or_refused() {
    let mut node = AnyNode::new();
    let mut frames = 0;
    for (_, unit) in gso_units().into_iter().chain(node.own_units()) {
        for size in [0, 1, 7, 8, 100, 536, 1359, 1398, 1410, 1411, 9000, u16::MAX] {
            for port in AnyNode::PORTS {
                let mut unit = unit.clone();
                unit.gso.iter_mut().for_each(|gso| gso.size = size);
                node.queue(port, unit);
                frames += 1;
                node.rest();
                node.pass(Duration::from_millis(100));
            }
        }
    }
    node.finish(frames);
}
