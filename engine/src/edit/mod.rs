//! Carrying out a decision on a packet's bytes: the one place where headers change.

mod rewrite;

pub use rewrite::{Encapsulation, MacPair, Rewrite, Translation};
