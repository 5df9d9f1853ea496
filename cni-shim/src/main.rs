//! The `millrace-cni` program.
fn main() {}
