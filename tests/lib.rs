//! What the tests of Millrace as a whole share; the tests themselves are in `tests/`, scenario texts in `scenarios/`.
//!
//! - [`anything`]: a node with every kind of port, to be given anything.
//! - [`cluster`]: several switches on memory ports, each with the real control plane, joined by their uplinks.
//! - [`memory_store`]: an object store in memory, which all nodes of a cluster share.
//! - [`scenario`]: text files of the form given, when, then.
//! - [`service_world`]: two nodes with pods, and what becomes of a packet to a Service.
//! - [`tcp_stream`]: TCP peers of smoltcp at two pods and a bad wire between their nodes.
//! - [`objects`]: objects of a cluster as JSON.
//! - [`policies`]: an oracle for policies, and the node that is held against it.
//! - [`random`]: numbers from a seed.
//!
//! Everything runs on one thread and on a clock that the test moves: the same seed gives the same run. Mistakes of a
//! test and broken promises of the switch panic.

pub mod anything;
pub mod capture;
pub mod cluster;
pub mod memory_store;
pub mod objects;
pub mod policies;
pub mod random;
pub mod scenario;
pub mod service_world;
pub mod tcp_stream;
