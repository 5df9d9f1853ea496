//! Lookup structures that tables are made of: immutable, shared, cheap to change by copying what changed.

mod maglev;
mod prefix_tree;

pub use maglev::{Maglev, Member, mix};
pub use prefix_tree::PrefixTree;
