//! What tests, benches and tools build on: packets in, packets out, in words.
//!
//! - [`frame()`] builds a frame; everything is derived unless overridden.
//! - [`describe`] says in one stable line what a frame is, so that a failing assertion reads like tcpdump.
//! - [`checksums_valid`] checks every checksum of a frame.
//! - [`node::Node`] is a switch built by the production constructor, on memory ports.
//! - [`valid_packets`] is one valid frame of every kind, for prefix and mutation tests.
//! - [`Mutator`] damages them, from a seed.
//!
//! `describe` and `checksums_valid` stand on etherparse, the builder on its own few lines: nothing here calls the
//! engine's parser, builders or checksums, so that a fault there cannot hide itself. Never part of forwarding.
//! Mistakes of the test that calls panic.

mod assemble;
mod checksum;
mod decode;
mod describe;
mod failing_queue;
mod frame;
mod mutate;
pub mod node;
mod packets;
mod verify;

pub use checksum::{crc32c, internet_checksum};
pub use describe::describe;
pub use failing_queue::{FailingQueue, Faults};
pub use frame::{FrameBuilder, ToAddress, ToMac, frame};
pub use mutate::Mutator;
pub use packets::{fragments, gso_units, valid_packets};
pub use verify::checksums_valid;

pub use crate::packet::wire::tcp::flag::{ACK, CWR, ECE, FIN, PSH, RST, SYN, URG};

#[cfg(test)]
mod tests;
