//! The control plane of Millrace.

#![forbid(unsafe_code)]

pub mod kernel;
