//! Carrying out a decision on a packet's bytes: the one place where headers change.

mod apply;
mod compiled;
mod plain;
mod quote;
mod renumber;
mod rewrite;
#[cfg(test)]
mod tests;
mod translate;
mod translate_plain;

pub use apply::{Subject, apply};
pub use compiled::CompiledRewrite;
pub use plain::apply_plain;
pub use renumber::renumber;
pub use rewrite::{Encapsulation, MacPair, Rewrite, Translation};
