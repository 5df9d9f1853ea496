//! Lookup structures that tables are made of: immutable, shared, cheap to change by copying what changed.

mod prefix_tree;

pub use prefix_tree::PrefixTree;
