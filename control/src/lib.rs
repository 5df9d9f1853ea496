//! The control plane of Millrace.

pub mod kernel;
