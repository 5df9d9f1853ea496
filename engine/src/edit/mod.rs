//! Carrying out a decision on a packet's bytes: the one place where headers change.

mod compiled;
mod rewrite;

pub use compiled::CompiledRewrite;
pub use rewrite::{Encapsulation, MacPair, Rewrite, Translation};
