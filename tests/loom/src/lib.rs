//! The engine's files whose interleavings matter, with models of what they stand on.
//!
//! - [`publish`] is `engine/src/tables/publish.rs`: tables to workers, and who may free them. `arc_swap` is modelled by a lock,
//!   which orders no more than its own swap and load do; its own tests are its affair.
//! - [`af_xdp::rings`] is `engine/src/port/af_xdp/rings.rs`: the rings shared with the kernel, whose side the test plays as
//!   net/xdp/xsk_queue.h has it.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test --release`; without that flag there is nothing here.
#![cfg(loom)]
#![allow(dead_code)]

// What the engine's files call by the names of crates.
extern crate self as arc_swap;
extern crate self as crossbeam;

mod swap;

pub use swap::{ArcSwap, cache, utils};

#[path = "../../../engine/src/tables/publish.rs"]
pub mod publish;

pub mod af_xdp {
    //! The rings and the memory they lie in.

    #[path = "../../../../engine/src/port/af_xdp/rings.rs"]
    mod rings;
    mod sys;

    #[cfg(test)]
    mod ring_models;
}

mod model;

pub use model::{ChangeSet, Snapshot, change, is_worker};

#[cfg(test)]
mod publish_models;
