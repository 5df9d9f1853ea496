//! Carrying out a decision on a packet's bytes: the one place where headers change.

mod apply;
mod compiled;
pub(crate) mod new_ends;
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
pub use new_ends::NewEnds;
pub use plain::apply_plain;
pub use renumber::renumber;
pub use rewrite::{Encapsulation, MacPair, Rewrite, Translation};
